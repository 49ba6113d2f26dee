"""Noise that depends on nothing but its name: the noise bank and the named random streams."""

import hashlib
import operator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paper_utils.errors import UserError


def seed_of(*key: object) -> int:
    """A 63-bit seed from any printable key: the same key gives the same seed for ever."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(*key: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for `key`, e.g. stream(run, "noise", step).

    On the CPU torch uses only 32 bits of the seed, so in a long run a few pairs of steps may share
    a stream. The noise bank uses all 64 bits and has no such collisions.
    """
    return torch.Generator(device).manual_seed(seed_of(*key))


EXTENT = (-0.5, 1.5)  # of the noise hyperplane in alpha and beta; the paper's was not seen


@dataclass(frozen=True)
class NoiseBank:
    """Unit normal noises every model shares (the paper compares models on the same noises).

    Noise k is drawn by a counter-based generator keyed by (seed, k), on the CPU, by numpy: it does
    not depend on the batch it is drawn in, on how many are asked for, or on any device. Raises
    UserError for a seed that is no whole number of 63 bits.
    """

    seed: int = 0
    shape: tuple[int, ...] = (3, 32, 32)

    def __post_init__(self) -> None:
        try:
            known = 0 <= operator.index(self.seed) < 2**63
        except TypeError:
            known = False
        if not known:
            raise UserError(f"noise bank of seed {self.seed!r}: give a whole number from 0 to "
                            "2**63 - 1")

    @property
    def name(self) -> str:
        """What a sample file stores beside its range, e.g. 'bank-0-3x32x32'."""
        return f"bank-{self.seed}-{'x'.join(map(str, self.shape))}"

    def __getitem__(self, index: int | slice) -> Tensor:
        """bank[k] -> [*shape]; bank[i:j] -> [j-i, *shape], float32. Slices need a stop.

        Raises UserError for an index that is negative, beyond 63 bits or no whole number, and for a
        slice without an end (the bank has no last noise) or of step 0.
        """
        if isinstance(index, slice) and index.step == 0:
            raise UserError("a slice of the noise bank has a step: give 1 for every noise, not 0")
        try:
            if not isinstance(index, slice):
                return self._draw(operator.index(index))  # of numpy too
            slice.indices(index, 0)
        except TypeError:
            raise UserError(f"the noise bank takes whole numbers or a slice of them, not {index!r}:"
                            " stack bank[k] for each k of others") from None
        if index.stop is None or index.stop < 0 or (index.start or 0) < 0:
            raise UserError("the noise bank is endless: ask for bank[i:j] with 0 <= i <= j")
        numbers = range(index.start or 0, index.stop, index.step or 1)
        if not numbers:
            return torch.empty(0, *self.shape)
        return torch.stack([self._draw(k) for k in numbers])

    def _draw(self, k: int) -> Tensor:
        if not 0 <= k < 2**63:
            raise UserError("the noise bank is all but endless: noises are numbered from 0 to "
                            "2**63 - 1")
        generator = np.random.Generator(np.random.Philox(key=[self.seed, k]))
        return torch.from_numpy(generator.standard_normal(self.shape, dtype=np.float32))


def successor(noise: Tensor, step: int) -> Tensor:
    """Fresh unit normal noise for every row of noise [B, ...], drawn from the row's float32 bits.

    The same row gives the same successor in every batch and for every model.
    """
    rows = [np.random.Generator(np.random.Philox(key=[step, seed_of(row.tobytes().hex())]))
            .standard_normal(row.shape, dtype=np.float32) for row in noise.float().cpu().numpy()]
    return torch.from_numpy(np.stack(rows)).to(noise) if rows else noise


def hyperplane(corners: Tensor, grid: int, extent: tuple[float, float] = EXTENT) -> Tensor:
    """Noises on the plane through three corners, [grid * grid, C, H, W], beta major.

    eps(alpha, beta) = eps1 + alpha (eps2 - eps1) + beta (eps3 - eps1), alpha and beta over `extent`
    (paper, section 2). Divided by its standard deviation sqrt((1-alpha-beta)^2 + alpha^2 + beta^2),
    so every point is a unit normal noise. corners: [3, C, H, W].
    """
    steps = torch.linspace(*extent, grid)
    beta, alpha = torch.meshgrid(steps, steps, indexing="ij")
    weights = torch.stack([1 - alpha - beta, alpha, beta], -1).view(-1, 3)
    weights = weights / weights.norm(dim=1, keepdim=True)
    return (weights @ corners.flatten(1)).view(-1, *corners.shape[1:])
