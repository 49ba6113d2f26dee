"""The explorations: what their pictures show, and that they work in JupyterLab and without it."""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import ipywidgets
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from paper_utils import explore, models, regimes, scores
from paper_utils.errors import UserError
from paper_utils.explore import Control
from paper_utils.operators import Task
from paper_utils.reconstructions import BOX, Problem

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
BATCH = ("PAPER_UTILS_PROGRESS", "MPLBACKEND")  # what tests have in their environment, no person
GRID = 5
THRESHOLD = 0.9


def images(n: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, side, side), generator=rng, dtype=torch.uint8)


def unit_rows(n: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def arrays(figure: Figure) -> list[np.ndarray]:
    """What is shown in a figure, in the order of drawing."""
    return [np.asarray(shown.get_array()) for axis in figure.axes for shown in axis.get_images()]


def hwc(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def strip(rows: torch.Tensor) -> np.ndarray:
    """Images beside each other, as plots.sample_grid shows them."""
    return np.concatenate([hwc(row) for row in rows], 1)


def title(figure: Figure) -> str:
    return figure.get_suptitle() or figure.axes[0].get_title(loc="left")


@pytest.fixture
def at_the_sliders(monkeypatch):
    monkeypatch.setattr(explore, "watched", lambda: True)


# --- with sliders or without --------------------------------------------------------------------

def squares(side: int, colour: str = "red") -> Figure:
    figure = Figure(figsize=(side, 1))
    figure.add_subplot().set_title(colour)
    return figure


def width(box: ipywidgets.VBox) -> int:
    return Image.open(BytesIO(box.children[-1].value)).width


def test_unwatched_it_is_the_picture_of_the_first_state():
    shown = explore.interact(squares, side=Control("side", [1, 2, 3], 1))
    assert isinstance(shown, Figure) and shown.get_figwidth() == 2


def test_watched_it_has_a_slider_for_each_value(at_the_sliders):
    controls = {"side": Control("the side", range(2, 9, 2)),
                "colour": Control("its colour", ["red", "blue"], -1, "{}!")}
    box = explore.interact(squares, **controls)
    side, colour, _ = box.children
    assert (side.description, side.min, side.max, side.step, side.value) == ("the side", 2, 8, 2, 2)
    assert (colour.description, colour.value) == ("its colour", "blue")
    assert colour.options == (("red!", "red"), ("blue!", "blue"))
    before = width(box)
    side.value = 8
    assert width(box) > 3 * before


def test_without_values_there_is_nothing_to_choose():
    with pytest.raises(UserError, match="noise: there is nothing to choose from"):
        explore.interact(squares, side=Control("noise", range(0)))


@pytest.mark.parametrize("request_, expected", [
    ({"content": {"allow_stdin": True}}, True), ({"content": {"allow_stdin": False}}, False),
    ({"content": {}}, False), ({}, False)])
def test_a_person_is_one_who_could_be_asked(request_, expected, monkeypatch):
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda channel: request_))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert explore.watched() is expected


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), SimpleNamespace(kernel=object())])
def test_a_script_or_a_terminal_has_nobody(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert explore.watched() is False
    monkeypatch.delitem(sys.modules, "IPython")
    assert explore.watched() is False


@pytest.mark.slow
def test_papermill_shows_a_picture_and_no_widget(tmp_path, monkeypatch):
    """With nothing in the environment that says it is a batch."""
    import papermill

    for name in BATCH:
        monkeypatch.delenv(name, raising=False)
    code = ("import matplotlib.pyplot as plt\n"
            "from paper_utils import explore\n"
            "control = explore.Control('side', [1, 2])\n"
            "explore.interact(lambda side: plt.subplots()[0], side=control)")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(book, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"),
                                      kernel_name="python3", progress_bar=False)
    (output,) = done.cells[0].outputs
    assert set(output.data) == {"image/png", "text/plain"} and "widgets" not in done.metadata


# --- section 2: the hyperplane ------------------------------------------------------------------

@pytest.fixture
def planes():
    return {name: (images(3, seed), images(GRID**2, seed + 10)) for seed, name in enumerate("ab")}


@pytest.fixture
def maps():
    return {name: scores.hyperplane_map(unit_rows(3, seed), unit_rows(GRID**2, seed + 10))
            for seed, name in enumerate("ab")}


@pytest.mark.parametrize("alpha, beta", [(0.5, 0.5), (-0.5, 1.5), (1.0, 0.0), (0.24, 1.3),
                                         (0.26, -0.4)])
def test_the_hyperplane_shows_the_nearest_point_of_the_grid(alpha, beta, planes, maps):
    steps = np.linspace(-0.5, 1.5, GRID)
    points = [(a, b) for b in steps for a in steps]  # beta major, as noise.hyperplane
    nearest = min(range(GRID**2), key=lambda k: np.hypot(points[k][0] - alpha,
                                                         points[k][1] - beta))
    figure = explore.hyperplane_at(planes, maps, alpha, beta)
    _, mine, _, other = arrays(figure)
    assert (mine == hwc(planes["a"][1][nearest])).all()
    assert (other == hwc(planes["b"][1][nearest])).all()
    a, b = points[nearest]
    assert f"= {a:.2f}" in title(figure) and title(figure).endswith(f"= {b:.2f}")


def test_the_mark_is_in_the_cell_of_the_map_whose_image_is_shown(planes, maps):
    figure = explore.hyperplane_at(planes, maps, 1.0, 0.0)
    axis = figure.axes[0]
    plane = axis.get_images()[0]
    left, right, bottom, top = plane.get_extent()
    marks = [line.get_xydata()[0] for line in axis.lines if line.get_marker() == "s"]
    assert len(marks) == 2
    column, row = ((marks[0] - (left, bottom)) / (right - left) * GRID).astype(int)
    assert (column, row) == (3, 1)
    winner, strength = (part[row, column] for part in maps["a"])
    shown = np.asarray(plane.get_array())[GRID - 1 - row, column]  # the first row is drawn on top
    colour = ((0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73))[winner]
    faded = 1 - max(strength.item(), 0) * (1 - np.array(colour) / 255)
    assert shown == pytest.approx(faded, abs=1e-6)
    second = next(t for t in axis.texts if t.get_text() == "2")
    assert second.get_position() == pytest.approx(marks[0])  # noise 2 is at alpha 1, beta 0


def test_the_sliders_of_the_hyperplane_go_over_its_grid(at_the_sliders, planes, maps):
    alpha, beta, picture = explore.hyperplane(planes, maps).children
    assert [value for _, value in alpha.options] == pytest.approx(np.linspace(-0.5, 1.5, GRID))
    assert alpha.options == beta.options and (alpha.value, beta.value) == (0.5, 0.5)
    assert (alpha.description, beta.description) == ("α", "β")
    before = picture.value
    beta.value = beta.options[0][1]
    assert picture.value != before


def test_it_moves_over_what_the_models_make_of_the_plane(tmp_path, monkeypatch):
    """The grid's order is that of models.hyperplane_samples, its corners are noises 0, 1 and 2."""
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path))
    spy = models.Model("spy", "U-Net", "", "", "", 1, 0, 0, 0, {"test": "explore"},
                       lambda noise, title="": noise / 4)
    plane = models.hyperplane_samples(spy, GRID)
    maps = {"spy": scores.hyperplane_map(*(torch.nn.functional.normalize(part.flatten(1).float())
                                           for part in plane))}
    for k, (alpha, beta) in enumerate([(0, 0), (1, 0), (0, 1)]):
        _, shown = arrays(explore.hyperplane_at({"spy": plane}, maps, alpha, beta))
        assert (shown == hwc(plane[0][k])).all()


def test_off_the_plane_and_without_models(planes, maps):
    with pytest.raises(UserError, match="is off the plane: choose -0.5 to 1.5"):
        explore.hyperplane_at(planes, maps, 0.0, 2.0)
    with pytest.raises(UserError, match="no model to show"):
        explore.hyperplane({}, {})


# --- section 2: the nearest training images -----------------------------------------------------

@pytest.fixture
def sampled():
    """Samples and features of two models, training images and their features."""
    samples = {"a": images(6, 1), "b": images(4, 2)}
    features = {"a": unit_rows(6, 1), "b": unit_rows(4, 2)}
    known = unit_rows(50, 3)
    known[17] = features["b"][2]
    return samples, features, images(50, 3), known


@pytest.mark.parametrize("noise", [0, 2, 3])
def test_the_nearest_training_image_is_that_of_a_brute_force(noise, sampled):
    samples, features, pixels, known = sampled
    figure = explore.nearest_at(*sampled, THRESHOLD, noise)
    shown = arrays(figure)
    assert len(shown) == 4 and f"Noise {noise}:" in title(figure)
    for name, made, near, label in zip("ab", shown[::2], shown[1::2], figure.axes[0].texts):
        likeness = [sum(x * y for x, y in zip(features[name][noise].tolist(), row))
                    for row in known.tolist()]
        best = max(range(50), key=lambda k: likeness[k])
        assert (made == hwc(samples[name][noise])).all()
        assert (near == hwc(pixels[best])).all()
        assert label.get_text().split()[:2] == [name, f"{likeness[best]:.2f}"]
        assert label.get_text().endswith("copy") == (likeness[best] > THRESHOLD)
    assert ("copy" in figure.axes[0].texts[1].get_text()) == (noise == 2)


def test_the_slider_goes_over_the_noises_that_all_models_have(at_the_sliders, sampled):
    noise, picture = explore.nearest(*sampled, THRESHOLD).children
    assert (noise.description, noise.min, noise.max, noise.value) == ("noise", 0, 3, 0)
    before = picture.value
    noise.value = 3
    assert picture.value != before


def test_a_noise_that_was_not_sampled(sampled):
    for noise in (-1, 4):
        with pytest.raises(UserError, match=f"noise {noise} was not sampled: choose 0 to 3"):
            explore.nearest_at(*sampled, THRESHOLD, noise)
    with pytest.raises(UserError, match="no model to show"):
        explore.nearest({}, {}, *sampled[2:], THRESHOLD)


# --- section 3: through the regimes -------------------------------------------------------------

@pytest.fixture
def trained():
    """The grid, pairs, RP and GL of two widths at 4 and one at 1,024 images, and one half."""
    rows = [("a4", 8, 4, 0), ("b4", 16, 4, 0), ("a1024", 8, 1024, 0), ("h4", 8, 4, 1)]
    grid = pd.DataFrame(rows, columns=["model", "width", "images", "half"]).assign(
        seed=0, moment=False)
    pairs = {name: (images(12, seed), images(12, seed + 20))
             for seed, name in enumerate(regimes.cells(grid).model)}
    rp = pd.DataFrame({"images": [4], "pair": ["8 / 16"], "score": [0.25]})
    gl = pd.DataFrame({"model": ["b4", "a1024", "a4"], "score": [0.125, 1.0, 0.5]})
    return grid, pairs, rp, gl


@pytest.mark.parametrize("number, shown, said", [
    (4, ["a4", "b4"], "4 training images. RP of widths 8 / 16: 0.25\n"
                      "GL of width 8: 0.50, 16: 0.12"),
    (1024, ["a1024"], "1,024 training images. GL of width 8: 1.00")])
def test_a_number_of_images_shows_every_width_with_its_nearest(number, shown, said, trained):
    figure = explore.training_images_at(*trained, number)
    expected = [strip(part[:10]) for name in shown for part in trained[1][name]]
    assert all((a == b).all() for a, b in zip(arrays(figure), expected, strict=True))
    assert title(figure) == said


def test_the_slider_goes_over_the_numbers_of_training_images(at_the_sliders, trained):
    number, picture = explore.training_images(*trained).children
    assert number.options == (("4", 4), ("1,024", 1024)) and number.value == 4
    before = picture.value
    number.value = 1024
    assert picture.value != before


def test_a_number_nothing_was_trained_on(trained):
    with pytest.raises(UserError, match="number of training images 5 is not among.* 4, 1,024$"):
        explore.training_images_at(*trained, 5)
    with pytest.raises(UserError, match="no model to show"):
        explore.training_images(trained[0][:0], *trained[1:])


# --- section 4: the step size -------------------------------------------------------------------

@pytest.fixture
def restored():
    """Truth and measurement, answers, problems, RP."""
    problems = [Problem(Task(BOX, 8), zeta) for zeta in (0.5, 2.0)]
    rows = {"truth": images(3, 1), "measured": images(3, 2)}
    answers = {problem.name: {"a": images(3, 3 + k), "b": images(3, 5 + k)}
               for k, problem in enumerate(problems)}
    rp = pd.DataFrame({"x": [0.5, 0.5, 2.0], "who": ["U-Nets", "across", "across"],
                       "score": [0.75, 0.5, 0.125]})
    return rows, answers, problems, rp


@pytest.mark.parametrize("zeta, said", [(0.5, "RP: U-Nets 0.75, across 0.50"),
                                        (2.0, "RP: across 0.12")])
def test_a_step_size_shows_what_was_restored_with_it(zeta, said, restored):
    rows, answers, problems, _ = restored
    figure = explore.step_size_at(*restored, zeta)
    answer = answers[f"box inpainting 8 px, zeta {zeta:g}"]
    expected = [rows["truth"], rows["measured"], answer["a"], answer["b"]]
    assert all((a == strip(b)).all() for a, b in zip(arrays(figure), expected, strict=True))
    assert title(figure) == f"box inpainting 8 px, zeta {zeta:g}. {said}"


def test_the_slider_goes_over_the_step_sizes_from_the_largest(at_the_sliders, restored):
    zeta, picture = explore.step_size(*restored).children
    assert zeta.options == (("0.5", 0.5), ("2", 2.0)) and zeta.value == 2.0
    assert zeta.description == "step size ζ"
    before = picture.value
    zeta.value = 0.5
    assert picture.value != before


def test_a_step_size_nothing_was_restored_with(restored):
    rows, answers, problems, rp = restored
    with pytest.raises(UserError, match="zeta 3 is not among those computed: choose 0.5, 2.0"):
        explore.step_size_at(*restored, 3)
    with pytest.raises(UserError, match="no model to show"):
        explore.step_size(rows, dict.fromkeys(answers, {}), problems, rp)
    with pytest.raises(UserError, match="nothing to choose from"):
        explore.step_size(rows, answers, [], rp)


@pytest.mark.parametrize("state", ["hyperplane", "nearest", "training_images", "step_size"])
def test_nobody_watching_every_exploration_is_a_figure(state, request, planes, maps, sampled,
                                                       trained, restored):
    arguments = {"hyperplane": (planes, maps), "nearest": (*sampled, THRESHOLD),
                 "training_images": trained, "step_size": restored}[state]
    assert isinstance(getattr(explore, state)(*arguments), Figure)


# --- in JupyterLab, by keyboard -----------------------------------------------------------------

PATIENCE = 600  # seconds for one thing to happen; on a slow machine a notebook takes minutes


@contextlib.contextmanager
def jupyter_lab(folder: Path, started) -> Iterator[str]:
    """A JupyterLab of its own in `folder`; yields an address that takes a path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex(16)
    settings = {"ServerApp.port": port, "ServerApp.port_retries": 0, "ServerApp.ip": "127.0.0.1",
                "IdentityProvider.token": token, "ServerApp.root_dir": folder / "notebooks",
                "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate"}
    words = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    words += [f"--{key}={value}" for key, value in settings.items()]
    environment = {name: value for name, value in os.environ.items() if name not in BATCH}
    environment |= {f"{name}_DIR": str(folder / name) for name in (
        "JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "JUPYTERLAB_SETTINGS",
        "JUPYTERLAB_WORKSPACES")}
    with open(folder / "log", "w") as log:
        server = started(words, env=environment, stdout=log, stderr=log)
    try:
        _until_it_answers(f"http://127.0.0.1:{port}/api/status?token={token}", server, folder)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
    finally:
        server.terminate()  # it ends its kernels, which end without it too
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)


def _until_it_answers(url: str, server: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    pytest.fail("JupyterLab did not start: " + (folder / "log").read_text()[-2000:])


@contextlib.contextmanager
def browser_page() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"],
                                         timeout=1000 * PATIENCE)
        try:
            page = browser.new_page(viewport={"width": 1300, "height": 1000})
            page.set_default_timeout(1000 * PATIENCE)
            yield page
        finally:
            browser.close()


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
def test_a_slider_moved_in_jupyterlab_changes_the_picture(tmp_path, started):
    """The notebook of section 3, small, Run All, in a real browser; the slider by keyboard."""
    pytest.importorskip("playwright")
    (tmp_path / "notebooks").mkdir()
    book = nbformat.read(ROOT / "notebooks" / "02_two_regimes.ipynb", as_version=4)
    for cell in book.cells:
        cell.source = cell.source.replace('profile: str = "laptop"', 'profile: str = "smoke"')
    nbformat.write(book, tmp_path / "notebooks" / "regimes.ipynb")
    with jupyter_lab(tmp_path, started) as address, browser_page() as page:
        page.goto(address.format("regimes.ipynb"))
        page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        picture, readout = page.locator(".widget-image"), page.locator(".widget-readout")
        failed = page.locator("[data-mime-type$='stderr']", has_text="Traceback")
        picture.or_(failed).first.wait_for(state="attached")
        assert failed.all_inner_texts() == []
        picture.scroll_into_view_if_needed()
        assert min(picture.evaluate("it => [it.naturalWidth, it.naturalHeight]")) > 300
        before = picture.get_attribute("src")
        readout.filter(has_text=re.compile("^4$")).wait_for()  # recipes.GRIDS["smoke"].images
        page.locator(".noUi-handle").press("ArrowRight")
        page.wait_for_function("before => document.querySelector('.widget-image').src != before",
                               arg=before)
        readout.filter(has_text=re.compile("^32$")).wait_for()
        page.locator(".jp-CodeCell").last.locator("table").wait_for(state="attached")
        assert failed.all_inner_texts() == []
