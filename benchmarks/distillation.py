"""A step of distillation against the evaluations of networks that it cannot do without."""

from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from benchmarks.measuring import Row, Size, in_turns, quartiles_over, some_noise, within
from benchmarks.training import Ours, wait_for
from paper_utils import networks, recipes, training
from paper_utils.denoisers import CONSISTENCY
from paper_utils.distillation import halvings
from paper_utils.precision import bf16
from paper_utils.samplers import Solver


def distillation_spec(objective: str, batch: int) -> training.Spec:
    """A student, 32 channels wide, whose step evaluates three networks and differentiates one.

    objective: 'progressive' (the teacher twice and the student) or 'cd' (the teacher, whose step is
    Euler's, the target and the student).
    """
    spec = training.Spec(f"bench-{objective}", "unet", images=512, batch=batch, images_seen=10**9,
                         network_args=networks.DDPMPP | recipes.GRIDS["gpu"].network
                         | {"width": 32}, solver=Solver("ddim", 8, "cosine"), precision="bf16",
                         start="teacher", objective=objective)
    if objective == "progressive":
        return spec
    return replace(spec, framework=spec.framework + CONSISTENCY, objective_args={"solver": "euler"},
                   solver=Solver("consistency", 1))


def distilled(spec: training.Spec, device: str) -> Ours:
    """The loop of a student whose teacher has random weights."""
    teacher = replace(spec, framework=spec.teacher_framework, objective="denoising", start="")
    return Ours(spec, device, training.build(teacher).network.state_dict())


class Bare:
    """What such a step cannot do without: two passes without gradient, one with, one backward.

    It evaluates the network of `run` itself, on as many images in the same precision; there is no
    optimizer, no average of the weights and no noise to draw.
    """

    def __init__(self, run: training.Training):
        self.network, self.device = run.denoiser.network, run.device.type
        self.noisy = some_noise(run.spec.batch).to(run.device)
        self.times = torch.zeros(run.spec.batch, device=run.device)
        self.half = run.spec.precision == "bf16"

    def steps(self, count: int) -> None:
        for _ in range(count):
            with torch.no_grad():
                self._answer()
                self._answer()
            loss = self._answer().float().square().mean()
            self.network.zero_grad()
            loss.backward()
        wait_for(self.device)

    def _answer(self) -> Tensor:
        with bf16(self.device, self.half):
            return self.network(self.noisy, self.times)


def rows(size: Size, device: str) -> list[Row]:
    """Overhead of both kinds of distillation; what the halvings take at the measured rate."""
    more, steps = (4, 10 * size.distilling) if device == "cuda" else (1, size.distilling)
    specs = [distillation_spec(name, more * size.distilled) for name in ("progressive", "cd")]
    overheads, rates = zip(*(overhead(spec, steps, size.repeats, device) for spec in specs))
    return [*overheads, *(halving(name, rates[0], device) for name in ("laptop", "gpu"))]


def overhead(spec: training.Spec, steps: int, repeats: int, device: str) -> tuple[Row, float]:
    """Time of a step over that of its evaluations alone, and its images per second."""
    ours = distilled(spec, device)
    bare = Bare(ours.run)
    for loop in (ours, bare):
        loop.steps(2)
    mine, other = in_turns(repeats, lambda: ours.steps(steps), lambda: bare.steps(steps))
    low, ratio, high = quartiles_over(mine, other)
    rate, bound = (spec.batch * steps / median(times) for times in (mine, other))
    shown = (f"{ratio:.2f}x the time (quartiles {low:.2f} to {high:.2f}; {rate:.0f} against "
             f"{bound:.0f} images/s)")
    row = Row(f"distillation ({spec.objective}) against three forward passes and one backward, "
              f"batch {spec.batch}", shown, "<= 1.15x", within(mine, other, 1.15))
    return row, rate


def halving(profile: str, rate: float, device: str) -> Row:
    """Minutes of all halvings with the budget of a profile, at `rate` images per second.

    Of the steps alone, and judged on a GPU only.
    """
    study = recipes.DISTILLATIONS[profile]
    stages = len(halvings(study.steps))
    minutes = stages * study.stage_budget / rate / 60
    gpu = device == "cuda"
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} thread(s) of a CPU"
    return Row(f"distilling a U-Net of width 32 from {study.steps} steps to 1, budget '{profile}'",
               f"{minutes:.1f} min on {where} ({stages} x {study.stage_budget:,} images at "
               f"{rate:.0f} a second)", "< 10 min on one H200-class GPU" if gpu else "none",
               not gpu or minutes < 10)
