"""Pictures with sliders, for JupyterLab. They only choose among what was computed.

Where nobody watches (papermill, nbval, nbconvert) an exploration is the picture of its first state,
an ordinary figure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from paper_utils import plots, regimes
from paper_utils.errors import UserError
from paper_utils.noise import EXTENT
from paper_utils.progress import shell
from paper_utils.reconstructions import Problem
from paper_utils.scores import CONTROL

COLUMNS = 5  # pairs of images beside each other
SIDE = 0.75  # inches an image is wide; below in image sides
GAP = 0.05  # between the two images of a pair
STEP = (2.4, 1.35)  # from pair to pair, across and down
TITLE = 10.9  # what the longest title needs


@dataclass(frozen=True)
class Control:
    """A slider: what stands beside it, the values it goes through, how each is written.

    start: the place of the first state's value. A `range` also takes a typed number.
    """

    label: str
    values: Sequence
    start: int = 0
    text: str = "{}"


# --- with sliders or without --------------------------------------------------------------------

def interact(draw: Callable[..., Figure], **controls: Control) -> Any:
    """The figure draw(**values) with a slider for each value, as a notebook shows it.

    A widget where a person runs the cell and ipywidgets is there, else the Figure of the first
    state. Raises UserError for a control without values.
    """
    for control in controls.values():
        if not len(control.values):
            raise UserError(f"{control.label}: there is nothing to choose from")
    if watched() and find_spec("ipywidgets"):
        return _widget(draw, controls)
    figure = draw(**{name: c.values[c.start] for name, c in controls.items()})
    plt.close(figure)
    return figure


def watched() -> bool:
    """Whether a person runs this cell: one who could be asked for input.

    Papermill, nbval and nbconvert say of every cell that nobody can; a script has no kernel.
    """
    kernel = getattr(shell(), "kernel", None)
    request = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else {}
    return bool(request.get("content", {}).get("allow_stdin"))


def _widget(draw: Callable[..., Figure], controls: Mapping[str, Control]) -> Any:
    import ipywidgets

    sliders = {name: _slider(control) for name, control in controls.items()}
    place = ipywidgets.Layout(max_width="100%", align_self="flex-start")  # never wider than it is
    picture = ipywidgets.Image(format="png", layout=place)

    def show(change: Any = None) -> None:
        picture.value = _png(draw(**{name: slider.value for name, slider in sliders.items()}))

    show()
    for slider in sliders.values():
        slider.observe(show, "value")
    return ipywidgets.VBox([*sliders.values(), picture])


def _slider(control: Control) -> Any:
    import ipywidgets

    look = {"description": control.label, "style": {"description_width": "120px"},
            "layout": ipywidgets.Layout(width="520px", max_width="100%"),
            "value": control.values[control.start]}
    if isinstance(control.values, range):
        return ipywidgets.IntSlider(min=control.values[0], max=control.values[-1],
                                    step=control.values.step, **look)
    options = [(control.text.format(value), value) for value in control.values]
    return ipywidgets.SelectionSlider(options=options, **look)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    with plt.rc_context(plots.STYLE):
        figure.savefig(buffer, format="png", bbox_inches="tight", dpi="figure")
    plt.close(figure)
    return buffer.getvalue()


# --- section 2 ----------------------------------------------------------------------------------

def hyperplane(planes: Mapping[str, tuple[Tensor, Tensor]],
               maps: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    """Move over the noise hyperplane: every model's map of it, and its image at the point.

    planes: by model what models.hyperplane_samples gives; maps: what scores.hyperplane_map does.
    Raises UserError where there is no model.
    """
    points = _points(_some(planes)).tolist()
    axis = partial(Control, values=points, start=len(points) // 2, text="{:.2f}")
    return interact(partial(hyperplane_at, planes, maps),
                    alpha=axis("\N{GREEK SMALL LETTER ALPHA}"),
                    beta=axis("\N{GREEK SMALL LETTER BETA}"))


def hyperplane_at(planes: Mapping[str, tuple[Tensor, Tensor]],
                  maps: Mapping[str, tuple[Tensor, Tensor]], alpha: float, beta: float) -> Figure:
    """The state (alpha, beta) of `hyperplane`: the point of the grid that is nearest to it.

    Raises UserError off the plane.
    """
    low, high = EXTENT
    if not (low <= alpha <= high and low <= beta <= high):
        raise UserError(f"({alpha:g}, {beta:g}) is off the plane: choose {low:g} to {high:g}")
    points = _points(_some(planes))
    column, row = ((points - value).abs().argmin().item() for value in (alpha, beta))
    pairs = {name: (plots.shaded(*maps[name])[::-1], _picture(images[row * len(points) + column]))
             for name, (_, images) in planes.items()}
    figure, axis = _pairs(pairs, "Each model's map of the plane, and its image at "
                                 f"$\\alpha$ = {points[column]:.2f}, $\\beta$ = {points[row]:.2f}")
    for x, y in _places(len(pairs)):
        _corners(axis, x, y, len(points))
        axis.plot(x + (column + 0.5) / len(points), y + (row + 0.5) / len(points), "s", ms=8,
                  mfc="none", mec="black", mew=1.8)
    return figure


def _points(planes: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """The grid's alphas, which are its betas: [g]."""
    _, images = next(iter(planes.values()))
    return torch.linspace(*EXTENT, round(len(images) ** 0.5))


def _corners(axis: Axes, x: float, y: float, grid: int) -> None:
    """Mark the three noises on a map whose lower left is (x, y), each in its cell."""
    low, high = EXTENT
    for alpha, beta, colour, label in ((0, 0, plots.CORNERS[0], "1"), (1, 0, plots.CORNERS[1], "2"),
                                       (0, 1, plots.CORNERS[2], "3")):
        across, up = (((v - low) / (high - low) * (grid - 1) + 0.5) / grid for v in (alpha, beta))
        axis.plot(x + across, y + up, "o", ms=8, mfc="white", mec=colour, mew=1.5)
        axis.text(x + across, y + up, label, ha="center", va="center_baseline", fontsize=6.5)


def nearest(samples: Mapping[str, Tensor], features: Mapping[str, Tensor], pixels: Tensor,
            known: Tensor, threshold: float) -> Any:
    """Pick a noise: every model's sample and the training image most similar to it.

    samples: by model uint8 [n, 3, H, W], features: [n, d]; pixels, known: images and features of
    the training set; threshold: of the descriptor, above which a sample is a copy. Raises UserError
    where there is no model or no noise.
    """
    noises = range(min(map(len, _some(samples).values())))
    return interact(partial(nearest_at, samples, features, pixels, known, threshold),
                    noise=Control("noise", noises))


def nearest_at(samples: Mapping[str, Tensor], features: Mapping[str, Tensor], pixels: Tensor,
               known: Tensor, threshold: float, noise: int) -> Figure:
    """The state of `nearest` for one noise. Raises UserError for one that was not sampled."""
    count = min(map(len, _some(samples).values()))
    if not 0 <= noise < count:
        raise UserError(f"noise {noise} was not sampled: choose 0 to {count - 1}")
    best = (torch.stack([features[name][noise] for name in samples]) @ known.T).max(1)
    pairs = {}
    for name, likeness, place in zip(samples, best.values.tolist(), best.indices.tolist()):
        label = f"{name}   {likeness:.2f}" + ("  copy" if likeness > threshold else "")
        pairs[label] = _picture(samples[name][noise]), _picture(pixels[place])
    return _pairs(pairs, f"Noise {noise}: each model's sample (left), its most similar training "
                         f"image (right), their similarity (a copy if > {threshold:.2f})")[0]


# --- pairs of images ----------------------------------------------------------------------------

def _pairs(pairs: Mapping[str, tuple], title: str) -> tuple[Figure, Axes]:
    """Pairs of images, each with its label above, at `_places`. All in one axes: that is fast."""
    across, down = min(COLUMNS, len(pairs)) * STEP[0], -(-len(pairs) // COLUMNS) * STEP[1]
    width = max(across, TITLE)
    with plt.rc_context(plots.STYLE):
        figure, axis = plt.subplots(figsize=(SIDE * width, SIDE * down + 0.4))
        for (x, y), (label, images) in zip(_places(len(pairs)), pairs.items()):
            axis.text(x, y + 1.05, label, va="bottom")
            for left, image in zip((x, x + 1 + GAP), images):
                axis.imshow(image, extent=(left, left + 1, y, y + 1), interpolation="nearest")
                axis.add_patch(Rectangle((left, y), 1, 1, fill=False, ec="0.6", lw=0.6))
        axis.set(xlim=(-0.05, width - 0.05), ylim=(STEP[1] - down - 0.02, STEP[1] - 0.02),
                 aspect="equal")
        axis.set_title(title, loc="left")
        axis.axis("off")
        figure.subplots_adjust(0, 0, 1, 1 - 0.4 / figure.get_figheight())
    return figure, axis


def _places(count: int) -> list[tuple[float, float]]:
    """The lower left of each pair."""
    return [(k % COLUMNS * STEP[0], -(k // COLUMNS) * STEP[1]) for k in range(count)]


def _picture(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _some(models: Any) -> Any:
    if not len(models):
        raise UserError("there is no model to show")
    return models


# --- section 3 ----------------------------------------------------------------------------------

def training_images(grid: pd.DataFrame, pairs: Mapping[str, tuple[Tensor, Tensor]],
                    rp: pd.DataFrame, gl: pd.DataFrame) -> Any:
    """Go through the numbers of training images: samples of every width, and the nearest of those.

    grid: of regimes.grid; pairs: by model what regimes.with_nearest gives; rp, gl: the tables of
    regimes.between_widths and generalization. Raises UserError where there is no model.
    """
    return interact(partial(training_images_at, grid, pairs, rp, gl),
                    number=Control("training images", _numbers(grid), text="{:,}"))


def training_images_at(grid: pd.DataFrame, pairs: Mapping[str, tuple[Tensor, Tensor]],
                       rp: pd.DataFrame, gl: pd.DataFrame, number: int) -> Figure:
    """The state of `training_images` at one number, with RP and GL there.

    Raises UserError for a number that no model was trained on.
    """
    _offered(number, _numbers(grid), "number of training images")
    cell = regimes.cells(grid)[lambda rows: rows.images == number].sort_values("width")
    scored = gl.set_index("model").score
    said = {"RP of widths": rp[rp.images == number].set_index("pair").score,
            "GL of width": pd.Series(scored[cell.model].tolist(), cell.width)}
    lines = [f"{what} " + ", ".join(f"{key}: {score:.2f}" for key, score in scores.items())
             for what, scores in said.items() if len(scores)]
    strips = {f"width {row.width}": pairs[row.model] for row in cell.itertuples()}
    return plots.gallery(strips, title=f"{number:,} training images. " + "\n".join(lines))


def _numbers(grid: pd.DataFrame) -> list[int]:
    return sorted(regimes.cells(_some(grid)).images.unique().tolist())


# --- section 4 ----------------------------------------------------------------------------------

def step_size(rows: Mapping[str, Tensor], answers: Mapping[str, Mapping[str, Tensor]],
              problems: Sequence[Problem], rp: pd.DataFrame) -> Any:
    """Change zeta of an inverse problem: truth, measurement and what every model restores.

    rows: uint8 [n, 3, H, W] by label, truth and measurement; answers: by problem's name and model;
    problems: one for each zeta; rp: columns x (zeta), who, score, of which the control is not
    shown. Raises UserError where there is no model or no problem.
    """
    for problem in problems:
        _some(answers[problem.name])
    zetas = [problem.zeta for problem in problems]
    return interact(partial(step_size_at, rows, answers, problems, rp),
                    zeta=Control("step size \N{GREEK SMALL LETTER ZETA}", zetas, -1, "{:g}"))


def step_size_at(rows: Mapping[str, Tensor], answers: Mapping[str, Mapping[str, Tensor]],
                 problems: Sequence[Problem], rp: pd.DataFrame, zeta: float) -> Figure:
    """The state of `step_size` at one zeta. Raises UserError for one that was not restored with."""
    _offered(zeta, [problem.zeta for problem in problems], "zeta")
    problem = next(problem for problem in problems if problem.zeta == zeta)
    said = ", ".join(f"{row.who} {row.score:.2f}" for row in rp[rp.x == zeta].itertuples()
                     if not row.who.startswith(CONTROL))
    return plots.sample_grid({**rows, **answers[problem.name]}, title=f"{problem.name}. RP: {said}")


def _offered(value: float, values: Sequence, what: str) -> None:
    if value not in values:
        choices = ", ".join(f"{v:,}" for v in values)
        raise UserError(f"{what} {value:,} is not among those computed: choose {choices}")
