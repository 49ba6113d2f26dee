"""workflow/sky.yaml: as SkyPilot's own parser reads it, and what its script does on a machine.

The script runs here as on a rented machine, with two folders for the machine's disk and the bucket,
and a stand-in for the command that trains.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "workflow" / "sky.yaml").read_text()
TASK = yaml.safe_load(TEXT)

# --- what SkyPilot reads ------------------------------------------------------------------------

PARSE = """
import json, sys, yaml, sky
def read(case):
    if case["bucket"] is None:  # as a Python program would
        return sky.Task.from_yaml(case["file"])
    with open(case["file"]) as file:  # as `sky launch --env BUCKET=...` does
        return sky.Task.from_yaml_config(yaml.safe_load(file), [("BUCKET", case["bucket"])])
found = []
for case in json.load(sys.stdin):
    try:
        task = read(case)
    except Exception as error:
        found.append({"error": f"{type(error).__name__}: {error}"})
        continue
    found.append({
        "nodes": task.num_nodes, "envs": task.envs, "workdir": task.workdir,
        "setup": task.setup, "run": task.run, "files": task.file_mounts,
        "machines": [[r.accelerators, r.cpus, r.memory, r.disk_size] for r in task.resources],
        "mounts": {k: [v.source, v.mode.value] for k, v in task.storage_mounts.items()}})
json.dump(found, open(sys.argv[1], "w"))
"""
BROKEN = {
    "num_nodes:": "num_node:",
    "  accelerators:": "  accelerator:",
    "    mode:": "    modes:",
    "mode: MOUNT\n": "mode: MOUNTED\n",
    "num_nodes: 4": "num_nodes: four",
}


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    """What SkyPilot makes of the file with a bucket, without one, and of each BROKEN file.

    All in one process, that leaves no trace: importing it writes to ~/.sky.
    """
    folder = tmp_path_factory.mktemp("sky")
    cases = []
    for k, (old, new) in enumerate([("", ""), ("", ""), *BROKEN.items()]):
        assert old in TEXT
        file = folder / f"{k}.yaml"
        file.write_text(TEXT.replace(old, new) if old else TEXT)
        cases.append({"file": str(file), "bucket": "s3://a-bucket" if k != 1 else None})
    env = os.environ | {"HOME": str(folder), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run([sys.executable, "-c", PARSE, folder / "found.json"], env=env,
                          input=json.dumps(cases), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with_bucket, without, *broken = json.loads((folder / "found.json").read_text())
    return with_bucket, without, dict(zip(BROKEN.values(), broken))


@pytest.mark.slow
def test_skypilot_reads_what_is_meant(parsed):
    task, _, _ = parsed
    assert task["nodes"] == 4 and task["workdir"] == "." and not task["files"]
    machines = sorted(task["machines"], key=str)
    assert machines == [[{name: 1}, "4+", "16+", 256] for name in ("A100", "A100-80GB", "H100")]
    assert task["envs"] == {"PROFILE": "gpu", "BUCKET": "s3://a-bucket"}
    assert task["mounts"] == {"/results": ["s3://a-bucket", "MOUNT"]}
    assert task["setup"] == TASK["setup"] and task["run"] == TASK["run"]


@pytest.mark.slow
def test_skypilot_asks_for_the_bucket(parsed):
    _, without, _ = parsed
    assert "BUCKET" in without["error"] and "--env" in without["error"]


@pytest.mark.slow
@pytest.mark.parametrize("key", BROKEN.values(), ids=lambda key: key.strip())
def test_skypilot_refuses_a_mistake(key, parsed):
    broken = parsed[2][key]
    assert "error" in broken and re.search(r"\w+", key)[0] in broken["error"]


# --- what a machine does ------------------------------------------------------------------------

STAND_IN = r"""#!/bin/bash
# Does what this machine's share is: a job of its own, from a checkpoint where there is one, and a
# job that needs what the machine before it has made. Leaves what the store leaves.
echo "$*" >> "$HOME/calls"
store="$PAPER_UTILS_CACHE/artifacts" jobs="$PAPER_UTILS_CACHE/jobs"
write() {  # as artifacts.write does
    sha256sum <<<"$2" | cut -d' ' -f1 > "$1.sha256"; echo "$2" > "$1.part"; mv "$1.part" "$1"
}
me="$store/model-$SKYPILOT_NODE_RANK"
touch "$me.safetensors.lease" "$store/.model.safetensors.1.part" "$PAPER_UTILS_CACHE/cifar10.npz"
if [ ! -e "$me.safetensors" ]; then
    from=$(cat "$me.checkpoint" 2>/dev/null || echo 0) steps=$from
    until [ "$steps" -ge 3 ]; do
        steps=$((steps + 1)); echo "$steps" > "$me.checkpoint"
        [ -z "${WAIT-}" ] || until [ -e "$HOME/after $steps" ]; do sleep 0.05; done
    done
    echo "from $from to $steps" >> "$HOME/trained"
    [ -n "${FAIL-}" ] && touch "$jobs/train-$SKYPILOT_NODE_RANK.failed" && exit 3
    rm "$me.checkpoint"; write "$me.safetensors" "weights $steps"
    echo '{}' > "$jobs/train-$SKYPILOT_NODE_RANK.json"
fi
if [ "$SKYPILOT_NODE_RANK" != 0 ]; then
    before=$((SKYPILOT_NODE_RANK - 1))
    until [ -e "$jobs/train-$before.json" ]; do
        [ -e "$jobs/train-$before.failed" ] && exit 3
        sleep 0.05
    done
    cat "$store/model-$before.safetensors" || exit 5
fi
exit "${STATUS:-0}"
"""


class Machine:
    """A machine that SkyPilot rents: a disk of its own (home), with the repository on it."""

    def __init__(self, folder: Path, bucket: Path, started: Callable, rank: int, machines: int):
        self.folder, self.started, self.home = folder, started, folder / "home"
        self.cache = self.home / "paper_utils_cache"
        (folder / ".venv" / "bin").mkdir(parents=True)
        self.home.mkdir()
        shutil.copy(ROOT / "Makefile", folder)
        python = folder / ".venv" / "bin" / "python"
        python.write_text(STAND_IN)
        python.chmod(0o755)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "RESULTS": str(bucket),
                    "PROFILE": "paper", "BUCKET": "s3://a-bucket", "SKYPILOT_NODE_RANK": str(rank),
                    "SKYPILOT_NUM_NODES": str(machines), "SKYPILOT_TASK_ID": "sky-2026-repro"}

    def start(self, **env: str) -> subprocess.Popen:
        script = TASK["run"].replace("/results", '"$RESULTS"').replace("sleep 60", "sleep 0.1")
        return self.started(["bash", "-c", script], cwd=self.folder, env=self.env | env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, **env: str) -> int:
        return ended(self.start(**env))[0]

    def lines(self, name: str) -> list[str]:
        path = self.home / name
        return path.read_text().splitlines() if path.exists() else []


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and stderr."""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def taken_away(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for 30 seconds")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


MODEL = ["artifacts/model-0.safetensors", "artifacts/model-0.safetensors.sha256",
         "jobs/train-0.json"]


@pytest.fixture
def bucket(tmp_path):
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


@pytest.fixture
def rent(tmp_path, bucket, started):
    """Rents the machine of a name, of a rank among so many."""
    return lambda name, rank=0, machines=1: Machine(
        tmp_path / name, bucket, started, rank, machines)


def test_results_arrive_in_the_bucket_and_nothing_else(bucket, rent):
    machine = rent("a")
    assert machine.run() == 0
    assert names(bucket) == MODEL
    assert all((bucket / name).read_bytes() == (machine.cache / name).read_bytes()
               for name in MODEL)


def test_another_start_does_nothing_twice(bucket, rent):
    rent("a").run()
    before = {name: (bucket / name).stat().st_mtime_ns for name in names(bucket)}
    again = rent("b")
    assert again.run() == 0
    assert again.lines("calls") and not again.lines("trained")
    assert {name: (bucket / name).stat().st_mtime_ns for name in names(bucket)} == before


def test_a_machine_that_was_taken_away_goes_on_from_its_checkpoint(bucket, rent):
    checkpoint = bucket / "artifacts" / "model-0.checkpoint"
    machine = rent("a")
    first = machine.start(WAIT="yes")
    wait_for(lambda: checkpoint.exists() and checkpoint.read_text() == "1\n")
    (machine.home / "after 1").touch()
    wait_for(lambda: checkpoint.read_text() == "2\n")
    taken_away(first)
    (bucket / "artifacts" / "model-9.checkpoint").write_text("7")  # of another machine, unfinished
    second = rent("b")
    assert second.run() == 0
    assert second.lines("trained") == ["from 2 to 3"]
    assert names(bucket) == sorted([*MODEL, "artifacts/model-9.checkpoint"])


def test_machines_do_their_shares_and_see_what_others_have_finished(bucket, rent):
    machines = [rent(str(rank), rank, 3) for rank in range(3)]
    running = [machine.start() for machine in reversed(machines)]
    assert [ended(process)[0] for process in running] == [0] * 3
    assert [machine.lines("calls") for machine in machines] == [
        [f"-m paper_utils.run --all --profile paper --shard {k}/3"] for k in (1, 2, 3)]
    assert names(bucket) == sorted(name.replace("-0", f"-{k}") for name in MODEL for k in range(3))


def test_what_another_machine_removes_meanwhile_is_left_out(bucket, rent):
    """The checkpoint of a model that it has finished, between the look at it and the copy."""
    (bucket / "artifacts").mkdir()
    for k in (8, 9):
        (bucket / "artifacts" / f"model-{k}.checkpoint").write_text("7")
    machine = rent("a")
    cp = machine.folder / "cp"
    cp.write_text('#!/bin/sh\ncase "$2" in *model-8*) rm "$2"; echo half > "$3" ;; esac\n'
                  f'exec {shutil.which("cp")} "$@"\n')
    cp.chmod(0o755)
    assert ended(machine.start(PATH=f"{cp.parent}:{os.environ['PATH']}")) == (0, "")
    left = "artifacts/model-9.checkpoint"
    assert names(bucket) == sorted([*MODEL, left]) and left in names(machine.cache)
    assert not [name for name in names(machine.cache) if "model-8" in name or "0.part" in name]


def test_a_failure_is_the_tasks_and_what_was_done_is_kept(bucket, rent):
    assert rent("a").run(STATUS="4") == 4
    assert names(bucket) == MODEL


def test_machines_hear_what_failed_elsewhere_and_go_on(bucket, rent):
    machines = [rent(str(rank), rank, 3) for rank in range(3)]
    running = [machine.start(FAIL="yes" * (machine is machines[0])) for machine in machines]
    found = [ended(process) for process in running]
    assert [code for code, _ in found] == [0, 0, 0]  # or SkyPilot would end the third
    assert [("some models failed" in said) for _, said in found] == [True, True, False]
    assert "failed/sky-2026-repro/0/train-0.failed" in names(bucket)  # and told by no other
    assert [name for name in names(bucket) if "failed" in name or "train-2" in name] == [
        "failed/sky-2026-repro/0/train-0.failed", "jobs/train-2.json"]
    # mended: all try again, though what failed is still on disks; the second looks before the first
    # has begun, as after a recovery, in which the task keeps its name
    second = machines[1].start()
    wait_for(lambda: (machines[1].cache / "jobs" / "train-0.failed").exists())
    ended(second)
    running = [machine.start() for machine in machines]
    assert [ended(process) for process in running] == [(0, "")] * 3
    assert "jobs/train-0.json" in names(bucket)


def test_a_machine_that_breaks_down_ends_the_task(rent):
    """SkyPilot then ends the others, which would wait for it."""
    assert rent("a", 0, 3).run(STATUS="1") == 1


def test_a_bucket_that_cannot_be_written_ends_the_task_at_once(bucket, rent):
    bucket.rmdir()
    bucket.write_text("root can write to any folder, but not to a file")
    machine = rent("a")
    code, errors = ended(machine.start())
    assert code == 2 and not machine.lines("calls")
    assert errors.count("\n") == 1 and "cannot write to s3://a-bucket: let your account" in errors


def test_a_bucket_that_fails_later_fails_the_task(tmp_path, bucket, rent):
    machine = rent("a")
    process = machine.start(WAIT="yes")
    wait_for(lambda: (bucket / "artifacts" / "model-0.checkpoint").exists())
    bucket.rename(tmp_path / "gone")
    bucket.write_text("")
    for step in "123":
        (machine.home / f"after {step}").touch()
    code, errors = ended(process)
    assert code == 2
    assert "error: not all results are in s3://a-bucket: launch again" in errors.splitlines()[-1]


def test_setting_up_makes_the_environment_of_the_makefile(tmp_path):
    """With stand-ins for uv and make: a Python for make, then the target, which is the real one."""
    for name, more in (("uv", "mkdir -p .venv/bin; touch .venv/bin/python; chmod +x .venv/bin/*"),
                       ("make", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> calls\n{more}\n')
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-c", TASK["setup"]], cwd=tmp_path, env=env, check=True)
    make = "make PYTHON=.venv/bin/python .venv/.ready"
    assert (tmp_path / "calls").read_text().splitlines() == [
        "uv venv --seed --python 3.11 .venv", make, make]
    assert subprocess.run(["make", "--dry-run", ".venv/.ready"], cwd=ROOT,
                          capture_output=True).returncode == 0
