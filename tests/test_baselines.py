"""Baselines by hand or in another form, and posteriors that are known, in two forms."""

from dataclasses import replace

import pytest
import torch

from paper_utils import baselines, data, reconstructions
from paper_utils.denoisers import GaussianDenoiser
from paper_utils.errors import UserError
from paper_utils.models import BANK
from paper_utils.noise import stream
from paper_utils.operators import Task, measure
from paper_utils.reconstructions import MAIN, TASKS, Problem
from test_inverse import D, HALF, SHAPE, normal
from test_reconstructions import GROUPS, PIXELS

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def truth():
    return data.load("bundled", "test").first(6)


# --- what needs no diffusion --------------------------------------------------------------------

def test_lost_pixels_are_filled_from_the_nearest():
    y, mask = torch.full((2, 3, 8, 8), 0.25), torch.ones(2, 1, 8, 8)
    mask[:, :, 2:5, 2:5] = 0
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(baselines.filled(torch.where(mask.bool(), y, noise), mask), y)
    y[:, :, :, 4:], mask = 1.0, torch.zeros(2, 1, 8, 8)
    mask[:, :, :, (0, 7)] = 1
    found = baselines.filled(y, mask)[0, 0, 4]
    assert found[0] == 0.25 and found[7] == 1 and (found.diff() > 0).all()


@pytest.mark.parametrize("problem", TASKS)
def test_every_task_has_a_trivial_restoration_near_the_truth(problem, truth):
    name, made = baselines.trivial(problem, truth.pixels)
    assert name and made.dtype == torch.uint8 and made.shape == truth.pixels.shape
    shuffled = reconstructions.psnr(made.roll(1, 0), truth.pixels)
    assert (reconstructions.psnr(made, truth.pixels) > shuffled).all()


LINEAR = ("random-inpainting", "box-inpainting", "super-resolution", "gaussian-blur", "motion-blur")


@pytest.mark.parametrize("operator, level", zip(LINEAR, (0.5, 3, 2, 0.9, 3)))
def test_the_posterior_mean_is_that_of_its_matrix(operator, level):
    small = torch.nn.functional.interpolate(data.load("bundled").pixels.float(), (8, 8))
    prior = GaussianDenoiser.fit(small.byte())
    task = Task(operator, level)
    op = task.build(3, 8)
    measurement = measure(data.to_unit(small[:3].byte()), op, task.sigma)
    found = baselines.posterior_means(prior, op, measurement)
    for k in range(3):
        matrix = baselines.matrix_of(op, k, (3, 8, 8))
        exact = baselines.posterior(prior, matrix, measurement.y[k].flatten(), task.sigma)
        assert torch.allclose(found[k], exact.mean, atol=5e-3)  # under a level of 255
    with pytest.raises(UserError, match="needs some"):
        baselines.posterior(prior, matrix, measurement.y[2].flatten(), 0.0)


def test_a_posterior_that_is_not_gaussian_is_refused(truth):
    clipped = Task("high-dynamic-range", 2)
    assert not baselines.is_linear(clipped.build(6), (6, 3, 32, 32))
    with pytest.raises(UserError, match="high dynamic range.*not linear"):
        baselines.matrix_of(clipped.build(1, 8), 0, (3, 8, 8))
    prior = GaussianDenoiser.fit(truth.pixels)
    for task in (clipped, replace(MAIN.task, sigma=0.0)):
        with pytest.raises(UserError, match="linear operators and some noise alone"):
            baselines.wiener(prior, Problem(task), truth)


@pytest.mark.parametrize("first", [[1.0, 0.0], [0.0, 0.0]])
def test_a_row_that_is_solved_before_the_others_stays(first):
    right, scale = torch.tensor([first, [1.0, 1.0]]), torch.tensor([2.0, 5.0])
    found = baselines.conjugate_gradients(lambda w: w * scale, right, torch.ones(2))
    torch.testing.assert_close(found, right / scale, rtol=1e-4, atol=1e-6)


def test_a_system_without_a_solution_is_not_answered():
    matrix = torch.diag(torch.logspace(0, 12, 50, dtype=torch.float64))
    ones = torch.ones(2, 50, dtype=torch.float64)
    with pytest.raises(UserError, match="not found in 5 steps"):
        baselines.conjugate_gradients(lambda x: x @ matrix, ones, ones[0], most=5)
    found = baselines.conjugate_gradients(lambda x: x @ matrix, ones, matrix.diag(), 1e-12)
    assert torch.allclose(found @ matrix, ones)


def test_restorations_stand_beside_the_trivial_one_and_the_wiener_estimate():
    truth = data.load("bundled").first(6)  # of the images that the prior is fitted to
    names = ("a", "b", "c", "d", *reconstructions.CLOSED)
    answers = {p.name: dict.fromkeys(names, baselines.trivial(p, truth.pixels)[1]) for p in TASKS}
    prior = GaussianDenoiser.fit(data.load("bundled").pixels)
    table = baselines.beside_models(TASKS, answers, truth, GROUPS, prior, PIXELS)
    for problem in TASKS:
        part = table[table.task == problem.task.name].set_index("who")
        plain = f"trivial: {baselines.trivial(problem, truth.pixels)[0]}"
        assert (part["over trivial"].drop("Wiener estimate", errors="ignore") == 0).all()
        assert part["PSNR, dB"]["U-Nets"] == part["PSNR, dB"][plain]
        assert ("Wiener estimate" in part.index) == (problem.task.operator in LINEAR)
        assert (part["residual low"] <= part.residual).all() and (part.n == 6).all()
    best = table[table.who == "Wiener estimate"]
    assert (best["over trivial"] > 0).all() and (best.residual < 1.1).all()


# --- where the answer is known ------------------------------------------------------------------

def test_the_posterior_is_that_of_the_information_form():
    """Precision C^-1 + A'A / sigma^2, mean S (C^-1 m + A'y / sigma^2)."""
    factor, sigma = normal(12, 12, seed=4) / 3, 0.4
    cov = factor @ factor.T + 0.05 * torch.eye(12)
    prior = GaussianDenoiser(normal(1, 3, 4, seed=5), *torch.linalg.eigh(cov))
    A, y = normal(7, 12, seed=6), normal(7, seed=7)
    spread = torch.linalg.inv(torch.linalg.inv(cov) + A.T @ A / sigma**2)
    mean = spread @ (torch.linalg.solve(cov, prior.mean.flatten()) + A.T @ y / sigma**2)
    found = baselines.posterior(prior, A, y, sigma)
    torch.testing.assert_close(found.mean, mean.view(1, 3, 4))
    torch.testing.assert_close(found.eigenvectors * found.eigenvalues @ found.eigenvectors.T,
                               spread)
    n, deviation = 40_000, spread.diagonal().sqrt()
    points = found.flow(1000 * normal(n, 1, 3, 4, seed=8), 1000, 0).flatten(1)
    # the flow from sigma pulls the mean by deviation / sigma, far under the statistical error
    assert ((points.mean(0) - mean).abs() < 5 * deviation / n**0.5 + 1e-2 * deviation).all()
    scale = deviation[:, None] * deviation
    assert ((torch.cov(points.T) - spread).abs() < 5 * scale * (2 / n) ** 0.5).all()


def test_a_posterior_of_a_degenerate_prior_stays_where_the_prior_is():
    prior = GaussianDenoiser(torch.zeros(1, 3, 4).double(), torch.tensor([2.0, 0.5]).double(),
                             torch.eye(12).double()[:, :2])
    found = baselines.posterior(prior, torch.ones(1, 12).double(),
                                torch.ones(1).double(), 0.1)
    assert found.mean.flatten()[2:].abs().max() == 0 and found.mean.abs().max() > 0.1
    assert (found.eigenvalues > 1e-9).sum() == 2 and found.eigenvalues.min() >= 0


@pytest.mark.parametrize("task", [
    HALF, Task("super-resolution", 2), Task("motion-blur", 3), Task("gaussian-blur", 0.7)])
def test_the_matrix_of_an_operator_does_what_it_does(task):
    operator, images = task.build(3, 8), normal(3, *SHAPE)
    answer = operator.A(images)
    for k in range(3):
        matrix = baselines.matrix_of(operator, k, SHAPE)
        torch.testing.assert_close(matrix @ images[k].flatten(), answer[k].flatten())


def test_algorithm_1_comes_near_the_exact_flow_of_the_posterior():
    table = baselines.against_the_posterior(data.load("bundled"), zetas=(2,), steps=(10, 60))
    assert table.what.tolist() == ["exact flow of the posterior", "prior, not guided",
                                   "Algorithm 1", "Algorithm 1"]
    exact, free, coarse, fine = table["to flow"]
    assert exact == 0 and fine < free / 4 and fine < coarse
    assert 0 < table["to mean"][0] and table["to mean"][3] < table["to mean"][1]


def test_the_known_posterior_does_not_depend_on_signs_of_eigenvectors(monkeypatch):
    fit, signs = GaussianDenoiser.fit, torch.ones(D).double()

    def signed(pixels: torch.Tensor) -> GaussianDenoiser:
        found = fit(pixels)
        return GaussianDenoiser(found.mean, found.eigenvalues, found.eigenvectors * signs)

    def table() -> torch.Tensor:
        found = baselines.against_the_posterior(data.load("bundled"), (2,), (10,), count=4)
        return torch.tensor(found[["to mean", "to flow"]].to_numpy())

    monkeypatch.setattr(GaussianDenoiser, "fit", signed)
    before = table()
    signs[::2] = -1
    torch.testing.assert_close(table(), before)


def test_the_known_posterior_is_that_of_the_noise_in_the_measurement():
    images = data.load("bundled")
    row = baselines.against_the_posterior(images, zetas=(), count=3).iloc[0]
    small = data.to_bytes(torch.nn.functional.interpolate(data.to_unit(images.pixels), (8, 8),
                                                          mode="area"))
    prior = GaussianDenoiser.fit(small)
    vectors, squares = prior.eigenvectors, []
    normal = torch.randn(3, 192, generator=stream("truth")).double()
    truth, op = prior.points(normal @ vectors), Task("random-inpainting", 0.5).build(3, 8)
    y = measure(truth, op, 0.05).y.flatten(1)
    inverse_of_prior = vectors / prior.eigenvalues @ vectors.T
    for k in range(3):  # in the form of precisions
        mask = op.state[k].expand(3, -1, -1).flatten().double()
        values, axes = torch.linalg.eigh(torch.linalg.inv(inverse_of_prior + mask.diag() / 0.05**2))
        mean = axes * values @ axes.T @ (
            inverse_of_prior @ prior.mean.flatten().double() + mask * y[k] / 0.05**2)
        start = 80 * BANK[k][:, :8, :8].double().flatten() - mean
        squares.append(((start @ axes) * (values / (values + 80**2)).sqrt()).square().mean())
    assert row["to mean"] == pytest.approx(torch.stack(squares).mean().sqrt().item(), rel=1e-3)
    assert row["to mean low"] < row["to mean"] < row["to mean high"] and row.n == 3
