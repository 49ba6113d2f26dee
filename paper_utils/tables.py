"""Tables of models, what a table is made from (features of a dataset), and the checks of sheets."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import median

import pandas as pd
from torch import Tensor

from paper_utils import artifacts, data, descriptors, models, scores, zoo
from paper_utils.descriptors import Descriptor
from paper_utils.errors import UserError
from paper_utils.models import BANK, Model

LIVE_TOLERANCE = 1.0  # mean absolute difference of an image, in 8-bit levels


def over(column: str, tables: Mapping[float | str, pd.DataFrame]) -> pd.DataFrame:
    """Tables under each other, the key of each in a first column of that name."""
    return pd.concat(tables, names=[column]).reset_index(level=0).reset_index(drop=True)


def check_sheets(found: Mapping[str, Model], sheets: Mapping[str, Tensor],
                 live: int) -> pd.DataFrame:
    """Generate the first `live` images of every model again and compare with the sheets.

    Columns: model, generated again (images), largest difference (of a pixel, of 255), mean
    difference (over the pixels of the worst image). A model whose sheet alone ships is left out.
    Raises UserError naming the models whose weights do not reproduce their sheet.
    """
    rows, live = [], min([live, *map(len, sheets.values())])
    for name, model in found.items():
        if model.sheet_alone:
            continue
        again = data.to_bytes(model.generate(BANK[:live]))
        gap = (again.short() - sheets[name][:live].short()).abs()
        each = gap.flatten(0, -4).flatten(1).float().mean(1)
        rows.append((name, len(each), int(gap.max()), each.max().item()))
    table = pd.DataFrame(rows, columns=["model", "generated again", "largest difference",
                                        "mean difference"])
    wrong = table.model[table["mean difference"] > LIVE_TOLERANCE].tolist()
    if wrong:
        raise UserError(f"the weights of {', '.join(wrong)} do not reproduce their sheet "
                        f"(difference over {LIVE_TOLERANCE} level): make the sheet again")
    return table


def what_models_are(found: Mapping[str, Model]) -> pd.DataFrame:
    """model, architecture, framework, solver, NFE, parameters, training images, images seen."""
    table = pd.DataFrame([
        {"model": name, "architecture": m.architecture, "framework": m.framework,
         "solver": str(m.solver or "one step"), "NFE": m.evaluations, "parameters": m.parameters,
         "training images": m.images, "images seen": m.images_seen} for name, m in found.items()])
    return table.astype(dict.fromkeys(table.columns[4:], "Int64"))  # whole beside a missing one


def features_of(descriptor: Descriptor, images: data.Images) -> Tensor:
    """Features of a whole dataset, [N, d], an artifact. Raises UserError for other than Images."""
    if not isinstance(images, data.Images):
        raise UserError(f"tables.features_of takes data.Images, not {data.described(images)}: of a "
                        "tensor descriptors.features(descriptor, images)")
    probe = descriptor(images.pixels[:4]).mul(1_000).round().int().tolist()  # which weights it has
    spec = {"descriptor": descriptor.name, "probe": probe, "images": images.hash}

    def compute() -> artifacts.Tensors:
        return {"features": descriptors.features(descriptor, images.pixels, progress=True)}

    return artifacts.remember("features", spec, compute)["features"]


def copy_detection() -> pd.DataFrame:
    """How well each descriptor finds distorted copies of test images it never saw.

    Measured once by `python -m paper_utils.copy_detection` (an hour for the large ones on two
    cores) and shipped in zoo/; the command's help says how it is done. Test pairs above the
    threshold are counted in a million here.
    """
    table = pd.read_csv(zoo.FOLDER / "copy_detection.csv")
    table["test pairs above"] *= 1e6
    return table.rename(columns={"test pairs above": "test pairs above, in a million"})


def gl_table(features: Mapping[str, Tensor], known: Tensor, threshold: float) -> pd.DataFrame:
    """GL of every set of features against `known`, those of the training images.

    Columns: model, GL, low, high, n.
    """
    found = {name: scores.gl(rows, known, threshold) for name, rows in features.items()}
    return pd.DataFrame([score.row("GL", model=name) for name, score in found.items()])


def model_table(found: Mapping[str, Model], features: Mapping[str, Tensor], gl: pd.DataFrame,
                real: Tensor, space: str) -> pd.DataFrame:
    """The table of models: what each is, its training budget, GL and Fréchet distance.

    real: features of real held-out images in the feature space named `space`. The last row is as
    many real images against the rest of them: the least distance to expect. Where there are more
    samples than half of `real`, the distances are those of the first half as many.
    """
    gl = gl.set_index("model")["GL"]
    cut = min(len(next(iter(features.values()))), len(real) // 2)
    distance = f"FD ({space}, {cut} images)"
    table = what_models_are(found)
    table["GL"] = [gl[name] for name in table.model]
    table[distance] = [scores.frechet(features[name][:cut], real[cut:]) for name in table.model]
    held_out = {"model": "real images", "architecture": "held-out CIFAR-10", "GL": gl["held-out"],
                distance: scores.frechet(real[:cut], real[cut:])}
    return pd.concat([table, pd.DataFrame([held_out])], ignore_index=True)


def rp_by_threshold(features: Mapping[str, Tensor], control: Tensor, own: float,
                    thresholds: Sequence[float] = (0.6, 0.85, 0.9)) -> pd.DataFrame:
    """RP of every pair of models where copies are told by other cosines than the descriptor's own.

    features: of the models; control: of the Gaussian denoiser. Columns: threshold, lowest, median
    and highest RP over pairs, median RP with the control, how many pairs agree more with each other
    than either does with it and how many less (scores.beside_control), the highest RP of shuffled
    noises.
    """
    rows = []
    for threshold in sorted({own, *thresholds}):
        table = scores.pairwise({**features, "control": control}, scores.copies(threshold))
        with_it = table.other == "control"
        pairs = scores.beside_control(table[~with_it], table[with_it])
        rows.append({"threshold": threshold, "lowest RP": pairs.score.min(),
                     "median RP": pairs.score.median(), "highest RP": pairs.score.max(),
                     "median with the Gaussian denoiser": table[with_it].score.median(),
                     "more": pairs.more.sum(), "less": pairs.less.sum(),
                     "highest shuffled": pairs.shuffled.max()})
    return pd.DataFrame(rows)


def even_parts(found: Mapping[str, Model], n: int) -> pd.DataFrame:
    """How large the even part of every model's images is (scores.even_part), of n noises.

    Columns: model, share: of the variance over noises, which it divides with the odd part.
    """
    rows = []
    for name, model in found.items():
        plus, minus = models.of_both_signs(model, n)
        even, odd = (x.square().sum() for x in (scores.even_part(plus, minus),
                                                (plus.double() - minus.double()) / 2))
        rows.append((name, (even / (even + odd)).item()))
    return pd.DataFrame(rows, columns=["model", "share"])


def even_parts_of(found: Mapping[str, Model], n: int,
                  without: Model | None = None) -> dict[str, Tensor]:
    """The even part of every model's images of n noises: float64 [n, d] each, for scores.cosine.

    without: a control, whose even part each is made orthogonal to first.
    """
    parts = {name: scores.even_part(*models.of_both_signs(model, n))
             for name, model in found.items()}
    if without is None:
        return parts
    control = scores.even_part(*models.of_both_signs(without, n))
    return {name: scores.without(rows, control) for name, rows in parts.items()}


def by_family(pairs: Mapping[str, pd.DataFrame], family: Mapping[str, str]) -> pd.DataFrame:
    """Scores of pairs of one family of models, and across families.

    pairs: name of a score -> table with columns model, other, score and, bool, more and less (than
    a control, as of scores.beside_control); family: of every model. Columns: score, families,
    pairs, lowest, median, highest, more, less.
    """
    rows = []
    for name, table in pairs.items():
        families = [" and ".join(sorted({family[row.model], family[row.other]}))
                    for row in table.itertuples()]
        for which, part in table.groupby(families, sort=False):
            rows.append({"score": name, "families": which, "pairs": len(part),
                         "lowest": part.score.min(), "median": part.score.median(),
                         "highest": part.score.max(), "more": part.more.sum(),
                         "less": part.less.sum()})
    return pd.DataFrame(rows)


def between_seeds(features: Mapping[str, Tensor], seeds: Sequence[tuple[str, str]],
                  hits: scores.Hits) -> pd.DataFrame:
    """What a second seed of one recipe changes: RP of either seed's model with every other one.

    Columns: model, seed (its twin), other, score, of the twin, difference, low, high, n; the
    interval is over noises.
    """
    rows = []
    for one, twin in seeds:
        for other in features.keys() - {one, twin}:
            mine, theirs = (hits(features[name], features[other]) for name in (one, twin))
            rows.append(scores.paired_difference(theirs, mine).row(
                "difference", model=one, seed=twin, other=other, score=mine.double().mean().item(),
                twin=theirs.double().mean().item()))
    columns = ["model", "seed", "other", "score", "twin", "difference", "low", "high", "n"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["model", "difference", "other"])
    return table.rename(columns={"twin": "of the twin"}).reset_index(drop=True)


def rp_by_descriptor(samples: Mapping[str, Tensor], names: Sequence[str | Descriptor],
                     device: str = "cpu", control: Tensor | None = None) -> pd.DataFrame:
    """RP of every pair of models by every descriptor, one row per descriptor.

    names: also descriptors of your own; control: the Gaussian denoiser's images of the same noises.
    Columns: descriptor, dim, threshold, lowest, median and highest RP over pairs, the highest RP of
    shuffled noises, median same noise first (over pairs, scores.same_noise_first), by chance,
    noises; with a control the medians of RP and same noise first of every model with it. A
    descriptor that cannot be loaded has a row that says so.
    """
    rows = []
    for name in names:
        try:
            descriptor = descriptors.load(name, device)
        except UserError as error:
            rows.append({"descriptor": f"{name} (not available: {error})"})
            continue
        features = descriptors.features(descriptor, samples)
        copies = scores.copies(descriptor.threshold)
        pairs, n = scores.pairwise(features, copies), len(next(iter(samples.values())))
        row = {"descriptor": descriptor.name, "dim": descriptor.dim,
               "threshold": descriptor.threshold,
               "lowest RP": pairs.score.min(), "median RP": pairs.score.median(),
               "highest RP": pairs.score.max(), "highest shuffled": pairs.shuffled.max(),
               "median same noise first": _median_first(combinations(features.values(), 2)),
               "by chance": 1 / n, "noises": n}
        if control is not None:
            it = descriptors.features(descriptor, control)
            row |= {"median RP with the Gaussian denoiser": median(
                        copies(mine, it).double().mean().item() for mine in features.values()),
                    "median same noise first, with it": _median_first(
                        (mine, it) for mine in features.values())}
        rows.append(row)
    return pd.DataFrame(rows)


def _median_first(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    return pd.Series([scores.same_noise_first(*pair) for pair in pairs], dtype=float).median()
