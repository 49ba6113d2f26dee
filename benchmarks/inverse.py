"""Algorithm 1 against deepinv's DPS; reconstructions with a model of zoo/."""

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measuring import Row, Size, alone, extra_memory, no_slower, seconds, some_noise
from benchmarks.training import diffusers_unet
from paper_utils import inverse, models, operators, training
from paper_utils.samplers import Solver


class Inpainting:
    """Random inpainting, for both: the same denoiser, mask, noise, noise levels and zeta.

    With these settings deepinv's step is that of Algorithm 1, so the answers agree up to rounding
    (deepinv's denoiser gets float32). The weights are random; the state of both is float64.
    """

    def __init__(self, batch: int, steps: int):
        self.denoiser = training.build(replace(diffusers_unet("cpu"), framework="edm")).eval()
        self.operator = operators.random_inpainting(batch, 0.7)
        self.noise = some_noise(batch)
        self.y = operators.measure(some_noise(batch, "images"), self.operator).y
        self.guidance = inverse.Guidance(1.0, Solver("dpm-solver-1", steps), "flow")

    @torch.no_grad()
    def ours(self) -> Tensor:
        for state in inverse.dps(self.denoiser, self.noise.double(), self.y.double(),
                                 self.operator, self.guidance):
            pass
        return state.u

    def deepinv(self) -> Callable[[], Tensor]:
        """DPS of deepinv with DDIM's step, eta 0, in the levels of our solver: t is sigma."""
        from deepinv import physics, sampling

        sigmas = self.guidance.solver.sigmas
        guided = sampling.PosteriorDiffusion(
            sampling.DPSDataFidelity(weight=self.guidance.zeta), self.denoiser,
            sampling.EDMDiffusionSDE(lambda t: t, variance_exploding=True),
            sampling.DDIMSolver(sigmas, eta=0), minus_one_one=False)
        masked = physics.Inpainting((3, 32, 32), self.operator.state)
        return lambda: guided(self.y, masked, sigmas[0] * self.noise.double())


def rows(size: Size) -> list[Row]:
    """Time and memory of Algorithm 1 over deepinv's, if it is there; seconds to reconstruct."""
    if find_spec("deepinv"):
        return [*against_deepinv(size), reconstruction(size)]
    missing = Row("Algorithm 1 against deepinv's DPS",
                  "deepinv is not installed: pip install deepinv", "no slower", True)
    return [missing, reconstruction(size)]


def against_deepinv(size: Size) -> list[Row]:
    """Wall time of equally many steps, one evaluation each on both sides, and peak memory.

    In the processes whose memory is taken, glibc returns every freed block of 128 KiB or more, lest
    its reuse of them blur the peak.
    """
    both = Inpainting(size.guided, size.steps)
    ours, theirs = both.ours, both.deepinv()
    torch.testing.assert_close(ours(), theirs(), rtol=0, atol=1e-4)
    what = f"Algorithm 1 against deepinv's DPS, {size.guided} images"
    row = no_slower(f"{what}, {size.steps} steps", both.denoiser.network, ours, theirs,
                    size.repeats)
    with mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**17)):
        mine, other = (alone(memory, side, size.guided) / 2**20 for side in ("ours", "deepinv"))
    return [row, Row(f"{what}: memory", f"{mine:.1f} MiB beyond the model, {other:.1f} MiB",
                     "no more", mine <= other)]


def memory(side: str, batch: int) -> int:
    """Peak memory of two steps beyond what both sides need to start, in bytes."""
    both = Inpainting(batch, 2)
    return extra_memory({"ours": both.ours, "deepinv": both.deepinv()}[side])


def reconstruction(size: Size) -> Row:
    """Seconds that a model of zoo/ takes to reconstruct images of random pixels, 70 % lost."""
    n, steps = size.restored, size.restoring
    operator = operators.random_inpainting(n, 0.7)
    measurement = operators.measure(some_noise(n, "images").clamp(-1, 1), operator)
    denoiser, noise = models.shipped("edm").denoiser(), some_noise(n)
    guidance = inverse.Guidance(solver=Solver("dpm-solver-1", steps))
    taken = seconds(lambda: inverse.reconstruct(denoiser, noise, measurement, operator, guidance))
    return Row(f"reconstruction of {n} images, {steps} steps", f"{taken:.1f} s", "< 300 s",
               taken < 300)
