"""Distilled students (section 4): are models of a few steps, or one, still reproducible?

A run is a model with a number of steps. A table of runs has a row for each: run, series
('progressive', 'cd', 'ct', 'ict', or the teacher without distillation), steps, evaluations.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations

import pandas as pd
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from paper_utils import descriptors, models, recipes, samplers, scores, zoo
from paper_utils.descriptors import Descriptor
from paper_utils.errors import UserError
from paper_utils.models import BANK, Model
from paper_utils.profiles import Profile
from paper_utils.samplers import Solver
from paper_utils.scores import Hits

TEACHER = "teacher"
UNDISTILLED, FAST = "teacher, DDIM", "teacher, DPM-Solver++"
CONSISTENT = ("cd", "ct", "ict")
TAUGHT = ("progressive-1", "cd")  # the one-step models that learn from the teacher
FEW = (2, 4)  # steps that consistency models are sampled with, beside one
FASTEST = (2, 4, 8)  # steps of the teacher's own fast solver
WIDTHS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.5)  # of the low-pass filters, in pixels

Groups = Mapping[str, Sequence[str]]


def runs(found: Mapping[str, Model], profile: Profile) -> dict[str, Model]:
    """Every student with its steps, and the teacher by Heun, and with as few by DDIM and by a
    multistep solver of second order (Lu et al. 2022), by run.

    found: of models.distilled. Only what is there.
    """
    made, stages = {}, recipes.DISTILLATIONS[profile.name].steps
    if TEACHER in found:
        ddim = [Solver("ddim", 2**k, "cosine") for k in reversed(range(stages.bit_length()))]
        fast = [Solver("dpm-solver++(2m)", steps) for steps in FASTEST]
        made = {TEACHER: found[TEACHER]} | {
            f"{series} {solver.steps}": models.resolved(found[TEACHER], solver,
                                                        f"{series} {solver.steps}")
            for series, solvers in ((UNDISTILLED, ddim), (FAST, fast)) for solver in solvers}
    made |= {name: model for name, model in found.items() if name.startswith("progressive")}
    for name in filter(found.get, CONSISTENT):
        made[name] = found[name]
        for steps in FEW:
            solver = Solver("consistency", steps, "cosine")
            made[f"{name} {steps}"] = models.resolved(found[name], solver, f"{name} {steps}")
    return made


def restarted(model: Model) -> dict[int, Model]:
    """A model that noises its own image again wherever consistency models do, by steps.

    The fresh noise is theirs (samplers.consistency), the way to an image the model's ODE by its own
    solver; of one step its image as it is.
    """
    flow, found = samplers.consistency_function(model.denoiser(), model.solver), {1: model}
    for steps in FEW:
        solver = Solver("consistency", steps, "cosine")
        again = models.resolved(replace(model, denoiser=lambda: flow, spec=None), solver,
                                f"{model.name} {steps}")
        found[steps] = replace(again, evaluations=steps * model.evaluations,
                               identity=again.identity | {"flow": asdict(model.solver)})
    return found


def check(found: Mapping[str, Model]) -> None:
    """UserError where models are missing that the claims on students need."""
    if missing := {TEACHER, "progressive-1", "ct"} - {*found}:
        raise UserError(f"the notebook on students needs {' and '.join(sorted(missing))}: train "
                        "them first, or restore zoo/distillation with git checkout")


def table_of_runs(made: Mapping[str, Model]) -> pd.DataFrame:
    """Columns run, series, steps, evaluations; the teacher by Heun has the series 'teacher'.

    A series is the name of a run less its steps, where they end it: of 'ct 4' or 'progressive-4'.
    """
    rows = []
    for name, model in made.items():
        series = re.sub(rf"[ -]{model.solver.steps}$", "", name)
        rows.append((name, series, model.solver.steps, model.evaluations))
    return pd.DataFrame(rows, columns=["run", "series", "steps", "evaluations"])


def partners(found: Mapping[str, Model], unseen: Mapping[str, Model]) -> dict[str, list[str]]:
    """Groups of models to compare the stages of progressive distillation with, by label."""
    groups = {"first teacher, Heun": [TEACHER] if TEACHER in found else [],
              "other students": [name for name in CONSISTENT if name in found]}
    for family, label in (("U-Net", "U-Nets"), ("transformer", "transformers")):
        groups[label] = [name for name, model in unseen.items() if model.family == family]
    found = {label: names for label, names in groups.items() if names}
    return found | {"Gaussian denoiser": ["gaussian"]}


def sheets(found: Mapping[str, Model], profile: Profile) -> dict[str, Tensor]:
    """The first images of every model of models.distilled, as they ship or else made now."""
    return models.shipped_samples(found, zoo.DISTILLATION, profile.live, profile.shipped)


def samples(made: Mapping[str, Model], profile: Profile) -> dict[str, Tensor]:
    """Images of the first profile.grid_noises noises from every run, uint8 [n, 3, 32, 32]."""
    return {name: models.samples(model, profile.grid_noises) for name, model in made.items()}


# --- agreement ----------------------------------------------------------------------------------

def with_teacher(table: pd.DataFrame, rows: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """Each run's agreement with the teacher's own samples (Heun).

    Columns series, steps, score, low, high, n, shuffled. Raises UserError where rows lack a run of
    the table, or the teacher.
    """
    found = []
    if missing := {TEACHER, *table.run} - {*rows}:
        raise UserError(f"agreement with the teacher needs the rows of {', '.join(sorted(missing))}"
                        " too: make them as those of the others")
    for run in table[table.run != TEACHER].itertuples():
        score, chance = scores.agreement(rows[run.run], rows[TEACHER], hits)
        found.append(score.row(series=run.series, steps=run.steps, shuffled=chance))
    return scores.table_of(found, "series", "steps", "shuffled")


def fresh_pairs(rows: Mapping[str, Tensor], hits: Hits) -> dict[int, pd.DataFrame]:
    """Number of steps (FEW) -> scores.pairwise of the consistency models, the teacher and the
    Gaussian denoiser, which all get the same fresh noise.

    rows: as of `with_fresh_noise`.
    """
    every = (*CONSISTENT, TEACHER, "gaussian")
    return {steps: scores.pairwise({name: rows[f"{name} {steps}"] for name in every
                                    if f"{name} {steps}" in rows}, hits) for steps in FEW}


def over_untaught(rows: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """How much more the TAUGHT agree with the teacher than all others of `rows` do: scores.gains.

    rows: by model, the teacher among them.
    """
    others = [(name, TEACHER) for name in rows if name not in (TEACHER, *TAUGHT)]
    beside = {(name, TEACHER): others for name in TAUGHT if name in rows and others}
    return scores.gains(rows, beside, hits)


def with_fresh_noise(rows: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """Agreement of consistency models of one and of FEW steps, which all get the same fresh noise.

    rows: by run, those of `runs` and of `restarted`. The mean over pairs of what there is: with
    each other, with the teacher and the Gaussian denoiser given the same fresh noise, and with the
    teacher's own image; and of those two given it with each other. Columns what, steps, score, low,
    high, n, shuffled.
    """
    found = []
    for steps in (1, *FEW):
        def run(name: str) -> str:
            return name if steps == 1 else f"{name} {steps}"

        mine = [run(name) for name in CONSISTENT if run(name) in rows]
        kinds = {"each other": list(combinations(mine, 2)),
                 "the teacher": [(name, run(TEACHER)) for name in mine],
                 "Gaussian denoiser": [(name, run("gaussian")) for name in mine],
                 "the teacher's own image": [(name, TEACHER) for name in mine],
                 "teacher and Gaussian": [(run(TEACHER), run("gaussian"))] * bool(mine)}
        for what, names in kinds.items():
            if pairs := [(rows[a], rows[b]) for a, b in names]:
                score, chance = scores.mean_agreement(pairs, hits)
                found.append(score.row(what=what, steps=steps, shuffled=chance))
    return scores.table_of(found, "what", "steps", "shuffled")


def down_the_stages(table: pd.DataFrame, rows: Mapping[str, Tensor], groups: Groups,
                    hits: Hits) -> pd.DataFrame:
    """Agreement of each stage of progressive distillation with the one before and with models.

    groups: partner -> models, whose mean agreement is taken. 'the stage before' is what the stage
    learned from, of the first the teacher with DDIM; left out where it is missing. Columns partner,
    steps, score, low, high, n, shuffled.
    """
    stages, found = table[table.series == "progressive"].sort_values("steps", ascending=False), []
    most = table[table.series == UNDISTILLED].steps.max()
    for stage in stages.itertuples():
        kind = f"{UNDISTILLED} " if 2 * stage.steps == most else "progressive-"
        before = [name for name in [f"{kind}{2 * stage.steps}"] if name in rows]
        own = {"the stage before": before} if before else {}
        for partner, names in (own | dict(groups)).items():
            pairs = [(rows[stage.run], rows[name]) for name in names]
            score, chance = scores.mean_agreement(pairs, hits)
            found.append(score.row(partner=partner, steps=stage.steps, shuffled=chance))
    return scores.table_of(found, "partner", "steps", "shuffled")


# --- the price ----------------------------------------------------------------------------------

def price(table: pd.DataFrame, made: Mapping[str, Model], images: Mapping[str, Tensor],
          features: Mapping[str, Tensor], real: Tensor, real_features: Tensor,
          timed: int = 32) -> pd.DataFrame:
    """What few steps cost: columns run, series, steps, evaluations, FD, sharpness, ms per image.

    FD: Fréchet distance to held-out real images in the descriptor's features. sharpness: see
    `sharpness`, over that of the real images. Milliseconds: of `timed` images at once, here and
    now.
    """
    rows = pd.concat([table[table.run != TEACHER], table[table.run == TEACHER]])
    rows["FD"] = [scores.frechet(features[run], real_features) for run in rows.run]
    sharp = sharpness(real)
    rows["sharpness"] = [sharpness(images[run]) / sharp for run in rows.run]
    rows["ms per image"] = [1_000 * seconds_per_image(made[run], timed) for run in rows.run]
    return rows


def seconds_per_image(model: Model, n: int) -> float:
    """Wall time of one image among n at once, after a first small batch.

    The shortest of three: what else the machine does only adds to it.
    """
    noise, taken = BANK[:n], []
    model.generate(noise[:2])
    for _ in range(3):
        start = time.perf_counter()
        model.generate(noise)
        taken.append(time.perf_counter() - start)
    return min(taken) / n


def low_pass(images: Tensor, width: float) -> Tensor:
    """8-bit images [n, 3, H, W] after a Gaussian filter of that standard deviation, in pixels."""
    if not width:
        return images
    return transforms.gaussian_blur(images, 2 * math.ceil(3 * width) + 1, width)


def sharpness(images: Tensor) -> float:
    """Root mean square, in 8-bit levels, of what a low-pass filter one pixel wide takes away."""
    return scores.rms(images.float() - low_pass(images, 1.0).float())


# --- is it blur? --------------------------------------------------------------------------------

def by_sharpness(images: Mapping[str, Tensor], features: Mapping[str, Tensor],
                 names: Sequence[str], others: Sequence[str], describe: Descriptor, real: Tensor,
                 hits: Hits) -> pd.DataFrame:
    """Mean RP with other models against sharpness (over that of real images): of the teacher after
    low-pass filters of WIDTHS, and of each of `names` as it is.

    images: by name, uint8; features: of them and of the others. Columns who, width (of the
    filter), sharpness, score, low, high, n.
    """
    soft = {width: low_pass(images[TEACHER], width) for width in WIDTHS}
    rows = [(f"{TEACHER}, low-passed", width, mine, descriptors.features(describe, mine))
            for width, mine in soft.items()]
    rows += [(name, 0.0, images[name], features[name]) for name in names]
    found = []
    for who, width, mine, own in rows:
        pairs = [(own, features[other]) for other in others]
        score = scores.proportion(scores.over_pairs(pairs, hits))
        found.append(score.row(who=who, width=width, sharpness=sharpness(mine) / sharpness(real)))
    return scores.table_of(found, "who", "width", "sharpness")


def as_sharp(images: Tensor, sharp: float) -> tuple[float, Tensor]:
    """Width of the filter after which images are that sharp, and the filtered ones.

    0 and the images as they are where they are no sharper. By bisection, up to 8 pixels.
    """
    low, high = 0.0, 8.0
    if sharpness(images) <= sharp:
        return low, images
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if sharpness(low_pass(images, middle)) > sharp else (low, middle)
    return high, low_pass(images, high)


def beyond_blur(images: Mapping[str, Tensor], features: Mapping[str, Tensor],
                names: Sequence[str], others: Sequence[str], describe: Descriptor,
                hits: Hits) -> pd.DataFrame:
    """RP of each student with other models, less that of its teacher blurred to its sharpness.

    images, features: as of `by_sharpness`. Columns who, width (of the teacher's filter; 0 where
    the student is no blurrier), student, blurred, difference (on the same noises), low, high, n.
    """
    found = []
    for name in names:
        width, soft = as_sharp(images[TEACHER], sharpness(images[name]))
        own, form = (scores.over_pairs([(rows, features[other]) for other in others], hits)
                     for rows in (features[name], descriptors.features(describe, soft)))
        gap = scores.paired_difference(own, form)
        found.append(gap.row("difference", who=name, width=width,
                             student=own.double().mean().item(),
                             blurred=form.double().mean().item()))
    return scores.table_of(found, "who", "width", "student", "blurred", "difference")
