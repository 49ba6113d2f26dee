"""Scores on cases made by hand, against brute force, and against closed forms."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from paper_utils import data, scores
from paper_utils.errors import UserError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=rng(seed)), dim=1)


def plain(*pixels: int) -> torch.Tensor:
    """Images of one grey level each: uint8 [n, 3, 32, 32]."""
    return torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)


# --- agreement of pairs -------------------------------------------------------------------------

def test_copies_by_hand():
    a = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    b = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    assert scores.copies(0.7)(a, b).tolist() == [False, True, False, True]


def test_the_copy_threshold_is_strict():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, math.sqrt(0.75)]])
    assert not scores.copies(0.5)(a, b).item()
    assert scores.copies(0.5 - 1e-7)(a, b).item()


def test_close_by_hand_and_strict():
    a, b = plain(100, 100, 100, 100, 100), plain(100, 114, 115, 116, 86)
    assert scores.close(a, b).tolist() == [True, True, False, False, True]


def test_close_does_not_wrap_around():
    """In uint8, 3 - 250 is 9 and 0 - 255 is 1."""
    assert scores.close(plain(3, 250, 0), plain(250, 3, 255)).tolist() == [False] * 3


def test_close_is_the_mean_over_all_pixels():
    a, b = plain(0, 0).clone(), plain(0, 0).clone()
    b[0, 0] = 44  # a third of all values: 14.67
    b[1, 0] = 46  # 15.33
    assert scores.close(a, b).tolist() == [True, False]


BOTH = r"\[-1, 1\] by data.to_bytes\(x\), those in \[0, 1\] by data.to_bytes\(2 \* x - 1\)"
NO_IMAGES = [(plain(1, 2).float() / 127.5 - 1, BOTH), (plain(1, 2).long(), r"x.to\(torch.uint8\)"),
             (plain(1, 2).numpy(), "of an array see data.from_numpy"),
             (plain(1, 2).flatten(1), "see permute"),
             (data.Images(plain(1, 2), torch.zeros(2).long(), ""), "give its pixels")]


@pytest.mark.parametrize("other, cure", NO_IMAGES)
def test_the_mae_score_takes_8_bit_images(other, cure):
    for pair in ((other, plain(1, 2)), (plain(1, 2), other)):
        with pytest.raises(UserError, match=f"the MAE score takes uint8 images.*{cure}") as failure:
            scores.close(*pair)
        assert "\n" not in str(failure.value)


def test_the_mae_score_of_several_classes_and_of_grey_images():
    several = plain(100, 114, 115, 116).unflatten(0, (2, 2))
    assert scores.close(several, plain(*[100] * 4).unflatten(0, (2, 2))).tolist() == [
        [True, True], [False, False]]
    assert scores.close(plain(100, 130)[:, :1], plain(100, 100)[:, :1]).tolist() == [True, False]


@pytest.mark.parametrize("rows", [
    plain(1, 2).flatten(1), plain(1, 2).flatten(1).float(), 1.1 * unit(2, 8), unit(2, 8).long(),
    unit(2, 8).numpy(), unit(2, 8) * math.nan, unit(2, 8)[0],
    data.Images(plain(1, 2), torch.zeros(2).long(), "")])
def test_copies_and_gl_are_told_by_features(rows):
    gl = lambda a, b: scores.gl(a, b, 0.5)  # noqa: E731
    for who, score in {"RP": copies, "GL": gl, "same noise first": scores.same_noise_first}.items():
        for pair in ((rows, rows), (unit(2, 8), rows)):
            with pytest.raises(UserError, match=f"{who} takes features of paper_utils.descriptors"
                               ) as failure:
                score(*pair)
            assert "\n" not in str(failure.value)


def test_features_of_a_constant_image_and_of_half_precision_are_features():
    assert scores.copies(0.5)(0 * unit(2, 8), unit(2, 8)).tolist() == [False, False]
    assert scores.copies(0.5)(unit(2, 256).half(), unit(2, 256).half()).all()


def test_one_pixel_short_of_the_threshold_counts():
    a, b = plain(100).clone(), plain(115).clone()
    b[0, 2, 31, 31] = 114
    assert scores.close(a, b).item()


@pytest.mark.parametrize("compare", [
    lambda: scores.copies(0.5)(unit(4, 8), unit(5, 8)), lambda: scores.close(plain(1, 2), plain(1)),
    lambda: scores.copies(0.5)(unit(4, 8), unit(4, 9)),
    lambda: scores.copies(0.5)(unit(4, 8), unit(1, 8)),
])
def test_unequal_samples_are_refused(compare):
    with pytest.raises(UserError, match="same noises"):
        compare()


def test_shuffled_rows_are_all_elsewhere():
    for n in (2, 3, 10, 101):
        rows = torch.arange(n)
        mixed = scores.shuffled(rows)
        assert (mixed != rows).all() and torch.equal(mixed.sort().values, rows)


# --- the mean over several pairs ----------------------------------------------------------------

ONE, TWO = torch.eye(80).split(40)  # 40 noises whose features are alike in no two places
copies = scores.copies(0.5)


def mixed(k: int) -> torch.Tensor:
    """Agrees with ONE on the first k of 40 noises and with TWO on the others."""
    return torch.cat([ONE[:k], TWO[k:]])


def test_a_group_scores_the_mean_of_its_models():
    found, chance = scores.mean_agreement([(ONE, ONE), (ONE, mixed(10)), (ONE, mixed(30))], copies)
    assert found.value == pytest.approx((1 + 0.25 + 0.75) / 3) and (found.n, chance) == (40, 0)
    assert found.low < found.value < found.high


def test_a_model_counted_twice_tells_no_more():
    one = scores.mean_agreement([(ONE, mixed(10))], copies)
    assert scores.mean_agreement([(ONE, mixed(10))] * 2, copies) == one


def test_the_chance_of_a_group_is_that_of_shuffled_noises():
    found, chance = scores.mean_agreement([(ONE, ONE.roll(20, 0)), (ONE, TWO)], copies)
    assert (found.value, chance) == (0, 0.5)


# --- proportions and intervals ------------------------------------------------------------------

def binomial_quantile(n: int, p: float, level: float) -> float:
    total = 0.0
    for k in range(n + 1):
        total += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
                          + k * math.log(p) + (n - k) * math.log1p(-p))
        if total >= level:
            return k / n
    return 1.0


@pytest.mark.parametrize("n, hits", [(400, 120), (512, 450), (100, 50)])
def test_the_bootstrap_has_the_quantiles_of_its_distribution(n, hits, monkeypatch):
    """Resampling n bits of which a share p is set is binomial: its quantiles are known."""
    monkeypatch.setattr(scores, "RESAMPLES", 40_000)
    found = scores.average(torch.arange(n) < hits)
    assert found.value == hits / n and found.n == n
    for value, level in ((found.low, 0.025), (found.high, 0.975)):
        assert abs(value - binomial_quantile(n, hits / n, level)) < 1 / n + 0.001


@pytest.mark.parametrize("n, truth", [(120, 0.3), (64, 0.05), (256, 0.02), (512, 0.99)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n, truth):
    covered = [s.low <= truth <= s.high for s in (
        scores.proportion(torch.rand(n, generator=rng(k)) < truth) for k in range(1000))]
    assert 0.93 < np.mean(covered) < 0.985


@pytest.mark.parametrize("n, value", [
    (1, -0.3), (2, -0.3), (2, -1.0), (2, 0.4), (2, 0.99), (50, -0.3), (50, 1.0)])
def test_a_cosine_that_all_noises_share_is_no_sure_one(n, value):
    """Two noises always do: their even parts are each other's opposite."""
    score = scores.proportion(torch.full((n,), value) + 1e-12 * torch.arange(n))
    assert -1 <= score.low <= score.value <= score.high <= 1
    assert score.high - score.low > 0.1
    assert n > 2 or score.low < 0


@pytest.mark.parametrize("n", [4, 8, 16])
def test_few_cosines_have_an_interval_that_covers_the_truth(n):
    found = [scores.proportion(0.2 + 0.3 * torch.randn(n, generator=rng(k))) for k in range(1000)]
    assert 0.93 < np.mean([s.low <= 0.2 <= s.high for s in found]) < 0.97


def test_the_interval_of_cosines_is_students():
    """The mean of 0 and 16 ones of either sign, 2.120 standard errors at 16 degrees of freedom."""
    values = torch.tensor([0.0] + 8 * [1.0, -1.0])
    score = scores.proportion(values)
    assert score.value == 0 and score.high == -score.low == pytest.approx(2.120 / 17**0.5, rel=1e-3)


def test_a_cosine_is_of_rows_that_pair():
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[-2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(scores.cosine(a, b), torch.tensor([-1.0, 0.5**0.5, 0.0]))
    with pytest.raises(UserError, match="same noises"):
        scores.cosine(a, b[:2])
    of_classes = scores.cosine(a[:, None].expand(-1, 5, -1), b[:, None].expand(-1, 5, -1))
    assert of_classes.shape == (3, 5)


def test_more_hits_never_lower_an_end_of_the_interval():
    found = [scores.proportion(torch.arange(64) < k) for k in range(65)]
    for end in ("low", "high"):
        ends = [getattr(score, end) for score in found]
        assert ends == sorted(ends) and len(set(ends)) > 60


def test_proportion_is_deterministic_and_leaves_the_global_generator_alone():
    hits, state = torch.rand(50, generator=rng()) < 0.5, torch.get_rng_state()
    first = scores.proportion(hits)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert scores.proportion(hits) == first
    assert first.low < first.value < first.high


def test_a_score_at_its_end_is_open_on_the_side_that_was_not_sampled():
    none, every = (scores.proportion(torch.full((20,), hit)) for hit in (False, True))
    assert (none.value, none.low, every.value, every.high) == (0, 0, 1, 1)
    # Wilson: (p - 0)^2 = z^2 p (1 - p) / n at p = z^2 / (n + z^2)
    assert none.high == pytest.approx(1.959964**2 / (20 + 1.959964**2))
    assert every.low == pytest.approx(1 - none.high)
    assert str(scores.Score(0.5, 0.25, 0.75, 9)) == "0.50 [0.25, 0.75]"


@pytest.mark.parametrize("truth", [0.005, 0.995])
def test_a_rare_hit_stays_inside_the_interval(truth):
    """Most of these draws of 64 have no hit (or no miss): a point would cover nothing."""
    found = [scores.proportion(torch.rand(64, generator=rng(k)) < truth) for k in range(100)]
    assert np.mean([s.low <= truth <= s.high for s in found]) > 0.9


@pytest.mark.parametrize("value, n", [(0.0, 7), (0.3, 50), (1.0, 1)])
def test_wilsons_ends_are_where_the_truth_is_z_deviations_away(value, n):
    for end in scores.wilson(value, n, 2.0):
        assert (end - value) ** 2 == pytest.approx(4 * end * (1 - end) / n, abs=1e-12)


def test_classes_of_a_noise_are_resampled_together():
    """Eight equal classes tell as much as one; n stays the number of noises."""
    hits = torch.rand(60, generator=rng()) < 0.4
    assert scores.proportion(hits[:, None].expand(60, 8)) == scores.proportion(hits)
    mixed = torch.rand(60, 8, generator=rng(1)) < 0.4
    found = scores.proportion(mixed)
    assert found.n == 60 and found.value == pytest.approx(mixed.double().mean().item())
    alone = scores.proportion(mixed[:, 0])
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    none = scores.proportion(torch.zeros(20, 8, dtype=torch.bool))
    assert none == scores.proportion(torch.zeros(20, dtype=torch.bool))
    half = scores.proportion(torch.tensor([[True, False]] * 20))
    assert half.low < half.value == 0.5 < half.high


def test_no_noise_at_all_is_refused():
    none = torch.zeros(0, dtype=torch.bool)
    for score in (scores.proportion, scores.average, lambda x: scores.paired_difference(x, x)):
        with pytest.raises(UserError, match="at least one noise"):
            score(none)


# --- GL -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.6])
def test_gl_is_that_of_brute_force(threshold):
    samples, training = unit(150, 12), unit(90, 12, seed=1)
    copied = 0
    for x in samples.double().numpy():
        copied += max(float(np.dot(x, y)) for y in training.double().numpy()) > threshold
    found = scores.gl(samples, training, threshold)
    assert found.value == pytest.approx(1 - copied / 150)


def test_gl_streams_over_samples_and_training_images():
    """More rows than a block on both sides; the copies sit in the last, incomplete blocks."""
    samples, training = unit(1_030, 16), unit(8_200, 16, seed=1)
    training[8_199] = samples[1_029]
    training[8_191] = samples[3]
    best = scores.max_similarity(samples, training)
    expected = (samples.numpy() @ training.numpy().T).max(1)
    np.testing.assert_allclose(best.numpy(), expected, atol=1e-6)
    assert best[1_029] == pytest.approx(1) and best[3] == pytest.approx(1)


def test_gl_ends_and_strictness():
    training = torch.eye(5)
    assert scores.gl(training[:3], training, 0.6).value == 0
    assert scores.gl(training[:3], training[3:], 0.6).value == 1
    half = torch.tensor([[0.5, math.sqrt(0.75), 0, 0, 0]])
    assert scores.gl(half, training[:1], 0.5).value == 1  # exactly at the threshold: no copy
    assert scores.gl(half, training[:1], 0.4999).value == 0


def test_gl_is_of_features_of_one_descriptor_and_of_some_training_images():
    with pytest.raises(UserError, match=r"of one descriptor, not \[2, 8\] and \[2, 9\]"):
        scores.gl(unit(2, 8), known=unit(2, 9), threshold=0.5)
    with pytest.raises(UserError, match="of one descriptor, not"):
        scores.gl(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), 0.5)
    with pytest.raises(UserError, match="GL is against the features of training images"):
        scores.gl(unit(2, 8), torch.zeros(0, 8), 0.5)


# --- the nearest training image -----------------------------------------------------------------

@pytest.mark.parametrize("other, cure", NO_IMAGES)
def test_the_nearest_training_image_is_of_8_bit_images(other, cure):
    for pair in ((other, plain(1, 2)), (plain(1, 2), other)):
        with pytest.raises(UserError, match=f"takes uint8 images.*{cure}") as failure:
            scores.nearest_ratio(*pair)
        assert "\n" not in str(failure.value)


def test_the_nearest_training_image_has_the_size_of_the_image():
    with pytest.raises(UserError, match=r"\[2, 3, 32, 32\] and .*\[2, 1, 32, 32\] differ in size"):
        scores.nearest_ratio(plain(1, 2), plain(1, 2)[:, :1])
    assert scores.nearest_ratio(plain(1), plain(0, 3)).tolist() == [0.5]


# --- tables -------------------------------------------------------------------------------------

def test_pairs_among_and_across():
    pairs = pd.DataFrame([("a", "b", .1), ("a", "x", .2), ("x", "b", .3), ("x", "y", .4)],
                         columns=["model", "other", "score"])
    assert scores.among(pairs, ["a", "b"]).score.tolist() == [.1]
    assert scores.across(pairs, ["a", "b"], ["x", "y"]).score.tolist() == [.2, .3]
    assert scores.across(pairs, "xy", "ab").score.tolist() == [.2, .3]


def test_the_pairwise_table():
    same, opposite = plain(*range(0, 250, 50)), plain(*range(250, 0, -50))
    rows = {"a": same, "b": same + 10, "c": opposite}
    table = scores.pairwise(rows, scores.close)
    assert list(table.columns) == ["model", "other", "score", "low", "high", "shuffled", "n"]
    assert list(zip(table.model, table.other)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert table.score.tolist() == [1.0, 0.0, 0.0] and table.n.tolist() == [5] * 3
    assert table.shuffled[0] == 0
    assert ((table.low <= table.score) & (table.score <= table.high)).all()


def test_shuffled_is_the_chance_level():
    """Two models that always draw one of two images agree half the time by chance."""
    rng_ = rng(3)
    coins = {name: plain(*(200 * torch.randint(0, 2, (2_000,), generator=rng_)).tolist())
             for name in "ab"}
    coins["c"] = coins["a"]
    table = scores.pairwise(coins, scores.close).set_index(["model", "other"])
    assert table.score["a", "c"] == 1
    assert table.shuffled.to_numpy() == pytest.approx(0.5, abs=0.05)
    assert table.score["a", "b"] == pytest.approx(0.5, abs=0.05)


# --- Fréchet distance ---------------------------------------------------------------------------

def with_moments(mean: torch.Tensor, deviations: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """n rows whose sample mean and covariance are exactly `mean` and diag(deviations^2)."""
    z = torch.randn(n, len(mean), generator=rng(seed), dtype=torch.float64)
    z = z - z.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T)))
    return z @ whiten.T * deviations + mean


def test_the_same_noise_is_first_where_no_other_is_more_alike():
    """Two of four rows of one model are nearest to their own; so are three of the other."""
    mine = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.8, 0, 0.6, 0],
                         [0, 0.8, 0.59, -0.1]])
    theirs = torch.eye(4)
    assert scores.same_noise_first(mine, theirs) == (2 / 4 + 3 / 4) / 2
    assert scores.same_noise_first(theirs, theirs) == 1


def test_an_affine_function_of_the_noise_has_no_even_part():
    noise = torch.randn(9, 3, 2, 2, generator=rng())
    affine = lambda e: 2 * e.flip(1) - 0.7  # noqa: E731
    assert scores.even_part(affine(noise), affine(-noise)).abs().max() < 1e-6
    both = lambda e: affine(e) + e**2  # noqa: E731
    squares = noise.square().flatten(1)
    torch.testing.assert_close(scores.even_part(both(noise), both(-noise)).float(),
                               squares - squares.mean(0))


def test_rows_without_others_are_orthogonal_to_them():
    rows, other = unit(5, 7), 3 * unit(5, 7, 1)
    left = scores.without(rows, other)
    assert (left * other).sum(1).abs().max() < 1e-6
    torch.testing.assert_close(left + (rows * other).sum(1, keepdim=True) / 9 * other, rows)


@pytest.mark.parametrize("plus, minus, words", [
    (torch.zeros(1, 3), torch.zeros(1, 3), "at least two noises"),
    (plain(1, 2), plain(1, 2), "not rounded to bytes, not of uint8"),
    (torch.zeros(4, 3), torch.zeros(3, 3), "the same noises")])
def test_an_even_part_is_of_pairs_that_are_no_bytes(plus, minus, words):
    with pytest.raises(UserError, match=words):
        scores.even_part(plus, minus)


def test_frechet_of_diagonal_gaussians():
    """|mu_a - mu_b|^2 + sum (s_a - s_b)^2."""
    mean_a, mean_b = torch.randn(2, 6, generator=rng(1), dtype=torch.float64)
    dev_a, dev_b = torch.rand(2, 6, generator=rng(2), dtype=torch.float64) + 0.1
    a, b = with_moments(mean_a, dev_a, 50, 3), with_moments(mean_b, dev_b, 70, 4)
    expected = ((mean_a - mean_b) ** 2 + (dev_a - dev_b) ** 2).sum().item()
    assert scores.frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_any_gaussians():
    linalg = pytest.importorskip("scipy.linalg")
    mix = torch.randn(2, 8, 8, generator=rng(5), dtype=torch.float64)
    z = torch.randn(2, 60, 8, generator=rng(6), dtype=torch.float64)
    a, b = z[0] @ mix[0], z[1] @ mix[1] + 0.3
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = (((a.mean(0) - b.mean(0)) ** 2).sum().item()
                + np.trace(cov_a + cov_b - 2 * root))
    assert scores.frechet(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_is_a_distance_even_with_fewer_rows_than_dimensions():
    a, b = unit(20, 64), unit(30, 64, seed=1)
    assert scores.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert scores.frechet(a, b) == pytest.approx(scores.frechet(b, a), rel=1e-6)
    assert scores.frechet(a, b) > 0.1


@pytest.mark.parametrize("a, b, words", [
    (plain(1, 2), plain(1, 2), r"at least two rows, not uint8 \[2, 3, 32, 32\]"),
    (unit(1, 4), unit(3, 4), r"at least two rows, not float32 \[1, 4\]"),
    (unit(3, 4).numpy(), unit(3, 4), "not float32 ndarray"),
    (unit(3, 4), unit(3, 5), r"of one descriptor, not \[3, 4\] and \[3, 5\]")])
def test_frechet_is_of_features(a, b, words):
    with pytest.raises(UserError, match=words) as failure:
        scores.frechet(a, b)
    assert "\n" not in str(failure.value)


# --- maps of the noise plane --------------------------------------------------------------------

def test_the_map_names_the_nearest_corner():
    corners = torch.eye(3)
    points = torch.nn.functional.normalize(torch.tensor(
        [[3.0, 1, 0], [0, 2, 1], [0, 1, 4], [5, 0, 0]]), dim=1)
    winner, strength = scores.hyperplane_map(corners, points)
    assert winner.tolist() == [[0, 1], [2, 0]]
    torch.testing.assert_close(strength, torch.tensor(
        [[3 / 10**0.5, 2 / 5**0.5], [4 / 17**0.5, 1.0]]))


def test_the_map_is_of_features_of_a_square():
    with pytest.raises(UserError, match="6 points fill no square"):
        scores.hyperplane_map(unit(3, 4), unit(6, 4))
    with pytest.raises(UserError, match="the map of the noise plane takes features"):
        scores.hyperplane_map(plain(1, 2, 3), plain(1, 2, 3, 4))


def test_map_agreement_by_hand():
    maps = {"a": torch.tensor([[0, 0], [1, 2]]), "b": torch.tensor([[0, 1], [1, 2]]),
            "c": torch.tensor([[2, 2], [2, 2]])}
    pairs, chance = scores.map_agreement(maps)
    assert pairs == {("a", "b"): 0.75, ("a", "c"): 0.25, ("b", "c"): 0.25}
    # shares a (1/2, 1/4, 1/4), b (1/4, 1/2, 1/4), c (0, 0, 1): products .3125, .25, .25
    assert chance == pytest.approx(0.3125)


# --- differences on the same noises -------------------------------------------------------------

def test_a_paired_difference_knows_that_the_noises_are_the_same():
    hits = torch.arange(200) % 2 == 0
    more = hits | (torch.arange(200) % 20 == 1)  # a twentieth more, on the same noises
    found = scores.paired_difference(more, hits)
    assert found.value == pytest.approx(0.05) and 0.01 < found.low < 0.05 < found.high < 0.1
    unpaired = scores.paired_difference(more, hits.roll(1))
    assert unpaired.value == found.value and unpaired.low < -0.05


def test_a_paired_difference_that_is_always_the_same_is_no_point():
    all_, none = torch.ones(20, dtype=torch.bool), torch.zeros(20, dtype=torch.bool)
    same, more = scores.paired_difference(all_, all_), scores.paired_difference(all_, none)
    room = 1 - scores.wilson(1.0, 20)[0]
    assert (same.value, same.low, same.high) == (0, -room, room) and 0.1 < room < 0.2
    assert (more.value, more.high) == (1, 1)
    assert more.low == pytest.approx(1 - 2**0.5 * room)
    halves = torch.tensor([[True, False]] * 20)
    equal = scores.paired_difference(halves, halves)
    assert (equal.value, equal.low, equal.high) == (0, -room, room)


@pytest.mark.parametrize("more", [1, 2, 3, 4, 5, 6, 8])
def test_a_difference_that_rests_on_few_noises_is_not_sure(more):
    """As by McNemar's test, mid-p: so many on one side and none on the other."""
    every = torch.ones(128, dtype=torch.bool)
    found = scores.paired_difference(every, torch.arange(128) >= more)
    assert found.value == more / 128 and (found.low > 0) == (0.5**more < 0.05)


@pytest.mark.parametrize("differing, sure", [(4, False), (5, False), (6, True)])
def test_a_share_that_differs_on_few_noises_is_not_sure(differing, sure):
    """All in one direction: by a sign test 5 of 5 have p = .06, 6 of 6 .03."""
    every = torch.ones(64, 2, dtype=torch.bool)
    fewer = every.clone()
    fewer[:differing, 0] = False
    found = scores.paired_difference(every, fewer)
    assert (found.low > 0) == sure and found.high > found.value == differing / 128
    back = scores.paired_difference(fewer, every)
    assert (back.high < 0) == sure and back.value == -found.value


def test_the_difference_of_cosines_has_students_interval():
    """Tabled: t of 8 degrees of freedom is 2.306."""
    mine, common = torch.linspace(0.1, 0.5, 9), torch.linspace(-0.4, 0.4, 9)
    found = scores.paired_difference(mine + common, common)
    half = 2.306 * mine.std().item() / 3
    ends = 0.3, 0.3 - half, 0.3 + half
    assert (found.value, found.low, found.high) == pytest.approx(ends, rel=1e-3)


def test_a_gain_is_over_the_pair_that_leaves_the_least():
    rows = {"a": torch.eye(60), "b": torch.eye(60), "c": torch.eye(60).clone(), "d": torch.eye(60)}
    rows["c"][:30] = rows["c"][:30].flip(0)  # agrees on half of the noises
    rows["d"][:20] = rows["d"][:20].flip(0)
    hits = scores.copies(0.5)
    row, = scores.gains(rows, {("a", "b"): [("a", "c"), ("b", "d")]}, hits).itertuples()
    assert (row.model, row.other, row.against, row.score) == ("a", "b", "b, d", 1)
    assert row.difference == pytest.approx(1 / 3) and 0.2 < row.low < 1 / 3 < row.high
    assert scores.gains(rows, {}, hits).empty


@pytest.mark.parametrize("both, one, other", [(0.9, 0.03, 0.0), (0.3, 0.2, 0.1), (0.5, 0.05, 0.05)])
def test_the_interval_of_a_difference_covers_the_truth(both, one, other):
    kinds = torch.tensor([both, one, other, 1 - both - one - other])
    covered = []
    for k in range(500):
        drawn = torch.multinomial(kinds, 128, replacement=True, generator=rng(k))
        found = scores.paired_difference(drawn < 2, (drawn == 0) | (drawn == 2))
        covered.append(found.low <= one - other <= found.high)
    assert 0.93 < np.mean(covered) < 0.995


def test_a_paired_difference_averages_classes_of_a_noise():
    every = torch.tensor([[True, False], [True, True], [False, False]])
    found = scores.paired_difference(every, torch.tensor([True, True, False]))
    assert found.value == pytest.approx((-0.5 + 0 + 0) / 3) and found.n == 3
    with pytest.raises(UserError, match="3 noises and 2 do not pair"):
        scores.paired_difference(every, torch.tensor([True, True]))


def test_the_interval_of_a_mean_is_that_of_its_noises():
    """Twice the standard error, nearly; and all noises count, not the first ones alone."""
    values = torch.cat([torch.zeros(200), torch.randn(200, generator=torch.Generator()
                                                      .manual_seed(3)) + 1])
    found = scores.average(values)
    error = values.std().item() / 20
    assert found.value == pytest.approx(values.mean().item()) and found.n == 400
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.15)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.15)


# --- nearer than a third ------------------------------------------------------------------------

def test_two_are_nearer_to_each_other_than_either_is_to_a_third():
    angles = lambda *degrees: torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in
                                           map(math.radians, degrees)])
    hits = scores.nearer_than(angles(90, 25, 100, 10))
    a, b = angles(0, 0, 0, 0), angles(10, 30, 60, 0)
    assert hits(a, b).tolist() == hits(b, a).tolist() == [True, False, False, True]


def test_nearness_of_images_is_of_their_pixels():
    hits = scores.nearer_than(plain(100, 12, 20))
    assert hits(plain(0, 0, 0), plain(20, 20, 10)).tolist() == [True, False, False]
    with pytest.raises(UserError, match="takes features"):
        scores.nearer_than(torch.zeros(2, 3))(5 * torch.ones(2, 3), torch.zeros(2, 3))


def test_three_that_share_nothing_are_nearest_in_a_third_of_the_noises():
    a, b, third = (unit(3_000, 8, seed) for seed in range(3))
    assert scores.nearer_than(third)(a, b).double().mean().item() == pytest.approx(1 / 3, abs=0.03)


def test_two_that_share_the_third_alone_are_never_nearer():
    """Each is the third and a deviation of its own, in 128 dimensions, as cifar-copy has."""
    third, a, b = (unit(1_000, 128, seed) for seed in range(3))
    mine, theirs = (torch.nn.functional.normalize(third + 0.5 * own, dim=1) for own in (a, b))
    assert scores.nearer_than(third)(mine, theirs).double().mean().item() < 0.01


# --- the example of the README ------------------------------------------------------------------

def test_two_folders_of_images_are_scored_as_the_readme_says(tmp_path, monkeypatch, capsys):
    bundled = data.load("bundled").first(12)
    for name, shift in (("mine", 0), ("theirs", 3)):
        (tmp_path / name).mkdir()
        for k, pixels in enumerate(bundled.pixels):
            picture = (pixels.int() + shift).clamp(0, 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(tmp_path / name / f"{k}.png")
    text = (data.BUNDLED.parents[2] / "README.md").read_text()
    code = re.search(r"(?m)^    from paper_utils import data, .*, tables$(\n|    .*|\n)+", text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda name: bundled)
    exec("\n".join(line[4:] for line in code[0].splitlines()), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("MAE score 1.00 [0.76, 1.00], by chance 0.0")
    assert said[1].startswith("RP 1.00 [0.76, 1.00], by chance 0.0") and said[2][:7] == "GL 0.00"
