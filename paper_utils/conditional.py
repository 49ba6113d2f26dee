"""Class-conditional models (appendix D): do they agree, also with unconditional ones?

Samples of a conditional model are [n, classes, 3, H, W]: every noise with every class. Features of
them are [n, classes, d].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from paper_utils import (artifacts, data, denoisers, descriptors, hub, models, recipes, samplers,
                         scores, zoo)
from paper_utils.descriptors import Descriptor
from paper_utils.errors import UserError
from paper_utils.models import Model
from paper_utils.noise import stream
from paper_utils.profiles import Profile
from paper_utils.scores import CONTROL, Hits

CONTROLLED = (0.0, 1.0, 1.5, 2.0)  # beyond, many pixels of the guided control leave their range
WEIGHTS = (*CONTROLLED, 4.0)  # of guidance; 1 is none, 0 the model without a class
GAUSSIAN = "gaussian-cond"


# --- the models ---------------------------------------------------------------------------------

def trained(profile: Profile, images: data.Images, device: str = "cpu") -> dict[str, Model]:
    """The conditional models by name; from zoo/conditional/ for the laptop profile, else trained.

    A shipped model that is not there is left out; raises UserError as models.shipped_by does.
    """
    specs = recipes.conditional_specs(profile.name)
    return models.shipped_or_trained(specs, zoo.CONDITIONAL, profile, images, device)


def twins(found: Mapping[str, Model]) -> dict[str, str]:
    """Conditional model -> the unconditional model of the same architecture and framework."""
    return {name: name.removesuffix("-cond") for name in found}


def gaussian(images: data.Images) -> Model:
    """The control that nobody trained: the Gaussian denoiser of each class's own images.

    It is fitted when first asked for a sample.
    """
    classes = tuple(images.labels.unique().tolist())

    def generate(noise: Tensor, title: str = "") -> Tensor:
        forms = (models.gaussian(images.classes(c, c)) for c in classes)
        return torch.stack([samplers.sample_gaussian(one, noise, twin.solver) for one in forms], 1)

    twin = models.closed_form("gaussian", images)
    labels = artifacts.digest({"labels": images.labels})
    return replace(twin, name=GAUSSIAN, architecture="Gaussian denoiser of each class",
                   identity=twin.identity | {"labels": labels}, generate=generate,
                   denoiser=None, classes=classes)


def from_hub(sources: str, defaults: Sequence[str] = (), device: str = "cpu") -> dict[str, Model]:
    """Class-conditional DiT pipelines (ImageNet), by hub names or folders separated by commas.

    Ten of their classes, evenly spaced. Without sources the defaults, of which one that cannot be
    had is left out with a line that says so. Raises UserError when a source cannot be loaded, and
    for two of the same name.
    """
    named = [source.strip() for source in sources.split(",") if source.strip()]
    load = lambda source, device: hub.dit(source, range(0, 1000, 100), device)
    found: dict[str, Model] = {}
    for model in ([load(source, device) for source in named] if named
                  else hub.available(defaults, load, device)):
        if model.name in found:
            raise UserError(f"two pipelines are called {model.name!r}: rename the folder of one")
        found[model.name] = model
    return found


def imagenet_rp(found: Mapping[str, Model], images: Mapping[str, Tensor],
                descriptor: Descriptor) -> pd.DataFrame:
    """RP_cond of every two pipelines: scores.pairwise of images uint8 [n, C, 3, H, W] by model.

    Raises UserError unless all take noises of one shape, which is what makes noises the same.
    """
    if len({model.shape for model in found.values()}) > 1:
        shapes = ", ".join(f"{name} {model.shape}" for name, model in found.items())
        raise UserError(f"pipelines with noises of different shapes share none ({shapes}): compare "
                        "pipelines of one latent size")
    rows = {name: features(descriptor, part) for name, part in images.items()}
    return scores.pairwise(rows, scores.copies(descriptor.threshold))


def check_noise(noise: int, profile: Profile) -> None:
    """UserError for a noise that is not sampled."""
    if not 0 <= noise < profile.class_noises:
        raise UserError(f"noise {noise} is not sampled: choose 0 to {profile.class_noises - 1}")


def beside_twin(unconditional: Tensor, images: Tensor, noise: int) -> Tensor:
    """One noise: the unconditional image, then that of every class, [1 + C, 3, H, W]."""
    return torch.cat([unconditional[noise:noise + 1], images[noise]])


def samples(found: Mapping[str, Model], profile: Profile) -> dict[str, Tensor]:
    """Images of the first profile.class_noises noises with every class, uint8 [n, C, 3, H, W]."""
    return models.shipped_samples(found, zoo.CONDITIONAL, profile.class_noises, profile.shipped)


def guided(model: Model, weight: float) -> Model:
    """The model under classifier-free guidance; noise k has class k modulo the number of classes.

    Its samples are [n, 3, H, W]. Raises UserError for a model without a denoiser, classes or label
    dropout, and for a pipeline of another project.
    """
    if not (model.spec and model.classes):
        raise UserError(f"{model.name} is not guided here: give a class-conditional model that was "
                        "trained by this project")
    denoiser = denoisers.guided(models.denoiser_of(model), weight)
    device = model.device

    def generate(noise: Tensor, title: str = "") -> Tensor:
        labels = torch.tensor(model.classes, device=device)[own_class(len(noise), model)]
        return samplers.sample(denoiser, noise.to(device), model.spec.solver, labels,
                               progress=title).cpu()

    return replace(model, name=f"{model.name}@w{weight:g}", generate=generate, denoiser=None,
                   classes=(), evaluations=model.evaluations * (1 if weight == 1 else 2),
                   identity=model.identity | {"guidance": weight, "classes": "k modulo"})


def guided_gaussian(images: data.Images, weight: float, device: str = "cpu") -> Model:
    """The control of `guided`: the Gaussian denoisers of all images and of the class that the noise
    has there, under the same guidance (denoisers.between).

    Nobody trained it. With large weights many of its pixels leave [-1, 1].
    """
    control = gaussian(images)
    classes = control.classes

    def generate(noise: Tensor, title: str = "") -> Tensor:
        whole, x0 = models.gaussian(images), torch.empty_like(noise)
        for k, c in enumerate(classes[:len(noise)]):
            denoiser = denoisers.between(whole, models.gaussian(images.classes(c, c)), weight)
            part = noise[k::len(classes)].to(device)
            x0[k::len(classes)] = samplers.sample(denoiser, part, control.solver,
                                                  batch=len(noise)).cpu()
        return x0

    made = {"guidance": weight, "classes": "k modulo",
            "by": artifacts.code_version(guided_gaussian)}
    return replace(control, name=f"{control.name}@w{weight:g}", generate=generate, classes=(),
                   architecture=f"{control.architecture} and of all, guidance weight {weight:g}",
                   evaluations=2 * control.evaluations, identity=control.identity | made)


def own_class(n: int, model: Model) -> Tensor:
    """Position in model.classes of the class that noise k has under guidance: int64 [n]."""
    return torch.arange(n) % len(model.classes)


def of_own_class(rows: Tensor, model: Model) -> Tensor:
    """Of rows [n, C, ...], one a class of the model, that of each noise's `own_class`: [n, ...]."""
    return rows[torch.arange(len(rows)), own_class(len(rows), model)]


def guided_samples(found: Mapping[str, Model], images: Mapping[str, Tensor],
                   profile: Profile) -> dict[float, dict[str, Tensor]]:
    """Weight -> model -> uint8 [n, 3, H, W], one class per noise; images: those of `samples`."""
    table: dict[float, dict[str, Tensor]] = {}
    for weight in WEIGHTS:
        table[weight] = {}
        for name, model in found.items():
            if weight == 1:
                table[weight][name] = of_own_class(images[name], model)
            else:
                one = guided(model, weight)
                table[weight][name] = samples({one.name: one}, profile)[one.name]
    return table


def guided_control(images: data.Images, plain: Tensor, own: Tensor, profile: Profile,
                   device: str = "cpu") -> dict[float, Tensor]:
    """Weight -> uint8 [n, 3, H, W] of `guided_gaussian`, for the CONTROLLED weights.

    plain, own: at weight 0, samples of the Gaussian denoiser of all images, [n, 3, H, W], and at
    weight 1 of those of the classes, [n, C, 3, H, W], which are there already.
    """
    found = {0.0: plain[:len(own)], 1.0: of_own_class(own, gaussian(images))}
    for weight in CONTROLLED:
        if weight not in found:
            one = guided_gaussian(images, weight, device)
            found[weight] = samples({one.name: one}, profile)[one.name]
    return found


def features(descriptor: Descriptor, images: Tensor) -> Tensor:
    """Descriptors of images uint8 [n, C, 3, H, W] -> [n, C, d]."""
    return descriptors.features(descriptor, images.flatten(0, 1)).unflatten(0, images.shape[:2])


# --- the scores ---------------------------------------------------------------------------------

def between(unconditional: Mapping[str, Tensor], conditional: Mapping[str, Tensor],
            threshold: float) -> pd.DataFrame:
    """RP_between: P(max_c M(x, x^c) > threshold) of each unconditional and each conditional model.

    unconditional: features [n, d], conditional: [n, C, d], by model. Columns: model, other (the
    conditional one), score, low, high, random, one class, n. random is the same with C samples of
    the conditional model drawn from other noises: what a maximum over C reaches by itself. one
    class: the mean over single classes; what score has above it the maximum adds.
    """
    rows = []
    for name, mine in unconditional.items():
        for other, theirs in conditional.items():
            n = len(theirs)
            hits = best_class(mine[:n], theirs)[1] > threshold
            single = scores.copies(threshold)(mine[:n, None].expand_as(theirs), theirs)
            chance = best_class(mine[:n], elsewhere(theirs))[1] > threshold
            rows.append(scores.proportion(hits).row(
                model=name, other=other, random=chance.double().mean().item(),
                **{"one class": single.double().mean().item()}))
    columns = ["model", "other", "score", "low", "high", "random", "one class", "n"]
    return pd.DataFrame(rows, columns=columns)


def best_class(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the classes is most similar, and its cosine: [n, d], [n, C, d] -> [n], [n]."""
    best = torch.einsum("nd,ncd->nc", mine, theirs).max(1)
    return best.indices, best.values


def other_class(pairs: pd.DataFrame, rows: Mapping[str, Tensor], hits: Hits) -> pd.Series:
    """Of pairs of models how often the same noise with another class gives the same image.

    rows: features [n, classes, d] by model. The mean over every class and every other one, a
    baseline of RP_cond: what of it is the noise's. NaN where there is one class alone.
    """
    return pd.Series([_other_classes(rows[row.model], rows[row.other], hits)
                      for row in pairs.itertuples()], pairs.index, float)


def _other_classes(mine: Tensor, theirs: Tensor, hits: Hits) -> float:
    if mine.shape[1] == 1:
        return math.nan
    others = [hits(mine, theirs.roll(k, 1)) for k in range(1, mine.shape[1])]
    return torch.stack(others).double().mean().item()


def elsewhere(rows: Tensor) -> Tensor:
    """For every noise as many rows from random other noises and classes: [n, C, d] -> the same."""
    n, classes, _ = rows.shape
    rng = stream("random classes", n, classes)
    shift = torch.randint(1, n, (n, classes), generator=rng)
    which = torch.randint(classes, (n, classes), generator=rng)
    return rows[(torch.arange(n)[:, None] + shift) % n, which]


def winning_classes(unconditional: Mapping[str, Tensor], conditional: Mapping[str, Tensor],
                    twin: Mapping[str, str], names: Sequence[str]) -> pd.DataFrame:
    """How often each class is the most similar to the unconditional twin's image of the same noise.

    Columns: model, class, share, low, high, n.
    """
    rows = []
    for name, winner in winners(unconditional, conditional, twin).items():
        rows += [scores.proportion(winner == k).row(
            "share", **{"model": name, "class": label}) for k, label in enumerate(names)]
    return pd.DataFrame(rows, columns=["model", "class", "share", "low", "high", "n"])


def winners(unconditional: Mapping[str, Tensor], conditional: Mapping[str, Tensor],
            twin: Mapping[str, str]) -> dict[str, Tensor]:
    """By conditional model, the class most similar to its twin's image of each noise: int64 [n]."""
    return {name: best_class(unconditional[twin[name]][:len(theirs)], theirs)[0]
            for name, theirs in conditional.items()}


def same_winner(unconditional: Mapping[str, Tensor], conditional: Mapping[str, Tensor],
                twin: Mapping[str, str]) -> pd.DataFrame:
    """Share of noises at which two models' winning classes are the same, and what chance gives.

    Columns: model, other, score, low, high, chance (from how often each class wins), n.
    """
    rows = []
    for (a, one), (b, two) in combinations(winners(unconditional, conditional, twin).items(), 2):
        share = [w.bincount(minlength=conditional[a].shape[1]) / len(w) for w in (one, two)]
        rows.append(scores.proportion(one == two).row(
            model=a, other=b, chance=(share[0] @ share[1]).item()))
    return pd.DataFrame(rows, columns=["model", "other", "score", "low", "high", "chance", "n"])


def carried_over(conditional: Mapping[str, Tensor], unconditional: Mapping[str, Tensor],
                 twin: Mapping[str, str], hits: Hits) -> pd.DataFrame:
    """RP_cond of every two models minus RP of their unconditional twins, on the same noises.

    Columns: model, other, score (RP_cond), twins (their RP), difference, low, high (its interval),
    n.
    """
    rows = []
    for a, b in combinations(conditional, 2):
        n = len(conditional[a])
        mine = hits(conditional[a], conditional[b])
        theirs = hits(unconditional[twin[a]][:n], unconditional[twin[b]][:n])
        rows.append(scores.paired_difference(mine, theirs).row(
            "difference", model=a, other=b, score=mine.double().mean().item(),
            twins=theirs.double().mean().item()))
    columns = ["model", "other", "score", "twins", "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def of_another_class(rows: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """How often one model makes the same image of a noise with two classes: model, other class.

    rows: features [n, classes, d] by model. Where this is high, agreement of two models says little
    about classes.
    """
    return pd.DataFrame({"model": list(rows), "other class": [
        _other_classes(mine, mine, hits) for mine in rows.values()]})


def with_guided_gaussian(rows: Mapping[float, Mapping[str, Tensor]],
                         control: Mapping[float, Tensor], hits: Hits) -> pd.DataFrame:
    """RP of every model at every weight with the guided Gaussian denoiser at the weight, of those
    of `control`, where they agree most: a model that makes little of a class is nearer to that of a
    smaller weight.

    rows, control: weight -> features, of rows by model. Columns: guidance, pair (the model),
    control (its weight), score, low, high, n.
    """
    found = []
    for weight, part in rows.items():
        for name, mine in part.items():
            each = {w: scores.proportion(hits(mine, theirs)) for w, theirs in control.items()}
            best = max(each, key=lambda w: each[w].value)
            found.append(each[best].row(guidance=weight, pair=name.replace("-cond", ""),
                                        control=best))
    return scores.table_of(found, "guidance", "pair", "control")


def guidance_beside_control(rp: pd.DataFrame, control: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table per pair of models: RP_cond at each weight, and RP with the control of the one of the
    two that has more of it, under the name CONTROL + 'the nearer of the two'.

    rp: of `over_guidance`; control: of `with_guided_gaussian`. Columns what, guidance, score, low,
    high, n.
    """
    found = {}
    for pair, own in rp.groupby("pair", sort=False):
        theirs = control[control.pair.isin(pair.split(" / "))].sort_values("score")
        nearer = theirs.drop_duplicates("guidance", keep="last")
        found[pair] = pd.concat([own.assign(what="with each other"),
                                 nearer.assign(what=f"{CONTROL}the nearer of the two")])
        found[pair] = found[pair][["what", "guidance", "score", "low", "high", "n"]]
    return found


def over_guidance(rows: Mapping[float, Mapping[str, Tensor]], hits: Hits) -> pd.DataFrame:
    """RP_cond of every two models at every guidance weight, and how it differs from weight 1.

    rows: weight -> model -> features [n, d]. Columns: guidance, pair, score, low, high, n, change,
    change low, change high (against weight 1, on the same noises).
    """
    found, names = [], list(rows[1.0])
    for weight, part in rows.items():
        for a, b in combinations(names, 2):
            mine, plain = hits(part[a], part[b]), hits(rows[1.0][a], rows[1.0][b])
            change = (scores.Score(0.0, 0.0, 0.0, len(mine)) if weight == 1 else  # against itself
                      scores.paired_difference(mine, plain))
            found.append(scores.proportion(mine).row(
                guidance=weight, pair=f"{a} / {b}".replace("-cond", "")) | change.beside("change"))
    return scores.table_of(found, "guidance", "pair", "change", "change low", "change high")
