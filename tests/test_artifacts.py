"""Artifacts: computed once, checked when read, whole or absent whatever happens."""

import errno
import importlib.util
import multiprocessing
import os
import random
import signal
import time
import warnings
from functools import partial

import pytest
import torch

from paper_utils import artifacts
from paper_utils.errors import UserError

FORK = multiprocessing.get_context("fork")
SPEC = {"n": 3, "seed": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own; the user's is never written."""
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counter:
    """A computation that counts how often it was asked for."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"x": torch.arange(600.0), "calls": torch.tensor(self.calls)}


def test_computed_once_and_the_same_when_read():
    compute = Counter()
    first = artifacts.remember("thing", SPEC, compute)
    again = artifacts.remember("thing", dict(reversed(SPEC.items())), compute)
    assert compute.calls == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(first[k], again[k]) and first[k].dtype == again[k].dtype for k in first)


@pytest.mark.parametrize("kind, spec", [("thing", SPEC | {"n": 4}), ("thing", SPEC | {"more": 1}),
                                        ("other", SPEC)])
def test_another_specification_is_another_artifact(kind, spec):
    compute = Counter()
    artifacts.remember("thing", SPEC, compute)
    artifacts.remember(kind, spec, compute)
    assert compute.calls == 2


def test_the_specification_travels_with_the_artifact():
    artifacts.remember("thing", SPEC, Counter())
    _, metadata = artifacts.load_tensors(artifacts.path_of("thing", SPEC))
    assert metadata == {"kind": "thing", "spec": '{"n": 3, "seed": 0}'}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 4
    path.write_bytes(content)


def lose_the_digest(path):
    path.with_name(path.name + ".sha256").unlink()


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty, lose_the_digest])
def test_a_damaged_artifact_is_set_aside_and_computed_again(damage):
    compute = Counter()
    artifacts.remember("thing", SPEC, compute)
    path = artifacts.path_of("thing", SPEC)
    damage(path)
    left = path.read_bytes()
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        found = artifacts.remember("thing", SPEC, compute)
    assert compute.calls == 2 and torch.equal(found["x"], torch.arange(600.0))
    assert path.with_name(path.name + ".damaged").read_bytes() == left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        artifacts.remember("thing", SPEC, compute)
    assert compute.calls == 2


def test_a_failed_computation_leaves_nothing_and_says_what_failed():
    def broken():
        raise FileNotFoundError(errno.ENOENT, "No such file", "weights.bin")

    with pytest.raises(FileNotFoundError, match="weights.bin"):
        artifacts.remember("thing", SPEC, broken)
    assert not artifacts.path_of("thing", SPEC).exists()
    compute = Counter()
    artifacts.remember("thing", SPEC, compute)
    assert compute.calls == 1


# --- more than one process ----------------------------------------------------------------------

def _ask_for_all(counter, barrier, first):
    """Ask for five artifacts, a different one first, as slow to compute as to be waited for."""
    def compute(k):
        with counter.open("a") as file:
            file.write(f"{k} ")
        time.sleep(0.1)
        return {"x": torch.arange(600.0) + k}

    barrier.wait()
    right = [torch.equal(artifacts.remember("thing", SPEC | {"k": k}, partial(compute, k))["x"],
                         torch.arange(600.0) + k) for k in [(first + j) % 5 for j in range(5)]]
    os._exit(not all(right))


def test_eight_processes_make_each_of_five_artifacts_once(tmp_path):
    counter, barrier = tmp_path / "counter", FORK.Barrier(8)
    workers = [FORK.Process(target=_ask_for_all, args=(counter, barrier, k)) for k in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert sorted(counter.read_text().split()) == list("01234")
    assert not list(artifacts.path_of("thing", SPEC).parent.glob("*.part"))


def _die_computing(ready):
    def compute():
        ready.set()
        time.sleep(30)

    artifacts.remember("thing", SPEC, compute)


def test_the_lock_of_a_killed_process_is_free():
    ready = FORK.Event()
    worker = FORK.Process(target=_die_computing, args=(ready,))
    worker.start()
    assert ready.wait(20)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    compute = Counter()
    artifacts.remember("thing", SPEC, compute)
    assert compute.calls == 1


CONTENTS = (b"a" * 3_000_000, b"b" * 5_000_000)


def _write_for_ever(path, started):
    while True:
        for content in CONTENTS:
            artifacts.replace_file(path, content)
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


# --- a full disk, a wrong file ------------------------------------------------------------------

def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    artifacts.replace_file(path, b"old")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(UserError, match="No space left.*PAPER_UTILS_CACHE") as failure:
        artifacts.replace_file(path, b"new and longer")
    assert str(path) in str(failure.value) and "\n" not in str(failure.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_user_error_and_what_was_computed_can_be_computed_again(monkeypatch):
    compute = Counter()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(UserError, match="No space left"):
            artifacts.remember("thing", SPEC, compute)
    assert not artifacts.path_of("thing", SPEC).exists()
    artifacts.remember("thing", SPEC, compute)
    assert compute.calls == 2


def test_a_cache_that_is_a_file_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="PAPER_UTILS_CACHE"):
        artifacts.remember("thing", SPEC, Counter())


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_pickle_is_never_loaded(tmp_path, name):
    path = tmp_path / name
    torch.save({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="is a pickle.*safetensors") as failure:
        artifacts.load_tensors(path)
    assert str(path) in str(failure.value)


def test_other_unreadable_weights(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        artifacts.load_tensors(tmp_path / "nothing.safetensors")
    path = tmp_path / "weights.safetensors"
    artifacts.write(path, {"x": torch.zeros(9)}, {})
    truncate(path)
    with pytest.raises(UserError, match="no whole safetensors file"):
        artifacts.load_tensors(path)


# --- the version of the code --------------------------------------------------------------------

ORIGINAL = '''
"""A module."""
SIZE = 3

def area(x: float) -> float:
    """The area of x."""
    return x * x  # squared

class Box:
    """A box."""
    def volume(self, x):
        return area(x) * SIZE
'''


def version(tmp_path, source: str) -> str:
    path = tmp_path / f"module{len(list(tmp_path.glob('module*')))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return artifacts.code_version(module)


@pytest.mark.parametrize("old, new", [
    ('"""A module."""', '"""Another description, longer."""'), ('"""The area of x."""', ""),
    ('"""A box."""', '"""Things go in."""'), ("  # squared", ""), ("SIZE = 3", "SIZE  =  3  # no"),
])
def test_comments_docstrings_and_layout_do_not_count(tmp_path, old, new):
    assert version(tmp_path, ORIGINAL) == version(tmp_path, ORIGINAL.replace(old, new))


@pytest.mark.parametrize("old, new", [
    ("SIZE = 3", "SIZE = 4"), ("x * x", "x + x"), ("volume(self, x)", "volume(self, x=1)"),
    ("area(x) * SIZE", "SIZE * area(x)"), ("SIZE = 3", 'SIZE = "3"'),
])
def test_code_counts(tmp_path, old, new):
    assert version(tmp_path, ORIGINAL) != version(tmp_path, ORIGINAL.replace(old, new))
