"""The work of a profile as a graph of jobs: train models, sample them; the notebooks come after.

    python -m paper_utils.jobs sample --section unconditional --profile smoke edm dit

The graph comes from the specifications in recipes.py. What a job makes goes into the artifact
store, where the notebooks find it; models too small for a job of their own share one. A job's
marker says that it is done and what it took (graph.py). The workflow runs what has no marker.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import groupby
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from paper_utils import (artifacts, claims, conditional, contrast, data, files, fine_tuning,
                         inverse, models, networks, operators, profiles, recipes,
                         reconstructions, regimes, students, training)
from paper_utils.errors import check_device, choose, exit_code
from paper_utils.graph import SPEED, Job, kind_of
from paper_utils.models import Model
from paper_utils.profiles import Profile
from paper_utils.run import duration, say

SHORTEST = 10.0  # minutes; smaller tasks of one section share a job
# a step, in forward runs
FORWARDS = {"denoising": 3, "progressive": 5, "cd": 5, "icd": 5, "ct": 4, "ict": 4}

Specs = dict[str, training.Spec | contrast.Spec]


# --- what each notebook takes -------------------------------------------------------------------

@dataclass(frozen=True)
class Study:
    """The models of a notebook.

    specs: those that it is the first to train, by the name of a profile. A job makes the samples of
    these and of `more`; `also` are further ones that it takes. sample makes the samples,
    evaluations is how often the network is evaluated for those of one model.
    """

    specs: Callable[[str], Specs]
    sample: Callable[[dict[str, Model], Profile], object]
    evaluations: Callable[[training.Spec, Profile], float]
    more: Callable[[Profile], Iterable[str]] = lambda profile: ()
    also: Callable[[Profile], Iterable[str]] = lambda profile: ()

    def sampled(self, profile: Profile) -> list[str]:
        """Names of the models whose samples a job makes."""
        return [*self.specs(profile.name), *self.more(profile)]


def _with_guidance(found: dict[str, Model], profile: Profile) -> None:
    conditional.guided_samples(found, conditional.samples(found, profile), profile)


def _restored(found: dict[str, Model], profile: Profile) -> None:
    reconstructions.restored(found, reconstructions.PROBLEMS, reconstructions.held_out(profile),
                             profile)


def _students(found: dict[str, Model], profile: Profile) -> None:
    again = students.restarted(found[students.TEACHER]) if students.TEACHER in found else {}
    students.samples(students.runs(found, profile) | {one.name: one for one in again.values()},
                     profile)
    students.sheets(found, profile)


STUDIES = {  # specs are looked up when called
    "unconditional": Study(
        lambda name: recipes.specs(name) | recipes.contrast_specs(name), models.all_samples,
        lambda spec, p: p.noises * spec.solver.evaluations, more=lambda p: models.ONE_STEP),
    "two_regimes": Study(
        lambda name: recipes.regime_specs(name), regimes.samples,
        lambda spec, p: p.grid_noises * spec.solver.evaluations),
    "conditional": Study(
        lambda name: recipes.conditional_specs(name), _with_guidance,
        lambda spec, p: p.class_noises * spec.solver.evaluations
        * (spec.network_args["num_classes"] + 2 * len(conditional.WEIGHTS) - 2),
        also=lambda p: recipes.specs(p.name)),
    "inverse": Study(
        lambda name: {}, _restored,
        lambda spec, p: 3 * p.measured * p.guided_steps * len(reconstructions.PROBLEMS),
        more=lambda p: p.families),
    "fine_tuning": Study(
        lambda name: recipes.fine_tuning_specs(name), fine_tuning.samples,
        lambda spec, p: p.transfer_noises * spec.solver.evaluations),
    "distillation": Study(
        lambda name: recipes.distillation_specs(name), _students,
        lambda spec, p: p.grid_noises * (spec.solver.evaluations + 2 * spec.solver.steps + (
            sum(students.FEW) * spec.solver.evaluations if spec.name == students.TEACHER else 0)),
        also=lambda p: p.families),
}


# --- what it costs ------------------------------------------------------------------------------

def cost(spec: training.Spec | contrast.Spec) -> tuple[float, float, float]:
    """FLOPs of one forward run of an image, GiB that training keeps for it, GiB of the weights.

    Counted without computing anything. A network of several decoders counts as the one an image
    passes through.
    """
    if isinstance(spec, contrast.Spec):
        return _contrast_cost(spec.kind, spec.width)
    args = dict(spec.network_args)
    kind = "unet" if args.pop("boundaries", None) else spec.network
    return _cost(kind, json.dumps(args))


@lru_cache(maxsize=None)
def _cost(kind: str, args: str) -> tuple[float, float, float]:
    with torch.device("meta"):
        network = networks.build(kind, **json.loads(args))
        conditional_ = getattr(network, "num_classes", 0)
        labels = torch.zeros(1, dtype=torch.long) if conditional_ else None
        return _counted(network, torch.zeros(1, 3, 32, 32), torch.ones(1), labels)


@lru_cache(maxsize=None)
def _contrast_cost(kind: str, width: int) -> tuple[float, float, float]:
    with torch.device("meta"):
        flops, kept, size = _counted(contrast.build(kind, width), torch.zeros(1, contrast.LATENT))
    return 3 * flops, 3 * kept, 2 * size  # with its discriminator or encoder, seen twice


def _counted(network: nn.Module, *inputs) -> tuple[float, float, float]:
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(0 if isinstance(tensor, nn.Parameter) else tensor.nbytes)
        return tensor

    with (FlopCounterMode(display=False) as counter,
          torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)):
        network(*inputs)
    size = sum(p.nbytes for p in network.parameters())
    return counter.get_total_flops(), sum(kept) / 2**30, size / 2**30


# --- the graph ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Task:
    """What a job does for one model; after: models that must be trained before."""

    kind: str
    section: str
    model: str
    after: frozenset[str]
    flops: float
    memory: float


def build(profile: Profile) -> dict[str, Job]:
    """The jobs of a profile by name, each after those it needs; none where the models are shipped.

    A run that is the beginning of a longer one is made on the way of that one, without a job.
    """
    if profile.shipped:
        return {}
    diffusion = recipes.every_spec(profile.name)
    specs: Specs = diffusion | recipes.contrast_specs(profile.name)
    longer = {short: name for name in sorted(diffusion, key=lambda name: diffusion[name].steps)
              for short in recipes.prefixes(diffusion[name], diffusion).values()}
    needs = {section: _needed(study, profile, diffusion, longer)
             for section, study in STUDIES.items()}
    tasks = [_training(section, name, spec) for section, study in STUDIES.items()
             for name, spec in study.specs(profile.name).items() if name not in longer]
    tasks += [_sampling(section, name, specs[name], profile, longer)
              for section, study in STUDIES.items() for name in study.sampled(profile)]
    jobs: dict[str, Job] = {}
    trained_by: dict[str, str] = {}
    for name, group in _grouped(tasks, profile.device):
        if group[0].kind == "train":
            trained_by |= {task.model: name for task in group}
        jobs[name] = _job(name, group, profile, specs, needs, trained_by)
    return jobs


def _needed(study: Study, profile: Profile, specs: Mapping[str, training.Spec],
            longer: Mapping[str, str]) -> set[str]:
    """The models that must be trained for a notebook."""
    named = {*study.sampled(profile), *study.also(profile)}
    return {longer.get(name, name) for name in {*named, *recipes.lineage(named, specs)}}


def _training(section: str, name: str, spec: training.Spec | contrast.Spec) -> _Task:
    flops, kept, size = cost(spec)
    forwards = FORWARDS[getattr(spec, "objective", "denoising")]
    return _Task("train", section, name, frozenset({getattr(spec, "start", "")} - {""}),
                 forwards * flops * spec.images_seen, spec.batch * kept + 6 * size)


def _sampling(section: str, name: str, spec: training.Spec | contrast.Spec, profile: Profile,
              longer: Mapping[str, str]) -> _Task:
    flops, _, size = cost(spec)
    evaluations = (STUDIES[section].evaluations(spec, profile)
                   if isinstance(spec, training.Spec) else profile.noises)
    return _Task("sample", section, name, frozenset({longer.get(name, name)}),
                 evaluations * flops, 1 + size)


def _grouped(tasks: Sequence[_Task], device: str) -> Iterator[tuple[str, list[_Task]]]:
    """Tasks of one kind and section together, until they are worth a job; with the job's name."""
    for (kind, section), part in groupby(tasks, lambda task: (task.kind, task.section)):
        shared, words = 0, [kind] if kind == "train" else [kind, section]
        group: list[_Task] = []
        for task in part:
            group.append(task)
            if sum(one.flops for one in group) / SPEED[kind_of(device)] / 60 >= SHORTEST:
                shared += len(group) > 1
                yield _name(words, section, group, shared), group
                group = []
        if group:
            yield _name(words, section, group, shared + 1), group


def _name(words: Sequence[str], section: str, group: Sequence[_Task], shared: int) -> str:
    return "-".join([*words, group[0].model] if len(group) == 1 else
                    [*dict.fromkeys([*words, section]), "group", str(shared)])


def _job(name: str, group: Sequence[_Task], profile: Profile, specs: Specs,
         needs: Mapping[str, set[str]], trained_by: Mapping[str, str]) -> Job:
    kind, section, names = group[0].kind, group[0].section, tuple(task.model for task in group)
    after = {trained_by[model] for task in group for model in task.after} - {name}
    notebooks = [claims.SECTIONS[section]] if kind == "sample" else [
        claims.SECTIONS[section] for section, wanted in needs.items() if wanted & {*names}]
    return Job(name, kind, section, names, tuple(sorted(after)), tuple(notebooks),
               sum(task.flops for task in group), max(task.memory for task in group),
               _key(kind, section, names, profile, specs))


def _key(kind: str, section: str, names: Sequence[str], profile: Profile, specs: Specs) -> str:
    """A hash of all that decides what the job makes."""
    made = {name: asdict(spec) for name, spec in specs.items() if name in names}
    diffusion = {name: spec for name, spec in specs.items() if isinstance(spec, training.Spec)}
    made |= {name: asdict(spec) for name, spec in recipes.lineage(names, diffusion).items()}
    sizes = asdict(profile) if kind == "sample" else profile.dataset
    text = json.dumps([kind, section, made, sizes, _code()], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:12]


def _code() -> str:
    """Of all that a job runs to make something."""
    return models.training_code() + models.sampling_code() + artifacts.code_version(
        contrast, inverse, operators, reconstructions)


# --- running one --------------------------------------------------------------------------------

def run(kind: str, section: str, names: Sequence[str], profile: Profile,
        device: str) -> dict[str, Model]:
    """Train models, or sample them as the notebook of a section needs them, into the store.

    What is in the store already is not made again, and a training that was killed goes on. Raises
    UserError for an unknown model, section or device, and as models.train does.
    """
    study = STUDIES[choose(section, STUDIES, "section")]
    specs, small = recipes.every_spec(profile.name), recipes.contrast_specs(profile.name)
    sampled = [*study.sampled(profile), *study.also(profile)]
    for name in names:
        choose(name, [*specs, *small], "model")
        if kind == "sample":
            choose(name, sampled, f"model of section {section}")
    check_device(device)
    images = data.load(profile.dataset)
    wanted = recipes.lineage(names, specs)
    if kind == "train":  # with the runs that these pass through
        wanted |= {short: specs[short] for name in names if name in specs
                   for short in recipes.prefixes(specs[name], specs).values()}
    found = models.train_all(wanted, images, device)
    found |= {name: models.train_contrast(name, small[name], images, device)
              for name in names if name in small}
    if kind == "sample":
        study.sample({name: found[name] for name in names}, profile)
    return found


def _timed(options: argparse.Namespace) -> dict:
    """Do the job; what its marker says. The time is that of this process, not of killed ones."""
    started = time.monotonic()
    profile = profiles.get(options.profile)
    found = run(options.kind, options.section, options.models, profile, options.device)
    used = resource.getrusage(resource.RUSAGE_SELF)
    gpu = kind_of(options.device) == "cuda"
    return {"models": options.models, "minutes": (time.monotonic() - started) / 60,
            "CPU minutes": (used.ru_utime + used.ru_stime) / 60,
            "device": torch.cuda.get_device_name(options.device) if gpu else "CPU",
            "weights": [f"{model.identity['weights']}.safetensors" for model in found.values()]}


def main(arguments: list[str] | None = None) -> int:
    """The command line; a user's mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m paper_utils.jobs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("train", "sample"))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--section", required=True)
    parser.add_argument("--profile", required=True, help=", ".join(profiles.PROFILES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--marker", type=Path, help="written when all is done")
    options = parser.parse_args(arguments)
    os.environ.setdefault("PAPER_UTILS_PROGRESS", "lines")
    stem = options.marker.stem if options.marker else options.kind
    name = stem.rpartition("-")[0] or stem

    def work() -> None:
        say(name, "started")
        what = _timed(options)
        if options.marker:
            files.replace_file(options.marker, json.dumps(what, indent=1).encode())
        say(name, duration(60 * what["minutes"]))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
