"""The paper's scores, each with an interval and a baseline.

Two models are always compared on the same noises: row k of both samples comes from noise k.
Features are L2-normalised descriptors [N, d]; images are uint8 [N, 3, H, W], or [N, 1, H, W].
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from paper_utils import data
from paper_utils.descriptors import max_similarity, similarity
from paper_utils.errors import UserError
from paper_utils.noise import stream

MAE_THRESHOLD = 15.0  # on the 0..255 scale, strict (paper, section 2)
RESAMPLES = 1_000  # of the bootstrap
CONTROL = "Gaussian / "  # begins the name of a score: of the Gaussian denoiser with what follows

# which of two models' rows agree, bool [n] or [n, C], or how much they do, float [n] (`cosine`)
Hits = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Score:
    """A proportion, or mean, with its 95 % interval over n noises: see `proportion`, `average`."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def row(self, name: str = "score", /, **where) -> dict:
        """A row of a table: the columns `where`, then that of the score, `name`, low, high, n."""
        return where | {name: self.value, "low": self.low, "high": self.high, "n": self.n}

    def beside(self, name: str) -> dict:
        """More columns of a row: `name`, 'name low', 'name high'."""
        return {name: self.value, f"{name} low": self.low, f"{name} high": self.high}


def table_of(rows: list[dict], *where: str) -> pd.DataFrame:
    """A table of `Score.row`s; of none, one with the columns `where`, score, low, high, n."""
    return pd.DataFrame(rows, columns=None if rows else [*where, "score", "low", "high", "n"])


def proportion(hits: Tensor) -> Score:
    """Mean of hits [n] (bool), or [n, C] for C classes of each noise, with its 95 % interval.

    The interval is Wilson's (Wilson 1927), which covers few hits as well as many: 0 of n is
    [0, 3.84 / (n + 3.84)]. Of noises with shares of hits between 0 and 1 it is that of the
    percentile bootstrap, in which all classes of a noise are drawn together; where all have the
    same share, which would be a point, Wilson's again. Of cosines (float [n]) it is Student's, or
    where all are the same, as two even parts always are, as open as Wilson's of n of n. Raises
    UserError for no noise at all.
    """
    n, values = len(hits), _per_noise(_some(hits))
    value = values.mean().item()
    if hits.is_floating_point():
        return Score(value, *(_open(value, n) if _same(values) else _student(values)), n)
    if _plain(values) or _same(values):
        return Score(value, *wilson(value, n), n)
    return Score(value, *_bootstrap(values), n)


def _same(values: Tensor) -> bool:
    """Whether all are one number, but for rounding."""
    return bool(values.max() - values.min() < 1e-9)


def _open(value: float, n: int) -> tuple[float, float]:
    """Ends around a value from -1 to 1 that n noises all have: the share of other noises is at most
    that of Wilson's interval of n of n, and those may have -1 or 1."""
    room = 1 - wilson(1.0, n)[0]
    return value - room * (1 + value), value + room * (1 - value)


def _student(values: Tensor, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of the mean of values [n], n > 2, by Student's t.

    Its quantile by the series of Cornish & Fisher (1938): 3 % too low for n of 3, 1 % for 4.
    """
    n, v = len(values), len(values) - 1
    t = (z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
         + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3))
    value, half = values.mean().item(), t * values.std().item() / n**0.5
    return value - half, value + half


def _some(rows: Tensor) -> Tensor:
    if not len(rows):
        raise UserError("a score needs at least one noise")
    return rows


def _per_noise(hits: Tensor) -> Tensor:
    """Share of hits of each noise: [n] or [n, C] -> [n] float64."""
    return hits.double().reshape(len(hits), -1).mean(1)


def _plain(values: Tensor) -> bool:
    """Whether every noise is a hit or none, and not a share of hits."""
    return bool(((values == 0) | (values == 1)).all())


def _bootstrap(values: Tensor) -> tuple[float, float]:
    """95 % percentile interval of the mean of values [n]."""
    n, rng = len(values), stream("bootstrap", len(values), RESAMPLES)
    means = torch.cat([values[torch.randint(n, (part, n), generator=rng)].mean(1)
                       for part in _parts(RESAMPLES)])
    low, high = means.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


def wilson(value: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion `value` of n independent trials (Wilson 1927).

    z: normal quantile, 95 % by default.
    """
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (value * (1 - value) / n + (z / (2 * n)) ** 2) ** 0.5 / (1 + z**2 / n)
    return max(min(centre - half, value), 0.0), min(max(centre + half, value), 1.0)


def newcombe(a: Tensor, b: Tensor) -> tuple[float, float]:
    """95 % interval of mean(a) - mean(b), a and b [n] of 0 and 1 from the same trials.

    Newcombe (1998), method 10: Wilson's intervals of both, and their correlation.
    """
    n, p, q = len(a), a.mean().item(), b.mean().item()
    both, only_a, only_b = (x.sum().item() for x in (a * b, a * (1 - b), (1 - a) * b))
    common = both * (n - both - only_a - only_b) - only_a * only_b
    common = max(common - n / 2, 0) if common > 0 else common
    spread = n**2 * (p * (1 - p) * q * (1 - q)) ** 0.5
    phi = common / spread if spread else 0.0
    (low_p, high_p), (low_q, high_q) = wilson(p, n), wilson(q, n)
    down, up = ((x**2 - 2 * phi * x * y + y**2) ** 0.5
                for x, y in ((p - low_p, high_q - q), (high_p - p, q - low_q)))
    return max(p - q - down, -1.0), min(p - q + up, 1.0)


def _parts(total: int) -> list[int]:
    """Parts of at most 100."""
    return [min(100, total - done) for done in range(0, total, 100)]


def copies(threshold: float) -> Hits:
    """The hits of RP: of features [n, d] of two models, M(a_k, b_k) > threshold, strictly.

    Source: paper, section 2. They raise UserError for rows that are no features.
    """
    def hits(a: Tensor, b: Tensor) -> Tensor:
        return similarity(*_paired(_features(a, "RP"), _features(b, "RP"))) > threshold

    return hits


def _features(rows: Tensor, who: str) -> Tensor:
    """`rows` themselves, or UserError; of a constant image the pixels descriptor makes a 0."""
    known = isinstance(rows, Tensor) and rows.is_floating_point() and rows.ndim > 1
    if not (known and (torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32) < 1.01).all()):
        raise UserError(f"{who} takes features of paper_utils.descriptors, rows of unit length, "
                        f"not {data.described(rows)}: descriptors.features(descriptor, images)")
    return rows


def _of_one_kind(a: Tensor, b: Tensor, who: str) -> None:
    """UserError unless a is [n, d] and b [m, d], not images or of another descriptor."""
    if a.ndim != 2 or a.shape[1:] != b.shape[1:]:
        raise UserError(f"{who} takes features [n, d] of one descriptor, not {list(a.shape)} and "
                        f"{list(b.shape)}: descriptors.features(descriptor, images)")


def close(a: Tensor, b: Tensor) -> Tensor:
    """The hits of the MAE score: of uint8 images of two models, mean |a_k - b_k| < 15 of 255.

    Images [n, 3, H, W], or [n, C, 3, H, W] of C classes of each noise, give bool [n] or [n, C].
    Raises UserError for other images.
    """
    for images in (a, b):
        data.check_bytes(images, "the MAE score", dimensions=(4, 5))
    a, b = _paired(a, b)
    difference = (a.short() - b.short()).abs().flatten(-3).float().mean(-1)
    return difference < MAE_THRESHOLD


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of rows k of two models, [n, d] each, in the place of hits: float [n].

    Of rows that are 0 it is 0. Raises UserError for rows that do not pair.
    """
    return torch.cosine_similarity(*_paired(a, b), dim=-1)


def nearer_than(third: Tensor) -> Hits:
    """Hits: rows k of two models are nearer to each other than either is to row k of a third.

    1 noise in 3 where the three are equally far apart, about 0 where all that the two have in
    common is the third (in many dimensions, two deviations from it that have nothing to do with
    each other are farther apart than either is long). It needs no threshold, and no room above what
    the two have in common with the third. Features by their cosine, uint8 images by mean |a_k -
    b_k|; third: rows of the same kind, [n, ...].
    """
    def apart(a: Tensor, b: Tensor) -> Tensor:
        a, b = _paired(a, b)
        if a.dtype == torch.uint8:
            return (a.short() - b.short()).abs().flatten(1).float().mean(1)
        return -similarity(_features(a, "nearness"), _features(b, "nearness"))

    def hits(a: Tensor, b: Tensor) -> Tensor:
        return apart(a, b) < torch.minimum(apart(a, third), apart(b, third))

    return hits


def _paired(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise UserError(f"models are compared on the same noises, but the samples are "
                        f"{tuple(a.shape)} and {tuple(b.shape)}")
    return a, b


def paired_difference(hits: Tensor, other: Tensor) -> Score:
    """Mean of hits - other on the same noises, with its 95 % interval.

    hits, other: bool [n] or [n, C], or float [n]. Tighter than two separate intervals: both saw the
    same noises.
    The interval is Newcombe's (1998, method 10), which does not call a difference sure that rests
    on a few noises; of cosines (float [n]) it is Student's; of noises with shares of hits that of
    the bootstrap over noises, which reaches 0 where fewer than six noises differ, since no sign
    test could exclude that (2 / 2^5 > .05). Where all have the same difference, which would be a
    point, it is as open as Wilson's of n of n. Raises UserError where the numbers of noises differ,
    and for no noise at all.
    """
    if len(hits) != len(other):
        raise UserError(f"{len(hits)} noises and {len(other)} do not pair")
    _some(hits)
    mine, theirs = _per_noise(hits), _per_noise(other)
    gaps, n = mine - theirs, len(mine)
    value = gaps.mean().item()
    if _plain(mine) and _plain(theirs):
        return Score(value, *newcombe(mine, theirs), n)
    if _same(gaps):
        return Score(value, *_open(value, n), n)
    if hits.is_floating_point():
        return Score(value, *_student(gaps), n)
    low, high = _bootstrap(gaps)
    return Score(value, *((low, high) if gaps.count_nonzero() > 5 else
                          (min(low, 0.0), max(high, 0.0))), n)


def average(values: Tensor) -> Score:
    """Mean of any numbers [n], one of each noise, with its 95 % bootstrap interval.

    Raises UserError for no noise at all.
    """
    values = _some(values).double()
    return Score(values.mean().item(), *_bootstrap(values), len(values))


def averages(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Columns of a table: the mean of each of values [n] and its interval (Score.beside)."""
    return {column: value for what, each in values.items()
            for column, value in average(each).beside(what).items()}


def shuffled(rows: Tensor) -> Tensor:
    """The same rows, none in its own place: the chance level of a paired score."""
    return rows.roll(max(len(rows) // 2, 1), 0)


def agreement(mine: Tensor, theirs: Tensor, hits: Hits) -> tuple[Score, float]:
    """How often, or how much, two models' rows agree on the same noises, and its chance level, of
    `shuffled` ones."""
    chance = hits(mine, shuffled(theirs)).double().mean().item()
    return proportion(hits(mine, theirs)), chance


def over_pairs(pairs: Iterable[tuple[Tensor, Tensor]], hits: Hits) -> Tensor:
    """bool [n, pairs]: whether the two models of each pair agree on each of n noises."""
    return torch.stack([hits(mine, theirs) for mine, theirs in pairs], 1)


def mean_agreement(pairs: Sequence[tuple[Tensor, Tensor]], hits: Hits) -> tuple[Score, float]:
    """`agreement` in the mean over several pairs, all pairs of a noise drawn together."""
    chance = over_pairs([(mine, shuffled(theirs)) for mine, theirs in pairs], hits)
    return proportion(over_pairs(pairs, hits)), chance.double().mean().item()


def gl(features: Tensor, known: Tensor, threshold: float) -> Score:
    """Generalization: 1 - P(max_i M(x, y_i) > threshold) over training images y_i (section 3).

    features [n, d] of samples, known [N, d] of the training images. 0: every sample is a copy; 1:
    none is. Raises UserError for rows that are no features, and for no training images.
    """
    _of_one_kind(_features(features, "GL"), _features(known, "GL"), "GL")
    if not len(known):
        raise UserError("GL is against the features of training images: give at least one")
    return proportion(max_similarity(features, known) <= threshold)


def nearest_ratio(images: Tensor, training: Tensor, block: int = 4096) -> Tensor:
    """[n] L2 distance to the nearest training image over that to the second nearest.

    Gu et al. (2023) count a sample as memorized when it is under 1/3. images, training: uint8
    [n, 3, H, W]. Raises UserError for other images and fewer than two training images.
    """
    for part in (images, training):
        data.check_bytes(part, "the nearest training image")
    if images.shape[1:] != training.shape[1:]:
        raise UserError(f"images {list(images.shape)} and training images {list(training.shape)} "
                        "differ in size: see descriptors.resize_bytes")
    if len(training) < 2:
        raise UserError("the second nearest training image needs at least two of them")
    mine = images.flatten(1).float()
    best = torch.full((len(mine), 2), torch.inf)
    for part in training.split(block):
        gaps = torch.cdist(mine, part.flatten(1).float(),
                           compute_mode="use_mm_for_euclid_dist_if_necessary")
        best = torch.cat([best, gaps], 1).topk(2, largest=False).values
    return best[:, 0] / best[:, 1].clamp(min=1e-6)


def pairwise(rows: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """Every pair of models: columns model, other, score, low, high, shuffled, n.

    rows: by model, features, images or even parts. `shuffled` is the same score on mismatched
    noises: what two unrelated samples would reach.
    """
    table = []
    for a, b in combinations(rows, 2):
        found, chance = agreement(rows[a], rows[b], hits)
        table.append(found.row(model=a, other=b, shuffled=chance))
    columns = ["model", "other", "score", "low", "high", "shuffled", "n"]
    return pd.DataFrame(table, columns=columns)


def among(pairs: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The pairs whose two models are both in `names`."""
    names = set(names)
    return pairs[pairs.model.isin(names) & pairs.other.isin(names)]


def across(pairs: pd.DataFrame, some: Iterable[str], others: Iterable[str]) -> pd.DataFrame:
    """The pairs with one model in `some` and the other in `others`."""
    some, others = set(some), set(others)
    forward = pairs.model.isin(some) & pairs.other.isin(others)
    return pairs[forward | (pairs.model.isin(others) & pairs.other.isin(some))]


def beside_control(pairs: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    """Every pair of models beside what its two models have in common with a control.

    pairs, control: as of `pairwise`; control: of it with at least one model of every pair. Adds the
    columns nearest (the higher score of the two with the control), nearer (the model that has it)
    and, bool, intervals apart: more (than either has with it), less (than either), above (more than
    one of them), below (less than one).
    """
    form = pd.concat([control.set_index(side) for side in ("model", "other")])
    own = [form[form.index.isin([row.model, row.other])] for row in pairs.itertuples()]
    nearest = [rows.iloc[rows.score.argmax()] for rows in own]
    return pairs.assign(nearest=[row.score for row in nearest],
                        nearer=[row.name for row in nearest],
                        more=pairs.low > [rows.high.max() for rows in own],
                        less=pairs.high < [rows.low.min() for rows in own],
                        above=pairs.low > [rows.high.min() for rows in own],
                        below=pairs.high < [rows.low.max() for rows in own])


def gains(rows: Mapping[str, Tensor],
          beside: Mapping[tuple[str, str], Iterable[tuple[str, str]]], hits: Hits) -> pd.DataFrame:
    """How much more pairs of models agree than other pairs do, on the same noises.

    beside: a pair -> the pairs it is held against, of which a row has the one that leaves the
    least: the lowest end of the interval of `paired_difference`. Columns: model, other, score,
    against ('a, b'), difference, low, high, n.
    """
    found = []
    for (a, b), others in beside.items():
        mine = hits(rows[a], rows[b])
        each = {f"{c}, {d}": paired_difference(mine, hits(rows[c], rows[d])) for c, d in others}
        against = min(each, key=lambda name: each[name].low)
        found.append(each[against].row("difference", model=a, other=b,
                                       score=mine.double().mean().item(), against=against))
    columns = ["model", "other", "score", "against", "difference", "low", "high", "n"]
    return pd.DataFrame(found, columns=columns)


def even_part(plus: Tensor, minus: Tensor) -> Tensor:
    """What stays of samples when their noises change sign: float64 [n, d].

    plus, minus: samples [n, ...] of n noises and of the opposite ones, before they are rounded to
    bytes. Half their sum, less its mean over the noises: 0 where an image is an affine function of
    its noise, as it is under every affine denoiser, the Gaussian one among them. Raises UserError
    for samples that do not pair, for bytes, and for fewer than two noises.
    """
    plus, minus = _paired(plus, minus)
    if not plus.is_floating_point() or len(plus) < 2:
        raise UserError("an even part is of at least two noises and the opposite ones, samples not "
                        f"rounded to bytes, not of {data.described(plus)}")
    half = (plus.double() + minus.double()).flatten(1) / 2
    return half - half.mean(0)


def without(rows: Tensor, other: Tensor) -> Tensor:
    """Rows [n, d] less their projection on the row of the same noise of another, [n, d]; rows of
    which the other is 0 stay."""
    length = other.square().sum(1, keepdim=True).clamp(min=1e-30)
    return rows - (rows * other).sum(1, keepdim=True) / length * other


def same_noise_first(mine: Tensor, theirs: Tensor) -> float:
    """How often, of all the other model's images, that of the same noise is the most similar.

    mine, theirs: features [n, d]; the mean of both directions, by chance 1 / n. It asks whether a
    descriptor sees the agreement at all, and needs no threshold. Raises UserError for other rows.
    """
    who = "same noise first"
    _of_one_kind(*_paired(_features(mine, who), _features(theirs, who)), who)
    alike, own = mine @ theirs.T, torch.arange(len(mine), device=mine.device)
    return sum((alike.argmax(k) == own).double().mean().item() for k in (0, 1)) / 2


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features a [n, d] and b [m, d].

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017), in any feature space:
    always name the space and n, on which it depends. Raises UserError for other rows than those of
    one space, and for fewer than two.
    """
    for rows in (a, b):
        floats = isinstance(rows, Tensor) and rows.is_floating_point() and rows.ndim == 2
        if not (floats and len(rows) > 1):
            raise UserError("the Fréchet distance takes features [n, d], at least two rows, not "
                            f"{data.described(rows)}: descriptors.features(descriptor, images)")
    _of_one_kind(a, b, "the Fréchet distance")
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def rms(difference: Tensor) -> float:
    """Root mean square of all entries."""
    return difference.square().mean().sqrt().item()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def hyperplane_map(corners: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Which corner each point of the noise plane is most similar to, and how similar.

    corners: features [3, d]; points: [g * g, d] -> winner int64 [g, g], cosine [g, g]. Raises
    UserError for other rows, and for points that fill no square.
    """
    who = "the map of the noise plane"
    _of_one_kind(_features(points, who), _features(corners, who), who)
    side = round(len(points) ** 0.5)
    if side**2 != len(points):
        raise UserError(f"{len(points)} points fill no square: see models.hyperplane_samples")
    best = (points @ corners.T).max(1)
    return best.indices.view(side, side), best.values.view(side, side)


def map_agreement(winners: Mapping[str, Tensor]) -> tuple[dict[tuple[str, str], float], float]:
    """For every two models the share of points with the same winner, and what chance would give.

    Chance is the highest agreement of two maps that keep their shares of winners but not places.
    """
    pairs = {(a, b): (winners[a] == winners[b]).double().mean().item()
             for a, b in combinations(winners, 2)}
    shares = {name: w.flatten().bincount(minlength=3) / w.numel() for name, w in winners.items()}
    return pairs, max((shares[a] @ shares[b]).item() for a, b in pairs)
