"""Files: whole or as they were whatever happens, and asked for before the work."""

import errno
import multiprocessing
import os
import random
import signal
import time

import pytest

from paper_utils import files
from paper_utils.errors import UserError

FORK = multiprocessing.get_context("fork")


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


CONTENTS = (b"a" * 3_000_000, b"b" * 5_000_000)


def _write_for_ever(path, started):
    while True:
        for content in CONTENTS:
            files.replace_file(path, content)
            started.set()


def test_a_file_is_whole_however_its_writer_dies(tmp_path):
    path, rng = tmp_path / "file", random.Random(0)
    for _ in range(6):
        started = FORK.Event()
        worker = FORK.Process(target=_write_for_ever, args=(path, started))
        worker.start()
        assert started.wait(20)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert path.read_bytes() in CONTENTS


@pytest.mark.parametrize("links", [True, False])
def test_the_file_before_is_kept_also_where_there_are_no_links(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path, before = tmp_path / "run", tmp_path / "run.previous"
    for content in (b"1", b"2", b"3"):
        files.replace_file(path, content, keep=before)
    assert (path.read_bytes(), before.read_bytes()) == (b"3", b"2")
    assert sorted(tmp_path.iterdir()) == [path, before]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, call, inside):
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path if inside else tmp_path / "cache"))
    path = tmp_path / "file"
    files.replace_file(path, b"old")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(UserError, match="No space left") as failure:
        files.replace_file(path, b"new and longer")
    advice = "set PAPER_UTILS_CACHE to a folder with room" if inside else "make room there"
    assert str(failure.value).endswith(advice)
    assert str(path) in str(failure.value) and "\n" not in str(failure.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_runs_left_is_removed_once_it_is_old(tmp_path):
    old, new, other = (tmp_path / name for name in (".f[1].aa.part", ".f[1].bb.part", ".g.cc.part"))
    for path in (old, new, other):
        path.write_bytes(b"x")
    for path in (old, other):
        os.utime(path, (1e9, 1e9))
    files.replace_file(tmp_path / "f[1]", b"y")
    assert {path.name for path in tmp_path.iterdir()} == {"f[1]", new.name, other.name}
    (tmp_path / "fetch-a").mkdir()
    (tmp_path / "fetch-a" / "half").write_bytes(b"x")
    os.utime(tmp_path / "fetch-a", (1e9, 1e9))
    files.sweep(tmp_path, "fetch-*")
    assert not (tmp_path / "fetch-a").exists()


def test_whether_a_folder_can_be_written_is_asked_before_the_work(tmp_path):
    files.check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give a path where you can write$") as failure:
        files.check_writable(tmp_path / "file" / "x")
    assert str(failure.value).startswith(f"cannot write {tmp_path / 'file' / 'x'} (")


def test_a_folder_is_no_target(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        files.check_target(tmp_path)
    files.check_target(tmp_path / "new" / "file")
    assert not list((tmp_path / "new").iterdir())


def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for write in (files.check_target, lambda path: files.replace_file(path, b"new")):
        with pytest.raises(UserError, match="pipe is no regular file"):
            write(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1
