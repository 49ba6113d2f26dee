"""Section 3: the grid's tables against counting by hand, what ships, and what is refused."""

from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from paper_utils import (data, fleet, models, plots, profiles, recipes, regimes, rules, samplers,
                         scores, training, zoo)
from paper_utils.denoisers import GaussianDenoiser, OptimalDenoiser
from paper_utils.errors import UserError
from paper_utils.models import Model
from paper_utils.noise import stream
from paper_utils.training import Spec

pytestmark = pytest.mark.usefixtures("cache")

SMOKE = profiles.get("smoke")


def fake(width: int, n: int, half: int = 0, seen: int = 100, seed: int = 0) -> tuple[str, Model]:
    name = (f"unet-{width}-n{n}" + "-half1" * half + "-seed1" * seed
            + (f"@{seen}" if seen < 100 else ""))
    spec = Spec(name, "unet", {"width": width}, images=n, half=half, seed=seed, images_seen=seen)
    return name, Model(name, "U-Net", "", "", "", 1, 1, n, seen, {}, lambda noise: noise, spec)


def transformer(n: int) -> tuple[str, Model]:
    spec = Spec(f"dit-n{n}", "dit", {"dim": 8}, images=n, images_seen=100)
    return spec.name, Model(spec.name, "transformer", "", "", "", 1, 1, n, 100, {}, None, spec)


GRID = dict([fake(w, n) for n in (2, 4) for w in (8, 16, 32) if (w, n) != (32, 4)]
            + [fake(16, 2, 1), fake(8, 2, 0, 50), fake(16, 2, 0, 50)])


def unit(*angles: float) -> torch.Tensor:
    """Unit vectors in the plane at these angles, in degrees."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


copies = scores.copies(0.9)  # closer than 25.8 degrees


def test_the_grid_knows_its_cells():
    table = regimes.grid(GRID)
    assert len(table) == len(GRID) == 8 and table.moment.sum() == 2
    assert sorted(regimes.cells(table)[["images", "width"]].itertuples(index=False, name=None)) == [
        (2, 8), (2, 16), (2, 32), (4, 8), (4, 16)]


def test_the_fullest_width_is_the_widest_of_those():
    assert regimes.fullest_width(regimes.grid(GRID)) == 16  # 32 lacks a size
    assert regimes.fullest_width(regimes.grid(dict([fake(8, 2), fake(32, 2), fake(16, 4)]))) == 32


def test_widths_are_compared_at_the_same_number_of_images():
    features = {name: unit(0, 90, 180, 270) for name in GRID}
    features["unet-16-n2"] = unit(0, 90, 180 + 40, 270 + 40)
    found = regimes.between_widths(regimes.grid(GRID), features, copies)
    by = found.set_index(["images", "pair"]).score.to_dict()
    assert by == {(2, "8 / 16"): 0.5, (2, "8 / 32"): 1.0, (2, "16 / 32"): 0.5, (4, "8 / 16"): 1.0}
    assert (found.shuffled == 0).all() and (found.n == 4).all()


def test_a_transformer_is_compared_with_the_unets_and_closed_forms_of_its_images():
    found = GRID | dict([transformer(4)])
    assert regimes.grid(found).equals(regimes.grid(GRID))
    assert regimes.transformers(found).values.tolist() == [["dit-n4", 4, 0, 100]]
    features = dict.fromkeys(found, unit(0, 90)) | {"unet-16-n4": unit(0, 180)}
    closed = {"Gaussian": {2: unit(5, 5), 4: unit(0, 40)}}
    (n, pairs), = regimes.across_architectures(found, features, closed, copies).items()
    assert n == 4 and pairs.set_index(["model", "other"]).score.to_dict() == {
        ("U-Net 8", "U-Net 16"): 0.5, ("U-Net 8", "DiT"): 1.0, ("U-Net 8", "Gaussian"): 0.5,
        ("U-Net 16", "DiT"): 0.5, ("U-Net 16", "Gaussian"): 0.5, ("DiT", "Gaussian"): 0.5}
    assert regimes.across_architectures(GRID, features, closed, copies) == {}
    nothing = regimes.generalization(regimes.transformers(GRID), features, unit(0), unit(0),
                                     0.9)
    assert nothing.empty and {"model", "score", "held-out"} <= set(nothing)


def test_gl_is_against_the_images_of_the_cell():
    known = unit(0, 40, 80, 120, 160, 200, 240, 280)  # halves: the first and the last four
    samples = unit(80, 200)
    found = regimes.generalization(regimes.grid(GRID), dict.fromkeys(GRID, samples), known,
                                   unit(0, 300), 0.9).set_index("model")
    assert found.score["unet-8-n2"] == 1.0      # of 0 and 40 degrees none is near
    assert found.score["unet-8-n4"] == 0.5      # 80 is a copy of the third
    assert found.score["unet-16-n2-half1"] == 0.5  # the half begins at 160, 200
    assert found["held-out"]["unet-8-n2"] == 0.5 and found["held-out"]["unet-16-n2-half1"] == 1.0


def test_halves_are_compared_with_their_twin_and_both_with_the_control():
    features = {name: unit(0, 90, 90) for name in GRID} | {"unet-16-n2-half1": unit(0, 180, 90)}
    for control, expected in ((unit(90, 180, 90), (2 / 3, 0.0)),  # the second
                              (unit(90, 90, 200), (1 / 3, 1 / 3)),  # the first
                              (unit(90, 90, 90), (2 / 3, 0.0))):  # the first
        found = regimes.across_halves(regimes.grid(GRID), features, control, copies)
        assert found[["images", "width", "score"]].values.tolist() == [[2, 16, 2 / 3]]
        assert found[["control", "gain"]].values[0].tolist() == pytest.approx(list(expected))
        assert (found["gain low"] <= found.gain).all() and (found.gain <= found["gain high"]).all()
        assert (found["control low"] < found.control).all()


def test_halves_nearer_to_each_other_than_to_the_control():
    features = {name: unit(0, 90, 90) for name in GRID} | {"unet-16-n2-half1": unit(0, 180, 80)}
    found = regimes.across_halves(regimes.grid(GRID), features, unit(5, 90, 110), copies)
    assert found.nearer.item() == pytest.approx(2 / 3)
    assert found["nearer low"].item() == pytest.approx(scores.wilson(2 / 3, 3)[0])


def test_a_second_seed_is_compared_with_the_first_and_is_no_cell():
    table = regimes.grid(GRID | dict([fake(16, 4, seed=1), fake(32, 4, seed=1)]))
    assert len(table) == 10 and regimes.cells(table).equals(regimes.cells(regimes.grid(GRID)))
    features = {name: unit(0, 0, 0, 0) for name in table.model} | {
        "unet-16-n4-seed1": unit(0, 90, 0, 0)}
    row, = regimes.between_seeds(table, features, copies).itertuples()  # 32 has no first
    assert (row.images, row.width, row.score, row.shuffled) == (4, 16, 0.75, 0.75)
    assert regimes.between_seeds(regimes.grid(GRID), features, copies).empty
    halves = regimes.across_halves(table, features, unit(0, 90, 180, 270), copies)
    assert len(halves) == 1  # of the first seed


def test_what_more_images_change_at_one_width():
    features = {name: unit(0, 90) for name in GRID} | {"unet-8-n2": unit(0, 180)}
    found = regimes.with_most_images(regimes.grid(GRID), features, copies)
    assert found[["images", "pair", "score"]].values.tolist() == [
        [2, "width 8", 0.5], [2, "width 16", 1.0]]


def test_what_more_images_change_is_over_the_fewest_on_the_same_noises():
    table = regimes.grid(dict(fake(8, n) for n in (8, 2, 4)))
    features = {f"unet-8-n{n}": unit(*[0] * same, *[180] * (40 - same))
                for n, same in ((2, 20), (4, 30), (8, 40))}
    found = regimes.with_most_images(table, features, copies).set_index("images")
    assert found.score.to_dict() == {2: 0.5, 4: 0.75} and found.gain.to_dict() == {2: 0, 4: 0.25}
    assert 0.1 < found["gain low"][4] < 0.25 < found["gain high"][4] < 0.4


def even(*kinds: int) -> torch.Tensor:
    """Even parts of four noises, in turn along the unit vectors of these numbers."""
    return torch.eye(8).double()[[kinds[k % len(kinds)] for k in range(4)]]


def test_even_parts_are_compared_at_their_size_and_with_the_network_of_the_most_images():
    """A width at 32 of which the weights of the most images do not ship is compared with none."""
    table = regimes.grid(dict([fake(w, n) for n in (2, 4, 8) for w in (8, 16, 32)]
                              + [fake(16, 8, 1), fake(8, 2, 0, 50)]))
    parts = {"unet-8-n2": even(0), "unet-8-n4": even(0, 1), "unet-8-n8": even(1),
             "unet-16-n2": even(0), "unet-16-n8": even(3), "unet-16-n8-half1": even(3),
             "unet-8-n2@50": even(5), "unet-32-n2": even(2), "unet-32-n4": even(2)}
    optimal = {2: even(0, 2), 4: even(1), 8: even(6)}
    scored = {name: dict(zip(zip(rows.images, rows.pair), rows.score)) for name, rows in
              regimes.even_parts_alike(table, parts, optimal).items()}
    assert scored["each other"] == {
        (2, "8 / 16"): 1, (2, "8 / 32"): 0, (2, "16 / 32"): 0, (4, "8 / 32"): 0, (8, "8 / 16"): 0}
    assert scored["the optimal denoiser"] == {
        (2, "width 8"): 0.5, (2, "width 16"): 0.5, (2, "width 32"): 0.5, (4, "width 8"): 0.5,
        (4, "width 32"): 0, (8, "width 8"): 0, (8, "width 16"): 0}
    assert scored["that of the most images"] == {
        (2, "width 8"): 0, (4, "width 8"): 0.5, (2, "width 16"): 0}


def test_a_copy_is_three_times_nearer_to_its_image_than_to_the_second():
    pixels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    pixels[1], pixels[2], pixels[3] = 100, 200, 40
    mine = torch.stack([pixels[0] + 20, pixels[0] + 30, pixels[2]])
    ratio = scores.nearest_ratio(mine, pixels[:3])
    torch.testing.assert_close(ratio, torch.tensor([20 / 80, 30 / 70, 0.0]))
    torch.testing.assert_close(scores.nearest_ratio(mine, pixels[:3], block=1), ratio)
    with pytest.raises(UserError, match="at least two"):
        scores.nearest_ratio(mine, pixels[:1])
    found = regimes.nearer_than_second(regimes.grid(GRID), dict.fromkeys(GRID, mine + 5),
                                       pixels)
    by = found.set_index(["images", "width"]).score
    assert by[2, 8] == 0.0                    # 25 / 75, 35 / 65, 105 / 205
    assert by[4, 8] == pytest.approx(2 / 3)   # 15 / 25, 5 / 35, 5 / 105


def test_agreement_with_a_closed_form():
    describe = regimes.Descriptor("angle", 2, 0.9, lambda images: unit(
        *images.float().mean((1, 2, 3)).tolist()))
    mine = torch.full((4, 3, 2, 2), 100, dtype=torch.uint8)
    theirs = {2: mine[:2] - 10, 4: mine[:2] + 60}  # no wrapping below 0
    features = dict.fromkeys(GRID, unit(100, 100, 100, 100))
    found = regimes.with_closed_form(regimes.grid(GRID), dict.fromkeys(GRID, mine), features,
                                     theirs, {n: describe(x) for n, x in theirs.items()},
                                     copies).set_index(["images", "width"])
    assert found.score[2, 8] == 1.0 and found.score[4, 16] == 0.0 and (found.n == 2).all()
    assert found.distance[2, 8] == 10 and found.distance[4, 8] == 60
    assert found.shuffled[2, 8] == 1.0 and found.shuffled[4, 8] == 0.0  # all noises give one image


def test_agreement_with_a_closed_form_has_the_level_of_unrelated_noises():
    describe = regimes.Descriptor("angle", 2, 0.9, lambda images: unit(
        *images.float().mean((1, 2, 3)).tolist()))
    mine = torch.tensor([0, 0, 90, 180], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    features = dict.fromkeys(GRID, unit(0, 0, 90, 180))
    theirs = {2: mine, 4: mine[:2]}
    found = regimes.with_closed_form(regimes.grid(GRID), dict.fromkeys(GRID, mine), features,
                                     theirs, {n: describe(x) for n, x in theirs.items()},
                                     copies).set_index(["images", "width"])
    assert (found.score == 1).all()
    assert found.shuffled[2, 8] == 0.0 and found.shuffled[4, 8] == 1.0


def test_halves_stand_beside_their_control():
    halves = pd.DataFrame([(4, 8, 0.5, 0.4, 0.6, 0.3, 0.2, 0.4)], columns=[
        "images", "width", "score", "low", "high", "control", "control low", "control high"])
    table = regimes.halves_beside_control(halves)
    assert table[["images", "pair", "score", "low", "high"]].values.tolist() == [
        [4, "width 8", 0.5, 0.4, 0.6], [4, "Gaussian / width 8", 0.3, 0.2, 0.4]]


def test_scores_over_training_time():
    features = {name: unit(0, 90) for name in GRID} | {"unet-8-n2@50": unit(0, 180)}
    table = regimes.grid(GRID)
    gl = regimes.generalization(table, features, unit(0, 0, 0, 0), unit(0), 0.9)
    found = regimes.over_training(table, features, gl, {2: unit(180, 180)}, copies)
    by = found.set_index(["images seen", "what", "pair"]).score.unstack("images seen")
    assert by.columns.tolist() == [50, 100]
    assert {what: scores_.dropna().tolist() for what, scores_ in by.iterrows()} == {
        ("GL", "width 8"): [0.5, 0.5], ("GL", "width 16"): [0.5, 0.5], ("RP", "8 / 16"): [0.5, 1],
        ("RP", "Gaussian / width 8"): [0.5, 0], ("RP", "Gaussian / width 16"): [0, 0],
        ("RP with its next moment", "width 8"): [0.5],
        ("RP with its next moment", "width 16"): [1]}


def test_the_control_of_gl_is_judged_by_the_same_images():
    gaussian = {2: unit(0, 90, 180), 4: unit(90, 90, 0)}
    control = regimes.copied_by_control(gaussian, unit(0, 0, 90, 0), 0.9)
    assert control.score.tolist() == [2 / 3, 0] and control.images.tolist() == [2, 4]
    table = regimes.grid(GRID)
    gl = regimes.generalization(table, {name: unit(0, 90) for name in GRID},
                                unit(0, 0, 0, 0), unit(0), 0.9)
    both = regimes.copies_beside_control(regimes.cells(gl), control)
    axis = plots.scores_against({"GL": both}, "pair", colours=["width 32"]).axes[0]
    drawn = {line.get_label(): line for line in axis.get_lines()}
    assert len(drawn) == 4 and drawn["width 32"].get_color() == plots.MODEL_COLOURS[0]
    assert drawn["Gaussian denoiser"].get_linestyle() == "--"
    assert drawn["Gaussian denoiser"].get_color() == "0.2"  # of no width


def test_the_nearest_image_is_one_of_the_cells_own():
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    known = unit(0, 10, 90, 100)
    _, near = regimes.with_nearest(pixels, unit(95, 2), pixels[:2], known[:2])
    assert near[:, 0, 0, 0].tolist() == [1, 0]


def test_a_network_is_as_far_from_a_closed_form_as_it_is():
    images = data.load("bundled").first(8)
    exact = models.closed_forms(images, 64)["gaussian"].denoiser()
    networks = {8: lambda u, sigma: exact(u, sigma) + 0.25}
    asked = {"some": images.pixels[:2], "one": images.pixels[2:3]}
    table = regimes.denoiser_distances(networks, images, asked, SMOKE, sigmas=(0.3, 5.0))
    assert list(dict.fromkeys(table["asked about"])) == ["some", "one"] and len(table) == 12
    found = table.set_index(["asked about", "form", "sigma"]).distance
    for what in asked:
        assert found[what, "gaussian", 0.3] == pytest.approx(0.25) == found[what, "gaussian", 5.0]
    assert found["some", "optimal", 0.3] != found["one", "optimal", 0.3] > 0


def test_what_a_form_says_itself_fades_as_the_noise_grows():
    images = data.load("bundled").first(8)
    exact = models.closed_forms(images, 64)["gaussian"].denoiser()
    table = regimes.denoiser_distances({8: exact}, images, {"some": images.pixels[:2]}, SMOKE,
                                       sigmas=(1e-3, 1e4))
    low, high = table[table.form == "gaussian"].answer
    x0 = data.to_unit(images.pixels[:2])
    assert low == pytest.approx(scores.rms(x0 - exact.mean.to(x0)), rel=0.01)
    assert high < 0.01


def test_a_denoising_error_is_over_that_of_the_reference():
    pixels = data.load("bundled").pixels[:6]
    clean = data.to_unit(pixels)
    off = lambda by: lambda u, sigma: clean.to(u) + by
    found = regimes.denoising_errors({"twice": off(0.2), "same": off(0.1)}, pixels, off(0.1),
                                     sigmas=(0.1, 3.0))
    assert found.score.tolist() == pytest.approx([4, 4, 1, 1])
    assert found.error.tolist() == pytest.approx([0.04, 0.04, 0.01, 0.01]) and set(found.n) == {6}
    noisy = regimes.denoising_errors({"identity": lambda u, sigma: u}, pixels, off(1.0),
                                     sigmas=(0.5,))
    assert noisy.error.item() == pytest.approx(0.25, rel=0.05)


def test_a_closed_form_is_that_of_the_networks_own_images_and_asked_at_the_noise_level():
    images, sigmas = data.load("bundled").first(12), (0.3, 5.0)
    networks = {n: lambda u, sigma: 0 * u for n in (4, 8)}
    pixels = images.pixels[2:10]
    table = regimes.denoiser_distances(networks, images, {"some": pixels}, SMOKE, sigmas=sigmas)
    found = table.set_index(["images", "form", "sigma"]).distance
    eps = torch.randn(pixels.shape, generator=stream("denoiser distances"))
    for n in networks:
        forms = {"optimal": OptimalDenoiser(images.pixels[:n]),
                 "gaussian": GaussianDenoiser.fit(images.pixels[:n])}
        for (form, by_hand), sigma in product(forms.items(), sigmas):
            answer = by_hand(data.to_unit(pixels) + sigma * eps, sigma)
            assert found[n, form, sigma] == pytest.approx(scores.rms(answer), rel=1e-4)


# --- what ships ---------------------------------------------------------------------------------

@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The laptop profile with a grid of three cells, one of them trained and added by the fleet."""
    grid = replace(recipes.GRIDS["smoke"], moments=(64, 256), budget=128)
    monkeypatch.setitem(recipes.GRIDS, "laptop", grid)
    monkeypatch.setitem(profiles.PROFILES, "laptop", replace(SMOKE, name="laptop", shipped=True))
    monkeypatch.setattr(zoo, "REGIMES", tmp_path / "zoo")
    zoo.REGIMES.mkdir()
    fleet.train_one("unet-8-n32@256", "laptop", "cpu", tmp_path, float("inf"))
    for name in ("unet-8-n32", "unet-8-n32@64", "unet-8-n32@256"):
        path = str(tmp_path / f"{name}.safetensors")
        assert fleet.main(["add", path, "--made", "by a test", "--noises", "5"]) == 0
    return profiles.PROFILES["laptop"]


def test_what_was_trained_is_loaded_and_the_rest_is_missing(shipped):
    images = data.load("bundled")
    found = regimes.trained(shipped, images)
    assert list(found) == ["unet-8-n32", "unet-8-n32@64", "unet-8-n32@256"]
    assert [m.spec.images_seen for m in found.values()] == [128, 64, 256]
    small = replace(shipped, grid_noises=5)
    sheets = regimes.samples(found, small)
    again = {name: data.to_bytes(m.generate(models.BANK[:5])) for name, m in found.items()}
    for name in found:
        assert (again[name].short() - sheets[name].short()).abs().max() <= 1
    assert not torch.equal(sheets["unet-8-n32"], sheets["unet-8-n32@64"])


def test_sheets_without_weights_that_are_too_short_are_left_out_and_named(shipped, monkeypatch,
                                                                          capsys):
    images, load = data.load("bundled"), models.shipped_or_trained
    monkeypatch.setattr(models, "shipped_or_trained", lambda *asked: {
        name: replace(model, sheet_alone="@" in name) for name, model in load(*asked).items()})
    assert len(regimes.trained(replace(shipped, grid_noises=5), images)) == 3
    assert capsys.readouterr().out == ""
    assert list(regimes.trained(replace(shipped, grid_noises=6), images)) == ["unet-8-n32"]
    assert capsys.readouterr().out == (
        "left out, since their weights do not ship, only 5 images of each, and grid_noises is 6: "
        "unet-8-n32@64, unet-8-n32@256\n")


def test_a_snapshot_is_the_run_that_stopped_there(shipped):
    spec = recipes.regime_specs("laptop")["unet-8-n32@64"]
    for run in training.train(spec, spec.subset(data.load("bundled"))):
        pass
    tensors, _ = zoo.entries(zoo.REGIMES)["unet-8-n32@64"].load_weights()
    straight = zoo.halved(run.ema.network.state_dict())
    assert all(torch.equal(straight[k].float(), tensors[k].float()) for k in straight)


def test_a_cell_of_another_subset_is_refused(shipped):
    images = data.load("bundled")
    others = replace(images, pixels=images.pixels.flip(0))
    with pytest.raises(UserError, match="another subset of images.*fleet train unet-8-n32"):
        regimes.trained(shipped, others)


def test_a_cell_of_another_recipe_is_refused(shipped, monkeypatch):
    monkeypatch.setitem(recipes.GRIDS, "laptop",
                        replace(recipes.GRIDS["laptop"], learning_rate=1.0))
    with pytest.raises(UserError, match="another recipe"):
        regimes.trained(shipped, data.load("bundled"))


def test_a_damaged_cell_is_named_with_its_cure(shipped, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", zoo.REGIMES.parent)
    path = zoo.REGIMES / "unet-8-n32.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"unet-8-n32.safetensors is damaged.*git checkout"):
        regimes.trained(shipped, data.load("bundled"))


def test_what_was_not_trained_is_an_empty_table_and_a_panel_that_says_so(tmp_path):
    found = {name: m for name, m in GRID.items() if m.spec.half == 0 and "@" not in name}
    table, features = regimes.grid(found), {name: unit(0, 90) for name in found}
    gl = regimes.generalization(table, features, unit(0, 0, 0, 0), unit(0), 0.9)
    halves = regimes.across_halves(table, features, unit(0, 90), copies)
    time = regimes.over_training(table, features, gl, {}, copies)
    assert not len(halves) and not len(time) and {"images", "width", "score"} <= set(halves)
    figure = plots.scores_against({"halves": halves, "gl": gl, "time": time}, "width", columns=2)
    assert [t.get_text() for t in figure.axes[0].texts] == ["not trained yet"]
    assert [axis.get_visible() for axis in figure.axes] == [True, True, True, False]


def test_a_missing_size_breaks_the_curve():
    table = regimes.grid(GRID)
    gl = regimes.generalization(table, {name: unit(0, 90) for name in GRID},
                                unit(0, 0, 0, 0), unit(0), 0.9)
    figure = plots.scores_against({"GL": regimes.cells(gl)}, "width")
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    assert lines["width 16"].tolist() == [0.5, 0.5]
    assert lines["width 32"][0] == 0.5 and lines["width 32"][1] != lines["width 32"][1]
    bar, = [segment for drawn in figure.axes[0].collections if isinstance(drawn, LineCollection)
            for segment in drawn.get_segments()]
    alone = gl[(gl.width == 32) & (gl.images == 2) & ~gl.moment].iloc[0]
    assert bar[:, 1].tolist() == [alone.low, alone.high]  # a point without neighbours


def test_below_every_level_a_network_is_the_optimum_and_above_every_one_itself():
    images = data.load("bundled").first(4)
    exact = models.closed_forms(images, 64)["gaussian"]
    noise = models.BANK[:3]
    solver = exact.solver
    optimal = samplers.sample(models.closed_forms(images, 64)["optimal"].denoiser(), noise, solver)
    made = {(sigma, above): regimes.partly_optimal(exact, images, sigma, above)
            for sigma in (1e-6, 1e6) for above in (True, False)}
    for (sigma, above), model in made.items():
        if above == (sigma < 1):
            assert torch.equal(model.generate(noise), optimal)
        else:
            assert torch.allclose(model.generate(noise), exact.generate(noise), atol=1e-3)
    assert len({str(model.identity) for model in [exact, *made.values()]}) == 5


def test_the_levels_that_decide_are_those_of_the_fewest_images(monkeypatch):
    made = {"unet-8-n2": unit(0, 90), "unet-16-n2": unit(0, 180), "unet-32-n2": unit(0, 0)}
    monkeypatch.setattr(regimes, "partly_optimal",
                        lambda model, images, sigma, above: (model.name, sigma, above))
    monkeypatch.setattr(models, "samples", lambda asked, n: asked)
    monkeypatch.setattr(regimes.descriptors, "features", lambda describe, asked: unit(
        0, 90 if asked[1] == 1 else 180) if asked[2] else unit(180, 180))
    found = {name: replace(model, solver=samplers.Solver()) for name, model in GRID.items()}
    describe = regimes.Descriptor("angle", 2, 0.9, None)
    table = regimes.deciding_levels(found, regimes.grid(found), data.load("bundled"), made,
                                    {2: unit(0, 90, 0)}, describe, 2, (1, 3))
    assert set(table.images) == {2} and set(table.sigma) == {1, 3, 80} and set(table.n) == {2}
    by = table[table.network == "below"].set_index(["pair", "sigma"]).score
    assert by["width 8"].tolist() == [1, 0.5, 1] and by["width 16"].tolist() == [1, 0.5, 0.5]
    assert by["8 / 16"].tolist() == [1, 1, 0.5]
    by = table[table.network == "above"].set_index(["pair", "sigma"]).score
    assert by["width 8"].tolist() == by["width 16"].tolist() == [0, 0, 1]
    alone = {name: replace(model, sheet_alone=True) for name, model in found.items()}
    none = regimes.deciding_levels(alone, regimes.grid(alone), data.load("bundled"), made, {},
                                   describe, 2)
    assert none.empty and plots.curves({"RP": none}, "pair", "sigma", "sigma", True)


def test_a_moment_of_another_panel_breaks_no_curve():
    def rows(*seen):
        return pd.DataFrame([(n, "width 8", 0.5) for n in seen], columns=["seen", "pair", "score"])

    panels = {"64": rows(1, 4, 8), "1024": rows(1, 4, 16)}
    for axis in plots.scores_against(panels, "pair", x="seen").axes:
        line, = axis.get_lines()
        assert line.get_ydata().tolist() == [0.5] * 3


def test_a_control_is_dashed_in_the_colour_of_what_it_controls():
    rp = pd.DataFrame([(n, "8 / 16", 0.9, 0.8, 1.0, 9, 0.0) for n in (2, 4)],
                      columns=["images", "pair", "score", "low", "high", "n", "shuffled"])
    gaussian = pd.DataFrame([(n, w, 0.3, 0.2, 0.4, 9, 0.0, 5.0) for w in (8, 16) for n in (2, 4)],
                            columns=["images", "width", *rp.columns[2:], "distance"])
    both = regimes.beside_control(rp, gaussian)
    assert len(both) == 6 and list(both) == list(rp)
    gl = pd.concat([rp.assign(pair=f"width {width}") for width in (8, 16)])
    left, right = plots.scores_against({"RP": both, "GL": gl}, "pair").axes
    drawn = {line.get_label(): line for axis in (left, right) for line in axis.get_lines()}
    colours = {name: line.get_color() for name, line in drawn.items()}
    assert colours["Gaussian / width 8"] == colours["width 8"] != colours["width 16"]
    assert colours["8 / 16"] not in (colours["width 8"], colours["width 16"])
    dashed = {name for name, line in drawn.items() if line.get_linestyle() == "--"}
    assert dashed == {"Gaussian / width 8", "Gaussian / width 16"}


def test_distances_are_drawn_by_images_asked_about_and_form():
    rows = [(what, n, form, sigma, 0.1, 0.2) for what in ("held-out", "training") for n in (4, 32)
            for form in ("optimal", "gaussian", "local") for sigma in (0.1, 1.0)]
    table = pd.DataFrame(rows, columns=["asked about", "images", "form", "sigma", "distance",
                                        "answer"])
    axes = plots.distances_against_sigma(table).axes
    assert [axis.get_title() for axis in axes[:4]] == [
        "Optimal denoiser, held-out", "Gaussian denoiser, held-out", "Local denoiser, held-out",
        "Optimal denoiser, training"]
    assert all(len({line.get_color() for line in axis.get_lines()}) == 3 for axis in axes)


def test_no_noise_to_show_is_a_mistake():
    with pytest.raises(UserError, match="at least one noise"):
        plots.sample_grid({"m": torch.zeros(0, 3, 32, 32, dtype=torch.uint8)}, columns=0)
    with pytest.raises(UserError, match="at least one noise"):
        plots.sample_grid({})


def test_an_interval_below_zero_is_inside_its_panel():
    gain = pd.DataFrame({"who": "ct", "x": [0, 1], "score": 0.05, "low": -0.2, "high": 0.2})
    rp = gain.assign(low=0.0)
    figure = plots.curves({"gain": gain, "RP": rp}, "who", "x", "x")
    (bottom, top), (zero, one) = (axis.get_ylim() for axis in figure.axes)
    assert bottom < -0.2 and top > 0.2 and -0.1 < zero < 0 < 1 < one < 1.1


def test_a_cosine_below_zero_is_inside_its_panel_too():
    table = pd.DataFrame({"pair": "8 / 16", "images": [2, 4], "score": -0.1, "low": -0.3,
                          "high": 0.1, "n": 4})
    figure = plots.scores_against({"even": table, "RP": table.assign(low=0.0)}, "pair")
    assert [axis.get_ylim()[0] < -0.3 for axis in figure.axes] == [True, False]


def test_what_does_not_depend_on_x_is_drawn_across_its_panel():
    table = pd.DataFrame({"who": "ct", "x": [0, 1], "score": 0.05})
    figure = plots.curves({"RP": table, "MAE": table}, "who", "x", "x",
                          levels={"MAE": {"Gaussian": 0.25}})
    across = [{line.get_ydata()[0] for line in axis.get_lines() if line.get_label() == "Gaussian"}
              for axis in figure.axes]
    assert across == [set(), {0.25}]
    assert "Gaussian" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_pairs_stand_where_their_score_and_their_control_put_them():
    features = {"a": unit(0, 0, 0, 0), "b": unit(0, 0, 90, 0), "control": unit(0, 90, 90, 90)}
    pairs = scores.pairwise(features, copies)
    beside = scores.beside_control(pairs[pairs.other != "control"], pairs[pairs.other == "control"])
    axis = plots.against_control({"RP": beside}, "it").axes[0]
    points = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()
              if line.get_linestyle() == "None"}
    assert points == {"more than either with it: 0": [], "less than either with it: 0": [],
                      "less than one with it: 0": [],
                      "intervals overlap: 1": [[0.5, 0.75]]}  # of .25 and .5


def test_pairs_are_counted_beside_their_control_as_the_claim_counts_them():
    rows = [("a", "b", 0.9, 0.8), ("a", "c", 0.3, 0.2), ("b", "c", 0.7, 0.5), ("b", "d", 0.6, 0.5),
            ("d", "control", 0.9, 0.8),
            ("a", "control", 0.6, 0.5), ("b", "control", 0.6, 0.5), ("c", "control", 0.75, 0.6)]
    pairs = pd.DataFrame(rows, columns=["model", "other", "score", "low"])
    pairs = pairs.assign(high=2 * pairs.score - pairs.low, n=9)
    models, it = scores.among(pairs, "abcd"), scores.across(pairs, "abcd", ["control"])
    beside = scores.beside_control(models, it)
    assert beside.nearest.tolist() == [0.6, 0.75, 0.75, 0.9]
    axis = plots.against_control({"RP": beside}, "it").axes[0]
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {
        "more than either with it: 1", "less than either with it: 1", "less than one with it: 1",
        "intervals overlap: 1"}
    assert rules.more_than("RP", models, it, "it").verdict == (
        "in 1 of 4 pairs; the reverse in 1")


def test_references_are_grey_and_shades_go_from_dark_to_light():
    table = pd.DataFrame({"who": ["a", "Gaussian denoiser", "few", "many"], "x": 0, "score": 0.5})
    figure = plots.curves({"RP": table}, "who", "x", "x", shades=("few", "many"))
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["a"].get_color() == plots.MODEL_COLOURS[0]
    assert lines["Gaussian denoiser"].get_color() == "0.2"
    assert lines["Gaussian denoiser"].get_linestyle() == "--"
    few, many = (sum(to_rgb(lines[name].get_color())) for name in ("few", "many"))
    assert few < many


@pytest.mark.parametrize("counts, said", [((64, 64), " over 64 images"), ((8, 256),
                                          " over 8 to 256 images"), (None, "")])
def test_what_bands_are_stands_below_them(counts, said):
    table = pd.DataFrame({"who": "a", "x": [0, 1], "score": 0.5, "low": 0.4, "high": 0.6})
    table = table if counts is None else table.assign(n=counts)
    figure = plots.curves({"RP": table}, "who", "x", "x", over="images")
    assert figure.legends[0].get_title().get_text() == f"bands and bars: 95 % intervals{said}"
    figure = plots.curves({"RP": table[["who", "x", "score"]]}, "who", "x", "x")
    assert not figure.legends[0].get_title().get_text()


def test_every_bar_has_its_own_interval():
    rows = [(model, name, share, share - 0.1, share + 0.2) for model, name, share in
            (("a", "cat", 0.2), ("a", "dog", 0.4), ("b", "cat", 0.5), ("b", "dog", 0.3))]
    table = pd.DataFrame(rows, columns=["model", "class", "share", "low", "high"])
    axis = plots.shares(table, "class", "model", 0.1, "share").axes[0]
    heights = {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height()
               for bars in axis.containers for bar in bars}
    drawn = [segment for lines in axis.collections for segment in lines.get_segments()]
    assert len(drawn) == len(heights) == 4
    for (x, low), (_, high) in drawn:
        share = heights[round(x, 6)]
        assert (low, high) == pytest.approx((share - 0.1, share + 0.2))


def test_more_curves_than_colours_are_all_drawn_and_told_apart():
    rows = pd.DataFrame([(n, f"curve {k}", k / 10, k / 10, k / 10) for k in range(9)
                         for n in (4, 8)], columns=["images", "pair", "score", "low", "high"])
    axis = plots.scores_against({"RP": rows}, "pair").axes[0]
    lines = [line for line in axis.lines if len(line.get_xdata())]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 9
