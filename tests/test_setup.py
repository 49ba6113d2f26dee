"""The pins: one list, complete, used by both ways of installing, and what is installed."""

import re
import select
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("notebooks", "report", "test")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, list[str]]:
    """Package -> the versions it is pinned to."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found.setdefault(normal(name), []).append(version)
    return found


def requirement_name(requirement: str) -> str:
    return normal(re.match(r"[\w.-]+", requirement)[0])


def direct() -> list[str]:
    extras = [name for extra in EXTRAS for name in PROJECT["optional-dependencies"][extra]]
    return [requirement_name(line) for line in PROJECT["dependencies"] + extras]


def disagreements(constraints: str, environment: str, makefile: str) -> list[str]:
    """Every way in which the ways of installing do not install the same thing."""
    pinned, conda = pins(constraints), yaml.safe_load(environment)
    problems = [f"{name} is pinned {len(v)} times" for name, v in pinned.items() if len(v) > 1]
    problems += [f"{name} is not pinned" for name in direct() if name not in pinned]
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    wanted = ["-c constraints.txt", f"-e .[{','.join(EXTRAS)}]"]
    if pip != wanted:
        problems.append(f"environment.yml installs {pip}, not {wanted}")
    made = re.findall(r"-c constraints\.txt -e '\.\[([\w,]+)\]'", makefile)
    if sorted(",".join(made).split(",")) != sorted(EXTRAS):
        problems.append("the Makefile does not install the same extras with the same pins")
    python = next(d for d in conda["dependencies"] if str(d).startswith("python"))
    if python.split("=")[1] != PROJECT["requires-python"].removeprefix(">="):
        problems.append(f"environment.yml has {python}, pyproject {PROJECT['requires-python']}")
    return problems


FILES = {
    name: (ROOT / path).read_text()
    for name, path in {
        "constraints": "constraints.txt",
        "environment": "environment.yml",
        "makefile": "Makefile",
    }.items()
}


def test_every_way_of_installing_agrees():
    assert disagreements(**FILES) == []


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("constraints", "numpy==", "numpi=="),
        ("constraints", "papermill==", "torch==1.0\npapermill=="),
        ("environment", "-c constraints.txt", "-c other.txt"),
        ("environment", "[notebooks,report,test]", "[test]"),
        ("environment", "python=3.11", "python=3.10"),
        ("makefile", "-e '.[notebooks,report]'", "-e ."),
        ("makefile", "-c constraints.txt -e '.[test]'", "-e '.[test]'"),
    ],
)
def test_a_disagreement_is_found(file, old, new):
    assert old in FILES[file]
    assert disagreements(**(FILES | {file: FILES[file].replace(old, new)}))


def test_pins_are_portable():
    for name, (version,) in pins(FILES["constraints"]).items():
        assert re.fullmatch(r"\d[\w.]*", version), f"{name}: {version} exists on one index only"
        assert not name.startswith(("nvidia", "triton")), f"{name} is for some GPUs only"


def closure(names: list[str]) -> set[str]:
    """The installed packages that `names` need, directly or not."""
    from packaging.requirements import Requirement

    seen, waiting = set(), [(name, "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            for key in [(normal(needed.name), extra) for extra in ("", *needed.extras)]:
                if key not in seen and not key[0].startswith(("nvidia", "triton", "cuda-")):
                    seen.add(key)
                    waiting.append(key)
    return {name for name, _ in seen} | set(names)


def test_everything_needed_is_pinned_and_nothing_else():
    pinned = set(pins(FILES["constraints"]))
    weights_only = set(re.search(r"^DESCRIPTORS := (.*)$", FILES["makefile"], re.M)[1].split())
    needed = closure(direct()) | weights_only  # these install without what they need
    assert needed - pinned == set()
    if sys.version_info[:2] == (3, 11) and sys.platform == "linux":
        assert pinned - needed <= {"setuptools"}


def in_the_project_environment() -> bool:
    return Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()


@pytest.mark.skipif(not in_the_project_environment(), reason="not run by `make test`")
def test_what_is_installed_is_what_is_pinned():
    pinned = pins(FILES["constraints"])
    for name in closure(direct()):
        assert metadata.version(name).split("+")[0] == pinned[name][0], name


# The shim


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["", ".run", ".graph", ".files", ".profiles"])
def test_importing_what_a_command_line_needs_is_light(module):
    heavy = "torch", "numpy", "torchvision", "matplotlib", "pandas"
    done = run_python(f"import sys, paper_utils{module}\n"
                      f"print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_reading_a_notebook_builds_no_grammar():
    """jsonschema from 4.25 on has one built in every process that imports nbformat: 2 seconds."""
    done = run_python("import sys, nbformat; print('lark' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_torchvision_and_diffusers_import_after_the_package():
    done = run_python(
        "import paper_utils, torchvision, diffusers, torch\n"
        "from torchvision.transforms import v2\n"
        "from paper_utils import shim\n"
        "shim.install()\n"
        "print(shim.torchvision_ops(), tuple(v2.Resize(8)(torch.zeros(3, 32, 32)).shape))"
    )
    assert done.stdout.strip() == "() (3, 8, 8)", done.stderr


def test_the_shim_declares_what_is_missing_and_only_once():
    done = run_python(
        "from paper_utils import shim\n"
        "import torch\n"
        "shim._loads = lambda folder: False\n"
        "print(shim.torchvision_ops(), shim.torchvision_ops(), torch.ops.torchvision.nms)"
    )
    assert done.stdout.strip() == "('nms', 'qnms') () torchvision.nms", done.stderr


def test_the_shim_does_nothing_without_torchvision():
    done = run_python(
        "import sys\n"
        "from paper_utils import shim\n"
        "shim.PathFinder = type('Empty', (), {'find_spec': staticmethod(lambda name: None)})\n"
        "print(shim.torchvision_ops(), 'torch' in sys.modules)"
    )
    assert done.stdout.strip() == "() False", done.stderr


def test_the_shim_leaves_a_whole_torchvision_alone():
    done = run_python(
        "from paper_utils import shim\n"
        "shim._loads = lambda folder: True\n"
        "print(shim.torchvision_ops(), shim._libraries)"
    )
    assert done.stdout.strip() == "() []", done.stderr


@pytest.mark.parametrize("word", ["profile=smoke", "on=slurm", "device=cuda"])
def test_make_refuses_a_name_in_small_letters(word):
    done = subprocess.run(["make", "--dry-run", "figures", word], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2 and "PROFILE=" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("word", ["Profile=smoke", "PROFIL=smoke", "DEVICE=cuda", "VENV=other"])
def test_make_refuses_a_name_it_does_not_know(word):
    done = subprocess.run(["make", "--dry-run", "figures", word], cwd=ROOT, capture_output=True,
                          text=True)
    name, said = word.split("=")[0], done.stderr
    assert done.returncode == 2 and f"make knows no {name}=" in said and "PROFILE=" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("word", ["PROFILE=smoke", "ON=--device cpu", "PIP_FLAGS=--no-index",
                                  "PYTHON=python3", "-j2"])
def test_make_takes_the_names_it_knows(word):
    done = subprocess.run(["make", "--dry-run", "plan", word], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_what_make_is_told_of_where_begins_with_an_option():
    done = subprocess.run(["make", "--dry-run", "plan", "ON=slurm"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2 and 'ON begins with an option' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_make_help_says_what_make_makes():
    done = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True,
                          text=True)
    first, *rest = done.stdout.splitlines()
    assert done.returncode == 0 and first.startswith("make figures ")
    assert any(line.startswith("make plan ") for line in rest) and "$" not in done.stdout


# Setting up, by stand-ins: nothing is installed

STAND_IN = """#!/bin/sh
case "$*" in
  *alone.py*) exec {python} "$@" ;;
  *venv*) echo venv >> calls; while [ -e hold ]; do sleep 0.05; done
    mkdir -p .venv/bin; rm -f .venv/bin/python; touch .venv/pyvenv.cfg; cp "$0" .venv/bin/python ;;
  *pip\ install*) echo pip >> calls ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A clone with a space in its path, and a Python in it that notes what it is asked to do, and
    makes no environment while there is a file `hold`."""
    folder = tmp_path / "a clone"
    (folder / "workflow").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "workflow/alone.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "python").write_text(STAND_IN.format(python=sys.executable))
    (folder / "python").chmod(0o755)
    return folder


@pytest.fixture
def make(clone, started):
    return lambda *words: started(["make", f"PYTHON={clone / 'python'}", *words], cwd=clone,
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def calls(clone: Path) -> list[str]:
    return (clone / "calls").read_text().split()


def test_two_makes_on_a_fresh_clone_set_it_up_once(clone, make):
    (clone / "hold").touch()
    both = [make("-j2", ".venv/.ready-for-tests") for _ in range(2)]
    assert any(select.select([one.stderr for one in both], [], [], 60))  # one says that it waits
    (clone / "hold").unlink()
    said = [one.communicate(timeout=60) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert calls(clone) == ["venv", "pip", "pip", "pip"]
    lines = {line for _, error in said for line in error.splitlines()}
    assert lines == {"waiting for another make that is setting up"}
    assert make(".venv/.ready-for-tests").wait(60) == 0 and len(calls(clone)) == 4


@pytest.mark.parametrize("ready", [True, False])
def test_an_environment_that_is_none_is_made_anew_before_anything_is_installed(clone, make, ready):
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    if ready:
        (clone / ".venv" / ".ready").touch()
    assert make(".venv/.ready").wait(60) == 0
    assert calls(clone) == ["venv", "pip", "pip"]


def test_a_lock_ends_with_its_holder(clone, started):
    words = [sys.executable, "workflow/alone.py", "Makefile"]
    holder = started([*words, "sh", "-c", "echo held; exec sleep 600"], cwd=clone,
                     stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waiting = started([*words, "true"], cwd=clone, stderr=subprocess.PIPE, text=True)
    assert "waiting" in waiting.stderr.readline() and waiting.poll() is None
    holder.kill()
    assert waiting.wait(30) == 0


def test_a_python_that_is_none_is_named(make):
    done = make("PYTHON=no such", ".venv/.ready")
    assert "Python 3.11 or newer is needed, not 'no such'" in done.communicate(timeout=60)[1]


def test_what_is_committed_stays_where_git_does_not_know_it(clone, make):
    (clone / "figures").mkdir()
    done = make("clean")
    said = done.communicate(timeout=60)[1]
    assert done.returncode == 0 and "without git" in said and said.count("\n") == 1
