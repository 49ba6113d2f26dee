"""The whole graph of a profile, brought up to date by Snakemake: on this machine, or by SLURM.

    python -m paper_utils.run --all --profile paper --on slurm --partition gpu

See workflow/Snakefile for the graph and workflow/profiles/ for where it runs.
"""

import ast
import contextlib
import csv
import fcntl
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from paper_utils import fetching, files, graph, profiles, recipes
from paper_utils.errors import UserError, check_device, choose, raise_lost
from paper_utils.graph import Job
from paper_utils.paths import ROOT, cache_dir
from paper_utils.run import duration, read_notebook, say, short

SNAKEFILE = ROOT / "workflow" / "Snakefile"
PLACES = ("local", "slurm")
FAILED = 3  # exit code of a share of which some jobs failed
PATIENCE = 60.0  # seconds between two looks at what other shares have done


@dataclass(frozen=True)
class Batch:
    """What to run and where. device: '' is the profile's own; shard: '2/8', or '' for all;
    with_report: whether the site is built at the end; tour: 'alone' for the tour with what there is
    of the other notebooks, without waiting for them."""

    profile: str
    device: str = ""
    on: str = "local"
    partition: str = ""
    shard: str = ""
    with_report: bool = False
    longest: int = 0         # minutes that SLURM allows a job; 0: any
    retries: int = 0         # 0: as the profile of Snakemake says
    tour: str = ""

    @property
    def target(self) -> str:
        """The rule of the Snakefile that is asked for."""
        if self.tour:
            return graph.TOUR
        return "shard" if self.shard else "report" if self.with_report else "figures"

    @property
    def folder(self) -> Path:
        """Where the executed notebooks are."""
        return ROOT / "figures" / self.profile / "executed"

    def command(self, *more: str) -> list[str]:
        """Snakemake's command line."""
        keys = ("profile", "device", "partition", "longest", "shard", "tour")
        config = [f"{key}={value}" for key in keys if (value := getattr(self, key))]
        return [sys.executable, "-m", "snakemake", self.target, "--snakefile", str(SNAKEFILE),
                "--directory", str(ROOT), "--profile",
                str(ROOT / "workflow" / "profiles" / self.on), "--config", *config,
                *(["--retries", str(self.retries)] if self.retries else []), *more]


def _device(batch: Batch) -> str:
    return batch.device or profiles.PROFILES[batch.profile].device


def check(batch: Batch) -> Batch:
    """The batch, with what SLURM allows its jobs.

    UserError for what would fail later: an unknown name, no GPU, no SLURM, no store to write to.
    """
    _check_names(batch)
    if batch.on == "local":
        check_device(_device(batch))
    files.check_writable(graph.folder())
    return _allowed(batch) if batch.on == "slurm" else batch


def _check_names(batch: Batch) -> None:
    choose(batch.profile, profiles.PROFILES, "profile")
    choose(batch.on, PLACES, "place to run on")
    choose(graph.kind_of(batch.device or "cpu"), graph.SPEED, "device")
    if batch.shard:
        graph.share({}, batch.shard)
        if profiles.PROFILES[batch.profile].shipped:
            raise UserError(f"the profile {batch.profile} ships its models, there is nothing to "
                            "share: leave --shard out")
        if batch.with_report:
            raise UserError("a share makes no report: ask for that without --shard when all shares "
                            "are done")
    if {*"{}"} & {*str(cache_dir())}:
        raise UserError("a brace in PAPER_UTILS_CACHE is a wildcard to Snakemake: give a folder "
                        "without one")
    if batch.partition and batch.on != "slurm":
        raise UserError("a partition is SLURM's: give --on slurm with it")


def _allowed(batch: Batch) -> Batch:
    """The batch with the longest time of its partition, and as many tries as trainings need then.

    A training that is stopped at that time goes on from its checkpoint.
    """
    if not shutil.which("sinfo"):
        raise UserError("there is no SLURM here (sinfo was not found): run this on a login node of "
                        "the cluster")
    asked = subprocess.run(["sinfo", "--noheader", "--format=%P %l"], capture_output=True,
                           text=True)
    if asked.returncode:
        raise UserError(f"SLURM does not answer ({graph.last_line(asked.stderr)}): try again when "
                        "sinfo does")
    limits = dict(line.split()[:2] for line in asked.stdout.splitlines())
    default = next((name for name in limits if name.endswith("*")), "")
    limits |= {default.rstrip("*"): limits.get(default, "infinite")}
    names = sorted(name for name in limits if name and not name.endswith("*"))
    if batch.partition:
        choose(batch.partition, names, "SLURM partition")
    longest = _minutes(limits[batch.partition or default.rstrip("*")])
    if not longest:
        return batch
    jobs = graph.load(batch.profile).values()
    most = max((job.minutes(_device(batch)) for job in jobs), default=0)
    return replace(batch, longest=longest, retries=1 + math.ceil(most / longest))


def _minutes(limit: str) -> int:
    """SLURM's [days-]hours:minutes:seconds in minutes; 0 where there is no limit."""
    days, _, clock = limit.rpartition("-")
    if not clock[:1].isdigit():
        return 0
    *hours, minutes, _ = map(int, clock.split(":"))
    return 1440 * int(days or 0) + 60 * sum(hours) + minutes


# --- running ------------------------------------------------------------------------------------

def execute(batch: Batch) -> int:
    """Bring all that the target needs up to date; returns the exit code, 0 when all is done.

    Prints a line per notebook. A job that fails fails what needs it, and nothing else. A second
    call in the same folder waits for the first. Raises UserError as `check` does.
    """
    batch = check(batch)
    _fetch(batch.profile)
    started = time.monotonic()
    outputs = [batch.folder / path.name for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]
    with _one_at_a_time(batch) as lock:
        for left_by_a_kill in batch.folder.glob(".*.partial.ipynb"):
            left_by_a_kill.unlink()
        known = graph.load(batch.profile)
        for job in _stale(known):
            job.marker.unlink(missing_ok=True)
        if batch.shard:
            return _share(batch, known, lock)
        before = {output: _modified(output) for output in outputs}
        late = _late(batch, lock, {output.stem for output in outputs})
    for output in outputs:
        if before[output] and before[output] == _modified(output):
            state = "not up to date" if output.stem in late else "up to date"
            say(output.stem, state, short(output))
    for name, why in graph.failed(known).items():
        say(name, f"failed: {why}", short(known[name].log))
    if batch.with_report and any(output.exists() for output in outputs):
        from paper_utils import report

        say("report", short(report.build(batch.profile) if late else report.page(batch.profile)))
    missing = [output.stem for output in outputs if output.stem in late or not output.exists()]
    result = f"not finished: {', '.join(missing)}" if missing else "all done"
    say(batch.profile, result, duration(time.monotonic() - started), short(batch.folder.parent))
    return 1 if missing else 0


def _late(batch: Batch, lock: int, names: set[str]) -> set[str]:
    """Bring the target up to date; what of it, by name, is not. The tour is, with what there is.

    names: of the notebooks. Raises UserError where Snakemake cannot resolve the graph.
    """
    if not _snakemake(batch, lock):
        return set()
    late = {Path(path).stem for path in _pending(batch)}
    if late & names - {graph.TOUR} and not _snakemake(replace(batch, tour="alone"), lock):
        late -= {graph.TOUR}
    return late


def _fetch(profile: str) -> None:
    """The datasets of a profile, here: nodes of a cluster may have no network.

    One that cannot be had is said; what needs it fails, and nothing else. Raises UserError where
    that is everything.
    """
    main, *others = recipes.datasets(profile)
    fetching.ensure(main)
    for name in others:
        try:
            fetching.ensure(name)
        except UserError as error:
            say(name, f"not fetched: {error}")


def _share(batch: Batch, known: dict[str, Job], lock: int) -> int:
    """Do one share of the jobs; what needs another share's waits for it, what failed is left.

    Returns FAILED where something did.
    """
    mine, waiting = graph.share(known, batch.shard, ready=False), ""
    for name in mine:
        known[name].given_up.unlink(missing_ok=True)
    old = _given_up(known)  # maybe by an earlier launch; then its share may be about to try again
    while left := [name for name in mine if not known[name].marker.exists()
                   and name not in _hopeless(known, _given_up(known) - old)]:
        if tried := set(left) & set(graph.share(known, batch.shard)):
            if _snakemake(batch, lock):
                _pending(batch)  # says so if the graph itself is at fault
                for name in tried & set(graph.failed(known)) or tried:
                    files.replace_file(known[name].given_up, b"")
            continue
        needed = ", ".join(sorted({name for job in left for name in known[job].after
                                   if not known[name].marker.exists()}))
        if needed != waiting:
            say(f"shard {batch.shard}", f"waiting for other shards: {needed}")
        waiting = needed
        time.sleep(PATIENCE)
        old = set()
    undone = {name for name in mine if not known[name].marker.exists()}
    causes = sorted(name for name in _given_up(known) if _hopeless(known, {name}) & undone)
    for name, why in graph.failed({name: known[name] for name in causes}).items():
        where = "" if name in mine else " in another shard"
        say(name, f"failed{where}: {why}", short(known[name].log))
    say(f"shard {batch.shard}", f"{len(mine) - len(undone)} of {len(mine)} jobs done")
    return FAILED if undone else 0


def _given_up(known: dict[str, Job]) -> set[str]:
    """What a share, this one or another, has tried in vain."""
    return {name for name, job in known.items() if job.given_up.exists()
            and not job.marker.exists()}


def _hopeless(known: dict[str, Job], failed: set[str]) -> set[str]:
    """What failed, and all that needs it."""
    found = set(failed)
    for name, job in known.items():  # each stands after those that it needs
        if found & {*job.after}:
            found.add(name)
    return found


def _stale(known: dict[str, Job]) -> list[Job]:
    """Jobs that are marked as done, but whose weights have gone from the store, or whose marker is
    damaged."""
    store, found = cache_dir() / "artifacts", []
    for job in known.values():
        if job.marker.exists():
            took = graph.read(job.marker)
            if took is None or not all((store / name).exists() for name in took.get("weights", [])):
                found.append(job)
    return found


def _again(batch: Batch, stale: Iterable[Job] = ()) -> list[str]:
    """Have Snakemake do these jobs again, and the notebooks that did run but whose figures, tables
    or verdicts are not there any more."""
    folder, gone = batch.folder.parent, [str(job.marker) for job in stale]
    verdicts = graph.read(folder / "claims.json") or {}
    names = f"{graph.TOUR}.ipynb" if batch.tour else "0*.ipynb"
    for path in [] if batch.shard else sorted((ROOT / "notebooks").glob(names)):
        names, sections = _written(path)
        there = all((folder / name).exists() for name in names) and verdicts.keys() >= sections
        if (batch.folder / path.name).exists() and not there:
            gone.append(path.stem)
    return ["--forcerun", *gone] if gone else []


def _written(notebook: Path) -> tuple[set[str], set[str]]:
    """Files that every run of a notebook writes, and the sections of its verdicts.

    Those that its code names outside loops and conditions; a cell with magics is not looked at.
    """
    kinds = {"output.figure": ("fig_", "pdf", "png"), "output.table": ("tab_", "csv", "tex")}
    names, sections = set(), set()
    for cell in read_notebook(notebook).cells:
        body = []
        with contextlib.suppress(SyntaxError):
            body = ast.parse(cell.source).body if cell.cell_type == "code" else []
        for node in (node for line in body if isinstance(line, (ast.Expr, ast.Assign))
                     for node in ast.walk(line) if isinstance(node, ast.Call)):
            called = ast.unparse(node.func)
            words = [word.value for word in node.args if isinstance(word, ast.Constant)]
            if called in kinds:
                prefix, *endings = kinds[called]
                names |= {f"{word}.{ending}" for word in words for ending in endings
                          if word.startswith(prefix)}
            if called == "claims.save":
                sections |= set(words)
                names |= {f"tab_claims_{word}.{ending}" for word in words
                          for ending in ("csv", "tex")}
    return names, sections


def _snakemake(batch: Batch, lock: int) -> int:
    """Run it; an interruption here interrupts it, its jobs, and what it has submitted to SLURM.

    It heeds SIGINT even where this process ignores it (a script started it with &), since nothing
    else makes Snakemake end its jobs.
    """
    piped = {"stderr": subprocess.PIPE, "text": True, "pass_fds": (lock,),
             "start_new_session": True,
             "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    raise_lost()
    with subprocess.Popen(batch.command(*_again(batch)), cwd=ROOT, **piped) as process:
        try:
            refused = ""
            for line in process.stderr:
                if refused or line.startswith("usage:"):
                    refused = line
                elif not line.startswith("Using profile"):
                    print(line, end="", file=sys.stderr, flush=True)
        except (KeyboardInterrupt, SystemExit):
            os.killpg(process.pid, signal.SIGINT)
            raise
    if refused:  # it said how to be called, and last of all what was wrong
        raise UserError(f"workflow/profiles/{batch.on}/config.yaml: "
                        f"{refused.strip().partition(': error: ')[2]}")
    return process.returncode


@contextlib.contextmanager
def _one_at_a_time(batch: Batch) -> Iterator[int]:
    """Hold a lock that the operating system drops when its holders die, however they die.

    It guards the folder against a second run on this machine; jobs of two machines are kept apart
    by the locks of the store.
    """
    name = f".lock.{batch.shard.replace('/', '-of-')}" if batch.shard else ".lock"
    try:
        batch.folder.mkdir(parents=True, exist_ok=True)
        file = open(batch.folder / name, "w")
    except OSError as error:
        raise files.unwritable(batch.folder, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(batch.profile, "waiting for the run that is at work in", short(batch.folder))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without this kind of lock
            say(batch.profile, f"no lock in {short(batch.folder)} ({error.strerror}): make sure "
                "that nothing else runs there")
        yield file.fileno()


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


# --- the plan -----------------------------------------------------------------------------------

def plan(batch: Batch) -> Iterator[str]:
    """What would run, what it should cost and which figures it would give, line by line.

    Raises UserError as `check` does, but needs neither the device nor SLURM.
    """
    from paper_utils import report

    _check_names(batch)
    device, known = _device(batch), graph.load(batch.profile)
    mine = graph.share(known, batch.shard, ready=False) if batch.shard else known
    pending = _pending(batch, _stale({name: known[name] for name in mine}))
    todo = [job for job in known.values() if str(job.marker) in pending]
    pages = [page for page in report.pages(batch.folder.parent)
             if any(path.endswith(f"/{page.name}.ipynb") for path in pending)]
    yield (f"{batch.profile}: {len(todo)} of {len(known)} jobs and {len(pages)} notebooks to run, "
           f"{graph.cost(todo, device)} for the jobs")
    for kind in dict.fromkeys(job.kind for job in todo):
        part = [job for job in todo if job.kind == kind]
        models = sum(len(job.models) for job in part)
        yield (f"  {kind:<7} {models:>4} models in {len(part):>3} jobs "
               f"{graph.cost(part, device, 9)}")
    absent = () if profiles.PROFILES[batch.profile].imagenet else ("fig_imagenet",)
    for page in pages:
        needed = [job for job in todo if page.name in job.notebooks]
        yield (f"  {page.name:<21} needs {len(needed):>3} jobs {graph.cost(needed, device, 9)}, "
               "gives")
        names = [figure.name for figure in page.figures if figure.name not in absent]
        yield f"    {', '.join(names) or 'no figure'}"
    if todo:
        kind = graph.kind_of(device)
        yield (f"hours are operations / {graph.SPEED[kind]:.0e} a second, which "
               + ("two cores keep up" if kind == "cpu" else "was never measured"))


def _pending(batch: Batch, stale: Iterable[Job] = ()) -> set[str]:
    """The files that Snakemake would make, with those of these jobs."""
    words = batch.command("--summary", "--quiet", "host", "progress", "rules",
                          *_again(batch, stale))
    asked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        raise UserError(f"Snakemake cannot resolve the graph: {_reason(asked.stderr)}")
    rows = csv.DictReader(asked.stdout.splitlines(), delimiter="\t")
    return {row["output_file"] for row in rows if row["plan"] != "no update"}


def _reason(said: str) -> str:
    """What Snakemake said was wrong, in one line: the last of a traceback, else all of it."""
    if "Traceback" in said:
        return graph.last_line(said)
    words = [line.strip() for line in said.splitlines()
             if not line.startswith(("Using profile", "Building DAG"))]
    return graph.last_line(" ".join(words))
