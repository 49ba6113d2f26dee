"""Computed tensors, addressed by what made them: computed once, checked when read.

An artifact's key is a hash of its full specification, the code that matters included. It is written
to a temporary name, fsynced and renamed; processes that want the same one, of one machine or of
several that share the folder, wait for one of them.
"""

import ast
import contextlib
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paper_utils import files
from paper_utils.errors import UserError
from paper_utils.paths import cache_dir

Tensors = dict[str, Tensor]
SOURCES = {f"{__package__}.{path.stem}": path.read_text("utf-8")  # of the code that runs: a file
           for path in Path(__file__).parent.glob("*.py")}        # may change under a long process


def remember(kind: str, spec: dict, compute: Callable[[], Tensors]) -> Tensors:
    """The artifact of this kind and specification, from the cache or else computed and kept.

    spec: plain JSON values. The tensors are on the CPU. One that is there is read without its lock.
    A damaged artifact is set aside with a warning and computed again. Raises UserError when it
    cannot be written (no space, no permission).
    """
    path = path_of(kind, spec)
    with contextlib.suppress(UserError, OSError):  # or another process may be replacing it: below
        return read(path)
    with files.locked(path):
        if path.exists():
            try:
                return read(path)
            except UserError as error:
                warnings.warn(f"{error}; computing it again", stacklevel=2)
                path.replace(path.with_name(path.name + ".damaged"))
        tensors = {name: tensor.cpu() for name, tensor in compute().items()}
        write(path, tensors, {"kind": kind, "spec": json.dumps(spec, sort_keys=True)})
        return tensors


def folder() -> Path:
    """Where artifacts live."""
    return cache_dir() / "artifacts"


def path_of(kind: str, spec: dict) -> Path:
    """Where that artifact lives: <cache>/artifacts/<kind>-<key>.safetensors."""
    text = json.dumps(spec, sort_keys=True)
    key = hashlib.sha256(f"{kind}:{text}".encode()).hexdigest()[:16]
    return folder() / f"{kind}-{key}.safetensors"


def write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> str:
    """Write CPU tensors to a safetensors file in one move, its sha256 in a file beside it.

    Returns the sha256.
    """
    content = save(tensors, metadata)
    digest = hashlib.sha256(content).hexdigest()
    files.replace_file(path.with_name(path.name + ".sha256"), f"{digest}\n".encode())
    files.replace_file(path, content)
    return digest


def save(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file. Tied weights are in it under each of their names."""
    seen, apart = set(), {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = (tensor.clone() if place in seen else tensor).contiguous()
        seen.add(place)
    return safetensors.torch.save(apart, metadata)


def read(path: Path) -> Tensors:
    """Read what `write` wrote; UserError, naming the file, when it is not what was written."""
    digest = path.with_name(path.name + ".sha256")
    if not digest.exists() or files.sha256(path) != digest.read_text().strip():
        raise UserError(f"{path} is damaged (its sha256 does not match)")
    return load_tensors(path)[0]


def load_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises UserError for a file that is not one; a pickle (.pt, .pth, .pkl, .ckpt) is never loaded.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a safetensors file")
    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        if path.suffix in (".pt", ".pth", ".pkl", ".ckpt", ".bin") or _is_pickle(path):
            raise UserError(f"{path} is a pickle, which can run any code when loaded: convert it "
                            "to safetensors (safetensors.torch.save_file) where you trust it"
                            ) from None
        raise UserError(f"{path} is no whole safetensors file ({error})") from None


def _is_pickle(path: Path) -> bool:
    start = b""
    with contextlib.suppress(OSError):  # a folder, or one that may not be read
        start = path.read_bytes()[:2]
    return start == b"PK" or start[:1] == b"\x80"


def float32(tensors: Tensors) -> Tensors:
    """The same tensors, those of floating-point numbers in single precision."""
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def below(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def digest(tensors: Tensors) -> str:
    """First 16 hex digits of the sha256 of tensors, their names, types and shapes."""
    return hashlib.sha256(save({k: v.cpu() for k, v in tensors.items()})).hexdigest()[:16]


@lru_cache
def code_version(*modules: ModuleType | Callable) -> str:
    """A hash of what these modules, classes or functions do: comments, docstrings, layout and what
    errors say do not count. Of this package, as it was when it was imported."""
    trees = (_tree(module) for module in modules)
    text = "\n".join(ast.dump(_without_words(tree)) for tree in trees)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tree(part: ModuleType | Callable) -> ast.Module:
    whole = isinstance(part, ModuleType)
    module = part.__name__ if whole else part.__module__
    if module not in SOURCES:
        return ast.parse(dedent(inspect.getsource(part)))
    tree = ast.parse(SOURCES[module])
    if not whole:
        tree.body = [node for node in tree.body if getattr(node, "name", "") == part.__name__]
    return tree


def _without_words(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            node.exc = node.cause = None
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return tree
