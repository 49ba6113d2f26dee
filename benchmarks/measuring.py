"""Time and memory: how they are taken, and the row that says whether a target is met."""

import multiprocessing
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor, nn

from paper_utils.noise import stream

PROCESSES = multiprocessing.get_context("spawn")  # each child is a fresh interpreter


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
    training: int = 8      # steps of a turn of training
    images_known: int = 32_768  # of the optimal denoiser
    noises: int = 256
    guided: int = 32       # images of Algorithm 1 at once
    restored: int = 64     # images reconstructed, in as many steps:
    restoring: int = 50
    distilled: int = 64    # images of a step of distillation; four times as many on a GPU
    distilling: int = 2    # steps of a turn; ten times as many on a GPU
    stored: int = 32       # artifacts of 4 MiB


QUICK = Size(samples=2_000, images=10_000, slice=1_000, batch=4, steps=5, training=2,
             images_known=16_384, noises=2, guided=4, restored=2, restoring=5,
             distilled=16, stored=8)


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


def quartiles_over(mine: list[float], other: list[float]) -> list[float]:
    """The three quartiles of our time over theirs, round by round."""
    return quantiles([a / b for a, b in zip(mine, other)], n=4)


def within(mine: list[float], other: list[float], most: float) -> bool:
    """Whether our time is at most `most` of theirs, in every part by one rule: it is missed when
    three rounds in four, or more, are beyond it."""
    return quartiles_over(mine, other)[0] <= most


def evaluations(network: nn.Module, work: Callable[[], object]) -> int:
    """How often `work` calls the network."""
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    work()
    handle.remove()
    return len(calls)


def no_slower(what: str, network: nn.Module, ours: Callable[[], Tensor],
              theirs: Callable[[], Tensor], repeats: int) -> Row:
    """Our time over theirs, of equally many evaluations of the network."""
    calls = {evaluations(network, ours), evaluations(network, theirs)}
    if len(calls) != 1:
        raise RuntimeError(f"{what}: unequal numbers of evaluations, {calls}")
    mine, other = in_turns(repeats, ours, theirs)
    low, ratio, high = quartiles_over(mine, other)
    shown = (f"{ratio:.2f} of its time (quartiles {low:.2f} to {high:.2f}; {median(mine):.2f} s, "
             f"{median(other):.2f} s)")
    return Row(f"{what}, {calls.pop()} evaluations", shown, "no slower", within(mine, other, 1))


def alone(work: Callable[..., int], *arguments: object) -> int:
    """What a function of a module returns when a process of its own calls it."""
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        return pool.submit(work, *arguments).result()


def at_the_same_time(count: int, threads: int = 1, **environment: str) -> ProcessPoolExecutor:
    """A pool of `count` processes, each of which is to `wait_for_all` in every work it is given."""
    return ProcessPoolExecutor(count, PROCESSES, _start,
                               (PROCESSES.Barrier(count), threads, environment))


def _start(barrier, threads: int, environment: dict[str, str]) -> None:
    global _barrier
    _barrier = barrier
    os.environ.update(environment)
    torch.set_num_threads(threads)


def wait_for_all() -> None:
    """Until every process of the pool is here, so that each of them does one work."""
    _barrier.wait(120)  # or one of them failed


def peak_memory() -> int:
    """Highest resident size of this process so far, in bytes.

    On Linux from /proc: getrusage there inherits the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def extra_memory(work: Callable[[], object]) -> int:
    """By how much `work` raises the peak memory of this process, in bytes."""
    before = peak_memory()
    work()
    return peak_memory() - before


def some_noise(count: int, name: str = "noise") -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=stream("bench", name))


def some_pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8,
                         generator=stream("bench", "pixels"))
