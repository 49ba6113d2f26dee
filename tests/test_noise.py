"""The noise bank depends on nothing but (seed, k); streams on nothing but their key."""

import hashlib
import math

import numpy as np
import pytest
import torch

from paper_utils.errors import UserError
from paper_utils.noise import NoiseBank, hyperplane, seed_of, stream


def test_the_first_noises_are_pinned():
    first = NoiseBank()[:4]
    assert first.dtype == torch.float32 and first.shape == (4, 3, 32, 32)
    assert hashlib.sha256(first.numpy().tobytes()).hexdigest() == (
        "a635f3db680397133c2ebaad235bb84341dca574a8e1fb76b3305171c6267e7a")


def test_noise_does_not_depend_on_how_it_is_drawn():
    bank = NoiseBank()
    run = bank[:20]
    assert torch.equal(run, torch.stack([bank[k] for k in range(20)]))
    assert torch.equal(run, torch.cat([bank[:7], bank[7:8], bank[8:20]]))
    assert torch.equal(run[3:17:4], bank[3:17:4])
    torch.manual_seed(123)
    np.random.seed(5)
    assert torch.equal(NoiseBank()[10:20], run[10:])
    assert torch.equal(bank[9_999:10_000][0], bank[9_999])


def test_drawing_leaves_the_global_generators_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    NoiseBank()[:3], torch.rand(2, generator=stream("a"))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_banks_of_other_seeds_and_other_noises_differ():
    a, b = NoiseBank(0)[:64].flatten(1), NoiseBank(1)[:64].flatten(1)
    correlation = (torch.cat([a, b]) @ torch.cat([a, b]).T / a.shape[1]).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / math.sqrt(a.shape[1])  # 8,128 pairs: 5.5 sd is 1e-4


def test_noise_is_standard_normal():
    noise = NoiseBank()[:400].double()
    n = noise.numel()
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / n)
    below = (noise < 1).double().mean().item()
    assert abs(below - 0.5 * (1 + math.erf(1 / math.sqrt(2)))) < 4 * 0.37 / math.sqrt(n)


def test_shape_and_name_of_a_bank():
    assert NoiseBank(3, (1, 8, 8))[:2].shape == (2, 1, 8, 8)
    assert NoiseBank(3, (1, 8, 8)).name == "bank-3-1x8x8"
    assert NoiseBank()[5:5].shape == (0, 3, 32, 32)


@pytest.mark.parametrize("seed", [0.5, 1.0, "1", None, -1, 2**63])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(UserError, match="seed .*: give a whole number from 0 to 2.*63 - 1"):
        NoiseBank(seed)


def test_the_seeds_of_any_whole_number_are_banks():
    assert torch.equal(NoiseBank(np.int64(3))[0], NoiseBank(3)[0])
    assert not torch.equal(NoiseBank(2**63 - 1)[0], NoiseBank(2**63 - 2)[0])


@pytest.mark.parametrize("index", [-1, slice(2, None), slice(None, -1), slice(-2, 3), 2**63,
                                   slice(2**63 - 1, 2**63 + 1)])
def test_the_bank_has_no_end(index):
    with pytest.raises(UserError, match="endless"):
        NoiseBank()[index]


def test_a_slice_has_a_step():
    with pytest.raises(UserError, match="give 1 for every noise, not 0"):
        NoiseBank()[0:3:0]
    assert torch.equal(NoiseBank()[0:3:2], NoiseBank()[0:3][::2])


def test_other_integers_are_numbers_too_and_other_indices_one_line():
    bank = NoiseBank(3, (1, 8, 8))
    assert torch.equal(bank[np.int64(3)], bank[3])
    for index in ([1, 2], np.array([1, 2]), torch.tensor([1, 2]), slice(0, 2.5), "a", None, 1.0):
        with pytest.raises(UserError, match="takes whole numbers or a slice of them, not"):
            bank[index]


def test_streams_reproduce_and_differ_by_key():
    def draw(*key):
        return torch.rand(4, generator=stream(*key)).tolist()

    keys = [("run", "noise", 0), ("run", "noise", 1), ("run", "order", 0), ("run2", "noise", 0),
            ("run", "noise", 10), ("noise", "run", 0)]
    drawn = [draw(*key) for key in keys]
    assert len({tuple(d) for d in drawn}) == len(keys)
    assert [draw(*key) for key in reversed(keys)] == drawn[::-1]


def test_seeds_fit_a_generator_and_are_pinned():
    seeds = [seed_of("run", k) for k in range(1000)]
    assert len(set(seeds)) == 1000 and all(0 <= s < 2**63 for s in seeds)
    digest = hashlib.sha256(b"a/1").digest()[:8]
    assert seed_of("a", 1) == int.from_bytes(digest, "big") // 2


# --- the hyperplane -----------------------------------------------------------------------------

def test_hyperplane_passes_through_its_corners():
    corners = NoiseBank()[:3]
    points = hyperplane(corners, 5).view(5, 5, 3, 32, 32)  # beta, alpha in -.5, 0, .5, 1, 1.5
    for (beta, alpha), corner in {(1, 1): 0, (1, 3): 1, (3, 1): 2}.items():
        torch.testing.assert_close(points[beta, alpha], corners[corner])


def test_hyperplane_is_the_plane_divided_by_its_deviation():
    corners = NoiseBank()[:3].double()
    points = hyperplane(corners.float(), 4, (-1, 2)).double().view(4, 4, 3, 32, 32)
    for i, beta in enumerate((-1, 0, 1, 2)):
        for j, alpha in enumerate((-1, 0, 1, 2)):
            eps = corners[0] + alpha * (corners[1] - corners[0]) + beta * (corners[2] - corners[0])
            deviation = math.sqrt((1 - alpha - beta) ** 2 + alpha**2 + beta**2)
            torch.testing.assert_close(points[i, j], eps / deviation, atol=1e-5, rtol=1e-5)


def test_every_point_of_the_hyperplane_has_unit_variance():
    trials = [hyperplane(NoiseBank(0, (3, 8, 8))[k:k + 3], 4) for k in range(0, 900, 3)]
    variance = torch.stack(trials).double().square().mean((0, 2, 3, 4))
    assert (variance - 1).abs().max() < 4.5 * math.sqrt(2 / (300 * 192))
