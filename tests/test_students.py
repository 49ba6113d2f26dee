"""Distilled students: their runs, tables on known cases, and what a solver of other steps says."""

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paper_utils import data, descriptors, models, profiles, recipes, scores, students, zoo
from paper_utils.errors import UserError
from paper_utils.models import BANK, Model
from paper_utils.noise import successor
from paper_utils.samplers import Solver, cosine_sigmas, sample_gaussian
from paper_utils.students import TEACHER

SMOKE = profiles.get("smoke")
ONE, TWO = torch.eye(80).split(40)  # 40 noises whose features are alike in no two places
copies = scores.copies(0.5)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "cache"))
    models._warn_once.cache_clear()


@pytest.fixture(scope="module")
def found(random_model):
    made = {name: random_model(spec, 0.1)
            for name, spec in recipes.distillation_specs("smoke").items()}
    return {name: replace(model, identity=model.identity | {"weights": name})
            for name, model in made.items()}


@pytest.fixture(scope="module")
def photos():
    return data.load("bundled", "test").pixels[:8]


def fake(name: str, sampler: str = "ddim", steps: int = 1, evaluations: int = 1,
         family: str = "U-Net", generate=lambda noise, title="": noise) -> Model:
    return Model(name, family, "", "", Solver(sampler, steps), evaluations, 0, 1, 1, {"fake": name},
                 generate)


def mixed(k: int) -> torch.Tensor:
    """Agrees with ONE on the first k of 40 noises and with TWO on the others."""
    return torch.cat([ONE[:k], TWO[k:]])


# --- runs ---------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("error")
def test_the_runs_of_everything_that_was_distilled(found):
    table = students.table_of_runs(students.runs(found, SMOKE))
    few = [row for name in ("cd", "ct", "ict")
           for row in ((name, name, 1, 1), (f"{name} 2", name, 2, 2), (f"{name} 4", name, 4, 4))]
    assert list(table.itertuples(index=False, name=None)) == [
        ("teacher", "teacher", 18, 35),
        *((f"teacher, DDIM {n}", "teacher, DDIM", n, n) for n in (8, 4, 2, 1)),
        *((f"teacher, DPM-Solver++ {n}", "teacher, DPM-Solver++", n, n) for n in (2, 4, 8)),
        *((f"progressive-{n}", "progressive", n, n) for n in (4, 2, 1)), *few]


@pytest.mark.parametrize("missing, gone", [
    ("progressive-1", ["progressive-1"]), ("cd", ["cd", "cd 2", "cd 4"]),
    ("teacher", ["teacher", *(f"teacher, DDIM {n}" for n in (8, 4, 2, 1)),
                 *(f"teacher, DPM-Solver++ {n}" for n in (2, 4, 8))])])
def test_a_model_that_is_missing_has_no_runs(found, missing, gone):
    fewer = {name: model for name, model in found.items() if name != missing}
    whole = list(students.runs(found, SMOKE))
    assert list(students.runs(fewer, SMOKE)) == [name for name in whole if name not in gone]


@pytest.mark.parametrize("run, model", [("teacher, DDIM 1", "teacher"), ("cd", "cd"),
                                        ("progressive-1", "progressive-1")])
def test_one_step_is_one_answer_to_the_largest_noise(found, run, model):
    noise = BANK[:2]
    with torch.no_grad():
        answer = found[model].denoiser()(80 * noise.double(), 80.0).float()
    torch.testing.assert_close(students.runs(found, SMOKE)[run].generate(noise), answer)


def test_every_run_has_samples_of_its_own(found):
    made = students.runs(found, SMOKE)
    images = students.samples(made, replace(SMOKE, grid_noises=2))
    assert list(images) == list(made)
    assert {(rows.dtype, rows.shape) for rows in images.values()} == {(torch.uint8, (2, 3, 32, 32))}
    assert len({rows.numpy().tobytes() for rows in images.values()}) == len(made)


def test_a_table_of_made_up_runs():
    made = {"teacher": fake("teacher", "heun", 18, 35),
            "teacher, DDIM 32": fake("t", "ddim", 32, 32),
            "progressive-16": fake("p", "ddim", 16, 16),
            "ct 4": fake("c", "consistency", 4, 4), "ict": fake("i", "consistency", 1),
            "my-model-2": fake("m", "heun", 18, 35)}
    assert students.table_of_runs(made).to_numpy().tolist() == [
        ["teacher", "teacher", 18, 35], ["teacher, DDIM 32", "teacher, DDIM", 32, 32],
        ["progressive-16", "progressive", 16, 16], ["ct 4", "ct", 4, 4], ["ict", "ict", 1, 1],
        ["my-model-2", "my-model-2", 18, 35]]


def test_partners_are_grouped_by_family():
    there = dict.fromkeys(("teacher", "progressive-1", "cd", "ict"), fake("a student"))
    unseen = {"edm": fake("edm"), "dit": fake("dit", family="transformer"), "vp": fake("vp")}
    assert students.partners(there, unseen) == {
        "first teacher, Heun": ["teacher"], "other students": ["cd", "ict"],
        "U-Nets": ["edm", "vp"],
        "transformers": ["dit"], "Gaussian denoiser": ["gaussian"]}
    assert list(students.partners({TEACHER: fake("t")}, {"dit": unseen["dit"]})) == [
        "first teacher, Heun", "transformers", "Gaussian denoiser"]


def test_sheets_that_ship_are_read_and_others_made(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "DISTILLATION", tmp_path)
    sheet = torch.full((3, 3, 32, 32), 7, dtype=torch.uint8)
    zoo.add("ct", "diffusion", sheet, BANK, "by a test", folder=tmp_path)
    white = {name: fake(name, generate=lambda noise, title="": torch.ones_like(noise))
             for name in ("ct", "ict")}
    ships, live = replace(SMOKE, shipped=True, live=2), replace(SMOKE, live=2)
    levels = [{name: (len(rows), int(rows.min())) for name, rows in
               students.sheets(white, sizes).items()} for sizes in (ships, live)]
    assert levels == [{"ct": (2, 7), "ict": (2, 255)}, {"ct": (2, 255), "ict": (2, 255)}]


# --- agreement ----------------------------------------------------------------------------------

def test_agreement_with_the_teacher_has_a_row_for_every_other_run():
    table = students.table_of_runs({
        "cd 2": fake("c", "consistency", 2), "teacher": fake("t", "heun", 18),
        "cd": fake("c"), "teacher, DDIM 1": fake("t")})
    rows = {"teacher": ONE, "cd": mixed(20), "cd 2": mixed(30), "teacher, DDIM 1": mixed(10)}
    found = students.with_teacher(table, rows, copies)
    assert found.set_index(["series", "steps"]).score.to_dict() == {
        ("cd", 2): 0.75, ("cd", 1): 0.5, ("teacher, DDIM", 1): 0.25}
    assert (found.shuffled == 0).all() and (found.n == 40).all()


def test_the_taught_are_held_against_every_model_trained_without_the_teacher():
    rows = {"teacher": ONE, "cd": mixed(30), "ct": mixed(10), "a": mixed(20)}
    row, = students.over_untaught(rows, copies).itertuples()
    assert (row.model, row.against, row.difference) == ("cd", "a, teacher", 0.25)
    assert students.over_untaught({"teacher": ONE, "cd": ONE}, copies).empty


@pytest.mark.parametrize("missing", ["teacher", "cd"])
def test_agreement_with_the_teacher_names_the_run_that_is_missing(missing):
    table = students.table_of_runs({"teacher": fake("t", "heun", 18), "cd": fake("c")})
    rows = {name: ONE for name in ("teacher", "cd") if name != missing}
    with pytest.raises(UserError, match=f"needs the rows of {missing} too"):
        students.with_teacher(table, rows, copies)


def test_what_the_claims_need_is_asked_for_before_the_work(found):
    students.check(found)
    with pytest.raises(UserError, match="needs ct and teacher: train them first, or restore"):
        students.check({name: found[name] for name in found if name not in ("ct", TEACHER)})


def test_a_model_restarts_from_the_fresh_noise_of_consistency_models():
    gaussian = models.closed_forms(data.load("bundled").first(8), 16)["gaussian"]
    again, noise = students.restarted(gaussian), BANK[:2]
    assert list(again) == [1, 2, 4] and again[1] is gaussian
    assert [one.name for one in again.values()] == ["gaussian", "gaussian 2", "gaussian 4"]
    assert [one.evaluations for one in again.values()] == [35, 70, 140]
    assert len({str(one.identity) for one in again.values()}) == 3
    _, middle, _ = cosine_sigmas(2, 0.002, 80.0)
    u = gaussian.generate(noise) + middle.float() * successor(noise, 0)
    solver = replace(gaussian.solver, sigma_max=middle.item())
    expected = sample_gaussian(gaussian.denoiser(), u / middle, solver)
    torch.testing.assert_close(again[2].generate(noise), expected, rtol=1e-4, atol=1e-4)
    assert (expected - gaussian.generate(noise)).abs().mean() > 0.01


@pytest.mark.filterwarnings("error")
def test_a_network_restarts_by_its_own_solver(found):
    one = students.restarted(found[TEACHER])[2]
    assert one.name == "teacher 2" and one.evaluations == 70
    assert one.generate(BANK[:2]).shape == (2, 3, 32, 32)


def test_several_steps_are_compared_at_the_same_fresh_noise():
    rows = {"cd": ONE, "ct": mixed(20), "teacher": mixed(30), "gaussian": TWO,
            "cd 2": TWO, "ct 2": TWO, "teacher 2": mixed(10), "gaussian 2": ONE}
    found = students.with_fresh_noise(rows, copies).set_index(["what", "steps"])
    assert found.score.to_dict() == {
        ("each other", 1): 0.5, ("the teacher", 1): 0.75,
        ("Gaussian denoiser", 1): 0.25, ("the teacher's own image", 1): 0.75,
        ("teacher and Gaussian", 1): 0.25, ("teacher and Gaussian", 2): 0.25,
        ("each other", 2): 1.0, ("the teacher", 2): 0.75,
        ("Gaussian denoiser", 2): 0.0, ("the teacher's own image", 2): 0.25}
    assert (found.shuffled == 0).all() and (found.n == 40).all()


def test_every_two_models_are_compared_at_the_same_fresh_noise():
    rows = {"cd": ONE, "cd 2": ONE, "ct 2": mixed(20), "teacher 2": mixed(30), "gaussian 2": TWO,
            "teacher": TWO, "other 2": ONE}
    found = students.fresh_pairs(rows, copies)
    assert list(found) == [2, 4] and found[4].empty
    by = {(row.model, row.other): row.score for row in found[2].itertuples()}
    assert by == {("cd", "ct"): 0.5, ("cd", "teacher"): 0.75, ("cd", "gaussian"): 0.0,
                  ("ct", "teacher"): 0.75, ("ct", "gaussian"): 0.5, ("teacher", "gaussian"): 0.25}


def test_every_stage_is_held_against_the_stage_before():
    names = "progressive-1", "progressive-4", "cd 2", "progressive-2", "teacher, DDIM 8"
    table = students.table_of_runs({name: fake(name, "ddim", int(name[-1])) for name in names})
    rows = {"teacher, DDIM 8": ONE, "progressive-4": mixed(36), "progressive-2": mixed(10),
            "progressive-1": TWO, "a": ONE, "b": mixed(20)}
    found = students.down_the_stages(table, rows, {"strangers": ["a", "b"]}, copies)
    by = found.set_index(["partner", "steps"]).score
    assert by["the stage before"].to_dict() == {4: 0.9, 2: 0.35, 1: 0.75}
    assert by["strangers"].to_dict() == pytest.approx({4: 0.75, 2: 0.5, 1: 0.25})
    assert found.steps.tolist() == [4, 4, 2, 2, 1, 1]
    del rows["progressive-2"]
    fewer = students.down_the_stages(table[table.run != "progressive-2"], rows, {}, copies)
    assert fewer.steps.tolist() == [4]  # its teacher is missing: no other stands in for it


# --- the price ----------------------------------------------------------------------------------

def test_the_price_of_real_images_is_none(photos, monkeypatch):
    monkeypatch.setattr(students, "seconds_per_image", lambda model, n: model.evaluations / n)
    rng = torch.Generator().manual_seed(1)
    real = torch.randn(50, 4, generator=rng)
    made = {"ct": fake("ct"), "ct 2": fake("ct", "consistency", 2, 2)}
    images = {"ct": photos, "ct 2": students.low_pass(photos, 1.0)}
    features = {"ct": real, "ct 2": real + torch.tensor([3.0, 0, 4.0, 0])}
    found = students.price(students.table_of_runs(made), made, images, features, photos, real, 2)
    assert found.FD.tolist() == pytest.approx([0, 25], abs=1e-4)
    assert found.sharpness[0] == 1 and found.sharpness[1] < 0.5
    assert found["ms per image"].tolist() == [500, 1_000]


def test_slow_runs_do_not_count(monkeypatch):
    clock, taken = [0.0], iter([2.0, 9.0, 4.0, 100.0])  # the first of them warms up

    def generate(noise, title=""):
        clock[0] += next(taken)
        return noise

    monkeypatch.setattr(students, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert students.seconds_per_image(fake("steady", generate=generate), 8) == 0.5


def test_the_first_batch_warms_up_and_is_not_timed(monkeypatch):
    clock = [0.0, 100.0]  # now, and what the next call has to load

    def generate(noise, title=""):
        clock[0] += clock[1] + len(noise) / 2
        clock[1] = 0.0

    monkeypatch.setattr(students, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert students.seconds_per_image(fake("slow", generate=generate), 8) == 0.5


# --- low-pass filters ---------------------------------------------------------------------------

def blurred(images: torch.Tensor, width: float) -> np.ndarray:
    """By numpy: a Gaussian cut at four widths, the image mirrored in its outermost pixels."""
    reach = math.ceil(4 * width)
    kernel = np.exp(-(np.arange(-reach, reach + 1) / width) ** 2 / 2)
    rows = np.pad(images.double().numpy(), [(0, 0)] * 2 + [(reach, reach)] * 2, "reflect")
    for axis in (2, 3):
        rows = np.apply_along_axis(np.convolve, axis, rows, kernel / kernel.sum(), "valid")
    return rows


@pytest.mark.parametrize("width", students.WIDTHS[1:])
def test_the_filter_is_a_gaussian(width):
    noisy = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = students.low_pass(noisy, width)
    assert found.dtype == torch.uint8
    assert abs(found.numpy() - blurred(noisy, width)).max() < 1


def test_no_filter_leaves_images_as_they_are(photos):
    assert torch.equal(students.low_pass(photos, 0.0), photos)


@pytest.mark.parametrize("height", [0, 10, 100])
def test_sharpness_of_stripes_is_their_height(height):
    images = torch.full((2, 3, 32, 32), 128 - height, dtype=torch.uint8)  # the second stays plain
    images[0, ..., ::2] = 128 + height
    left = 0.014  # of the stripes, after the filter
    assert students.sharpness(images) == pytest.approx(height * (1 - left) / 2**0.5, rel=0.02)


def test_a_wider_filter_leaves_less_sharpness(photos):
    left = [students.sharpness(students.low_pass(photos, w)) for w in students.WIDTHS]
    assert left == sorted(left, reverse=True) and left[-1] < 0.25 * left[0]


@pytest.mark.parametrize("width", [0.45, 1.3])
def test_an_image_is_filtered_until_it_is_as_sharp_as_another(photos, width):
    """`photos` have room for it; what is no sharper than the other stays as it is."""
    other = students.low_pass(photos, width)
    found, plain = students.as_sharp(photos, students.sharpness(other))
    assert found == pytest.approx(width, abs=0.02)
    assert students.sharpness(plain) == pytest.approx(students.sharpness(other), rel=0.02)
    found, same = students.as_sharp(other, students.sharpness(photos))
    assert found == 0 and torch.equal(same, other)


def brightness(images: torch.Tensor) -> torch.Tensor:
    """As a descriptor: two images agree where they are equally bright, which no filter changes."""
    angle = 2 * (images.float().mean((1, 2, 3)) / 128).round()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_rp_with_other_models_is_held_against_sharpness_and_a_teacher_as_blurred(photos):
    """The student is its teacher blurred, three quarters of it in their own order."""
    describe = descriptors.Descriptor("brightness", 2, 0.9, brightness)
    flat = torch.tensor([0, 128, 255, 64], dtype=torch.uint8).repeat(10)[:, None, None, None]
    teacher = (flat.int() + torch.randint(-40, 41, (40, 3, 32, 32))).clamp(0, 255).byte()
    student = students.low_pass(teacher, 0.8)
    student[::4] = student[1::4]
    images = {TEACHER: teacher, "ct": student, "a": teacher.flip(3), "b": teacher.flip(2)}
    features = {name: brightness(rows) for name, rows in images.items()}
    table = students.by_sharpness(images, features, ["ct"], "ab", describe, photos, copies)
    mine = table[table.who == "teacher, low-passed"]
    assert mine.width.tolist() == list(students.WIDTHS)
    assert mine.sharpness.is_monotonic_decreasing and mine.sharpness.iloc[0] == pytest.approx(
        students.sharpness(teacher) / students.sharpness(photos))
    assert (mine.score == 1).all() and table.score.iloc[-1] == 0.75 and (table.n == 40).all()
    row, = students.beyond_blur(images, features, ["ct"], "ab", describe, copies).itertuples()
    assert (row.who, row.student, row.blurred, row.difference) == ("ct", 0.75, 1, -0.25)
    assert row.width == pytest.approx(0.8, abs=0.1) and row.low < -0.25 < row.high < 0
    sharper = images | {"ct": teacher}
    features |= {"ct": brightness(teacher)}
    row, = students.beyond_blur(sharper, features, ["ct"], "ab", describe, copies).itertuples()
    assert row.width == 0 and row.difference == 0


# --- another solver -----------------------------------------------------------------------------

@pytest.mark.parametrize("name, solver, words", [
    ("progressive-4", Solver("ddim", 2, "cosine"), "4 step.* of ddim .*, not for 2 of ddim"),
    ("progressive-4", Solver("ddim", 4, "karras"), "on 'cosine' .* not .* on 'karras'"),
    ("progressive-1", Solver("heun", 2, "cosine"), "1 step.* of ddim .*, not for 2 of heun"),
    ("teacher", Solver("consistency", 2, "cosine"), "is no consistency model"),
    ("progressive-4", Solver("ddim", 4, "cosine", sigma_max=40), "from 80, not .* from 40"),
    ("cd", Solver("heun", 2, "cosine"), "use the sampler 'consistency'"),
    ("ict", Solver("ddim", 4, "cosine"), "use the sampler 'consistency'")])
def test_steps_that_a_student_was_not_trained_for_are_told_once(found, name, solver, words):
    with pytest.warns(UserWarning, match=words) as caught:
        models.resolved(found[name], solver)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert str(caught[0].message).startswith(name)
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        models.resolved(found[name], solver)
    assert not again


def test_a_closed_form_is_resolved_on_the_cpu():
    gaussian = models.closed_forms(data.load("bundled").first(8), 16)["gaussian"]
    one = models.resolved(gaussian, Solver("ddim", 1))
    mean = data.load("bundled").first(8).pixels.float().mean(0) / 127.5 - 1
    assert (one.generate(BANK[:1])[0] - mean).abs().mean() < 0.4 and one.evaluations == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name, solver", [
    ("progressive-4", Solver("ddim", 4, "cosine")), ("progressive-2", Solver("euler", 2, "cosine")),
    ("cd", Solver("consistency", 2, "cosine")),
    ("ct", Solver("consistency", 4)), ("ict", Solver("heun", 1)),
    ("progressive-1", Solver("heun", 1)), ("teacher", Solver("ddim", 3))])
def test_steps_that_fit_are_not_remarked_upon(found, name, solver):
    model = models.resolved(found[name], solver)
    assert model.name == f"{name}, {model.solver}" and model.evaluations == solver.steps
    assert str(model.solver) == f"{solver.sampler}, {solver.steps} step" + "s" * (solver.steps > 1)
    same = solver == found[name].spec.solver
    assert (model.identity == found[name].identity) == same


def test_a_model_without_a_denoiser_is_refused(found):
    for model in (fake("gan"), replace(found["teacher"], classes=(0, 1))):
        with pytest.raises(UserError, match=f"{model.name} is not sampled by a solver") as failure:
            models.resolved(model, Solver("ddim", 2))
        assert "\n" not in str(failure.value)
