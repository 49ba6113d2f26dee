"""The inverse problems of section 4: tables against cases with a known answer, sheets, claims."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from paper_utils import artifacts, data, descriptors, fleet, models, profiles, rules, scores, zoo
from paper_utils import reconstructions as inverse
from paper_utils.denoisers import GaussianDenoiser
from paper_utils.descriptors import Descriptor
from paper_utils.errors import UserError
from paper_utils.models import BANK
from paper_utils.reconstructions import MAIN, PROBLEMS, TASKS, Problem
from paper_utils.samplers import Solver
from paper_utils.training import Spec

pytestmark = pytest.mark.usefixtures("cache")

TINY = Spec("tiny", "unet", dict(width=8, channel_mult=(1,), blocks=1, attention=(), patch=4),
            images=16)
copies = scores.copies(0.6)
GROUPS = {"U-Net": ["a", "b"], "transformer": ["c", "d"]}
PIXELS = Descriptor("pixels", 3072, 0.9, lambda x: normalize(x.flatten(1).float() - 127.5))


@pytest.fixture
def model(random_model):
    return random_model(TINY, 0.1)


@pytest.fixture(scope="module")
def truth():
    return data.load("bundled", "test").first(6)


def directions(n: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, 64, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_problems_have_names_of_their_own_and_all_tasks_a_control():
    names = [problem.name for problem in PROBLEMS]
    assert len(set(names)) == len(names)
    assert {replace(p, other_noise=True) for p in TASKS} <= set(PROBLEMS)


def test_the_step_size_has_the_same_sum_over_any_number_of_steps():
    problem = Problem(MAIN.task, 3.0)
    for steps in (10, 30, 300):
        assert steps * problem.guidance(steps).zeta == pytest.approx(30 * 3.0)
        assert problem.guidance(steps).solver.steps == steps


def test_algorithm_1_is_asked_with_settings_of_its_own_and_no_defaults():
    guidance = Problem(MAIN.task, 3.0).guidance(15)
    assert guidance == inverse.Guidance(6.0, Solver("dpm-solver-1", 15, "karras", 0.01, 80),
                                        "variance-preserving", "norm", False, None)
    assert [problem.zeta for problem in inverse.ZETAS] == [0.5, 1, 2, 4, 8]


def test_a_step_size_that_diverges_is_named_as_the_problem_has_it(model, truth):
    with pytest.raises(inverse.Diverged, match="tiny, box.*6 steps: .*; try zeta 1e.11, clip=True"):
        inverse.restoring(model, replace(MAIN, zeta=4e11), truth, 6).generate(BANK[:6])


def test_noise_k_restores_image_k_whatever_else_is_restored(model, truth):
    one = inverse.restoring(model, MAIN, truth, 3)
    whole, first = one.generate(BANK[:6]), one.generate(BANK[:2])
    assert torch.equal(whole[:2], first)
    assert not torch.equal(one.generate(BANK[1:3]), whole[1:3])  # another image, same noise


def test_what_was_restored_is_named_by_all_that_decides_it(model, truth):
    ways = [inverse.restoring(model, MAIN, truth, 3), inverse.restoring(model, MAIN, truth, 4),
            inverse.restoring(model, replace(MAIN, zeta=1.0), truth, 3),
            inverse.restoring(model, TASKS[0], truth, 3),
            inverse.restoring(model, MAIN, truth.first(5), 3),
            inverse.restoring(model, MAIN, truth, 3, ancestral=0)]
    assert len({artifacts.path_of("samples", {"model": way.identity}) for way in ways}) == 6


def test_block_scores_count_the_pairs_of_each_block():
    same, other = directions(8), directions(8, 1)
    half = torch.cat([same[:4], other[4:]])
    features = {"a": same, "b": same, "c": half, "d": other}
    control = inverse.with_gaussian(features | {"gaussian": half}, GROUPS, copies)
    assert control.set_index("block").score.to_dict() == {
        "Gaussian / U-Nets": 0.5, "Gaussian / transformers": pytest.approx(0.75)}
    table = inverse.block_scores(features, GROUPS, copies, elsewhere={k: other for k in features})
    found = table.set_index("block")
    assert found.score["U-Nets"] == 1
    assert found.score["transformers"] == pytest.approx(0.5)  # c and d in the second half
    assert found.score["across"] == pytest.approx(0.25)              # c in the first half, d never
    assert (found["other images"] == 0).all()
    assert found["other noise"]["transformers"] == pytest.approx(0.5)
    assert found["other noise"]["U-Nets"] == 0
    gaps = inverse.family_gap(features, GROUPS, copies).set_index("block")
    assert gaps.difference["U-Nets"] == pytest.approx(0.75)
    frameworks = dict(a="vp", b="vp", c="v", d="f")
    apart = inverse.family_gap(features, GROUPS, copies, frameworks=frameworks)
    assert apart.block.tolist() == ["transformers"]  # the U-Nets are of one framework
    assert apart.difference.item() == pytest.approx(0.25) and apart.n.item() == 8
    assert gaps.difference["transformers"] == pytest.approx(0.25)


def test_chance_counts_the_pairs_whose_images_are_mixed():
    same = directions(1).expand(8, -1)  # one image for all noises
    table = inverse.block_scores(dict.fromkeys("abcd", same), GROUPS, copies)
    assert (table["other images"] == 1).all()


def test_pixel_gaps_are_of_the_pairs_of_each_block(truth):
    grey = torch.full_like(truth.pixels, 100)
    answers = {"a": grey, "b": grey + 3, "c": grey, "d": grey + 5}
    table = inverse.pixel_gap(TASKS[2], answers, GROUPS).set_index("block")
    assert table.score.to_dict() == pytest.approx(
        {"U-Nets": 3, "transformers": 5, "across": (0 + 5 + 3 + 2) / 4})
    assert table.farther["U-Nets"] == pytest.approx(-0.5) and table.n["across"] == 6
    assert table["other images"].tolist() == pytest.approx(table.score.tolist())  # all are grey
    assert table.farther["transformers"] == table["farther low"]["transformers"] == -2.5
    frameworks = dict(a="vp", b="vp", c="v", d="f")
    apart = inverse.pixel_gap(TASKS[2], answers, GROUPS, frameworks=frameworks)
    assert apart.block.tolist() == ["transformers", "across"]


def test_pixel_gaps_have_the_level_of_other_images(truth):
    table = inverse.pixel_gap(TASKS[2], dict.fromkeys("abcd", truth.pixels), GROUPS)
    gap = (truth.pixels.float() - truth.pixels.roll(3, 0).float()).square().flatten(1).mean(1)
    assert (table.score == 0).all()
    assert table["other images"].tolist() == pytest.approx([gap.sqrt().mean().item()] * 3)


def test_pixel_gaps_of_inpainting_are_of_lost_pixels(truth):
    kept = inverse.posed(MAIN, truth.pixels)[0].state.bool()
    grey = torch.full_like(truth.pixels, 100)
    answers = {"a": grey, "b": torch.where(kept, grey, grey + 8),
               "c": grey, "d": torch.where(kept, grey + 8, grey)}
    score = inverse.pixel_gap(MAIN, answers, GROUPS).set_index("block").score
    assert score["U-Nets"] == 8 and score["transformers"] == 0


def test_curves_have_every_problem_and_block_and_their_errors(truth):
    dark, groups = truth.pixels // 2, {"U-Net": ["a", "b"], "transformer": ["c", "d"]}
    names = ("a", "b", "c", "d", *inverse.CLOSED)
    problems = (MAIN, replace(MAIN, zeta=4.0))
    answers = {MAIN.name: dict.fromkeys(names, truth.pixels),
               problems[1].name: dict.fromkeys(names, truth.pixels) | {"c": dark, "d": dark}}
    features = descriptors.features(PIXELS, answers)
    found = inverse.curves(problems, lambda p: 10 * p.zeta, answers, features, truth, groups,
                           PIXELS)
    assert set(found) == {"RP", *inverse.QUANTITIES}
    rp = found["RP"].set_index(["x", "who"]).score
    same = (scores.copies(0.9)(PIXELS(truth.pixels), PIXELS(dark))).double().mean().item()
    assert rp[20, "across"] == rp[40, "U-Nets"] == 1 and same < 1
    assert rp[40, "across"] == rp[40, "Gaussian / transformers"] == pytest.approx(same)
    psnr = found["PSNR, dB"].set_index(["x", "who"])
    assert psnr.score[40, "transformers"] == pytest.approx(
        inverse.psnr(dark, truth.pixels).mean().item())
    assert psnr.score[40, "Optimal denoiser"] == psnr.score[20, "transformers"] > 70
    assert (psnr.n == 6).all()
    assert "Optimal denoiser" not in set(inverse.drawn(found)[inverse.AXES["residual"]].who)


def test_errors_of_the_truth_are_none_and_its_residual_is_one(truth):
    problem = Problem(inverse.Task("random-inpainting", 0.5, sigma=0.5))
    worse = (truth.pixels.short() + 51).clamp(0, 255).byte()
    answers = {"truth": truth.pixels, "worse": worse}
    each = {name: [name] for name in answers}
    table = inverse.errors(problem, answers, descriptors.features(PIXELS, answers), truth.pixels,
                           PIXELS(truth.pixels), each).set_index(["who", "quantity"])
    score = table.score
    assert score["truth", "distance"] == pytest.approx(0, abs=1e-5)
    assert score["truth", "residual"] == pytest.approx(1, abs=0.03)
    assert score["worse", "residual"] > 1.05 and score["worse", "distance"] > 0.01
    mse = (worse.double() - truth.pixels.double()).square().flatten(1).mean(1)
    psnr = (20 * (255 / mse.sqrt()).log10()).mean().item()
    assert score["worse", "PSNR, dB"] == pytest.approx(psnr, abs=1e-4)


def test_the_residual_is_of_what_was_measured_and_not_of_the_noise_on_lost_pixels(truth):
    problem = Problem(inverse.Task("random-inpainting", 0.9))
    kept = inverse.posed(problem, truth.pixels)[0].state.bool()
    wrong = (truth.pixels.short() + 26).clamp(0, 255).byte()  # by four times the noise
    answers = {"truth": truth.pixels, "lost": torch.where(kept, truth.pixels, wrong),
               "kept": torch.where(kept, wrong, truth.pixels)}
    table = inverse.errors(problem, answers, descriptors.features(PIXELS, answers), truth.pixels,
                           PIXELS(truth.pixels), {name: [name] for name in answers})
    score = table[table.quantity == "residual"].set_index("who").score
    assert score["lost"] == score["truth"] == pytest.approx(1, abs=0.1) and score["kept"] > 3


def test_errors_of_a_group_are_the_mean_of_its_models(truth):
    dark, bright = truth.pixels // 2, 255 - (255 - truth.pixels) // 2
    answers = {"a": dark, "b": bright}
    features = descriptors.features(PIXELS, answers)
    table = partial(inverse.errors, MAIN, answers, features, truth.pixels,
                    PIXELS(truth.pixels))
    each = table({name: [name] for name in answers}).set_index(["who", "quantity"])
    both = table({"all": ["a", "b"]})
    for row in both.itertuples():
        mean = (each.score["a", row.quantity] + each.score["b", row.quantity]) / 2
        assert row.who == "all" and row.score == pytest.approx(mean)
        assert row.low <= row.score <= row.high


# --- what is shown of them ----------------------------------------------------------------------

def test_measurements_are_shown_at_the_size_of_the_images(truth):
    for problem in TASKS:
        shown = inverse.shown_measurement(problem, truth.pixels)
        assert shown.shape == truth.pixels.shape and shown.dtype == torch.uint8
    answers = {p.name: {"m": truth.pixels} for p in TASKS}
    rows = inverse.tour(["m"], answers, truth, 3)
    assert list(rows) == ["truth", "measured", "m"]
    assert all(row.shape == (len(TASKS), 3, 32, 32) for row in rows.values())
    assert torch.equal(rows["m"][0], truth.pixels[3])


def test_energies_are_those_of_the_gaussian_that_is_given(model, truth):
    narrow, wide = (GaussianDenoiser(torch.zeros(3, 32, 32), torch.full((3072,), value).double(),
                                     torch.eye(3072)) for value in (0.01, 100.0))
    one, other, again = (inverse.energies(model, MAIN, truth, g, 3)["median"].tolist()
                         for g in (narrow, wide, narrow))
    assert one == again and all(a > b for a, b in zip(one, other))


def test_energies_are_those_of_the_noises_that_every_model_shares(model, truth, monkeypatch):
    seen, run = [], inverse.inverse.dps
    monkeypatch.setattr(inverse.inverse, "dps", lambda denoiser, noise, *rest: (
        seen.append(noise) or run(denoiser, noise, *rest)))
    unit = GaussianDenoiser(torch.zeros(3, 32, 32), torch.ones(3072).double(), torch.eye(3072))
    inverse.energies(model, MAIN, truth, unit, 3)
    assert torch.equal(seen[0], BANK[:6].double())
    found = inverse.energies_of_images(truth, unit, 3)
    for row in found.itertuples():
        noisy = data.to_unit(truth.pixels).double() + row.sigma * BANK[:6].double()
        expected = noisy.square().flatten(1).mean(1) / (1 + row.sigma**2)
        assert row.median == pytest.approx(expected.quantile(0.5).item())


@pytest.mark.parametrize("image", [-1, 6])
def test_an_image_that_is_not_measured_is_refused(image, truth):
    with pytest.raises(UserError, match="choose 0 to 5"):
        inverse.check_shown(image, truth)


def test_stochastic_runs_of_one_model_differ_and_are_scored_by_what_they_share(model, truth):
    runs = inverse.ancestral_runs({"tiny": model}, truth, 3)
    assert not torch.equal(runs["tiny", 0], runs["tiny", 1])
    a, b = directions(8), directions(8, 1)
    table = inverse.with_ancestral_noise(
        {"x": a, "y": a}, {("x", 0): a, ("y", 0): a, ("x", 1): b, ("y", 1): b}, copies)
    assert dict(zip(table.runs, table.score)) == {
        "two models": 1, "two models, same fresh noise": 1, "two models, other fresh noise": 0,
        "one model, other fresh noise": 0}


def test_every_solver_is_compared_at_about_the_same_evaluations(model, truth):
    table = inverse.solvers(model, truth, PIXELS, 12, Problem(MAIN.task, 0.2))
    assert table.solver.tolist() == ["dpm-solver-1", "dpm-solver-2", "heun", "dpm-solver-3"]
    assert table.evaluations.between(10, 12).all()
    assert table["RP with dpm-solver-1"][0] == 1


# --- sheets -------------------------------------------------------------------------------------

@pytest.fixture
def shelf(tmp_path, monkeypatch, model):
    """A zoo with one sheet of the model, six images, made as `fleet restored` does."""
    monkeypatch.setattr(zoo, "INVERSE", tmp_path / "inverse")
    monkeypatch.setattr(inverse, "PROBLEMS", (MAIN, replace(MAIN, zeta=1.0)))
    images = torch.arange(12, dtype=torch.uint8).view(6, 2, 1, 1, 1).expand(-1, -1, 3, 32, 32)
    sizes = profiles.get("laptop", measured=6, guided_steps=2)
    truth = data.load("bundled", "test").first(6)
    zoo.add("tiny", "restored", images, BANK, "here", folder=zoo.INVERSE, start="weights",
            problems=inverse.question(truth, 2))
    return sizes, truth, images


def test_the_sheet_answers_the_problems_it_was_made_for(shelf, model):
    sizes, truth, images = shelf
    found = inverse.restored({"tiny": model}, inverse.PROBLEMS, truth, sizes)
    for k, problem in enumerate(inverse.PROBLEMS):
        assert torch.equal(found[problem.name]["tiny"], images[:, k])


def test_other_sizes_are_restored_here(shelf, model):
    sizes, truth, images = shelf
    others = data.load("bundled").first(6)
    for changed, some in ((replace(sizes, guided_steps=3), truth), (sizes, others)):
        found = inverse.restored({"tiny": model}, [MAIN], some, changed)[MAIN.name]["tiny"]
        again = inverse.restoring(model, MAIN, some, changed.guided_steps)
        assert torch.equal(found, data.to_bytes(again.generate(BANK[:len(some)])))


def test_a_sheet_answers_for_the_first_of_its_images(shelf, model, monkeypatch):
    sizes, truth, images = shelf
    monkeypatch.setattr(inverse, "held_out", lambda profile: truth.first(profile.measured))
    found = inverse.restored({"tiny": model}, [MAIN], truth.first(4), replace(sizes, measured=4))
    assert torch.equal(found[MAIN.name]["tiny"], images[:4, 0])


def test_a_sheet_is_of_all_settings_of_algorithm_1(truth, monkeypatch):
    asked = {inverse.question(truth, 2), inverse.question(truth, 3),
             inverse.question(truth.first(5), 2)}
    monkeypatch.setattr(inverse.inverse, "BATCH", 8)
    asked.add(inverse.question(truth, 2))
    usual = Problem.guidance
    monkeypatch.setattr(Problem, "guidance", lambda self, steps: usual(self, steps, clip=True))
    asked.add(inverse.question(truth, 2))
    monkeypatch.setattr(inverse, "PROBLEMS", (MAIN,))
    asked.add(inverse.question(truth, 2))
    assert len(asked) == 6


def test_a_sheet_of_other_weights_is_refused(shelf, model):
    sizes, truth, _ = shelf
    stranger = replace(model, identity=model.identity | {"weights": "others"})
    with pytest.raises(UserError, match="made from other weights of tiny.*fleet restored tiny"):
        inverse.restored({"tiny": stranger}, [MAIN], truth, sizes)


def test_fleet_makes_the_sheet(tmp_path, monkeypatch, model):
    monkeypatch.setattr(zoo, "INVERSE", tmp_path / "inverse")
    monkeypatch.setattr(inverse, "PROBLEMS", (MAIN, replace(MAIN, other_noise=True)))
    monkeypatch.setattr(models, "shipped", lambda name: model)
    small = replace(profiles.PROFILES["laptop"], dataset="bundled", measured=3, guided_steps=2,
                    families=("tiny",))
    monkeypatch.setitem(profiles.PROFILES, "laptop", small)
    assert fleet.main(["restored", "tiny", "--made", "in a test"]) == 0
    truth = inverse.held_out(small)
    found = inverse.restored({"tiny": model}, inverse.PROBLEMS, truth, small)
    row = zoo.entry("tiny", zoo.INVERSE)
    assert (row.classes, row.noises, row.start) == (2, 3, "weights")
    again = inverse.restoring(model, MAIN, truth, 2)
    assert torch.equal(found[MAIN.name]["tiny"], data.to_bytes(again.generate(BANK[:3])))
    other = again.generate(BANK[inverse.ELSEWHERE:inverse.ELSEWHERE + 3])
    assert torch.equal(found[inverse.PROBLEMS[1].name]["tiny"], data.to_bytes(other))
    assert fleet.main(["restored", "tinny", "--made", "in a test"]) == 2


def test_the_shipped_sheets_are_of_the_shipped_weights_and_all_models():
    rows, shelf = zoo.entries(zoo.INVERSE), zoo.entries()
    laptop = profiles.get("laptop")
    assert set(rows) == {*laptop.families, *inverse.CLOSED}
    for name, row in rows.items():
        assert row.start == (shelf[name].weights_sha256 if name in laptop.families else "")
        assert (row.noises, row.classes) == (laptop.measured, len(PROBLEMS))
    truth = data.load("bundled", "test").first(laptop.measured)  # the first of CIFAR-10
    asked = inverse.question(truth, laptop.guided_steps)
    assert {row.problems for row in rows.values()} == {asked}


# --- claims -------------------------------------------------------------------------------------

def gaps(*lows: float) -> pd.DataFrame:
    return pd.DataFrame([(f"task {k // 2}", inverse.BLOCKS[k % 2], low + 0.05, low, low + 0.1)
                         for k, low in enumerate(lows)],
                        columns=["task", "block", "difference", "low", "high"])


def blocks(score: float, other: float) -> pd.DataFrame:
    more = score - other
    return pd.DataFrame([("task 0", block, score, score - 0.1, score + 0.1, 0.0, other, more,
                          more - 0.1, more + 0.1, 64) for block in inverse.BLOCKS],
                        columns=["task", "block", "score", "low", "high", "other images",
                                 "other noise", "more", "more low", "more high", "n"])


@pytest.mark.parametrize("lows, verdict", [
    ((0.2, 0.3, 0.11, 0.4), "reproduced"),
    ((0.2, 0.3, 0.05, 0.4), "partly: lower across on 2 of 2 tasks, by more than 0.1 on 1"),
    ((0.2, 0.09, 0.05, -0.4),
     "not reproduced: lower across on 1 of 2 tasks, by more than 0.1 on none"),
    ((0.2, -0.1, 0.11, 0.4), "partly: lower across on 1 of 2 tasks, by more than 0.1 on 1"),
    ((-0.2, 0.3, 0.2, -0.1),
     "not reproduced: lower across on 0 of 2 tasks, by more than 0.1 on none")])
def test_families_differ_where_both_families_are_above(lows, verdict):
    assert rules.families_differ(gaps(*lows), blocks(0.5, 0.1)).verdict == verdict


@pytest.mark.parametrize("lows, verdict", [
    ((0.2, 0.3, 0.01, 0.4), "yes"), ((0.2, -0.1, 0.05, 0.4), "on 1 of 2 problems"),
    ((), "not decided: no such pairs")])
def test_families_of_different_frameworks(lows, verdict):
    table = gaps(*lows).rename(columns={"task": "problem"})
    assert rules.families_differ_apart(table).verdict == verdict


def test_the_noise_decides_where_other_noises_give_less():
    assert rules.noise_decides(blocks(0.5, 0.1)).verdict == "yes"
    assert rules.noise_decides(blocks(0.5, 0.45)).verdict.startswith("at 0 of 3")


def step_sizes(strong_across: float, strong_within: float) -> pd.DataFrame:
    rows = [(0.5, block, 0.9, 0.85, 0.95) for block in inverse.BLOCKS]
    rows += [(8.0, block, s, s - 0.05, s + 0.05) for block, s in zip(
        inverse.BLOCKS, (strong_within, strong_within, strong_across))]
    rows += [(x, "Gaussian / U-Nets", s, s, s) for x, s in ((0.5, 1.0), (8.0, 0.0))]  # the control
    return pd.DataFrame(rows, columns=["x", "who", "score", "low", "high"])


@pytest.mark.parametrize("across, within, verdict", [
    (0.2, 0.8, "yes"), (0.9, 0.9, "no"), (0.5, 0.2, "it falls, but not more than inside")])
def test_the_gap_grows_where_only_across_falls(across, within, verdict):
    assert rules.gap_grows(step_sizes(across, within)).verdict == verdict


def energy(low: float) -> pd.DataFrame:
    return pd.DataFrame({"sigma": [80.0, 1.0, 0.1], "median": low + 0.1, "low": low,
                         "high": low + 0.2})


def test_the_iterate_leaves_the_distribution_where_it_is_above_real_images():
    real, inside, outside = energy(0.9), energy(0.95), energy(1.2)
    claim = rules.leaves_the_distribution(
        {"a": {0.0: inside, 8.0: outside}, "b": {0.0: inside, 8.0: outside}}, real)
    assert claim.verdict == "reproduced" and "zeta 8 at 100%" in claim.measured
    usual = rules.leaves_the_distribution({"a": {0.0: inside, 2.0: inside, 8.0: outside}}, real)
    assert usual.verdict == "partly: only at zeta 8"
    larger = rules.leaves_the_distribution(
        {"a": {0.0: inside, 2.0: inside, 4.0: outside, 8.0: outside}}, real)
    assert larger.verdict == "partly: only at zeta 4 and 8"
    some = rules.leaves_the_distribution(
        {"a": {0.0: inside, 8.0: outside}, "b": {0.0: inside, 8.0: inside}}, real)
    assert some.verdict == "partly: for some models"
    always = rules.leaves_the_distribution({"a": {0.0: outside, 8.0: outside}}, real)
    assert always.verdict.startswith("not decided")


def test_what_determinism_buys():
    table = pd.DataFrame([("deterministic", "two models", 0.8, 0.7, 0.9, 32),
                          ("stochastic", "two models, same fresh noise", 0.8, 0.7, 0.9, 32),
                          ("stochastic", "one model, other fresh noise", 0.2, 0.1, 0.3, 32)],
                         columns=["solver", "runs", "score", "low", "high", "n"])
    assert rules.determinism(table).verdict == "yes"
    table.loc[2, ["low", "high"]] = (0.65, 0.95)
    assert rules.determinism(table).verdict == "no"


def test_quartiles_have_their_names():
    values = torch.arange(5.0)[None].expand(2, 5)
    found = inverse._quartiles(torch.tensor([2.0, 1.0]), values)
    assert found.low.tolist() == [1, 1] and found["median"].tolist() == [2, 2]
    assert found.high.tolist() == [3, 3]
