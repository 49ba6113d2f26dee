"""Common to all tests: one thread, no network, kernels that find the package, Ctrl-C heeded (what
a script starts with & is deaf to it, and so are its children), and the shim in place before
torchvision."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # or threads of its pool go on
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # what a test runs is no part of `make -j2 test`
    os.environ.pop(name, None)
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from tqdm import TMonitor

import paper_utils  # noqa: F401
from paper_utils import files

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def random_model():
    """(spec, size) -> the model of a specification whose weights are random, none of them 0."""
    from paper_utils import models, training

    def make(spec: training.Spec, size: float) -> models.Model:
        torch.manual_seed(2)
        denoiser = training.build(spec).eval()
        for p in denoiser.parameters():
            p.data.add_(size * torch.randn_like(p))
        return models.diffusion(spec, denoiser, "weights")

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own; the user's is never written."""
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def started():
    """Starts a process in a session of its own; what is left of its group is killed at the end."""
    processes = []

    def start(words: list, **options) -> subprocess.Popen:
        processes.append(subprocess.Popen(words, start_new_session=True, **options))
        return processes[-1]

    yield start
    for process in processes:
        with process, contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def waits(monkeypatch):
    """An event that is set when one who waits for a file's lock says so, in a fork too."""
    event = multiprocessing.get_context("fork").Event()
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    monkeypatch.setattr(files, "print", lambda *_, **__: event.set(), raising=False)
    return event


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """A thread that goes on meets what later tests put in the place of functions it calls."""
    before = {*threading.enumerate()}
    yield
    left = {thread for thread in threading.enumerate() if not isinstance(thread, TMonitor)} - before
    for thread in left:
        thread.join(10)
    assert not any(thread.is_alive() for thread in left), f"threads that go on: {left}"


@pytest.fixture(autouse=True)
def _same_global_seed() -> None:
    torch.manual_seed(0)
