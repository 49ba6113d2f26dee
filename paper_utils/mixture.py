"""The mixture-of-Gaussians study (paper, section 3.2.1, appendix C): both truths are known.

A network trains on N points of a mixture. Its denoiser is compared with that of the N points (the
empirical optimum, which only copies) and with that of the mixture itself (the ground truth). The
settings are this project's: the paper's were not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from paper_utils import data, models
from paper_utils.denoisers import Denoiser, GaussianDenoiser, MixtureDenoiser, OptimalDenoiser
from paper_utils.noise import stream
from paper_utils.scores import rms
from paper_utils.training import Spec


@dataclass(frozen=True)
class Study:
    """Sizes of the study. sigmas: noise levels at which the errors are measured."""

    points: tuple[int, ...]
    points_seen: int
    dim: int = 16
    components: int = 4
    width: int = 128
    batch: int = 128
    tested: int = 2_048
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)

    def spec(self, n: int) -> Spec:
        """The network trained on the first n points of the mixture."""
        return Spec(f"mixture-n{n}", "mlp", dict(channels=self.dim, width=self.width), "edm",
                    images=n, images_seen=self.points_seen, batch=self.batch,
                    warmup=20 * self.batch, ema_half_life=100 * self.batch)


STUDIES = {
    "smoke": Study((8, 64, 512), points_seen=64 * 150, width=64, batch=64, tested=256),
    "laptop": Study((2, 8, 32, 128, 512, 2048, 8192), points_seen=128 * 2_500),
    "gpu": Study(tuple(2**k for k in range(3, 16)), points_seen=128 * 20_000, width=256),
    "paper": Study(tuple(2**k for k in range(3, 16)), points_seen=128 * 50_000, width=512),
}


def mixture(study: Study) -> MixtureDenoiser:
    """The ground truth: equal components, far apart, each with a spectrum that decays like 1/k^2.

    Points are [dim, 1, 1], with a deviation of about 0.5, EDM's sigma_data.
    """
    rng, shape = stream("mixture", study.dim, study.components), (study.dim, 1, 1)
    eigenvalues = 0.25 / torch.arange(1, study.dim + 1) ** 2
    means = 0.4 * torch.randn(study.components, *shape, generator=rng)
    turns = [torch.linalg.qr(torch.randn(study.dim, study.dim, generator=rng))[0] for _ in means]
    parts = [GaussianDenoiser(mean, eigenvalues, turn) for mean, turn in zip(means, turns)]
    return MixtureDenoiser(torch.ones(study.components), parts)


def points(study: Study, n: int, name: str = "train") -> data.Images:
    """n points of the mixture, [n, dim, 1, 1]; the first ones of a larger draw are not the same."""
    drawn = mixture(study).draw(n, stream("mixture points", name, study.dim))
    return data.Images(drawn, torch.zeros(n, dtype=torch.int64), f"mixture-{name}")


def trained(study: Study, device: str = "cpu") -> dict[int, Denoiser]:
    """The network of every number of points, from the artifact store or else trained now."""
    everything = points(study, max(study.points))
    return {n: models.train(study.spec(n), everything.first(n), device)[0].denoiser()
            for n in study.points}


@torch.no_grad()
def errors(study: Study, networks: Mapping[int, Denoiser], device: str = "cpu") -> pd.DataFrame:
    """Distances between the three denoisers at fresh noisy points u = x0 + sigma eps.

    Columns: points, sigma, and the root mean square per coordinate of network - empirical optimum
    ('to empirical'), network - ground truth ('to ground truth') and of the one truth to the other
    ('between them').
    """
    everything, truth = points(study, max(study.points)), mixture(study)
    clean = points(study, study.tested, "test").pixels.to(device)
    eps = torch.randn(clean.shape, generator=stream("mixture noise", study.dim)).to(device)
    rows = []
    for n, network in networks.items():
        optimum = OptimalDenoiser(everything.first(n).pixels)
        for sigma in study.sigmas:
            noisy = clean + sigma * eps
            ours, copy, exact = (d(noisy, sigma).cpu() for d in (network, optimum, truth))
            rows.append((n, sigma, *map(rms, (ours - copy, ours - exact, copy - exact))))
    columns = ["points", "sigma", "to empirical", "to ground truth", "between them"]
    return pd.DataFrame(rows, columns=columns)


def crossings(table: pd.DataFrame, sigmas: Sequence[float]) -> pd.DataFrame:
    """For each sigma the number of points at which the ground truth becomes the nearer one.

    Interpolated in log2 of the number of points between the two measured around it; none where
    the same one stays nearer. Columns: sigma, crossing, decided: whether the two truths are there
    farther from each other than the network is from them; else being nearer to one means nothing.
    """
    rows = []
    for sigma in sigmas:
        part = table[table.sigma == sigma].sort_values("points")
        logs = np.log2(part[["points", "to empirical", "to ground truth", "between them"]])
        gap = logs["to empirical"] - logs["to ground truth"]
        found = _zero(part["points"].tolist(), gap.tolist())
        rows.append((sigma, found, found is not None and _decided(np.log2(found), logs)))
    return pd.DataFrame(rows, columns=["sigma", "crossing", "decided"])


def _decided(crossing: float, logs: pd.DataFrame) -> bool:
    """Whether 'between them' is above the two errors, equal there, at log2 points `crossing`."""
    there = {column: np.interp(crossing, logs.points, logs[column]) for column in logs}
    return bool(there["between them"] > there["to ground truth"])


def _zero(points: Sequence[int], gap: Sequence[float]) -> float | None:
    """Where `gap`, linear in log2 of the points, first turns from negative to positive."""
    for k in range(1, len(points)):
        if gap[k - 1] <= 0 < gap[k]:
            share = -gap[k - 1] / (gap[k] - gap[k - 1])
            return points[k - 1] * (points[k] / points[k - 1]) ** share
    return None
