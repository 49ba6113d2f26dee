"""Computed tensors, addressed by what made them: computed once, checked when read.

An artifact's key is a hash of its full specification, the code that matters included. It is written
to a temporary name, fsynced and renamed; processes that want the same one, of one machine or of
several that share the folder, wait for one of them.
"""

import ast
import contextlib
import errno
import hashlib
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from paper_utils.errors import UserError
from paper_utils.paths import cache_dir

Tensors = dict[str, Tensor]

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, of one's share of it
LIFETIME = 60.0  # seconds that a lock which nobody refreshes is waited for
POLL = 0.2       # seconds between two looks of one who waits
PATIENCE = 5.0   # seconds before that one says whom it waits for


def remember(kind: str, spec: dict, compute: Callable[[], Tensors]) -> Tensors:
    """The artifact of this kind and specification, from the cache or else computed and kept.

    spec: plain JSON values. The tensors are on the CPU. One that is there is read without its lock.
    A damaged artifact is set aside with a warning and computed again. Raises UserError when it
    cannot be written (no space, no permission).
    """
    path = path_of(kind, spec)
    with contextlib.suppress(UserError, OSError):  # or another process may be replacing it: below
        return read(path)
    with locked(path):
        if path.exists():
            try:
                return read(path)
            except UserError as error:
                warnings.warn(f"{error}; computing it again", stacklevel=2)
                path.replace(path.with_name(path.name + ".damaged"))
        tensors = {name: tensor.cpu() for name, tensor in compute().items()}
        write(path, tensors, {"kind": kind, "spec": json.dumps(spec, sort_keys=True)})
        return tensors


def path_of(kind: str, spec: dict) -> Path:
    """Where that artifact lives: <cache>/artifacts/<kind>-<key>.safetensors."""
    text = json.dumps(spec, sort_keys=True)
    key = hashlib.sha256(f"{kind}:{text}".encode()).hexdigest()[:16]
    return cache_dir() / "artifacts" / f"{kind}-{key}.safetensors"


def write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> str:
    """Write CPU tensors to a safetensors file in one move, its sha256 in a file beside it.

    Returns the sha256.
    """
    content = save({k: v.contiguous() for k, v in tensors.items()}, metadata)
    digest = hashlib.sha256(content).hexdigest()
    replace_file(path.with_name(path.name + ".sha256"), f"{digest}\n".encode())
    replace_file(path, content)
    return digest


def read(path: Path) -> Tensors:
    """Read what `write` wrote; UserError, naming the file, when it is not what was written."""
    digest = path.with_name(path.name + ".sha256")
    if not digest.exists() or sha256(path) != digest.read_text().strip():
        raise UserError(f"{path} is damaged (its sha256 does not match)")
    return load_tensors(path)[0]


def load_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises UserError for a file that is not one; a pickle (.pt, .pth, .pkl, .ckpt) is never loaded.
    """
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


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(tensors: Tensors) -> str:
    """First 16 hex digits of the sha256 of tensors, their names, types and shapes."""
    return hashlib.sha256(save({k: v.contiguous().cpu() for k, v in tensors.items()})
                          ).hexdigest()[:16]


def replace_file(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write a file so that it is either the old one or the whole new one, whatever happens.

    keep: where the old one goes, if any. Raises UserError when there is no room or no permission,
    and for what is no regular file, such as a device.
    """
    _check_regular(path)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")  # process numbers repeat elsewhere
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            keep.unlink(missing_ok=True)
            try:  # a second name first, so that `path` is there at all times
                os.link(path, keep)
            except OSError:  # a file system without links, where for a moment only `keep` is there
                path.replace(keep)
        part.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def check_writable(folder: Path) -> None:
    """UserError where no file can be written there: ask before the work, not after it."""
    probe = folder / f".probe.{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from None


def check_target(path: Path) -> None:
    """UserError where this file could not be written: ask before the work, not after it."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: give the name of a file in it")
    _check_regular(path)
    check_writable(path.parent)


def _check_regular(path: Path) -> None:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path} is no regular file: give the name of another one")


def unwritable(path: Path, error: OSError) -> UserError:
    """What to tell of a path that could not be written."""
    full = error.errno in FULL
    advice = "make room there" if full else "give a path where you can write"
    if path.absolute().is_relative_to(cache_dir().absolute()):
        advice = f"set PAPER_UTILS_CACHE to a folder {'with room' if full else 'you can write'}"
    return UserError(f"cannot write {path} ({error.strerror or error}): {advice}")


# --- locks --------------------------------------------------------------------------------------

@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of one file, against threads, processes and machines that share its folder.

    It is a file, <path>.lease, that is refreshed as long as it is held. When the holder dies,
    another takes it over: at once on the same machine, after LIFETIME elsewhere. One that was
    suspended for longer loses it too and goes on without, which harms no file replaced whole.

    Raises UserError when the folder cannot be written.
    """
    from filelock import SoftFileLease, Timeout  # newer than what a training machine may have

    path = path.absolute()
    lock = SoftFileLease(f"{path}.lease", lease_duration=LIFETIME, poll_interval=POLL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            print(f"waiting for {path.name}, which {_holder(lock)} is making", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        yield
    finally:
        lock.release()


def _holder(lock) -> str:
    owner = lock.owner
    return f"process {owner.pid} on host {owner.hostname}" if owner else "another process"


# --- code ---------------------------------------------------------------------------------------

@lru_cache
def code_version(*modules: ModuleType) -> str:
    """A hash of what these modules do: comments, docstrings, layout and what errors say do not
    count."""
    trees = (ast.parse(inspect.getsource(module)) for module in modules)
    text = "\n".join(ast.dump(_without_words(tree)) for tree in trees)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without_words(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            node.exc = node.cause = None
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return tree
