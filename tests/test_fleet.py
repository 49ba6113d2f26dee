"""Training for the zoo and adding to it, on the bundled images and a zoo of the test's own."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from paper_utils import (artifacts, conditional, contrast, data, fetching, fleet, models, recipes,
                         tables, training, zoo)
from paper_utils.errors import UserError, ended_by_signals
from paper_utils.noise import NoiseBank
from paper_utils.paths import cache_dir


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    for function in (zoo.add, zoo.entries, zoo.entry):
        monkeypatch.setattr(function, "__defaults__", tuple(
            tmp_path / "zoo" if str(d).endswith("zoo") else d for d in function.__defaults__))
    (tmp_path / "zoo").mkdir()
    return tmp_path


def forever() -> float:
    return float("inf")


@pytest.mark.parametrize("name", ["edm", "vae-8"])
def test_a_trained_model_enters_the_zoo_and_makes_its_sheet_again(name, folder, capsys):
    fleet.train_one(name, "smoke", "cpu", folder, forever())
    path = folder / f"{name}.safetensors"
    assert fleet.main(["add", str(path), "--made", "by a test", "--noises", "5"]) == 0
    row = zoo.entry(name, folder / "zoo")
    again = data.to_bytes(models.shipped(name, folder / "zoo").generate(NoiseBank()[:5]))
    sheet = row.load_sheet()
    assert (again.short() - sheet.short()).abs().max() <= 1
    assert row.made == "by a test" and sheet.unique(dim=0).shape[0] == 5


def test_a_training_goes_on_where_it_stopped(folder, capsys):
    fleet.train_one("edm", "smoke", "cpu", folder, 0.0)  # a deadline that has passed: one step
    path = folder / "edm.safetensors"
    assert int(artifacts.load_tensors(path)[0]["step"]) == 1
    assert fleet.main(["add", str(path), "--made", "too early"]) == 2
    assert "finish its training first" in capsys.readouterr().err
    assert not (folder / "zoo" / "zoo.toml").exists()
    fleet.train_one("edm", "smoke", "cpu", folder, forever())
    stopped = artifacts.load_tensors(path)[0]
    (folder / "straight").mkdir()
    fleet.train_one("edm", "smoke", "cpu", folder / "straight", forever())
    straight = artifacts.load_tensors(folder / "straight" / "edm.safetensors")[0]
    assert all(torch.equal(stopped[k], straight[k]) for k in straight)


@pytest.fixture
def endless(folder, started) -> tuple[subprocess.Popen, int]:
    """A `fleet train` that has no end in a session of its own, and its child."""
    script = folder / "main.py"
    script.write_text(
        "import sys\n"
        "from dataclasses import replace\n"
        "from paper_utils import fleet, recipes\n"
        "endless = replace(recipes.SCALES['smoke'], unet_budget=10**9)\n"
        "recipes.SCALES['smoke'] = endless\n"
        "if __name__ == '__main__':\n"
        f"    words = ['train', 'edm', '--profile', 'smoke', '--out', {str(folder)!r}]\n"
        "    sys.exit(fleet.main(words))\n")
    command = started([sys.executable, script], cwd=folder, stderr=subprocess.PIPE, text=True)
    deadline, found = time.monotonic() + 300, []
    while not found:
        assert time.monotonic() < deadline and command.poll() is None
        time.sleep(0.2)
        found = subprocess.run(["pgrep", "-P", str(command.pid), "-f", "spawn_main"],
                               capture_output=True, text=True).stdout.split()
    return command, int(found[0])


@pytest.mark.slow
def test_trainings_stop_with_the_command_that_started_them(folder, endless):
    """A killed command leaves its checkpoint, and no process that would write to it later."""
    command, child = endless
    command.kill()
    command.wait()
    for _ in range(600):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
    assert artifacts.load_tensors(folder / "edm.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("number, code, last", [(signal.SIGINT, 130, ["interrupted"]),
                                                (signal.SIGTERM, 143, [])])
def test_an_interrupted_training_writes_its_checkpoint_and_no_traceback(number, code, last, folder,
                                                                        endless):
    command, child = endless
    os.killpg(command.pid, number)  # as a terminal or SLURM does: to the children too
    said = command.communicate(timeout=120)[1].splitlines()
    assert command.returncode == code and not Path(f"/proc/{child}").exists()
    assert said[0].startswith("stopping: ") and str(folder) in said[0] and said[1:] == last
    assert int(artifacts.load_tensors(folder / "edm.safetensors")[0]["step"]) >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_training_starts_is_heard_after_that_and_not_by_the_training(number):
    code = f"import os; os.kill(os.getpid(), {int(number)}); print('deaf')"
    with pytest.raises((KeyboardInterrupt, SystemExit)), ended_by_signals():
        with fleet._deaf():
            os.kill(os.getpid(), number)
            said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout
    assert said == b"deaf\n" and not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_where_nothing_can_be_written_is_said_before_a_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert fleet.main(["train", "edm", "--profile", "smoke", "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert "give a path where you can write" in error and error.count("\n") == 1


def test_images_are_fetched_once_and_before_the_trainings_start(tmp_path, monkeypatch, capsys):
    def unreachable(name: str, splits: list[str]):
        raise UserError(f"{name} could not be fetched: check the network")

    monkeypatch.setattr(fetching, "ensure", unreachable)
    names = [*recipes.specs("laptop")][:2]
    assert fleet.main(["train", *names, "--profile", "laptop", "--at-once", "2", "--out",
                       str(tmp_path)]) == 2
    assert capsys.readouterr().err == ("error: cifar10 could not be fetched: check the network\n")


def test_an_unknown_model_is_one_line(capsys):
    assert fleet.main(["train", "emd", "--profile", "smoke"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'edm'" in error and error.count("\n") == 1


def test_a_finished_training_says_so(folder, capsys):
    for _ in range(2):
        fleet.train_one("edm", "smoke", "cpu", folder, forever())
    *_, trained, again = capsys.readouterr().out.splitlines()
    assert "step" in trained and again.startswith("edm ") and "was finished before" in again


@pytest.mark.parametrize("name", ["edm", "vae-8", "unet-8-n4"])
def test_a_diverged_training_keeps_the_checkpoint_it_had(name, folder, monkeypatch):
    fleet.train_one(name, "smoke", "cpu", folder, 0.0)
    before = (folder / f"{name}.safetensors").read_bytes()
    loss, descend = training.Denoising.__call__, contrast._Bench.descend
    monkeypatch.setattr(training.Denoising, "__call__", lambda *words: torch.nan * loss(*words))
    monkeypatch.setattr(contrast._Bench, "descend",
                        lambda self, net, loss: descend(self, net, torch.nan * loss))
    with pytest.raises(UserError, match=f"{name}.* has diverged .*smaller learning rate"):
        fleet.train_one(name, "smoke", "cpu", folder, forever())
    assert (folder / f"{name}.safetensors").read_bytes() == before
    assert [path.stem for path in folder.glob("*.safetensors")] == [name]  # no shorter run's either


def test_weights_that_overflow_in_the_last_step_are_not_kept(folder, monkeypatch):
    """The loss is that of before the step."""
    spec = replace(recipes.specs("smoke")["edm"], learning_rate=1e38, warmup=0)
    run = training.Training(spec, spec.subset(data.load("bundled")))
    path = folder / "edm.safetensors"
    run.advance()
    assert run.loss.isfinite()
    with pytest.raises(UserError, match="has diverged"):
        training.save_checkpoint(run, path)
    assert not path.exists()


def test_a_model_of_another_recipe_is_replaced_only_when_asked(folder, monkeypatch, capsys):
    fleet.train_one("edm", "smoke", "cpu", folder, forever())
    add = ["add", str(folder / "edm.safetensors"), "--made", "by a test", "--noises", "5"]
    assert fleet.main(add) == fleet.main(add) == 0  # the same again
    row = zoo.entries(folder / "zoo")["edm"]
    weights, values = row.load_weights()
    zoo.add("edm", "diffusion", row.load_sheet(), NoiseBank(), "before", weights,
            values | {"learning_rate": 0.5}, folder / "zoo")
    capsys.readouterr()
    assert fleet.main(add) == 2
    assert "has another recipe for edm (before): give --replace" in capsys.readouterr().err
    assert zoo.entries(folder / "zoo")["edm"].made == "before"
    assert fleet.main([*add, "--replace"]) == 0
    assert zoo.entries(folder / "zoo")["edm"].made == "by a test"


def test_a_model_may_ship_as_its_sheet_alone(folder, capsys):
    """It has its images and all that its recipe says, and refuses to make more of them."""
    fleet.train_one("edm", "smoke", "cpu", folder, forever())
    add = ["add", str(folder / "edm.safetensors"), "--made", "by a test", "--noises", "5"]
    assert fleet.main([*add, "--sheet-alone"]) == fleet.main([*add, "--sheet-alone"]) == 0
    assert sorted(p.name for p in (folder / "zoo").iterdir()) == ["edm.png", "zoo.toml"]
    specs, images = {"edm": recipes.specs("smoke")["edm"]}, data.load("bundled")
    found = models.shipped_by(specs, folder / "zoo", images)
    sheets = models.shipped_samples(found, folder / "zoo", 5, shipped=True)
    assert tables.check_sheets(found, sheets, live=2).empty
    assert found["edm"].parameters > 0 and found["edm"].spec == specs["edm"]
    for ask in (found["edm"].denoiser, lambda: models.samples(found["edm"], 6)):
        with pytest.raises(UserError, match="only the 5 images of edm.png ship, .* train it"):
            ask()
    other = {"edm": replace(specs["edm"], learning_rate=0.5)}
    with pytest.raises(UserError, match="edm.png was trained by another recipe"):
        models.shipped_by(other, folder / "zoo", images)
    with pytest.raises(UserError, match="edm.png belongs to another subset"):
        models.shipped_by(specs, folder / "zoo", replace(images, pixels=images.pixels.flip(0)))
    assert fleet.main(add) == 0  # now with its weights
    assert not models.shipped_by(specs, folder / "zoo", images)["edm"].sheet_alone
    assert fleet.main([*add, "--sheet-alone"]) == 0
    assert sorted(p.name for p in (folder / "zoo").iterdir()) == ["edm.png", "zoo.toml"]
    with pytest.raises(UserError, match="edm ships without weights"):
        zoo.entries(folder / "zoo")["edm"].load_weights()


def test_a_slim_checkpoint_enters_the_zoo_as_the_whole_one_does(folder, capsys):
    fleet.train_one("edm", "smoke", "cpu", folder, forever())
    path, small = folder / "edm.safetensors", folder / "small" / "edm.safetensors"
    assert fleet.main(["slim", str(path), "--out", str(small.parent)]) == 0
    assert small.stat().st_size < path.stat().st_size / 6
    for which in (path, small):
        assert fleet.main(["add", str(which), "--made", "by a test", "--noises", "5"]) == 0
        row = zoo.entries(folder / "zoo")["edm"]
        found = row.load_weights()[0], row.load_sheet()
        expected = found if which == path else expected
    assert all(torch.equal(found[0][k], v) for k, v in expected[0].items())
    assert torch.equal(found[1], expected[1])
    capsys.readouterr()
    assert fleet.main(["slim", str(path), "--out", str(folder)]) == 2
    assert "another folder" in capsys.readouterr().err
    assert fleet.main(["slim", str(folder), "--out", str(small.parent)]) == 2
    assert f"{folder} is a folder: give a safetensors file" in capsys.readouterr().err


def test_a_slim_checkpoint_is_nothing_to_go_on_from(folder):
    fleet.train_one("edm", "smoke", "cpu", folder, 0.0)
    path, small = folder / "edm.safetensors", folder / "small"
    assert fleet.main(["slim", str(path), "--out", str(small)]) == 0
    with pytest.raises(UserError, match="averaged weights of a run alone"):
        fleet.train_one("edm", "smoke", "cpu", small, forever())


def test_without_a_compiler_nothing_starts(monkeypatch, folder, capsys):
    monkeypatch.setattr(fleet.training.shutil, "which", lambda name: None)
    command = ["train", "edm", "--profile", "smoke", "--compile", "--out", str(folder / "runs")]
    assert fleet.main(command) == 2
    assert "install g++" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_training_imports_without_the_notebooks_packages():
    """A GPU machine has torch, numpy, Pillow and safetensors, and no more."""
    import subprocess

    absent = ["pandas", "matplotlib", "seaborn", "tqdm", "torchvision", "diffusers", "IPython"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import paper_utils.fleet"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_image_says_nothing_of_a_collapse(folder, capsys):
    fleet.train_one("edm", "smoke", "cpu", folder, forever())
    path = str(folder / "edm.safetensors")
    assert fleet.main(["add", path, "--made", "by a test", "--noises", "1"]) == 2
    assert "--noises 1: give at least 2" in capsys.readouterr().err
    assert not (folder / "zoo" / "zoo.toml").exists()


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("how", ["full", "a file"])
def test_sheets_that_cannot_be_written_leave_nothing_that_looks_packed(how, tmp_path, monkeypatch,
                                                                       capsys):
    bundled, target = data.load("bundled"), tmp_path / "sheets"
    monkeypatch.setattr(data, "load", lambda *words: bundled)
    if how == "full":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        target.write_text("")
    assert fleet.main(["pack", str(target)]) == 2
    error = capsys.readouterr().err
    advice = "make room there" if how == "full" else "give a path where you can write"
    assert error.startswith(f"error: cannot write {target}") and error.endswith(f"{advice}\n")
    assert target.is_file() or not list(target.iterdir())


def test_help_says_what_each_action_does_and_names_the_profiles(capsys):
    for words in (["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit):
            fleet.main(words)
    said = " ".join(capsys.readouterr().out.split())
    for action in ("train", "slim", "add", "closed", "guided", "restored", "pack", "unpack"):
        assert f" {action} {getattr(fleet, action).__doc__.splitlines()[0].split()[0]} " in said
    assert "smoke, laptop, gpu, paper" in said


def test_packed_sheets_are_refused_unless_they_are_cifar10(tmp_path, capsys):
    assert fleet.main(["unpack", str(tmp_path)]) == 2
    assert "fleet pack" in capsys.readouterr().err


@pytest.mark.skipif(not (cache_dir() / "cifar10_train.npz").exists(),
                    reason="CIFAR-10 is not in the cache")
def test_cifar10_travels_as_sheets(tmp_path, monkeypatch, capsys):
    here = data.load("cifar10").hash
    fleet.pack(tmp_path)
    monkeypatch.setenv("PAPER_UTILS_CACHE", str(tmp_path / "cache"))
    labels, last = tmp_path / "labels.npy", tmp_path / "train_4.webp"
    for path, left in ((labels, 100), (labels, 0), (last, 1000)):  # a transfer that was cut off
        whole = path.read_bytes()
        path.write_bytes(whole[:left])
        assert fleet.main(["unpack", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "again" in error and "fetched" not in error and error.count("\n") == 1
        path.write_bytes(whole)
    last.rename(tmp_path / "later")
    assert fleet.main(["unpack", str(tmp_path)]) == 2
    assert "of 4 sheets" in capsys.readouterr().err
    (tmp_path / "later").rename(last)
    assert fleet.main(["unpack", str(tmp_path)]) == 0
    found = data.load("cifar10")
    assert found.hash == here
    assert json.loads(json.dumps(found.labels[:3].tolist())) == [6, 9, 9]


@pytest.mark.parametrize("words", [
    ["closed", "gaussian", "gausian"], ["guided", "edm-cond", "emd-cond"],
    ["restored", "edm", "emd", "--made", "in a test"]])
def test_a_misspelt_name_ends_the_command_before_the_first_sheet(words, monkeypatch, capsys):
    def sample(*_, **__):
        raise AssertionError("a sheet was made")

    bundled = data.load("bundled")
    monkeypatch.setattr(data, "load", lambda *_: bundled)
    monkeypatch.setattr(models, "shipped", sample)
    monkeypatch.setattr(models.samplers, "sample_gaussian", sample)
    monkeypatch.setattr(conditional, "trained", lambda *_: {"edm-cond": SimpleNamespace()})
    monkeypatch.setattr(conditional, "guided", sample)
    assert fleet.main(words) == 2
    assert f"did you mean '{words[1]}'" in capsys.readouterr().err


def test_sheets_of_closed_forms_go_where_their_section_looks_for_them(folder, monkeypatch):
    bundled, place = data.load("bundled"), folder / "zoo" / "conditional"
    monkeypatch.setattr(data, "load", lambda *_: bundled)
    monkeypatch.setattr(zoo, "CONDITIONAL", place)
    names = ["gaussian", "gaussian-cond", "gaussian-cond@w2"]
    assert fleet.main(["closed", *names, "--noises", "2"]) == 0
    assert list(zoo.entries(folder / "zoo")) == names[:1] and list(zoo.entries(place)) == names[1:]
    assert zoo.entry("gaussian-cond", place).load_sheet().shape == (2, 10, 3, 32, 32)
    made = conditional.guided_gaussian(bundled, 2.0).generate(NoiseBank()[:2])
    row = zoo.entry("gaussian-cond@w2", place)
    assert torch.equal(row.load_sheet(), data.to_bytes(made)) and "weight 2" in row.made


def test_a_shipped_sheet_is_not_replaced_by_a_smaller_one(monkeypatch, tmp_path):
    row = SimpleNamespace(noises=128)
    monkeypatch.setattr(zoo, "added", lambda folder: {"edm-cond@w2": row})
    fleet._check_noises(128, "edm-cond@w2", tmp_path)
    fleet._check_noises(1, "new", tmp_path)
    with pytest.raises(UserError, match="has 128 noises of edm-cond@w2: give --noises as many"):
        fleet._check_noises(127, "edm-cond@w2", tmp_path)
