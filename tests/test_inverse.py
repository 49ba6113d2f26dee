"""Algorithm 1 against a hand-written step, DPS in its own coordinates, deepinv, and Gaussians."""

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from paper_utils import data, inverse, models, networks, reconstructions
from paper_utils.denoisers import GaussianDenoiser, Preconditioned, framework
from paper_utils.errors import UserError
from paper_utils.inverse import Diverged, Guidance, ancestral, dps, guide, reconstruct
from paper_utils.operators import Measurement, Operator, Task, measure, measured
from paper_utils.samplers import SAMPLERS, STEPS, Solver, karras_sigmas, sample

SHAPE = (3, 8, 8)
D = math.prod(SHAPE)
HALF = Task("random-inpainting", 0.5)
WEIGHT = nn.Parameter(torch.tensor(0.5))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian() -> GaussianDenoiser:
    basis = torch.linalg.qr(normal(D, D)).Q
    return GaussianDenoiser(normal(*SHAPE, seed=1) / 4, torch.logspace(-2, 0, D).double(), basis)


def problem(n: int = 4, side: int = 8,
            task: Task = HALF) -> tuple[Operator, Measurement, torch.Tensor]:
    """An operator, a measurement of smooth random images, and noises."""
    operator = task.build(n, side)
    images = nn.functional.avg_pool2d(normal(n, 3, side, side, seed=2), 3, 1, 1).clamp(-1, 1)
    return operator, measure(images.float(), operator, task.sigma), normal(n, 3, side, side, seed=3)


def network(arch: str, side: int = 16, **more) -> Preconditioned:
    """A small random network whose every layer is awake."""
    torch.manual_seed(5)
    sizes = {"unet": dict(width=8, channel_mult=(1, 2), blocks=1, attention=(8,)),
             "dit": dict(patch=2, dim=24, depth=2, heads=2)}[arch]
    net = networks.build(arch, image_size=side, **sizes, **more)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return Preconditioned(net, framework("edm")).eval()


def last(states) -> torch.Tensor:
    *_, state = states
    return state.u


@dataclass(frozen=True)
class Grid:
    """Stands for a Solver of any noise levels."""

    sigmas: torch.Tensor
    sampler: str = "euler"

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


# --- one step -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", STEPS)
def test_without_a_step_size_it_is_the_plain_sampler(name):
    operator, measurement, noise = problem(16)
    solver = Solver(name, 5)
    found = reconstruct(gaussian(), noise, measurement, operator, Guidance(0.0, solver))
    assert torch.equal(found, sample(gaussian(), noise, solver))


@pytest.mark.parametrize("task", [HALF, Task("super-resolution", 2)])
@pytest.mark.parametrize("name", STEPS)
def test_steps_are_the_solvers_less_the_gradient_in_closed_form(name, task):
    """grad r = -J' A'(y - A D(u)) / r with J = C (C + sigma^2)^-1, at sigma_{i-1} alone."""
    denoiser, (operator, measurement, noise) = gaussian(), problem(4, task=task)
    y, zeta = measurement.y.double(), 0.3
    cov = denoiser.eigenvectors * denoiser.eigenvalues @ denoiser.eigenvectors.T
    units = torch.eye(D, dtype=torch.float64).view(D, *SHAPE)
    sigmas = torch.tensor([20.0, 3, 0.4, 0], dtype=torch.float64)
    u = sigmas[0] * noise
    states = dps(denoiser, noise, y, operator, Guidance(zeta, Grid(sigmas, name), "constant"))
    for (here, there), state in zip(pairwise(sigmas), states, strict=True):
        ahead = next(SAMPLERS[name](denoiser, u / here, torch.stack([here, there])))
        jacobian = torch.linalg.solve(cov + here**2 * torch.eye(D), cov)
        gradients = []
        for k in range(4):
            A = operator.rows(torch.full((D,), k)).A(units).flatten(1).T
            gap = y[k].flatten() - A @ denoiser(u, here)[k].flatten()
            gradients.append(-jacobian.T @ A.T @ gap / gap.norm())
            assert state.residual[k].item() == pytest.approx(gap.norm().item())
        u = ahead - zeta * torch.stack(gradients).view_as(u)
        torch.testing.assert_close(state.u, u, rtol=1e-9, atol=1e-9)
        assert state.sigma == there and not state.u.requires_grad


@pytest.mark.parametrize("schedule", inverse.SCHEDULES)
def test_the_squared_convention_is_the_norm_with_twice_the_step(schedule):
    operator, measurement, noise = problem()
    solver = Solver("dpm-solver-1", 5, sigma_max=3)
    squared, norm, once = (
        reconstruct(gaussian(), noise, measurement, operator,
                    Guidance(zeta, solver, schedule, convention))
        for zeta, convention in ((0.1, "squared"), (0.2, "norm"), (0.1, "norm")))
    assert torch.equal(squared, norm) and not torch.allclose(squared, once, atol=1e-3)


def test_the_squared_convention_is_dps_with_zeta_over_the_residual():
    """x' - zeta / r * grad r^2 (Chung et al. 2023), the gradient of the square by autograd."""
    denoiser, (operator, measurement, noise) = gaussian(), problem()
    y, sigmas = measurement.y.double(), torch.tensor([2.0, 0.5], dtype=torch.float64)
    u = (sigmas[0] * noise).requires_grad_()
    squares = (y - operator.A(denoiser(u, 2.0))).square().sum((1, 2, 3))
    gradient, = torch.autograd.grad(squares.sum(), u)
    clean, step = denoiser(u, 2.0), (0.2 / squares.sqrt()).view(-1, 1, 1, 1)
    expected = clean + 0.25 * (u - clean) - step * gradient
    guidance = Guidance(0.2, Grid(sigmas), "constant", "squared")
    found = last(dps(denoiser, noise, y, operator, guidance))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-10)


def test_the_variance_preserving_schedule_is_a_constant_step_in_the_state_of_ddim():
    """DPS on x = sqrt(abar) u: the DDIM step by abar, and autograd with respect to x."""
    denoiser, (operator, measurement, noise) = gaussian(), problem()
    y, zeta, sigmas = measurement.y.double(), 0.1, karras_sigmas(12, 0.02, 50)
    abar = 1 / (1 + sigmas**2)
    x = (1 - abar[0]).sqrt() * noise
    for now, then in pairwise(abar):
        x = x.requires_grad_()
        clean = denoiser(x / now.sqrt(), (1 / now - 1).sqrt())
        r = (y - operator.A(clean)).flatten(1).norm(dim=1)
        gradient, = torch.autograd.grad(r.sum(), x)
        eps = (x - now.sqrt() * clean) / (1 - now).sqrt()
        x = (then.sqrt() * clean + (1 - then).sqrt() * eps - zeta * gradient).detach()
    guidance = Guidance(zeta, Grid(sigmas), "variance-preserving")
    found = last(dps(denoiser, noise, y, operator, guidance))
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


# --- the defaults -------------------------------------------------------------------------------

def test_the_defaults_are_those_of_section_4_and_restore():
    """Peak signal to noise and residual of a box of 16 x 16; plain zeta 1 had 16 dB and 2.9."""
    assert Guidance() == reconstructions.MAIN.guidance(30)
    images = data.to_unit(data.load("bundled").pixels[:4])
    operator = Task("box-inpainting", 16).build(4)
    measurement = measure(images, operator)
    found = reconstruct(models.shipped("edm").denoiser(), models.BANK[:4], measurement, operator)
    gap = (measurement.y - operator.A(found)) * operator.state
    size = gap.square().flatten(1).sum(1).sqrt() / (0.05 * (3 * 768) ** 0.5)  # of the noise's
    assert size.max() < 0.5
    assert -10 * ((found - images) / 2).square().mean().log10() > 17


# --- deepinv ------------------------------------------------------------------------------------

@pytest.mark.parametrize("side, weight, model", [(8, 7.0, gaussian), (16, 0.7, network)],
                         ids=["gaussian", "unet"])
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_it_is_the_deterministic_dps_of_deepinv(kind, side, weight, model):
    deepinv = pytest.importorskip("deepinv")
    denoiser = model() if model is gaussian else model("unet")
    operator, measurement, noise = problem(side=side)
    sde = (deepinv.sampling.VariancePreservingDiffusion(minus_one_one=False) if kind == "vp" else
           deepinv.sampling.VarianceExplodingDiffusion(sigma_min=0.02, sigma_max=50,
                                                       minus_one_one=False))
    times = torch.linspace(1, 0, 13, dtype=torch.float64)
    theirs = deepinv.sampling.PosteriorDiffusion(
        deepinv.sampling.DPSDataFidelity(weight=weight, clip=None), denoiser, sde,
        deepinv.sampling.DDIMSolver(times), minus_one_one=False)
    mask = deepinv.physics.Inpainting((3, side, side), mask=operator.state)
    start = sde.sigma_t(1.0) * sde.scale_t(1.0) * noise
    expected = theirs(measurement.y, mask, x_init=start, denoise_output=False)

    def single(u, sigma):  # deepinv's denoisers run in float32
        return denoiser(u.float(), sigma.float()).double()

    sigmas = torch.stack([sde.sigma_t(t) for t in times])
    y = measurement.y.double()
    found, free = (last(dps(single, noise, y, operator, Guidance(zeta, Grid(sigmas), "flow")))
                   for zeta in (weight, 0.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - free).abs().max() > 0.1  # the measurement did something


# --- one image does not know of the others ------------------------------------------------------

@pytest.mark.parametrize("arch, task", [
    ("unet", HALF), ("dit", HALF), ("unet", Task("motion-blur", 5))])
@pytest.mark.parametrize("seed", [None, 0])
def test_an_images_answer_has_the_same_bits_whatever_others_are_with_it(arch, task, seed):
    denoiser, (operator, measurement, noise) = network(arch), problem(40, 16, task)
    guidance = Guidance(0.5, Solver("heun" if seed is None else "ddim", 3), ancestral=seed)
    whole = reconstruct(denoiser, noise, measurement, operator, guidance)
    assert whole.shape == noise.shape and whole.dtype == torch.float32
    assert torch.equal(whole, reconstruct(denoiser, noise, measurement, operator, guidance))
    # fresh noise belongs to a number, which other rows alone would not keep
    for few in (slice(5, 10), slice(13, 20)) if seed is None else (slice(5), slice(20)):
        part = Measurement(measurement.y[few], measurement.operator[few], measurement.sigma)
        alone = reconstruct(denoiser, noise[few], part, operator.rows(few), guidance)
        assert torch.equal(alone, whole[few])


def test_the_gradient_of_an_image_is_of_its_own_residual():
    """Ten times as large measurements of the others change nothing."""
    denoiser, (operator, measurement, noise) = gaussian(), problem()
    quiet = measurement.y.double()
    loud = quiet * torch.tensor([1, 10, 10, 10]).view(4, 1, 1, 1)
    one, other = (guide(denoiser, 3 * noise, torch.tensor(3.0), y, operator)
                  for y in (quiet, loud))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, other))
    assert not torch.allclose(one[1][1:], other[1][1:])


def test_a_residual_of_zero_has_no_gradient_and_no_nan():
    operator, y = HALF.build(2, 8), torch.zeros(2, *SHAPE).double()
    _, residual, gradient = guide(lambda u, sigma: 0 * u, normal(2, *SHAPE), torch.tensor(1.0), y,
                                  operator)
    assert (residual == 0).all() and (gradient == 0).all()


def test_a_denoiser_of_two_arguments_may_be_clipped():
    operator, measurement, noise = problem()
    found = reconstruct(lambda u, sigma: 9 * u, noise, measurement, operator,
                        Guidance(0.0, Solver("ddim", 3), clip=True))
    assert found.abs().max() == 1


def test_every_image_has_its_own_label():
    """One label for each noise, whatever number of rows is computed at once."""
    denoiser, (operator, measurement, noise) = network("unet", num_classes=3), problem(5, 16)
    guidance, labels = Guidance(0.5, Solver("ddim", 3)), torch.tensor([0, 1, 2, 0, 1])
    run = partial(reconstruct, denoiser, noise, measurement, operator, guidance=guidance)
    whole, zeros = run(labels=labels), run(labels=[0] * 5)
    same = (whole == zeros).flatten(1).all(1)
    assert same.tolist() == (labels == 0).tolist()
    mine = lambda x: operator.A(x)  # a foreign operator has no rows that are filled up
    found = reconstruct(denoiser, noise, measurement, mine, guidance, labels=labels)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-4)
    ones = lambda u, sigma: denoiser(u, sigma, torch.ones(len(u), dtype=torch.int64))
    clipped = replace(guidance, clip=True)
    assert torch.equal(run(guidance=clipped, labels=[1] * 5),
                       reconstruct(ones, noise, measurement, operator, clipped))
    check_refused(lambda: run(labels=labels[:3]), "3 labels for 5 noises")
    check_refused(lambda: run(labels=labels / 2), "labels are whole numbers")
    check_refused(run, "class-conditional: give it labels")
    check_refused(lambda: reconstruct(lambda u, sigma: u, noise, measurement, operator,
                                      labels=labels), "given u, sigma, labels")


@pytest.mark.parametrize("denoiser, match", [
    (lambda u, sigma: torch.zeros_like(u), "no gradient at u.*add 0 . u to a constant"),
    (torch.no_grad()(lambda u, sigma: u / 2), "no gradient at u.*outside torch.no_grad"),
    (lambda u, sigma: u.detach() * WEIGHT, "no gradient at u"),
    (lambda u, sigma: u.mean(0, keepdim=True), r"answers with an image for each u, \[16, ")])
def test_anybodys_denoiser_is_looked_at(denoiser, match):
    operator, measurement, noise = problem()
    check_refused(lambda: reconstruct(denoiser, noise, measurement, operator,
                                      Guidance(0.1, Solver("ddim", 3))), match)


def test_weights_are_frozen_while_the_gradient_is_taken_and_only_then():
    denoiser, (operator, measurement, noise) = network("unet"), problem(2, 16)
    denoiser.network.encoder.requires_grad_(False)
    before, learning = [p.requires_grad for p in denoiser.parameters()], []
    denoiser.register_forward_pre_hook(lambda module, inputs: learning.append(
        torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())))
    solver = Solver("heun", 3, sigma_min=0.5, sigma_max=1)
    reconstruct(denoiser, noise, measurement, operator, Guidance(0.0, solver))
    assert learning == [False] * 5
    assert [p.requires_grad for p in denoiser.parameters()] == before and len(set(before)) == 2
    assert all(p.grad is None for p in denoiser.parameters())


# --- operators of one's own ---------------------------------------------------------------------

def halves(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(3, (-1, 2)).mean(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_y_of_ones_own_and_a_function_reconstruct(dtype):
    images, noise = normal(3, *SHAPE).clamp(-1, 1).to(dtype), normal(3, *SHAPE, seed=3)
    y = halves(images)
    found = reconstruct(gaussian(), noise, measured(y, halves, images.shape, 0.0), halves)
    assert (y - halves(found)).abs().max() < 0.2 < (y - halves(0 * found)).abs().max()
    module = nn.AvgPool2d((1, 2))
    again = reconstruct(gaussian(), noise, measured(y, halves, images.shape), module)
    torch.testing.assert_close(again, found, rtol=0, atol=1e-3)


def test_physics_of_another_precision_than_single_reconstruct():
    """A has float64 weights, which do not multiply with float32."""
    images, noise, blur = normal(3, *SHAPE).clamp(-1, 1), normal(3, *SHAPE), nn.Conv2d(3, 2, 3)
    measurement = measure(images, blur.double(), 0.0)
    assert reconstruct(gaussian(), noise, measurement, blur).isfinite().all()
    check_refused(lambda: measure(images.float(), blur), "Conv2d does not fit .*float32 on cpu")


@pytest.mark.parametrize("A", [
    lambda x: (4 * x).round() / 4, lambda x: x.detach() / 2, lambda x: x.detach() * WEIGHT,
    lambda x: (x > 0).double(), lambda x: torch.from_numpy(np.sort(x.numpy())),
    lambda x: torch.from_numpy(np.sort(x.detach().numpy())), torch.no_grad()(lambda x: x / 2)])
def test_an_operator_that_cannot_guide_is_told_from_such_a_denoiser(A):
    measurement = measure(normal(4, *SHAPE).clamp(-1, 1), A)
    check_refused(lambda: reconstruct(gaussian(), normal(4, *SHAPE), measurement, A),
                  "gradient of A.x., and <lambda> has none: compute it by torch alone")


def test_a_gradient_may_be_zero_where_the_operators_is_not():
    """A residual of 0, a constant denoiser, images that saturate after the first step."""
    operator, measurement, noise = problem()
    constant = lambda u, sigma: 0 * u
    found = reconstruct(constant, noise, measurement, operator)
    assert (found == 0).all()
    dark = measured(torch.zeros(4, *SHAPE), operator, (4, *SHAPE), 0.0)
    assert (reconstruct(constant, noise, dark, operator) == 0).all()
    clipping = Task("high-dynamic-range", 2).build(4, 8)
    late = lambda u, sigma: u * 0 + (u / 100 if sigma > 50 else 1)
    bright = measure(torch.ones(4, *SHAPE), clipping)
    assert (reconstruct(late, noise, bright, clipping) == 1).all()


# --- clipping and divergence --------------------------------------------------------------------

@pytest.mark.parametrize("name", STEPS)
def test_clip_holds_in_every_evaluation(name):
    denoiser, (operator, measurement, noise) = gaussian(), problem()
    bright = lambda u, sigma, labels=None: denoiser(u, sigma) + 1
    within = lambda u, sigma, labels=None: bright(u, sigma).clamp(-1, 1)
    solver = Solver(name, 5, sigma_min=0.1, sigma_max=3)
    found, expected, free = (
        reconstruct(model, noise, measurement, operator, Guidance(0.02, solver, clip=clip))
        for model, clip in ((bright, True), (within, False), (bright, False)))
    assert torch.equal(found, expected) and not torch.allclose(found, free, atol=0.1)


def test_too_large_a_step_is_reported_and_never_an_image():
    operator, measurement, noise = problem()
    with pytest.raises(Diverged, match=r"step [1-6] of 6 .*try zeta=250000 or clip=True") as error:
        reconstruct(gaussian(), noise, measurement, operator, Guidance(1e6, Solver("heun", 6)))
    assert "\n" not in str(error.value) and isinstance(error.value, UserError)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", STEPS)
def test_one_bad_number_of_a_denoiser_is_reported_at_its_step(name, bad):
    denoiser, (operator, measurement, noise), solver = gaussian(), problem(), Solver(name, 6)

    def breaks(u, sigma, labels=None):
        clean = denoiser(u, sigma)
        if sigma <= solver.sigmas[3]:
            clean = clean.clone()
            clean[2, 0, 0, 0] = bad
        return clean

    step = 3 if name == "heun" else 4  # Heun evaluates at the end of the step before, too
    with pytest.raises(Diverged, match=f"step {step} of 6") as error:
        reconstruct(breaks, noise, measurement, operator, Guidance(0.1, solver))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 7.0])
def test_diverged_is_ten_times_the_size_of_data_and_noise(sigma):
    """Of any one image, by its root mean square."""
    u = torch.full((3, *SHAPE), 9.9, dtype=torch.float64) * math.hypot(1, sigma)
    check = lambda: inverse._check_size(u, torch.tensor(sigma), 2, Guidance())
    check()
    u[1] *= 1.02
    with pytest.raises(Diverged, match="at step 2"):
        check()


# --- refused ------------------------------------------------------------------------------------

def check_refused(call, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [
    dict(seed=1), dict(level=0.4), dict(operator="box-inpainting", level=4)])
def test_another_operator_than_the_one_that_measured_is_refused(change):
    _, measurement, noise = problem()
    other = Task(**vars(HALF) | change).build(4, 8)
    check_refused(lambda: reconstruct(gaussian(), noise, measurement, other), "another operator")


@pytest.mark.parametrize("few", [1, 3])
def test_noises_are_as_many_as_measurements(few):
    operator, measurement, noise = problem()
    check_refused(lambda: reconstruct(gaussian(), noise[:few], measurement, operator),
                  f"measurement of 4 images and {few} noises")


@pytest.mark.parametrize("change, match", [
    (dict(zeta=-1.0), "zeta=-1.0"), (dict(zeta=math.nan), "zeta=nan"),
    (dict(zeta=math.inf), "zeta=inf"), (dict(zeta="1"), "zeta='1': give a number"),
    (dict(solver="heun"), "samplers.Solver, as in .* not 'heun'"),
    (dict(solver=Solver("dpm-solver++(2m)", 5)), "single-step solver 'dpm-solver.*2m"),
    (dict(solver=Solver("heun", 5), ancestral=0), "Euler's steps, not those of 'heun'"),
    (dict(schedule="constnt"), "did you mean 'constant'"),
    (dict(convention="sqared"), "did you mean 'squared'")])
def test_guidance_that_cannot_be_is_refused(change, match):
    check_refused(lambda: Guidance(**change), match)


@pytest.mark.parametrize("batch", [0, -1, 2.5])
def test_a_batch_is_a_whole_number_of_rows(batch):
    operator, measurement, noise = problem()
    check_refused(lambda: reconstruct(gaussian(), noise, measurement, operator, batch=batch),
                  f"batch={batch}: give a whole number of at least 1")


@pytest.mark.parametrize("change, match", [
    (dict(guidance=2.0), "inverse.Guidance, as in Guidance.zeta=2., not 2.0"),
    (dict(measurement=torch.zeros(4, *SHAPE)), "y of your own give operators.measured.y, operator"),
    (dict(noise=None), "noise is a tensor"), (dict(noise=torch.zeros(4, 8, 8)), "B, C, H, W"),
    (dict(noise=torch.zeros(0, *SHAPE)), "measurement of 4 images and 0 noises"),
    (dict(operator="blur"), "an operator has a method A.x., or is a function of x, and str is")])
def test_what_cannot_be_reconstructed_is_refused(change, match):
    operator, measurement, noise = problem()
    given = dict(measurement=measurement, operator=operator, noise=noise) | change
    check_refused(lambda: reconstruct(gaussian(), **given), match)


def test_arguments_in_another_order_are_refused():
    operator, measurement, noise = problem()
    check_refused(lambda: reconstruct(gaussian(), measurement, operator, noise),
                  "noise is a tensor .* not Measurement")
    check_refused(lambda: reconstruct(gaussian(), noise, operator, measurement),
                  "a measurement is what operators.measure makes")


def test_a_denoiser_without_a_noise_level_is_refused():
    operator, measurement, noise = problem()
    check_refused(lambda: reconstruct(lambda u: u, noise, measurement, operator),
                  "a denoiser takes u and sigma")


# --- the stochastic one -------------------------------------------------------------------------

def test_fresh_noise_is_that_of_its_seed():
    operator, measurement, noise = problem()
    one, again, other, none = (
        reconstruct(gaussian(), noise, measurement, operator,
                    Guidance(0.1, Solver("dpm-solver-1", 6), ancestral=seed))
        for seed in (0, 0, 1, None))
    assert torch.equal(one, again)
    for k in range(4):
        assert not torch.allclose(one[k], other[k], atol=0.05)
        assert not torch.allclose(one[k], none[k], atol=0.05)


def test_fresh_noise_is_another_in_every_step_and_for_every_image():
    step, alone = ancestral(0, torch.tensor([0, 1, 7])), ancestral(0, torch.tensor([7]))
    zero, (here, there) = torch.zeros(3, *SHAPE), torch.tensor([2.0, 1.0])
    first, second = (step(None, zero, zero, here, there).flatten(1) for _ in range(2))
    assert torch.corrcoef(torch.cat([first, second])).fill_diagonal_(0).abs().max() < 5 / D**0.5
    for many in (first, second):
        assert torch.equal(alone(None, zero[:1], zero[:1], here, there).flatten(), many[2])


def test_stochastic_samples_have_the_variance_of_the_data():
    """Numbers of variance v, each on its own: the variance after a step follows by recursion."""
    n, v = 64, 0.3
    denoiser = GaussianDenoiser(torch.zeros(SHAPE).double(), torch.full((D,), v).double(),
                                torch.eye(D).double())
    solver = Solver("dpm-solver-1", 200, "log", 0.05, 10)
    variance = solver.sigmas[0] ** 2
    for here, there in pairwise(solver.sigmas):
        gain, down = v / (v + here**2), there**2 / here
        keep = gain + down / here * (1 - gain)
        variance = keep**2 * variance + there**2 - down**2
    operator, measurement, noise = problem(n)
    found = reconstruct(denoiser, noise, measurement, operator,
                        Guidance(0.0, solver, ancestral=0), batch=n).double()
    error = (2 / found.numel()) ** 0.5
    assert found.var().item() == pytest.approx(variance.item(), rel=4 * error)
    assert variance.item() == pytest.approx(v, rel=0.05)  # the discretization
    assert found.mean().item() == pytest.approx(0, abs=4 * (v / found.numel()) ** 0.5)


# --- the energy of the guided iterate -----------------------------------------------------------

@pytest.mark.parametrize("sigma", [0.1, 2.0])
@pytest.mark.parametrize("rank", [D, 20])
def test_the_energy_is_one_for_data_with_noise(sigma, rank):
    full, n = gaussian(), 300
    some = GaussianDenoiser(full.mean, full.eigenvalues[-rank:], full.eigenvectors[:, -rank:])
    clean = (normal(n, rank) * some.eigenvalues.sqrt()) @ some.eigenvectors.T
    away = clean.view(n, *SHAPE) + sigma * normal(n, *SHAPE, seed=1)
    found = reconstructions.energy(some, some.mean + away, sigma)
    assert found.mean().item() == pytest.approx(1, abs=4 * (2 / (n * D)) ** 0.5)
    twice = reconstructions.energy(some, some.mean + 2 * away, sigma)
    torch.testing.assert_close(twice, 4 * found)
    cov = some.eigenvectors * some.eigenvalues @ some.eigenvectors.T + sigma**2 * torch.eye(D)
    flat = away.flatten(1)
    torch.testing.assert_close(found, (flat * torch.linalg.solve(cov, flat.T).T).sum(1) / D)
