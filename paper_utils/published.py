"""The paper's published numbers, and ours beside them.

All stand in the authors' own figures; none is recalled.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

READING = 0.01  # how well a curve can be read from a figure
MEMORIZATION, GENERALIZATION = 2**10, 2**13.5  # images: its shading of section 3, up to and from

# The heat maps of section 2: upper triangles, in the order of MODELS.
MODELS = ("DDPMv4", "DDPMv6", "Multistagev1", "EDMv1", "UViT", "CT", "Progressivev1")
RP = (
    (.89, .86, .83, .81, .81, .88), (.84, .83, .78, .80, .87), (.78, .80, .76, .86),
    (.74, .76, .85), (.70, .82), (.91,),
)
MAE = (
    (.92, .85, .85, .84, .75, .88), (.87, .87, .82, .77, .90), (.81, .76, .77, .87),
    (.76, .72, .86), (.68, .84), (.83,),
)
# Which of our models stands beside a label of the paper. The two DDPM rows and the one step of the
# progressive student are this project's choice: the source does not say how DDPMv4 and DDPMv6
# differ, nor how many steps Progressivev1 takes.
COUNTERPARTS = {"DDPMv4": "ddpm-vp", "DDPMv6": "ddpm-subvp", "Multistagev1": "multistage",
                "EDMv1": "edm", "UViT": "uvit", "CT": "ct", "Progressivev1": "progressive-1"}

# The curves of section 3, measured from the pixels of the authors' published curves, about +-0.01.
SIZES = tuple(2**k for k in range(6, 16))
CURVES = {
    "RP": {"64 / 128": (.69, .66, .59, .53, .46, .42, .34, .18, .45, .67),
           "64 / 256": (.62, .62, .55, .47, .37, .30, .10, .02, .49, .61),
           "128 / 256": (.65, .63, .56, .48, .41, .33, .17, .17, .45, .845)},
    "GL": {"64": (0, 0, 0, 0, .00, .22, .87, .99, 1.0, 1.0),
           "128": (0, 0, 0, 0, .00, .01, .28, .82, .98, .99),
           "256": (0, 0, 0, 0, .03, .01, .05, .29, .99, .98)},
    "optimal": {"64": (.48, .455, .375, .28, .20, .12, .03, .00, .00, .00),
                "128": (.51, .465, .37, .305, .245, .17, .11, .04, .005, .00),
                "256": (.51, .46, .395, .33, .275, .21, .15, .10, .005, .00)},
}


def curves(score: str, by: str) -> pd.DataFrame:
    """The paper's curves of 'RP', 'GL' or 'optimal': columns images, `by` (its widths), score."""
    return pd.DataFrame([(n, f"{key}", value) for key, values in CURVES[score].items()
                         for n, value in zip(SIZES, values)], columns=["images", by, "score"])


def pairs(numbers: tuple[tuple[float, ...], ...]) -> dict[tuple[str, str], float]:
    """RP or MAE as {(label, other label): score}."""
    return {(MODELS[i], MODELS[i + 1 + j]): value
            for i, row in enumerate(numbers) for j, value in enumerate(row)}


def beside_heat_maps(rp: pd.DataFrame, mae: pd.DataFrame) -> pd.DataFrame:
    """Every number of the paper's two heat maps beside ours, with a verdict per number.

    rp, mae: pairs with columns model, other, score, low, high. Verdict 'agrees' when the paper's
    number lies in our 95 % interval, else 'ours is lower' or 'ours is higher'.
    """
    rows = []
    for score, numbers, ours in (("RP", RP, rp), ("MAE score", MAE, mae)):
        found = {frozenset((r.model, r.other)): r for r in ours.itertuples()}
        for labels, value in pairs(numbers).items():
            pair = [COUNTERPARTS[label] for label in labels]
            row = found.get(frozenset(pair))
            mine = (row.score, row.low, row.high) if row else (None,) * 3
            rows.append((score, *labels, *pair, value, *mine, verdict(value, row)))
    columns = ["score", "paper's model", "paper's other", "our model", "our other", "paper", "ours",
               "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def verdict(paper: float, row, within: float = 0.0) -> str:
    """Where the paper's number, known up to `within`, lies against our interval."""
    if row is None:
        return "not compared here"
    if row.low - within <= paper <= row.high + within:
        return "agrees"
    return "ours is lower" if row.high < paper else "ours is higher"


def beside_curves(tables: Mapping[str, tuple[pd.DataFrame, str]],
                  widths: Sequence[int]) -> pd.DataFrame:
    """Every number of the paper's curves beside ours of the same rank in width, with a verdict.

    tables: 'RP', 'GL' or 'optimal' -> (our table with columns images, score, low, high, and the
    name of its column of widths); widths: all of our grid, trained or not, the narrowest first.
    """
    rows = []
    for score, (ours, by) in tables.items():
        for theirs, numbers in CURVES[score].items():
            mine = _counterpart(theirs, widths)
            found = {row.images: row for row in ours[ours[by].astype(str) == mine].itertuples()}
            for n, value in zip(SIZES, numbers):
                row = found.get(n)
                rows.append((score, n, theirs, mine, value,
                             *((row.score, row.low, row.high) if row else (None,) * 3),
                             verdict(value, row, READING) if row else "not trained here"))
    columns = ["score", "images", "paper's width", "our width", "paper", "ours", "low", "high",
               "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _counterpart(label: str, widths: Sequence[int]) -> str:
    """The paper's '64 / 256' or '128' with our widths of the same rank."""
    ours = dict(zip(CURVES["GL"], map(str, widths)))
    return " / ".join(ours[width] for width in label.split(" / "))
