"""Figures and tables. They only read: changing a colour computes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from paper_utils import artifacts, profiles
from paper_utils.errors import choose

pd.set_option("display.max_colwidth", None)  # a notebook shows a claim to its end
FIGURES = Path(__file__).resolve().parents[1] / "figures"
CORNERS = ("#0072B2", "#D55E00", "#009E73")  # Okabe & Ito: told apart by colour-blind readers
STYLE = {"font.size": 9, "axes.titlesize": 10, "figure.dpi": 110, "savefig.dpi": 200,
         "pdf.fonttype": 42, "font.family": "DejaVu Sans"}


@dataclass(frozen=True)
class Output:
    """Where the figures and tables of one profile land: figures/<profile>/."""

    folder: Path

    @classmethod
    def of(cls, profile: str) -> "Output":
        return cls(FIGURES / choose(profile, profiles.PROFILES, "profile"))

    def figure(self, figure: Figure, name: str) -> Figure:
        """Write <name>.pdf and <name>.png and hand the figure back (a notebook shows it)."""
        for kind in ("pdf", "png"):
            buffer = BytesIO()
            when = {"CreationDate": None} if kind == "pdf" else {"Software": None}
            figure.savefig(buffer, format=kind, bbox_inches="tight", metadata=when)
            artifacts.replace_file(self.folder / f"{name}.{kind}", buffer.getvalue())
        plt.close(figure)
        return figure

    def table(self, table: pd.DataFrame, name: str, digits: int = 2) -> pd.DataFrame:
        """Write <name>.csv (full precision) and <name>.tex; returns it rounded, for reading."""
        artifacts.replace_file(self.folder / f"{name}.csv", table.to_csv(index=False).encode())
        latex = table.to_latex(index=False, float_format=f"%.{digits}f", escape=True)
        artifacts.replace_file(self.folder / f"{name}.tex", latex.encode())
        return table.round(digits)


def sample_grid(samples: Mapping[str, Tensor], columns: int = 12, title: str = "",
                labels: Mapping[str, str] | None = None) -> Figure:
    """A model per row, a noise per column. samples: uint8 [n, 3, H, W] by model."""
    labels = labels or {}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(samples), 1, figsize=(0.55 * columns + 1.6,
                                                              0.57 * len(samples) + 0.5))
        for axis, (name, images) in zip(np.atleast_1d(axes), samples.items()):
            strip = images[:columns].permute(2, 0, 3, 1).reshape(images.shape[2], -1, 3)
            axis.imshow(strip.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(labels.get(name, name), rotation=0, ha="right", va="center")
            axis.spines[:].set_visible(False)
        figure.suptitle(title, fontsize=10)
        figure.subplots_adjust(hspace=0.04, top=1 - 0.4 / figure.get_figheight(), bottom=0)
    return figure


def loss_curve(losses: Tensor, spec, window: int = 25) -> Figure:
    """The running mean of the training loss against images seen. losses: [steps]."""
    seen = np.arange(1, len(losses) + 1) * spec.batch
    smooth = pd.Series(losses.numpy()).rolling(window, min_periods=1).mean()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
        axis.plot(seen, losses, color="0.8", lw=0.6, label="each step")
        axis.plot(seen, smooth, color=CORNERS[0], lw=1.6, label=f"mean of {window} steps")
        axis.set(xlabel="images seen", ylabel="loss", yscale="log", title=spec.name)
        axis.legend(frameon=False)
        sns.despine(figure)
    return figure


def square(pairs: pd.DataFrame, names: Sequence[str], value: str = "score") -> pd.DataFrame:
    """A table of pairs (columns model, other) as a lower-triangular matrix, names[0] first."""
    matrix = pd.DataFrame(np.nan, index=list(names), columns=list(names))
    for row in pairs.itertuples():
        if row.model in matrix.index and row.other in matrix.index:
            a, b = sorted((row.model, row.other), key=list(names).index)
            matrix.loc[b, a] = getattr(row, value)
    return matrix.iloc[1:, :-1]


def heatmaps(tables: Mapping[str, pd.DataFrame], names: Sequence[str], floor: float | None = None,
             note: str = "") -> Figure:
    """The paper's heat maps side by side: annotated, orange, one colour scale for all up to 1.

    tables: title -> pairs; floor: the lower end of the scale, by default the lowest score shown.
    """
    matrices = {title: square(pairs, names) for title, pairs in tables.items()}
    if floor is None:
        floor = min(m.min().min() for m in matrices.values())
    side = 0.52 * len(names) + 1.2
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(matrices), figsize=(side * len(matrices), side),
                                    layout="constrained")
        for axis, (title, matrix) in zip(np.atleast_1d(axes), matrices.items()):
            last = title == list(matrices)[-1]
            sns.heatmap(matrix, ax=axis, cmap="Oranges", vmin=floor, vmax=1, annot=True, fmt=".2f",
                        square=True, linewidths=0.6, cbar=last, annot_kws={"size": 7.5},
                        cbar_kws={"shrink": 0.75})
            axis.set_title(title)
            axis.set_xticklabels(axis.get_xticklabels(), rotation=40, ha="right",
                                 rotation_mode="anchor")
            axis.tick_params(length=0)
            axis.set_yticklabels(axis.get_yticklabels(), rotation=0)
        if note:
            figure.supxlabel(note, fontsize=8)
    return figure


def hyperplane_maps(maps: Mapping[str, tuple[Tensor, Tensor]], extent: tuple[float, float],
                    note: str = "") -> Figure:
    """The noise hyperplane, a panel per model: which corner each point's image is most like.

    maps: name -> (winner [g, g] in 0..2, similarity [g, g]); rows are beta, columns alpha, both
    over `extent`. The paler the colour, the less similar.
    """
    low, high = extent
    columns = min(len(maps), 5)
    rows = -(-len(maps) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(1.75 * columns + 0.4, 2.0 * rows + 0.6),
                                    layout="constrained", squeeze=False)
        for axis in axes.flat[len(maps):]:
            axis.set_visible(False)
        for axis, (name, (winner, strength)) in zip(axes.flat, maps.items()):
            axis.imshow(_shaded(winner, strength), origin="lower", extent=(low, high, low, high),
                        interpolation="nearest")
            corners = ((0, 0), (1, 0), (0, 1))
            for (x, y), colour, label in zip(corners, CORNERS, "123"):
                axis.plot(x, y, "o", ms=8, mfc="white", mec=colour, mew=1.5)
                axis.annotate(label, (x, y), ha="center", va="center", fontsize=6.5)
            axis.set_title(name)
            axis.set(xticks=[0, 1], yticks=[0, 1])
            axis.label_outer()
        figure.supxlabel("$\\alpha$" + (f"        {note}" if note else ""), fontsize=9)
        figure.supylabel("$\\beta$", fontsize=9)
    return figure


def _shaded(winner: Tensor, strength: Tensor) -> np.ndarray:
    """Corner colours fading to white with the similarity, [g, g, 3]."""
    colours = np.array([to_rgb(c) for c in CORNERS])[winner.numpy()]
    weight = strength.clamp(0, 1).numpy()[..., None]
    return 1 - weight * (1 - colours)
