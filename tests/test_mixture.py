"""The mixture study: its points, its errors against brute force, the crossing."""

import pandas as pd
import pytest
import torch

from paper_utils import mixture
from paper_utils.denoisers import OptimalDenoiser

pytestmark = pytest.mark.usefixtures("cache")

TINY = mixture.Study((4, 16), points_seen=64 * 20, dim=3, components=2, width=16, batch=64,
                     tested=200, sigmas=(0.1, 1.0))


def test_points_are_of_the_scale_the_preconditioning_expects():
    study = mixture.STUDIES["laptop"]
    points = mixture.points(study, 4_000).pixels
    assert points.shape == (4_000, 16, 1, 1)
    assert points.std().item() == pytest.approx(0.5, abs=0.15)
    assert not torch.equal(points, mixture.points(study, 4_000, "test").pixels)


def test_the_truths_are_at_no_distance_from_themselves():
    points = mixture.points(TINY, 16)
    networks = {4: OptimalDenoiser(points.first(4).pixels), 16: mixture.mixture(TINY)}
    found = mixture.errors(TINY, networks).set_index(["points", "sigma"])
    assert (found.loc[4, "to empirical"] == 0).all()
    assert (found.loc[4, "to ground truth"] == found.loc[4, "between them"]).all()
    assert (found.loc[16, "to ground truth"] == 0).all()
    assert (found.loc[16, "to empirical"] > 0).all()


def test_more_points_bring_the_two_truths_together():
    study = mixture.Study((16, 4096), points_seen=64, sigmas=(0.2,))
    truth = mixture.mixture(study)
    gap = mixture.errors(study, {16: truth, 4096: truth})["between them"]
    assert gap[1] < 0.25 * gap[0]


def test_a_network_is_trained_for_every_number_of_points():
    found = mixture.trained(TINY)
    assert list(found) == [4, 16]
    u = torch.zeros(5, 3, 1, 1)
    answers = [denoiser(u, 0.5) for denoiser in found.values()]
    assert answers[0].shape == u.shape and not torch.equal(*answers)


@pytest.mark.parametrize("empirical, truth, crossing", [
    ((1.0, 2.0), (2.0, 1.0), 16.0), ((1.0, 4.0), (2.0, 2.0), 16.0), ((2.0, 4.0), (1.0, 1.0), None),
    ((1.0, 1.0), (2.0, 2.0), None),
])
def test_where_the_curves_cross(empirical, truth, crossing):
    table = pd.DataFrame({"points": [4, 64], "sigma": 0.1, "to empirical": empirical,
                          "to ground truth": truth, "between them": 3.0})
    found = mixture.crossings(table, [0.1]).crossing[0]
    assert found is None or pd.isna(found) if crossing is None else found == pytest.approx(crossing)


@pytest.mark.parametrize("between, decided", [
    ((2.0, 2.0), True), ((1.5, 1.5), True), ((1.4, 1.4), False), ((0.1, 0.1), False),
    ((8.0, 0.5), True), ((8.0, 0.2), False),  # at 16 points 2 and 1.26
])
def test_a_crossing_is_decided_where_the_truths_are_apart(between, decided):
    """The network is at 1.41 from both at the crossing, 16 points."""
    table = pd.DataFrame({"points": [4, 64], "sigma": 0.1, "to empirical": (1.0, 2.0),
                          "to ground truth": (2.0, 1.0), "between them": between})
    assert mixture.crossings(table, [0.1]).decided.tolist() == [decided]


def test_where_nothing_crosses_nothing_is_decided():
    table = pd.DataFrame({"points": [4, 64], "sigma": 0.1, "to empirical": 1.0,
                          "to ground truth": 2.0, "between them": 9.0})
    assert mixture.crossings(table, [0.1]).decided.tolist() == [False]


def test_the_perceptron_sees_the_noise_level():
    from paper_utils.networks import MLP

    torch.manual_seed(0)
    network = MLP(4, 16)
    torch.nn.init.normal_(network.leave.weight)
    x = torch.randn(1, 4, 1, 1)
    one, other = (network(x, torch.tensor([level])) for level in (0.1, 0.4))
    assert (one - other).abs().max() > 1e-3
