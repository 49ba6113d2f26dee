"""Figures and tables. They only read: changing a colour computes nothing."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle, product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from seaborn.utils import relative_luminance
from torch import Tensor

from paper_utils import data, files, profiles, published
from paper_utils.errors import UserError, choose
from paper_utils.noise import EXTENT
from paper_utils.paths import ROOT, folder_name
from paper_utils.progress import shell
from paper_utils.scores import CONTROL

pd.set_option("display.max_colwidth", None)  # a notebook shows a claim to its end
FIGURES = ROOT / "figures"
CORNERS = ("#0072B2", "#D55E00", "#009E73")  # Okabe & Ito: told apart by colour-blind readers
STYLE = {"font.size": 9, "axes.titlesize": 10, "figure.dpi": 100, "savefig.dpi": 200,
         "pdf.fonttype": 42, "font.family": "DejaVu Sans", "legend.frameon": False,
         "legend.fontsize": 7.5}
PAGE = 11.0     # inches, the widest that a row of heat maps becomes
PICTURE = 0.64  # inches of a picture in a grid: two screen pixels for one of 32, four in a file
MARKERS = "os^Dv*"
REFERENCES = ("Gaussian denoiser", "held-out images")  # curves of these look as controls do
NAMES = {"gaussian": "Gaussian denoiser", "optimal": "optimal denoiser", "local": "local score",
         "gaussian, limited": "Gaussian, limited"}
COUNTS = ("n", "images", "steps", "generated again", "largest difference")  # columns of tables


@dataclass(frozen=True)
class Output:
    """Where the figures and tables of a run land: figures/<profile>/, or a folder beside it."""

    folder: Path

    @classmethod
    def of(cls, profile: str, **chosen: object) -> "Output":
        """That of a profile, or of a run that chose other parameters: see paths.folder_name.

        Raises UserError for an unknown profile.
        """
        choose(profile, profiles.PROFILES, "profile")
        return cls(FIGURES / folder_name(profile, **chosen))

    def figure(self, figure: Figure, name: str) -> None:
        """Write <name>.pdf and <name>.png; a notebook shows it, wherever in a cell this stands."""
        for kind in ("pdf", "png"):
            buffer = BytesIO()
            when = {"CreationDate": None} if kind == "pdf" else {"Software": None}
            with plt.rc_context(STYLE):  # resolution and fonts are settled when a file is written
                figure.savefig(buffer, format=kind, bbox_inches="tight", metadata=when)
            files.replace_file(self.folder / f"{name}.{kind}", buffer.getvalue())
        plt.close(figure)
        if shell():
            from IPython.display import display
            display(figure)

    def table(self, table: pd.DataFrame, name: str, digits: int = 2) -> pd.DataFrame:
        """Write <name>.csv (full precision) and <name>.tex; returns it rounded, for reading.

        The columns COUNTS are whole, also beside a missing one.
        """
        table = table.astype({c: "Int64" for c in COUNTS if c in table and table[c].dtype == float})
        files.replace_file(self.folder / f"{name}.csv", table.to_csv(index=False).encode())
        latex = table.to_latex(index=False, float_format=f"%.{digits}f", na_rep="--", escape=True,
                               column_format="".join(_alignment(table[c]) for c in table))
        files.replace_file(self.folder / f"{name}.tex", latex.encode())
        return table.round(digits)


def _alignment(column: pd.Series) -> str:
    """LaTeX's: numbers right, words left, and sentences in a paragraph of their own width."""
    if pd.api.types.is_numeric_dtype(column):
        return "r"
    return "p{4.5cm}" if column.astype(str).str.len().max() > 40 else "l"


@contextmanager
def _panels(columns: int, size: tuple[float, float], rows: int = 1, title: str = "",
            **shared: bool) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure of `size` inches and its axes [rows, columns], to be drawn on in the block."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained",
                                    squeeze=False, **shared)
        yield figure, axes
        for axis in axes.flat:
            axis.set_visible(axis.has_data() or bool(axis.texts))
        figure.suptitle(title or None, fontsize=10)
        sns.despine(figure)


def sample_grid(samples: Mapping[str, Tensor], columns: int = 12, title: str = "",
                labels: Mapping[str, str] | None = None, heads: Sequence[str] = ()) -> Figure:
    """A model per row, a noise per column. samples: uint8 [n, 3, H, W], or [n, 1, H, W], by model.

    labels: what to write beside a row instead of its name; heads: above the columns.
    Raises UserError for other images, and without one to show.
    """
    for name, images in samples.items():
        data.check_bytes(images, f"the row {name!r}")
    if not columns or not samples or not all(map(len, samples.values())):
        raise UserError("no image to show: ask for at least one noise")
    labels = labels or {}
    room = 0.45 + 0.035 * max(map(len, heads)) if heads else 0.4  # inches above the first row
    height = (PICTURE + 0.02) * len(samples) + room
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(samples), 1, figsize=(PICTURE * columns, height))
        for axis, (name, images) in zip(np.atleast_1d(axes), samples.items()):
            colour = images[:columns].expand(-1, 3, -1, -1)
            strip = colour.permute(2, 0, 3, 1).reshape(images.shape[2], -1, 3)
            axis.imshow(strip.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            label = labels.get(name, NAMES.get(name, name))
            axis.set_ylabel(label, rotation=0, ha="right", va="center")
            axis.spines[:].set_visible(False)
        top, side = np.atleast_1d(axes)[0], strip.shape[0]
        for column, head in enumerate(heads[:strip.shape[1] // strip.shape[0]]):
            top.text((column + 0.5) * side, -0.12 * side, head, ha="left", va="bottom",
                     rotation=35, fontsize=7.5)
        figure.suptitle(title, y=1, va="top", fontsize=10)
        figure.subplots_adjust(left=0, right=1, hspace=0.02 / PICTURE, top=1 - room / height,
                               bottom=0)
    return figure


def loss_curve(losses: Tensor, spec) -> Figure:
    """The running mean of the training loss against images seen. losses: [steps]."""
    seen = np.arange(1, len(losses) + 1) * spec.batch
    smooth = pd.Series(losses.numpy()).rolling(25, min_periods=1).mean()
    with _panels(1, (4.6, 2.8)) as (figure, axes):
        axis = axes[0, 0]
        axis.plot(seen, losses, color="0.8", lw=0.6, label="each step")
        axis.plot(seen, smooth, color=CORNERS[0], lw=1.6, label="mean of 25 steps")
        axis.set(xlabel="images seen", ylabel="loss", yscale="log", title=spec.name)
        axis.legend()
    return figure


def square(pairs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A table of pairs (model, other, score) as a lower-triangular matrix, names[0] first."""
    matrix = pd.DataFrame(np.nan, index=list(names), columns=list(names))
    for row in pairs.itertuples():
        if row.model in matrix.index and row.other in matrix.index:
            a, b = sorted((row.model, row.other), key=list(names).index)
            matrix.loc[b, a] = row.score
    return matrix.iloc[1:, :-1]


def heatmaps(tables: Mapping[str, pd.DataFrame], names: Sequence[str], floor: float | None = None,
             note: str = "", groups: Mapping[str, Sequence[str]] | None = None,
             columns: int = 0) -> Figure:
    """The paper's heat maps side by side: annotated, orange, one colour scale for all up to 1.

    tables: title -> pairs; floor: the lower end of the scale, by default the lowest score shown.
    groups: label -> the names, next to each other, whose pairs get an outline. columns: maps a
    row, by default as many as a page is wide. Raises UserError for less than two names.
    """
    if len(names) < 2:
        raise UserError(f"a heat map compares models, and these are {len(names)}: give two or more")
    matrices = {title: square(pairs, names) for title, pairs in tables.items()}
    figure = _heatmaps(matrices, floor, note, columns)
    for group in (groups or {}).values():
        first, last = list(names).index(group[0]), list(names).index(group[-1])
        for axis in figure.axes[:len(matrices)]:
            stairs = [(k + 1, k + down) for k in range(first, last) for down in (0, 1)]
            axis.plot(*zip((first, first), *stairs, (first, last), (first, first)), color="black",
                      lw=1.6, clip_on=False)
    return figure


def rectangles(pairs: pd.DataFrame, names: Sequence[str], others: Sequence[str],
               values: Mapping[str, str], note: str = "") -> Figure:
    """Heat maps of some models (rows) against others (columns), as `heatmaps`, from 0 to 1.

    pairs: with columns model, other and every score; values: title -> the column of a score.
    """
    matrices = {title: pairs.pivot(index="model", columns="other", values=column)
                .loc[list(names), list(others)].rename_axis(index=None, columns=None)
                for title, column in values.items()}
    return _heatmaps(matrices, 0.0, note)


def _heatmaps(matrices: Mapping[str, pd.DataFrame], floor: float | None, note: str,
              columns: int = 0) -> Figure:
    if floor is None:
        floor = min(m.min().min() for m in matrices.values())
    longest = max(len(NAMES.get(name, name)) for m in matrices.values() for name in m.index)
    height, width = (0.4 * max(m.shape[k] for m in matrices.values()) + room
                     for k, room in enumerate((1.3, max(1.6, 0.8 + 0.06 * longest))))
    columns = columns or min(len(matrices), max(1, int(PAGE // width)))
    rows = -(-len(matrices) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows),
                                    layout="constrained", squeeze=False)
        for axis in axes.flat[len(matrices):]:
            axis.set_visible(False)
        for k, (axis, (title, matrix)) in enumerate(zip(axes.flat, matrices.items()), 1):
            last = k % columns == 0 or k == len(matrices)
            sns.heatmap(matrix.rename(index=NAMES, columns=NAMES), ax=axis, cmap="Oranges",
                        vmin=floor, vmax=1, annot=True, fmt="z.2f", square=True, linewidths=0.6,
                        cbar=last, annot_kws={"size": 7.5}, cbar_kws={"shrink": 0.75})
            _readable(axis)
            axis.set_title(title)
            axis.set_xticklabels(axis.get_xticklabels(), rotation=40, ha="right",
                                 rotation_mode="anchor")
            axis.tick_params(length=0)
            axis.set_yticklabels(axis.get_yticklabels(), rotation=0)
        if note:
            figure.supxlabel(note, fontsize=8)
    return figure


def _readable(axis) -> None:
    """Numbers of a heat map in black or white, whichever has the higher contrast (WCAG's).

    They lie inside its cells, so the layout, which would measure each, need not know them.
    """
    mesh = axis.collections[0]
    cells = mesh.get_facecolors()[~np.ma.getmaskarray(mesh.get_array()).ravel()]
    for text, colour in zip(axis.texts, cells, strict=True):
        text.set_color("black" if relative_luminance(colour) > 0.179 else "white")
        text.set_in_layout(False)


def against_control(pairs: Mapping[str, pd.DataFrame], named: str, title: str = "") -> Figure:
    """A point per pair of models: their score, against the higher of their two with a control.

    pairs: name of a score -> scores.beside_control; named: what to call the control. Above the
    diagonal two models agree more with each other than either does with it; coloured where
    intervals are apart.
    """
    with _panels(len(pairs), (3.6 * len(pairs) + 0.3, 3.7), title=title) as (figure, axes):
        for axis, (name, own) in zip(axes.flat, pairs.items()):
            axis.plot([0, 1], [0, 1], color="0.55", lw=1, ls="--")
            looks = {"more than either with it": (own.more, CORNERS[0], "o"),
                     "less than either with it": (own.less, CORNERS[1], "s"),
                     "less than one with it": (own.below & ~own.less, "#E69F00", "D"),
                     "intervals overlap": (~(own.more | own.below), "0.55", "^")}
            for label, (which, colour, marker) in looks.items():
                part = own[which]
                axis.vlines(part.nearest, part.low, part.high, color=colour, lw=0.8, alpha=0.35)
                axis.plot(part.nearest, part.score, marker, color=colour, ms=4, mec="white",
                          mew=0.4, label=f"{label}: {len(part)}")
            axis.set(title=name, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal",
                     xlabel=f"score with {named}, the higher of the two",
                     ylabel="score with each other")
            axis.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17),
                        handletextpad=0.1, columnspacing=1)
            axis.text(0.01, 0.99, "more with each other", fontsize=7.5, color="0.35", va="top")
            axis.text(0.99, 0.01, f"more with {named}", fontsize=7.5, color="0.35", ha="right")
    return figure


def beside_paper(numbers: pd.DataFrame, title: str = "") -> Figure:
    """A point per number of the paper's heat maps and ours: of published.beside_heat_maps."""
    scored = numbers[numbers.ours.notna()].groupby("score", sort=False)
    with _panels(max(scored.ngroups, 1), (3.6 * max(scored.ngroups, 1) + 0.3, 3.5),
                 title=title) as (figure, axes):
        for axis, (score, part) in zip(axes.flat, scored):
            axis.plot([0, 1], [0, 1], color="0.55", lw=1, ls="--", label="ours = the paper's")
            looks = {"agrees": (CORNERS[0], "o"), "ours is higher": (CORNERS[2], "^"),
                     "ours is lower": (CORNERS[1], "s")}
            for verdict, (colour, marker) in looks.items():
                rows = part[part.verdict == verdict]
                axis.vlines(rows.paper, rows.low, rows.high, color=colour, lw=0.8, alpha=0.35)
                axis.plot(rows.paper, rows.ours, marker, color=colour, ms=4, mec="white", mew=0.4,
                          label=f"{verdict}: {len(rows)}")
            axis.set(title=score, xlim=(0.6, 1), ylim=(-0.03, 1.03), xlabel="the paper's",
                     ylabel="ours")
            axis.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.19))
    return figure


MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def scores_against(panels: Mapping[str, pd.DataFrame], by: str, x: str = "images",
                   paper: Mapping[str, pd.DataFrame] | None = None,
                   labels: Mapping[str, str] | None = None, title: str = "",
                   shaded: bool = False, xlabel: str = "", colours: Sequence[str] = (),
                   columns: int = 0) -> Figure:
    """Curves of a score with its intervals, a panel per table, a curve per value of column `by`.

    x: the column on the horizontal axis (powers of two); xlabel: its name there. paper: panel ->
    the paper's curves (columns x, by, score), drawn pale and dashed. labels: panel -> its vertical
    axis. shaded: mark the paper's two regimes. colours: names of curves in the order of the
    colours, for figures that are to look alike. columns: panels a row, by default all. What was not
    measured is not drawn, nor bridged by its neighbours where another curve of the panel was. A
    colour means the same curve in every panel.
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    with _panels(columns, (3.5 * columns + 0.3, 3.8 * rows), rows, title) as (figure, axes):
        looks = _looks([*colours, *(_named(by, key) for table in panels.values()
                                    for key in table.get(by, ()))])
        for axis, (name, table) in zip(axes.flat, panels.items()):
            if not len(table):
                axis.text(0.5, 0.5, "not trained yet", ha="center", transform=axis.transAxes)
                axis.set(title=name, xticks=[], yticks=[])
                continue
            ticks = sizes = sorted(set(table[x]))
            theirs = (paper or {}).get(name)
            if theirs is not None:
                ticks = sorted({*ticks, *theirs[x]})
                _pale_curves(axis, theirs, by, x)
            for k, (key, curve) in enumerate(table.groupby(by, sort=False)):
                whole = curve.set_index(x).reindex(sizes).reset_index()
                label = _named(by, key)
                _curve(axis, whole, x, label, *looks[label], size=_size(k, len(curve)))
            if shaded:
                _regimes(axis, ticks)
            _power_axis(axis, ticks, xlabel or {"images": "training images"}.get(x, x))
            axis.set_ylim(min(-0.03, table.get("low", table.score).min() - 0.03), 1.03)
            axis.set_title(name, pad=14 if shaded else None)
            axis.set_ylabel((labels or {}).get(name, "score"))
            axis.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.21))
        figure.supxlabel(_intervals(panels.values(), "noises"), fontsize=7.5)
    return figure


def _named_once(axes: np.ndarray) -> dict[str, Artist]:
    """What the panels of a figure name, each once: label -> what stands for it in a legend."""
    return {label: handle for axis in axes.flat
            for handle, label in zip(*axis.get_legend_handles_labels())}


def _intervals(tables: Iterable[pd.DataFrame], over: str) -> str:
    """What the bands are, if there are any, and by column n over how many noises or images."""
    found = [table for table in tables if {"low", "high"} <= set(table)]
    counts = sorted({int(n) for table in found for n in table.get("n", ()) if n == n})
    many = " to ".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1]))) if counts else ""
    said = f" over {many} {over}" if many else ""
    return f"bands and bars: 95 % intervals{said}" if found else ""


def _named(by: str, key: object) -> str:
    """What a curve is called: 'width 48' for a number."""
    return f"{by} {key}" if isinstance(key, int) else str(key)


def _size(k: int, points: int) -> float:
    """Of the markers of curve k: where curves coincide, each shows around the next; a single point
    stands out."""
    return 8 if points == 1 else max(7 - k, 3.5)


def _looks(keys: Iterable) -> dict[str, tuple[str, str]]:
    """Colour and style of every curve; of more than there are colours, another pair for each.

    The control of X, CONTROL + X, has the colour and marker of X and is dashed; it is dark grey
    where there is no X, and so are the REFERENCES.
    """
    count, shown = len(MODEL_COLOURS), [str(key) for key in dict.fromkeys(keys)]
    order = [key for key in shown if not key.startswith(CONTROL) and key not in REFERENCES]
    looks = {}
    for key in shown:
        looks[key] = "0.2", "o--"
        if (name := key.removeprefix(CONTROL)) in order:
            k, line = order.index(name), "-" if name == key else "--"
            looks[key] = MODEL_COLOURS[k % count], MARKERS[(k + k // count) % count] + line
    return looks


def _curve(axis, curve: pd.DataFrame, x: str, label: str, colour: str, style: str,
           size: float) -> None:
    pale = style.endswith("--")
    axis.plot(curve[x], curve.score, style, color=colour, ms=size, lw=1 if pale else 1.5,
              label=label, zorder=3, mfc="white" if pale else colour)
    if {"low", "high"} <= set(curve):
        axis.fill_between(curve[x], curve.low, curve.high, color=colour, lw=0,
                          alpha=0.08 if pale else 0.18)
        lonely = curve.score.shift().isna() & curve.score.shift(-1).isna()
        alone = curve[lonely & curve.score.notna()]
        axis.vlines(alone[x], alone.low, alone.high, color=colour, lw=1.5)


def _pale_curves(axis, theirs: pd.DataFrame, by: str, x: str) -> None:
    for style, (key, curve) in zip(("--", "-.", ":"), theirs.groupby(by, sort=False)):
        axis.plot(curve[x], curve.score, style, color="0.55", lw=1.1, label=f"paper, {key}")


def _regimes(axis, ticks: Sequence[int]) -> None:
    """The paper's two regimes, shaded and named above the axis."""
    low, high = min(ticks) / 1.3, max(ticks) * 1.3
    spans = (("memorization", low, published.MEMORIZATION, "#F4E3C1"),
             ("generalization", published.GENERALIZATION, high, "#D5E8F0"))
    for name, start, stop, colour in spans:
        if low <= start < stop <= high:
            axis.axvspan(start, stop, color=colour, alpha=0.55, lw=0, zorder=0)
            side, x = ("left", start) if start == low else ("right", stop)
            axis.text(x, 1.01, f"paper: {name}", ha=side, va="bottom",
                      transform=axis.get_xaxis_transform(), fontsize=7, color="0.35")


def _power_axis(axis, ticks: Sequence[int], xlabel: str) -> None:
    axis.set_xscale("log", base=2)
    powers = all(t & (t - 1) == 0 for t in ticks)
    axis.set_xticks(ticks, [f"$2^{{{t.bit_length() - 1}}}$" if powers else f"{t:,}" for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel(xlabel)


def _ticks(axis, ticks: Sequence[float], log: bool = False) -> None:
    """Ticks at these numbers and no others, on a linear scale or that of powers of two.

    On the latter only at those that are powers of two, if any are.
    """
    if log:
        axis.set_xscale("log", base=2)
        ticks = [t for t in ticks if float(np.log2(t)).is_integer()] or ticks
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()


def curves(panels: Mapping[str, pd.DataFrame], by: str, x: str, xlabel: str, log_x: bool = False,
           title: str = "", log_y: Collection[str] = (), columns: int = 0,
           colours: Sequence[str] = (), shades: Sequence[str] = (), ylabel: str = "",
           levels: Mapping[str, Mapping[str, float]] | None = None, over: str = "noises") -> Figure:
    """Panels, each a quantity with its intervals against x, a curve per value of `by`.

    panels: vertical axis, or with ylabel title -> table with columns by, x, score and, for
    intervals, low, high. A value of `by` has the same colour and marker in every panel, named once
    below. log_y: panels with a logarithmic axis. columns: panels a row, by default all. colours: as
    in `scores_against`. over: what the intervals are over. shades: curves in an order of their own,
    from dark to light. levels: panel -> name -> height of what does not depend on x, drawn across.
    """
    looks = _looks([*colours, *(key for table in panels.values() for key in table[by]
                                if key not in shades)])
    looks |= {key: (shade, f"{MARKERS[k % len(MARKERS)]}-") for k, (key, shade) in enumerate(
        zip(shades, sns.color_palette("viridis", len(shades)).as_hex()))}
    across = dict.fromkeys(name for heights in (levels or {}).values() for name in heights)
    styles = dict(zip(across, cycle(("--", ":", "-."))))
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    with _panels(columns, (3.3 * columns + 0.2, 3.1 * rows), rows, title) as (figure, axes):
        for axis, (label, table) in zip(axes.flat, panels.items()):
            for k, (key, curve) in enumerate(table.groupby(by, sort=False)):
                _curve(axis, curve.sort_values(x), x, str(key), *looks[str(key)],
                       size=_size(k, len(curve)))
            for name, height in (levels or {}).get(label, {}).items():
                axis.axhline(height, color="0.2", lw=1.2, ls=styles[name], zorder=1, label=name)
            if len(places := sorted(set(table[x]))) < 9:
                _ticks(axis, places, log_x)
            axis.set(xlabel=xlabel, **{"title": label, "ylabel": ylabel} if ylabel else
                     {"ylabel": label})
            if label in log_y:
                axis.set_yscale("log", base=2)
                axis.yaxis.set_major_formatter("{x:g}")
            elif {"low", "high"} <= set(table) and (table.low.min() >= 0 and table.high.max() <= 1):
                axis.set_ylim(-0.03, 1.03)
        shown = _named_once(axes)
        figure.legend(shown.values(), shown, ncols=2 * columns, loc="outside lower center",
                      title_fontsize=7.5, title=_intervals(panels.values(), over) or None)
    return figure


def bands(panels: Mapping[str, Mapping[str, pd.DataFrame]], ylabel: str,
          reference: tuple[str, pd.DataFrame], title: str = "") -> Figure:
    """Medians with their quartiles against sigma, as sampling goes: from large sigma to small.

    panels: title -> label -> table with columns sigma, median, low, high; reference: one more, grey
    in every panel.
    """
    with _panels(len(panels), (3.9 * len(panels) + 0.3, 3.4), title=title,
                 sharey=True) as (figure, axes):
        for axis, (name, curves_) in zip(axes.flat, panels.items()):
            rows = {reference[0]: reference[1], **curves_}
            looks = zip(("0.2", *MODEL_COLOURS), ("--", *(f"{mark}-" for mark in MARKERS)))
            for (colour, style), (label, part) in zip(looks, rows.items()):
                axis.plot(part.sigma, part["median"], style, color=colour, lw=1.5, ms=4,
                          markevery=3, label=label)
                axis.fill_between(part.sigma, part.low, part.high, color=colour, alpha=0.18, lw=0)
            axis.set(xscale="log", title=name, xlabel="noise level $\\sigma$")
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.invert_xaxis()
            axis.legend()
        axes.flat[0].set_ylabel(ylabel)
        figure.supxlabel("lines: medians, bands: quartiles", fontsize=7.5)
    return figure


def against_known_posterior(table: pd.DataFrame, title: str = "") -> Figure:
    """Distance of Algorithm 1 to the exact answers: of baselines.against_the_posterior."""
    panels = {"to mean": "to the posterior mean", "to flow": "to the exact flow, same noise"}
    runs, known = table[table.zeta.notna()], table[table.zeta.isna()].set_index("what")
    with _panels(len(panels), (7.6, 3.7), title=title, sharey=True) as (figure, axes):
        for axis, (column, label) in zip(axes.flat, panels.items()):
            for colour, (steps, part) in zip(MODEL_COLOURS, runs.groupby("steps")):
                axis.plot(part.zeta, part[column], "o-", color=colour, ms=4, lw=1.5,
                          label=f"{steps:.0f} steps")
                axis.fill_between(part.zeta, part[f"{column} low"], part[f"{column} high"],
                                  color=colour, alpha=0.18, lw=0)
            for style, (what, row) in zip(("--", ":"), known.iterrows()):
                if row[column] > 0:
                    axis.axhline(row[column], color="0.35", lw=1, ls=style, label=what)
            _ticks(axis, sorted(runs.zeta.unique()), log=True)
            axis.set(title=label, ylim=(0, None),
                     xlabel="step size $\\zeta$ (given for 30 steps)")
            axis.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.19))
        axes.flat[0].set_ylabel("RMS distance")
        measured = table.rename(columns={"to mean low": "low", "to mean high": "high"})
        figure.supxlabel(_intervals([measured], "images"), fontsize=7.5)
    return figure


def shares(table: pd.DataFrame, x: str, by: str, chance: float, ylabel: str,
           title: str = "") -> Figure:
    """Grouped bars of `share` with intervals: a group per value of x, a bar per value of `by`."""
    with _panels(1, (0.62 * table[x].nunique() + 1.6, 2.9)) as (figure, axes):
        axis = axes[0, 0]
        sns.barplot(table, x=x, y="share", hue=by, ax=axis, errorbar=None, width=0.82,
                    palette=list(MODEL_COLOURS[:table[by].nunique()]), saturation=1)
        for bars, (_, part) in zip(axis.containers, table.groupby(by, sort=False)):
            middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
            axis.vlines(middles, part.low, part.high, color="0.25", lw=0.8)
        axis.axhline(chance, color="0.35", lw=0.9, ls="--", label="if all were equal")
        axis.set(xlabel="", ylabel=ylabel, title=title)
        axis.legend(title=None, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        axis.tick_params(axis="x", rotation=25)
    return figure


def gallery(found: Mapping[str, tuple[Tensor, Tensor]], title: str = "") -> Figure:
    """Per row two strips of ten: samples, and under each the training image most similar to it.

    found: row label -> (samples, nearest images), as in `sample_grid`.
    """
    strips = {}
    for name, (made, near) in found.items():
        strips[name], strips[f"nearest ({name})"] = made, near
    labels = {name: "nearest" if name.startswith("nearest") else name for name in strips}
    return sample_grid(strips, 10, title, labels)


def distances_against_sigma(table: pd.DataFrame, title: str = "") -> Figure:
    """Distance of networks to closed forms against sigma: of regimes.denoiser_distances.

    A row for the images asked about, a column per form, a curve per number of training images;
    dashed how far the form of the most images is from the mean image.
    """
    forms, asked = (list(dict.fromkeys(table[by])) for by in ("form", "asked about"))
    sizes = sorted(set(table.images))
    shades = dict(zip(sizes, sns.color_palette("viridis", len(sizes))))
    size = 3.3 * len(forms) + 0.3, 2.8 * len(asked) + 0.2
    with _panels(len(forms), size, len(asked), title, sharex=True, sharey=True) as (figure, axes):
        for axis, ((what, form), part) in zip(axes.flat, table.groupby(["asked about", "form"],
                                                                       sort=False)):
            for images, curve in part.groupby("images"):
                axis.plot(curve.sigma, curve.distance, "o-", color=shades[images], ms=3, lw=1.3,
                          label=f"$2^{{{int(images).bit_length() - 1}}}$ images")
            own = part[part.images == sizes[-1]]
            axis.plot(own.sigma, own.answer, "--", color="0.35", lw=1.1,
                      label="closed form to mean image")
            axis.set(xscale="log", yscale="log", title=f"{form.capitalize()} denoiser, {what}")
        figure.supxlabel("noise level $\\sigma$", fontsize=9)
        figure.supylabel("RMS difference of denoisers", fontsize=9)
        axes.flat[-1].legend()
    return figure


def mixture_errors(table: pd.DataFrame, crossings: pd.DataFrame) -> Figure:
    """The crossing: error to either truth against the number of points, of mixture.errors.

    A row for the points asked about, a column per sigma; the thin line is D(u) = u, a vertical line
    a decided crossing, of mixture.crossings.
    """
    sigmas, asked = sorted(table.sigma.unique()), list(dict.fromkeys(table["asked about"]))
    looks = {"to empirical": ("o-", CORNERS[0], 1.4), "to ground truth": ("s-", CORNERS[1], 1.4),
             "between them": ("--", "0.6", 1.4), "identity to ground truth": ("-", "0.2", 0.6)}
    size, found = (1.75 * len(sigmas) + 0.6, 2.4 * len(asked) + 0.4), crossings[crossings.decided]
    with _panels(len(sigmas), size, len(asked), sharex=True, sharey=True) as (figure, axes):
        for axis, (what, sigma) in zip(axes.flat, product(asked, sigmas)):
            part = table[(table["asked about"] == what) & (table.sigma == sigma)]
            part = part.sort_values("points")
            for column, (style, colour, width) in looks.items():
                label = {"between them": "empirical to ground truth"}.get(
                    column, column.replace("to ", "network to ", column.startswith("to ")))
                axis.plot(part.points, part[column], style, color=colour, ms=3.5, lw=width,
                          label=label)
                if f"{column} low" in part:
                    axis.fill_between(part.points, part[f"{column} low"], part[f"{column} high"],
                                      color=colour, alpha=0.18, lw=0)
            here = found[(found["asked about"] == what) & (found.sigma == sigma)]
            for crossing in here.crossing.dropna():
                axis.axvline(crossing, color="0.2", lw=0.8, ls=":", label="decided crossing")
            axis.set(yscale="log", title=f"$\\sigma$ = {sigma:g}, {what} points")
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted(part.points)[::2])
            axis.minorticks_off()
        figure.supxlabel("number of training points", fontsize=9)
        figure.supylabel("RMS error per coordinate", fontsize=9)
        shown = _named_once(axes)
        figure.legend(shown.values(), shown, loc="outside upper center", ncols=len(shown))
    return figure


def hyperplane_maps(maps: Mapping[str, tuple[Tensor, Tensor]], title: str = "") -> Figure:
    """The noise hyperplane, a panel per model: which corner each point's image is most like.

    maps: name -> (winner [g, g] in 0..2, similarity [g, g]); rows are beta, columns alpha, both
    over noise.EXTENT. The paler the colour, the less similar.
    """
    low, high = EXTENT
    columns = min(len(maps), 5)
    rows = -(-len(maps) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(1.75 * columns + 0.4, 2.0 * rows + 0.6),
                                    layout="constrained", squeeze=False)
        for axis in axes.flat[len(maps):]:
            axis.set_visible(False)
        for axis, (name, (winner, strength)) in zip(axes.flat, maps.items()):
            half = (high - low) / max(len(winner) - 1, 1) / 2  # a point is amid its cell
            axis.imshow(shaded(winner, strength), origin="lower", interpolation="nearest",
                        extent=2 * (low - half, high + half))
            corners = ((0, 0), (1, 0), (0, 1))
            for (x, y), colour, label in zip(corners, CORNERS, "123"):
                axis.plot(x, y, "o", ms=8, mfc="white", mec=colour, mew=1.5)
                axis.annotate(label, (x, y), ha="center", va="center", fontsize=6.5)
            axis.set_title(NAMES.get(name, name))
            axis.set(xticks=[0, 1], yticks=[0, 1])
            axis.label_outer()
        figure.suptitle(title or None, fontsize=10)
        figure.supxlabel("$\\alpha$", fontsize=9)
        figure.supylabel("$\\beta$", fontsize=9)
    return figure


def shaded(winner: Tensor, strength: Tensor) -> np.ndarray:
    """Corner colours fading to white with the similarity, [g, g, 3]."""
    colours = np.array([to_rgb(c) for c in CORNERS])[winner.numpy()]
    weight = strength.clamp(0, 1).numpy()[..., None]
    return 1 - weight * (1 - colours)
