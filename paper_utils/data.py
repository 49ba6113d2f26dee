"""CIFAR-10, CIFAR-100, the subsets the paper trains on, and images of one's own."""

import hashlib
import json
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paper_utils import fetching
from paper_utils.errors import UserError, choose
from paper_utils.progress import progress

BUNDLED = Path(__file__).parent / "bundled" / "cifar10_512.png"
CLASSES = ("airplane automobile bird cat deer dog frog horse ship truck").split()
SPLITS = ("train", "test")
CHANNELS = (3, 1)  # of images: RGB, grey
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]; data that are float keep their values.

    Raises UserError for other integers.
    """
    if isinstance(pixels, Tensor) and pixels.dtype == torch.uint8:
        return pixels.float() / 127.5 - 1
    return _floats(pixels, "data.to_unit takes uint8 images, or data that are float").float()


def to_bytes(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 0..255, clamped and rounded: the 8-bit image every score sees.

    Raises UserError for integers.
    """
    images = _floats(images, "data.to_bytes takes images that are float, in [-1, 1]")
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _floats(images: Tensor, wanted: str) -> Tensor:
    if not isinstance(images, Tensor):
        raise UserError(f"{wanted}, as a tensor, not {described(images)}: {_cure(images)}")
    if not images.is_floating_point():
        raise UserError(f"{wanted}, not {described(images)}: integers of 0 to 255 are bytes "
                        "already, or become them by x.to(torch.uint8)")
    return images


def check_bytes(images: object, who: str, channels: Collection[int] = CHANNELS,
                dimensions: Collection[int] = (4,)) -> None:
    """Raise UserError, which says how to convert them, unless `images` are what `who` takes.

    That is a tensor, uint8 [N, C, H, W] with C among `channels` (or [..., C, H, W] of so many
    dimensions).
    """
    uint8 = isinstance(images, Tensor) and images.dtype == torch.uint8
    if not (uint8 and images.ndim in dimensions and images.shape[-3] in channels):
        shape = f"[N, {' or '.join(map(str, channels))}, H, W]"
        raise UserError(f"{who} takes uint8 images {shape} as a tensor, not {described(images)}: "
                        f"{_cure(images)}")


def described(images: object) -> str:
    """What was given instead of images: 'float32 [2, 3, 32, 32]', 'uint8 ndarray', 'list'."""
    dtype = str(getattr(images, "dtype", "")).removeprefix("torch.")
    kind = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
    return f"{dtype} {kind}".strip()


def _cure(images: object) -> str:
    """How what was given instead of images becomes images."""
    if isinstance(images, Images):
        return "give its pixels"
    if not isinstance(images, Tensor):
        return "of an array see data.from_numpy or torch.from_numpy"
    if images.is_floating_point():
        return ("convert those in [-1, 1] by data.to_bytes(x), those in [0, 1] by "
                "data.to_bytes(2 * x - 1)")
    if images.dtype != torch.uint8:
        return "convert integers of 0 to 255 by x.to(torch.uint8)"
    if images.ndim == 4 and images.shape[1] == 1:
        return "grey images become RGB by x.expand(-1, 3, -1, -1)"
    return {3: "of a single image x[None], of grey ones x[:, None]",
            5: "of several classes of a noise x.flatten(0, 1)"}.get(
                images.ndim, "channels come second, see permute")


def tiled(images: Tensor, columns: int = 32) -> np.ndarray:
    """uint8 [N, C, H, W] -> one picture [rows*H, columns*W, C], row by row, black where N ends.

    Raises UserError for other images.
    """
    check_bytes(images, "data.tiled")
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    cells = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    cells[:n] = images
    grid = cells.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, channels).numpy()


def untiled(picture: np.ndarray, columns: int = 32) -> Tensor:
    """The inverse of `tiled` for square images: uint8 [rows*columns, 3, side, side].

    Raises UserError for a picture that is no such sheet.
    """
    height, width, channels = (*picture.shape, 1, 1, 1)[:3]
    side = width // max(columns, 1)
    if (picture.dtype != np.uint8 or picture.ndim != 3 or channels != 3 or not side
            or width % columns or height % side):
        raise UserError(f"a sheet is uint8 RGB [H, W, 3] of {columns} square images a row, not "
                        f"{picture.dtype} {list(picture.shape)}: convert the picture to RGB, or "
                        "give its own number of columns")
    grid = torch.from_numpy(picture).view(-1, side, columns, side, 3).permute(0, 2, 4, 1, 3)
    return grid.reshape(-1, 3, side, side).contiguous()


@dataclass(frozen=True)
class Images:
    """Labelled 8-bit images. pixels: uint8 [N, 3, H, W], or [N, 1, H, W] where they are grey;
    labels: int64 [N], all 0 where there are none; name says which.

    Data that are no images are float, [N, d, 1, 1]. Raises UserError for others.
    """

    pixels: Tensor
    labels: Tensor
    name: str

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        points = isinstance(pixels, Tensor) and pixels.is_floating_point() and pixels.ndim == 4
        if not (points and pixels.shape[2:] == (1, 1)):
            check_bytes(pixels, "data.Images")
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.dtype != torch.int64:
            raise UserError("the labels of images are a tensor int64 [N], one for each, not "
                            f"{described(labels)}: torch.zeros(len(pixels)).long() for none")
        if len(labels) != len(pixels):
            raise UserError(f"{len(pixels)} images and {len(labels)} labels: give one for each")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        kind = described(self.pixels[0]) if len(self) else "none"
        return (f"Images({self.name!r}: {len(self):,} of {kind}, "
                f"classes: {len(self.labels.unique())})")

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of the pixels: names a subset in a checkpoint.

        Of grey images also of their shape: the channels of RGB images are other data than these.
        """
        digest = hashlib.sha256(self.pixels.contiguous().numpy())
        if self.pixels.dtype == torch.uint8 and self.pixels.shape[1] == 1:
            digest.update(str(list(self.pixels.shape)).encode())
        return digest.hexdigest()[:16]

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


def load(name: str = "cifar10", split: str = "train") -> Images:
    """Load 'cifar10' or 'cifar100' (50,000 train or 10,000 test images) or the 512 'bundled' ones.

    'cifar10:0-4' is the part of it with these classes. They are taken from the cache, else fetched
    (`fetching.ensure`). The bundled images are the first 256 of each split of CIFAR-10.
    Raises UserError for an unknown name, split or class, for a folder, when nothing can be fetched,
    or when the cached copy is damaged.
    """
    choose(split, SPLITS, "split")
    if "/" in (name := str(name)):
        raise UserError(f"{name!r} is no dataset of this project: own images are read by "
                        f"data.from_folder({name!r}), or made of an array by data.from_numpy")
    name, _, part = name.partition(":")
    if choose(name, ("cifar10", "cifar100", "bundled"), "dataset") == "bundled":
        whole = _bundled(split)
    else:
        whole = from_numpy(*fetching.cached(name, split), f"{name}-{split}")
    return whole.classes(*_class_range(part)) if part else whole


def from_folder(path: str | Path) -> Images:
    """The PNG, JPEG, WebP and BMP files of a folder, 8-bit and all of one size, as RGB.

    In natural order of their names, 2 before 10; named after the folder, without labels (all 0).
    Warns of files with other suffixes, which are left out. Raises UserError for no such folder, for
    one without images, for a file that is not whole, has more than 8 bits or another size than the
    first one.
    """
    files, others = _files(path)
    folder = files[0].parent
    if others:
        kinds = ", ".join(sorted({file.suffix or file.name for file in others}))
        warnings.warn(f"{len(others)} file(s) of {folder} are left out ({kinds}): images are "
                      f"{', '.join(SUFFIXES)}", stacklevel=2)
    pictures: list[np.ndarray] = []
    for file in progress(files, f"reading {folder.name}", len(files), "image"):
        pictures.append(_picture(file))
        if pictures[-1].shape != pictures[0].shape:
            sizes = [f"{picture.shape[1]} x {picture.shape[0]}" for picture in pictures]
            raise UserError(f"{file} is {sizes[-1]} and {files[0].name} {sizes[0]}: images are of "
                            "one size, resize or crop them")
    return from_numpy(np.stack(pictures), name=folder.name)


def paired(folder: str | Path, other: str | Path) -> tuple[Images, Images]:
    """The images of two folders, as `from_folder` has them, where each has its partner's name.

    The suffixes of the two may differ. Raises UserError as `from_folder` does, and for a file
    without a partner.
    """
    for pair in zip_longest(_files(folder)[0], _files(other)[0]):
        if len({file and file.stem for file in pair}) > 1:
            lone = min(filter(None, pair), key=_natural)
            raise UserError(f"{lone} has no partner of its name in "
                            f"{other if lone is pair[0] else folder}: add it there, or take this "
                            "one out")
    return from_folder(folder), from_folder(other)


def _files(path: str | Path) -> tuple[list[Path], list[Path]]:
    """The images of a folder in natural order, and its other files; UserError without images."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give that which has the images")
    files, others = [], []
    for file in folder.iterdir():
        if not file.name.startswith("."):
            (files if file.suffix.lower() in SUFFIXES else others).append(file)
    if not files:
        raise UserError(f"{folder} has no image: it needs files {', '.join(SUFFIXES)} in itself, "
                        "not in folders below")
    return sorted(files, key=_natural), [file for file in others if file.is_file()]


def _natural(file: Path) -> tuple[list[str | int], str]:
    """Sorts 'a2.png' before 'a10.png'."""
    words = re.split(r"(\d+)", file.stem)
    return [int(word) if word.isdecimal() else word for word in words], file.name


def _picture(file: Path) -> np.ndarray:
    """uint8 [H, W, 3]; transparency is left out. UserError for no image and for more than 8 bits,
    which Pillow would cut off."""
    try:
        with Image.open(file) as image:
            cut_off = any(str(tile[-1]).endswith(";16B") for tile in image.tile)  # of a PNG
            if image.mode[0] not in "IF" and not cut_off:
                return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's readers raise many kinds for a damaged file
        raise UserError(f"{file} cannot be read as an image ({type(error).__name__}): replace it, "
                        "or take it out of the folder") from None
    raise UserError(f"{file} has more than 8 bits a pixel: save it with 8")


def from_numpy(array: np.ndarray, labels: np.ndarray | None = None, name: str = "own") -> Images:
    """Images of a copy of uint8 [N, H, W, 3], or [N, H, W, 1] for grey ones.

    labels: integers [N], by default all 0. Raises UserError for other arrays.
    """
    if not (isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 4
            and array.shape[-1] in CHANNELS):
        shape = list(array.shape) if isinstance(array, np.ndarray) else ""
        raise UserError(f"data.from_numpy takes an array uint8 [N, H, W, 3 or 1], not "
                        f"{described(array)} {shape}: {_cure_of_array(array)}")
    labels = np.zeros(len(array), np.int64) if labels is None else np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise UserError(f"labels are integers [N], one for each image, not {labels.dtype}: number "
                        "the classes from 0")
    pixels = torch.from_numpy(np.array(array, order="C")).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.from_numpy(labels.astype(np.int64)), name)


def _cure_of_array(array: object) -> str:
    if not isinstance(array, np.ndarray):
        return "of a tensor data.Images(pixels, labels, name) is made"
    if array.dtype.kind == "f":
        return ("convert those in [-1, 1] by ((x + 1) * 127.5).round().clip(0, 255)"
                ".astype('uint8'), those in [0, 1] by (x * 255).round().clip(0, 255)"
                ".astype('uint8')")
    if array.dtype != np.uint8:
        return "convert integers of 0 to 255 by x.astype('uint8')"
    if array.ndim == 4:
        return "channels come last, see transpose"
    return "grey images [N, H, W] by x[..., None], a single image by x[None]"


def title(name: str) -> str:
    """The name of a dataset as a figure has it: 'cifar10:0-4' is 'CIFAR-10, classes 0-4'."""
    return name.replace("cifar", "CIFAR-").replace(":", ", classes ")


def _class_range(text: str) -> tuple[int, int]:
    """'0-4' -> (0, 4)."""
    if not re.fullmatch(r"\d+-\d+", text):
        raise UserError(f"classes {text!r} are no range: write them as in 'cifar10:0-4'")
    low, high = map(int, text.split("-"))
    return low, high


def _bundled(split: str) -> Images:
    """One lossless sheet, 16 rows of 32 images: 256 training images, then 256 test images."""
    pixels = untiled(np.array(Image.open(BUNDLED)))
    labels = torch.tensor(json.loads(BUNDLED.with_suffix(".json").read_text()))
    rows = slice(0, 256) if split == "train" else slice(256, 512)
    return Images(pixels[rows], labels[rows], f"bundled-{split}")
