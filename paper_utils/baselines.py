"""What restorations are held against: estimates that need no diffusion, and exact answers.

Images are uint8 [n, 3, H, W], as in `reconstructions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from paper_utils import artifacts, data, descriptors, inverse, operators, scores
from paper_utils.denoisers import GaussianDenoiser
from paper_utils.descriptors import Descriptor
from paper_utils.errors import UserError
from paper_utils.models import BANK
from paper_utils.noise import stream
from paper_utils.operators import Measurement, Operator, Task
from paper_utils.reconstructions import (INPAINTING, QUANTITIES, Problem, labelled, mean_quality,
                                         posed, qualities)

# --- what needs no diffusion --------------------------------------------------------------------

def filled(y: Tensor, mask: Tensor) -> Tensor:
    """Lost pixels as the mean of all known ones, weighted by 1 / distance^2 (Shepard 1968).

    y: [n, C, H, W], mask: [n, 1, H, W], 1 where a pixel is known.
    """
    place = torch.cartesian_prod(*(torch.arange(side) for side in y.shape[-2:])).float()
    weight = 1 / torch.cdist(place, place).square().clamp(min=1)
    near = (((mask * y).flatten(2) @ weight) / (mask.flatten(2) @ weight)).view_as(y)
    return torch.where(mask.bool(), y, near)


TRIVIAL = {  # operator -> its name, and the image of (y, level, mask or kernels)
    "random-inpainting": ("nearby known pixels", lambda y, level, mask: filled(y, mask)),
    "box-inpainting": ("nearby known pixels", lambda y, level, mask: filled(y, mask)),
    "super-resolution": ("bicubic upsampling", lambda y, level, none: F.interpolate(
        y, scale_factor=float(level), mode="bicubic")),
    "gaussian-blur": ("y itself", lambda y, level, kernels: y),
    "motion-blur": ("y itself", lambda y, level, kernels: y),
    "high-dynamic-range": ("y over the gain", lambda y, level, none: y / level),
}


def trivial(problem: Problem, images: Tensor) -> tuple[str, Tensor]:
    """Its name, and a restoration from the measurement alone, uint8 [n, 3, H, W] as `images`."""
    operator, measurement = posed(problem, images)
    name, make = TRIVIAL[problem.task.operator]
    return name, data.to_bytes(make(measurement.y, problem.task.level, operator.state))


def is_linear(operator: Operator, shape: tuple[int, ...]) -> bool:
    """Whether A(x - 2 z) = A(x) - 2 A(z), for a seeded x and z of that shape, [n, C, H, W]."""
    x, z = torch.randn(2, *shape, generator=stream("linear"), dtype=torch.float64)
    return torch.allclose(operator.A(x - 2 * z), operator.A(x) - 2 * operator.A(z), atol=1e-4)


def wiener(prior: GaussianDenoiser, problem: Problem, images: data.Images) -> Tensor:
    """The mean of the posterior under a Gaussian prior, uint8 [n, 3, H, W], an artifact.

    The best restoration in the mean square that means and covariances allow; of fewer training
    images than pixels these are poor. Raises UserError for an operator that is not linear, and for
    a measurement without noise.
    """
    operator, measurement = posed(problem, images.pixels)
    if not (is_linear(operator, tuple(images.pixels.shape)) and measurement.sigma > 0):
        raise UserError(f"{operator.name} with noise {measurement.sigma:g}: the posterior is "
                        "Gaussian for linear operators and some noise alone")
    spec = {"task": asdict(problem.task), "images": images.hash,
            "gaussian": artifacts.digest({"mean": prior.mean, "values": prior.eigenvalues}),
            "code": artifacts.code_version(operators, posterior_means, conjugate_gradients)}
    found = artifacts.remember("wiener", spec, lambda: {
        "images": data.to_bytes(posterior_means(prior, operator, measurement))})
    return found["images"]


def posterior_means(prior: GaussianDenoiser, operator: Operator,
                    measurement: Measurement) -> Tensor:
    """E[x | y] of every image, [n, C, H, W] float64; the operator is linear.

    As the mean of `posterior`, without a matrix of the operator: x = mean + V sqrt(L) w with

        (1 + B'B / sigma^2) w = B' (y - A mean) / sigma^2,   B = A V sqrt(L)

    L, V: eigenvalues and eigenvectors of the prior; its diagonal, the preconditioner, is taken from
    every 12th eigenvector under the operator of the first image.
    """
    root, vectors = prior.eigenvalues.double().sqrt(), prior.eigenvectors.double()
    n, shape = len(measurement.y), prior.mean.shape
    mean, precision = prior.mean.double().expand(n, *shape), 1 / measurement.sigma**2
    wide = lambda w: ((w * root) @ vectors.T).view(-1, *shape)

    with torch.enable_grad():  # of a linear operator: the same at every x
        x = torch.zeros(n, *shape, dtype=torch.float64, requires_grad=True)
        y = operator.A(x)

    def back(gap: Tensor) -> Tensor:  # B' gap
        gradient, = torch.autograd.grad(y, x, gap, retain_graph=True)
        return (gradient.flatten(1) @ vectors) * root

    few = vectors.T[::12].reshape(-1, *shape)
    one = operator.rows(torch.zeros(len(few), dtype=torch.long))
    share = one.A(few).square().flatten(1).sum(1).repeat_interleave(12)[:len(root)]
    w = conjugate_gradients(lambda w: w + precision * back(operator.A(wide(w))),
                            precision * back(measurement.y.double() - operator.A(mean)),
                            1 + precision * root**2 * share)
    return mean + wide(w)


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor,
                        tolerance: float = 1e-5, most: int = 2_000) -> Tensor:
    """x [n, d] with matrix(x) = right, each row by itself (Hestenes & Stiefel 1952).

    matrix: symmetric and positive, another for each row if need be; diagonal: [d], about its own,
    which preconditions. Raises UserError where the relative residual is not under the tolerance
    after `most` steps.
    """
    x, gap = torch.zeros_like(right), right
    step, size = torch.zeros_like(right), torch.ones(len(right), 1).to(right)
    for _ in range(most):
        if (gap.norm(dim=1) <= tolerance * right.norm(dim=1)).all():
            return x
        ahead, before = gap / diagonal, size
        size = (gap * ahead).sum(1, keepdim=True)
        step = ahead + (size / before).nan_to_num() * step  # a row that is solved has 0 / 0
        image = matrix(step)
        length = (size / (step * image).sum(1, keepdim=True)).nan_to_num()
        x, gap = x + length * step, gap - length * image
    raise UserError(f"the posterior mean was not found in {most} steps: measure with more noise")


def beside_models(problems: Sequence[Problem], answers: Mapping[str, Mapping[str, Tensor]],
                  truth: data.Images, groups: Mapping[str, Sequence[str]],
                  prior: GaussianDenoiser, describe: Descriptor) -> pd.DataFrame:
    """reconstructions.qualities of the families, the closed forms and these baselines, by task.

    The trivial restoration of each task is named in the table; the Wiener estimate is there where
    the operator is linear. Columns: task, who, n, over trivial (PSNR minus that of the trivial one,
    same images) and QUANTITIES, each with its 95 % interval over images.
    """
    real, rows = descriptors.features(describe, truth.pixels), []
    for problem in problems:
        plain, made = trivial(problem, truth.pixels)
        every = {**answers[problem.name], plain: made}
        who = labelled(groups) | {f"trivial: {plain}": [plain]}
        if is_linear(posed(problem, truth.pixels)[0], tuple(truth.pixels.shape)):
            every["wiener"] = wiener(prior, problem, truth)
            who["Wiener estimate"] = ["wiener"]
        features = descriptors.features(describe, every)
        found = qualities(problem, every, features, truth.pixels, real)
        for label, names in who.items():
            psnrs = mean_quality(found, names, "PSNR, dB")
            values = {"over trivial": psnrs - found[plain]["PSNR, dB"].double()}
            values |= {what: mean_quality(found, names, what) for what in QUANTITIES}
            rows.append({"task": problem.task.name, "who": label, "n": len(psnrs),
                         **scores.averages(values)})
    return pd.DataFrame(rows)


# --- where the answer is known: Gaussian data and a linear operator ------------------------------

def posterior(prior: GaussianDenoiser, matrix: Tensor, y: Tensor, sigma: float) -> GaussianDenoiser:
    """The posterior of x given y = matrix x + sigma noise, Gaussian too, as a denoiser of its own.

        mean + K (y - A mean),   C - K A C,   K = C A' (A C A' + sigma^2)^-1,   A: the matrix

    matrix: [m, d]; y: [m]; float64. Raises UserError for a sigma that is not over 0.
    """
    if not sigma > 0:
        raise UserError(f"measurement noise {sigma}: this posterior needs some, give one over 0")
    vectors = prior.eigenvectors.double()
    cov, mean = vectors * prior.eigenvalues.double() @ vectors.T, prior.mean.double().flatten()
    inner = matrix @ cov @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = torch.linalg.solve(inner, matrix @ cov).T
    values, vectors = torch.linalg.eigh(cov - gain @ matrix @ cov)
    return GaussianDenoiser((mean + gain @ (y - matrix @ mean)).view_as(prior.mean),
                            values.clamp(min=0), vectors)


def matrix_of(operator: Operator, image: int, shape: tuple[int, ...]) -> Tensor:
    """The matrix [m, d] of a linear operator for one image, from its answers to unit images.

    Raises UserError for one that is not linear.
    """
    units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    one = operator.rows(torch.full((len(units),), image))
    if not is_linear(one, tuple(units.shape)):
        raise UserError(f"{operator.name} is not linear: it has no matrix, no Gaussian posterior")
    return one.A(units).flatten(1).T


def against_the_posterior(images: data.Images,
                          zetas: Sequence[float] = (0.25, 0.5, 1, 2, 4, 8),
                          steps: Sequence[int] = (10, 30, 100), count: int = 16) -> pd.DataFrame:
    """Algorithm 1 on Gaussian data, whose posterior is known, for step sizes and numbers of steps.

    The data are N(mean, C) of 8 x 8 thumbnails of `images`, of which half the pixels are lost; the
    denoiser is exact. RMS distances:
    `to mean`, the posterior mean; `to flow`, what the exact posterior's own probability-flow ODE
    makes of the same noise; with 95 % intervals over n points. The rows without zeta are that exact
    flow and the plain sampler.
    """
    small = data.to_bytes(F.interpolate(data.to_unit(images.pixels), (8, 8), mode="area"))
    prior = GaussianDenoiser.fit(small)
    normal = torch.randn(count, small[0].numel(), generator=stream("truth")).double()
    truth = prior.points(normal @ prior.eigenvectors)  # whatever the signs of eigenvectors here
    task = Task(INPAINTING, 0.5)
    operator = task.build(count, 8)
    measurement = operators.measure(truth, operator, task.sigma)
    noise = BANK[:count][..., :8, :8].double()
    exactly = [posterior(prior, matrix_of(operator, k, (3, 8, 8)), measurement.y[k].flatten(),
                         task.sigma) for k in range(count)]
    means = torch.stack([part.mean for part in exactly])
    flows = torch.cat([part.flow(80 * noise[k:k + 1], 80, 0) for k, part in enumerate(exactly)])

    def row(what: str, steps: int | None, zeta: float | None, x: Tensor) -> dict:
        squares = {"to mean": (x - means).square().flatten(1).mean(1),
                   "to flow": (x - flows).square().flatten(1).mean(1)}
        found = {name: value**0.5 for name, value in scores.averages(squares).items()}
        return {"what": what, "steps": steps, "zeta": zeta, "n": count} | found

    rows = [row("exact flow of the posterior", None, None, flows),
            row("prior, not guided", None, None, prior.flow(80 * noise, 80, 0))]
    for many in steps:
        for zeta in zetas:
            guidance = Problem(task, zeta).guidance(many)
            answer = inverse.reconstruct(prior, noise, measurement, operator, guidance)
            rows.append(row("Algorithm 1", many, zeta, answer.double()))
    return pd.DataFrame(rows)
