"""The runner: on notebooks of a few lines, through its command line."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from paper_utils import errors, run
from paper_utils.errors import UserError

DECLARED = 'profile: str = "smoke"\nnoises: int = 4\nscale: float = 1.0'


def notebook(path: Path, *cells: str, parameters: str = DECLARED) -> Path:
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(source) for source in cells]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *rest], metadata=kernel), path)
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "paper_utils.run", *map(str, words)]


def cli(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=120)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_success_lands_at_the_output_and_reports_its_time(tmp_path):
    cell = "import os\nprint('sum', noises + scale, profile, os.getcwd())"
    path = notebook(tmp_path / "tiny.ipynb", cell)
    output = tmp_path / "new" / "folder" / "out.ipynb"
    done = cli(path, "-p", "noises", 7, "-p", "scale", 2, "--output", output)
    assert done.returncode == 0, done.stderr
    said = f"sum 9 smoke {tmp_path.resolve()}"  # JupyterLab would run it there too
    assert said in json.dumps(nbformat.read(output, 4))
    assert said in done.stdout  # what cells print is seen while they run
    assert re.fullmatch(r"tiny +\d+\.\d s .*out\.ipynb", done.stdout.splitlines()[-1])
    assert names(output.parent) == ["out.ipynb"]
    metadata = {**nbformat.read(output, 4).metadata}
    assert list(metadata) == ["kernelspec"]  # no path and no time of this machine


def test_a_folder_as_output_is_refused_before_the_work(tmp_path, capsys):
    path = notebook(tmp_path / "tiny.ipynb", "raise SystemExit")
    assert run.main([str(path), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", f"error: {tmp_path} is a folder: give the name of a file in "
                                   "it\n")
    assert names(tmp_path) == ["tiny.ipynb"]


def test_an_output_that_is_named_as_no_notebook_is_not_replaced_by_one(tmp_path, capsys):
    path, other = notebook(tmp_path / "tiny.ipynb", "raise SystemExit"), tmp_path / "README.md"
    other.write_text("words")
    assert run.main([str(path), "--output", str(other)]) == 2
    assert "give a name that ends in .ipynb" in capsys.readouterr().err
    assert other.read_text() == "words"


def test_a_notebook_is_never_written_over_itself(tmp_path, capsys):
    path = notebook(tmp_path / "tiny.ipynb", "raise SystemExit")
    before = path.read_bytes()
    (tmp_path / "link.ipynb").symlink_to(path)
    for output in (path, tmp_path / "link.ipynb"):
        assert run.main([str(path), "--output", str(output)]) == 2
        assert "is the notebook itself: give --output another file" in capsys.readouterr().err
    assert path.read_bytes() == before and names(tmp_path) == ["link.ipynb", "tiny.ipynb"]


@pytest.mark.parametrize("log, said", [("tiny.ipynb", "the notebook"), ("out.ipynb", "its output")])
def test_a_log_takes_nobodys_place(tmp_path, capsys, log, said):
    path = notebook(tmp_path / "tiny.ipynb", "raise SystemExit")
    before = path.read_bytes()
    words = ["--output", str(tmp_path / "out.ipynb"), "--log", str(tmp_path / log)]
    assert run.main([str(path), *words]) == 2
    assert f"{log} is {said}: give --log another file" in capsys.readouterr().err
    assert path.read_bytes() == before and names(tmp_path) == ["tiny.ipynb"]


@pytest.mark.parametrize("content", [b"<<<<<<< HEAD\n{}", b"", b"[]", b"\xff\xfe", b"{}"])
def test_what_is_no_notebook_is_one_line(tmp_path, capsys, content):
    (tmp_path / "torn.ipynb").write_bytes(content)
    words = [str(tmp_path / "torn.ipynb"), "--output", str(tmp_path / "out.ipynb")]
    assert run.main(words) in (1, 2)
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "torn.ipynb is no notebook" in said.err
    assert names(tmp_path) == ["torn.ipynb"]


@pytest.mark.slow
def test_a_notebook_without_a_kernelspec_keeps_its_output(tmp_path):
    path = notebook(tmp_path / "tiny.ipynb", "print(noises)")
    book = nbformat.read(path, 4)
    book.metadata = {"language_info": {"name": "python"}}
    nbformat.write(book, path)
    done = cli(path, "--output", tmp_path / "out.ipynb")
    assert (done.returncode, names(tmp_path)) == (0, ["out.ipynb", "tiny.ipynb"]), done.stderr


def test_parameters_that_are_no_plain_values_are_a_mistake():
    said = r"parameter 'x' .* no plain value but 10 \*\* \(-3\): write"
    with pytest.raises(UserError, match=said):
        run.parameters("x = 10 ** -3")
    number = run.Parameter("x", 1)
    with pytest.raises(UserError, match="takes int"):
        number.parse("{[]: 1}")


def test_a_pipe_or_a_device_is_no_output(tmp_path, capsys):
    path, pipe = notebook(tmp_path / "tiny.ipynb", "raise SystemExit"), tmp_path / "pipe.ipynb"
    os.mkfifo(pipe)
    assert run.main([str(path), "--output", str(pipe)]) == 2
    assert capsys.readouterr().err == (f"error: {pipe} is no regular file: give the name of "
                                       "another one\n")
    assert pipe.is_fifo() and names(tmp_path) == ["pipe.ipynb", "tiny.ipynb"]


@pytest.mark.parametrize("option", ["--output", "--log"])
def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path, option, capsys):
    path = notebook(tmp_path / "tiny.ipynb", "raise SystemExit")
    (tmp_path / "file").write_text("")
    words = {"--output": str(tmp_path / "o.ipynb"), option: str(tmp_path / "file" / "x.ipynb")}
    assert run.main([str(path), *(word for pair in words.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path / 'file'}")
    assert error.endswith("give a path where you can write\n") and error.count("\n") == 1
    assert names(tmp_path) == ["file", "tiny.ipynb"]


@pytest.mark.parametrize("words", [
    ["--profile", "smoke", "-p", "profile", "nope"], ["-p", "noises", "3", "-p", "noises", "4"],
    ["--device", "cpu", "-p", "device", "cuda"]])
def test_a_parameter_is_given_once(tmp_path, words, capsys):
    path = notebook(tmp_path / "n.ipynb", parameters=DECLARED + '\ndevice: str = "cpu"')
    assert run.main([str(path), *words, "--output", str(tmp_path / "o.ipynb")]) == 2
    said = f"error: parameter {words[-2]!r} is given twice: give it once\n"
    assert capsys.readouterr().err == said
    assert names(tmp_path) == ["n.ipynb"]


@pytest.mark.parametrize("words, where", [
    ([], "laptop"), (["--profile", "smoke"], "smoke"), (["-p", "noises", "64"], "laptop-noises-64"),
    (["-p", "start", "runs/a b.st", "--profile", "smoke"], "smoke-start-runs_a_b.st")])
def test_a_run_of_other_sizes_does_not_write_over_the_profiles(words, where, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "execute", lambda book, output, *_: outputs.append(output) or 1.0)
    outputs, declared = [], 'profile: str = "laptop"\nnoises: int = 0\nstart: str = ""\n' \
                            'descriptor: str = "cifar-copy"\ndevice: str = "cpu"'
    book = notebook(tmp_path / "n.ipynb", parameters=declared)
    assert run.main([str(book), "--device", "cpu", *words]) == 0
    assert outputs == [tmp_path / "figures" / where / "executed" / "n.ipynb"]


def test_a_failing_cell_is_one_line_and_keeps_the_notebook_until_a_success(tmp_path):
    output = tmp_path / "out" / "x.ipynb"
    done = cli(notebook(tmp_path / "x.ipynb", "1", "1 / 0", "2"), "--output", output)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cell 3" in line and "ZeroDivisionError: division by zero" in line
    assert names(output.parent) == ["x.failed.ipynb"]
    cli(notebook(tmp_path / "x.ipynb", "1 / 1"), "--output", output)
    assert names(output.parent) == ["x.ipynb"]


def test_a_user_error_in_a_cell_exits_2_with_its_message(tmp_path):
    source = "from paper_utils.errors import UserError; raise UserError('no such model')"
    output = tmp_path / "figures" / "executed" / "o.ipynb"
    done = cli(notebook(tmp_path / "u.ipynb", source), "--output", output)
    assert (done.returncode, done.stderr) == (2, "error: u: no such model\n")
    assert names(tmp_path) == ["u.ipynb"]  # and no empty folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "profle", "smoke"], "unknown parameter 'profle': did you mean 'profile'?"),
        (["-p", "noises", "abc"], "parameter 'noises' takes int, not 'abc'"),
        (["-p", "noises", "1.5"], "takes int, not 1.5"),
        (["-p", "noises", "true"], "takes int, not True"),
        (["-p", "scale", "big"], "takes float, not 'big'"),
        (["-p", "noises", "none"], "takes int, not 'none'"),
        (["-p", "noises", "true"], "takes int, not True"),
        (["--profile", "smoky"], "unknown profile 'smoky': did you mean 'smoke'?"),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(tmp_path, words, said):
    path = notebook(tmp_path / "n.ipynb", "open('ran', 'w')")
    done = cli(path, *words, "--output", tmp_path / "out" / "n.ipynb")
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert names(tmp_path) == ["n.ipynb"]


def test_a_notebook_that_is_not_there_is_named(tmp_path):
    notebook(tmp_path / "01_first.ipynb")
    done = cli(tmp_path / "01_fist.ipynb")
    assert done.returncode == 2 and "01_first.ipynb" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_notebook_of_the_project_may_be_named_without_its_folder(monkeypatch):
    ran = []
    monkeypatch.setattr(run, "execute", lambda book, *_: ran.append(book) or 1.0)
    assert run.main(["00_start_here", "--profile", "smoke"]) == 0
    assert ran == [run.ROOT / "notebooks" / "00_start_here.ipynb"]


def test_where_no_notebook_lies_the_projects_own_are_named(tmp_path, capsys):
    assert run.main([str(tmp_path / "README.md")]) == 2
    assert "notebooks/01_unconditional.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-p", "noises", "3"], ["--output", "x"], ["--log", "x"]])
def test_an_option_of_one_notebook_is_refused_with_all(words, capsys):
    assert run.main(["--all", "--plan", *words]) == 2
    assert f"{words[0]} is for one notebook" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--plan"], ["--report"], ["--on", "slurm"], ["--shard", "1/2"],
                                   ["--partition", "a"]])
def test_an_option_of_all_is_refused_with_one_notebook(tmp_path, words, capsys):
    path = notebook(tmp_path / "n.ipynb", "1")
    assert run.main([str(path), *words, "--output", str(tmp_path / "o.ipynb")]) == 2
    assert f"{words[0]} goes with --all" in capsys.readouterr().err
    assert names(tmp_path) == ["n.ipynb"]


SLEEP = "import time; time.sleep(300)"
MOMENTS = {"in a cell": [SLEEP], "between cells": [*["1"] * 300, SLEEP]}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interruption_leaves_no_output(tmp_path, started, moment):
    processes = {}
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        cell = (f"import os\nopen('{how.name}.part', 'w').write(str(os.getpid()))\n"
                f"os.replace('{how.name}.part', '{how.name}')")  # there only when it is whole
        path = notebook(tmp_path / f"{how.name}.ipynb", cell, *MOMENTS[moment])
        words = command(path, "--output", tmp_path / f"out-{how.name}" / "long.ipynb")
        processes[how] = started(words, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    for how, process in processes.items():
        while not (tmp_path / how.name).exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, how)
    for how, process in processes.items():
        said = process.communicate(timeout=60)[1]
        assert process.returncode != 0 and "Traceback" not in said
        out = tmp_path / f"out-{how.name}"
        assert not (out / "long.ipynb").exists() and out.exists() == (how == signal.SIGKILL)
        assert how == signal.SIGKILL or not runs((tmp_path / how.name).read_text())


def runs(pid: str, seconds: float = 10) -> bool:
    """Whether it is still there after that time; what was killed stays until it is waited for."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            os.kill(int(pid), 0)
            time.sleep(0.1)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("ends", [True, False])
def test_an_interruption_is_not_lost_inside_papermill(tmp_path, monkeypatch, ends):
    """What a signal raises in a callback goes nowhere, and the notebook would go on."""
    kernel = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    over = threading.Event()

    def deaf(*_, kernel_manager_class, **__):
        kernel_manager_class().provisioner = SimpleNamespace(process=kernel)
        while kernel.poll() is None or not (ends or over.is_set()):
            with contextlib.suppress(BaseException):
                over.wait(0.05)

    monkeypatch.setattr("papermill.execute_notebook", deaf)
    monkeypatch.setattr(run, "PATIENCE", 2.0)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with errors.ended_by_signals(), open(tmp_path / "log", "w") as log, \
                pytest.raises(SystemExit):
            run.execute(notebook(tmp_path / "n.ipynb"), tmp_path / "out" / "n.ipynb", {}, log)
    finally:
        kernel.kill()
        over.set()
    assert kernel.wait() == -signal.SIGKILL and not (tmp_path / "out").exists()


@pytest.mark.parametrize("number, ending", [(signal.SIGINT, KeyboardInterrupt),
                                            (signal.SIGTERM, SystemExit)])
def test_a_signal_that_was_lost_before_ends_the_notebook_too(tmp_path, number, ending):
    """As one that came while papermill was imported, in a callback of the import."""
    with errors.ended_by_signals(), open(tmp_path / "log", "w") as log:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(1)
        with pytest.raises(ending):
            long = notebook(tmp_path / "n.ipynb", SLEEP)
            run.execute(long, tmp_path / "out" / "n.ipynb", {}, log)
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(number) == (signal.default_int_handler if number == signal.SIGINT
                                        else signal.SIG_DFL)


@pytest.mark.parametrize(("declared", "said"), [(DECLARED, "none"),
                                                (DECLARED + '\ndevice: str = "x"', "cpu")])
def test_a_device_reaches_the_notebooks_that_take_one(tmp_path, declared, said):
    path = notebook(tmp_path / "n.ipynb", "print('on', globals().get('device', 'none'))",
                    parameters=declared)
    done = cli(path, "--device", "cpu", "--output", tmp_path / "o.ipynb")
    assert done.returncode == 0 and f"on {said}" in done.stdout


@pytest.mark.parametrize(("cache", "where"), [("some/cache", Path.cwd()),
                                               ("~/some/cache", Path.home())])
def test_a_relative_cache_is_where_the_command_was_given(cache, where, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPER_UTILS_CACHE", cache)
    source = "from paper_utils.paths import cache_dir; print('in', cache_dir())"
    done = cli(notebook(tmp_path / "n.ipynb", source), "--output", tmp_path / "o.ipynb")
    assert f"in {where / 'some' / 'cache'}" in done.stdout


def test_parameters_are_read_from_their_declarations():
    found = run.parameters(DECLARED)
    assert {name: p.default for name, p in found.items()} == {
        "profile": "smoke", "noises": 4, "scale": 1.0}
    assert found["noises"].parse("10_000") == 10_000
    assert found["profile"].parse("1") == "1"
    assert run.parameters("fast: bool = False")["fast"].parse("true") is True


INJECTED = "# Parameters\nprofile = 'smoke'\n"


@pytest.mark.parametrize("extra", ["", "noises = 9", "scale = 2"])
def test_what_papermill_injects_passes_when_declared(extra):
    run.check_parameters(["import paper_utils", DECLARED, INJECTED + extra, "run.check()"])


@pytest.mark.parametrize(
    ("extra", "said"), [("profle = 'x'", "did you mean 'profile'"), ("noises = 'abc'", "takes int")]
)
def test_what_papermill_injects_is_refused_when_not_declared(extra, said):
    with pytest.raises(UserError, match=said):
        run.check_parameters([DECLARED, INJECTED + extra, "run.check()"])


def test_outside_papermill_nothing_is_checked():
    run.check_parameters([DECLARED, "noises = 'abc'"])
    run.check_parameters()


def test_papermill_itself_refuses_through_the_notebook(tmp_path):
    source = "from paper_utils import run\nrun.check_parameters()\nopen('ran', 'w')"
    path = notebook(tmp_path / "direct.ipynb", source)
    words = [sys.executable, "-m", "papermill", path, tmp_path / "out.ipynb", "-p", "noise", "5"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "did you mean 'noises'" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("seconds", "text"), [(8.24, "8.2 s"), (252.9, "4 min 12 s")])
def test_durations_read_well(seconds, text):
    assert run.duration(seconds) == text


def test_a_kernel_that_dies_is_one_line(tmp_path):
    killed = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")])
    nbformat.write(killed, tmp_path / "killed.ipynb")
    words = [sys.executable, "-m", "paper_utils.run", tmp_path / "killed.ipynb",
             "--output", tmp_path / "out.ipynb"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and "its kernel died" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out.ipynb").exists()


def test_another_failure_of_the_system_is_not_called_a_full_disk(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("papermill.execute_notebook", broken)
    path, out = notebook(tmp_path / "n.ipynb"), tmp_path / "o.ipynb"
    assert run.main([str(path), "--output", str(out)]) == 1
    assert capsys.readouterr().err == "error: [Errno 32] Broken pipe\n"


def test_a_disk_that_is_full_names_the_output(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    out = tmp_path / "out" / "n.ipynb"
    assert run.main([str(notebook(tmp_path / "n.ipynb")), "--output", str(out)]) == 2
    assert capsys.readouterr().err == \
        f"error: cannot write {out} (No space left on device): make room there and run " \
        "it again: models, samples and figures made so far are kept\n"
