"""Augmentation: what is drawn, what it does to images, and that the network is told."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from paper_utils import augmentation, data, denoisers, networks, noise, profiles, recipes, training
from paper_utils.errors import UserError
from paper_utils.samplers import Solver

IDENTITY = torch.zeros(8)
FLIP_X, FLIP_Y, SCALED, TURNED, AXIS, STRETCHED, SHIFTED_X, SHIFTED_Y = range(8)
SPEC = training.Spec("augmented", "unet", dict(width=8, channel_mult=(1, 1), blocks=1,
                                               attention=(8,), patch=2, augment_dim=9),
                     images=24, images_seen=70, batch=7, augmentation=0.5)


@pytest.fixture(scope="module")
def images():
    return data.to_unit(data.load("bundled").pixels[:6])


def done(images, **changes):
    """The images after the same named changes to each."""
    drawn = IDENTITY.clone()
    for name, value in changes.items():
        drawn[globals()[name]] = value
    return augmentation.warp(images, drawn.expand(len(images), 8))


def drawn(n=20_000, probability=0.12):
    return augmentation.draw(n, probability, noise.stream("test", "augmentation"))


def test_nothing_drawn_returns_the_image_itself(images):
    assert torch.equal(done(images), images)
    assert torch.equal(done(images, AXIS=1.0), images)  # an axis without a strength


@pytest.mark.parametrize("changes, expected", [
    (dict(FLIP_X=1), lambda x: x.flip(3)),
    (dict(FLIP_Y=1), lambda x: x.flip(2)),
    (dict(TURNED=math.pi / 2), lambda x: x.rot90(-1, (2, 3))),  # x axis towards y, which is down
    (dict(TURNED=math.pi), lambda x: x.flip(2, 3)),
    (dict(SHIFTED_X=1), lambda x: torch.cat([x[..., :4].flip(3), x[..., :-4]], 3)),
    (dict(SHIFTED_Y=-2), lambda x: torch.cat([x[:, :, 8:], x[:, :, -8:].flip(2)], 2)),
    (dict(FLIP_X=1, TURNED=math.pi / 2), lambda x: x.flip(3).rot90(-1, (2, 3))),  # flipped first
    (dict(TURNED=math.pi / 2, SHIFTED_X=1), lambda x: torch.cat(
        [(y := x.rot90(-1, (2, 3)))[..., :4].flip(3), y[..., :-4]], 3)),  # shifted last
])
def test_changes_that_move_pixels_to_pixels(images, changes, expected):
    torch.testing.assert_close(done(images, **changes), expected(images), atol=2e-5, rtol=0)


def matrix(row):
    """The affine map of one row, [3, 3] in pixels from the centre, written out step by step."""
    def turn(a):
        return np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])

    flip_x, flip_y, scale, angle, axis, stretch, x, y = row.tolist()
    steps = [np.diag([-1 if flip_x else 1, 1, 1]), np.diag([1, -1 if flip_y else 1, 1]),
             np.diag([2 ** (0.2 * scale), 2 ** (0.2 * scale), 1]), turn(angle), turn(-axis),
             np.diag([2 ** (0.2 * stretch), 2 ** (-0.2 * stretch), 1]), turn(axis),
             np.array([[1, 0, 32 * x / 8], [0, 1, 32 * y / 8], [0, 0, 1]])]
    total = np.eye(3)
    for step in steps:
        total = step @ total
    return total


def test_a_ramp_goes_where_the_matrices_say():
    """A plane of brightness stays one; torch's cubic bends it by up to a tenth of a pixel."""
    at = np.arange(32) - 15.5
    x, y = np.meshgrid(at, at)
    rows = drawn(200, 0.7)
    ramp = torch.tensor(0.01 * x - 0.02 * y, dtype=torch.float32).expand(200, 1, 32, 32)
    warped = augmentation.warp(ramp, rows)[:, 0].numpy()
    compared = 0
    for row, found in zip(rows, warped):
        source = np.linalg.inv(matrix(row)) @ np.stack([x.ravel(), y.ravel(), np.ones(1024)])
        inside = (np.abs(source[:2]) < 13).all(0)  # the mirror bends the plane outside
        expected = 0.01 * source[0] - 0.02 * source[1]
        np.testing.assert_allclose(found.ravel()[inside], expected[inside], atol=0.0022)
        compared += inside.sum()
    assert compared > 50_000


def test_a_flip_for_half_and_every_other_kind_for_its_part():
    rows = drawn()
    shares = (rows != 0).float().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 1.0, 0.12, 0.12, 0.12])
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)
    some = rows[:, [SCALED, STRETCHED, SHIFTED_X, SHIFTED_Y]]
    assert [x[x != 0].std().item() for x in some.T] == pytest.approx([1] * 4, abs=0.05)
    assert rows[:, TURNED].abs().max() <= math.pi < 1.01 * rows[:, TURNED].abs().max()
    both = (rows[:, SHIFTED_X] != 0) == (rows[:, SHIFTED_Y] != 0)
    assert both.all()  # one draw for the two of them


def test_the_labels_say_what_was_done_and_are_zero_for_nothing():
    rows = drawn(2_000)
    labels = augmentation.describe(rows)
    assert labels.shape == (2_000, augmentation.LABELS)
    images = torch.rand(2_000, 1, 8, 8) * 2 - 1
    same = (augmentation.warp(images, rows) == images).flatten(1).all(1)
    assert torch.equal(same, (labels == 0).all(1))
    turned = rows[:, TURNED] != 0
    torch.testing.assert_close(torch.atan2(labels[turned, 4], labels[turned, 3] + 1),
                               rows[turned, TURNED])
    torch.testing.assert_close(labels[:, 5].hypot(labels[:, 6]), rows[:, STRETCHED].abs())


def test_values_stay_in_range(images):
    warped, _ = augmentation.augment(images.sign(), 1.0, noise.stream("test", "range"))
    assert warped.abs().max() <= 1


def test_training_tells_the_network_and_resumes_bit_for_bit(tmp_path):
    pictures, path = data.load("bundled").first(24), tmp_path / "run.safetensors"
    for run in training.train(SPEC, pictures):
        weight = run.denoiser.network.embedding.augment.weight
        if run.step == 1:  # the last layers are zero at first, so only they learn in step one
            before = weight.detach().clone()
    assert not torch.equal(weight, before)
    for stopped in training.train(SPEC, pictures):
        if stopped.step == 4:
            training.save_checkpoint(stopped, path)
            break
    for again in training.train(SPEC, pictures, path):
        pass
    whole, resumed = run.state_dict(), again.state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_what_the_network_is_told_changes_its_answer_and_none_is_all_zeros():
    torch.manual_seed(0)
    network = networks.build("unet", **SPEC.network_args)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.05)
    denoiser = denoisers.Preconditioned(network, denoisers.framework("edm")).eval()
    u = torch.randn(2, 3, 32, 32)
    plain, zeros = denoiser(u, 1.0), denoiser(u, 1.0, augment=torch.zeros(2, 9))
    assert torch.equal(plain, zeros)
    assert not torch.allclose(plain, denoiser(u, 1.0, augment=torch.ones(2, 9)))


@pytest.mark.parametrize("changes, says", [
    (dict(network_args={**SPEC.network_args, "augment_dim": 0}), "augment_dim=9"),
    (dict(network="dit", network_args={}), "augment_dim=9"),
    (dict(augmentation=1.5), "from 0 to 1"),
    (dict(objective="ct", solver=Solver("consistency", 1)), "denoising"),
])
def test_what_does_not_go_together_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        next(training.train(replace(SPEC, **changes), data.load("bundled").first(24)))


def test_the_released_recipe_augments_and_the_shipped_models_do_not():
    """Section 3's recipe has probability .12; those who never augment have no input for it."""
    recipe = recipes.regime_specs("paper")["unet-64-n64"]
    assert recipe.augmentation == 0.12 and recipe.network_args["augment_dim"] == 9
    others = [spec for name in profiles.PROFILES for spec in recipes.every_spec(name).values()
              if spec.augmentation == 0]
    assert all(not spec.network_args.get("augment_dim") for spec in others)
    assert not any(spec.augmentation for name in ("smoke", "laptop", "gpu")
                   for spec in recipes.every_spec(name).values())
