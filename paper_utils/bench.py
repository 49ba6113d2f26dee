"""Ratios against the code people would write otherwise: `python -m paper_utils.bench [--quick]`.

Both sides of a ratio are timed in the same run, turn by turn; the median of the repeats counts.
Let nothing else run meanwhile.

GL        max_i M(x, y_i) of every sample, against the loop of the authors' `mscore` in numpy
sampling  the same network, equally many evaluations, against a loop over a diffusers scheduler
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from torch import Tensor, nn

from paper_utils import denoisers, networks, samplers
from paper_utils.descriptors import max_similarity
from paper_utils.noise import stream
from paper_utils.samplers import Solver

DIM = 1024
MSCORE_BATCH = 128  # samples a step in the authors' mscore


@dataclass(frozen=True)
class Size:
    """How much is timed.

    At full size the loop of mscore would need an array of 26 GB, so it runs on a slice and its time
    is extrapolated, linear in both counts.
    """

    samples: int = 10_000
    images: int = 50_000
    slice: int = 2_000     # training images of the slice; its samples are one batch of mscore
    batch: int = 8         # images sampled at once
    steps: int = 10
    repeats: int = 9       # of sampling; a third of it for GL


QUICK = Size(samples=2_000, images=10_000, slice=1_000, batch=4, steps=5)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the target, and whether it is met."""

    what: str
    measured: str
    target: str
    met: bool


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(repeats: int, *works: Callable[[], object]) -> list[list[float]]:
    """Seconds of each of `works`, `repeats` times in turn, the other way round every other time."""
    times = {work: [] for work in works}
    for k in range(repeats):
        for work in works[::1 if k % 2 else -1]:
            times[work].append(seconds(work))
    return list(times.values())


# --- GL -----------------------------------------------------------------------------------------

def unit_features(n: int, name: str) -> Tensor:
    """Random unit rows [n, 1024], made in place."""
    rows = torch.empty(n, DIM).normal_(generator=stream("bench", name))
    for part in rows.split(1024):
        part /= part.norm(dim=1, keepdim=True)
    return rows


def mscore(samples: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The authors' loop: every product of a batch and all images, [128, N, 1024], then its sum."""
    best = [(samples[k:k + MSCORE_BATCH, None] * images[None]).sum(2).max(1)
            for k in range(0, len(samples), MSCORE_BATCH)]
    return np.concatenate(best)


def gl(size: Size) -> list[Row]:
    """Time of all similarities, and the memory that they need beyond the features."""
    samples, images = unit_features(size.samples, "samples"), unit_features(size.images, "images")
    few, part = samples[:MSCORE_BATCH].numpy(), images[:size.slice].numpy()
    scale = (size.samples / len(few)) * (size.images / len(part))
    torch.testing.assert_close(max_similarity(samples[:len(few)], images[:len(part)]),
                               torch.from_numpy(mscore(few, part)))
    ours, loop = in_turns(size.repeats // 3, lambda: max_similarity(samples, images),
                          lambda: mscore(few, part))
    ratio = median(scale * b / a for a, b in zip(ours, loop))
    what = f"GL, {size.samples:,} samples, {size.images:,} images, {DIM}-d"
    shown = (f"{ratio:.0f}x faster ({median(ours):.1f} s; loop {scale * median(loop):.0f} s, "
             f"extrapolated from {len(few)} x {len(part):,})")
    extra = extra_memory(size.samples, size.images)
    return [Row(f"{what}: time", shown, ">= 50x", ratio >= 50),
            Row(f"{what}: memory", f"{extra / 2**30:.2f} GiB extra", "< 1 GiB", extra < 2**30)]


def extra_memory(samples: int, images: int) -> int:
    """Peak memory of max_similarity beyond its inputs in bytes, in a process of its own."""
    code = f"from paper_utils.bench import print_extra as p; p({samples}, {images})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


def print_extra(samples: int, images: int) -> None:
    a, b = unit_features(samples, "samples"), unit_features(images, "images")
    before = peak_memory()
    max_similarity(a, b)
    print(peak_memory() - before)


def peak_memory() -> int:
    """Highest resident size of this process so far, in bytes.

    On Linux from /proc: getrusage there inherits the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- sampling -----------------------------------------------------------------------------------

def small_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(sample_size=32, block_out_channels=(32, 64), layers_per_block=1,
                       down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=8,
                       up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()


@torch.no_grad()
def scheduler_loop(unet: nn.Module, scheduler, noise: Tensor) -> Tensor:
    """What a diffusers pipeline does, without its progress bar and its conversion to PIL."""
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def evaluations(network: nn.Module, work: Callable[[], object]) -> int:
    """How often `work` calls the network."""
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    work()
    handle.remove()
    return len(calls)


def sampling(size: Size) -> list[Row]:
    """Wall time of our samplers over that of diffusers' schedulers, with the same network."""
    from diffusers import DDIMScheduler, HeunDiscreteScheduler

    unet = small_unet()
    denoiser = denoisers.Preconditioned(networks.DiffusersUNet(unet), denoisers.vp_discrete())
    noise = torch.randn(size.batch, 3, 32, 32, generator=stream("bench", "noise"))
    pairs = {"ddim": DDIMScheduler(), "heun": HeunDiscreteScheduler(beta_end=0.02,
                                                                    beta_start=1e-4)}
    return [compare(name, unet, denoiser, scheduler, noise, size)
            for name, scheduler in pairs.items()]


def compare(name: str, unet: nn.Module, denoiser: nn.Module, scheduler, noise: Tensor,
            size: Size) -> Row:
    """'No slower' is missed when three rounds in four, or more, are slower."""
    def ours() -> Tensor:
        return samplers.sample(denoiser, noise, Solver(name, size.steps, sigma_max=80))

    def theirs() -> Tensor:
        scheduler.set_timesteps(size.steps)
        return scheduler_loop(unet, scheduler, noise)

    calls = {evaluations(unet, ours), evaluations(unet, theirs)}
    if len(calls) != 1:
        raise RuntimeError(f"{name}: unequal numbers of evaluations, {calls}")
    mine, other = in_turns(size.repeats, ours, theirs)
    low, ratio, high = quantiles([a / b for a, b in zip(mine, other)], n=4)
    shown = (f"{ratio:.2f} of its time (quartiles {low:.2f} to {high:.2f}; {median(mine):.2f} s, "
             f"{median(other):.2f} s)")
    return Row(f"{name} against {type(scheduler).__name__}, {size.batch} images, "
               f"{calls.pop()} evaluations", shown, "no slower", low <= 1)


# --- the table ----------------------------------------------------------------------------------

def show(rows: list[Row]) -> None:
    widths = [max(len(getattr(row, field)) for row in rows) for field in ("what", "measured")]
    for row in rows:
        verdict = "met" if row.met else "MISSED"
        print(f"{row.what:<{widths[0]}}  {row.measured:<{widths[1]}}  target {row.target}: "
              f"{verdict}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m paper_utils.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, some seconds")
    size = QUICK if parser.parse_args(arguments).quick else Size()
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    show(gl(size) + sampling(size))


if __name__ == "__main__":
    main()
