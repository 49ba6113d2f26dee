"""What a claim of the paper is, and claims.json, which has every claim with its verdict.

The rules that decide them are in `rules`.
"""

import json
import os
import platform
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
import torch

from paper_utils import files
from paper_utils.errors import choose
from paper_utils.plots import Output

# section of claims.json -> the notebook that decides it
SECTIONS = {"unconditional": "01_unconditional", "two_regimes": "02_two_regimes",
            "conditional": "03_conditional", "inverse": "04_inverse_problems",
            "fine_tuning": "05_fine_tuning", "distillation": "06_distillation"}
SHOWN = ("statement", "rule", "measured", "verdict")  # the columns that a notebook shows
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, the rule that decides it, what was measured, the verdict."""

    statement: str
    rule: str
    measured: str
    verdict: str
    paper: str = ""   # what the paper says, numbers where it prints them; "": not its claim
    grade: str = ""   # how that is known: "S" read in a source, "F" measured from a published
    #                   curve, "M" recalled and not seen; "": a control or question of this project
    ours: str = ""    # the numbers that decide the verdict, each with its 95 % interval
    n: int | None = None  # noises (or what else was resampled) behind the first of them


def hardware(device: str = "cpu") -> str:
    """What computes here, in one line: the GPU's name, or the number of cores and their model."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = re.search(r"model name\s*:\s*(.+)", CPUINFO.read_text()) if CPUINFO.exists() else None
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}, CPU"


def load(folder: Path) -> dict[str, list[dict]]:
    """The claims of every section as they stand in claims.json; of one that has not run: [].

    What an older file does not have is as in a Claim without it, and hardware ''.
    """
    known, blank = _known(folder / "claims.json"), asdict(Claim("", "", "", "")) | {"hardware": ""}
    return {section: [blank | row for row in known.get(section, [])] for section in SECTIONS}


def _known(path: Path) -> dict[str, list[dict]]:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        warnings.warn(f"{path} is damaged: every notebook writes its part again", stacklevel=3)
        return {}


def overview(folder: Path) -> pd.DataFrame:
    """Every claim with its verdict: columns notebook, statement, verdict."""
    rows = [(SECTIONS[section], row["statement"], row["verdict"])
            for section, found in load(folder).items()
            for row in found or [{"statement": "", "verdict": "not run"}]]
    return pd.DataFrame(rows, columns=["notebook", "statement", "verdict"])


def save(claims: Iterable[Claim], section: str, output: Output,
         device: str = "cpu") -> pd.DataFrame:
    """Write the claims of a section into claims.json and as a table; returns the columns SHOWN.

    section: one of SECTIONS; what is in claims.json of none of them is dropped. device: what
    computed them, for claims.json alone: the table does not depend on the machine.
    """
    choose(section, SECTIONS, "section of claims.json")
    rows = [asdict(claim) for claim in claims]
    path = output.folder / "claims.json"
    with files.locked(path):  # notebooks of other sections may be running
        known = _known(path)
        known = {name: known[name] for name in known if name in SECTIONS}
        here = {"hardware": hardware(device)}
        text = json.dumps(known | {section: [row | here for row in rows]}, indent=1)
        files.replace_file(path, text.encode())
    table = pd.DataFrame(rows, columns=[field.name for field in fields(Claim)])
    return output.table(table, f"tab_claims_{section}")[list(SHOWN)]
