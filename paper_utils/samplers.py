"""Deterministic samplers of the probability-flow ODE du/dsigma = (u - D(u; sigma)) / sigma.

Each sampler is a generator (denoiser, noise, sigmas) that starts at u = sigmas[0] * noise and
yields u after every step; sigmas is [M+1], decreasing, and may end at 0, where the last step is an
Euler step (it lands on D). `sample` runs one to its end in batches.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from numbers import Integral, Real

import torch
from torch import Tensor

from paper_utils.denoisers import Denoiser, GaussianDenoiser
from paper_utils.errors import UserError, choose
from paper_utils.noise import successor
from paper_utils.precision import exact
from paper_utils.progress import progress as shown

Sampler = Callable[[Denoiser, Tensor, Tensor], Iterator[Tensor]]


# --- noise levels -------------------------------------------------------------------------------

def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7) -> Tensor:
    """[steps+1] float64 noise levels, the last 0 (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def log_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """[steps+1] float64 noise levels, uniform in log sigma, then 0 (Lu et al. 2022, sec. 3.4)."""
    ramp = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64)
    return torch.cat([ramp.exp(), torch.zeros(1, dtype=torch.float64)])


def cosine_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """[steps+1] float64 noise levels tan(phi), uniform in phi, from sigma_max to 0.

    The cosine schedule of Salimans & Ho 2022, which begins at sigma = infinity, cut at sigma_max.
    Every other level is the schedule of half the steps; sigma_min is not used.
    """
    phi = math.atan(sigma_max) * torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    return phi.tan()


# --- steps --------------------------------------------------------------------------------------
# A step goes from sigma `here` to a smaller `there`; clean is D(u; here), already evaluated, so
# that Algorithm 1 (paper_utils.inverse) can differentiate it. `there` is over 0.

def euler_step(denoiser: Denoiser, u: Tensor, clean: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Euler's step in sigma: DDIM (Song et al. 2021) and DPM-Solver-1 are the same step."""
    return toward(clean, u, here, there)


def heun_step(denoiser: Denoiser, u: Tensor, clean: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Heun's second-order step (Karras et al. 2022, algorithm 1, no churn)."""
    slope = (u - clean) / here
    ahead = u + (there - here) * slope
    slope = (slope + (ahead - denoiser(ahead, there)) / there) / 2
    return u + (there - here) * slope


def dpm_solver_2_step(denoiser: Denoiser, u: Tensor, clean: Tensor, here: Tensor,
                      there: Tensor) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022, algorithm 1): a midpoint step in log sigma."""
    middle = (here * there).sqrt()
    halfway = toward(clean, u, here, middle)
    eps = (halfway - denoiser(halfway, middle)) / middle
    return u + (there - here) * eps


def dpm_solver_3_step(denoiser: Denoiser, u: Tensor, clean: Tensor, here: Tensor,
                      there: Tensor) -> Tensor:
    """DPM-Solver-3 (Lu et al. 2022, algorithm 2, r1 = 1/3, r2 = 2/3)."""
    h = (here / there).log()
    first, second = here * (-h / 3).exp(), here * (-2 * h / 3).exp()
    eps = (u - clean) / here
    u1 = u + (first - here) * eps
    bend1 = (u1 - denoiser(u1, first)) / first - eps
    u2 = u + (second - here) * eps - second * 2 * (torch.expm1(2 * h / 3) / (2 * h / 3) - 1) * bend1
    bend2 = (u2 - denoiser(u2, second)) / second - eps
    return u + (there - here) * eps - there * 1.5 * (torch.expm1(h) / h - 1) * bend2


def toward(clean: Tensor, u: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """The exact step from sigma `here` to `there` when D is constant and equal to `clean`."""
    return clean + (there / here) * (u - clean)


Step = Callable[[Denoiser, Tensor, Tensor, Tensor, Tensor], Tensor]
EULER = ("euler", "ddim", "dpm-solver-1")  # names of one step
STEPS: dict[str, Step] = dict.fromkeys(EULER, euler_step) | {
    "heun": heun_step, "dpm-solver-2": dpm_solver_2_step, "dpm-solver-3": dpm_solver_3_step}


# --- samplers -----------------------------------------------------------------------------------

def singlestep(step: Step) -> Sampler:
    """The sampler that takes this step from level to level; the step to 0 lands on D."""
    def sampler(denoiser: Denoiser, noise: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        u = sigmas[0] * noise
        for here, there in pairwise(sigmas):
            clean = denoiser(u, here)
            u = step(denoiser, u, clean, here, there) if there > 0 else clean
            yield u
    return sampler


def dpm_multistep_2(denoiser: Denoiser, noise: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order, one evaluation a step."""
    u, before, h_before = sigmas[0] * noise, None, None
    for here, there in pairwise(sigmas):
        clean = denoiser(u, here)
        h = (here / there).log()
        target = clean
        if before is not None and there > 0:
            target = clean + (clean - before) * h / (2 * h_before)
        u = toward(target, u, here, there)
        before, h_before = clean, h
        yield u


def consistency(denoiser: Denoiser, noise: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): to the end, then noise again.

    The fresh noises are drawn from `noise` itself (noise.successor), so that this sampler too is a
    function of it. The sigma_min that theirs subtracts from each level, in squares, is taken for 0.
    """
    u = sigmas[0] * noise
    for step, (here, there) in enumerate(pairwise(sigmas)):
        clean = denoiser(u, here)
        u = clean + there * successor(noise, step) if there > 0 else clean
        yield u


SAMPLERS: dict[str, Sampler] = {name: singlestep(step) for name, step in STEPS.items()} | {
    "dpm-solver++(2m)": dpm_multistep_2, "consistency": consistency}
RENAMED = {"dpm-multistep-2": "dpm-solver++(2m)"}  # as weights of the zoo record it
ON_CPU, ELSEWHERE = 32, 128  # noises at a time: a CPU's cache holds a small U-Net's activations
SCHEDULES = {"karras": karras_sigmas, "log": log_sigmas, "cosine": cosine_sigmas}


@dataclass(frozen=True)
class Solver:
    """A sampler with its noise levels: what a row of the table of models calls 'solver'."""

    sampler: str = "heun"
    steps: int = 18
    schedule: str = "karras"
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        object.__setattr__(self, "sampler", RENAMED.get(self.sampler, self.sampler))
        choose(self.sampler, SAMPLERS, "solver")
        choose(self.schedule, SCHEDULES, "noise schedule")
        numbers = isinstance(self.steps, Integral) and isinstance(self.sigma_min, Real) \
            and isinstance(self.sigma_max, Real)
        if not (numbers and self.steps >= 1 and 0 < self.sigma_min < self.sigma_max < math.inf):
            raise UserError("a solver needs whole steps >= 1 and 0 < sigma_min < sigma_max < inf, "
                            f"not steps={self.steps!r}, sigma_min={self.sigma_min!r}, "
                            f"sigma_max={self.sigma_max!r}")

    def __str__(self) -> str:
        return f"{self.sampler}, {self.steps} step{'s' if self.steps > 1 else ''}"

    @property
    def sigmas(self) -> Tensor:
        """[steps+1] float64, from sigma_max down, the last 0."""
        return SCHEDULES[self.schedule](self.steps, self.sigma_min, self.sigma_max)

    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE) of one run, counted by running it."""
        calls = []
        noise = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        _last(SAMPLERS[self.sampler](lambda u, sigma: calls.append(1) or u, noise, self.sigmas))
        return len(calls)


@torch.no_grad()
def sample(denoiser: Denoiser, noise: Tensor, solver: Solver = Solver(),
           labels: Tensor | None = None, batch: int = 0, progress: str = "") -> Tensor:
    """x0 [B, C, H, W] float32 at the end of the ODE, the state kept in float64.

    noise: [B, C, H, W] unit normal; labels: [B] whole numbers or None; batch: noises at a time, 0
    for what suits a network on this device (a closed form of many images takes less time with more
    at once); progress: a title for a progress bar.
    Raises UserError for noise of another shape, unless there is a label for every noise or none at
    all, for what is no denoiser, solver or batch, for a module in training mode, and where the
    denoiser does not answer with finite numbers in the shape of u.
    """
    check_noise(noise)
    check_solver(solver)
    if not (isinstance(batch, int) and batch >= 0):
        raise UserError(f"batch={batch!r}: give a whole number of noises, or 0 for what suits")
    labels = None if labels is None else whole_labels(labels, noise)
    check_denoiser(denoiser, labels)
    sampler, parts = SAMPLERS[solver.sampler], []
    batch = batch or (ON_CPU if noise.device.type == "cpu" else ELSEWHERE)
    rows = range(0, len(noise), batch)
    for start in shown(rows, progress, len(rows)):
        part = noise[start:start + batch]
        conditioned = denoiser if labels is None else \
            partial(denoiser, labels=labels[start:start + batch])
        with exact():
            x0 = _last(sampler(partial(answer, conditioned), part.double(),
                               solver.sigmas.to(part.device)))
        if not x0.isfinite().all():
            raise UserError("this denoiser made samples that are not finite numbers: look at its "
                            "weights, and at its answers for sigma from "
                            f"{solver.sigma_max:g} down to {solver.sigma_min:g}")
        parts.append(x0.float())
    return torch.cat(parts) if parts else noise.float()


def check_noise(noise: Tensor) -> None:
    """UserError for what is no tensor [B, C, H, W] of floating-point numbers."""
    if not (isinstance(noise, Tensor) and noise.is_floating_point()):
        found = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
        raise UserError(f"noise is a tensor of floating-point numbers, as NoiseBank()[:n], not "
                        f"{found}")
    if noise.ndim != 4:
        raise UserError(f"noise is [B, C, H, W], not {list(noise.shape)}: bank[k:k+1] is one of the"
                        " bank's noises")


def check_solver(solver: Solver) -> None:
    """UserError for what is no Solver."""
    if not isinstance(solver, Solver):
        raise UserError("a solver is a samplers.Solver, as in Solver('heun', steps=18), not "
                        f"{solver!r}")


def whole_labels(labels: Tensor | Sequence[int], noise: Tensor) -> Tensor:
    """Whole numbers of any type as int64 [B], one for each noise [B, C, H, W], or UserError."""
    try:
        found = torch.as_tensor(labels, device=noise.device)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise UserError("labels are whole numbers, one for each noise: give the index of a class, "
                        "as in torch.tensor([3, 5])")
    if found.shape != noise.shape[:1]:
        count = len(found) if found.ndim == 1 else f"[{', '.join(map(str, found.shape))}]"
        raise UserError(f"{count} labels for {len(noise)} noises: give one for each")
    return found.long()


def check_denoiser(denoiser: Denoiser, labels: Tensor | None = None) -> None:
    """UserError for what cannot be called with u and sigma, and the labels where there are some,
    and for a module in training mode."""
    if not callable(denoiser):
        known = hasattr(denoiser, "denoiser")
        raise UserError(f"a denoiser is a function of u and sigma, not {type(denoiser).__name__}"
                        f"{': give its denoiser, as in model.denoiser()' if known else ''}")
    words = ("u", "sigma") if labels is None else ("u", "sigma", "labels")
    try:
        known = inspect.signature(getattr(denoiser, "forward", denoiser))
        known.bind(*words[:2], **dict.fromkeys(words[2:]))
    except ValueError:  # of what is written in C it is not known
        pass
    except TypeError as error:
        raise UserError(f"a denoiser takes u and sigma, and labels where they are given: this one "
                        f"was given {', '.join(words)} ({error})") from None
    if getattr(denoiser, "training", False) is True:
        raise UserError("this denoiser is in training mode, with its dropout: call its eval()")


def answer(denoiser: Denoiser, u: Tensor, sigma: Tensor) -> Tensor:
    """D(u; sigma), looked at: anybody's function may stand here.

    Raises UserError where it is on another device, computes in another precision, or answers with
    another shape.
    """
    try:
        clean = denoiser(u, sigma)
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        if re.search("(same|expected) device", said) or said.count("torch.cuda.") == 1:
            raise UserError(f"u is on the device '{u.device}' here, and this denoiser, or a part "
                            f"of it, is not: move it there, or the noise to it ({said})") from error
        if "ouble" in str(error):
            raise UserError("u and sigma are float64 here, sigma of no dimension: for a network of "
                            "single precision that takes a sigma an image give lambda u, sigma: "
                            "network(u.float(), sigma.float().expand(len(u))) "
                            f"({said})") from error
        raise
    shape = getattr(clean, "shape", None)
    if shape != u.shape:
        found = type(clean).__name__ if shape is None else list(shape)
        raise UserError(f"a denoiser answers with an image for each u, {list(u.shape)}: this one's "
                        f"answer is {found}")
    return clean


def sample_gaussian(denoiser: GaussianDenoiser, noise: Tensor, solver: Solver) -> Tensor:
    """sample(denoiser, noise, solver), in two products with the eigenvectors.

    Along an eigenvector D is a factor, and so is the whole run: a run on ones finds them all.
    noise: [B, C, H, W]; solver: any but "consistency", which adds noise on its way.
    """
    values, vectors = denoiser.eigenvalues[:, None, None], denoiser.eigenvectors
    factors = sample(lambda u, sigma: u * values / (values + sigma**2),
                     torch.ones_like(values)[None], solver).flatten().to(vectors)
    u = noise.to(vectors)
    z = (u - denoiser.mean / solver.sigma_max).flatten(1)  # in other directions it ends at 0
    x0 = denoiser.mean + (z @ vectors * factors @ vectors.T).view_as(u)
    return x0.float().to(noise.device)


def consistency_function(denoiser: Denoiser, solver: Solver = Solver()) -> Denoiser:
    """(u, sigma) -> the end of the denoiser's ODE from there, by `solver` from sigma down.

    What a consistency model learns (Song et al. 2023, definition 1), of any denoiser.
    """
    run = partial(sample_gaussian if isinstance(denoiser, GaussianDenoiser) else sample, denoiser)
    return lambda u, sigma: run(u / sigma, replace(solver, sigma_max=float(sigma)))


def every_class(denoiser: Denoiser, noise: Tensor, solver: Solver, classes: Sequence[int],
                progress: str = "") -> Tensor:
    """x0 [n, classes, C, H, W]: each of the noises [n, C, H, W] with each of the labels."""
    labels = torch.tensor(classes, device=noise.device).repeat(len(noise))
    repeated = noise.repeat_interleave(len(classes), 0)
    x0 = sample(denoiser, repeated, solver, labels, progress=progress)
    return x0.unflatten(0, (len(noise), len(classes)))


def _last(states: Iterator[Tensor]) -> Tensor:
    for state in states:
        pass
    return state
