"""Objectives that make students: models that need a few steps, or one.

    Progressive   one step of the student is two of its teacher (Salimans & Ho 2022)
    Consistency   all points of a trajectory have one answer, its end (Song et al. 2023): distilled
                  from a teacher, or trained from data alone

An objective is what `training` minimizes instead of the denoising loss. A student is a denoiser
like any other: what it answers for u at sigma is where it lands. A teacher is any denoiser that
takes a noise level for each image, sigma [B]; see `Teacher`.

`train.ipynb` distills a file of weights. With a teacher of another kind the loop is yours:

    loss = objective("progressive", student, Solver("ddim", 2, "cosine"), teacher)
    loss(student, Batch(clean, torch.randn_like(clean), torch.rand(len(clean)))).backward()

The student is a Preconditioned network, here of 2 steps (then teacher of the one of 1 step), clean
images [B, C, H, W] in [-1, 1]. Consistency objectives also want `loss.follow(student, batch)` after
every step of the optimizer.
"""

import copy
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paper_utils import samplers
from paper_utils.denoisers import CONSISTENCY, Denoiser, Framework, Preconditioned, column
from paper_utils.errors import UserError, choose
from paper_utils.samplers import EULER, Solver, toward


@dataclass(frozen=True)
class Batch:
    """What one step of a training draws.

    clean: [B, C, H, W] in [-1, 1]; eps: unit normal like it; quantile: [B] in (0, 1), stratified;
    labels: int64 [B] or None; seen: images seen before this step; seed: of dropout, for an
    objective that evaluates twice with the same; augment: [B, 9] of augmented images, or None.
    """

    clean: Tensor
    eps: Tensor
    quantile: Tensor
    labels: Tensor | None = None
    seen: int = 0
    seed: int = 0
    augment: Tensor | None = None

    @contextmanager
    def seeded_dropout(self) -> Iterator[None]:
        """In here torch's global stream, from which dropout draws, starts anew from `seed`; after
        it the stream, that of a GPU too, goes on as if nothing had been drawn.

        Not by torch.manual_seed: for all kinds of devices it takes a tenth of the step of a small
        network.
        """
        on_gpu = self.clean.is_cuda
        with torch.random.fork_rng(devices=[self.clean.device] if on_gpu else []):
            torch.default_generator.manual_seed(self.seed)
            if on_gpu:
                torch.cuda.manual_seed(self.seed)
            yield


class Objective:
    """A loss of the student on a batch: objective(student, batch) -> scalar.

    target: a slowly following copy of the student, for those that need one. `follow` is called
    after every optimizer step.
    """

    target: nn.Module | None = None

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError

    def follow(self, student: nn.Module, batch: Batch) -> None:
        """Nothing to follow."""


class Teacher:
    """A denoiser to learn from, asked about u [B, C, H, W] at a noise level each, sigma [B].

    A function such as u / (1 + sigma**2) would stretch those levels along the columns of an image,
    so one that is not Preconditioned is first asked about an image alone and beside another level.

    sigmas: the levels it will be asked at. Raises UserError for a consistency function and for
    levels that the framework of a trained teacher was not trained at; and the first time it is
    asked as samplers.check_denoiser does, and where it does not answer each image at its own level.
    """

    def __init__(self, denoiser: Denoiser, sigmas: Tensor):
        self.denoiser, self.known = denoiser, False
        self.low, self.high = sigmas[sigmas > 0].min().item(), sigmas.max().item()
        if isinstance(kind := getattr(denoiser, "framework", None), Framework):
            self._check_framework(kind)

    def _check_framework(self, kind: Framework) -> None:
        if kind.name.endswith(CONSISTENCY):
            raise UserError(f"the teacher, of the framework '{kind.name}', answers with ends of "
                            "trajectories: learn from a denoiser, whose answers are means")
        if not kind.sigma_min * 0.999 <= self.low <= self.high <= kind.sigma_max * 1.001:
            raise UserError(f"the teacher was trained at noise levels {kind.sigma_min:.3g} to "
                            f"{kind.sigma_max:.3g} ({kind.label}), but would be asked at "
                            f"{self.low:.3g} to {self.high:.3g}: use fewer steps or another "
                            "sigma_max")

    def __call__(self, u: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        if not self.known:
            self._check(u[:1].clamp(-1, 1), labels)
            self.known = True
        return self.denoiser(u, sigma) if labels is None else self.denoiser(u, sigma, labels=labels)

    def _check(self, image: Tensor, labels: Tensor | None) -> None:
        try:
            samplers.check_denoiser(self.denoiser, labels)
        except UserError as error:
            raise UserError(f"the teacher: {error}") from None
        if not isinstance(self.denoiser, Preconditioned):
            self._check_rows(image, {} if labels is None else {"labels": labels[:1]})

    def _check_rows(self, image: Tensor, told: dict[str, Tensor]) -> None:
        """UserError unless one image has the same answer alone and beside another noise level."""
        sigma, two = image.new_tensor([self.low, self.high]), image.repeat(2, 1, 1, 1)
        twice, why = {key: value.repeat(2) for key, value in told.items()}, ""
        alone = self.denoiser(image, sigma[:1], **told)
        try:
            both = self.denoiser(two, sigma, **twice)
            if both.shape != two.shape:
                why = f"for u of {list(two.shape)} its answer is {list(both.shape)}"
            elif (both[:1] - alone).norm() > 0.1 * alone.norm():  # far above rounding, of bf16 too
                why = "an image's answer changes with the level of another"
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
        if why:
            raise UserError("a teacher answers each image of u [B, C, H, W] at its own level of "
                            f"sigma [B], and this one does not ({why}): make sigma a column in it, "
                            "sigma.view(-1, 1, 1, 1)")


# --- progressive distillation -------------------------------------------------------------------

WEIGHTS = {
    "truncated-snr": lambda sigma: (1 / sigma**2).clamp(min=1),
    "snr+1": lambda sigma: 1 + 1 / sigma**2,
}


def halvings(steps: int) -> list[int]:
    """[steps / 2, ..., 2, 1]: the students of a teacher with that many steps.

    Raises UserError unless steps is a power of two, 2 or more.
    """
    if type(steps) is not int or steps < 2 or steps & (steps - 1):
        near = 2 ** max(1, round(math.log2(max(steps, 2))))
        raise UserError(f"{steps} steps cannot be halved down to 1: give a power of two, such as "
                        f"{near}")
    return [2**k for k in reversed(range(steps.bit_length() - 1))]


def two_steps_in_one(teacher: Denoiser, u: Tensor, here: Tensor, middle: Tensor, there: Tensor,
                     labels: Tensor | None = None) -> Tensor:
    """The x0 whose one DDIM step from `here` to `there` is the teacher's two over `middle`.

    Salimans & Ho 2022, algorithm 2. In sigma coordinates it is a weighted mean of the teacher's two
    answers, which is how it is computed: (u_there - r u) / (1 - r) with r = there / here, the same
    number, divides rounding errors by 1 - r. sigmas: scalar or [B, 1, 1, 1]; `there` may be 0.
    """
    told = {} if labels is None else {"labels": labels}
    first = teacher(u, here.flatten(), **told)
    second = teacher(toward(first, u, here, middle), middle.flatten(), **told)
    weight = (1 - there / middle) / (1 - there / here)
    return first + weight * (second - first)


class Progressive(Objective):
    """Progressive distillation (Salimans & Ho 2022): one step of the student is two of the teacher.

    solver: that of the student; its sampler is DDIM, its levels every other one of a teacher with
    twice the steps. weight: of the squared error of x0; 'truncated-snr' is max(SNR, 1) with SNR =
    1 / sigma^2, 'snr+1' the squared error of v. Whatever the network predicts (v, x0, eps, F), the
    loss sees it as x0, which is exact, since both sides are denoisers. They anneal the learning
    rate to 0 in every stage; here it is constant and the student is the EMA of its weights.

    Raises UserError for levels that do not halve, another sampler, and as `Teacher` does.
    """

    def __init__(self, teacher: Denoiser, solver: Solver, *, weight: str = "truncated-snr"):
        self.teacher, self.solver = teacher, solver
        self.weight = WEIGHTS[choose(weight, WEIGHTS, "weight of progressive distillation")]
        self.sigmas = replace(solver, steps=2 * solver.steps).sigmas.float()
        if solver.sampler not in EULER or not torch.equal(self.sigmas[::2], solver.sigmas.float()):
            raise UserError(f"progressive distillation halves the steps of DDIM, but those of "
                            f"{solver.sampler} on the schedule '{solver.schedule}' are not every "
                            "other one of twice as many: use Solver('ddim', steps, 'cosine')")
        self.ask = Teacher(teacher, self.sigmas)

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        sigmas = self.sigmas.to(batch.clean.device)
        k = 2 * (batch.quantile * self.solver.steps).long().clamp(max=self.solver.steps - 1)
        here, middle, there = (column(sigmas[k + i], batch.clean) for i in range(3))
        u = batch.clean + here * batch.eps
        with torch.no_grad():
            target = two_steps_in_one(self.ask, u, here, middle, there, batch.labels)
        error = student(u, here.flatten(), batch.labels) - target
        return (self.weight(here) * error**2).mean()


# --- consistency --------------------------------------------------------------------------------

def growing_levels(seen: int, curriculum: int, first: int, last: int) -> int:
    """N(k) of Song et al. 2023 (appendix C): grows from `first` noise levels to last + 1.

    seen, curriculum: images, so far and until the growth ends.
    """
    done = min(seen / curriculum, 1)
    return math.ceil(math.sqrt(done * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1


def doubling_levels(seen: int, curriculum: int, first: int, last: int) -> int:
    """N(k) of Song & Dhariwal 2024 (section 3.4): first + 1 levels, doubled up to last + 1."""
    stage = curriculum / (math.log2(last // first) + 1)
    return min(first * 2 ** math.floor(seen / stage), last) + 1


def squared(difference: Tensor) -> Tensor:
    """|a - b|^2 per pixel: [B, C, H, W] -> [B]."""
    return difference.flatten(1).square().mean(1)


def pseudo_huber(difference: Tensor) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c, c = 0.00054 sqrt(d) (Song & Dhariwal 2024, section 3.3): [B]."""
    rows = difference.flatten(1)
    c = 0.00054 * math.sqrt(rows.shape[1])
    return (rows.square().sum(1) + c**2).sqrt() - c


def lognormal_index(quantile: Tensor, sigmas: Tensor) -> Tensor:
    """Which of the rising levels sigmas [N], 0..N-2: log sigma is normal, cut to the levels.

    Its mean is -1.1, its deviation 2 (Song & Dhariwal 2024, section 3.5). quantile: [B] in (0, 1),
    inverted through the cumulative sum.
    """
    share = torch.special.ndtr((sigmas.double().log() + 1.1) / 2).diff()
    steps = (share / share.sum()).cumsum(0)
    return torch.searchsorted(steps, quantile.double()).clamp(max=len(sigmas) - 2)


LEVELS = {"growing": growing_levels, "doubling": doubling_levels}
DISTANCES = {"l2": squared, "pseudo-huber": pseudo_huber}


class Consistency(Objective):
    """Consistency distillation (with a teacher) and consistency training (without).

        d(f(x0 + s_{n+1} eps, s_{n+1}), f_target(u_n, s_n))        (Song et al. 2023, eqs. 7 and 10)

    u_n: one solver step of the teacher from the same noisy image, or without one x0 + s_n eps. f is
    the student, whose framework ends in '-consistency' (f(u, sigma_min) = u). f_target is a copy of
    it that follows with decay `decay`, or 0: the student itself, no gradient.

    levels: how their number grows over `curriculum` images seen (needed unless first == last, where
    it stays): 'growing' from `first` to last + 1, 'doubling' from first + 1 to last + 1, as the two
    papers count; decay: of the target at `first` levels; where they grow it becomes
    decay^(first / N), as in theirs. distance: 'l2' or 'pseudo-huber'; lognormal: noise levels drawn
    as in `lognormal_index` instead of uniformly, and weights 1 / (s_{n+1} - s_n) instead of 1, the
    two of Song & Dhariwal 2024. solver: a step of samplers.STEPS.

    Raises UserError for options that make no sense, a student of another framework, and as
    `Teacher` does.
    """

    def __init__(self, student: Preconditioned, teacher: Denoiser | None = None, *,
                 levels: str = "growing", first: int = 2, last: int = 150,
                 curriculum: int = 0, decay: float = 0.0, distance: str = "l2",
                 lognormal: bool = False, solver: str = "heun", sigma_max: float = 80.0):
        self.number = LEVELS[choose(levels, LEVELS, "curriculum")]
        self.distance = DISTANCES[choose(distance, DISTANCES, "distance")]
        self.step = samplers.STEPS[choose(solver, samplers.STEPS, "solver step")]
        if not 2 <= first <= last or not 0 <= decay < 1:
            raise UserError("consistency needs 2 <= first <= last levels and a decay from 0 up to "
                            f"1, not first={first}, last={last}, decay={decay}")
        kind = getattr(getattr(student, "framework", None), "name", "")
        if not kind.endswith(CONSISTENCY):
            raise UserError("a consistency student needs f(u, sigma_min) = u: give it the "
                            f"framework '{kind or 'edm'}{CONSISTENCY}', as in "
                            "Preconditioned(network, framework(name))")
        if first < last and curriculum < 1:
            raise UserError(f"the levels grow from {first} to {last}: give curriculum, over how "
                            "many images seen")
        self.sigma_min, self.sigma_max = student.framework.sigma_min, sigma_max
        if not self.sigma_min < sigma_max < math.inf:
            raise UserError(f"sigma_max={sigma_max}: give a number above the student's sigma_min, "
                            f"{self.sigma_min:g}")
        self.teacher, self.curriculum, self.lognormal = teacher, curriculum, lognormal
        self.first, self.last, self.decay = first, last, decay
        self.target = copy.deepcopy(student).requires_grad_(False) if decay else None
        self.ask = None if teacher is None else Teacher(
            teacher, torch.tensor([self.sigma_min, sigma_max]))

    def noise_levels(self, seen: int) -> Tensor:
        """[N] float64, rising from sigma_min to sigma_max, after `seen` images."""
        count = self.last if self.first == self.last else self.number(
            seen, self.curriculum, self.first, self.last)
        return samplers.karras_sigmas(count, self.sigma_min, self.sigma_max)[:-1].flip(0)

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        sigmas = self.noise_levels(batch.seen).to(batch.clean.device)
        n = lognormal_index(batch.quantile, sigmas) if self.lognormal else (
            batch.quantile * (len(sigmas) - 1)).long().clamp(max=len(sigmas) - 2)
        low, high = (column(sigmas[n + i], batch.clean) for i in range(2))
        u = batch.clean + high * batch.eps
        with torch.no_grad():
            below = self._below(u, low, high, batch)
            goal = self._seeded(self.target or student, below, low, batch)
        apart = self.distance(self._seeded(student, u, high, batch) - goal)
        weight = 1 / (high - low).flatten() if self.lognormal else 1
        return (weight * apart).mean()

    def _below(self, u: Tensor, low: Tensor, high: Tensor, batch: Batch) -> Tensor:
        """The point one level lower on the trajectory through u, or through its clean image."""
        if self.teacher is None:
            return batch.clean + low * batch.eps
        ask = lambda u, sigma: self.ask(u, sigma.flatten(), batch.labels)
        return self.step(ask, u, ask(u, high), high, low)

    @staticmethod
    def _seeded(model: nn.Module, u: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """The model's answer; two answers of one step have the same dropout."""
        with batch.seeded_dropout():
            return model(u, sigma.flatten(), batch.labels)

    def follow(self, student: nn.Module, batch: Batch) -> None:
        if self.target is None:
            return
        keep = self.decay ** (self.first / len(self.noise_levels(batch.seen)))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(student.parameters()),
                                 1 - keep)
            for its, buffer in zip(self.target.buffers(), student.buffers()):
                its.copy_(buffer)


# --- by name ------------------------------------------------------------------------------------

# What a specification calls an objective: ours by Song et al. 2023 and Song & Dhariwal 2024, whose
# learned metric (LPIPS) is a download and left out. `cd` keeps 18 levels, as theirs on CIFAR-10;
# the decay of its target is this project's choice. They train in float32 with RAdam; here it is
# Adam, and bf16 where the specification says so.
IMPROVED = dict(levels="doubling", first=10, last=1280, distance="pseudo-huber", lognormal=True)
CONSISTENT = {
    "cd": dict(first=18, last=18, decay=0.95),
    "ct": dict(first=2, last=150, decay=0.9),
    "icd": IMPROVED,
    "ict": IMPROVED,
}
FROM_A_TEACHER = ("progressive", "cd", "icd")
OBJECTIVES = ("progressive", *CONSISTENT)


def untrained(objective: str, own: Solver, solver: Solver) -> str:
    """What is wrong with sampling a student, trained for the steps of `own`, by `solver`; or ''."""
    same = own.sigma_max == solver.sigma_max and own.steps == solver.steps and (
        own.steps == 1 or solver.sampler in EULER and own.schedule == solver.schedule)
    if objective == "progressive" and not same:
        return (f"was distilled for {own.steps} step(s) of {own.sampler} on '{own.schedule}' "
                f"levels from {own.sigma_max:g}, not for {solver.steps} of {solver.sampler} on "
                f"'{solver.schedule}' levels from {solver.sigma_max:g}")
    if objective in CONSISTENT and solver.sampler != "consistency" and solver.steps > 1:
        return (f"answers with the end of a trajectory, which {solver.sampler} takes for a "
                "denoiser's mean: use the sampler 'consistency'")
    if objective not in CONSISTENT and solver.sampler == "consistency" and solver.steps > 1:
        return ("is no consistency model: the consistency sampler takes its answers, which are "
                "means, for ends of trajectories")
    return ""


def objective(name: str, student: Preconditioned, solver: Solver, teacher: Denoiser | None = None,
              /, **options) -> Objective:
    """The objective of that name with single options changed.

    Raises UserError for an unknown name or option, a teacher that is missing or not wanted, and as
    the objectives do.
    """
    choose(name, OBJECTIVES, "objective")
    kind = inspect.getfullargspec(Progressive if name == "progressive" else Consistency)
    for option in options:
        choose(option, kind.kwonlyargs, f"option of '{name}'")
    if (teacher is not None) != (name in FROM_A_TEACHER):
        raise UserError(f"'{name}' learns from " + (
            "a teacher: say which one (start)" if teacher is None else "data alone: leave out the "
            "teacher (start)"))
    if name == "progressive":
        return Progressive(teacher, solver, **options)
    return Consistency(student, teacher,
                       **{"sigma_max": solver.sigma_max} | CONSISTENT[name] | options)
