"""Distillation objectives against closed forms: Gaussian data, where every answer is known, and the
optimal denoiser of a few images."""

import math
import re
from dataclasses import replace

import pytest
import torch

from paper_utils import data, denoisers, distillation, models, networks, recipes, samplers
from paper_utils import training
from paper_utils.denoisers import GaussianDenoiser, OptimalDenoiser, Preconditioned, framework
from paper_utils.distillation import Batch, Consistency, Progressive, two_steps_in_one
from paper_utils.errors import UserError
from paper_utils.noise import successor
from paper_utils.samplers import Solver
from paper_utils.training import Spec

ONE = Solver("consistency", 1, "cosine")
VALUES, MEAN = torch.tensor([0.02, 0.1, 0.3, 0.6]), torch.tensor([0.3, -0.2, 0.0, 0.1])


def gaussian() -> GaussianDenoiser:
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=rng)).Q
    return GaussianDenoiser(MEAN.view(4, 1, 1), VALUES, basis)


def normal(*shape: int, seed: int = 3, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def student(kind: str, channels: int = 4, width: int = 64) -> Preconditioned:
    torch.manual_seed(1)
    return Preconditioned(networks.build("mlp", channels=channels, width=width, depth=2),
                          framework(kind))


def learn(one: Preconditioned, objective, draw, steps: int, size: int = 256,
          rate: float = 2e-3) -> Preconditioned:
    """Adam with a rate that falls to 0 in the second half; draw(size) -> clean points."""
    optimizer = torch.optim.Adam(one.parameters(), lr=rate)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, 2 * (steps - k) / steps)
        clean = draw(size)
        quantile = (torch.rand(()) + torch.arange(size) / size) % 1
        batch = Batch(clean, torch.randn_like(clean), quantile, None, k * size, k)
        loss = objective(one, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.follow(one, batch)
    return one.eval()


def points(size: int) -> torch.Tensor:
    return gaussian().points(torch.randn(size, 4))


def rms(difference: torch.Tensor) -> float:
    return difference.square().mean().sqrt().item()


# --- progressive distillation -------------------------------------------------------------------

def test_one_step_lands_where_two_of_ddim_do():
    teacher, sigmas = gaussian(), samplers.cosine_sigmas(8, 0, 80)
    u = sigmas[0] * normal(5, 4, 1, 1, dtype=torch.float64)
    for k in (0, 2, 4, 6):
        here, middle, there = sigmas[k:k + 3]
        target = two_steps_in_one(teacher, u, here, middle, there)
        *_, landed = samplers.SAMPLERS["ddim"](teacher, u / here, sigmas[k:k + 3])
        torch.testing.assert_close(samplers.toward(target, u, here, there), landed)


def test_the_target_is_the_formula_of_salimans_and_ho():
    """Algorithm 2 in their own terms: alpha, sigma of the VP state z = alpha u."""
    teacher, (here, middle, there) = gaussian(), torch.tensor([3.0, 1.1, 0.4]).double()
    u = 3 * normal(5, 4, 1, 1, dtype=torch.float64)
    alpha = lambda s: 1 / (1 + s**2).sqrt()
    noise = lambda s: s / (1 + s**2).sqrt()
    z = alpha(here) * u

    def ddim(z, t, s):
        x = teacher(z / alpha(t), t)
        return alpha(s) * x + noise(s) / noise(t) * (z - alpha(t) * x)

    after = ddim(ddim(z, here, middle), middle, there)
    ratio = noise(there) / noise(here)
    expected = (after - ratio * z) / (alpha(there) - ratio * alpha(here))
    torch.testing.assert_close(two_steps_in_one(teacher, u, here, middle, there), expected)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_student_of_a_gaussian_learns_the_two_step_map(steps):
    solver = Solver("ddim", steps, "cosine")
    one = learn(student("edm"), Progressive(gaussian(), solver), points, 600)
    noise = normal(256, 4, 1, 1)
    expected = samplers.sample(gaussian(), noise, replace(solver, steps=2 * steps))
    found = samplers.sample(one, noise, solver)
    before = samplers.sample(gaussian(), noise, solver)  # the teacher with as few steps
    assert rms(found - expected) < 0.05 and rms(before - expected) > 3 * rms(found - expected)


def test_the_weights_are_those_of_the_paper():
    sigma = torch.tensor([0.1, 1.0, 10.0])
    torch.testing.assert_close(distillation.WEIGHTS["truncated-snr"](sigma),
                               torch.tensor([100.0, 1.0, 1.0]))
    # |v - v'|^2 = (SNR + 1) |x0 - x0'|^2 with v = alpha eps - sigma' x0 of one z
    alpha, spread = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    v = lambda x0, z=0.7: (alpha * (z - alpha * x0) / spread - spread * x0)
    torch.testing.assert_close(distillation.WEIGHTS["snr+1"](sigma),
                               (v(0.3) - v(0.5)) ** 2 / (0.3 - 0.5) ** 2)


def test_the_steps_halve_down_to_one():
    assert distillation.halvings(32) == [16, 8, 4, 2, 1] and distillation.halvings(2) == [1]


@pytest.mark.parametrize("steps", [0, 1, 30, 48, -4, 2.0])
def test_steps_that_do_not_halve_are_refused(steps):
    with pytest.raises(UserError, match="power of two"):
        distillation.halvings(steps)


@pytest.mark.parametrize("solver", [Solver("ddim", 4, "karras"), Solver("heun", 4, "cosine")])
def test_levels_that_do_not_halve_are_refused(solver):
    with pytest.raises(UserError, match=r"use Solver\('ddim', steps, 'cosine'\)"):
        Progressive(gaussian(), solver)


def test_a_teacher_is_not_asked_where_it_was_not_trained():
    teacher = Preconditioned(networks.build("mlp", channels=4), denoisers.vp_discrete()).eval()
    Progressive(teacher, Solver("ddim", 32, "cosine"))
    with pytest.raises(UserError, match="trained at noise levels 0.01 to 157"):
        Progressive(teacher, Solver("ddim", 128, "cosine"))


@pytest.mark.parametrize("kind", ["vp", "v", "x0", "edm"])
def test_a_teacher_may_predict_anything(kind):
    """What the network predicts is no matter: the loss of a perfect student is 0."""
    teacher, solver = student(kind).eval(), Solver("ddim", 2, "cosine")
    teacher.network.leave.weight.data.normal_()
    exact = lambda u, sigma, labels=None: two_steps_in_one(
        teacher, u, sigma.view(-1, 1, 1, 1), *neighbours(sigma))
    levels = samplers.cosine_sigmas(4, 0, 80).float()

    def neighbours(sigma):
        k = (levels - sigma[:, None]).abs().argmin(1)
        return levels[k + 1].view(-1, 1, 1, 1), levels[k + 2].view(-1, 1, 1, 1)

    batch = Batch(normal(8, 4, 1, 1), normal(8, 4, 1, 1, seed=4), (torch.arange(8) + 0.5) / 8)
    with torch.no_grad():
        assert Progressive(teacher, solver)(exact, batch) < 1e-10
        assert Progressive(teacher, solver)(teacher, batch) > 0


# --- teachers -----------------------------------------------------------------------------------

def asked(kind: str, teacher, size: int, width: int):
    """The objective's loss on so many images of 4 x 2 x width."""
    one = student(f"edm{denoisers.CONSISTENCY}" if kind == "cd" else "edm", 8 * width)
    ask = lambda u, sigma, labels=None: one(u.reshape(len(u), -1, 1, 1), sigma).view_as(u)
    clean = normal(size, 4, 2, width)
    batch = Batch(clean, normal(*clean.shape, seed=4), (torch.arange(size) + 0.5) / size)
    with torch.no_grad():
        return distillation.objective(kind, one, Solver("ddim", 4, "cosine"), teacher)(ask, batch)


COLUMN = lambda u, sigma: u * .25 / (.25 + sigma.view(-1, 1, 1, 1)**2)
TEACHERS = {  # that take sigma for a number, or make another shape of it
    "broadcasts": lambda u, sigma: u * .25 / (.25 + sigma**2),
    "a number": lambda u, sigma: u * .25 / (.25 + float(sigma)**2),
    "no image": lambda u, sigma: COLUMN(u, sigma).mean((1, 2, 3), keepdim=True),
    "no tensor": lambda u, sigma: (COLUMN(u, sigma),)}


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("size, width", [(8, 8), (4, 8), (2, 2), (5, 1)])
@pytest.mark.parametrize("kind", ["progressive", "cd"])
def test_a_teacher_takes_a_noise_level_for_each_image(kind, size, width, teacher):
    with pytest.raises(UserError, match="its own level of sigma.*make sigma a column") as error:
        asked(kind, TEACHERS[teacher], size, width)
    assert "\n" not in str(error.value)
    assert asked(kind, COLUMN, size, width).isfinite()


@pytest.mark.parametrize("kind", ["progressive", "cd"])
@pytest.mark.parametrize("teacher, words", [
    (lambda: student("edm"), "the teacher: .* in training mode, with its dropout: call its eval"),
    (lambda: student("edm-consistency").eval(), "'edm-consistency', answers with ends of"),
    (lambda: models.closed_forms(data.load("bundled").first(8), 8)["gaussian"],
     "not Model: give its denoiser"),
    (lambda: lambda u: u, "the teacher: a denoiser takes u and sigma")])
def test_a_teacher_that_is_no_denoiser_is_refused_in_one_line(kind, teacher, words):
    with pytest.raises(UserError, match=words) as error:
        asked(kind, teacher(), 2, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind, options", [("progressive", {}), ("cd", {"decay": 0.0})])
def test_a_conditional_teacher_is_told_the_labels(kind, options):
    told, labels = [], torch.arange(8)
    teacher = lambda u, sigma, labels: told.append(labels.tolist()) or COLUMN(u, sigma)
    one = student("edm-consistency")
    ask = lambda u, sigma, labels: one(u, sigma)
    objective = distillation.objective(kind, one, Solver("ddim", 4, "cosine"), teacher, **options)
    objective(ask, Batch(points(8), normal(8, 4, 1, 1), (torch.arange(8) + 0.5) / 8, labels))
    assert told == [[0], [0, 0], [*range(8)], [*range(8)]]


def test_progressive_distillation_wants_a_teacher():
    objective = Progressive(None, Solver("ddim", 4, "cosine"))
    with pytest.raises(UserError, match="the teacher: .*not NoneType"):
        objective(student("edm"), Batch(points(2), normal(2, 4, 1, 1), torch.tensor([0.2, 0.7])))


# --- consistency --------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [*denoisers.FRAMEWORKS])
def test_the_boundary_condition_holds_whatever_the_network(kind):
    one = student(f"{kind}-consistency")
    for p in one.parameters():
        p.data.normal_()
    low = one.framework.sigma_min
    u = normal(3, 4, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(one(u, low), u)
    assert rms(one(u, 10 * low) - u) > 0


def test_a_consistency_student_begins_with_its_teachers_euler_step():
    teacher, one = student("edm"), student("edm-consistency")
    for a, b in zip(teacher.parameters(), one.parameters()):
        b.data = a.data.normal_()
    u, sigma = normal(3, 4, 1, 1, dtype=torch.float64), torch.tensor(5.0)
    step = samplers.toward(teacher(u, sigma), u, sigma, torch.tensor(0.002))
    torch.testing.assert_close(one(u, sigma), step)


def test_the_coefficients_for_edm_are_those_of_song_et_al():
    sigma, low, spread = torch.logspace(-2.69, 1.9, 200).double(), 0.002, 0.5
    skip, out, *_ = framework("edm-consistency").precondition(sigma)
    torch.testing.assert_close(out, spread * (sigma - low) / (sigma**2 + spread**2).sqrt())
    theirs = spread**2 / ((sigma - low) ** 2 + spread**2)
    assert (skip - theirs).abs().max() < low / (2 * spread)


@pytest.mark.parametrize("name, steps, options", [
    ("cd", 700, {}), ("icd", 700, dict(last=80, curriculum=700 * 256)),
    ("ct", 1500, dict(last=40, curriculum=1500 * 256, decay=0.0)),
    ("ict", 1000, dict(last=80, curriculum=1000 * 256))])
def test_a_student_of_a_gaussian_learns_its_consistency_function(name, steps, options):
    """The end of the exact flow, from all noise levels; data have a spread of 0.5."""
    teacher = gaussian() if name in distillation.FROM_A_TEACHER else None
    one = student("edm-consistency")
    objective = distillation.objective(name, one, ONE, teacher, **options)
    learn(one, objective, points, steps)
    for sigma in (80.0, 2.0, 0.5):
        u = points(256) + sigma * normal(256, 4, 1, 1)
        with torch.no_grad():
            assert rms(one(u, sigma) - gaussian().flow(u, sigma, 0.002)) < 0.1


def test_a_teacher_of_any_kind_is_distilled_as_the_module_says():
    """A closed form teaches, whose weights nothing could start from."""
    lines = re.findall(r"(?m)^    (loss.*)$", distillation.__doc__)
    one = student("edm")
    exec("\n".join(lines), vars(distillation) | {
        "student": one, "teacher": gaussian(), "clean": points(8)})
    assert len(lines) == 2 and all(p.grad is not None for p in one.parameters())


def test_a_perfect_student_has_no_loss_where_the_teachers_step_is_exact():
    """The consistency function of a point mass, whose trajectories are straight lines."""
    point = 0.3 * torch.ones(1, 4, 1, 1)
    teacher = lambda u, sigma, labels=None: point.expand_as(u)
    one = student("edm-consistency")
    objective = Consistency(one, teacher, first=18, last=18, solver="euler")
    exact = lambda u, sigma, labels=None: samplers.toward(
        point, u, sigma.view(-1, 1, 1, 1), torch.tensor(0.002))
    batch = Batch(point.expand(64, 4, 1, 1), normal(64, 4, 1, 1), (torch.arange(64) + 0.5) / 64)
    with torch.no_grad():
        assert objective(exact, batch) < 1e-9
        assert objective(one, batch) > 1e-6


def test_distillation_and_training_differ_in_the_lower_point_alone():
    """With the teacher of one point the solver's step is exactly x0 + s_n eps."""
    point = 0.3 * torch.ones(1, 4, 1, 1)
    one = student("edm-consistency")
    for p in one.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    batch = Batch(point.expand(64, 4, 1, 1), normal(64, 4, 1, 1), (torch.arange(64) + 0.5) / 64)
    with torch.no_grad():
        losses = [Consistency(one, teacher, first=18, last=18)(one, batch) for teacher in
                  (None, lambda u, sigma, labels=None: point.expand_as(u))]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-9)


def test_the_curricula_are_those_of_the_papers():
    grow = [distillation.growing_levels(seen, 800, 2, 150) for seen in (0, 400, 800, 1600)]
    assert grow == [2, math.ceil(math.sqrt(0.5 * (151**2 - 4) + 4) - 1) + 1, 151, 151]
    double = [distillation.doubling_levels(seen, 800, 10, 1280) for seen in range(0, 900, 100)]
    assert distillation.doubling_levels(799, 800, 10, 120) == 121
    assert double == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]


def test_the_lognormal_levels_have_the_shares_of_song_and_dhariwal():
    sigmas = samplers.karras_sigmas(20, 0.002, 80)[:-1].flip(0)
    quantile = (torch.arange(100_000) + 0.5) / 100_000
    found = distillation.lognormal_index(quantile, sigmas).bincount(minlength=19) / 100_000
    edges = torch.erf((sigmas.log() + 1.1) / (math.sqrt(2) * 2.0))
    expected = edges.diff() / edges.diff().sum()
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far():
    ones = torch.ones(1, 3, 32, 32)
    c, d = 0.00054 * math.sqrt(3072), 3072
    near, far = (distillation.pseudo_huber(k * ones).item() for k in (1e-5, 10.0))
    assert near == pytest.approx(1e-10 * d / (2 * c), rel=1e-2)
    assert far == pytest.approx(10 * math.sqrt(d) - c, rel=1e-4)


def test_the_target_follows_with_the_decay_of_the_method():
    one = student("edm-consistency")
    objective = Consistency(one, None, first=2, last=8, curriculum=100, decay=0.9)
    before = [p.clone() for p in objective.target.parameters()]
    for p in one.parameters():
        p.data.add_(1.0)
    objective.follow(one, Batch(None, None, None, seen=100))
    for old, now in zip(before, objective.target.parameters()):
        torch.testing.assert_close(now - old, torch.full_like(old, 1 - 0.9 ** (2 / 9)), atol=1e-5,
                                   rtol=1e-4)
    assert Consistency(one, None, first=8, last=8).target is None


def test_levels_of_the_later_recipe_weigh_by_their_distance():
    """Song & Dhariwal 2024, equation 5: 1 / (s_{n+1} - s_n), of the level of each image."""
    objective = Consistency(student("edm-consistency"), first=6, last=6, lognormal=True)
    sigmas, quantile = objective.noise_levels(0), torch.tensor([0.1, 0.4, 0.7, 0.95])
    n = distillation.lognormal_index(quantile, sigmas)
    assert len(set(n.tolist())) > 2
    clean, eps = points(4), normal(4, 4, 1, 1, seed=4)
    ask = lambda u, sigma, labels: u  # so that two answers are (s_{n+1} - s_n) eps apart
    apart = sigmas[n + 1] - sigmas[n]
    expected = (apart * eps.flatten(1).square().mean(1)).mean()
    torch.testing.assert_close(objective(ask, Batch(clean, eps, quantile)).double(), expected)


def test_both_answers_have_the_same_dropout():
    seen = []

    class Noisy(torch.nn.Module):
        num_classes = 0

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, label, labels=None):
            seen.append(torch.rand(3))
            return self.scale * x

    one = Preconditioned(Noisy(), framework("edm-consistency"))
    Consistency(one, None, first=4, last=4)(one, Batch(points(8), normal(8, 4, 1, 1),
                                                       torch.rand(8), seed=7))
    assert len(seen) == 2 and torch.equal(*seen)


@pytest.mark.parametrize("seed", [0, 7])
def test_an_objective_leaves_the_global_stream_as_it_was(seed):
    """Or a loop that draws its noise there would draw the same in every step."""
    one = student("edm-consistency")
    before = torch.get_rng_state()
    Consistency(one, None, first=4, last=4)(one, Batch(normal(8, 4, 1, 1), normal(8, 4, 1, 1),
                                                       (torch.arange(8) + 0.5) / 8, seed=seed))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options, words", [
    (dict(levels="doublng"), "did you mean 'doubling'"), (dict(distance="lpips"), "valid are"),
    (dict(first=1), "2 <= first <= last"), (dict(first=9, last=8), "2 <= first <= last"),
    (dict(decay=1.0), "decay from 0 up to 1"), (dict(), "grow from 2 to 150: give curriculum"),
    (dict(solver="dpm-solver++(2m)"), "unknown solver step"),
    (dict(first=8, last=8, sigma_max=0.001), "sigma_max=0.001: give a number above .* 0.002")])
def test_bad_options_are_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as error:
        Consistency(student("edm-consistency"), None, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, options, words", [
    ("cd", {"decy": 0.5}, "unknown option of 'cd' 'decy': did you mean 'decay'"),
    ("progressive", {"wieght": "snr+1"}, "unknown option of 'progressive'.*'weight'"),
    ("progressive", {"solver": "heun"}, "unknown option of 'progressive' 'solver'"),
    ("cd", {"student": 1}, "unknown option of 'cd' 'student'")])
def test_unknown_options_are_refused_in_one_line(name, options, words):
    with pytest.raises(UserError, match=words) as error:
        distillation.objective(name, student("edm-consistency"), ONE, gaussian(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("one, name", [(lambda: student("v"), "v"),
                                       (lambda: torch.nn.Linear(4, 4), "edm")])
def test_a_student_without_the_boundary_condition_is_refused(one, name):
    with pytest.raises(UserError, match=f"give it the framework '{name}-consistency'"):
        Consistency(one())


@pytest.mark.parametrize("name, teacher", [("progressive", None), ("cd", None),
                                           ("ct", gaussian()), ("ict", gaussian())])
def test_a_teacher_too_many_or_too_few_is_refused(name, teacher):
    with pytest.raises(UserError, match="learns from"):
        distillation.objective(name, student("edm-consistency"), ONE, teacher)


# --- a student of the optimal denoiser ----------------------------------------------------------

@pytest.mark.parametrize("name, kind", [("cd", "edm-consistency"), ("progressive", "edm")])
def test_one_step_maps_noises_to_the_right_training_images(name, kind):
    """The student of the optimal denoiser of 8 images; 2x2 pixels, so that a perceptron does."""
    pixels = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    teacher, one = OptimalDenoiser(pixels), student(kind, 12, 128)
    draw = lambda size: pixels[torch.randint(8, (size,))]
    if name == "cd":
        objective = distillation.objective("cd", one, ONE, teacher, decay=0.0)
        learn(one, objective, draw, 1500)
    else:
        for steps in (8, 4, 2, 1):
            solver = Solver("ddim", steps, "cosine")
            learner = student(kind, 12, 128)
            if steps < 8:
                learner.load_state_dict(one.state_dict())
            one = learn(learner, Progressive(teacher, solver), draw, 500)
            teacher = one
    noise = normal(256, 3, 2, 2)
    ends = samplers.sample(OptimalDenoiser(pixels), noise, Solver("heun", 40))
    right = torch.cdist(ends.flatten(1), pixels.flatten(1)).argmin(1)
    found = samplers.sample(one, noise, Solver("euler", 1))
    nearest = torch.cdist(found.flatten(1), pixels.flatten(1)).argmin(1)
    agreed = (nearest == right).double().mean().item()
    print(name, agreed)
    assert agreed > 0.9 and len(right.unique()) > 4


# --- through the training loop ------------------------------------------------------------------

def tiny(**changes) -> Spec:
    args = networks.DDPMPP | dict(width=8, channel_mult=(1,), blocks=1, attention=(8,), patch=4)
    return replace(Spec("tiny", "unet", args, images=32, images_seen=128, batch=16, warmup=1,
                        ema_half_life=16), **changes)


KINDS = {
    "progressive": dict(objective="progressive", start="t", solver=Solver("ddim", 2, "cosine")),
    "cd": dict(objective="cd", start="t", solver=ONE, framework="edm-consistency"),
    "ct": dict(objective="ct", solver=ONE, framework="edm-consistency",
               objective_args={"last": 8, "curriculum": 128}),
    "ict": dict(objective="ict", solver=ONE, framework="edm-consistency",
                objective_args={"last": 40, "curriculum": 128}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_bit_for_bit(kind, tmp_path):
    spec, images = tiny(**KINDS[kind]), data.load("bundled").first(32)
    start = training.build(tiny(name="t")).network.state_dict() if spec.start else None
    *_, whole = training.train(spec, images, start=start)
    for run in training.train(spec, images, tmp_path / "c", start=start):
        if run.step == 3:
            training.save_checkpoint(run, tmp_path / "c")
            break
    *_, again = training.train(spec, images, tmp_path / "c", start=start)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    followed = any(key.startswith("target.") for key in whole.state_dict())
    assert followed == (kind in ("cd", "ct"))


def test_the_teacher_stays_as_it_was():
    spec, images = tiny(**KINDS["cd"]), data.load("bundled").first(32)
    start = training.build(tiny(name="t")).network.state_dict()
    *_, run = training.train(spec, images, start=start)
    held = run.objective.teacher.network.state_dict()
    assert all(torch.equal(held[k], v) for k, v in start.items())
    assert any(not torch.equal(run.denoiser.network.state_dict()[k], v) for k, v in start.items())


@pytest.mark.parametrize("change, words", [
    (dict(framework="v-consistency"), "give it 'edm'"), (dict(framework="v"), "give it 'edm'"),
    (dict(network_args={"width": 16}), "another network than its teacher t")])
def test_a_teacher_of_another_kind_is_refused(change, words):
    teacher = tiny(name="t")
    with pytest.raises(UserError, match=words):
        training.check_teacher(tiny(**KINDS["cd"] | change), teacher)
    training.check_teacher(tiny(**KINDS["cd"]), teacher)
    training.check_teacher(tiny(**KINDS["progressive"]), teacher)
    turned = dict(reversed(tiny().network_args.items()))
    training.check_teacher(tiny(**KINDS["cd"], network_args=turned), teacher)


@pytest.mark.parametrize("steps, kind, fits", [
    (1, "progressive", True), (2, "progressive", False), (1, "cd", False)])
def test_a_student_teaches_half_its_steps_and_nobody_else(steps, kind, fits):
    teacher = tiny(**KINDS["progressive"] | {"name": "t"})  # knows 2 steps
    student = tiny(**KINDS[kind] | {"solver": Solver("ddim", steps, "cosine")})
    if fits:
        return training.check_teacher(student, teacher)
    with pytest.raises(UserError, match="cannot learn from t, which knows 2 steps"):
        training.check_teacher(student, teacher)


def test_a_student_does_not_drop_labels_that_its_teacher_sees():
    args = tiny().network_args | {"num_classes": 10, "label_dropout": 0.1}
    spec, images = tiny(**KINDS["cd"], network_args=args), data.load("bundled").first(32)
    start = training.build(tiny(name="t", network_args=args)).network.state_dict()
    with pytest.raises(UserError, match="distill with label_dropout=0"):
        training.Training(spec, images, start=start)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_in_bf16(monkeypatch, kind):
    """The target's evaluation without a gradient must not take it from the student's."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    spec, images = tiny(**KINDS[kind], precision="bf16"), data.load("bundled").first(32)
    start = training.build(tiny(name="t")).network.state_dict() if spec.start else None
    run = training.Training(spec, images, start=start)
    run._loss(run._draw()).backward()
    assert all(p.grad is not None for p in run.denoiser.parameters())


def test_a_file_of_another_parametrization_is_refused(tmp_path):
    student = tiny(**KINDS["cd"])
    for kind in ("edm", "v"):
        run = training.Training(tiny(name="t", framework=kind), data.load("bundled").first(32))
        training.save_checkpoint(run, tmp_path / f"{kind}.safetensors")
    weights = models.weights_of(tmp_path / "edm.safetensors", student)
    training.Training(student, data.load("bundled").first(32), start=weights)
    with pytest.raises(UserError, match="framework 'edm-consistency', its teacher t 'v'"):
        models.weights_of(tmp_path / "v.safetensors", student)


def test_an_unknown_objective_is_named():
    with pytest.raises(UserError, match="did you mean 'progressive'"):
        training.Training(tiny(objective="progresive"), data.load("bundled").first(32))


# --- specifications -----------------------------------------------------------------------------

@pytest.mark.parametrize("profile", recipes.DISTILLATIONS)
def test_every_student_starts_from_what_stands_before_it(profile):
    seen = {}
    for name, spec in recipes.distillation_specs(profile).items():
        assert name == spec.name and (not spec.start or spec.start in seen)
        if spec.start:
            training.check_teacher(spec, seen[spec.start])
        seen[name] = spec
    assert {"teacher", "progressive-1", "cd", "ct", "ict"} <= seen.keys()
    stages = [s.solver.steps for s in seen.values() if s.objective == "progressive"]
    assert stages == distillation.halvings(recipes.DISTILLATIONS[profile].steps)


# --- sampling -----------------------------------------------------------------------------------

def test_the_cosine_levels_halve_and_end_at_zero():
    fine, coarse = (samplers.cosine_sigmas(n, 0.002, 80) for n in (16, 8))
    assert torch.equal(fine[::2], coarse) and fine[0] == pytest.approx(80) and fine[-1] == 0
    torch.testing.assert_close(fine.atan().diff(), torch.full((16,), -math.atan(80) / 16).double())


def test_multistep_consistency_sampling_is_algorithm_1():
    ask = lambda u, sigma, labels=None: torch.tanh(u / sigma)
    noise, sigmas = normal(3, 4, 1, 1, dtype=torch.float64), torch.tensor([80.0, 1.0, 0.0]).double()
    first, last = samplers.SAMPLERS["consistency"](ask, noise, sigmas)
    torch.testing.assert_close(first, torch.tanh(noise) + successor(noise, 0))
    torch.testing.assert_close(last, torch.tanh(first))


def test_the_fresh_noise_depends_on_its_row_alone():
    noise = normal(64, 3, 32, 32)
    fresh = successor(noise, 0)
    torch.testing.assert_close(successor(noise[5:7], 0), fresh[5:7], rtol=0, atol=0)
    torch.testing.assert_close(successor(noise[5:7].double(), 0).float(), fresh[5:7])
    assert not torch.equal(successor(noise[:2], 1), fresh[:2])
    flat = torch.stack([noise.flatten(), fresh.flatten(), successor(noise, 1).flatten()])
    torch.testing.assert_close(torch.corrcoef(flat), torch.eye(3), atol=0.01, rtol=0)
    assert fresh.std().item() == pytest.approx(1, abs=0.01)


def test_consistency_training_takes_every_level_but_the_lowest():
    """Of 5 levels the upper one of a pair is each of four, for a quarter of the quantiles each."""
    one, seen = student("edm-consistency"), []
    one.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    objective = Consistency(one, None, first=5, last=5)
    quantile = (torch.arange(8) + 0.5) / 8
    objective(one, Batch(points(8), normal(8, 4, 1, 1), quantile))
    low, high = seen
    levels = objective.noise_levels(0).float().repeat_interleave(2)
    assert torch.equal(low, levels[:8]) and torch.equal(high, levels[2:])
