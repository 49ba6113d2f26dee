"""What a user reads of a mistake, and the exit codes of the command lines."""

import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.__main__ as bench
from paper_utils import copy_detection, descriptor_training, errors, fleet, report
from paper_utils.errors import UserError
from paper_utils.paths import cache_dir


def raises(error):
    raise error


@pytest.mark.parametrize(("error", "code", "said"), [
    (UserError("no such model"), 2, "error: no such model\n"),
    (PermissionError(13, "no entry", "x"), 1, "error: [Errno 13] no entry: 'x'\n"),
    (ModuleNotFoundError("no", name="papermill"), 1, "error: papermill is not installed: `make` "
     "installs what notebooks need, `make test` also the rest, and pip install -e "
     "'.[notebooks,report,test]' all\n"),
    (KeyboardInterrupt(), 130, "interrupted\n")])
def test_every_end_but_success_is_one_line(error, code, said, capsys):
    assert errors.exit_code(lambda: raises(error)) == code
    assert capsys.readouterr().err == said


def test_a_reader_who_has_seen_enough_is_told_nothing():
    code = ("import sys\nfrom paper_utils import errors\ndef work():\n"
            "    for k in range(100_000): print(k, flush=True)\nsys.exit(errors.exit_code(work))")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 141 and process.stderr.read() == ""


def test_success_is_silent_and_a_defect_keeps_its_traceback(capsys):
    assert errors.exit_code(lambda: None) == 0 and errors.exit_code(lambda: 3) == 3
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ZeroDivisionError):
        errors.exit_code(lambda: 1 / 0)


def test_ipython_shows_the_line_of_a_mistake_and_no_frames(tmp_path, capsys):
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    without_history = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell(config=without_history, ipython_dir=str(tmp_path))
    shell.user_ns["UserError"] = UserError
    shell.run_cell("def deep():\n    raise UserError('give 1 to 4')\ndeep()")
    assert capsys.readouterr().out.strip() == "UserError: give 1 to 4"


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert errors.check_device("cuda") == "cuda" and errors.check_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="'cuda:7' was asked for.*has 2 GPU.*from 'cuda:0'"):
        errors.check_device("cuda:7")


def test_a_gpu_asked_for_where_there_is_none_names_every_way_to_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA GPU: use device='cpu'.*-p device cpu with "
                       "papermill.*ON=\"--device cpu\""):
        errors.check_device("cuda")


def test_of_hundreds_of_names_the_nearest_and_the_first_are_shown():
    valid = [f"model-{k}" for k in range(200)]
    with pytest.raises(UserError, match="did you mean 'model-150'.*model-29 and 170 more$"):
        errors.choose("modl-150", valid, "model")
    with pytest.raises(UserError, match="unknown model 'x': valid are none$"):
        errors.choose("x", [], "model")


@pytest.mark.parametrize(("main", "words"), [
    (fleet.main, ["train", "edm", "--profile", "smoke", "--at-once", "0"]),
    (fleet.main, ["train", "edm", "--profile", "smoke", "--minutes", "-1"]),
    (fleet.main, ["train", "edm", "--minutes", "nan"]),
    (fleet.main, ["add", "x.safetensors", "--made", "x", "--noises", "-3"]),
    (descriptor_training.main, ["--steps", "-3"]),
    (descriptor_training.main, ["--batch", "0"]),
    (copy_detection.main, ["--queries", "0"])])
def test_a_count_that_is_not_above_zero_is_refused_at_once(main, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert f"{words[-2]}: {words[-1]} is not above zero" in capsys.readouterr().err


@pytest.mark.parametrize(("main", "words", "said"), [
    (bench.main, ["--device", "tpu"], "unknown device 'tpu'"),
    (descriptor_training.main, ["--device", "tpu"], "unknown device 'tpu'"),
    (bench.main, ["--device", "mps"], "unknown device 'mps'"),  # has no float64
    (copy_detection.main, ["cifar-cpy", "--out", "OUT/t.csv"], "did you mean 'cifar-copy'"),
    (report.main, ["--profile", "smok"], "did you mean 'smoke'")])
def test_a_mistake_is_one_line_and_exit_code_2(main, words, said, tmp_path, capsys):
    assert main([word.replace("OUT", str(tmp_path)) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run([sys.executable, "-m", "paper_utils.descriptor_training", "--steps", "1",
                           "--out", tmp_path / "file" / "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_the_cache_may_be_named_from_home(monkeypatch):
    monkeypatch.setenv("PAPER_UTILS_CACHE", "~/somewhere")
    assert cache_dir() == Path.home() / "somewhere"
