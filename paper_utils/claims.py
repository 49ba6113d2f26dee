"""What the paper says, and the code that says whether this run agrees.

Numbers here are printed in the authors' own figures (never recalled). A verdict is computed from a
rule written down before the numbers were seen; no threshold is tuned until it agrees.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import pandas as pd
from torch import Tensor

from paper_utils import artifacts, scores
from paper_utils.plots import Output

PAPER_MODELS = ("DDPMv4", "DDPMv6", "Multistagev1", "EDMv1", "UViT", "CT", "Progressivev1")
PAPER_RP = (
    (.89, .86, .83, .81, .81, .88), (.84, .83, .78, .80, .87), (.78, .80, .76, .86),
    (.74, .76, .85), (.70, .82), (.91,),
)
PAPER_MAE = (
    (.92, .85, .85, .84, .75, .88), (.87, .87, .82, .77, .90), (.81, .76, .77, .87),
    (.76, .72, .86), (.68, .84), (.83,),
)
# Which of our models stands beside a label of the paper. The two DDPM rows are this project's
# choice: the source does not say how DDPMv4 and DDPMv6 differ.
COUNTERPARTS = {"DDPMv4": "ddpm-vp", "DDPMv6": "ddpm-subvp", "Multistagev1": "multistage",
                "EDMv1": "edm", "UViT": "uvit"}


def paper_pairs(numbers: tuple[tuple[float, ...], ...]) -> dict[tuple[str, str], float]:
    """The upper triangle as {(label, other label): score}."""
    return {(PAPER_MODELS[i], PAPER_MODELS[i + 1 + j]): value
            for i, row in enumerate(numbers) for j, value in enumerate(row)}


def beside_the_paper(rp: pd.DataFrame, mae: pd.DataFrame) -> pd.DataFrame:
    """Every number of the paper's two heat maps beside ours, with a verdict per number.

    rp, mae: pairs with columns model, other, score, low, high. Verdict 'agrees' when the paper's
    number lies in our 95 % interval, else 'ours is lower' or 'ours is higher'.
    """
    rows = []
    for score, numbers, ours in (("RP", PAPER_RP, rp), ("MAE", PAPER_MAE, mae)):
        found = {frozenset((r.model, r.other)): r for r in ours.itertuples()}
        for labels, value in paper_pairs(numbers).items():
            pair = [COUNTERPARTS.get(label) for label in labels]
            row = found.get(frozenset(pair))
            mine = (row.score, row.low, row.high) if row else (None,) * 3
            rows.append((score, *labels, *(name or "-" for name in pair), value, *mine,
                         verdict_on_number(value, row)))
    columns = ["score", "paper's model", "paper's other", "our model", "our other", "paper", "ours",
               "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def verdict_on_number(paper: float, row) -> str:
    """Where the paper's number lies against our interval."""
    if row is None:
        return "no counterpart yet"
    if row.low <= paper <= row.high:
        return "agrees"
    return "ours is lower" if row.high < paper else "ours is higher"


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, the rule that decides it, what was measured, the verdict."""

    statement: str
    rule: str
    measured: str
    verdict: str


def among(pairs: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The pairs whose two models are both in `names`."""
    names = set(names)
    return pairs[pairs.model.isin(names) & pairs.other.isin(names)]


def across(pairs: pd.DataFrame, some: Iterable[str], others: Iterable[str]) -> pd.DataFrame:
    """The pairs with one model in `some` and the other in `others`."""
    some, others = set(some), set(others)
    forward = pairs.model.isin(some) & pairs.other.isin(others)
    return pairs[forward | (pairs.model.isin(others) & pairs.other.isin(some))]


def worst(pairs: pd.DataFrame) -> str:
    """The pair with the lowest score: a verdict on all pairs hangs on it."""
    row = pairs.loc[pairs.score.idxmin()]
    return f"{row.model}, {row.other}"


def high_for_every_pair(name: str, pairs: pd.DataFrame, lowest: float) -> Claim:
    """Different diffusion models make nearly the same image from the same noise."""
    lowest_here = pairs.score.min()
    above_chance = bool((pairs.low > pairs.shuffled).all())
    verdict = ("reproduced" if lowest_here >= lowest else
               "partly: above chance, lower than the paper" if above_chance else "not reproduced")
    return Claim(f"{name}: every two diffusion models make nearly the same image",
                 f"lowest pair at least {lowest:.2f}, the paper's lowest; partly if every pair's "
                 "interval is above shuffled noises",
                 f"lowest {lowest_here:.2f} ({worst(pairs)}), highest "
                 f"{pairs.score.max():.2f}, shuffled at most {pairs.shuffled.max():.2f}", verdict)


def lower_without_diffusion(name: str, diffusion: pd.DataFrame, contrast: pd.DataFrame) -> Claim:
    """GANs and VAEs do not share the property."""
    low, high = diffusion.score.min(), contrast.score.max()
    verdict = "reproduced" if high < low else "not reproduced"
    return Claim(f"{name}: GANs and VAEs do not have the property",
                 "their highest pair is below the lowest pair of diffusion models",
                 f"highest GAN/VAE pair {high:.2f}, lowest diffusion pair {low:.2f} "
                 f"({worst(diffusion)})", verdict)


def more_than(name: str, diffusion: pd.DataFrame, reference: pd.DataFrame, what: str) -> Claim:
    """This project's control: agreement with each other, not only with a closed form."""
    low, high = diffusion.score.min(), reference.score.max()
    verdict = ("yes" if low > high else
               "in the median only" if diffusion.score.median() > reference.score.median()
               else "no: the models may agree because each is near it")
    return Claim(f"{name}: the models agree with each other more than with {what} (our control)",
                 "lowest pair of models above the highest model with the closed form",
                 f"models: {low:.2f} ({worst(diffusion)}) to {diffusion.score.max():.2f}; "
                 "with the closed form: "
                 f"{reference.score.min():.2f} to {high:.2f}", verdict)


def nothing_copied(gl: Mapping[str, float], held_out: float) -> Claim:
    """The models are in the generalization regime: their samples are no training images."""
    least = min(gl, key=gl.get)
    verdict = "reproduced" if gl[least] >= held_out - 0.05 else "not reproduced"
    return Claim("GL: trained on all of CIFAR-10, the models do not copy it",
                 "lowest GL no more than 0.05 under that of held-out real images",
                 f"lowest GL {gl[least]:.2f} ({least}), held-out real images {held_out:.2f}",
                 verdict)


def maps_alike(agreement: Mapping[tuple[str, str], float], chance: float,
               control: Mapping[tuple[str, str], float]) -> Claim:
    """The noise hyperplane is divided alike by different models; control: GANs and VAEs."""
    least = min(agreement.values())
    verdict = "reproduced" if least > (1 + chance) / 2 else (
        "partly: above chance" if least > chance else "not reproduced")
    return Claim("Hyperplane: different models divide the noise plane alike",
                 "every two maps name the same corner at more points than half way from chance to "
                 "all; partly if above chance",
                 f"lowest agreement {least:.2f} "
                 f"({', '.join(min(agreement, key=agreement.get))}), chance {chance:.2f}; "
                 f"GANs and VAEs among themselves, our control: {min(control.values()):.2f} to "
                 f"{max(control.values()):.2f}", verdict)


def unconditional(rp: pd.DataFrame, mae: pd.DataFrame, diffusion: list[str], contrast: list[str],
                  gl: pd.DataFrame, winners: Mapping[str, Tensor]) -> list[Claim]:
    """The claims of section 2, for pairs `rp` and `mae`, GL per model, and hyperplane maps.

    winners: which corner each point of the plane is most like, by model (scores.hyperplane_map).
    """
    claims = []
    for name, pairs, paper in (("RP", rp, PAPER_RP), ("MAE", mae, PAPER_MAE)):
        ours = among(pairs, diffusion)
        claims += [high_for_every_pair(name, ours, min(map(min, paper))),
                   lower_without_diffusion(name, ours, among(pairs, contrast)),
                   more_than(name, ours, across(pairs, diffusion, ["gaussian"]),
                             "the Gaussian denoiser")]
    found = gl.set_index("model")["GL"]
    agreement, chance = scores.map_agreement({name: winners[name] for name in diffusion})
    control, _ = scores.map_agreement({name: winners[name] for name in contrast})
    return [*claims, nothing_copied(found[diffusion].to_dict(), found["held-out"]),
            maps_alike(agreement, chance, control)]


def save(claims: Iterable[Claim], section: str, output: Output) -> pd.DataFrame:
    """Write the claims of a section into claims.json and as a table; returns the table."""
    rows = [asdict(claim) for claim in claims]
    path = output.folder / "claims.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps(known | {section: rows}, indent=1)
    artifacts.replace_file(path, text.encode())
    return output.table(pd.DataFrame(rows), f"tab_claims_{section}")
