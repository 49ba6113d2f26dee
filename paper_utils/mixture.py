"""The mixture-of-Gaussians study (paper, section 3.2.1, appendix C): both truths are known.

A network trains on N points of a mixture. Its denoiser is compared with that of the N points (the
empirical optimum, which only copies) and with that of the mixture itself (the ground truth), at
noisy training points and at new ones. The settings are this project's: the paper's were not seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paper_utils import data, models
from paper_utils.denoisers import Denoiser, GaussianDenoiser, MixtureDenoiser, OptimalDenoiser
from paper_utils.noise import stream
from paper_utils.scores import RESAMPLES
from paper_utils.training import Spec

WHERE = ("asked about", "points", "sigma")
Squares = Mapping[tuple[str, int, float], Tensor]  # by WHERE
# the network's, those of the two truths to each other, and that of D(u) = u, which learns nothing
DISTANCES = ("to empirical", "to ground truth", "between them", "identity to ground truth")


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


# --- the errors, at points it trained on and at new ones ----------------------------------------

@torch.no_grad()
def squares(study: Study, networks: Mapping[int, Denoiser], device: str = "cpu") -> Squares:
    """Squared distances between denoisers at noisy points u = x0 + sigma eps, per coordinate.

    x0 is a training point, all in turn ('training': where the loss lives), or a point that no
    network saw ('new'); eps is fresh, the same for every network and sigma. Returns (asked about,
    points, sigma) -> [4, study.tested], of the DISTANCES.
    """
    everything, truth = points(study, max(study.points)).pixels, mixture(study)
    new = points(study, study.tested, "test").pixels
    eps = torch.randn(new.shape, generator=stream("mixture noise", study.dim))
    found = {}
    for n, network in networks.items():
        optimum = OptimalDenoiser(everything[:n])
        asked = {"training": everything[torch.arange(study.tested) % n], "new": new}
        for (what, clean), sigma in product(asked.items(), study.sigmas):
            noisy = (clean + sigma * eps).to(device)
            ours, copy, exact = (d(noisy, sigma) for d in (network, optimum, truth))
            gaps = torch.stack([ours - copy, ours - exact, copy - exact, noisy - exact])
            found[what, n, sigma] = gaps.flatten(2).square().mean(2).cpu()
    return found


def resampled(found: Squares) -> Squares:
    """Root mean squares [4, 1 + RESAMPLES]: of all noisy points, then of as many drawn of them with
    replacement, the same ones everywhere."""
    n = next(iter(found.values())).shape[1]
    drawn = torch.randint(n, (RESAMPLES, n), generator=stream("mixture bootstrap", n))
    counts = torch.zeros(RESAMPLES, n).scatter_add_(1, drawn, torch.ones(RESAMPLES, n))
    weights = torch.cat([torch.ones(1, n), counts]).double() / n
    return {at: (values.double() @ weights.T).sqrt() for at, values in found.items()}


def errors(found: Squares) -> pd.DataFrame:
    """The distances between denoisers, of `squares`: root mean square per coordinate.

    Columns: asked about, points, sigma, the DISTANCES, 'to empirical low' to 'to ground truth high'
    (95 % intervals by the percentile bootstrap over the n noisy points, for these networks), n.
    """
    rows, everywhere = [], resampled(found)
    for at in product(*_axes(found)):
        values = everywhere[at]
        ends = {f"{name} {end}": value for name, curve in zip(DISTANCES[:2], values[:, 1:])
                for end, value in _interval(curve).items()}
        rows.append(dict(zip(WHERE, at)) | dict(zip(DISTANCES, values[:, 0].tolist())) | ends
                    | {"n": found[at].shape[1]})
    return pd.DataFrame(rows)


def crossings(found: Squares) -> pd.DataFrame:
    """For each sigma the number of points at which the ground truth becomes the nearer one.

    Interpolated in log2 of the number of points between the two measured around it; none unless the
    empirical optimum is the nearer one at the fewest. Columns: asked about, sigma, crossing, low,
    high (as in `errors`; none where a resample does not cross), n, decided: whether it has an
    interval, and the two truths are there farther from each other than the network is from them;
    else being nearer to one means nothing.
    """
    rows, everywhere = [], resampled(found)
    asked, sizes, sigmas = _axes(found)
    x = torch.tensor(sizes).double().log2()
    for what, sigma in product(asked, sigmas):
        logs = torch.stack([everywhere[what, n, sigma] for n in sizes], 1).log2()
        crossing = _zero(x, logs[0] - logs[1])
        truth, between = (np.interp(crossing[0], x, logs[k, :, 0]) for k in (1, 2))
        ends = _interval(2**crossing[1:])
        rows.append({"asked about": what, "sigma": sigma, "crossing": 2 ** crossing[0].item()}
                    | ends | {"n": found[what, sizes[0], sigma].shape[1],
                              "decided": bool(between > truth and ends["low"] <= ends["high"])})
    return pd.DataFrame(rows)


def _axes(found: Squares) -> list[list]:
    """What is asked about, the numbers of points and the sigmas, each in order."""
    asked, sizes, sigmas = map(dict.fromkeys, zip(*found))
    return [list(asked), sorted(sizes), sorted(sigmas)]


def _interval(values: Tensor) -> dict[str, float]:
    """The ends that hold 95 % of the values; NaN where one of these is."""
    return {end: values.quantile(q).item() for end, q in (("low", 0.025), ("high", 0.975))}


def _zero(x: Tensor, gap: Tensor) -> Tensor:
    """Where each curve of gap [N, B], linear in x [N], turns positive first: [B].

    NaN for one that does not, and for one that does not begin negative.
    """
    turns = (gap[:-1] <= 0) & (gap[1:] > 0)
    k = turns.int().argmax(0, keepdim=True)
    before, after = gap.gather(0, k)[0], gap.gather(0, k + 1)[0]
    here, there = x[k[0]], x[k[0] + 1]
    at = here - before / (after - before) * (there - here)
    return at.where(turns.any(0) & (gap[0] < 0), torch.nan)
