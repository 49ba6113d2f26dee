"""Computed tensors, addressed by what made them: computed once, checked when read.

An artifact's key is a hash of its full specification, the code that matters included. It is written
to a temporary name, fsynced and renamed; processes that want the same one, of one machine or of
several that share the folder, wait for one of them.
"""

import ast
import contextlib
import errno
import glob
import hashlib
import inspect
import itertools
import json
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from paper_utils.data import cache_dir
from paper_utils.errors import UserError

Tensors = dict[str, Tensor]

LIFETIME = 60  # seconds that a lock which nobody refreshes is waited for
REFRESH = 15   # seconds between two refreshments by its holder
POLL = 0.2     # seconds between two looks of one who waits
PATIENCE = 5   # seconds before that one says whom it waits for

_OF_THREADS: dict[str, threading.Lock] = {}  # of this process, by file
os.register_at_fork(after_in_child=_OF_THREADS.clear)


def remember(kind: str, spec: dict, compute: Callable[[], Tensors]) -> Tensors:
    """The artifact of this kind and specification, from the cache or else computed and kept.

    spec: plain JSON values. One that is there is read without its lock. A damaged artifact is set
    aside with a warning and computed again. Raises UserError when it cannot be written (no space,
    no permission).
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
        tensors = compute()
        write(path, tensors, {"kind": kind, "spec": json.dumps(spec, sort_keys=True)})
        return tensors


def path_of(kind: str, spec: dict) -> Path:
    """Where that artifact lives: <cache>/artifacts/<kind>-<key>.safetensors."""
    text = json.dumps(spec, sort_keys=True)
    key = hashlib.sha256(f"{kind}:{text}".encode()).hexdigest()[:16]
    return cache_dir() / "artifacts" / f"{kind}-{key}.safetensors"


def write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> str:
    """Write a safetensors file in one move, its sha256 in a file beside it; returns the sha256."""
    content = save({k: v.contiguous().cpu() for k, v in tensors.items()}, metadata)
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
    start = path.read_bytes()[:2]
    return start == b"PK" or start[:1] == b"\x80"


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

    keep: where the old one goes, if any. Raises UserError when there is no room or no permission.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")  # process numbers repeat elsewhere
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():  # a second name first, so that `path` is there at all times
            keep.unlink(missing_ok=True)
            os.link(path, keep)
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): make room, or set "
                        "PAPER_UTILS_CACHE to a folder with room") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


# --- locks --------------------------------------------------------------------------------------

@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of one file, against threads, processes and machines that share its folder.

    It is a file, <path>.lock, that a thread refreshes as long as it is held. When the holder dies,
    another takes it over: at once on the same machine, after LIFETIME elsewhere. One that was
    suspended for longer loses it too and goes on without, which harms no file replaced whole.

    Raises UserError when the folder cannot be written or allows no hard links.
    """
    path, process = path.absolute(), os.getpid()
    with _OF_THREADS.setdefault(str(path), threading.Lock()):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _new_lock(path)
            _acquire(lock)
        except OSError as error:
            raise _unusable(path.parent, error) from None
        done = threading.Event()
        keeper = threading.Thread(target=_keep, args=(lock, done), daemon=True)
        try:
            keeper.start()
            _sweep(lock)
            yield
        finally:
            if os.getpid() == process:  # not in a fork that leaves this block too
                done.set()
                keeper.join()
                with contextlib.suppress(OSError):
                    lock.unlock(unconditionally=True)


def _new_lock(path: Path):
    """A lock of flufl.lock, whose text is file, host, process and a random number.

    The host name that the library writes is 'localhost' on many machines, so what tells them apart
    is between these, in the separator.
    """
    from flufl.lock import Lock  # not where only training runs

    return Lock(f"{path}.lock", lifetime=LIFETIME, separator=f"|{_machine()}|")


def _machine() -> str:
    """A name for where a process number means one process: a start of a kernel, a container."""
    name = platform.node()
    with contextlib.suppress(OSError):
        name += Path("/proc/sys/kernel/random/boot_id").read_text()
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _unusable(folder: Path, error: OSError) -> UserError:
    if error.filename2:  # only of a link
        return UserError(f"{folder} allows no hard links, which locks need ({error.strerror}): set "
                         "PAPER_UTILS_CACHE to a folder that does")
    return UserError(f"cannot use {folder} ({error.strerror or error}): set PAPER_UTILS_CACHE to a "
                     "folder you can write")


def _acquire(lock) -> None:
    """Wait for the lock, and break it when it is dead.

    Its age is counted in our own looks at an unchanged file, so neither the clocks of other
    machines nor a pause of our own count.
    """
    seen, quiet, told = None, 0.0, False
    for looks in itertools.count():
        found = _look(lock)
        if not found and _taken(lock):
            return
        quiet = quiet + POLL if found == seen else 0.0
        seen = found
        if found and (quiet > LIFETIME or _is_dead(found[0])):
            _break(lock, found)
        elif found and not told and looks * POLL >= PATIENCE:
            told = True
            print(f"waiting for {Path(lock.lockfile).stem}, which {_holder(found[0])} is making",
                  file=sys.stderr)
        time.sleep(POLL)


def _look(lock) -> tuple[str, int, int] | None:
    """The text of a lock and the times of its last refreshment; None when nobody holds it."""
    try:
        with open(lock.lockfile) as file:
            status = os.fstat(file.fileno())
            return file.read(), status.st_mtime_ns, status.st_ctime_ns
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise


def _taken(lock) -> bool:
    """Take a lock that nobody holds; False when another was faster."""
    from flufl.lock import AlreadyLockedError, TimeOutError

    try:
        lock.lock(timeout=0)
    except TimeOutError:
        return False
    except AlreadyLockedError:  # NFS repeated our request, which had been granted
        pass
    except OSError:
        Path(lock.claimfile).unlink(missing_ok=True)
        raise
    return True


def _parts(text: str) -> tuple[str, str, int] | None:
    """Machine, host and process of a lock's text, None if it has none."""
    found = re.fullmatch(r".*\|(\w+)\|(.*)\|\1\|(\d+)\|\1\|\d+", text, re.DOTALL)
    return found and (found[1], found[2], int(found[3]))


def _holder(text: str) -> str:
    parts = _parts(text)
    return f"process {parts[2]} on host {parts[1]}" if parts else "another process"


def _is_dead(text: str) -> bool:
    """Whether the holder is a process of this machine that is no more.

    So is one without text, which is what versions that locked in another way left.
    """
    from psutil import pid_exists

    parts = _parts(text)
    return not text or bool(parts) and parts[0] == _machine() and not pid_exists(parts[2])


def _break(lock, found: tuple[str, int, int]) -> None:
    """Remove a lock if it is still as it was found.

    All do so under another lock, lest one that was slow remove what the next holder has made.
    """
    from flufl.lock import Lock, LockError

    file = Path(lock.lockfile)
    with contextlib.suppress(LockError), Lock(f"{file}.break", LIFETIME, default_timeout=1):
        if _look(lock) == found:
            file.unlink(missing_ok=True)
            if found[0]:
                file.with_name(Path(found[0]).name).unlink(missing_ok=True)


def _keep(lock, done: threading.Event) -> None:
    """Refresh a lock until `done`."""
    from flufl.lock import LockError

    while not done.wait(REFRESH):
        with contextlib.suppress(LockError, OSError):
            lock.refresh()


def _sweep(lock) -> None:
    """Remove what processes that were killed while they asked for this lock left an hour ago."""
    file = Path(lock.lockfile)
    with contextlib.suppress(OSError):
        for left in file.parent.glob(f"{glob.escape(file.name)}?*"):
            if left.stat().st_mtime < time.time() - 3600:
                left.unlink()


# --- code ---------------------------------------------------------------------------------------

@lru_cache
def code_version(*modules: ModuleType) -> str:
    """A hash of what these modules do: comments, docstrings and layout do not count."""
    trees = (ast.parse(inspect.getsource(module)) for module in modules)
    text = "\n".join(ast.dump(_without_docstrings(tree)) for tree in trees)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return tree
