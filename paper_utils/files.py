"""Files that are never half-written, asked for before the work, and made by one at a time."""

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from paper_utils.errors import UserError
from paper_utils.paths import cache_dir

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, of one's share of it
LEFT = 3600.0    # seconds after which an unfinished file or folder is one that a killed run left
LIFETIME = 60.0  # seconds that a lock which nobody refreshes is waited for
POLL = 0.2       # seconds between two looks of one who waits
PATIENCE = 5.0   # seconds before that one says whom it waits for


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write a file so that it is either the old one or the whole new one, whatever happens.

    keep: where the old one goes, if any. Raises UserError when there is no room or no permission,
    and for what is no regular file, such as a device.
    """
    _check_regular(path)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")  # process numbers repeat elsewhere
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f".{glob.escape(path.name)}.*.part")
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


def sweep(folder: Path, pattern: str) -> None:
    """Remove what killed runs left: files and folders of that pattern, unchanged for LEFT."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be doing the same
            if time.time() - path.stat().st_mtime > LEFT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


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
