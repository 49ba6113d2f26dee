"""The models this project trained and ships: weights, sample sheets and how each was made.

zoo.toml has a table per model: kind, specification, files with their sha256, noises, provenance.
Weights are half-precision safetensors; a sheet is a lossless PNG, 32 images a row, one per noise.
"""

import json
import tomllib
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from paper_utils import artifacts, data, files
from paper_utils.errors import UserError, choose
from paper_utils.noise import NoiseBank
from paper_utils.paths import ROOT

FOLDER = ROOT / "zoo"
# the grid of section 3, the conditional, fine-tuned and distilled models, and what models of
# section 2 restored in the inverse problems, each with a zoo.toml of its own
REGIMES, CONDITIONAL, FINE_TUNING, DISTILLATION, INVERSE = (
    FOLDER / name for name in ("regimes", "conditional", "fine_tuning", "distillation", "inverse"))
FOLDERS = (FOLDER, REGIMES, CONDITIONAL, FINE_TUNING, DISTILLATION, INVERSE)


@dataclass(frozen=True)
class Entry:
    """One table of zoo.toml. kind: 'diffusion', 'contrast', or, without weights, 'closed form',
    'guided' (a conditional model of the same folder under guidance) and 'restored' (what a model of
    section 2 made of the inverse problems). A diffusion model whose weights the zoo has no room for
    ships as its sheet alone, which then holds its specification."""

    name: str
    kind: str
    sheet: str
    sheet_sha256: str
    noises: int
    bank: str
    made: str
    weights: str = ""
    weights_sha256: str = ""
    subset: str = ""         # hash of the training images, where they are a subset
    classes: int = 0         # images per noise: one for each class, or inverse problem
    start: str = ""          # what it builds on: hash of the fine-tuned model's start, or sha256 of
    #                          the weights that a guided or restored sheet was made from
    problems: str = ""       # of a restored sheet: hash of the problems, see reconstructions
    folder: Path = FOLDER    # where its zoo.toml and its files are

    def load_weights(self) -> tuple[dict[str, Tensor], dict]:
        """float32 tensors and the specification from the metadata; UserError if damaged."""
        if not self.weights:
            raise UserError(f"{self.name} ships without weights: train it first")
        path = self._whole(self.folder / self.weights, self.weights_sha256)
        tensors, metadata = artifacts.load_tensors(path)
        return artifacts.float32(tensors), json.loads(metadata["spec"])

    def load_spec(self) -> dict:
        """The specification, from the weights or the sheet that ships alone; UserError if damaged.
        """
        if self.weights:
            return self.load_weights()[1]
        with Image.open(self._whole(self.folder / self.sheet, self.sheet_sha256)) as image:
            return json.loads(image.text["spec"])

    def load_sheet(self) -> Tensor:
        """The samples, uint8 [noises, 3, 32, 32], row k from noise k; UserError if damaged.

        Of a conditional model [noises, classes, 3, 32, 32], restored [images, problems, 3, 32, 32].
        """
        path = self._whole(self.folder / self.sheet, self.sheet_sha256)
        with Image.open(path) as image:
            if image.text.get("bank") != self.bank:
                raise UserError(f"{path} is from {image.text.get('bank')}, not {self.bank}: "
                                f"restore it with `git checkout -- {_in_repository(path)}`")
            images = data.untiled(np.array(image))
            if self.classes:
                return images[:self.noises * self.classes].unflatten(0, (-1, self.classes))
            return images[:self.noises]

    @staticmethod
    def _whole(path: Path, digest: str) -> Path:
        restore = f"restore it with `git checkout -- {_in_repository(path)}`"
        if not path.exists():
            raise UserError(f"{path} is missing: {restore}")
        if files.sha256(path) != digest:
            raise UserError(f"{path} is damaged (its sha256 is not that of zoo.toml): {restore}")
        return path


def _in_repository(path: Path) -> str:
    """zoo/<name> or zoo/<folder>/<name>."""
    return f"zoo/{path.relative_to(FOLDER)}" if path.is_relative_to(FOLDER) else f"zoo/{path.name}"


def entries(folder: Path = FOLDER) -> dict[str, Entry]:
    """Every shipped model by name, in the order of zoo.toml. UserError for a bad zoo.toml."""
    path = folder / "zoo.toml"
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
        return {name: Entry(name, folder=folder, **table) for name, table in tables.items()}
    except (OSError, tomllib.TOMLDecodeError, TypeError, UnicodeDecodeError) as error:
        state = "damaged" if path.exists() else "missing"
        raise UserError(f"{path} is {state} ({error}): restore it with `git checkout -- "
                        f"{_in_repository(path)}`") from None


def added(folder: Path) -> dict[str, Entry]:
    """`entries`, or none where nothing was added to the folder yet."""
    return entries(folder) if (folder / "zoo.toml").exists() else {}


def entry(name: str, folder: Path = FOLDER) -> Entry:
    """The shipped model of that name; UserError listing the names there are."""
    found = entries(folder)
    return found[choose(name, found, "zoo model")]


def add(name: str, kind: str, samples: Tensor, bank: NoiseBank, made: str,
        weights: dict[str, Tensor] | None = None, spec: dict | None = None,
        folder: Path = FOLDER, subset: str = "", start: str = "", problems: str = "") -> Entry:
    """Put a model into the zoo: its files first, its table in zoo.toml last.

    samples: uint8 [N, 3, 32, 32], or [N, classes, 3, 32, 32], from noises 0..N-1 of `bank`; weights
    are stored in half precision with `spec` (JSON values), `made` and `subset` (hash of the
    training images) in the metadata; without weights the sheet holds `spec`. start, problems: see
    Entry.
    """
    label = name.replace(" ", "-")
    classes = samples.shape[1] if samples.ndim == 5 else 0
    new = Entry(name, kind, f"{label}.png", "", len(samples), bank.name, made, classes=classes,
                subset=subset, start=start, problems=problems, folder=folder)
    text = {"model": name, "bank": bank.name, "noises": f"0:{len(samples)}", "made": made}
    if spec and weights is None:
        text["spec"] = json.dumps(spec)
    new = replace(new, sheet_sha256=_write(folder / new.sheet, _png(samples, text)))
    if weights is not None:
        path = folder / f"{label}.safetensors"
        metadata = {"spec": json.dumps(spec), "made": made, "subset": subset, "license": "MIT"}
        content = artifacts.save(halved(weights), metadata)
        new = replace(new, weights=path.name, weights_sha256=_write(path, content))
    with files.locked(folder / "zoo.toml"):  # others may be adding their rows
        files.replace_file(folder / "zoo.toml", _toml(added(folder) | {name: new}).encode())
    if weights is None:
        (folder / f"{label}.safetensors").unlink(missing_ok=True)
    return new


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as the zoo stores them: in half precision, but for three kinds.

    Integers, values that half precision cannot hold, and the frequencies of embeddings: those
    multiply the noise level, so rounding them would shift a phase by a tenth of a radian.
    """
    return {name: (v.half() if _fits(name, v) else v).contiguous() for name, v in weights.items()}


def _fits(name: str, tensor: Tensor) -> bool:
    return (tensor.is_floating_point() and not name.endswith("freqs")
            and bool(tensor.abs().max() < torch.finfo(torch.float16).max))


def _write(path: Path, content: bytes) -> str:
    files.replace_file(path, content)
    return files.sha256(path)


def _toml(found: dict[str, Entry]) -> str:
    quoted = partial(json.dumps, ensure_ascii=False)  # TOML has no pairs of surrogates
    lines = ["# Every file of the zoo and how it was made; written by paper_utils.zoo.add."]
    for name, row in found.items():
        lines.append(f"\n[{quoted(name)}]")
        lines += [f"{key} = {quoted(value)}" for key, value in vars(row).items()
                  if key not in ("name", "folder") and (value not in ("", 0) or key == "made")]
    return "\n".join(lines) + "\n"


def _png(samples: Tensor, text: dict[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    buffer, picture = BytesIO(), Image.fromarray(data.tiled(samples.flatten(0, -4)))
    picture.save(buffer, "PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()
