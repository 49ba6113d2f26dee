"""Artifacts: computed once, checked when read, whole or absent whatever happens."""

import errno
import fcntl
import importlib.util
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from functools import partial

import pytest
import torch
from filelock import SoftFileLease

from paper_utils import artifacts, files
from paper_utils.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")

FORK = multiprocessing.get_context("fork")
SPEC = {"n": 3, "seed": 0}


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
    assert no_litter(5)


def no_litter(count=1):
    """Whether the store holds `count` artifacts, their sha256, and nothing else."""
    names = sorted(path.name for path in artifacts.path_of("thing", SPEC).parent.iterdir())
    return len(names) == 2 * count and all(n.endswith((".safetensors", ".sha256")) for n in names)


# --- the lock -----------------------------------------------------------------------------------

@pytest.fixture
def short(monkeypatch):
    """Locks that live for a second."""
    for name, value in {"LIFETIME": 1.0, "POLL": 0.02}.items():
        monkeypatch.setattr(files, name, value)


@pytest.fixture
def made(tmp_path):
    """A file to which `ask` appends a letter for every computation."""
    path = tmp_path / "made"
    path.touch()
    return path


def ask(made, duration=0.0):
    def compute():
        with made.open("a") as file:
            file.write("x")
        time.sleep(duration)
        return {"x": torch.arange(600.0)}

    return artifacts.remember("thing", SPEC, compute)


@pytest.fixture
def start():
    """Starts a process that calls a function; none outlives the test."""
    started = []

    def call(function, *arguments):
        started.append(FORK.Process(target=function, args=arguments))
        started[-1].start()
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.join()


def wait_until(condition):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def holder(start, made):
    """Starts a process that asks, and waits until it computes; `made` is empty again."""
    def call(duration=30.0):
        process = start(ask, made, duration)
        wait_until(made.read_text)
        made.write_text("")
        return process

    return call


def lock_file():
    path = artifacts.path_of("thing", SPEC)
    return path.with_name(path.name + ".lease")


def killed(process):
    process.kill()
    process.join()
    assert lock_file().exists()


def finished(*processes):
    for process in processes:
        process.join(20)
    return [process.exitcode for process in processes] == [0] * len(processes)


def _count(path, times):
    for _ in range(times):
        with files.locked(path):
            found = int(path.read_text())
            time.sleep(0.005)
            path.write_text(str(found + 1))


def test_no_lock_of_the_operating_system_is_needed(tmp_path, monkeypatch, start, short):
    def missing(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setattr(fcntl, "lockf", missing)
    path = tmp_path / "count"
    path.write_text("0")
    assert finished(*[start(_count, path, 5) for _ in range(4)])
    assert path.read_text() == "20"
    assert list(tmp_path.iterdir()) == [path]


def test_the_lock_of_a_killed_process_is_free_at_once_and_for_one(holder, start, made):
    killed(holder())
    begin = time.monotonic()
    assert finished(*[start(ask, made, 0.1) for _ in range(4)])
    assert made.read_text() == "x" and time.monotonic() - begin < 10 < files.LIFETIME
    assert no_litter()


def test_a_holder_keeps_its_lock_for_longer_than_its_lifetime(holder, made, short, monkeypatch):
    monkeypatch.setattr(files, "LIFETIME", 5.0)  # it may stall for seconds
    worker = holder(11.0)
    ask(made)
    assert made.read_text() == "" and finished(worker) and no_litter()


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_another_machines_lock_is_free_after_its_lifetime_whatever_the_clocks(
        holder, made, short, monkeypatch, skew):
    with monkeypatch.context() as patched:
        patched.setattr(socket, "gethostname", lambda: "elsewhere")
        killed(holder())
    now = time.time() + skew
    os.utime(lock_file(), (now, now))
    begin = time.monotonic()
    ask(made)
    assert made.read_text() == "x" and 1 < time.monotonic() - begin < 5
    assert no_litter()


def test_one_suspended_for_longer_than_the_lifetime_goes_on_without(start, short):
    def suspended():
        os.kill(os.getpid(), signal.SIGSTOP)
        return {"x": torch.arange(600.0)}

    worker = start(artifacts.remember, "thing", SPEC, suspended)
    wait_until(lambda: lock_file().exists())

    def compute():  # which alone lets the other go on
        mine = lock_file().read_text()
        os.kill(worker.pid, signal.SIGCONT)
        assert finished(worker)
        assert lock_file().read_text() == mine
        return {"x": torch.arange(600.0)}

    artifacts.remember("thing", SPEC, compute)
    assert no_litter()


def test_threads_of_a_process_exclude_each_other(tmp_path, short):
    path = tmp_path / "count"
    path.write_text("0")
    threads = [threading.Thread(target=_count, args=(path, 20)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "80"


def test_a_fork_that_leaves_the_block_keeps_the_lock(tmp_path, start):
    held = files.locked(tmp_path / "file")
    with held:
        assert finished(start(held.__exit__, None, None, None))
        assert (tmp_path / "file.lease").exists()
    assert not list(tmp_path.iterdir())


def test_a_fork_of_the_holder_waits_for_it(tmp_path, start, waits):
    path = tmp_path / "count"
    with files.locked(path):
        worker = start(_count, path, 1)
        path.write_text("3")
        assert waits.wait(20)
        path.write_text("5")
    assert finished(worker) and path.read_text() == "6"


def test_what_is_there_is_read_while_another_holds_its_lock(made, start, tmp_path):
    ask(made)
    path, ready, done = artifacts.path_of("thing", SPEC), FORK.Event(), FORK.Event()

    def hold():
        with files.locked(path):
            ready.set()
            assert done.wait(20)

    worker = start(hold)
    assert ready.wait(20)
    ask(made)
    done.set()
    assert finished(worker) and made.read_text() == "x"


def test_what_is_being_replaced_is_not_taken_for_damaged(made, start, waits):
    ask(made)
    path, ready = artifacts.path_of("thing", SPEC), FORK.Event()

    def replace():
        with files.locked(path):
            content = path.read_bytes()
            truncate(path)
            ready.set()
            assert waits.wait(20)
            files.replace_file(path, content)

    start(replace)
    assert ready.wait(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(made)
    assert made.read_text() == "x" and no_litter()


def test_who_waits_says_once_for_whom(holder, made, short, monkeypatch, capfd):
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    worker = holder(1.0)
    ask(made)
    line = capfd.readouterr().err
    name = artifacts.path_of("thing", SPEC).name
    assert line.startswith(f"waiting for {name}, which process {worker.pid} on host ")
    assert line.endswith(" is making\n") and line.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_a_user_error(made, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(SoftFileLease, "acquire", refused)
    with pytest.raises(UserError, match="Permission denied.*PAPER_UTILS_CACHE"):
        ask(made)
    assert not made.read_text() and no_litter(0)


def test_the_lock_is_imported_where_it_is_needed():
    code = ("import sys, types; sys.modules['filelock'] = old = types.ModuleType('filelock')\n"
            "old.FileLock = None\nfrom paper_utils import artifacts, fleet")
    subprocess.run([sys.executable, "-c", code], check=True)


# --- a full disk, a wrong file ------------------------------------------------------------------

def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


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
    with pytest.raises(UserError, match="is a folder: give a safetensors file"):
        artifacts.load_tensors(tmp_path)
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
        if x < 0:
            raise ValueError(f"{x} is no length")
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
    ('ValueError(f"{x} is no length")', 'ValueError("give a length from 0 up") from None'),
])
def test_comments_docstrings_layout_and_what_errors_say_do_not_count(tmp_path, old, new):
    assert version(tmp_path, ORIGINAL) == version(tmp_path, ORIGINAL.replace(old, new))


@pytest.mark.parametrize("old, new", [
    ("SIZE = 3", "SIZE = 4"), ("x * x", "x + x"), ("volume(self, x)", "volume(self, x=1)"),
    ("area(x) * SIZE", "SIZE * area(x)"), ("x < 0", "x <= 0"), ("SIZE = 3", 'SIZE = "3"'),
])
def test_code_counts(tmp_path, old, new):
    assert version(tmp_path, ORIGINAL) != version(tmp_path, ORIGINAL.replace(old, new))


def test_the_code_is_that_which_runs_whatever_the_file_says_now(monkeypatch):
    """A file that changes under a running kernel must not give its results another key."""
    monkeypatch.setattr(artifacts.inspect, "getsource", lambda part: "changed = 1")
    artifacts.code_version.cache_clear()
    now = [artifacts.code_version(part) for part in (artifacts, artifacts.save, artifacts.read)]
    monkeypatch.undo()
    artifacts.code_version.cache_clear()
    assert now == [artifacts.code_version(part) for part in (
        artifacts, artifacts.save, artifacts.read)] and len(set(now)) == 3


def test_of_a_function_of_the_package_its_own_lines_count(monkeypatch):
    before = artifacts.code_version.__wrapped__(artifacts.below)
    name, text = artifacts.__name__, artifacts.SOURCES[artifacts.__name__]
    monkeypatch.setitem(artifacts.SOURCES, name, text.replace("v.float() if", "v.half() if"))
    assert artifacts.code_version.__wrapped__(artifacts.below) == before
    monkeypatch.setitem(artifacts.SOURCES, name, text.replace("k.removeprefix(prefix)", "k"))
    assert artifacts.code_version.__wrapped__(artifacts.below) != before


# --- tensors that share memory ------------------------------------------------------------------

def test_tied_weights_are_kept_under_each_of_their_names(tmp_path):
    whole = torch.arange(6.0)
    tied = {"a": whole, "b": whole, "part": whole[2:4]} | {
        name: torch.empty(0) for name in ("none", "no")}
    artifacts.write(tmp_path / "tied.safetensors", tied, {})
    found = artifacts.read(tmp_path / "tied.safetensors")
    assert found.keys() == tied.keys() and all(torch.equal(found[k], tied[k]) for k in tied)
    assert artifacts.digest(tied) == artifacts.digest({k: v.clone() for k, v in tied.items()})
