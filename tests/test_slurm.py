"""The smoke profile's graph through SLURM, on a cluster of one node that is started for it."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paper_utils import graph
from paper_utils.batch import Batch
from paper_utils.run import ROOT

CLUSTER = ROOT / "tests" / "one_node_slurm.sh"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("0*.ipynb"))

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """SLURM with a partition named debug; skips where it cannot be had."""
    if os.geteuid():
        pytest.skip("a one-node SLURM needs root")
    try:
        asked = subprocess.run([CLUSTER], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("a one-node SLURM did not start in five minutes")
    if asked.returncode:
        pytest.skip(f"no one-node SLURM here: {asked.stderr.strip()}")
    yield
    if "already" not in asked.stdout:
        subprocess.run([CLUSTER, "stop"], check=True, timeout=120)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to run in that reads the repository's files, and a cache of its own."""
    for name in ("notebooks", "paper_utils", "zoo"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def start(folder: Path) -> subprocess.Popen:
    """The command of `paper_utils.run --all --on slurm`, in `folder`."""
    words = Batch("smoke", on="slurm", partition="debug").command(
        "--directory", str(folder), "--retries", "0")
    return subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)


def finish(run: subprocess.Popen, folder: Path) -> int:
    """Its exit code; what it and its jobs said is on the screen when the test fails."""
    print(run.communicate(timeout=900)[1])
    for log in sorted(folder.rglob("*.log")):
        print(log, log.read_text()[-2000:], sep="\n")
    return run.returncode


def until(there: Callable[[], object], run: subprocess.Popen) -> None:
    """Wait for something while the command runs."""
    deadline = time.monotonic() + 180
    while not there():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def queue(folder: Path, states: str = "PENDING,RUNNING,COMPLETING") -> set[str]:
    """The numbers of SLURM's jobs from this folder that are in these states."""
    words = ["squeue", "--noheader", "--format=%A %Z", f"--states={states}"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=1) for line in said.splitlines()]
    return {number for number, where in rows if Path(where.strip()) == folder}


def stored(folder: Path) -> dict[str, tuple[int, int]]:
    """What is in the store, by name: a file that was written anew is another."""
    files = (folder / "cache" / "artifacts").glob("*.safetensors")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def executed(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("figures/smoke/executed/*.ipynb"))


def test_a_job_cancelled_in_flight_loses_nothing_and_nothing_is_made_twice(cluster, folder):
    jobs = graph.load("smoke")

    run = start(folder)
    until(lambda: len(stored(folder)) > 2, run)  # of the models of the first job
    subprocess.run(["scancel", min(queue(folder, "RUNNING"), key=int)], check=True)
    assert finish(run, folder) == 1
    kept, done = stored(folder), graph.done(jobs)
    first, *lost = [name for name in jobs if name not in done]
    assert not queue(folder) and first.startswith("train")
    assert lost and all(first in jobs[name].after for name in lost)
    without = {notebook for name in (first, *lost) for notebook in jobs[name].notebooks}
    without |= {graph.TOUR}  # it waits for all; batch runs it by itself
    assert executed(folder) == [name for name in NOTEBOOKS if name not in without]

    assert finish(start(folder), folder) == 0
    there = stored(folder)
    assert {name: there.get(name) for name in kept} == kept
    done = graph.done(jobs)
    assert set(done) == set(jobs) and executed(folder) == NOTEBOOKS
    weights = {name for what in done.values() for name in what["weights"]}
    assert weights <= {n for n in there if n.startswith(("model-", "contrast-"))}

    submitted = queue(folder, "all")
    assert finish(start(folder), folder) == 0  # nothing is left to do
    assert queue(folder, "all") <= submitted and stored(folder) == there
