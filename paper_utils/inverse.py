"""Inverse problems by Algorithm 1 of the paper: deterministic DPS with DPM-Solver.

    u <- sigma_0 eps
    for i = 1 ... M:
        x0hat <- D(u; sigma_{i-1})
        u'    <- one deterministic solver step from sigma_{i-1} to sigma_i
        r     <- |y - A(x0hat)|_2                          of each image
        u     <- u' - zeta_i grad_u r
    return u

It is DPS (Chung et al. 2023) with the stochastic ancestral step replaced by a deterministic one, so
that noise, measurement, operator and model fix the answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from numbers import Real

import torch
from torch import Tensor, nn

from paper_utils.denoisers import Denoiser
from paper_utils.errors import UserError, choose
from paper_utils.noise import NoiseBank, seed_of
from paper_utils.operators import Measurement, Operator, Physics, applied, without_gradient
from paper_utils.precision import exact
from paper_utils.progress import progress as shown
from paper_utils.samplers import (EULER, STEPS, Solver, Step, answer, check_denoiser, check_noise,
                                  toward, whole_labels)

BATCH = 16  # always this many rows at once: the bits of a row depend on how many, not on which

# weight of the gradient in a step from sigma `here` to `there`, for zeta = 1
SCHEDULES = {
    "constant": lambda here, there: torch.ones_like(here),
    # a constant weight on x = u / sqrt(1 + sigma^2), the variance-preserving state of DPS
    "variance-preserving": lambda here, there: ((1 + here**2) * (1 + there**2)).sqrt(),
    # zeta r as a term of -log p(y|u) in the probability-flow ODE (Euler), as deepinv has it
    "flow": lambda here, there: here * (here - there),
}
# what a reported zeta multiplies: grad r, or DPS's grad r^2 with step zeta / r, which is 2 grad r
CONVENTIONS = {"norm": 1.0, "squared": 2.0}
BOUND = 10.0  # an iterate this many times as large as data and noise together has diverged


class Diverged(UserError):
    """The step size was too large for this model and measurement."""


@dataclass(frozen=True)
class Guidance:
    """The free choices of Algorithm 1.

    solver: steps and noise levels; its sampler must be a single-step one. zeta: step size, in the
    `convention` and `schedule` above. clip: x0hat into [-1, 1], everywhere it is used. ancestral:
    None, or the seed of fresh noises: the stochastic DPS of Chung et al., for contrast.

    The defaults are those of section 4, reconstructions.MAIN in 30 steps: of zeta .5, 1, 2, 4 and 8
    the U-Nets of zoo/ have their best PSNR on box inpainting at 2 (tab_step_size of the laptop
    profile). Other numbers of steps want 30 / steps of it. DPS's own .3 to .5 are for 1,000 steps
    and another norm. Raises UserError for what none of these can be.
    """

    zeta: float = 2.0
    solver: Solver = Solver("dpm-solver-1", 30, "karras", 0.01, 80)
    schedule: str = "variance-preserving"
    convention: str = "norm"
    clip: bool = False
    ancestral: int | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.solver, "sigmas"):
            raise UserError("the solver of a Guidance is a samplers.Solver, as in "
                            f"Solver('dpm-solver-1', 30), not {self.solver!r}")
        choose(self.solver.sampler, STEPS, "single-step solver")
        choose(self.schedule, SCHEDULES, "schedule of the step size")
        choose(self.convention, CONVENTIONS, "convention of the step size")
        if self.ancestral is not None and self.solver.sampler not in EULER:
            raise UserError(f"the stochastic DPS takes Euler's steps, not those of "
                            f"{self.solver.sampler!r}: give a solver of {', '.join(EULER)}")
        if not (isinstance(self.zeta, Real) and 0 <= self.zeta < float("inf")):
            raise UserError(f"step size zeta={self.zeta!r}: give a number from 0 up")

    def weight(self, here: Tensor, there: Tensor) -> Tensor:
        """What multiplies grad r in the step from sigma `here` to `there`."""
        return self.zeta * CONVENTIONS[self.convention] * SCHEDULES[self.schedule](here, there)


@dataclass(frozen=True)
class Iterate:
    """The state after a step: u [B, C, H, W] at noise level sigma; residual: r of each image."""

    u: Tensor
    sigma: Tensor
    residual: Tensor


def dps(denoiser: Denoiser, noise: Tensor, y: Tensor, operator: Physics, guidance: Guidance,
        step: Step | None = None, labels: Tensor | None = None) -> Iterator[Iterate]:
    """Algorithm 1 as it stands; yields the state after every step.

    noise: [B, C, H, W] unit normal, in the precision that the state shall have; step: instead of
    the solver's; labels: int64 [B] for a class-conditional denoiser. Raises Diverged, naming the
    step, instead of going on to an image of NaN, and UserError for what has no gradient.
    """
    sigmas = guidance.solver.sigmas.to(noise)
    step = step or STEPS[guidance.solver.sampler]
    used = denoiser if labels is None else partial(denoiser, labels=labels)
    used = _clipped(used) if guidance.clip else used
    u = sigmas[0] * noise
    for number, (here, there) in enumerate(pairwise(sigmas), 1):
        with _frozen(denoiser):
            clean, residual, gradient = guide(used, u, here, y, operator)
        if number == 1 and residual.any() and not gradient.any():
            _check_slope(clean, here, y, operator)
        ahead = step(used, u, clean, here, there) if there > 0 else clean
        u = ahead - guidance.weight(here, there) * gradient
        _check_size(u, there, number, guidance)
        yield Iterate(u, there, residual)


def guide(denoiser: Denoiser, u: Tensor, sigma: Tensor, y: Tensor,
          operator: Physics) -> tuple[Tensor, Tensor, Tensor]:
    """x0hat = D(u; sigma), r = |y - A(x0hat)| of each image, and the gradient of r at u.

    Where A loses a pixel, y is noise alone. It does not reach the gradient of r^2 but stays in r,
    which normalizes that of r: with zeros there instead the steps are longer (box inpainting of
    16 x 16 with zeta 4 then ends at .84 of the noise where y was measured, instead of .28).
    """
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        clean = answer(denoiser, u, sigma)
        gap = y - applied(operator, clean.to(y.dtype))  # a foreign one has the precision of its y
        residual = torch.linalg.vector_norm(gap.flatten(1), dim=1)
        slope = gradient = None
        if clean.requires_grad and residual.requires_grad:
            slope, gradient = torch.autograd.grad(residual.sum(), (clean, u), allow_unused=True)
    if clean.requires_grad and slope is None:
        raise without_gradient(operator)
    if gradient is None:
        raise UserError("this denoiser's answer has no gradient at u, which Algorithm 1 needs: "
                        "compute it outside torch.no_grad, and add 0 * u to a constant")
    return clean.detach(), residual.detach(), gradient


def _check_slope(clean: Tensor, sigma: Tensor, y: Tensor, operator: Physics) -> None:
    """UserError where it is A, and not the denoiser, that does not change with its input."""
    *_, slope = guide(lambda u, sigma: u, clean, sigma, y, operator)
    if not slope.any():
        raise without_gradient(operator)


@contextmanager
def _frozen(denoiser: Denoiser) -> Iterator[None]:
    """Weights without gradient meanwhile: what backpropagation to u alone keeps is less."""
    weights = denoiser.parameters() if isinstance(denoiser, nn.Module) else ()
    learning = [p for p in weights if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)


def _clipped(denoiser: Denoiser) -> Denoiser:
    return lambda u, sigma: denoiser(u, sigma).clamp(-1, 1)


def _check_size(u: Tensor, sigma: Tensor, number: int, guidance: Guidance) -> None:
    size = u.square().flatten(1).mean(1).sqrt()
    bound = BOUND * (1 + sigma**2).sqrt()
    if not bool((size < bound).all()):
        raise Diverged(f"Algorithm 1 diverged at step {number} of {guidance.solver.steps} (sigma "
                       f"{sigma:.3g}): an iterate of size {size.max():.3g}, where data and noise "
                       f"have {bound / BOUND:.3g}; try zeta={guidance.zeta / 4:g} or clip=True")


def ancestral(seed: int, rows: Tensor) -> Step:
    """DPS's own stochastic step: Euler to a lower noise level, then fresh noise up to the next.

    The ancestral step of DDPM (Ho et al. 2020) in sigma. Step i adds noises `rows` of a bank that
    depends on (seed, i) alone.
    """
    numbers = count()

    def step(denoiser: Denoiser, u: Tensor, clean: Tensor, here: Tensor, there: Tensor) -> Tensor:
        bank = NoiseBank(seed_of("ancestral", seed, next(numbers)), tuple(u.shape[1:]))
        fresh = torch.stack([bank[k] for k in rows.tolist()])
        down = there**2 / here
        return toward(clean, u, here, down) + (there**2 - down**2).sqrt() * fresh.to(u)

    return step


@torch.no_grad()
def reconstruct(denoiser: Denoiser, noise: Tensor, measurement: Measurement, operator: Physics,
                guidance: Guidance = Guidance(), progress: str = "", batch: int = BATCH,
                labels: Tensor | None = None) -> Tensor:
    """Algorithm 1 to its end: x0 [n, C, H, W] float32, the state kept in float64.

    noise: [n, C, H, W] unit normal, one an image. On the CPU the answer for an image has the same
    bits whatever others are with it, for one and the same `batch`, to which rows are filled up; a
    foreign operator gets all images at once, in the precision of y and where the noise is.
    progress: a title for a progress bar over steps; labels: [n] whole numbers or None. Raises
    UserError where the operator is not the one that measured or has no gradient, unless there is a
    noise, and a label or none, for every image, for what is no denoiser, measurement or guidance,
    for a batch under 1, and Diverged.
    """
    check_noise(noise)
    if not (isinstance(batch, int) and batch >= 1):
        raise UserError(f"batch={batch!r}: give a whole number of at least 1")
    labels = None if labels is None else whole_labels(labels, noise)
    check_denoiser(denoiser, labels)
    _check_problem(noise, measurement, operator, guidance)
    batch = batch if isinstance(operator, Operator) else len(noise)
    starts = range(0, len(noise), batch)
    states = ((start, state) for start in starts for state in
              _of_rows(denoiser, noise, measurement.y, operator, guidance, labels, start, batch))
    total = len(starts) * guidance.solver.steps
    parts = [state.u[:len(noise) - start] for start, state in
             shown(states, progress, total, "step") if state.sigma == 0]
    return torch.cat(parts).float()


def _check_problem(noise: Tensor, measurement: Measurement, operator: Physics,
                   guidance: Guidance) -> None:
    if not isinstance(guidance, Guidance):
        raise UserError("guidance is an inverse.Guidance, as in Guidance(zeta=2), not "
                        f"{guidance!r}")
    if not isinstance(measurement, Measurement):
        raise UserError("a measurement is what operators.measure makes of images: for a y of your "
                        "own give operators.measured(y, operator, noise.shape, sigma)")
    if len(measurement.y) != len(noise):
        raise UserError(f"a measurement of {len(measurement.y)} images and {len(noise)} noises do "
                        "not pair: give one noise for each image")
    measurement.to(noise.device).check(operator, tuple(noise.shape))


def _of_rows(denoiser: Denoiser, noise: Tensor, y: Tensor, operator: Physics, guidance: Guidance,
             labels: Tensor | None, start: int, batch: int) -> Iterator[Iterate]:
    """`dps` of `batch` rows from `start`, the last row repeated where they end."""
    rows = torch.arange(start, start + batch).clamp(max=len(noise) - 1)
    step = None if guidance.ancestral is None else ancestral(guidance.ancestral, rows)
    noise, y = noise[rows].double(), y[rows].to(noise.device)
    labels = None if labels is None else labels[rows]
    if isinstance(operator, Operator):
        operator, y = operator.rows(rows), y.double()
    with exact():
        yield from dps(denoiser, noise, y, operator, guidance, step, labels)
