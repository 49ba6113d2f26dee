"""How far a run can be reproduced: to the same bits, noises, scores or conclusion.

    levels.table(profile, folder)          as `make report` shows it

Each level is checked on what is there, by the cheapest comparison that could fail.
"""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from paper_utils import claims, data, models, scores, zoo
from paper_utils.models import BANK, Model
from paper_utils.noise import NoiseBank
from paper_utils.paths import ROOT
from paper_utils.profiles import Profile

COMMITTED = "figures/laptop/claims.json"
NOISES = 64  # whose bits are compared
NOISE_HASH = "55299bc3f9f21dc8ea9d858be5c410e541bf13da58e0ed0dd7b6126f941be38b"
AGAIN, CHECKED = 4, 32  # noises sampled twice, and sampled here to compare with what ships

Row = tuple[str, str, str, str]  # level, what was compared, what was found, whether it holds


def same_bits(model: Model, noise: Tensor) -> Row:
    """One model, the same noises [B, C, H, W], twice in this process."""
    first, again = model.generate(noise), model.generate(noise)
    gap = (first - again).abs().max().item()
    return ("same bits, run twice on this machine", f"{len(noise)} samples of {model.name}",
            "equal" if torch.equal(first, again) else f"largest difference {gap:.1e}",
            "yes" if torch.equal(first, again) else "no")


def same_noise(bank: NoiseBank = BANK) -> Row:
    """The first noises of the bank, by their hash, which is the same on every machine."""
    found = hashlib.sha256(bank[:NOISES].numpy().tobytes()).hexdigest()
    return ("same noise everywhere", f"sha256 of the first {NOISES} noises of {bank.name}",
            f"{found[:12]}, known {NOISE_HASH[:12]}", "yes" if found == NOISE_HASH else "no")


def same_scores(here: Mapping[str, Tensor], there: Mapping[str, Tensor],
                where: str = "this machine") -> Row:
    """MAE scores of every two models on samples of two machines, uint8 [n, C, H, W] by name.

    Holds where every score of one machine lies in the interval of the other.
    """
    pairs = [[scores.agreement(rows[a], rows[b], scores.close)[0] for rows in (here, there)]
             for a, b in combinations(here, 2)]
    apart = sum(not (a.low <= b.value <= a.high and b.low <= a.value <= b.high) for a, b in pairs)
    same = min(scores.close(here[k], there[k]).double().mean().item() for k in here)
    return ("same scores on another machine", f"MAE score of {' and '.join(here)}: samples of "
            f"{where} and those that ship in zoo/", "; ".join(f"{a} and {b}" for a, b in pairs)
            + f"; of a model with itself at least {same:.2f}",
            "yes" if not apart else f"no: {apart} of {len(pairs)} apart")


def same_conclusion(here: Mapping[str, list[dict]], there: Mapping[str, list[dict]]) -> Row:
    """The verdicts of two runs, claim by claim: the words before a colon. As claims.load has them.
    """
    mine, theirs = ({(section, row["statement"]): row["verdict"].partition(":")[0]
                     for section, rows in found.items() for row in rows} for found in (here, there))
    both = mine.keys() & theirs.keys()
    other = sorted(statement for section, statement in both
                   if mine[section, statement] != theirs[section, statement])
    return ("same conclusion", f"verdicts of this run and of the committed one ({COMMITTED})",
            f"{len(both) - len(other)} of {len(theirs)} claims agree"
            + (f"; other verdict: {'; '.join(other)}" if other else ""),
            "not run" if not both else
            "yes" if len(both) == len(theirs) and not other else "no")


def committed() -> dict[str, list[dict]]:
    """The claims of the committed figures, which this run may have overwritten; {} without git."""
    try:
        asked = subprocess.run(["git", "-C", str(ROOT), "show", f"HEAD:{COMMITTED}"],
                               capture_output=True, text=True)
    except OSError:
        return {}
    return {} if asked.returncode else json.loads(asked.stdout)


def _computed(folder: Path) -> dict[str, list[dict]]:
    """The claims of the notebooks that have run: a clone has the committed ones in their place."""
    return {section: rows for section, rows in claims.load(folder).items()
            if (folder / "executed" / f"{claims.SECTIONS[section]}.ipynb").exists()}


def table(profile: Profile, folder: Path) -> pd.DataFrame:
    """A row per level: columns level, compared, found, holds ('yes', 'no' or 'not run').

    folder: where claims.json is. Scores and conclusions can be compared where the profile's models
    are those of zoo/, two of which are sampled again, on the CPU; else one closed form is.
    """
    if not profile.shipped:
        gaussian = models.closed_form("gaussian", data.load(profile.dataset))
        rows = [same_bits(gaussian, BANK[:AGAIN]), same_noise()]
        rows += [(level, "samples and verdicts that ship, of the laptop profile",
                  "this profile's models are others", "not run")
                 for level in ("same scores on another machine", "same conclusion")]
    else:
        found = {name: models.shipped(name) for name in profile.families[:2]}
        here, there = ({name: make(name) for name in found} for make in (
            lambda name: data.to_bytes(found[name].generate(BANK[:CHECKED])),
            lambda name: zoo.entry(name).load_sheet()[:CHECKED]))
        rows = [same_bits(next(iter(found.values())), BANK[:AGAIN]), same_noise(),
                same_scores(here, there, where=claims.hardware()),
                same_conclusion(_computed(folder), committed())]
    return pd.DataFrame(rows, columns=["level", "compared", "found", "holds"])
