"""The store of artifacts against reading its files without it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file

from benchmarks.measuring import (Row, Size, at_the_same_time, in_turns, quartiles_over,
                                  wait_for_all, within)
from paper_utils import artifacts, files
from paper_utils.errors import UserError


def kept(k: int) -> artifacts.Tensors:
    """Artifact k of the benchmark, 4 MiB; computed only where it is not there yet."""
    return artifacts.remember("bench", {"k": k}, lambda: {"x": torch.full((2**20,), float(k))})


def plainly(k: int) -> artifacts.Tensors:
    """The same from its file, with no more than the hash that tells whether it is damaged."""
    path = artifacts.path_of("bench", {"k": k})
    if files.sha256(path) != path.with_name(path.name + ".sha256").read_text().strip():
        raise UserError(f"{path} is damaged")
    return load_file(path)


def unchecked(k: int) -> artifacts.Tensors:
    """The same from its file, whether it is damaged or not."""
    return load_file(artifacts.path_of("bench", {"k": k}))


WAYS = {"store": kept, "by hand": plainly, "unchecked": unchecked}


class Readers:
    """Processes that read the same `count` artifacts of the store in `cache` at the same time."""

    def __init__(self, processes: int, count: int, cache: Path):
        self.processes, self.count, self.cache = processes, count, cache
        self.pool = at_the_same_time(processes, PAPER_UTILS_CACHE=str(cache))

    def read(self, way: str) -> None:
        """Read all of them in every process; way: one of WAYS."""
        for _ in self.pool.map(_read, [way] * self.processes, [self.count] * self.processes):
            pass


def _read(way: str, count: int) -> None:
    wait_for_all()
    if any(float(WAYS[way](k)["x"][-1]) != k for k in range(count)):
        raise RuntimeError("an artifact holds another's numbers")


@contextlib.contextmanager
def readers(*processes: int, count: int) -> Iterator[list[Readers]]:
    """Readers of `count` artifacts in a store of their own, which have read them all once."""
    with tempfile.TemporaryDirectory() as cache, contextlib.ExitStack() as stack:
        groups = [Readers(n, count, Path(cache)) for n in processes]
        for group in groups:
            stack.enter_context(group.pool)
            group.read("store")
        yield groups


def rows(size: Size) -> list[Row]:
    """Time of eight concurrent readers over reading by hand, with and without the check that takes
    most of it; one reader alone."""
    with readers(8, 1, count=size.stored) as (eight, one):
        ours, by_hand, bare, single = in_turns(
            size.repeats, *(lambda way=way: eight.read(way) for way in WAYS),
            lambda: one.read("store"))
    what = f"store, {size.stored} artifacts of 4 MiB"

    def rate(times: list[float], readers: int = 8) -> str:
        return f"{readers * 4 * size.stored / median(times):.0f}"

    def over(other: list[float]) -> str:
        low, ratio, high = quartiles_over(ours, other)
        return (f"{ratio:.2f}x the time (quartiles {low:.2f} to {high:.2f}; {rate(ours)} against "
                f"{rate(other)} MiB/s in total)")

    return [Row(f"{what}, eight readers against reading and checking sha256 by hand",
                over(by_hand), "<= 1.10x", within(ours, by_hand, 1.10)),
            Row(f"{what}, eight readers against reading without a check", over(bare), "none", True),
            Row(f"{what}, one reader", f"{rate(single, 1)} MiB/s", "none", True)]
