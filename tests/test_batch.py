"""The workflow itself, on work that takes no time: stand-ins for what trains and executes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from paper_utils import batch, graph, recipes, report, run
from paper_utils.batch import Batch
from paper_utils.errors import UserError, ended_by_signals
from paper_utils.graph import Job
from paper_utils.run import ROOT

STAND_IN = """
import os, sys, time
from pathlib import Path
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
out = Path(option("--marker" if "--marker" in words else "--output"))
with open("calls", "a") as calls:
    print(out.stem, file=calls)
if "base" in words and os.environ.get("FAIL"):
    sys.exit("error: it diverged")
while "base" in words and os.environ.get("HANG"):
    time.sleep(0.1)
out.write_text('{"weights": [], "minutes": 1.5}')
"""
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("0*.ipynb"))


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """The files of the graphs that these tests load, counted once: it takes seconds."""
    cache = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPER_UTILS_CACHE", str(cache))
        for profile in ("smoke", "paper"):
            graph.load(profile)
    return cache / "jobs"


@pytest.fixture
def folder(tmp_path, monkeypatch, counted):
    """A folder that has the repository's files but stand-ins for the package's commands."""
    for name in ("notebooks", "zoo"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "paper_utils").mkdir()
    for name in ("__init__", "jobs", "run", "report"):
        (tmp_path / "paper_utils" / f"{name}.py").write_text(STAND_IN if name != "__init__" else "")
    shutil.copytree(counted, tmp_path / "cache" / "jobs")
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", "")
    return tmp_path


@pytest.fixture
def start(folder, started):
    """Starts Snakemake in the folder, with more words and environment."""
    def call(*more: str, **environment: str) -> subprocess.Popen:
        words = Batch("smoke").command("--directory", str(folder), "--cores", "2", *more)
        return started(words, cwd=folder, stderr=subprocess.PIPE, text=True,
                       env=os.environ | environment)

    return call


def ends(process: subprocess.Popen) -> int:
    said = process.communicate(timeout=120)[1]
    print(said)
    return process.returncode


def calls(folder: Path) -> list[str]:
    """The jobs that ran, by name; a job's key is left out."""
    lines = (folder / "calls").read_text().split()
    return [line if line in NOTEBOOKS else line.rpartition("-")[0] for line in lines]


def executed(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("figures/smoke/executed/*.ipynb"))


# --- the graph at work --------------------------------------------------------------------------

def test_a_model_that_fails_fails_its_notebook_only_and_is_tried_again(folder, start):
    """And the tour, which shows what all notebooks found, but not the tour alone."""
    assert ends(start(FAIL="1")) == 1
    jobs = graph.load("smoke")
    assert executed(folder) == [name for name in NOTEBOOKS
                                if name not in ("00_start_here", "05_fine_tuning")]
    tour = Batch("smoke", tour="alone").command("--directory", str(folder))
    for _ in range(2):  # the second time it is up to date
        assert subprocess.run(tour, cwd=folder).returncode == 0
        assert calls(folder).count("00_start_here") == 1
    (folder / "figures" / "smoke" / "claims.json").write_text("{}")
    assert subprocess.run(tour, cwd=folder).returncode == 0
    assert calls(folder)[-2:] == ["00_start_here"] * 2
    assert graph.failed(jobs) == {"train-fine_tuning-group-1": "error: it diverged"}
    assert set(jobs) - set(graph.done(jobs)) == {"train-fine_tuning-group-1",
                                                 "sample-fine_tuning-group-1"}
    first = calls(folder)
    assert sorted(set(first)) == sorted(first[:-1])
    assert ends(start()) == 0
    again = calls(folder)[len(first):]
    assert again == ["train-fine_tuning-group-1", "sample-fine_tuning-group-1", "05_fine_tuning",
                     "00_start_here"]
    assert executed(folder) == NOTEBOOKS and graph.failed(jobs) == {}
    assert ends(start()) == 0 and len(calls(folder)) == len(first) + 4


def test_a_job_runs_after_what_it_needs_and_the_tour_last(folder, start):
    assert ends(start()) == 0
    order, jobs = calls(folder), graph.load("smoke")
    assert sorted(order) == sorted([*jobs, *NOTEBOOKS])
    for name, job in jobs.items():
        assert all(order.index(other) < order.index(name) for other in job.after)
        assert all(order.index(name) < order.index(notebook) for notebook in job.notebooks)
    assert order[-1] == "00_start_here"
    # and a notebook again when that is asked, alone but for the tour
    assert ends(start("--forcerun", "03_conditional")) == 0
    assert calls(folder)[len(order):] == ["03_conditional", "00_start_here"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_killed_goes_on(folder, start, how):
    process = start(HANG="1")
    deadline = time.monotonic() + 300
    while not ((folder / "calls").exists() and "train-fine_tuning-group-1" in calls(folder)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    before = calls(folder)
    done = set(graph.done(graph.load("smoke"))) | set(executed(folder))
    assert ends(start()) == 0
    again = calls(folder)[len(before):]
    assert executed(folder) == NOTEBOOKS
    assert done & set(again) <= set(before[-2:])  # those that ran, on two cores
    assert len(again) == len(set(again))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weights": ["gone.safetensors"]}'])
def test_damaged_files_of_the_jobs_are_made_again(folder, text):
    known = graph.load("smoke")
    kept, = graph.folder().glob("graph-smoke-*.json")
    kept.write_text("{")
    assert graph.load("smoke") == known and json.loads(kept.read_text())
    job, other = list(known.values())[:2]
    job.marker.write_text(text)
    other.marker.write_text('{"weights": [], "minutes": 1.5}')
    assert other.name in graph.done(known)
    assert batch._stale(known) == [job]


def test_a_share_runs_nothing_of_the_others(folder):
    jobs = graph.load("smoke")
    shares = [graph.share(jobs, f"{k}/2", ready=False) for k in (1, 2)]
    words = Batch("smoke", shard="1/2").command("--directory", str(folder), "--cores", "2")
    assert subprocess.run(words, cwd=folder, capture_output=True).returncode == 0
    ran = calls(folder)
    assert ran and set(ran) <= set(shares[0])
    assert all(set(jobs[name].after) <= set(ran) for name in ran)


CHAIN = {name: Job(name, "train", "unconditional", (name,), after, (), flops, 0, "k")
         for name, after, flops in (("a", (), 4.0), ("b", ("a",), 3.0), ("c", (), 2.0),
                                    ("d", ("c",), 1.5), ("e", ("d",), 1.4))}


@pytest.fixture
def shares(tmp_path, monkeypatch):
    """Runs shares of CHAIN: the first has a and d, the second b, c and e, of which e needs d."""
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(batch, "PATIENCE", 0.01)
    (tmp_path / "jobs").mkdir()
    ran: list[str] = []

    def run(share: str, failing: str = "", meanwhile=lambda: None) -> int:
        def snakemake(wanted, lock):
            code = 0
            for name in graph.share(CHAIN, wanted.shard):
                if not CHAIN[name].marker.exists():
                    ran.append(name)
                    CHAIN[name].log.write_text("error: it diverged\n")
                    if name == failing:
                        code = 1
                    elif not set(CHAIN[name].after) & {failing}:
                        CHAIN[name].marker.write_text("{}")
            return code

        monkeypatch.setattr(batch, "_snakemake", snakemake)
        monkeypatch.setattr(batch, "_pending", lambda wanted: set())
        monkeypatch.setattr(batch, "time", SimpleNamespace(sleep=lambda seconds: meanwhile()))
        return batch._share(Batch("smoke", shard=share), CHAIN, 0)

    run.ran = ran
    return run


def test_a_share_waits_for_what_another_makes(shares, capsys):
    assert graph.share(CHAIN, "1/2", ready=False) == ["a", "d"]
    others = iter(("a", "d"))
    code = shares("2/2", meanwhile=lambda: CHAIN[next(others)].marker.write_text("{}"))
    assert (code, shares.ran) == (0, ["c", "b", "e"])
    said = [line.split(maxsplit=2)[2] for line in capsys.readouterr().out.splitlines()]
    assert said == ["waiting for other shards: a, d", "waiting for other shards: d",
                    "3 of 3 jobs done"]


def test_a_share_leaves_what_failed_and_does_the_rest(shares, capsys):
    code = shares("2/2", failing="c", meanwhile=lambda: CHAIN["a"].marker.write_text("{}"))
    assert code == 3 and "b" in shares.ran and CHAIN["b"].marker.exists()
    said = capsys.readouterr().out
    assert "failed: error: it diverged" in said and "1 of 3 jobs done" in said


def test_a_share_does_not_give_up_what_it_has_not_tried(shares):
    """a fails at once, and b is not tried before c of the other share is done: so it stays."""
    assert graph.share(CHAIN, "2/2", ready=False) == ["b", "c", "e"]
    others = iter(("a", "d"))
    code = shares("2/2", failing="c", meanwhile=lambda: CHAIN[next(others)].marker.write_text("{}"))
    assert code == 3 and shares.ran.count("c") == 1  # not again in every round
    assert [name for name in CHAIN if CHAIN[name].given_up.exists()] == ["c"]
    assert CHAIN["b"].marker.exists()


def test_a_share_does_not_wait_for_what_failed_in_another(shares, capsys):
    """c fails in the second share, so d of the first, which needs it, is hopeless; a is not."""
    assert shares("2/2", failing="c", meanwhile=lambda: CHAIN["a"].marker.write_text("{}")) == 3
    CHAIN["a"].marker.unlink()
    capsys.readouterr()
    waits: list[int] = []  # once: it may be mended, and about to be tried again
    assert shares("1/2", meanwhile=lambda: waits.append(1)) == 3 and waits == [1]
    said = capsys.readouterr().out
    assert "c" in said and "failed in another shard: error: it diverged" in said
    assert "1 of 2 jobs done" in said and CHAIN["a"].marker.exists()
    # mended: the second share tries again, and the first then finds what it needs
    assert shares("2/2", meanwhile=lambda: CHAIN["d"].marker.write_text("{}")) == 0
    assert shares("1/2", meanwhile=lambda: pytest.fail("it waits")) == 0


def test_what_failed_in_an_earlier_launch_may_be_tried_again(shares):
    """The second share starts a moment later than the first, which needs c of it."""
    assert shares("2/2", failing="c", meanwhile=lambda: CHAIN["a"].marker.write_text("{}")) == 3

    def tried_again():
        CHAIN["c"].given_up.unlink()
        CHAIN["c"].marker.write_text("{}")

    assert shares("1/2", meanwhile=tried_again) == 0


@pytest.mark.parametrize(("config", "said"), [
    ("profle=smoke", "unknown key of --config 'profle': did you mean 'profile'"),
    ("profile=smoky", "unknown profile 'smoky': did you mean 'smoke'"),
    ("shard=9/2", "shard '9/2' is none"),
])
def test_a_mistake_in_the_configuration_is_one_line(folder, config, said):
    words = Batch("smoke").command("--directory", str(folder))
    words[words.index("--config") + 1] = config
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using profile")]
    assert done.returncode == 1 and len(lines) == 1 and said in lines[0]


# --- the command line ---------------------------------------------------------------------------

@pytest.fixture
def elsewhere(tmp_path, monkeypatch, counted):
    """`execute` without Snakemake, in folders of its own."""
    shutil.copytree(counted, tmp_path / "cache" / "jobs")
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "cache"))
    for module in (batch, run):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in ("01_a", "02_b"):
        cell = nbformat.v4.new_code_cell(
            f'x = 1\noutput.figure(draw(x,\n  "-"), "fig_{name}")\n'
            f'output.table(x, "tab_{name}").head(3)\n'
            'if x:\n    output.figure(1, "fig_sometimes")\n'
            f'claims.save(x, "{name}", output, device)')
        magic = nbformat.v4.new_code_cell("%timeit 1 + 1\n!ls")
        words = nbformat.v4.new_markdown_cell("# A\n?")
        book = nbformat.v4.new_notebook(cells=[words, magic, cell])
        nbformat.write(book, tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


def write(batch: Batch, *names: str) -> None:
    for name in names:
        (batch.folder / f"{name}.ipynb").write_text("{}")


def writes_all(wanted: Batch, lock: int) -> int:
    write(wanted, "01_a", "02_b")
    return 0


def test_what_failed_is_said_with_its_reason_and_the_report_is_built(elsewhere, monkeypatch,
                                                                     capsys):
    def fails(wanted, lock):
        write(wanted, "01_a")
        job = graph.load("smoke")["train-conditional-group-1"]
        job.log.write_text("Traceback\nRuntimeError: out of memory\n")
        return 1

    monkeypatch.setattr(batch, "_snakemake", fails)
    monkeypatch.setattr(batch, "_pending", lambda wanted: {"02_b.ipynb", "report/index.html"})
    monkeypatch.setattr(report, "build", lambda profile: Path(f"{profile}/index.html"))
    assert batch.execute(Batch("smoke", with_report=True)) == 1
    said = capsys.readouterr().out
    assert re.search(r"train-conditional-group-1 +failed: RuntimeError: out of memory \S+\.log",
                     said)
    assert "not finished: 02_b" in said and "smoke/index.html" in said


def test_what_is_up_to_date_is_said(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(batch, "_snakemake", writes_all)
    assert batch.execute(Batch("smoke")) == 0
    assert "up to date" not in capsys.readouterr().out
    monkeypatch.setattr(batch, "_snakemake", lambda wanted, lock: 0)
    assert batch.execute(Batch("smoke")) == 0
    assert capsys.readouterr().out.count("up to date") == 2


def test_what_an_old_run_left_is_not_up_to_date_where_a_model_failed(elsewhere, monkeypatch,
                                                                     capsys):
    monkeypatch.setattr(batch, "_snakemake", lambda wanted, lock: 1)
    monkeypatch.setattr(batch, "_pending", lambda wanted: {"train-a.json", "02_b.ipynb"})
    wanted = Batch("smoke")
    wanted.folder.mkdir(parents=True)
    write(wanted, "01_a", "02_b")
    assert batch.execute(wanted) == 1
    said = capsys.readouterr().out
    assert re.search(r"^01_a +up to date", said, re.M)
    assert re.search(r"^02_b +not up to date", said, re.M)
    assert "not finished: 02_b" in said and "all done" not in said


def test_words_and_exit_code_agree_where_only_the_site_failed(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(batch, "_snakemake", lambda *words: writes_all(*words) or 1)
    monkeypatch.setattr(batch, "_pending", lambda wanted: {"report/index.html"})
    monkeypatch.setattr(report, "build", lambda profile: Path(f"{profile}/index.html"))
    assert batch.execute(Batch("smoke", with_report=True)) == 0
    assert "all done" in capsys.readouterr().out


@pytest.mark.parametrize(("pending", "asked", "late"), [
    (["02_b"], ["", "alone"], {"02_b"}), ([], [""], {"00_start_here"})])
def test_the_tour_shows_what_there_is_where_another_notebook_failed(monkeypatch, pending, asked,
                                                                    late):
    seen = []
    monkeypatch.setattr(batch, "_snakemake",
                        lambda wanted, lock: seen.append(wanted.tour) or not wanted.tour)
    monkeypatch.setattr(batch, "_pending", lambda wanted: {
        f"executed/{name}.ipynb" for name in (graph.TOUR, *pending)})
    assert batch._late(Batch("smoke"), 0, {"00_start_here", "02_b"}) == late and seen == asked


@pytest.mark.parametrize("said", ["Missing input files .* zoo/copy_detection.csv",
                                  "FileExistsError: .*/.snakemake'$"])
def test_what_is_wrong_with_the_graph_itself_is_one_line(folder, monkeypatch, said):
    if "zoo" in said:
        (folder / "zoo").unlink()
    else:
        (folder / ".snakemake").touch()
    known = Batch.command
    monkeypatch.setattr(Batch, "command", lambda self, *more: known(
        self, "--directory", str(folder), *more))
    monkeypatch.setattr(batch, "_snakemake", lambda wanted, lock: 1)
    with pytest.raises(UserError, match=f"cannot resolve the graph: .*{said}") as error:
        batch._late(Batch("smoke"), 0, set())
    assert "\n" not in str(error.value) and "Using profile" not in str(error.value)


@pytest.mark.parametrize("gone", ["fig_01_a.png", "fig_01_a.pdf", "tab_01_a.csv", "tab_01_a.tex",
                                  "tab_claims_01_a.csv", "claims.json"])
def test_what_was_deleted_is_made_again(elsewhere, gone):
    wanted = Batch("smoke")
    wanted.folder.mkdir(parents=True)
    write(wanted, "01_a", "02_b")
    folder = wanted.folder.parent
    for name in ("01_a", "02_b"):
        for file in (f"fig_{name}.png", f"fig_{name}.pdf", f"tab_{name}.csv", f"tab_{name}.tex",
                     f"tab_claims_{name}.csv", f"tab_claims_{name}.tex"):
            (folder / file).touch()
    (folder / "claims.json").write_text('{"01_a": [], "02_b": []}')
    assert batch._again(wanted) == []
    (folder / gone).unlink()
    expected = ["01_a", "02_b"] if gone == "claims.json" else ["01_a"]
    assert batch._again(wanted) == ["--forcerun", *expected]
    (wanted.folder / "01_a.ipynb").unlink()  # Snakemake sees that by itself
    assert batch._again(wanted) == (["--forcerun", "02_b"] if gone == "claims.json" else [])
    assert batch._again(replace(wanted, tour="alone")) == []


def test_what_every_notebook_writes_is_seen():
    files, sections = {}, {}
    for path in sorted((run.ROOT / "notebooks").glob("0*.ipynb")):
        files[path.stem], sections[path.stem] = batch._written(path)
    assert all(files.values()) and len(set().union(*sections.values())) == 6
    drawn = {f"fig_start_here{what}.{kind}" for what in ("", "_scores") for kind in ("png", "pdf")}
    assert drawn == files["00_start_here"]
    assert "tab_mae_pairs.tex" in files["01_unconditional"]
    assert not {name for name in files["03_conditional"] if "imagenet" in name}


def test_a_second_run_of_the_same_graph_waits_and_says_so_in_one_line(elsewhere, monkeypatch,
                                                                      capsys):
    first, second, order, say = threading.Event(), threading.Event(), [], batch.say

    def said(name, *words):
        say(name, *words)
        if words[0].startswith("waiting for the run"):
            second.set()

    def slow(wanted, lock):
        order.append("starts")
        first.set()
        assert second.wait(60)
        order.append("ends")
        return writes_all(wanted, lock)

    monkeypatch.setattr(batch, "say", said)
    monkeypatch.setattr(batch, "_snakemake", slow)
    thread = threading.Thread(target=batch.execute, args=(Batch("smoke"),))
    thread.start()
    assert first.wait(60)
    batch.execute(Batch("smoke"))
    thread.join()
    assert order == ["starts", "ends"] * 2
    assert capsys.readouterr().out.count("waiting for the run that is at work in") == 1


def test_every_dataset_of_a_profile_is_fetched_before_its_jobs(elsewhere, monkeypatch):
    asked = []
    monkeypatch.setattr(batch.fetching, "ensure", asked.append)
    monkeypatch.setattr(batch, "_snakemake", lambda *_: pytest.fail("no images yet") if not asked
                        else writes_all(*_))
    assert batch.execute(Batch("smoke")) == 0
    assert set(asked) == {"bundled", *(spec.dataset for spec in
                                       recipes.every_spec("smoke").values() if spec.dataset)}
    assert "cifar100" in recipes.datasets("paper")


def test_a_dataset_that_cannot_be_had_fails_its_own_jobs_only(elsewhere, monkeypatch, capsys):
    def ensure(name):
        if name != "cifar10":
            raise UserError(f"{name.upper()} could not be fetched: check the network")

    monkeypatch.setattr(batch.fetching, "ensure", ensure)
    batch._fetch("gpu")
    assert re.search("^cifar100 +not fetched: CIFAR100 could not be fetched: check the network$",
                     capsys.readouterr().out, re.M)
    monkeypatch.setattr(batch.fetching, "ensure", lambda name: ensure("any"))
    with pytest.raises(UserError):
        batch._fetch("gpu")


def test_a_job_whose_weights_are_gone_is_not_done(elsewhere, monkeypatch):
    there, gone = list(graph.load("smoke").values())[:2]
    store = elsewhere / "cache" / "artifacts"
    store.mkdir(parents=True)
    (store / "model-a.safetensors").touch()
    for job, name in ((there, "model-a"), (gone, "model-b")):
        job.marker.write_text(json.dumps({"weights": [f"{name}.safetensors"]}))
    monkeypatch.setattr(batch, "_snakemake", writes_all)
    assert batch.execute(Batch("smoke")) == 0
    assert there.marker.exists() and not gone.marker.exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_interrupts_snakemake(elsewhere, monkeypatch, how):
    """By SIGTERM a run that a script started with &, where SIGINT is ignored."""
    code = "import sys, time; print('up', file=sys.stderr, flush=True); time.sleep(60)"
    monkeypatch.setattr(Batch, "command", lambda self, *_: [sys.executable, "-c", code])
    seen, start = [], subprocess.Popen
    monkeypatch.setattr(batch.subprocess, "Popen",
                        lambda *a, **k: seen.append(start(*a, **k)) or seen[0])
    monkeypatch.setattr(sys, "stderr", type("Screen", (), {
        "write": lambda self, text: os.kill(os.getpid(), how) if "up" in text else 0,
        "flush": lambda self: None})())
    before = signal.getsignal(signal.SIGINT)
    if how != signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_by_signals(), open(elsewhere / "lock", "w") as lock, \
                pytest.raises((KeyboardInterrupt, SystemExit)):
            batch._snakemake(Batch("smoke"), lock.fileno())
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen[0].wait(30) == -signal.SIGINT


def test_a_key_that_a_profile_of_snakemake_does_not_have_is_one_line(tmp_path, monkeypatch):
    known = Batch.command
    monkeypatch.setattr(Batch, "command", lambda self: known(self, "--coers=3"))  # as a key does
    said = "workflow/profiles/local/config.yaml: unrecognized arguments: --coers=3"
    with open(tmp_path / "lock", "w") as lock, pytest.raises(UserError, match=said):
        batch._snakemake(Batch("smoke"), lock.fileno())


def sinfo(folder: Path, monkeypatch, script: str) -> None:
    program = folder / "bin" / "sinfo"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_a_partition_that_does_not_exist_is_named(elsewhere, monkeypatch):
    sinfo(elsewhere, monkeypatch, "echo 'gpu* 1-00:00:00'; echo 'long infinite'")
    with pytest.raises(UserError, match="partition 'gqu': did you mean 'gpu'. valid are gpu, long"):
        batch.check(Batch("smoke", on="slurm", partition="gqu"))
    long = Batch("smoke", on="slurm", partition="long")
    assert batch.check(long) == long
    for partition in ("gpu", ""):  # the same, it is the default
        found = batch.check(Batch("paper", on="slurm", partition=partition))
        assert found.longest == 1440 and 4 < found.retries < 30
        assert {"longest=1440", f"{found.retries}"} < {*found.command()}


@pytest.mark.parametrize(("limit", "minutes"), [
    ("infinite", 0), ("n/a", 0), ("30:00", 30), ("2:00:00", 120), ("1-12:30:00", 2190)])
def test_limits_of_slurm_are_read(limit, minutes):
    assert batch._minutes(limit) == minutes


@pytest.mark.parametrize("wanted", [Batch("smok"), Batch("smoke", device="gpu"),
                                    Batch("smoke", on="slum"), Batch("smoke", shard="3/2")])
def test_a_plan_refuses_the_same_mistakes(wanted):
    with pytest.raises(UserError, match="unknown|shard"):
        next(batch.plan(wanted))


def test_a_cluster_that_does_not_answer_is_said(elsewhere, monkeypatch):
    sinfo(elsewhere, monkeypatch, "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match="does not answer .Unable to contact"):
        batch.check(Batch("smoke", on="slurm"))


@pytest.mark.parametrize(("wanted", "said"), [
    (Batch("smok"), "unknown profile 'smok'"),
    (Batch("smoke", on="slum"), "unknown place to run on 'slum': did you mean 'slurm'"),
    (Batch("smoke", partition="gpu"), "a partition is SLURM's"),
    (Batch("smoke", shard="2"), "shard '2' is none"),
    (Batch("laptop", shard="1/2"), "laptop ships its models, there is nothing to share"),
    (Batch("smoke", shard="1/2", with_report=True), "a share makes no report"),
    (Batch("smoke", device="gpu"), "unknown device 'gpu'"),
    (Batch("smoke", on="slurm"), "there is no SLURM here"),
])
def test_a_mistake_is_refused_before_anything_runs(elsewhere, monkeypatch, wanted, said):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=said):
        batch.execute(wanted)
    assert not (elsewhere / "figures").exists()


def test_a_store_that_cannot_be_written_is_one_line(elsewhere, monkeypatch, capsys):
    (elsewhere / "file").touch()
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(elsewhere / "file" / "cache"))
    assert run.main(["--all", "--profile", "smoke"]) == 2
    error = capsys.readouterr().err
    assert "set PAPER_UTILS_CACHE to a folder" in error and error.count("\n") == 1


@pytest.mark.parametrize("do", [batch.execute, lambda wanted: next(batch.plan(wanted))])
def test_a_brace_in_the_path_of_the_store_is_refused(elsewhere, monkeypatch, do):
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(elsewhere / "a{b"))
    with pytest.raises(UserError, match="a brace in PAPER_UTILS_CACHE"):
        do(Batch("smoke"))


def test_figures_that_cannot_be_written_are_one_line(elsewhere, capsys):
    (elsewhere / "figures").touch()
    assert run.main(["--all", "--profile", "smoke"]) == 2
    error = capsys.readouterr().err
    assert "give a path where you can write" in error and error.count("\n") == 1


# --- the plan -----------------------------------------------------------------------------------

def test_the_plan_of_the_paper_says_hours_and_figures(folder):
    lines = list(batch.plan(Batch("paper")))
    jobs = graph.load("paper")
    hours = sum(job.minutes("cuda") for job in jobs.values()) / 60
    assert lines[0] == (f"paper: {len(jobs)} of {len(jobs)} jobs and 7 notebooks to run, "
                        f"{hours:,.1f} GPU-hours for the jobs")
    text = "\n".join(lines)
    for name in ("fig_two_regimes", "fig_rp_inverse", "fig_stages", "fig_rp_mae_heatmaps",
                 "fig_imagenet"):
        assert text.count(name) == 1
    first = next(iter(jobs.values()))
    first.marker.write_text("{}")
    assert f"{len(jobs) - 1} of {len(jobs)} jobs" in next(batch.plan(Batch("paper")))
    first.marker.write_text('{"weights": ["gone.safetensors"]}')
    assert f"{len(jobs)} of {len(jobs)} jobs" in next(batch.plan(Batch("paper")))
    assert first.marker.exists()  # a plan changes nothing


def test_the_plan_of_small_models_is_in_minutes_and_has_no_figure_of_what_it_lacks(folder):
    lines = list(batch.plan(Batch("smoke")))
    minutes = sum(job.minutes("cpu") for job in graph.load("smoke").values())
    assert lines[0].endswith(f" run, {minutes:.1f} minutes on two cores for the jobs")
    assert minutes > 0.1 and not any(" hours on" in line for line in lines)
    assert "fig_imagenet" not in "\n".join(lines)


def test_the_plan_of_a_share_has_its_own_jobs_only(folder):
    jobs = graph.load("smoke")
    for job in jobs.values():
        job.marker.write_text("[]")
    plans = [next(batch.plan(Batch("smoke", shard=f"{k}/2"))) for k in (1, 2)]
    assert sum(int(plan.split()[1]) for plan in plans) == len(jobs)
