"""The similarities behind GL against the loop of the authors' `mscore` and a plain product."""

from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import Row, Size, alone, extra_memory, in_turns, within
from paper_utils.descriptors import max_similarity
from paper_utils.noise import stream

DIM = 1024
MSCORE_BATCH = 128  # samples a step in the authors' mscore


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


def rows(size: Size) -> list[Row]:
    """Time of all similarities, and the memory that they need beyond the features."""
    samples, images = unit_features(size.samples, "samples"), unit_features(size.images, "images")
    few, part = samples[:MSCORE_BATCH].numpy(), images[:size.slice].numpy()
    scale = (size.samples / len(few)) * (size.images / len(part))
    torch.testing.assert_close(max_similarity(samples[:len(few)], images[:len(part)]),
                               torch.from_numpy(mscore(few, part)))
    ours, loop, plain = in_turns(size.repeats // 3, lambda: max_similarity(samples, images),
                                 lambda: mscore(few, part),
                                 lambda: (samples @ images.T).max(1))
    loop = [scale * taken for taken in loop]
    ratio = median(b / a for a, b in zip(ours, loop))
    what = f"GL, {size.samples:,} samples, {size.images:,} images, {DIM}-d"
    shown = (f"{ratio:.0f}x faster ({median(ours):.1f} s; loop {median(loop):.0f} s, "
             f"extrapolated from {len(few)} x {len(part):,})")
    over = median(a / b for a, b in zip(ours, plain))
    product = (f"{over:.2f}x the time ({median(plain):.1f} s, with "
               f"{size.samples * size.images * 4 / 2**30:.2f} GiB of products)")
    extra = alone(memory, size.samples, size.images)
    return [Row(f"{what}: time", shown, ">= 50x", within(ours, loop, 1 / 50)),
            Row(f"{what}: time against (a @ b.T).max(1)", product, "none", True),
            Row(f"{what}: memory", f"{extra / 2**30:.2f} GiB extra", "< 1 GiB", extra < 2**30)]


def memory(samples: int, images: int) -> int:
    """Peak memory of max_similarity beyond its inputs, in bytes; for a process of its own."""
    a, b = unit_features(samples, "samples"), unit_features(images, "images")
    return extra_memory(lambda: max_similarity(a, b))
