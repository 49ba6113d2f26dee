"""Algorithm 1 against closed forms, a second implementation, and the plain samplers."""

from dataclasses import replace

import pytest
import torch

from paper_utils import data, inverse, networks, operators
from paper_utils import reconstructions as problems
from paper_utils.denoisers import GaussianDenoiser, Preconditioned, edm
from paper_utils.errors import UserError
from paper_utils.inverse import Guidance
from paper_utils.models import BANK
from paper_utils.operators import Task
from paper_utils.samplers import STEPS, Solver, sample

SHORT = Solver("dpm-solver-1", 4, "karras", 0.02, 10)


def gaussian(d: int = 12, seed: int = 0) -> GaussianDenoiser:
    rng = torch.Generator().manual_seed(seed)
    vectors, _ = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64))
    return GaussianDenoiser(0.1 * torch.randn(3, 2, 2, generator=rng, dtype=torch.float64),
                            torch.rand(d, generator=rng, dtype=torch.float64) + 0.1, vectors)


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(1)
    network = networks.build("unet", width=8, channel_mult=(1, 1), blocks=1, attention=(8,),
                             patch=4)
    for p in network.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return Preconditioned(network, edm()).eval()


@pytest.fixture(scope="module")
def images():
    return data.to_unit(data.load("bundled", "test").pixels[:40])


def posed(images, task=Task("random-inpainting", 0.5)):
    operator = task.build(len(images), images.shape[-1])
    return operator, operators.measure(images, operator, task.sigma)


@pytest.mark.parametrize("name", STEPS)
def test_without_guidance_it_is_the_sampler(name, denoiser, images):
    operator, measurement = posed(images[:3])
    solver = replace(SHORT, sampler=name)
    answer = inverse.reconstruct(denoiser, measurement, operator, BANK[:3], Guidance(0, solver))
    torch.testing.assert_close(answer, sample(denoiser, BANK[:3], solver), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_solvers_less_the_gradient_known_in_closed_form(name):
    prior, noise = gaussian(), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    operator = operators.random_inpainting(2, 0.5, 2)
    y = operator.A(torch.randn(2, 3, 2, 2, dtype=torch.float64))
    guidance = Guidance(0.3, replace(SHORT, sampler=name))
    here, there = guidance.solver.sigmas[:2]
    u = here * noise
    first = next(inverse.dps(prior, noise, y, operator, guidance))
    clean = prior(u, here)
    gap = (y - operator.A(clean)).flatten(1)
    back = operator.A(gap.view_as(u)).flatten(1)  # a mask is its own adjoint
    gain = (prior.eigenvectors * (prior.eigenvalues / (prior.eigenvalues + here**2))
            ) @ prior.eigenvectors.T
    gradient = -(back @ gain / gap.norm(dim=1, keepdim=True)).view_as(u)
    ahead = STEPS[name](prior, u, clean, here, there)
    torch.testing.assert_close(first.u, ahead - 0.3 * gradient)
    torch.testing.assert_close(first.residual, gap.norm(dim=1))


def test_the_two_conventions_differ_by_a_factor_of_two(denoiser, images):
    operator, measurement = posed(images[:2])
    one, two = (inverse.reconstruct(denoiser, measurement, operator, BANK[:2], guidance)
                for guidance in (Guidance(0.4, SHORT), Guidance(0.2, SHORT, convention="squared")))
    torch.testing.assert_close(one, two)


def test_the_variance_preserving_schedule_is_a_constant_step_on_x():
    """DPS written again in x = u / sqrt(1 + sigma^2), with DDIM's step and autograd in x."""
    prior, noise = gaussian(), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    operator = operators.random_inpainting(2, 0.5, 2)
    y = operator.A(torch.randn(2, 3, 2, 2, dtype=torch.float64))
    guidance = Guidance(0.05, SHORT, "variance-preserving")
    *_, last = inverse.dps(prior, noise, y, operator, guidance)
    alphas = (1 / (1 + SHORT.sigmas**2))  # alpha bar
    x = alphas[0].sqrt() * SHORT.sigmas[0] * noise
    for now, then in zip(alphas[:-1], alphas[1:]):
        x = x.detach().requires_grad_()
        clean = prior(x / now.sqrt(), ((1 - now) / now).sqrt())
        eps = (x - now.sqrt() * clean) / (1 - now).sqrt()
        norm = (y - operator.A(clean)).flatten(1).norm(dim=1).sum()
        gradient, = torch.autograd.grad(norm, x)
        x = (then.sqrt() * clean + (1 - then).sqrt() * eps - 0.05 * gradient).detach()
    torch.testing.assert_close(last.u, x)


def test_an_answer_has_the_same_bits_in_any_company(denoiser, images):
    operator, measurement = posed(images)
    whole = inverse.reconstruct(denoiser, measurement, operator, BANK[:40], Guidance(1, SHORT))
    part = operators.Measurement(measurement.y[5:10], measurement.operator[5:10], 0.05)
    alone = inverse.reconstruct(denoiser, part, operator.rows(slice(5, 10)), BANK[5:10],
                                Guidance(1, SHORT))
    assert torch.equal(whole[5:10], alone)
    again = inverse.reconstruct(denoiser, measurement, operator, BANK[:40], Guidance(1, SHORT))
    assert torch.equal(whole, again)


@pytest.mark.parametrize("name", ["heun", "dpm-solver-3"])
def test_clipping_reaches_every_evaluation(name, images):
    """A denoiser that answers 3 everywhere: clipped, the last step lands on 1."""
    operator, measurement = posed(images[:1])
    guidance = Guidance(0, replace(SHORT, sampler=name), clip=True)
    answer = inverse.reconstruct(lambda u, sigma, labels=None: 3 + 0 * u, measurement, operator,
                                 BANK[:1], guidance)
    torch.testing.assert_close(answer, torch.ones(1, 3, 32, 32))


def test_the_weights_keep_their_gradient_flags(denoiser, images):
    operator, measurement = posed(images[:1])
    inverse.reconstruct(denoiser, measurement, operator, BANK[:1], Guidance(1, SHORT))
    assert all(p.requires_grad for p in denoiser.parameters())
    assert all(p.grad is None for p in denoiser.parameters())


def test_a_step_size_that_diverges_is_stopped_at_its_step(denoiser, images):
    operator, measurement = posed(images[:2])
    with pytest.raises(inverse.Diverged, match=r"at step \d of 4 .*try zeta=25000") as caught:
        inverse.reconstruct(denoiser, measurement, operator, BANK[:2], Guidance(1e5, SHORT))
    assert "\n" not in str(caught.value)
    with pytest.raises(inverse.Diverged, match="step 1"):
        inverse.reconstruct(lambda u, sigma, labels=None: u * torch.nan, measurement, operator,
                            BANK[:2], Guidance(1, SHORT))


@pytest.mark.parametrize("other", [Task("random-inpainting", 0.5, seed=1),
                                   Task("random-inpainting", 0.6), Task("box-inpainting", 16)])
def test_a_measurement_of_another_operator_is_refused(other, denoiser, images):
    _, measurement = posed(images[:2])
    with pytest.raises(UserError, match="made by another operator"):
        inverse.reconstruct(denoiser, measurement, other.build(2), BANK[:2], Guidance(1, SHORT))


def test_bad_choices_are_one_line(denoiser, images):
    operator, measurement = posed(images[:2])
    with pytest.raises(UserError, match="2 images and 3 noises"):
        inverse.reconstruct(denoiser, measurement, operator, BANK[:3], Guidance(1, SHORT))
    for wrong in (dict(zeta=-1.0), dict(zeta=float("nan")), dict(schedule="constnat"),
                  dict(convention="square"), dict(solver=Solver("dpm-multistep-2"))):
        with pytest.raises(UserError) as caught:
            Guidance(**wrong)
        assert "\n" not in str(caught.value)


def test_stochastic_dps_depends_on_its_seed_and_keeps_the_variance_of_the_data():
    prior, n = gaussian(), 2_000
    operator = operators.random_inpainting(n, 0.5, 2)
    truth = torch.zeros(n, 3, 2, 2)
    measurement = operators.measure(truth, operator)
    solver = Solver("dpm-solver-1", 200, "karras", 0.01, 40)
    noise = torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    run = lambda seed: inverse.reconstruct(prior, measurement, operator, noise,
                                           Guidance(0, solver, ancestral=seed), batch=n)
    one = run(0)
    assert torch.equal(one, run(0)) and not torch.equal(one, run(1))
    spread = (one.double() - prior.mean).flatten(1) @ prior.eigenvectors
    # 2,000 rows know a variance to 3 %, 200 steps are 3 % from the limit
    torch.testing.assert_close(spread.square().mean(0), prior.eigenvalues, rtol=0.15, atol=0)


# --- where the answer is known -------------------------------------------------------------------

def test_the_posterior_is_that_of_the_information_form():
    prior, sigma = gaussian(), 0.3
    matrix = torch.randn(5, 12, dtype=torch.float64)
    y = torch.randn(5, dtype=torch.float64)
    found = problems.posterior(prior, matrix, y, sigma)
    precision = torch.linalg.inv(prior.eigenvectors * prior.eigenvalues @ prior.eigenvectors.T)
    cov = torch.linalg.inv(precision + matrix.T @ matrix / sigma**2)
    mean = cov @ (precision @ prior.mean.flatten() + matrix.T @ y / sigma**2)
    torch.testing.assert_close(found.mean.flatten(), mean)
    torch.testing.assert_close(found.eigenvectors * found.eigenvalues @ found.eigenvectors.T, cov)


@pytest.mark.parametrize("task", [Task("random-inpainting", 0.5), Task("super-resolution", 2),
                                  Task("gaussian-blur", 1.0)])
def test_the_matrix_of_an_operator_does_what_it_does(task):
    operator, x = task.build(3, 8), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for k in range(3):
        matrix = problems.matrix_of(operator, k, (3, 8, 8))
        torch.testing.assert_close(matrix @ x[k].flatten(), operator.A(x)[k].flatten())


def test_energy_is_one_for_the_gaussian_itself_and_four_at_twice_the_deviation():
    prior, rng = gaussian(), torch.Generator().manual_seed(0)
    normal = torch.randn(4_000, 12, generator=rng, dtype=torch.float64)
    x = ((normal * (prior.eigenvalues + 0.5**2).sqrt()) @ prior.eigenvectors.T).view(-1, 3, 2, 2)
    for size in (1, 2):
        found = problems.energy(prior, prior.mean + size * x, 0.5)
        torch.testing.assert_close(found, size**2 * normal.square().mean(1))


def test_algorithm_1_nears_the_exact_flow_of_the_posterior():
    table = problems.against_the_posterior(data.load("bundled"), (2,), (10, 60), count=6)
    plain, few, many = table["to flow"][1:]
    assert many < few < plain and many < plain / 4
