"""Samplers against diffusers' schedulers on a dummy denoiser, and a Gaussian's exact flow."""

import math

import pytest
import torch

from paper_utils import data, samplers, training
from paper_utils.denoisers import GaussianDenoiser, vp_discrete
from paper_utils.errors import UserError
from paper_utils.samplers import SAMPLERS, Solver, karras_sigmas, log_sigmas
from paper_utils.training import Spec

SHAPE = (2, 3, 4, 4)


def gaussian(seed: int = 0) -> GaussianDenoiser:
    rng = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(48, 48, generator=rng, dtype=torch.float64)).Q
    values = torch.logspace(-2, 0.5, 48, dtype=torch.float64)
    mean = torch.randn(SHAPE[1:], generator=rng, dtype=torch.float64) / 4
    return GaussianDenoiser(mean, values, basis)


def of_rank(rank: int) -> GaussianDenoiser:
    """The same without variance along the other eigenvectors."""
    full = gaussian()
    return GaussianDenoiser(full.mean, full.eigenvalues[:rank], full.eigenvectors[:, :rank])


def noise(seed: int = 1) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def final(name: str, sigmas: torch.Tensor, denoiser) -> torch.Tensor:
    *_, last = SAMPLERS[name](denoiser, noise(), sigmas)
    return last


ORDERS = {"euler": 1, "heun": 2, "dpm-solver-2": 2, "dpm-solver-3": 3, "dpm-solver++(2m)": 2}


@pytest.mark.parametrize("name, order", ORDERS.items())
def test_order_of_convergence_on_a_gaussian(name, order):
    """Halving the step divides the error by 2^order; the solution is known in closed form."""
    denoiser, high, low = gaussian(), 20.0, 0.1
    exact = denoiser.flow(high * noise(), high, low)

    def error(steps: int) -> float:
        sigmas = log_sigmas(steps + 1, low, high)[:-1]
        return (final(name, sigmas, denoiser) - exact).norm().item()

    observed = math.log2(error(80) / error(160))
    assert order - 0.25 < observed < order + 0.6


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"consistency"}))
def test_ending_at_zero_lands_on_the_data(name):
    denoiser = gaussian()
    exact = denoiser.flow(80 * noise(), 80, 0)
    found = final(name, karras_sigmas(120, 0.002, 80), denoiser)
    # a step error of first order is the largest; the mean image is about 1 in norm per pixel
    assert (found - exact).abs().max() < (0.12 if ORDERS.get(name, 1) == 1 else 0.01)


@pytest.mark.parametrize("rank", [48, 20])
def test_the_flow_of_a_gaussian_composes(rank):
    denoiser, u = of_rank(rank), noise() * 80
    there = denoiser.flow(denoiser.flow(u, 80, 3), 3, 0.5)
    torch.testing.assert_close(there, denoiser.flow(u, 80, 0.5))


# --- against diffusers --------------------------------------------------------------------------

def eps_model(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A dummy eps-prediction of the VP state x = alpha u at u-noise sigma: nonlinear in both."""
    return torch.tanh(0.7 * x + 0.3 * torch.log(sigma)) * (1 + 0.1 * alpha)


def dummy(u: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    alpha = 1 / (1 + sigma**2).sqrt()
    return u - sigma * eps_model(alpha * u, alpha, sigma)


def vp_noise_levels(timesteps) -> torch.Tensor:
    alphas = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    return ((1 - alphas) / alphas).sqrt()[timesteps]


def test_ddim_is_diffusers_ddim():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    steps = torch.as_tensor(scheduler.timesteps)
    sigmas = torch.cat([vp_noise_levels(steps), torch.zeros(1, dtype=torch.float64)])
    alpha = 1 / (1 + sigmas[0] ** 2).sqrt()
    x = alpha * sigmas[0] * noise()
    for t, sigma in zip(steps, sigmas):
        eps = eps_model(x, 1 / (1 + sigma**2).sqrt(), sigma)
        x = scheduler.step(eps, t, x).prev_sample
    torch.testing.assert_close(final("ddim", sigmas, dummy), x, rtol=1e-4, atol=1e-4)


def test_heun_is_diffusers_heun():
    from diffusers import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(12)
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]).double()
    u = sigmas[0] * noise()
    for t in scheduler.timesteps:
        sigma = scheduler.sigmas[scheduler.step_index or 0].double()
        eps = (u - dummy(u, sigma)) / sigma
        u = scheduler.step(eps, t, u).prev_sample
    torch.testing.assert_close(final("heun", sigmas, dummy), u, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, algorithm, order", [
    ("dpm-solver-2", "dpmsolver", 2), ("dpm-solver-3", "dpmsolver", 3)])
def test_singlestep_dpm_solver_is_diffusers(name, algorithm, order):
    """diffusers steps through the inner stages too, so its grid is ours with the stages in it.

    The second stage of the published DPM-Solver-3 is what diffusers calls 'heun', the third (and
    the second order's own) what it calls 'midpoint', so the test switches between them.
    """
    from diffusers import DPMSolverSinglestepScheduler

    steps = 4
    scheduler = DPMSolverSinglestepScheduler(
        algorithm_type=algorithm, solver_order=order, beta_schedule="linear", beta_start=1e-4,
        beta_end=0.02, lower_order_final=False, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(steps * order)
    grid = log_sigmas(steps * order + 1, 0.05, 50.0)[:-1]
    scheduler.sigmas = grid
    scheduler.order_list = list(range(1, order + 1)) * steps
    alpha = 1 / (1 + grid[0] ** 2).sqrt()
    x = alpha * grid[0] * noise()
    for k, (t, sigma) in enumerate(zip(scheduler.timesteps, grid)):
        inner = order == 3 and k % order == 1
        scheduler.register_to_config(solver_type="heun" if inner else "midpoint")
        x = scheduler.step(eps_model(x, 1 / (1 + sigma**2).sqrt(), sigma), t, x).prev_sample
    u = x * (1 + grid[-1] ** 2).sqrt()
    torch.testing.assert_close(final(name, grid[::order], dummy), u, rtol=1e-6, atol=1e-6)


def test_multistep_2_is_diffusers_dpm_solver_plus_plus():
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, beta_schedule="linear", beta_start=1e-4,
        beta_end=0.02, lower_order_final=False, final_sigmas_type="zero")
    scheduler.set_timesteps(15)
    grid = torch.cat([log_sigmas(15, 0.05, 50.0)])
    scheduler.sigmas = grid
    alpha = 1 / (1 + grid[0] ** 2).sqrt()
    x = alpha * grid[0] * noise()
    for t, sigma in zip(scheduler.timesteps, grid):
        x = scheduler.step(eps_model(x, 1 / (1 + sigma**2).sqrt(), sigma), t, x).prev_sample
    torch.testing.assert_close(final("dpm-solver++(2m)", grid, dummy), x, rtol=1e-5, atol=1e-5)


# --- schedules and solvers ----------------------------------------------------------------------

def test_karras_noise_levels_are_those_of_the_paper():
    sigmas = karras_sigmas(18, 0.002, 80)
    assert len(sigmas) == 19 and sigmas[-1] == 0
    assert sigmas[0] == pytest.approx(80) and sigmas[17] == pytest.approx(0.002)
    expected = (80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[5] == pytest.approx(expected)


@pytest.mark.parametrize("solver, evaluations", [
    (Solver("heun", 18), 35), (Solver("ddim", 50), 50), (Solver("dpm-solver-2", 25), 49),
    (Solver("dpm-solver-3", 15), 43), (Solver("dpm-solver++(2m)", 30), 30)])
def test_evaluations_are_counted(solver, evaluations):
    assert solver.evaluations == evaluations


def test_a_solver_that_weights_record_by_its_former_name_is_the_same():
    assert Solver("dpm-multistep-2", 30) == Solver("dpm-solver++(2m)", 30)


def test_samples_do_not_depend_on_the_batch():
    denoiser, many = gaussian(), torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    whole = samplers.sample(denoiser, many, batch=7)
    torch.testing.assert_close(samplers.sample(denoiser, many, batch=2), whole)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("rank", [48, 20])
@pytest.mark.parametrize("name", ["heun", "dpm-solver++(2m)"])
def test_the_samples_of_a_gaussian_are_found_along_its_eigenvectors(name, rank):
    denoiser, solver = of_rank(rank), Solver(name, 7)
    found = samplers.sample_gaussian(denoiser, noise(), solver)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, samplers.sample(denoiser, noise(), solver),
                               rtol=1e-5, atol=1e-6)


def test_a_cpu_gets_no_more_noises_at_once_than_its_cache_holds():
    seen, many = set(), torch.zeros(samplers.ON_CPU + 1, 3, 2, 2)
    samplers.sample(lambda u, sigma: seen.add(len(u)) or u, many, Solver(steps=1))
    assert seen == {samplers.ON_CPU, 1}


@pytest.mark.parametrize("change", [{"sampler": "huen"}, {"schedule": "karas"}, {"steps": 0},
                                    {"sigma_min": 0.0}, {"sigma_max": 0.001},
                                    {"steps": 2.5}, {"steps": "18"}, {"sigma_max": math.inf},
                                    {"sigma_max": math.nan}, {"sigma_max": "80"}])
def test_a_bad_solver_is_refused_in_one_line(change):
    with pytest.raises(UserError) as error:
        Solver(**change)
    assert "\n" not in str(error.value)
    if "sampler" in change:
        assert "did you mean 'heun'" in str(error.value)


def test_ddpm_noise_levels_span_the_solvers_range():
    assert vp_discrete().sigma_min < 0.011 and vp_discrete().sigma_max > 150


def test_reference_numbers_are_exact_with_cudnn_on():
    seen = []

    def spy(u: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic,
                     torch.backends.cudnn.conv.fp32_precision))
        return u

    samplers.sample(spy, noise()[:1], Solver("euler", 1))
    assert seen == [(True, True, "ieee")]


# --- what a step of a sampler takes -------------------------------------------------------------

def test_the_multistep_solver_extrapolates_by_the_ratio_of_its_steps():
    """A denoiser that is linear in log sigma, on levels of very different steps: DPM-Solver++(2M)
    takes the slope of D from the last step to the middle of this one."""
    sigmas = torch.tensor([16.0, 8.0, 1.0, 0.5, 0.01], dtype=torch.float64)
    answers = iter([0.0, 1.0, 4.0, 5.0])  # D = -log2(sigma / 16): its slope is 1 in every step
    states = list(SAMPLERS["dpm-solver++(2m)"](
        lambda u, sigma: torch.full_like(u, next(answers)), noise(), sigmas))
    u = 16 * noise()
    for state, clean, here, there in zip(states, (0, 1, 4, 5), sigmas, sigmas[1:]):
        target = clean + ((here / there).log2() / 2 if here < 16 else 0)
        u = target + there / here * (u - target)
        torch.testing.assert_close(state, u)


def test_consistency_sampling_draws_another_noise_at_every_step():
    seen = []
    sigmas = torch.tensor([80.0, 10.0, 10.0, 10.0, 0.0], dtype=torch.float64)
    list(SAMPLERS["consistency"](lambda u, sigma: seen.append(u / sigma) or torch.zeros_like(u),
                                 noise(), sigmas))
    assert len(seen) == 4
    for k, one in enumerate(seen):
        assert all((one - other).abs().max() > 1 for other in seen[:k])


@pytest.mark.parametrize("sigma", [80.0, 5.0])
def test_the_consistency_function_is_the_end_of_the_flow(sigma):
    denoiser, solver = gaussian(), Solver("heun", 120)
    u = sigma * noise()
    for one in (denoiser, denoiser.__call__):  # by its eigenvectors, and as any denoiser
        end = samplers.consistency_function(one, solver)(u, torch.tensor(sigma).double())
        assert (end - denoiser.flow(u, sigma, 0)).abs().max() < 0.01


def test_every_batch_has_its_own_labels():
    def told(u, sigma, labels):
        return labels.view(-1, 1, 1, 1).expand_as(u).to(u)

    labels = torch.tensor([3, 1, 4, 1, 5])
    found = samplers.sample(told, torch.randn(5, 3, 4, 4), Solver(steps=2), labels, batch=2)
    assert found[:, 0, 0, 0].tolist() == labels.tolist()


def test_the_state_is_kept_in_double_precision():
    kinds = []
    samplers.sample(lambda u, sigma: kinds.append(u.dtype) or u, torch.randn(2, 3, 4, 4))
    assert set(kinds) == {torch.float64}


@pytest.mark.parametrize("answer, said", [
    (lambda u, sigma: u[:1], r"\[2, 3, 4, 4\]: this one's answer is \[1, 3, 4, 4\]"),
    (lambda u, sigma: u[:, :1], r"answer is \[2, 1, 4, 4\]"),
    (lambda u, sigma: u.mean(0), r"answer is \[3, 4, 4\]"),
    (lambda u, sigma: None, "answer is NoneType"), (lambda u, sigma: 0.5, "answer is float"),
    (lambda u, sigma: (u, sigma), "answer is tuple"),
    (lambda u, sigma: u * torch.nan, "not finite numbers"),
    (lambda u, sigma: u / 0, "not finite numbers")])
def test_a_denoiser_that_answers_with_no_images_is_one_line(answer, said):
    with pytest.raises(UserError, match=said):
        samplers.sample(answer, torch.randn(SHAPE), Solver(steps=2))


def test_one_noise_without_its_batch_is_one_line():
    with pytest.raises(UserError, match=r"noise is \[B, C, H, W\], not \[3, 4, 4\]"):
        samplers.sample(lambda u, sigma: u, torch.randn(SHAPE[1:]))


def test_a_network_of_single_precision_is_told_what_to_do():
    network = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match=r"u and sigma are float64 here.*u.float\(\)") as caught:
        samplers.sample(lambda u, sigma: network(u), torch.randn(SHAPE), Solver(steps=2))
    assert isinstance(caught.value.__cause__, RuntimeError)
    cast = lambda u, sigma: network(u.float())
    found = samplers.sample(cast, torch.randn(SHAPE), Solver(steps=2))
    assert found.shape == SHAPE and found.dtype == torch.float32


@pytest.mark.parametrize("said", [
    "", "Expected all tensors to be on the same device, but found at least two devices, cpu and "
    "cuda:0!", "Input type (torch.DoubleTensor) and weight type (torch.cuda.FloatTensor) should be "
    "the same"])
def test_a_denoiser_on_another_device_is_told_so(said):
    def failed(u, sigma):
        raise RuntimeError(said)

    network = torch.nn.Linear(4, 4, device="meta")
    with pytest.raises(UserError, match="u is on the device 'cpu' here, and this denoiser"):
        samplers.sample(failed if said else lambda u, sigma: network(u.float()),
                        torch.randn(SHAPE), Solver(steps=2))


def test_an_error_of_the_device_itself_is_not_translated():
    def failed(u, sigma):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="^CUDA error"):
        samplers.sample(failed, torch.randn(SHAPE), Solver(steps=2))


@pytest.mark.parametrize("change, said", [
    ({"batch": -1}, "batch=-1: give a whole number of noises"), ({"batch": 2.5}, "batch=2.5"),
    ({"noise": torch.randn(SHAPE).numpy()}, "noise is a tensor .*not ndarray"),
    ({"noise": [1.0]}, "noise is a tensor .*not list"),
    ({"noise": torch.zeros(SHAPE, dtype=torch.uint8)}, "noise is a tensor of floating-point"),
    ({"solver": "heun"}, "a samplers.Solver, .* not 'heun'"), ({"solver": 18}, "not 18"),
    ({"denoiser": object()}, "a denoiser is a function of u and sigma, not object"),
    ({"denoiser": lambda u: u}, "a denoiser takes u and sigma"),
    ({"denoiser": torch.nn.Conv2d(3, 3, 1)}, "a denoiser takes u and sigma"),
    ({"denoiser": training.build(Spec("x", "mlp", {"channels": 3}))}, "in training mode.*eval"),
    ({"labels": torch.zeros(2).long()}, "a denoiser takes u and sigma, .*labels"),
    ({"labels": ["cat", "dog"], "denoiser": lambda u, sigma, labels: u}, "labels are whole num"),
    ({"labels": torch.zeros(2), "denoiser": lambda u, sigma, labels: u}, "labels are whole num"),
    ({"labels": torch.zeros(2, 1).long(), "denoiser": lambda u, sigma, labels: u}, "one for each"),
    ({"labels": 3, "denoiser": lambda u, sigma, labels: u}, "one for each")])
def test_what_cannot_be_sampled_is_one_line(change, said):
    words = {"denoiser": lambda u, sigma: u, "noise": torch.randn(SHAPE), "solver": Solver(steps=2)}
    with pytest.raises(UserError, match=said) as failure:
        samplers.sample(**words | change)
    assert "\n" not in str(failure.value)


def test_a_model_of_the_table_is_told_from_its_denoiser():
    from paper_utils import models

    model = models.closed_forms(data.load("bundled"), 4)["gaussian"]
    with pytest.raises(UserError, match="not Model: give its denoiser, as in model.denoiser()"):
        samplers.sample(model, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("labels", [
    [3, 1], torch.tensor([3, 1]).numpy(), torch.tensor([3, 1], dtype=torch.int32)])
def test_labels_are_any_whole_numbers(labels):
    def told(u, sigma, labels):
        assert labels.dtype == torch.int64
        return labels.view(-1, 1, 1, 1).expand_as(u).to(u)

    found = samplers.sample(told, torch.randn(SHAPE), Solver(steps=2), labels)
    assert found[:, 0, 0, 0].tolist() == [3, 1]
