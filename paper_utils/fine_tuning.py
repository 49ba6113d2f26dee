"""Fine-tuning (appendix G): what a shared start and a part of the parameters do to the two regimes.

Two networks are pre-trained on one dataset, and each is fine-tuned on the first N images of
another, in several ways (all parameters, attention, last blocks, low-rank adapters); networks that
start from nothing are the contrast. A table of models has a row for each: model, way, images, run
('', 'seed1' or 'other', see recipes.fine_tuning_specs) and how many parameters trained.
"""

import re
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from paper_utils import data, models, recipes, scores, tables, trainable
from paper_utils import training, zoo
from paper_utils.descriptors import Descriptor
from paper_utils.errors import UserError
from paper_utils.models import Model
from paper_utils.noise import stream
from paper_utils.profiles import Profile
from paper_utils.scores import Hits

BASES = ("base", "base-seed1")
SAME, OTHER = "same start", "different starts"


def trained(profile: Profile, pretraining: str = "", device: str = "cpu") -> dict[str, Model]:
    """The models of the study by name; from zoo/fine_tuning/ for the laptop profile, else trained.

    A shipped model that is not there is left out, and so are those that models.reaching leaves out.
    Raises UserError as models.shipped_by does, and where a dataset cannot be had.
    """
    specs = recipes.fine_tuning_specs(profile.name, pretraining)
    own = recipes.transfer(profile.name)
    if profile.shipped and recipes.transfer(profile.name, pretraining) != own:
        raise UserError(f"the {profile.name} profile ships models pre-trained on {own.base}: leave "
                        "out pretraining, or choose the profile gpu, which trains")
    found = models.shipped_or_trained(specs, zoo.FINE_TUNING, profile, device=device)
    return models.reaching(found, zoo.FINE_TUNING, "transfer_noises", profile.transfer_noises)


def samples(found: Mapping[str, Model], profile: Profile) -> dict[str, Tensor]:
    """Images of the first profile.transfer_noises noises from every model, uint8 [n, 3, 32, 32]."""
    return models.shipped_samples(found, zoo.FINE_TUNING, profile.transfer_noises, profile.shipped)


def spot_checks(found: Mapping[str, Model], n: int) -> dict[str, Model]:
    """n of the models with weights, drawn once and for all, in the order they are made."""
    names = [name for name, model in found.items() if not model.sheet_alone]
    drawn = torch.randperm(len(names), generator=stream("spot checks"))[:n]
    return {names[k]: found[names[k]] for k in sorted(drawn.tolist())}


def grid(found: Mapping[str, Model]) -> pd.DataFrame:
    """What each fine-tuned model is: model, way, images, run, images seen, trained parameters.

    Raises UserError for a name that does not say way and images.
    """
    rows = []
    for name, model in found.items():
        if name in BASES:
            continue
        named = re.fullmatch(r"(.+)-n(\d+)-?(.*)", name)
        if not named:
            raise UserError(f"the model {name!r} is none of the study: name it by way, images and "
                            "run, as 'attention-n64' or 'attention-n64-seed1'")
        way, images, run = named.groups()
        network = training.build(model.spec).network  # as trained: some ship without weights
        count = sum(p.numel() for p in network.parameters() if p.requires_grad)
        rows.append((name, way, int(images), run, model.images_seen, count))
    columns = ["model", "way", "images", "run", "images seen", "trained parameters"]
    return pd.DataFrame(rows, columns=columns)


def ways(found: Mapping[str, Model], table: pd.DataFrame) -> pd.DataFrame:
    """What each way trains: way, images seen, trained parameters, layers (* for a number)."""
    first = table.drop_duplicates("way")
    names = [trainable.layers(training.trained_names(training.build(found[name].spec).network))
             for name in first.model]
    return first[["way", "images seen", "trained parameters"]].assign(
        layers=[", ".join(n) if len(n) < 15 else f"all {len(n)} kinds" for n in names])


def known_features(descriptor: Descriptor, name: str, split: str = "train") -> Tensor:
    """Features of the dataset data.load(name, split), taken from those of all its classes."""
    whole, part = data.load(name.partition(":")[0], split), data.load(name, split)
    return tables.features_of(descriptor, whole)[torch.isin(whole.labels, part.labels.unique())]


def reproducibility(table: pd.DataFrame, features: Mapping[str, Tensor],
                    hits: Hits) -> pd.DataFrame:
    """RP of two models of each way at each number of images.

    pair: 'different starts' (two pre-trained networks, or for 'scratch' two initializations), or
    'same start' (one pre-trained network, other training noise and order). Columns: images, way,
    pair, score, low, high, n, shuffled.
    """
    rows, known = [], table.set_index(["way", "images", "run"]).model
    for way, images in table[["way", "images"]].drop_duplicates().itertuples(index=False):
        runs = {OTHER: recipes.other_start(way)} | ({} if way == "scratch" else {SAME: "seed1"})
        for pair, run in runs.items():
            names = [known.get((way, images, r)) for r in ("", run)]
            if None not in names:
                score, chance = scores.agreement(*(features[name] for name in names), hits)
                rows.append(score.row(images=images, way=way, pair=pair, shuffled=chance))
    return scores.table_of(rows, "images", "way", "pair", "shuffled")


def shared_start(table: pd.DataFrame, features: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """RP of one start minus RP of two, on the same noises.

    Columns: way, images, same, different (RP), difference, low, high (its interval), n.
    """
    rows, known = [], table.set_index(["way", "images", "run"]).model
    for way, images in table[["way", "images"]].drop_duplicates().itertuples(index=False):
        runs = [known.get((way, images, run)) for run in ("", "seed1", "other")]
        if way != "scratch" and None not in runs:
            first, same, other = (features[name] for name in runs)
            copies = [hits(first, second) for second in (same, other)]
            mean = [c.double().mean().item() for c in copies]
            rows.append(scores.paired_difference(*copies).row(
                "difference", way=way, images=images, same=mean[0], different=mean[1]))
    columns = ["way", "images", "same", "different", "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def over_bases(table: pd.DataFrame, rows: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """How much more two fine-tunings of each way, from different starts, agree than the two
    pre-trained networks do: scores.gains, with the columns images and way."""
    known, beside = table.set_index(["way", "images", "run"]).model, {}
    for way, images in table[["way", "images"]].drop_duplicates().itertuples(index=False):
        pair = tuple(known.get((way, images, run)) for run in ("", recipes.other_start(way)))
        if way != "scratch" and None not in pair:
            beside[pair] = [BASES]
    return scores.gains(rows, beside, hits).merge(table[["model", "images", "way"]])


def against(table: pd.DataFrame, rows: Mapping[str, Tensor], other: Tensor,
            hits: Hits) -> pd.DataFrame:
    """RP (or another score) of every run of each way with something else, at each number of images.

    rows: by model; other: of the same noises. Columns: images, way, run, score, low, high, n,
    shuffled.
    """
    found = []
    for row in table.itertuples():
        score, chance = scores.agreement(rows[row.model], other, hits)
        found.append(score.row(images=row.images, way=row.way, run=row.run, shuffled=chance))
    return scores.table_of(found, "images", "way", "run", "shuffled")


def distances(table: pd.DataFrame, images: Mapping[str, Tensor], other: Tensor) -> list[float]:
    """Mean |difference| of pixels, 0..255, of every row of the grid from other images."""
    return [(images[name].short() - other.short()).abs().float().mean().item()
            for name in table.model]


def generalization(table: pd.DataFrame, features: Mapping[str, Tensor], known: Tensor,
                   real: Tensor, threshold: float) -> pd.DataFrame:
    """GL of the first run of each way against the images it was fine-tuned on.

    known: features of the whole target; real: of held-out images of the same classes. Columns:
    images, way, score, low, high, n, held-out (GL of the held-out images).
    """
    rows, baseline = [], {n: scores.gl(real, known[:n], threshold).value
                          for n in table.images.unique()}
    for row in table[table.run == ""].itertuples():
        found = scores.gl(features[row.model], known[:row.images], threshold)
        rows.append(found.row(images=row.images, way=row.way)
                    | {"held-out": baseline[row.images]})
    return scores.table_of(rows, "images", "way", "held-out")


def beside_held_out(gl: pd.DataFrame) -> pd.DataFrame:
    """GL of every way, and of the held-out images as one more way; gl: of `generalization`."""
    real = gl.drop_duplicates("images")
    real = real.assign(way="held-out images", score=real["held-out"], low=float("nan"),
                       high=float("nan"))
    return pd.concat([gl, real], ignore_index=True)


def agreement_of_bases(features: Mapping[str, Tensor], hits: Hits) -> scores.Score:
    """RP of the two pre-trained networks, before any fine-tuning."""
    return scores.proportion(hits(*(features[name] for name in BASES)))


def examples(table: pd.DataFrame, images: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Samples of the base and of the first run of each way at n images, by way."""
    rows = table[(table.run == "") & (table.images == n)]
    return {"base": images["base"]} | {row.way: images[row.model] for row in rows.itertuples()}

