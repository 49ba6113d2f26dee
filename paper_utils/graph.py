"""The jobs of a profile, as the workflow reads them: what to train and sample, after what.

Made by jobs.py, which counts the operations of every network and so takes seconds; kept in the
cache for as long as no module of the package changes. A job's marker, a file of <cache>/jobs/, says
that it is done and what it took; in its name is a hash of all that decides what the job makes.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from paper_utils import files, profiles
from paper_utils.errors import UserError
from paper_utils.paths import cache_dir

SPEED = {"cpu": 5e10, "cuda": 4e13}  # FLOP/s that a job keeps up; that of a GPU was never measured
BASE = 3.0  # GiB of a process that has loaded torch and the dataset
TOUR = "00_start_here"  # the notebook that shows what all others found


@dataclass(frozen=True)
class Job:
    """Some models to train, or to sample as one notebook needs them.

    after: jobs that must be done before. notebooks: those that need it. flops: floating-point
    operations in all. memory: GiB on the device.
    """

    name: str
    kind: str                # 'train' or 'sample'
    section: str             # of claims.SECTIONS
    models: tuple[str, ...]
    after: tuple[str, ...]
    notebooks: tuple[str, ...]
    flops: float
    memory: float
    key: str

    @property
    def marker(self) -> Path:
        return folder() / f"{self.name}-{self.key}.json"

    @property
    def log(self) -> Path:
        return self.marker.with_suffix(".log")

    @property
    def given_up(self) -> Path:
        """A file that exists while a share has tried this job in vain: other shares do not wait."""
        return self.marker.with_suffix(".failed")

    def minutes(self, device: str) -> float:
        """How long it should take on 'cpu' (two cores) or 'cuda', at SPEED."""
        return self.flops / SPEED[kind_of(device)] / 60

    def limit(self, device: str, attempt: int = 1, longest: int = 0) -> int:
        """Minutes after which it is killed: three times what it should take, half an hour more.

        attempt: the second gets twice as much; longest: what is allowed at all, 0 for any.
        """
        wanted = attempt * (30 + math.ceil(3 * self.minutes(device)))
        return min(wanted, longest or wanted)

    def memory_mb(self, device: str) -> int:
        """Megabytes of the machine's memory; on a GPU the model lies in the GPU's own."""
        return round(1000 * (BASE + (self.memory if kind_of(device) == "cpu" else 5)))

    def about(self, device: str) -> str:
        """One line: what it makes, how long it should take, for which notebooks."""
        return (f"{self.name}: {', '.join(self.models)}; {cost([self], device)}, for "
                f"{', '.join(self.notebooks)}")

    def arguments(self, profile: str, device: str) -> str:
        """Of the command that does it, `python -m paper_utils.jobs`."""
        return shlex.join([self.kind, *self.models, "--section", self.section, "--profile", profile,
                           "--device", device])


def folder() -> Path:
    """Where the markers are."""
    return cache_dir() / "jobs"


def kind_of(device: str) -> str:
    """'cuda' of 'cuda:1'."""
    return str(device).partition(":")[0]


def unit(device: str) -> str:
    """What `hours` are hours of."""
    return "GPU-hours" if kind_of(device) == "cuda" else "hours on two cores"


def hours(jobs: Iterable[Job], device: str) -> float:
    """How long these jobs should take, one after the other."""
    return sum(job.minutes(device) for job in jobs) / 60


def cost(jobs: Iterable[Job], device: str, width: int = 0) -> str:
    """`hours` with their unit, the number at least `width` wide; under an hour minutes."""
    taken, what = hours(jobs, device), unit(device)
    if taken < 1:
        taken, what = 60 * taken, what.replace("hours", "minutes")
    return f"{taken:{width},.1f} {what}"


def last_line(text: str) -> str:
    """What a program said last."""
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def load(profile: str) -> dict[str, Job]:
    """The jobs of a profile by name, each after those it needs; none where its models are shipped.

    Counted now where they were not before. Raises UserError for an unknown profile, and where the
    cache cannot be written.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    version = sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    path = folder() / f"graph-{profile}-{version}.json"
    kept = read(path)
    if kept is None:
        from paper_utils import jobs

        built = jobs.build(profiles.get(profile))
        text = json.dumps({name: asdict(job) for name, job in built.items()})
        files.replace_file(path, text.encode())
        kept = json.loads(text)
    return {name: Job(**row) for name, row in kept.items()}


def read(path: Path) -> dict | None:
    """What a JSON file holds; None where it is missing or damaged, to be made again."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def share(jobs: Mapping[str, Job], text: str, ready: bool = True) -> list[str]:
    """The jobs of one of several machines that share a folder; ready: only what can be done by now.

    text: '2/8' is the second of eight shares, which take about equally long. What needs a job of
    another share can be done when that one's marker is there; what was given up, and what needs it,
    cannot. Raises UserError for other text.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(text))
    k, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= k <= n:
        raise UserError(f"shard {text!r} is none: give '2/8' for the second of eight")
    loads, mine = [0.0] * n, set()
    for job in sorted(jobs.values(), key=lambda job: -job.flops):
        lightest = loads.index(min(loads))
        loads[lightest] += job.flops
        if lightest == k - 1:
            mine.add(job.name)
    there = {name for name, job in jobs.items() if job.marker.exists()} if ready else set(jobs)
    for name, job in jobs.items():  # each stands after those that it needs
        if name in mine and there.issuperset(job.after) and not (ready and job.given_up.exists()):
            there.add(name)
    return [name for name in jobs if name in mine & there]


def failed(jobs: Mapping[str, Job]) -> dict[str, str]:
    """The jobs that were tried and are not done, by name: the last line they said."""
    found = {}
    for name, job in jobs.items():
        if job.log.exists() and not job.marker.exists():
            found[name] = last_line(job.log.read_text(errors="replace"))
    return found


def done(jobs: Mapping[str, Job]) -> dict[str, dict]:
    """What the jobs that are done took, by name: the contents of their markers."""
    return {name: took for name, job in jobs.items() if (took := read(job.marker)) is not None}
