"""The mixture study: its points, its errors against brute force, the crossings."""

import pytest
import torch

from paper_utils import mixture, plots, rules
from paper_utils.denoisers import OptimalDenoiser
from paper_utils.noise import stream

pytestmark = pytest.mark.usefixtures("cache")

TINY = mixture.Study((4, 16), points_seen=64 * 20, dim=3, components=2, width=16, batch=64,
                     tested=200, sigmas=(0.1, 1.0))


def test_points_are_of_the_scale_the_preconditioning_expects():
    study = mixture.STUDIES["laptop"]
    points = mixture.points(study, 4_000).pixels
    assert points.shape == (4_000, 16, 1, 1)
    assert points.std().item() == pytest.approx(0.5, abs=0.15)
    assert not torch.equal(points, mixture.points(study, 4_000, "test").pixels)


def table(study, networks):
    found = mixture.errors(mixture.squares(study, networks))
    return found.set_index([*mixture.WHERE]).sort_index()


def test_the_truths_are_at_no_distance_from_themselves():
    points = mixture.points(TINY, 16)
    networks = {4: OptimalDenoiser(points.first(4).pixels), 16: mixture.mixture(TINY)}
    found = table(TINY, networks)
    for asked in ("training", "new"):
        few, many = found.loc[asked, 4], found.loc[asked, 16]
        assert (few["to empirical"] == 0).all()
        assert (few["to ground truth"] == few["between them"]).all()
        assert (many["to ground truth"] == 0).all() and (many["to empirical"] > 0).all()
    assert set(found.n) == {200}


def test_a_network_is_asked_about_noisy_points_it_trained_on_and_new_ones():
    asked = []
    networks = {4: lambda u, sigma: asked.append((sigma, u)) or 0 * u}
    found = table(TINY, networks)
    own = mixture.points(TINY, 16).pixels[:4]
    new = mixture.points(TINY, 200, "test").pixels
    eps = torch.randn(new.shape, generator=stream("mixture noise", TINY.dim))
    assert 0.9 < eps.std() < 1.1 and torch.cdist(new.flatten(1), own.flatten(1)).min() > 0
    expected = [(what, clean, sigma) for what, clean in (("training", own.repeat(50, 1, 1, 1)),
                                                         ("new", new)) for sigma in TINY.sigmas]
    for (what, clean, sigma), (told, u) in zip(expected, asked, strict=True):
        noisy, row = clean + sigma * eps, found.loc[what, 4, sigma]
        assert told == sigma
        torch.testing.assert_close(u, noisy)
        copy, exact = OptimalDenoiser(own)(noisy, sigma), mixture.mixture(TINY)(noisy, sigma)
        by_hand = [copy, exact, copy - exact, noisy - exact]
        assert row[list(mixture.DISTANCES)].tolist() == pytest.approx(
            [gap.square().mean().sqrt().item() for gap in by_hand], rel=1e-4)


def test_more_points_bring_the_two_truths_together():
    study = mixture.Study((16, 4096), points_seen=64, sigmas=(0.2,))
    truth = mixture.mixture(study)
    gap = table(study, {16: truth, 4096: truth})["between them"]
    assert gap["new", 4096, 0.2] < 0.25 * gap["new", 16, 0.2]
    assert gap["training", 4096, 0.2] < 0.25 * gap["training", 16, 0.2]


def test_an_error_has_the_interval_of_a_root_mean_square():
    """Of chi^2 with one degree of freedom: the mean's deviation is sqrt(2 / n), half in the root.
    """
    squares = torch.randn(4, 2_000, generator=torch.Generator().manual_seed(0)).square()
    row = mixture.errors({("new", 4, 0.1): squares}).iloc[0]
    assert row["to empirical"] == pytest.approx(squares[0].mean().sqrt().item())
    half = (row["to empirical high"] - row["to empirical low"]) / 2 / row["to empirical"]
    assert half == pytest.approx(1.96 * 2**0.5 / 2_000**0.5 / 2, rel=0.15)


def test_a_network_is_trained_for_every_number_of_points():
    found = mixture.trained(TINY)
    assert list(found) == [4, 16]
    u = torch.zeros(5, 3, 1, 1)
    answers = [denoiser(u, 0.5) for denoiser in found.values()]
    assert answers[0].shape == u.shape and not torch.equal(*answers)


def crossing(empirical, truth, between=3.0, points=(4, 64), spread=0.0):
    """The row of mixture.crossings of these errors; spread: of their squares over 40 noisy points.
    """
    def squares(*distances):
        spreads = torch.linspace(1 - spread, 1 + spread, 40).square()
        return torch.tensor([*distances, 0.0])[:, None].square() * torch.stack(
            [spreads, spreads.flip(0), torch.ones(40), torch.ones(40)])

    between = between if isinstance(between, tuple) else (between,) * len(points)
    found = {("new", n, 0.1): squares(*distances)
             for n, *distances in zip(points, empirical, truth, between)}
    return mixture.crossings(found).iloc[0]


@pytest.mark.parametrize("empirical, truth, at", [
    ((1.0, 2.0), (2.0, 1.0), 16.0), ((1.0, 4.0), (2.0, 2.0), 16.0), ((2.0, 4.0), (1.0, 1.0), None),
    ((1.0, 1.0), (2.0, 2.0), None),
])
def test_where_the_curves_cross(empirical, truth, at):
    found = crossing(empirical, truth)
    assert [found[key] for key in ("crossing", "low", "high")] == pytest.approx(
        [at or float("nan")] * 3, nan_ok=True)
    assert found.n == 40 and found.decided == bool(at)


@pytest.mark.parametrize("empirical", [(2.0, 0.5, 2.0), (1.0, 0.5, 2.0)])
def test_a_curve_that_starts_nearer_the_truth_does_not_cross(empirical):
    """Though it turns later from the empirical optimum to the truth."""
    found = crossing(empirical, (1.0, 1.0, 1.0), points=(4, 16, 64))
    assert found.crossing != found.crossing and not found.decided


def test_the_first_of_several_crossings_counts():
    found = crossing((0.5, 2.0, 0.5, 2.0), (1.0,) * 4, points=(4, 16, 64, 256))
    assert found.crossing == pytest.approx(8)


@pytest.mark.parametrize("between, decided", [
    ((2.0, 2.0), True), ((1.5, 1.5), True), ((1.4, 1.4), False), ((0.1, 0.1), False),
    ((8.0, 0.5), True), ((8.0, 0.2), False),  # at 16 points 2 and 1.26
])
def test_a_crossing_is_decided_where_the_truths_are_apart(between, decided):
    """The network is at 1.41 from both at the crossing, 16 points."""
    assert crossing((1.0, 2.0), (2.0, 1.0), between).decided == decided


def test_a_crossing_that_not_every_resample_has_is_not_decided():
    sure = crossing((1.0, 2.0), (2.0, 1.0), spread=0.5)
    assert sure.low < sure.crossing < sure.high and sure.decided
    unsure = crossing((1.0, 2.0), (1.02, 1.0), spread=0.5)
    assert unsure.crossing > 4 and unsure.low != unsure.low and not unsure.decided


def test_the_tables_of_a_trained_study_decide_the_claim_and_are_drawn():
    squares = mixture.squares(TINY, mixture.trained(TINY))
    errors, crossings = mixture.errors(squares), mixture.crossings(squares)
    assert crossings[["asked about", "sigma"]].values.tolist() == [
        [asked, sigma] for asked in ("training", "new") for sigma in TINY.sigmas]
    assert rules.mixture_crosses(errors, crossings).verdict
    axes = plots.mixture_errors(errors, crossings).axes
    assert [axis.get_title() for axis in axes] == [
        f"$\\sigma$ = {sigma}, {asked} points" for asked in ("training", "new")
        for sigma in ("0.1", "1")]
    for axis, (at, part) in zip(axes, errors.groupby(["asked about", "sigma"], sort=False)):
        lines = {line.get_label(): line.get_ydata().tolist() for line in axis.get_lines()}
        assert lines["identity to ground truth"] == part["identity to ground truth"].tolist()
        assert lines["network to empirical"] == part["to empirical"].tolist()


def test_the_perceptron_sees_the_noise_level():
    from paper_utils.networks import MLP

    torch.manual_seed(0)
    network = MLP(4, 16)
    torch.nn.init.normal_(network.leave.weight)
    x = torch.randn(1, 4, 1, 1)
    one, other = (network(x, torch.tensor([level])) for level in (0.1, 0.4))
    assert (one - other).abs().max() > 1e-3
