"""Train models for the zoo, several at once, and add what came of it.

    python -m paper_utils.fleet train edm uvit --profile gpu --device cuda --out runs --minutes 9
    python -m paper_utils.fleet slim runs/edm.safetensors --out FOLDER
    python -m paper_utils.fleet add runs/edm.safetensors --made "one H200, 9 minutes" --replace
    python -m paper_utils.fleet closed optimal gaussian local gaussian-cond gaussian-cond@w2
    python -m paper_utils.fleet guided edm-cond
    python -m paper_utils.fleet restored edm --made "..."
    python -m paper_utils.fleet pack FOLDER       and, on a machine without a network, unpack FOLDER

`train` needs torch, numpy, Pillow and safetensors alone, prints plain lines, writes a checkpoint a
minute and goes on from it when it is called again. A fine-tuning starts from the finished run of
its base in the same folder. `slim` writes what the zoo needs of a checkpoint, an eighth of it: the
averaged weights in half precision. `add` takes either. It samples the sheet of a finished training
and writes zoo.toml; in the place of a model of another recipe with --replace alone; with
--sheet-alone it leaves the weights out, where the zoo has no room for them. `closed` the sheets of
the closed forms, which have no weights, `guided` those of conditional models under guidance,
`restored` those of the inverse problems.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as processes
from PIL import Image

from paper_utils import (artifacts, contrast, data, fetching, files, models, profiles, recipes,
                         training, zoo)
from paper_utils.errors import (UserError, check_device, choose, ended_by_signals, exit_code,
                                positive, raise_lost)
from paper_utils.models import BANK

Run = tuple[int, int, torch.Tensor, Callable[[], None]]  # step, steps, loss, save


@dataclass(frozen=True)
class Section:
    """A folder of the zoo: the models that belong there, and how many noises its sheets have."""

    folder: Path
    specs: Callable[[str], dict[str, training.Spec]]
    noises: int


def sections() -> list[Section]:
    """The folders of the zoo, section 2 first."""
    return [Section(zoo.FOLDER, recipes.specs, 512),
            Section(zoo.REGIMES, recipes.regime_specs, 256),
            Section(zoo.CONDITIONAL, recipes.conditional_specs, 128),
            Section(zoo.FINE_TUNING, recipes.fine_tuning_specs, 128),
            Section(zoo.DISTILLATION, recipes.distillation_specs, 32)]


def section_of(name: str) -> Section:
    """The section that has a model of that name in some profile, by default the first."""
    first, *others = sections()
    return next((section for section in others
                 if any(name in section.specs(profile) for profile in profiles.PROFILES)), first)


def train_one(name: str, profile: str, device: str, out: Path, deadline: float,
              compiled: bool = False, threads: int = 1,
              stopped: Callable[[], bool] = lambda: False) -> None:
    """Train one model until its budget, `deadline` (time.time()) or until `stopped` says so.

    A checkpoint every minute and at the end; at least one step is made.
    """
    torch.set_num_threads(threads)
    diffusion, path = recipes.every_spec(profile), out / f"{name}.safetensors"
    images = data.load(_dataset(name, profile))
    if name in diffusion:
        runs = _diffusion(diffusion[name], images, path, device, diffusion, compiled)
    else:
        runs = _contrast(recipes.contrast_specs(profile)[name], images, path, device)
    saved, step = time.time(), 0
    for step, steps, loss, save in runs:
        late = time.time() > deadline or stopped()
        if late or time.time() - saved > 60 or step == steps:
            save()
            saved = time.time()
            print(f"{name:<14} step {step:>7,} of {steps:,}  loss {float(loss):.4f}", flush=True)
        if late:
            return
    if not step:
        print(f"{name:<14} was finished before: {path}", flush=True)


def _dataset(name: str, profile: str) -> str:
    spec = recipes.every_spec(profile).get(name)
    return spec and spec.dataset or profiles.get(profile).dataset


def _orphaned() -> bool:
    """Whether the process that started this one was killed: nobody waits for the result then, and
    the same command started again would write the same checkpoints."""
    parent = processes.parent_process()
    return parent is not None and not parent.is_alive()


def _child(stop: Event, *arguments) -> None:
    sys.exit(exit_code(
        lambda: train_one(*arguments, stopped=lambda: stop.is_set() or _orphaned())))


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started in here is deaf to what a terminal or SLURM sends to children too: it keeps
    these signals blocked. This process hears those that come meanwhile at the end."""
    numbers, came = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), []
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:  # a thread, as of numpy, may take what is blocked in this one
            signal.signal(number, lambda number, frame: came.append(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _diffusion(spec: training.Spec, images: data.Images, path: Path, device: str,
               known: dict[str, training.Spec], compiled: bool) -> Iterator[Run]:
    """The run itself; where it passes through a shorter one, that one's checkpoint is left too."""
    shorter = recipes.prefixes(spec, known)
    start = None
    if spec.start:
        training.check_teacher(spec, known[spec.start])
        start = _start(path.with_name(f"{spec.start}.safetensors"), known)
    for run in training.train(spec, spec.subset(images), path, device, start, compiled):
        if run.step in shorter:
            name = shorter[run.step]
            training.save_checkpoint(run, path.with_name(f"{name}.safetensors"), known[name])
        yield run.step, spec.steps, run.loss, lambda: training.save_checkpoint(run, path)


def _start(path: Path, known: dict[str, training.Spec]) -> artifacts.Tensors:
    """The weights of a finished run, in the precision they ship in; else those that shipped."""
    if not path.exists():
        return _shipped_start(path, known[path.stem])
    tensors, metadata = _checkpoint(path)
    if not known[path.stem].is_recorded_as(json.loads(metadata["spec"])):
        raise UserError(f"{path} is of another recipe than {path.stem} of this profile: give --out "
                        "another folder")
    if int(tensors["step"]) < (steps := known[path.stem].steps):
        raise UserError(f"{path} is at step {int(tensors['step'])} of {steps}: finish it first")
    return artifacts.float32(zoo.halved(artifacts.below("ema.", tensors)))


def _shipped_start(path: Path, spec: training.Spec) -> artifacts.Tensors:
    folder = section_of(path.stem).folder
    row = zoo.added(folder).get(path.stem)
    if row:
        weights, values = row.load_weights()
        if spec.is_recorded_as(values):
            return weights
    raise UserError(f"{path} is missing: train {path.stem} first")


def _contrast(spec: contrast.Spec, images: data.Images, path: Path, device: str) -> Iterator[Run]:
    before = contrast.load_checkpoint(spec, images, path)
    for state in contrast.train(spec, images, before, device):
        losses = [v for k, v in state.items() if k.startswith("loss")]
        yield (int(state["step"]), spec.steps, sum(losses),
               lambda: contrast.save_checkpoint(path.stem, spec, images, state, path))


def train(options: argparse.Namespace) -> None:
    """Train the named models, --at-once of them at a time, each in a process of its own.

    They share the cores, on which a wide network alone trains 1.5 times as fast on two as on one.
    Ctrl-C, SIGTERM and SIGHUP end every training after its step, with a checkpoint; a second one
    does not wait.
    """
    check_device(options.device)
    if options.compile:
        training.check_compiler(torch.device(options.device))
    known = recipes.every_spec(options.profile) | recipes.contrast_specs(options.profile)
    waiting = [choose(name, known, "model") for name in dict.fromkeys(options.models)]
    threads = max(torch.get_num_threads() // min(options.at_once, len(waiting)), 1)
    files.check_writable(options.out)
    for dataset in {_dataset(name, options.profile) for name in waiting}:
        fetching.ensure(dataset, ["train"])  # once, not by every training at the same time
    deadline = time.time() + 60 * options.minutes
    spawn, running, failed = processes.get_context("spawn"), [], False
    stop = spawn.Event()
    try:
        while waiting or running:
            while waiting and len(running) < options.at_once:
                child = spawn.Process(target=_child, args=(
                    stop, waiting.pop(0), options.profile, options.device, options.out, deadline,
                    options.compile, threads))
                with _deaf():
                    child.start()
                    running.append(child)
            time.sleep(0.5)
            raise_lost()
            ended = [p for p in running if not p.is_alive()]
            running = [p for p in running if p not in ended]
            failed = failed or any(p.exitcode for p in ended)
    except (KeyboardInterrupt, SystemExit):
        stop.set()
        print(f"stopping: the same command goes on from the checkpoints in {options.out}",
              file=sys.stderr, flush=True)
        try:
            for process in running:
                process.join()
        except (KeyboardInterrupt, SystemExit):
            for process in running:
                process.kill()
        raise
    if failed:
        raise UserError("a training failed (its error is above): mend it and run the same command "
                        f"again, the checkpoints are in {options.out}")


def slim(options: argparse.Namespace) -> None:
    """Write the averaged weights of checkpoints, as the zoo stores them, into another folder."""
    for path in options.checkpoints:
        tensors, metadata = _checkpoint(path)
        target = options.out / path.name
        if target.resolve() == path.resolve():
            raise UserError(f"{path} would replace itself, and the run could not go on: give --out "
                            "another folder")
        if not (averaged := artifacts.below("ema.", tensors)):
            raise UserError(f"{path} has no averaged weights (a GAN or VAE): take it as it is")
        kept = {f"ema.{k}": v for k, v in zoo.halved(averaged).items()} | {"step": tensors["step"]}
        files.replace_file(target, artifacts.save(kept, metadata))


def _checkpoint(path: Path) -> tuple[artifacts.Tensors, dict[str, str]]:
    tensors, metadata = artifacts.load_tensors(path)
    if "spec" not in metadata or "step" not in tensors:
        raise UserError(f"{path} is no checkpoint of `fleet train`: train there what "
                        "the zoo is to have")
    return tensors, metadata


def add(options: argparse.Namespace) -> None:
    """Sample the sheet of a finished training and put it and the weights into the zoo.

    The sheet is sampled from the weights as they are shipped, in half precision.
    """
    if options.noises == 1:
        raise UserError("--noises 1: give at least 2, since one image does not show whether the "
                        "model has collapsed")
    tensors, metadata = _checkpoint(options.checkpoint)
    values = json.loads(metadata["spec"])
    kind = "contrast" if "kind" in values else "diffusion"
    if kind == "contrast":
        spec = contrast.Spec(**{k: v for k, v in values.items() if k != "images"})
        name, weights = options.checkpoint.stem, contrast.trained(spec, tensors).state_dict()
    else:
        spec = training.Spec.from_json(metadata["spec"])
        name, weights = options.checkpoint.stem, artifacts.below("ema.", tensors)
    if int(tensors["step"]) < spec.steps:
        raise UserError(f"{options.checkpoint} is at step {int(tensors['step'])} of {spec.steps}: "
                        "finish its training first")
    section = section_of(name)
    folder = section.folder
    if options.sheet_alone and kind != "diffusion":
        raise UserError(f"{name} ships with its weights: --sheet-alone is for diffusion models")
    if not options.replace:
        _check_replaced(name, folder, spec, values)
    start = metadata.get("start", "")
    if start:  # only what trained, on top of its start
        chosen = training.trained_names(training.build(spec).network)
        weights = {name: weights[name] for name in chosen}
    weights = {k: v.to(weights[k].dtype) for k, v in zoo.halved(weights).items()}
    row = zoo.Entry(name, kind, "", "", 0, BANK.name, options.made, str(options.checkpoint),
                    start=start, folder=folder)
    model = models.assembled(row, values, weights)
    noises = options.noises or section.noises
    samples = data.to_bytes(model.generate(BANK[:noises], name))
    if samples.float().std(0).mean() < 1:
        raise UserError(f"{name} makes the same image from every noise: it has collapsed, so it is "
                        "not added; train it again")
    shipped = None if options.sheet_alone else weights
    zoo.add(name, kind, samples, BANK, options.made, shipped, values, folder,
            metadata.get("subset", ""), start)
    what = "" if shipped is None else "weights and "
    print(f"{name}: {what}{noises} samples added to {folder.name}/")


def _check_replaced(name: str, folder: Path, spec: training.Spec | contrast.Spec,
                    values: dict) -> None:
    row = zoo.added(folder).get(name)
    if not row:
        return
    recorded = row.load_spec()
    same = spec.is_recorded_as(recorded) if isinstance(spec, training.Spec) else recorded == values
    if not same:
        raise UserError(f"{folder.name}/ has another recipe for {name} ({row.made}): give "
                        "--replace to put this one in its place")


def _check_noises(noises: int, name: str, folder: Path) -> None:
    row = zoo.added(folder).get(name)
    if row and noises < row.noises:
        raise UserError(f"{folder.name}/ has {row.noises} noises of {name}: give --noises as many, "
                        "or leave it out")


def closed(options: argparse.Namespace) -> None:
    """Sample the sheets of closed forms of the laptop profile's training images."""
    from paper_utils import conditional  # with pandas, which `train` does without

    profile = profiles.get("laptop")
    images = data.load(profile.dataset)
    of_classes = [conditional.gaussian(images), *(conditional.guided_gaussian(images, weight) for
                                                  weight in conditional.CONTROLLED if weight > 1)]
    places = {zoo.FOLDER: [*models.closed_forms(images, profile.bag).values()],
              zoo.CONDITIONAL: of_classes}
    known = {model.name: (model, section) for section in sections()
             for model in places.get(section.folder, ())}
    for name in [choose(name, known, "closed form") for name in options.models]:
        model, section = known[name]
        folder, noises = section.folder, options.noises or section.noises
        _check_noises(noises, name, folder)
        samples = data.to_bytes(model.generate(BANK[:noises], name))
        zoo.add(name, "closed form", samples, BANK, f"{model.architecture}; {model.solver}",
                folder=folder)
        print(f"{name}: {noises} noises added to {folder.name}/")


def guided(options: argparse.Namespace) -> None:
    """Sample the sheets of conditional models of the zoo at every guidance weight but 1."""
    from paper_utils import conditional

    images = data.load(profiles.get("laptop").dataset)
    found = conditional.trained(profiles.get("laptop"), images)
    for name in [choose(name, found, "conditional model") for name in options.models]:
        one = found[name]
        for model in (conditional.guided(one, w) for w in conditional.WEIGHTS if w != 1):
            noises = options.noises or section_of(name).noises
            _check_noises(noises, model.name, zoo.CONDITIONAL)
            samples = data.to_bytes(model.generate(BANK[:noises], model.name))
            zoo.add(model.name, "guided", samples, BANK, f"{name}; {model.solver}",
                    folder=zoo.CONDITIONAL, start=one.identity["weights"])
            print(f"{model.name}: {noises} samples added to conditional/")


def restored(options: argparse.Namespace) -> None:
    """Make the sheets of section 4's inverse problems: what models of section 2 restored."""
    from paper_utils import reconstructions

    profile = profiles.get("laptop")
    images, training_set = reconstructions.held_out(profile), data.load(profile.dataset)
    closed = reconstructions.references(training_set, profile)
    known = [*profile.families, *closed]
    for name in [choose(name, known, "model of the inverse problems") for name in options.models]:
        model = closed[name] if name in closed else models.shipped(name)
        answers = [reconstructions.answer(model, problem, images, profile.guided_steps)
                   for problem in reconstructions.PROBLEMS]
        zoo.add(name, "restored", torch.stack(answers, 1), BANK, options.made, folder=zoo.INVERSE,
                start=model.identity.get("weights", ""),
                problems=reconstructions.question(images, profile.guided_steps))
        print(f"{name}: {len(answers)} problems of {len(images)} images added to inverse/")


# --- taking CIFAR-10 to a machine without a network ---------------------------------------------

SHEET = 10_000  # images, about 17 MB


def pack(folder: Path) -> None:
    """Write the training images as lossless WebP sheets, and at the end labels beside them."""
    files.check_writable(folder)
    images = data.load("cifar10", "train")
    for k, part in enumerate(images.pixels.split(SHEET)):
        picture, file = Image.fromarray(data.tiled(part, int(len(part) ** 0.5))), BytesIO()
        picture.save(file, "webp", lossless=True, method=0)
        files.replace_file(folder / f"train_{k}.webp", file.getvalue())
    np.save(file := BytesIO(), images.labels.numpy().astype(np.uint8))
    files.replace_file(folder / "labels.npy", file.getvalue())


def unpack(folder: Path) -> None:
    """Put the sheets that `pack` wrote into the cache; UserError if they are not CIFAR-10."""
    again = "copy all that `fleet pack` wrote there again"
    sheets = sorted(folder.glob("train_*.webp"))
    if not sheets or not (folder / "labels.npy").exists():
        raise UserError(f"{folder} has no train_*.webp with labels.npy: make them by `fleet pack`")
    try:
        labels = np.load(folder / "labels.npy")
        pictures = [np.array(Image.open(path)) for path in sheets]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder} has a file that is not whole ({error}): {again}") from None
    images = torch.cat([data.untiled(picture, len(picture) // 32) for picture in pictures])
    pixels = images.permute(0, 2, 3, 1).numpy()
    fetching.check(pixels, labels, "train", f"{folder}, of {len(sheets)} sheets,", again)
    fetching.keep("cifar10", lambda scratch: {"train": (pixels, labels)})


def main(arguments: list[str] | None = None) -> int:
    """The command line; a user's mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m paper_utils.fleet", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)

    def adds(action: Callable) -> argparse.ArgumentParser:
        return actions.add_parser(action.__name__, help=action.__doc__.splitlines()[0],
                                  description=action.__doc__)

    training_ = adds(train)
    training_.add_argument("models", nargs="+")
    training_.add_argument("--profile", required=True, help=", ".join(profiles.PROFILES))
    training_.add_argument("--device", default="cpu")
    training_.add_argument("--out", type=Path, default=Path("runs"))
    training_.add_argument("--minutes", type=positive(float), default=float("inf"))
    training_.add_argument("--at-once", type=positive(int), default=1)
    training_.add_argument("--compile", action="store_true",
                           help="diffusion models by torch.compile, on a GPU as CUDA graphs")
    training_.set_defaults(action=train)
    slimming = adds(slim)
    slimming.add_argument("checkpoints", nargs="+", type=Path)
    slimming.add_argument("--out", type=Path, required=True)
    slimming.set_defaults(action=slim)
    adding = adds(add)
    adding.add_argument("checkpoint", type=Path)
    adding.add_argument("--replace", action="store_true", help="a model of another recipe too")
    adding.add_argument("--sheet-alone", action="store_true",
                        help="without the weights, where the zoo has no room for them")
    adding.set_defaults(action=add)
    sheets = {}
    for action in (closed, guided, restored):
        sheets[action.__name__] = sheet = adds(action)
        sheet.add_argument("models", nargs="+")
        sheet.set_defaults(action=action)
    for told in (adding, sheets["restored"]):
        told.add_argument("--made", required=True, help="how it was made, for zoo.toml")
    for sampling in (adding, sheets["closed"], sheets["guided"]):
        sampling.add_argument("--noises", type=positive(int), default=0,
                              help="default: that of its folder")
    for carry in (pack, unpack):
        moving = adds(carry)
        moving.add_argument("folder", type=Path)
        moving.set_defaults(action=lambda options, carry=carry: carry(options.folder))
    options = parser.parse_args(arguments)

    def work() -> None:
        options.action(options)

    with ended_by_signals():
        return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
