"""Measurement operators against PIL, torchvision, deepinv and their definitions."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from paper_utils import data, inverse, operators
from paper_utils.denoisers import GaussianDenoiser
from paper_utils.errors import UserError
from paper_utils.inverse import Guidance
from paper_utils.operators import (OPERATORS, Operator, Task, box_inpainting, fingerprint,
                                   gaussian_blur, high_dynamic_range, measure, measured,
                                   motion_blur, random_inpainting, super_resolution)
from paper_utils.samplers import Solver

LEVELS = {"random-inpainting": 0.7, "box-inpainting": 12, "super-resolution": 4,
          "gaussian-blur": 1.5, "motion-blur": 9, "high-dynamic-range": 2}
LINEAR = [name for name in LEVELS if name != "high-dynamic-range"]
DRAWN = ("random-inpainting", "box-inpainting", "motion-blur")  # another one for every image


def photos(n: int = 5) -> torch.Tensor:
    return data.to_unit(data.load("bundled").pixels[:n])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(name: str, n: int = 5, **changes) -> Operator:
    return Task(name, LEVELS[name], **changes).build(n)


def test_every_operator_is_tested():
    assert LEVELS.keys() == OPERATORS.keys()


# --- what each one does -------------------------------------------------------------------------

@pytest.mark.parametrize("drop", [0.1, 0.5, 0.92])
def test_random_inpainting_loses_that_share_of_pixels_in_all_channels(drop):
    answer = random_inpainting(6, drop).A(torch.full((6, 3, 32, 32), 0.5))
    assert ((answer == 0) | (answer == 0.5)).all()
    lost = answer == 0
    assert (lost.any(1) == lost.all(1)).all()
    assert (lost[:, 0].sum((1, 2)) == round(drop * 1024)).all()


def test_lost_pixels_are_spread_over_the_image():
    lost = random_inpainting(200, 0.5).A(torch.ones(200, 1, 32, 32)) == 0
    share = lost.double().mean((0, 1))
    assert (share - 0.5).abs().max() < 5 * 0.5 / 200**0.5  # 1,024 pixels, 5 deviations


@pytest.mark.parametrize("box", [1, 8, 31])
def test_a_box_is_one_square_inside_the_image(box):
    lost = box_inpainting(20, box).A(torch.ones(20, 3, 32, 32)) == 0
    assert (lost.any(1) == lost.all(1)).all()
    for one in lost[:, 0]:
        rows, columns = one.nonzero().unbind(1)
        assert one.sum() == box**2
        assert rows.max() - rows.min() == columns.max() - columns.min() == box - 1


def test_boxes_reach_every_border():
    lost = box_inpainting(300, 24).A(torch.ones(300, 1, 32, 32)).sum((0, 1)) < 300
    assert lost[0].any() and lost[-1].any() and lost[:, 0].any() and lost[:, -1].any()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_super_resolution_is_the_bicubic_resize_of_pil(factor):
    small = 32 // factor
    expected = torch.tensor(np.stack([Image.fromarray(channel.numpy()).resize(
        (small, small), Image.BICUBIC) for channel in photos().flatten(0, 1)]))
    found = super_resolution(5, factor).A(photos())
    torch.testing.assert_close(found, expected.view(5, 3, small, small), rtol=0, atol=1e-5)


@pytest.mark.parametrize("deviation", [0.5, 1.5, 3])
def test_gaussian_blur_is_that_of_torchvision(deviation):
    from torchvision.transforms.functional import gaussian_blur as theirs

    width = 2 * (int(4 * deviation) + 1) + 1
    found = gaussian_blur(5, deviation).A(photos())
    torch.testing.assert_close(found, theirs(photos(), width, deviation), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [2, 9, 16])
def test_motion_kernels_are_curves_of_that_length_with_sum_one(length):
    kernels = motion_blur(30, length).state
    assert (kernels >= 0).all()
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(30))
    axis = torch.arange(kernels.shape[-1]) - kernels.shape[-1] // 2
    for part in (kernels.sum(2), kernels.sum(1)):
        assert (part @ axis.float()).abs().max() < 1e-4  # the image does not move
        spread = (part > 0).sum(1)
        assert spread.max() <= length + 2
    assert torch.cdist(kernels.flatten(1), kernels.flatten(1)).fill_diagonal_(1).min() > 1e-2


def test_motion_kernels_are_as_long_as_asked():
    """A straight path of `length` has deviation length / sqrt(12); a curved one has less."""
    for length in (4, 16):
        kernels = motion_blur(100, length).state.double()
        axis = (torch.arange(kernels.shape[-1]) - kernels.shape[-1] // 2).double()
        spread = ((kernels.sum(2) + kernels.sum(1)) @ axis**2).sqrt()
        # the bilinear weights add at most 1/4 to the variance along each axis
        assert spread.max() <= (length**2 / 12 + 0.5) ** 0.5
        assert spread.median() > 0.6 * length / 12**0.5


@pytest.mark.parametrize("name", ["motion-blur", "gaussian-blur"])
def test_a_blur_is_a_loop_of_single_convolutions(name):
    operator, images = build(name), photos()
    reach = operator.state.shape[-1] // 2
    padded = F.pad(images, [reach] * 4, mode="reflect")
    expected = torch.stack([torch.cat([F.conv2d(channel[None, None], kernel[None, None])[0]
                                       for channel in image])
                            for image, kernel in zip(padded, operator.state)])
    torch.testing.assert_close(operator.A(images), expected, rtol=0, atol=1e-5)


def test_high_dynamic_range_saturates():
    x = torch.tensor([-1.0, -0.6, -0.5, -0.1, 0, 0.2, 0.5, 0.9]).expand(1, 1, 8, 8)
    expected = torch.tensor([-1.0, -1, -1, -0.2, 0, 0.4, 1, 1]).expand(1, 1, 8, 8)
    torch.testing.assert_close(high_dynamic_range(1, 2, side=8).A(x), expected)


@pytest.mark.parametrize("name", LEVELS)
def test_every_operator_keeps_images_in_range_and_apart(name):
    operator, images = build(name), photos()
    answer = operator.A(images)
    assert answer.abs().max() < 1.3 and answer.dtype == torch.float32  # bicubic may overshoot
    assert operator.A(images.double()).dtype == torch.float64
    images[2] = 0
    changed = (operator.A(images) != answer).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operators_are_linear(name):
    operator, x, y = build(name), normal(5, 3, 32, 32), normal(5, 3, 32, 32, seed=1)
    torch.testing.assert_close(operator.A(2 * x - 3 * y), 2 * operator.A(x) - 3 * operator.A(y))


@pytest.mark.parametrize("name", LEVELS)
def test_every_operator_has_the_gradient_of_its_finite_differences(name):
    operator, x = build(name, 2), normal(2, 3, 32, 32) / 3
    weight = normal(*operator.A(x).shape, seed=1)
    x.requires_grad_()
    gradient, = torch.autograd.grad((operator.A(x) * weight).sum(), x)
    direction = normal(2, 3, 32, 32, seed=2)
    x, step = x.detach(), 1e-7
    ahead, behind = (operator.A(x + s * step * direction) for s in (1, -1))
    slope = ((ahead - behind) * weight).sum() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-5)


# --- what is drawn ------------------------------------------------------------------------------

@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_for_an_image_depends_on_its_number_and_the_seed_alone(name):
    few, many = build(name, 3).state, build(name, 9).state
    assert torch.equal(few, many[:3])
    other = build(name, 9, seed=1).state
    assert not torch.equal(other[0], many[0])
    flat = many.flatten(1)
    assert len(flat.unique(dim=0)) == 9


@pytest.mark.parametrize("name", LEVELS)
def test_rows_of_an_operator_are_those_of_its_images(name):
    operator, images, which = build(name), photos(), torch.tensor([3, 0, 3])
    torch.testing.assert_close(operator.rows(which).A(images[which]), operator.A(images)[which])
    assert torch.equal(operator.rows(slice(1, 4)).A(images[1:4]), operator.A(images)[1:4])


@pytest.mark.parametrize("name", LEVELS)
def test_fingerprints_tell_operators_apart_and_nothing_else(name):
    shape = (5, 3, 32, 32)
    mine = fingerprint(build(name), shape)
    torch.testing.assert_close(fingerprint(build(name), shape), mine)
    torch.testing.assert_close(fingerprint(build(name, 8), (8, *shape[1:]))[:5], mine)
    others = {"super-resolution": 2, "random-inpainting": 0.72, "box-inpainting": 14}
    harder = Task(name, others.get(name, LEVELS[name] * 1.2)).build(5)
    assert ((fingerprint(harder, shape) - mine).abs() > 1e-3).all()
    if name in DRAWN:
        assert ((fingerprint(build(name, seed=1), shape) - mine).abs() > 1e-3).all()


# --- measurements -------------------------------------------------------------------------------

def test_measurement_noise_of_an_image_depends_on_its_number_and_the_seed_alone():
    images = photos(8)
    operator = build("gaussian-blur", 8)
    clean = operator.A(images)
    noise = measure(images, operator, 0.1).y - clean
    few = measure(images[:3], operator.rows(slice(3)), 0.1).y - clean[:3]
    assert torch.equal(few, noise[:3])
    assert torch.equal(measure(images, operator, 0.1).y - clean, noise)
    other = measure(images, operator, 0.1, seed=1).y - clean
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]) < 0.03
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 5 / 3072**0.5


@pytest.mark.parametrize("sigma", [0, 0.05, 0.4])
def test_measurement_noise_has_its_deviation(sigma):
    images, operator = photos(8), build("random-inpainting", 8)
    found = measure(images, operator, sigma)
    noise = (found.y - operator.A(images)).double()
    assert noise.std().item() == pytest.approx(sigma, rel=0.02)  # 24,576 values: 4 deviations
    assert found.sigma == sigma and len(found.y) == 8
    found.check(operator, tuple(images.shape))


def test_the_noise_is_that_of_the_measurement_whatever_the_operator():
    images = photos(4)
    one, other = (build(name, 4) for name in ("motion-blur", "high-dynamic-range"))
    noises = [measure(images, operator, 0.05).y - operator.A(images) for operator in (one, other)]
    torch.testing.assert_close(*noises, rtol=0, atol=1e-6)


# --- what others have ---------------------------------------------------------------------------

def test_a_y_of_ones_own_is_a_measurement_of_its_operator():
    images, operator = photos(), build("gaussian-blur")
    y = operator.A(images)
    found = measured(y, operator, images.shape, 0.1)
    assert found.sigma == 0.1 and torch.equal(found.y, y)
    torch.testing.assert_close(found.operator, measure(images, operator).operator)
    found.check(operator, images.shape)
    check_refused(lambda: found.check(build("motion-blur"), images.shape), "another operator")


def test_a_function_and_a_module_are_their_own_operators():
    images = photos()
    function, module = lambda x: F.avg_pool2d(x, 2), torch.nn.AvgPool2d(2)
    found = measure(images, function)
    assert torch.equal(found.y, measure(images, module).y)
    found.check(module, images.shape)
    assert not measure(images, torch.nn.Conv2d(3, 1, 3)).y.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_others_operators_are_probed_in_the_precision_of_the_images(dtype):
    seen, images = [], photos().to(dtype)
    A = lambda x: seen.append(x.dtype) or x / 2
    measurement = measure(images, A)
    measurement.check(A, images.shape)
    measured(images / 2, A, images.shape)
    assert set(seen) == {dtype}


def test_others_operators_are_probed_where_the_images_are():
    seen = []
    fingerprint(lambda x: seen.append(x.device.type) or x, (2, 3, 8, 8),
                torch.empty(0, device="meta"))
    assert seen == ["meta"]


@pytest.mark.parametrize("A, said", [
    (torch.fft.fft2, r"torch.complex64 \[5, 3, 32, 32\]: .*torch.view_as_real"),
    (list, "<lambda> with list|list with list"), (lambda x: x.numpy(), "with ndarray"),
    (lambda x: x.mean(), r"torch.float32 \[\]"), (lambda x: x[:1], r"\[1, 3, 32, 32\]"),
    (lambda x: x.flatten(1).mean(1), r"floats \[5, ...\] here"),
    (lambda x: (127 * x).byte(), "torch.uint8"), (lambda x, mask: x * mask, "'mask'"),
    (lambda x: x.view(7), "<lambda> does not fit images of shape"), (3, "and int is not")])
def test_an_operator_that_answers_otherwise_is_refused_in_one_line(A, said):
    check_refused(lambda: measure(photos(), A), said)


def test_an_assertion_without_words_is_refused_in_one_line():
    def picky(x):
        raise AssertionError
    check_refused(lambda: measure(photos(), picky), "picky does not fit .* AssertionError")


# --- deepinv ------------------------------------------------------------------------------------

def twin(name: str, n: int = 5):
    """Our operator and deepinv's own with the same mask or kernel. deepinv's blur convolves."""
    physics = pytest.importorskip("deepinv").physics
    operator = build(name, n)
    if "inpainting" in name:
        return operator, physics.Inpainting((3, 32, 32), mask=operator.state)
    kernels = operator.state.flip(1, 2)[:, None].contiguous()
    return operator, physics.Blur(kernels, padding="reflect")


TWINS = ("random-inpainting", "box-inpainting", "gaussian-blur", "motion-blur")


@pytest.mark.parametrize("name", TWINS)
def test_deepinv_measures_the_same(name):
    (mine, theirs), images = twin(name), photos()
    torch.testing.assert_close(theirs.A(images), mine.A(images), rtol=0, atol=1e-5)
    found, expected = measure(images, theirs, 0.05), measure(images, mine, 0.05)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.operator, expected.operator, rtol=0, atol=1e-4)
    expected.check(theirs, tuple(images.shape))


@pytest.mark.parametrize("name", TWINS)
def test_a_deepinv_physics_object_reconstructs_as_it_is(name):
    (mine, theirs), images = twin(name), photos()
    denoiser = GaussianDenoiser.fit(data.load("bundled").pixels[:40])
    guidance = Guidance(1.0, Solver("dpm-solver-1", 4, sigma_max=5))
    noise, measurement = normal(*images.shape), measure(images, mine)
    found, expected = (inverse.reconstruct(denoiser, noise, measurement, operator, guidance)
                       for operator in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_deepinv_object_for_other_images_is_refused_in_one_line():
    theirs = twin("motion-blur")[1]
    check_refused(lambda: measure(photos(4), theirs), r"\(4, 3, 32, 32\)")
    check_refused(lambda: measure(photos(5)[..., :16], twin("box-inpainting")[1]),
                  r"Inpainting.*\(5, 3, 32, 16\)")


# --- refused ------------------------------------------------------------------------------------

def check_refused(call, match: str | None = None) -> None:
    with pytest.raises(UserError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, level, match", [
    ("random-inpainting", 0.0, "drops nothing"), ("random-inpainting", 1.0, "drops everything"),
    ("random-inpainting", 1e-5, "drops nothing"), ("random-inpainting", 1.5, None),
    ("random-inpainting", -0.1, None), ("random-inpainting", 70, None),
    ("box-inpainting", 0, "drops nothing"), ("box-inpainting", 32, "drops everything"),
    ("box-inpainting", 40, None), ("box-inpainting", -3, None), ("box-inpainting", 7.5, None),
    ("super-resolution", 1, "divisor of 32"), ("super-resolution", 5, "divisor of 32"),
    ("super-resolution", -2, "divisor of 32"), ("super-resolution", 64, "divisor of 32"),
    ("super-resolution", 4.5, "divisor of 32"),
    ("gaussian-blur", 0, "over 0, up to 4"), ("gaussian-blur", 5, "over 0, up to 4"),
    ("motion-blur", 1, "from 2 to 16"), ("motion-blur", 17, "from 2 to 16"),
    ("high-dynamic-range", 1, "over 1"), ("high-dynamic-range", -2, "over 1")])
def test_a_level_out_of_range_is_refused_in_one_line(name, level, match):
    check_refused(lambda: Task(name, level).build(3), match)


@pytest.mark.parametrize("level", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", LEVELS)
def test_a_level_that_is_no_number_is_refused_in_one_line(name, level):
    check_refused(lambda: Task(name, level).build(3), str(level))


@pytest.mark.parametrize("name", LEVELS)
def test_images_of_another_size_are_refused_with_both_sizes(name):
    check_refused(lambda: build(name, 2).A(torch.zeros(2, 3, 16, 24)), "32 x 32.*16 x 24")
    check_refused(lambda: measure(torch.zeros(2, 3, 16, 16), build(name, 2)), "32 x 32.*16 x 16")


@pytest.mark.parametrize("name", DRAWN)
def test_another_number_of_images_is_refused(name):
    check_refused(lambda: measure(photos(4), build(name, 5)), "5 images and got 4")


def test_an_unknown_operator_names_the_nearest():
    check_refused(lambda: Task("box-inpaintng", 8), "did you mean 'box-inpainting'")


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_measurement_noise_that_cannot_be_is_refused(sigma):
    check_refused(lambda: Task("box-inpainting", 8, sigma), "measurement noise")


@pytest.mark.parametrize("change", [dict(seed=1), dict(level=0.5)])
def test_a_measurement_by_another_operator_is_refused(change):
    images, task = photos(), Task("random-inpainting", 0.7)
    measurement = measure(images, task.build(5))
    other = Task(**vars(task) | change).build(5)
    check_refused(lambda: measurement.check(other, tuple(images.shape)), "another operator")


def test_one_image_of_another_operator_is_enough_to_refuse():
    images, operator = photos(), build("box-inpainting")
    swapped = operator.rows(torch.tensor([0, 1, 3, 2, 4]))
    measurement = measure(images, operator)
    check_refused(lambda: measurement.check(swapped, tuple(images.shape)), "another operator")


def test_every_operator_has_a_name_to_be_read():
    assert operators.TITLES.keys() == OPERATORS.keys()
    assert Task("random-inpainting", 0.7).name == "random inpainting 70%"
    assert Task("gaussian-blur", 1.5).name == "Gaussian blur 1.5 px"
    assert Task("high-dynamic-range", 2).name == "high dynamic range 2x"


@pytest.mark.parametrize("images, sigma, said", [
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.05, "float images .*data.to_unit"),
    (torch.zeros(2, 3, 8, 8).numpy(), 0.05, "float images .*data.to_unit"),
    (torch.zeros(0, 3, 8, 8), 0.05, "float images .*at least one"),
    (torch.full((2, 3, 8, 8), 255.0), 0.05, "these reach 255: .* x / 127.5 - 1"),
    (torch.full((2, 3, 8, 8), math.nan), 0.05, "these reach nan"),
    (torch.zeros(2, 3, 8, 8), "a", "measurement noise a: give a deviation from 0 up"),
    (torch.zeros(3, 8, 8), 0.05, r"float images \[n, C, H, W\]"),
    (torch.zeros(2, 3, 8, 8), -0.1, "measurement noise -0.1: give a deviation from 0 up"),
    (torch.zeros(2, 3, 8, 8), math.nan, "measurement noise nan: give a deviation from 0 up")])
def test_what_cannot_be_measured_is_refused(images, sigma, said):
    with pytest.raises(UserError, match=said):
        measure(images, Task("random-inpainting", 0.5).build(2, 8), sigma)


SMALL = Task("random-inpainting", 0.5)


@pytest.mark.parametrize("y, said", [
    (torch.zeros(2, 1, 8, 8), r"y is \[2, 1, 8, 8\], and of images \[2, 3, 8, 8\] random inpaint"),
    (torch.zeros(1, 3, 8, 8), r"y is \[1, 3, 8, 8\]"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"real floats .* not torch.uint8\[2, 3, 8, 8\]"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.complex64), "not torch.complex64.* torch.view_as_real"),
    (torch.zeros(2, 3, 8, 8).numpy(), "not ndarray"), (torch.tensor(1.0), "real floats"),
    (torch.zeros(0, 3, 8, 8), "n at least 1"),
    (torch.full((2, 3, 8, 8), math.nan), "not finite: where nothing was measured")])
def test_a_y_that_cannot_be_is_refused(y, said):
    check_refused(lambda: measured(y, SMALL.build(2, 8), (2, 3, 8, 8)), said)


def test_a_measurement_holds_a_fingerprint_and_images_have_four_sides():
    y, operator = torch.zeros(2, 3, 8, 8), SMALL.build(2, 8)
    check_refused(lambda: operators.Measurement(y, operator, 0.05), "operators.measured.y, oper")
    check_refused(lambda: measured(y, operator, (3, 8, 8)), r"is \[n, C, H, W\], not \[3, 8, 8\]")
    check_refused(lambda: measured(y, operator, y.shape, -1.0), "measurement noise -1.0")


@pytest.mark.parametrize("name", DRAWN)
def test_an_operator_is_for_some_images(name):
    check_refused(lambda: build(name, 0), "for 0 images: give at least 1")


def test_images_that_are_not_square_are_told_so():
    check_refused(lambda: measure(torch.zeros(2, 3, 8, 16), SMALL.build(2, 16)),
                  "square images, of 16 x 16, and got 8 x 16")
