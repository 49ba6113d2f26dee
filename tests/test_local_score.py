"""The local equivariant denoiser, against loops that share no code with it."""

import math

import pytest
import torch

from paper_utils import data, local_score
from paper_utils.errors import UserError
from paper_utils.local_score import LocalEquivariantDenoiser


def toy(count=6, side=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return data.Images(pixels, torch.zeros(count, dtype=torch.int64), "toy")


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def machine(images, size, patches=40, **options):
    return LocalEquivariantDenoiser(images, patches, ((1.0, size),), **options)


def posterior_mean(distances, values, sigma):
    """Softmax-weighted mean in plain float64 Python: distances [P], values [P][3]."""
    least = min(distances)
    weights = [math.exp(-(d - least) / (2 * sigma**2)) for d in distances]
    return [sum(w * v[c] for w, v in zip(weights, values)) / sum(weights) for c in range(3)]


def by_loops(u, sigma, patches, size):
    """The definition, one pixel and one patch at a time; patches [P, 3, size, size]."""
    height, width, half = *u.shape[1:], size // 2
    patches, out = patches.double(), torch.empty(u.shape, dtype=torch.float64)
    for r in range(height):
        for c in range(width):
            top, left = max(0, half - r), max(0, half - c)
            bottom, right = min(size, height - r + half), min(size, width - c + half)
            seen = u.double()[:, r - half + top:r - half + bottom, c - half + left:c - half + right]
            distances = [float(((seen - b[:, top:bottom, left:right])**2).sum()) for b in patches]
            centres = patches[:, :, half, half].tolist()
            out[:, r, c] = torch.tensor(posterior_mean(distances, centres, sigma))
    return out


@pytest.mark.parametrize("sigma", [0.3, 2.0])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_agrees_with_the_definition_written_as_loops(size, sigma):
    denoiser = machine(toy(), size)
    patches = denoiser.bag(size)[0].reshape(-1, 3, size, size)
    u = normal(2, 3, 7, 6)
    expected = torch.stack([by_loops(x, sigma, patches, size) for x in u])
    assert torch.allclose(denoiser(u, sigma).double(), expected, atol=2e-5)


def test_whole_image_patches_give_the_empirical_optimal_denoiser():
    """A patch as large as the image has one position: its centre is the optimal denoiser's."""
    images, sigma = toy(count=4, side=5), 1.5
    denoiser = machine(images, 5, patches=200)
    clean = data.to_unit(images.pixels).double()
    bag = denoiser.bag(5)[0].double()
    counts = (torch.cdist(clean.flatten(1), bag) < 1e-5).sum(1)
    assert counts.sum() == 200 and counts.min() > 0
    u = clean[1] + sigma * normal(3, 5, 5).double()
    weights = (counts.log() - (u - clean).square().sum((1, 2, 3)) / (2 * sigma**2)).softmax(0)
    optimal = torch.einsum("i,ichw->chw", weights, clean)
    assert torch.allclose(denoiser(u[None].float(), sigma)[0, :, 2, 2].double(), optimal[:, 2, 2],
                          atol=1e-5)


def test_one_pixel_patches_ignore_the_neighbours():
    denoiser, u = machine(toy(), 1), normal(1, 3, 6, 6)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(2))
    shuffled = u.flatten(2)[..., order].view_as(u)
    expected = denoiser(u, 0.7).flatten(2)[..., order].view_as(u)
    assert torch.allclose(denoiser(shuffled, 0.7), expected, atol=1e-6)


@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (3, 1)])
def test_commutes_with_shifts_where_the_patch_is_inside(shift):
    denoiser, u, sigma = machine(toy(), 5), normal(1, 3, 12, 12), 0.8
    moved = denoiser(u.roll(shift, (2, 3)), sigma)
    still = denoiser(u, sigma).roll(shift, (2, 3))
    rows, columns = slice(2 + shift[0], 10), slice(2 + shift[1], 10)
    assert torch.allclose(moved[..., rows, columns], still[..., rows, columns], atol=1e-5)
    assert not torch.allclose(moved, still, atol=1e-2)


def test_changes_outside_the_patch_do_not_matter():
    denoiser, u = machine(toy(), 3), normal(1, 3, 9, 9)
    other = u.clone()
    other[..., 6:, :] += 5
    assert torch.allclose(denoiser(u, 1.0)[..., :5, :], denoiser(other, 1.0)[..., :5, :], atol=1e-6)


def test_the_bag_holds_whole_training_patches_drawn_by_its_seed():
    images = toy()
    patches, centres = machine(images, 3).bag(3)
    known = data.to_unit(images.pixels).unfold(2, 3, 1).unfold(3, 3, 1)
    known = known.permute(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    assert patches.shape == (40, 27) and torch.cdist(patches, known).amin(1).max() < 0.01
    assert torch.equal(centres, patches.reshape(-1, 3, 3, 3)[:, :, 1, 1])
    assert torch.equal(patches, machine(images, 3).bag(3)[0])
    assert not torch.equal(patches, machine(images, 3, seed=1).bag(3)[0])


def test_grey_images_have_one_channel():
    """The answer is that of images with three equal channels at sqrt(3) times the noise level."""
    colour = toy()
    grey = data.Images(colour.pixels[:, :1], colour.labels, colour.name)
    three = data.Images(grey.pixels.expand(-1, 3, -1, -1).contiguous(), grey.labels, grey.name)
    u = normal(2, 1, 7, 7)
    one = machine(grey, 3)(u, 0.5)
    torch.testing.assert_close(
        machine(three, 3)(u.expand(-1, 3, -1, -1).contiguous(), 0.5 * math.sqrt(3))[:, :1], one)


def test_tiny_noise_neither_overflows_nor_moves_a_known_colour():
    denoiser = machine(toy(), 1)
    colours = denoiser.bag(1)[1]
    u = colours[:36].T.reshape(1, 3, 6, 6).clone()
    assert torch.allclose(denoiser(u, 0.002), u, atol=1e-5)
    assert machine(toy(), 5)(100 * u, 0.002).isfinite().all()


def test_huge_noise_gives_the_mean_centre():
    denoiser = machine(toy(), 3)
    mean = denoiser.bag(3)[1].mean(0)[None, :, None, None]
    assert torch.allclose(denoiser(normal(1, 3, 7, 7), 1e4), mean.expand(1, 3, 7, 7), atol=1e-3)


def test_the_table_is_read_by_the_nearest_log_sigma():
    denoiser = LocalEquivariantDenoiser(toy(), 10, ((10.0, 5), (1.0, 3), (0.1, 1)))
    assert [denoiser.size(s) for s in (80, 4, 3, 0.4, 0.3, 0.002)] == [5, 5, 3, 3, 1, 1]


def test_a_sigma_per_image_equals_one_at_a_time():
    denoiser = LocalEquivariantDenoiser(toy(), 40, ((10.0, 5), (0.1, 1)))
    u, sigmas = normal(3, 3, 7, 7), torch.tensor([8.0, 0.2, 8.0])
    single = torch.cat([denoiser(u[k:k + 1], float(s)) for k, s in enumerate(sigmas)])
    assert torch.allclose(denoiser(u, sigmas), single, atol=1e-5)


def test_blocks_do_not_change_the_answer(monkeypatch):
    u, denoiser = normal(1, 3, 7, 7), machine(toy(), 3)
    whole = denoiser(u, 0.5)
    monkeypatch.setattr(local_score, "_LOGITS", 1)
    assert torch.allclose(whole, denoiser(u, 0.5), atol=1e-6)


@pytest.mark.parametrize("size", [2, 9, -1])
def test_impossible_patch_sizes_are_refused(size):
    with pytest.raises(UserError, match="odd size from 1 to 7"):
        machine(toy(), size)


@pytest.mark.parametrize("options, message", [
    (dict(patches=0), "at least one patch, not 0"), (dict(table=()), "at least one"),
    (dict(table=((0.0, 1),)), "every sigma above 0"), (dict(table=((-1.0, 1),)), "above 0")])
def test_a_bag_or_a_table_without_anything_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        LocalEquivariantDenoiser(toy(), **options)


@pytest.mark.parametrize("sigma", [0, 0.0, 1e-9, 1e-30])
def test_without_noise_the_centre_of_the_nearest_patch_is_the_answer(sigma):
    """The limit, as of the optimal denoiser; the table's entry is that of its lowest sigma."""
    denoiser = LocalEquivariantDenoiser(toy(), 40, ((10.0, 1), (0.1, 3)))
    u = normal(1, 3, 7, 7)
    patches, centres = denoiser.bag(3)
    inside = u.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    nearest = centres[torch.cdist(inside, patches).argmin(1)].T.reshape(1, 3, 5, 5)
    torch.testing.assert_close(denoiser(u, sigma)[..., 1:-1, 1:-1], nearest)
    mixed = denoiser(u.repeat(2, 1, 1, 1), torch.tensor([float(sigma), 5.0]))
    torch.testing.assert_close(mixed[:1], denoiser(u, sigma))


@pytest.fixture(scope="module")
def real():
    return data.load("bundled"), data.load("bundled", "test").first(4)


def test_calibration_on_real_images_wants_larger_patches_for_more_noise(real):
    table = local_score.calibrate(*real, sigmas=(5.0, 0.6, 0.03), sizes=(1, 5, 11), patches=512)
    assert table == ((5.0, 11), (0.6, 5), (0.03, 1))


def test_the_shipped_table_grows_with_the_noise_to_the_largest_size_and_falls_above():
    sigmas, sizes = zip(*local_score.PATCH_SIZES)
    assert list(sigmas) == sorted(sigmas, reverse=True) and set(sizes) <= set(local_score.SIZES)
    assert sizes[0] == sizes[-1] == 1  # a pixel at either end
    largest = max(local_score.SIZES)  # 15 at 20, 10 and 5: a larger one was not tried
    assert [sigma for sigma, size in local_score.PATCH_SIZES if size == largest] == [20, 10, 5]
    below = [size for sigma, size in local_score.PATCH_SIZES if sigma <= 20]
    above = [size for sigma, size in local_score.PATCH_SIZES if sigma >= 20]
    assert below == sorted(below, reverse=True) and above == sorted(above)


def test_calibration_prefers_the_smaller_of_equals(monkeypatch):
    errors = torch.tensor([[1.0, 0.995, 0.98], [0.5, 0.4, 0.41]])
    monkeypatch.setattr(local_score, "denoising_errors", lambda *a: errors)
    options = dict(images=None, held_out=None, sigmas=(2.0, 1.0), sizes=(1, 3, 5))
    assert local_score.calibrate(**options, tolerance=0.03) == ((2.0, 1), (1.0, 3))
    assert local_score.calibrate(**options, tolerance=0) == ((2.0, 5), (1.0, 3))


def test_denoising_errors_are_mean_squared_errors(real):
    images, held_out = real
    clean = data.to_unit(held_out.pixels)
    errors = local_score.denoising_errors(images, held_out, [100.0], sizes=(1,), patches=256)
    mean = machine(images, 1, patches=256).bag(1)[1].mean(0)[None, :, None, None]
    assert float(errors[0, 0]) == pytest.approx(float((clean - mean).square().mean()), rel=1e-2)


def test_euler_from_pure_noise_ends_on_training_colours(real):
    denoiser = LocalEquivariantDenoiser(real[0], 256)
    u = 80 * normal(1, 3, 32, 32)
    sigmas = torch.logspace(math.log10(80), math.log10(0.002), 8).tolist()
    for here, there in zip(sigmas, sigmas[1:] + [0.0]):
        u = u + (there - here) * (u - denoiser(u, here)) / here
    colours = denoiser.bag(1)[1]
    assert torch.cdist(u[0].flatten(1).T, colours).amin(1).max() < 0.02
    assert u.std() > 0.05
