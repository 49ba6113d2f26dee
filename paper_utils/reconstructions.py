"""The inverse problems of section 4 and appendix F: do different models restore the same image?

Images are uint8 [n, 3, H, W], measured and restored once by every model from the same noises.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from paper_utils import (artifacts, data, descriptors, inverse, models, operators, scores, tables,
                         zoo)
from paper_utils.denoisers import GaussianDenoiser
from paper_utils.descriptors import Descriptor
from paper_utils.errors import UserError
from paper_utils.inverse import Diverged, Guidance
from paper_utils.models import BANK, Model
from paper_utils.operators import Measurement, Operator, Task
from paper_utils.precision import exact
from paper_utils.profiles import Profile
from paper_utils.samplers import Solver
from paper_utils.scores import CONTROL, Hits

ELSEWHERE = 100_000  # first noise of the runs from other noises
CLOSED = ("gaussian", "optimal")  # the references
KNOWN = 8_192  # images of the optimal one, which reads them all in every step
QUANTITIES = ("PSNR, dB", "distance", "residual")
AXES = {"distance": "1 - cosine with the truth", "residual": "residual over the truth's"}
BLOCKS = ("U-Nets", "transformers", "across")


@dataclass(frozen=True)
class Problem:
    """A task with a step size. zeta: of 30 steps, each a constant step on the variance-preserving
    state as in DPS; with other numbers of steps it is scaled to give the same sum.

    The gradient of a norm has about unit length on images of any size, and images are the longer
    the more pixels they have, so a zeta is one for 32 x 32.
    """

    task: Task
    zeta: float = 2.0
    other_noise: bool = False

    @property
    def name(self) -> str:
        return (f"{self.task.name}, zeta {self.zeta:g}" +
                (", other noise" if self.other_noise else ""))

    @property
    def first_noise(self) -> int:
        return ELSEWHERE if self.other_noise else 0

    def guidance(self, steps: int, **changes) -> Guidance:
        """Algorithm 1 of this problem in `steps` steps. changes: of the Guidance."""
        solver = Solver("dpm-solver-1", steps, "karras", 0.01, 80)
        chosen = Guidance(30 / steps * self.zeta, solver, "variance-preserving", "norm", clip=False,
                          ancestral=None)
        return replace(chosen, **changes)


INPAINTING, BOX = "random-inpainting", "box-inpainting"
DROPS = tuple(Problem(Task(INPAINTING, drop)) for drop in (0.3, 0.5, 0.7, 0.9))
BOXES = tuple(Problem(Task(BOX, box)) for box in (8, 16, 24))
MAIN = BOXES[1]
ZETAS = tuple(replace(MAIN, zeta=zeta) for zeta in (0.5, 1.0, 2.0, 4.0, 8.0))
# with the step size of the linear tasks, high dynamic range moves away from the measurement
TASKS = (DROPS[2], MAIN, Problem(Task("super-resolution", 4)), Problem(Task("gaussian-blur", 1.5)),
         Problem(Task("motion-blur", 9)), Problem(Task("high-dynamic-range", 2), 0.5))
PROBLEMS = (*dict.fromkeys((*DROPS, *BOXES, *ZETAS, *TASKS)),
            *(replace(problem, other_noise=True) for problem in TASKS))


# --- restoring images ---------------------------------------------------------------------------

def held_out(profile: Profile) -> data.Images:
    """The images that are measured: the first of the test set, which no model has seen."""
    return data.load(profile.dataset, "test").first(profile.measured)


def references(training: data.Images, profile: Profile, device: str = "cpu") -> dict[str, Model]:
    """The Gaussian denoiser of the training images, and the optimal one of the first KNOWN."""
    some = training.first(min(KNOWN, len(training)))
    return {name: models.closed_form(name, images, device, profile.bag)
            for name, images in zip(CLOSED, (training, some))}


def posed(problem: Problem, images: Tensor) -> tuple[Operator, Measurement]:
    """The operator for images uint8 [n, 3, H, W], and their measurement."""
    operator = problem.task.build(len(images), images.shape[-1])
    seed = problem.task.seed
    return operator, operators.measure(data.to_unit(images), operator, problem.task.sigma, seed)


def restoring(model: Model, problem: Problem, images: data.Images, steps: int,
              **changes) -> Model:
    """The model as one more model: noise k restores image k of this problem.

    changes: of the Guidance.
    """
    guidance, device = problem.guidance(steps, **changes), model.device
    small = torch.device(device).type == "cpu" and (model.trained_diffusion or len(images) < 64)
    batch = inverse.BATCH if small else 64  # the optimal one reads all its images in every step

    def generate(noise: Tensor, title: str = "") -> Tensor:
        operator, measurement = posed(problem, images.pixels[:len(noise)])
        try:
            return inverse.reconstruct(models.denoiser_of(model), noise.to(device), measurement,
                                       operator, guidance, title, batch).cpu()
        except Diverged as error:
            what = str(error).partition("; try")[0]  # its zeta is that of one step
            raise Diverged(f"{model.name}, {problem.name}, {steps} steps: {what}; try zeta "
                           f"{problem.zeta / 4:g}, clip=True or more steps") from None

    identity = {"model": model.identity, "task": asdict(problem.task), "images": images.hash,
                "guidance": asdict(guidance), "code": artifacts.code_version(inverse, operators)}
    return replace(model, name=f"{model.name}, {problem.name}", generate=generate, denoiser=None,
                   identity=identity, evaluations=guidance.solver.evaluations)


def answer(model: Model, problem: Problem, images: data.Images, steps: int, **changes) -> Tensor:
    """What the model restores, uint8 [n, 3, H, W], an artifact. changes: of the Guidance."""
    one = restoring(model, problem, images, steps, **changes)
    return models.samples(one, len(images), problem.first_noise)


def restored(found: Mapping[str, Model], problems: Sequence[Problem], images: data.Images,
             profile: Profile) -> dict[str, dict[str, Tensor]]:
    """Problem's name -> model -> restored images uint8 [n, 3, H, W].

    From the sheets of zoo/inverse where the profile is shipped and its sizes are the sheets', else
    from the artifact store or restored now.
    """
    sheets = {name: _sheet(model, images, profile) for name, model in found.items()}
    table: dict[str, dict[str, Tensor]] = {}
    for problem in problems:
        table[problem.name] = {
            name: sheet[:, PROBLEMS.index(problem)] if (sheet := sheets[name]) is not None else
            answer(model, problem, images, profile.guided_steps)
            for name, model in found.items()}
    return table


def _sheet(model: Model, images: data.Images, profile: Profile) -> Tensor | None:
    """[n, problems, 3, H, W], or None where there is none for these sizes.

    A sheet of more images answers for the first of them. Raises UserError for one that was made
    from other weights.
    """
    row = zoo.entries(zoo.INVERSE).get(model.name) if profile.shipped else None
    if row is None or row.noises < len(images):
        return None
    whole = images if row.noises == len(images) else held_out(replace(profile, measured=row.noises))
    if (row.problems != question(whole, profile.guided_steps)
            or whole.first(len(images)).hash != images.hash):
        return None
    if row.start != model.identity.get("weights", ""):
        raise UserError(f"zoo/inverse/{row.sheet} was made from other weights of {model.name}: "
                        f"make it again, `python -m paper_utils.fleet restored {model.name}`")
    return row.load_sheet()[:len(images)]


def question(images: data.Images, steps: int) -> str:
    """A hash of what decides a sheet but the model: problems, settings of Algorithm 1, images.

    How the operators and Algorithm 1 work is not in it: tables.check_sheets compares the images.
    """
    asked = [[asdict(problem), asdict(problem.guidance(steps))] for problem in PROBLEMS]
    text = json.dumps([asked, inverse.BATCH, images.hash])
    return artifacts.digest({"question": torch.tensor(list(text.encode()))})


# --- scores -------------------------------------------------------------------------------------

def families(found: Iterable[Model]) -> dict[str, list[str]]:
    """Family -> names of its models, U-Nets first."""
    found = list(found)
    return {family: [m.name for m in found if m.family == family]
            for family in ("U-Net", "transformer")}


def pairs_of(groups: Mapping[str, Sequence[str]],
             frameworks: Mapping[str, str] | None = None) -> dict[str, list[tuple[str, str]]]:
    """The pairs of models of each of BLOCKS. frameworks: by model; only pairs of different ones."""
    unets, transformers = groups["U-Net"], groups["transformer"]
    blocks = combinations(unets, 2), combinations(transformers, 2), product(unets, transformers)
    apart = lambda pair: frameworks is None or frameworks[pair[0]] != frameworks[pair[1]]
    return {name: list(filter(apart, pairs)) for name, pairs in zip(BLOCKS, blocks)}


def hits(features: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]], same: Hits,
         other: Mapping[str, Tensor] | None = None) -> Tensor:
    """[n, pairs] bool: which restored images are the same. other: features of the second model."""
    other = features if other is None else other
    return scores.over_pairs([(features[a], other[b]) for a, b in pairs], same)


def block_scores(features: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], same: Hits,
                 elsewhere: Mapping[str, Tensor] | None = None) -> pd.DataFrame:
    """RP averaged over the pairs inside each family, and across: a row for each of BLOCKS.

    features: [n, d] by model; the interval resamples images. elsewhere: features of the same
    restored from other noises. Columns: block, score, low, high, n, other images (chance)
    and, with elsewhere, other noise (what the measurement alone fixes) and how much more the score
    is: more, with its interval more, low and more, high.
    """
    rows = []
    for block, pairs in pairs_of(groups).items():
        found, chance = scores.mean_agreement([(features[a], features[b]) for a, b in pairs], same)
        row = found.row(block=block) | {"other images": chance}
        if elsewhere:
            fixed = hits(features, pairs, same, elsewhere)
            more = scores.paired_difference(hits(features, pairs, same), fixed)
            row |= {"other noise": fixed.double().mean().item(), **more.beside("more")}
        rows.append(row)
    return pd.DataFrame(rows)


def with_gaussian(features: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]],
                  same: Hits) -> pd.DataFrame:
    """RP of the Gaussian denoiser, averaged over each family. Columns: block, score, low, high, n.
    """
    found = {family: hits(features, [("gaussian", name) for name in names], same)
             for family, names in groups.items()}
    return pd.DataFrame([scores.proportion(alike).row(block=f"{CONTROL}{family}s")
                         for family, alike in found.items()])


def family_gap(features: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], same: Hits,
               frameworks: Mapping[str, str] | None = None) -> pd.DataFrame:
    """RP inside each family minus RP across, on the same images.

    frameworks: by model; then only pairs of different frameworks count, since two seeds of one
    recipe are always inside. Columns: block, difference, low, high (its interval), n; a block
    without such pairs is left out.
    """
    pairs = pairs_of(groups, frameworks)
    across = hits(features, pairs[BLOCKS[2]], same)
    rows = []
    for block in filter(pairs.get, BLOCKS[:2]):
        gap = scores.paired_difference(hits(features, pairs[block], same), across)
        rows.append(gap.row("difference", block=block))
    return pd.DataFrame(rows, columns=["block", "difference", "low", "high", "n"])


def pixel_gap(problem: Problem, answers: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]],
              frameworks: Mapping[str, str] | None = None) -> pd.DataFrame:
    """How far models' images are apart inside each family and across, without a threshold.

    answers: uint8 [n, 3, H, W] by model; RMS difference of two models' pixels, of 255, in
    inpainting of the lost pixels alone; frameworks as in `family_gap`. Columns: block, score, low,
    high (means over pairs and images, the interval over images), n, other images (the same with the
    second model's images mixed: chance), and how much farther apart across is, with its interval
    (same images): farther, farther, low and farther, high.
    """
    images = next(iter(answers.values()))
    seen = measured_entries(posed(problem, images)[0], images)
    where = torch.ones(images.shape) if seen.all() else 1.0 - seen.float()

    mixed = {name: scores.shuffled(part) for name, part in answers.items()}

    def apart(pairs: Sequence[tuple[str, str]], other: Mapping[str, Tensor]) -> Tensor:
        gaps = torch.stack([answers[a].float() - other[b].float() for a, b in pairs]) * where
        return (gaps.square().flatten(2).sum(2) / where.flatten(1).sum(1)).sqrt().double().mean(0)

    pairs = {block: some for block, some in pairs_of(groups, frameworks).items() if some}
    means, rows = {block: apart(some, answers) for block, some in pairs.items()}, []
    for block, values in means.items():
        row = scores.average(values).row(block=block)
        row["other images"] = apart(pairs[block], mixed).mean().item()
        if block != BLOCKS[2]:
            row |= scores.average(means[BLOCKS[2]] - values).beside("farther")
        rows.append(row)
    return pd.DataFrame(rows)


def curves(problems: Sequence[Problem], x: Callable[[Problem], float],
           answers: Mapping[str, Mapping[str, Tensor]],
           features: Mapping[str, Mapping[str, Tensor]], truth: data.Images,
           groups: Mapping[str, Sequence[str]], describe: Descriptor) -> dict[str, pd.DataFrame]:
    """RP of each block and the errors of each family against x of the problem.

    By quantity ('RP' and QUANTITIES), columns x, who, score, low, high. In RP the control too:
    'Gaussian / U-Nets' is RP of the Gaussian denoiser with them.
    """
    same = scores.copies(describe.threshold)
    rp = tables.over("x", {
        x(p): pd.concat([block_scores(features[p.name], groups, same),
                         with_gaussian(features[p.name], groups, same)])
        for p in problems}).rename(columns={"block": "who"})
    who = labelled(groups)
    real = descriptors.features(describe, truth.pixels)
    bad = tables.over("x", {
        x(p): errors(p, answers[p.name], features[p.name], truth.pixels, real, who)
        for p in problems})
    return {"RP": rp} | {quantity: part.drop(columns="quantity")
                         for quantity, part in bad.groupby("quantity", sort=False)}


def labelled(groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What tables and figures call them -> models: each family, and each of CLOSED."""
    who = {f"{family}s": list(names) for family, names in groups.items()}
    return who | {f"{name.capitalize()} denoiser": [name] for name in CLOSED}


def drawn(found: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables of `curves` by the names of AXES, without the optimal denoiser, whose errors dwarf
    all others."""
    return {AXES.get(what, what): table[table.who != "Optimal denoiser"]
            for what, table in found.items()}


def errors(problem: Problem, answers: Mapping[str, Tensor], features: Mapping[str, Tensor],
           truth: Tensor, real: Tensor, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """How good restored images are: columns who, quantity, score, low, high, n.

    As `qualities`, of which these are the means over images with 95 % intervals; groups: label ->
    models to average over.
    """
    found = qualities(problem, answers, features, truth, real)
    rows = [scores.average(mean_quality(found, names, what)).row(who=who, quantity=what)
            for who, names in groups.items() for what in QUANTITIES]
    return pd.DataFrame(rows, columns=["who", "quantity", "score", "low", "high", "n"])


def qualities(problem: Problem, answers: Mapping[str, Tensor], features: Mapping[str, Tensor],
              truth: Tensor, real: Tensor) -> dict[str, dict[str, Tensor]]:
    """How good every restored image is: model -> quantity -> [n].

    answers, truth: uint8 [n, 3, H, W]; features, real: their descriptors [n, d]. `PSNR, dB`;
    `distance`, 1 - cosine of the descriptors of image and truth, in the place of LPIPS; `residual`,
    |y - A(x)| on the m entries that are measured, over its expected size at the truth, sigma
    sqrt(m): 1 is consistent. Of Algorithm 1's images that is after the last gradient, whose length
    (about zeta) never shrinks: near the end the residual says by how much a step overshoots or
    stays behind as much as whether the model can fit y. The r before that gradient is not in a
    sheet. Of lost pixels y is noise alone, which Algorithm 1 keeps in its r, where it shortens
    every step; here it is left out.
    """
    operator, measurement = posed(problem, truth)
    seen = measured_entries(operator, truth)
    size = max(measurement.sigma, 1e-6) * seen.flatten(1).sum(1)**0.5
    found = {}
    for name, images in answers.items():
        gap = (seen * (measurement.y - operator.A(data.to_unit(images)))).flatten(1).norm(dim=1)
        found[name] = {"PSNR, dB": psnr(images, truth), "residual": gap / size,
                       "distance": 1 - descriptors.similarity(features[name], real)}
    return found


def mean_quality(found: Mapping[str, Mapping[str, Tensor]], names: Sequence[str],
                 what: str) -> Tensor:
    """One of the `qualities`, averaged over models: [n] float64."""
    return torch.stack([found[name][what].double() for name in names]).mean(0)


def measured_entries(operator: Operator, images: Tensor) -> Tensor:
    """Which entries of y measure something, bool like y: of lost pixels it has noise alone."""
    return operator.A(torch.ones(images.shape)) != 0


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each of uint8 [n, 3, H, W] -> [n]."""
    mse = (images.float() - truth.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mse.clamp(min=1e-3))


def check_shown(image: int, truth: data.Images) -> None:
    """UserError for an image that is not measured."""
    if not 0 <= image < len(truth):
        raise UserError(f"image {image} is not measured: choose 0 to {len(truth) - 1}")


def tour(found: Iterable[str], answers: Mapping[str, Mapping[str, Tensor]], truth: data.Images,
         image: int) -> dict[str, Tensor]:
    """One image through all TASKS: truth, measurement, then a row a model, uint8 [tasks, 3, H, W].
    """
    part = slice(image, image + 1)
    rows = {"truth": [truth.pixels[part]] * len(TASKS),
            "measured": [shown_measurement(p, truth.pixels[:image + 1])[part] for p in TASKS]}
    rows |= {name: [answers[p.name][name][part] for p in TASKS] for name in found}
    return {name: torch.cat(row) for name, row in rows.items()}


def shown_measurement(problem: Problem, truth: Tensor) -> Tensor:
    """The measurement as a picture of the images' size, uint8 [n, 3, H, W]."""
    _, measurement = posed(problem, truth)
    return F.interpolate(data.to_bytes(measurement.y), truth.shape[-2:], mode="nearest")


# --- what determinism buys ----------------------------------------------------------------------

def ancestral_runs(found: Mapping[str, Model], images: data.Images,
                   steps: int) -> dict[tuple[str, int], Tensor]:
    """Stochastic DPS of MAIN: (model, seed of its fresh noise) -> restored images uint8
    [n, 3, H, W]; the same first noise."""
    return {(name, seed): answer(model, MAIN, images, steps, ancestral=seed)
            for name, model in found.items() for seed in (0, 1)}


def with_ancestral_noise(deterministic: Mapping[str, Tensor],
                         stochastic: Mapping[tuple[str, int], Tensor], same: Hits) -> pd.DataFrame:
    """RP of deterministic and of stochastic DPS, by what the two runs share.

    deterministic: features by model; stochastic: by (model, seed). Rows are averages over models or
    pairs of models. Columns: solver, runs, score, low, high, n.
    """
    names = list(deterministic)
    pairs = list(combinations(names, 2))
    rows = {("deterministic", "two models"): [(deterministic[a], deterministic[b])
                                              for a, b in pairs]}
    rows |= {("stochastic", f"two models, {how} fresh noise"):
             [(stochastic[a, 0], stochastic[b, seed]) for a, b in pairs]
             for how, seed in (("same", 0), ("other", 1))}
    rows["stochastic", "one model, other fresh noise"] = [
        (stochastic[name, 0], stochastic[name, 1]) for name in names]
    return pd.DataFrame([
        scores.proportion(scores.over_pairs(runs_, same)).row(solver=solver, runs=runs)
        for (solver, runs), runs_ in rows.items()])


def solvers(model: Model, images: data.Images, describe: Descriptor, evaluations: int,
            problem: Problem) -> pd.DataFrame:
    """Algorithm 1 with every solver at about as many network evaluations.

    Columns: solver, steps, evaluations, n, and with their 95 % intervals over images PSNR and RP
    with DPM-Solver-1. The step size is scaled with the number of steps, so that fewer steps are
    longer ones: a trade, not a ranking of the orders.
    """
    rows, features, copies = [], {}, scores.copies(describe.threshold)
    for sampler, each in (("dpm-solver-1", 1), ("dpm-solver-2", 2), ("heun", 2),
                          ("dpm-solver-3", 3)):
        steps = max(evaluations // each, 2)
        solver = replace(problem.guidance(steps).solver, sampler=sampler)
        made = answer(model, problem, images, steps, solver=solver)
        features[sampler] = descriptors.features(describe, made)
        same = copies(features[sampler], features["dpm-solver-1"])
        rp = scores.proportion(same).beside("RP with dpm-solver-1")
        rows.append({"solver": sampler, "steps": steps, "evaluations": solver.evaluations,
                     "n": len(made), **scores.averages({"PSNR": psnr(made, images.pixels)}), **rp})
    return pd.DataFrame(rows)


# --- the paper's explanation: the guided iterate leaves the distribution of x_t -----------------

def energy(gaussian: GaussianDenoiser, u: Tensor, sigma: float) -> Tensor:
    """Squared Mahalanobis distance of u [B, ...] from N(mean, C + sigma^2 I), per dimension: [B].

    1 on average for images of the data with noise of that sigma, whatever their distribution.
    """
    return gaussian.squared_mahalanobis(u, sigma) / u[0].numel()


def energies(model: Model, problem: Problem, images: data.Images, gaussian: GaussianDenoiser,
             steps: int) -> pd.DataFrame:
    """The energy of the iterates of Algorithm 1, an artifact: columns sigma, median, low, high.

    low and high are the quartiles over images.
    """
    guidance = problem.guidance(steps)
    fitted = artifacts.digest({"mean": gaussian.mean, "eigenvalues": gaussian.eigenvalues})
    spec = restoring(model, problem, images, steps).identity | {"gaussian": fitted}

    def compute() -> artifacts.Tensors:
        operator, measurement = posed(problem, images.pixels)
        noise = BANK[:len(images)].double().to(model.device)
        with torch.no_grad(), exact():
            states = list(inverse.dps(model.denoiser(), noise, measurement.y.to(noise), operator,
                                      guidance))[:-1]  # the last has no noise
        return {"sigma": torch.stack([state.sigma for state in states]),
                "energy": torch.stack([energy(gaussian, state.u.cpu(), state.sigma.item())
                                       for state in states])}

    found = artifacts.remember("energies", spec, compute)
    return _quartiles(found["sigma"], found["energy"])


def energies_of_images(images: data.Images, gaussian: GaussianDenoiser,
                       steps: int) -> pd.DataFrame:
    """The same of real images with the noise that belongs to each sigma."""
    sigmas = MAIN.guidance(steps).solver.sigmas[1:-1]
    clean, noise = data.to_unit(images.pixels).double(), BANK[:len(images)].double()
    found = torch.stack([energy(gaussian, clean + s * noise, s.item()) for s in sigmas])
    return _quartiles(sigmas, found)


def _quartiles(sigma: Tensor, values: Tensor) -> pd.DataFrame:
    low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75]).to(values), dim=1)
    return pd.DataFrame({"sigma": sigma, "median": median, "low": low, "high": high})
