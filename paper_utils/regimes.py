"""Section 3: the same scores against the number of training images, for a grid of models.

A grid is a table, a row per U-Net: model, width, images, half, images seen. The functions take it
with samples or features by model name and return tables; a cell that was not trained is not in the
grid and so in no table. Transformers stand beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

import pandas as pd
import torch
from torch import Tensor

from paper_utils import data, descriptors, models, recipes, samplers, scores, training, zoo
from paper_utils.denoisers import Denoiser, OptimalDenoiser
from paper_utils.descriptors import Descriptor
from paper_utils.models import Model
from paper_utils.noise import stream
from paper_utils.precision import exact
from paper_utils.profiles import Profile
from paper_utils.scores import CONTROL, Hits


# --- the models ---------------------------------------------------------------------------------

def trained(profile: Profile, images: data.Images, device: str = "cpu") -> dict[str, Model]:
    """The models of section 3 by name; from zoo/regimes/ for the laptop profile, else trained now.

    A model of zoo/regimes/ that is not there is left out, as is one of which a sheet alone ships,
    of fewer images than profile.grid_noises. Raises UserError where one is that was trained on
    other images or by another recipe than its name says.
    """
    specs = recipes.regime_specs(profile.name)
    found = models.shipped_or_trained(specs, zoo.REGIMES, profile, images, device)
    return {name: model for name, model in found.items() if not model.sheet_alone
            or profile.grid_noises <= zoo.entry(name, zoo.REGIMES).noises}


def samples(found: Mapping[str, Model], profile: Profile) -> dict[str, Tensor]:
    """Images of the first profile.grid_noises noises from every model, uint8 [n, 3, 32, 32]."""
    return models.shipped_samples(found, zoo.REGIMES, profile.grid_noises, profile.shipped)


def grid(found: Mapping[str, Model]) -> pd.DataFrame:
    """What each U-Net is: model, width, images, half, images seen, and whether it is a moment of a
    training before or after the budget that the others share."""
    rows = [(name, m.spec.network_args["width"], m.spec.images, m.spec.half, m.spec.images_seen)
            for name, m in found.items() if m.family == "U-Net"]
    table = pd.DataFrame(rows, columns=["model", "width", "images", "half", "images seen"])
    return table.assign(moment=pd.Series(["@" in name for name in table.model], dtype=bool))


def transformers(found: Mapping[str, Model]) -> pd.DataFrame:
    """The transformers beside the grid, of the same budget: model, images, half, images seen."""
    rows = [(name, m.spec.images, m.spec.half, m.spec.images_seen)
            for name, m in found.items() if m.family == "transformer"]
    return pd.DataFrame(rows, columns=["model", "images", "half", "images seen"])


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main grid: nested subsets, the shared budget."""
    return table[(table.half == 0) & ~table.moment]


def fullest_width(table: pd.DataFrame) -> int:
    """The width trained at the most sizes; of several the widest."""
    counts = cells(table).groupby("width").images.nunique()
    return int(counts[counts == counts.max()].index.max())


def closed_samples(name: str, images: data.Images, sizes: Sequence[int], noises: int,
                   profile: Profile, device: str = "cpu") -> dict[int, Tensor]:
    """Samples of a closed form ('optimal', 'gaussian', 'local') of the first n images, for every n.

    noises: of a thirty-second of them for the local score, which takes a second for each, but of
    two at least: of one there are no shuffled noises.
    """
    noises = max(noises // (32 if name == "local" else 1), 2)
    return {n: models.samples(models.closed_forms(images.first(n), profile.bag, device)[name],
                              noises) for n in sizes}


# --- the scores against the number of images ----------------------------------------------------

def between_widths(table: pd.DataFrame, rows: Mapping[str, Tensor], hits: Hits,
                   resamples: int = 1_000) -> pd.DataFrame:
    """RP (or another score) of every two widths at every number of images.

    Columns: images, pair ('16 / 32'), score, low, high, n, shuffled.
    """
    found = []
    for images, cell in cells(table).groupby("images"):
        for a, b in combinations(cell.sort_values("width").itertuples(), 2):
            score, chance = scores.agreement(rows[a.model], rows[b.model], hits, resamples)
            found.append(score.row(images=images, pair=f"{a.width} / {b.width}",
                                   shuffled=chance))
    return scores.table_of(found, "images", "pair", "shuffled")


def beside_control(rp: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    """RP of pairs of widths; under the pair 'Gaussian / width 16' each width's with the control.

    rp: of `between_widths`; control: of `with_closed_form`, for the Gaussian denoiser.
    """
    named = control.assign(pair=[f"{CONTROL}width {width}" for width in control.width])
    return pd.concat([rp, named[[*rp]]], ignore_index=True)


def copies_beside_control(gl: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    """GL under the pair 'width 16', and the control's, of `copied_by_control`, under its own."""
    named = gl.assign(pair="width " + gl.width.astype(str))
    return pd.concat([named[[*control]], control], ignore_index=True)


def halves_beside_control(halves: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    """RP across halves under the pair 'width 16', and as `beside_control` that of the network of
    the first half with the control; halves: of `across_halves`."""
    own = control[control.width.isin(halves.width) & control.images.isin(halves.images)]
    named = halves.drop(columns="cosine")
    return beside_control(named.assign(pair=[f"width {width}" for width in halves.width]), own)


def own_images(spec: training.Spec, rows: Tensor) -> Tensor:
    """The rows (features or pixels of the whole dataset) of the images `spec` trains on."""
    start = spec.half * (len(rows) // 2)
    return rows[start:start + spec.images]


def generalization(found: Mapping[str, Model], table: pd.DataFrame, features: Mapping[str, Tensor],
                   known: Tensor, real: Tensor, threshold: float,
                   resamples: int = 1_000) -> pd.DataFrame:
    """GL of every model against its own training images, and of held-out images against those.

    known: features of the whole training set; real: of held-out images. Columns: those of the grid,
    score, low, high, n, held-out.
    """
    rows, baseline = [], {}
    for cell in table.to_dict("records"):
        own = own_images(found[cell["model"]].spec, known)
        key = cell["images"], cell["half"]
        if key not in baseline:
            baseline[key] = scores.gl(real, own, threshold, resamples).value
        score = scores.gl(features[cell["model"]], own, threshold, resamples)
        rows.append(score.row(**cell) | {"held-out": baseline[key]})
    return scores.table_of(rows, *table, "held-out")


def copied_by_control(gaussian: Mapping[int, Tensor], known: Tensor, threshold: float,
                      resamples: int = 1_000) -> pd.DataFrame:
    """GL of the Gaussian denoiser of n images against these: the control of `generalization`.

    gaussian: n -> features of its samples; known: of the whole training set. Columns: images, pair
    (the name of the curve), score, low, high, n.
    """
    return pd.DataFrame([
        scores.gl(rows, known[:n], threshold, resamples).row(
            images=n, pair=f"{CONTROL}training images") for n, rows in gaussian.items()])


def with_closed_form(table: pd.DataFrame, samples: Mapping[str, Tensor],
                     features: Mapping[str, Tensor], theirs: Mapping[int, Tensor],
                     described: Mapping[int, Tensor], hits: Hits,
                     resamples: int = 1_000) -> pd.DataFrame:
    """RP of every width with samples of a closed form, of the same images or of all.

    theirs: number of images -> samples of the closed form, perhaps of fewer noises; described: the
    features of those. Columns: images, width, score, low, high, n, shuffled, distance (mean
    |difference| of pixels, 0..255).
    """
    found = []
    for row in cells(table).itertuples():
        rows, other = theirs[row.images], described[row.images]
        score, chance = scores.agreement(features[row.model][:len(rows)], other, hits, resamples)
        gap = (samples[row.model][:len(rows)].short() - rows.short()).abs().float().mean().item()
        found.append(score.row(images=row.images, width=row.width, shuffled=chance,
                               distance=gap))
    return pd.DataFrame(found)


def across_architectures(found: Mapping[str, Model], rows: Mapping[str, Tensor],
                         closed: Mapping[str, Mapping[int, Tensor]], hits: Hits,
                         resamples: int = 1_000) -> dict[int, pd.DataFrame]:
    """RP (or another score) of the transformer with the U-Nets of the same images, and of all of
    them with closed forms: number of images -> scores.pairwise of 'U-Net 48', ..., 'DiT', ...

    closed: label -> number of images -> rows of a closed form, of the same noises.
    """
    tables, grid_ = {}, cells(grid(found)).sort_values("width")
    for row in transformers(found).itertuples():
        if row.images not in set(grid_.images):
            continue
        cell = {f"U-Net {u.width}": rows[u.model]
                for u in grid_[grid_.images == row.images].itertuples()}
        forms = {label: theirs[row.images] for label, theirs in closed.items()}
        tables[row.images] = scores.pairwise(cell | {"DiT": rows[row.model]} | forms, hits,
                                             resamples)
    return tables


def across_halves(table: pd.DataFrame, features: Mapping[str, Tensor], hits: Hits,
                  resamples: int = 1_000) -> pd.DataFrame:
    """RP of two networks trained on disjoint halves (Kadkhodaie et al. 2024), the same width.

    Columns: images, width, score, low, high, n, shuffled, cosine (mean, of the descriptors).
    """
    found, whole = [], table[~table.moment]
    for row in whole[whole.half == 1].itertuples():
        twin = whole[(whole.half == 0) & (whole.images == row.images) & (whole.width == row.width)]
        for other in twin.model:
            mine, theirs = features[row.model], features[other]
            score, chance = scores.agreement(mine, theirs, hits, resamples)
            found.append(score.row(images=row.images, width=row.width, shuffled=chance,
                                   cosine=(mine * theirs).sum(1).mean().item()))
    return scores.table_of(found, "images", "width", "shuffled", "cosine")


def nearer_than_second(found: Mapping[str, Model], table: pd.DataFrame,
                       samples: Mapping[str, Tensor], pixels: Tensor,
                       resamples: int = 1_000) -> pd.DataFrame:
    """Share of copies by pixels: scores.nearest_ratio under 1/3 (Gu et al. 2023).

    Columns: images, width, score, low, high, n.
    """
    rows = []
    for row in cells(table).itertuples():
        ratio = scores.nearest_ratio(samples[row.model], own_images(found[row.model].spec, pixels))
        score = scores.proportion(ratio < 1 / 3, resamples)
        rows.append(score.row(images=row.images, width=row.width))
    return pd.DataFrame(rows)


def over_training(table: pd.DataFrame, features: Mapping[str, Tensor], gl: pd.DataFrame,
                  gaussian: Mapping[int, Tensor], hits: Hits,
                  resamples: int = 1_000) -> pd.DataFrame:
    """GL of the narrowest widths and RP between them against images seen (Bonnaire et al. 2025).

    gl: of `generalization`; gaussian: number of images -> features of samples of their Gaussian
    denoiser, the control. Only subset sizes of which other moments than the shared budget are
    there. Columns: images, images seen, what ('GL' or 'RP'), pair ('width 16', '16 / 32',
    'Gaussian / width 16'), score, low, high, n.
    """
    moments = table[table.moment]
    widths, rows = sorted(moments.width.unique()), []
    part = table[(table.half == 0) & table.images.isin(moments.images) & table.width.isin(widths)]
    judged = gl.set_index("model")
    for (images, seen), cell in part.groupby(["images", "images seen"]):
        where = {"images": images, "images seen": seen}
        for row in cell.itertuples():
            score = judged.loc[row.model, ["score", "low", "high", "n"]].to_dict()
            rows.append(where | {"what": "GL", "pair": f"width {row.width}"} | score)
        pairs = {f"{a.width} / {b.width}": (features[a.model], features[b.model]) for a, b
                 in combinations(cell.sort_values("width").itertuples(), 2)}
        pairs |= {f"{CONTROL}width {row.width}": (features[row.model], gaussian[images])
                  for row in cell.itertuples()}
        for pair, (mine, theirs) in pairs.items():
            score = scores.proportion(hits(mine, theirs), resamples)
            rows.append(score.row(**where, what="RP", pair=pair))
    return scores.table_of(rows, "images", "images seen", "what", "pair")


# --- the denoisers themselves -------------------------------------------------------------------

def optimal_above(model: Model, images: data.Images, sigma: float) -> Model:
    """`model` at noise levels up to sigma, above them the optimal denoiser of these images."""
    def generate(noise: Tensor, title: str = "") -> Tensor:
        network, optimal = model.denoiser(), OptimalDenoiser(images.pixels)
        both = lambda u, s: network(u, s) if s <= sigma else optimal(u, s)
        return samplers.sample(both, noise.to(model.device), model.solver, progress=title).cpu()

    made = {"optimal above": sigma, "images": images.hash, "code": models.sampling_code()}
    return replace(model, name=f"{model.name}, optimal above {sigma:g}", generate=generate,
                   identity=model.identity | made)


def deciding_levels(found: Mapping[str, Model], table: pd.DataFrame, images: data.Images,
                    features: Mapping[str, Tensor], optimal: Mapping[int, Tensor],
                    describe: Descriptor, noises: int, sigmas: Sequence[float] = (2.5, 5, 10, 20),
                    resamples: int = 1_000) -> pd.DataFrame:
    """At which noise levels networks of few images leave the optimal denoiser.

    For the fewest images of the table: RP of `optimal_above` of every width with the optimal
    denoiser alone ('width 16') and of every two widths with each other ('16 / 32'), for each sigma;
    at the solver's sigma_max the networks are by themselves. Models that ship as their sheet alone
    are left out. features: of their samples; optimal: number of images -> features of samples of
    their optimal denoiser. Columns: images, sigma, pair, score, low, high, n.
    """
    cell = cells(table)[lambda rows: rows.images == rows.images.min()].sort_values("width")
    cell = cell[[not found[name].sheet_alone for name in cell.model]]
    if cell.empty:
        return scores.table_of([], "images", "sigma", "pair")
    own, hits, rows = images.first(int(cell.images.min())), scores.copies(describe.threshold), []
    for sigma in (*sigmas, found[cell.model.iloc[0]].solver.sigma_max):
        if sigma in sigmas:
            made = {row.width: descriptors.features(describe, models.samples(
                optimal_above(found[row.model], own, sigma), noises)) for row in cell.itertuples()}
        else:
            made = {row.width: features[row.model][:noises] for row in cell.itertuples()}
        pairs = {f"width {width}": (mine, optimal[len(own)][:noises]) for width, mine in made.items()}
        pairs |= {f"{a} / {b}": (made[a], made[b]) for a, b in combinations(made, 2)}
        rows += [scores.proportion(hits(*both), resamples).row(images=len(own), sigma=sigma,
                                                               pair=pair)
                 for pair, both in pairs.items()]
    return scores.table_of(rows, "images", "sigma", "pair")


@torch.no_grad()
@exact()
def denoiser_distances(networks: Mapping[int, Denoiser], images: data.Images,
                       asked: Mapping[str, Tensor], profile: Profile, device: str = "cpu",
                       sigmas: Sequence[float] = (0.05, 0.2, 0.5, 1, 2, 5, 20)) -> pd.DataFrame:
    """How far the answers of networks are from those of the closed forms of their images.

    networks: number of images -> denoiser; asked: images uint8 [B, 3, H, W] by what they are.
    Columns: asked about, images, form, sigma, distance (root mean square of D - D_form at
    x0 + sigma eps, per pixel, data in [-1, 1]).
    """
    rows = []
    for n, network in networks.items():
        forms = {name: form.denoiser() for name, form in
                 models.closed_forms(images.first(n), profile.bag, device).items()}
        for (what, pixels), sigma in product(asked.items(), sigmas):
            eps = torch.randn(pixels.shape, generator=stream("denoiser distances"))
            noisy = (data.to_unit(pixels) + sigma * eps).to(device)
            answer = network(noisy, sigma)
            rows += [(what, n, name, sigma, scores.rms(answer - form(noisy, sigma)))
                     for name, form in forms.items()]
    table = pd.DataFrame(rows, columns=["asked about", "images", "form", "sigma", "distance"])
    return table.sort_values("asked about", kind="stable", key=lambda c: c.map([*asked].index))


def with_nearest(spec: training.Spec, samples: Tensor, features: Tensor, pixels: Tensor,
                 known: Tensor) -> tuple[Tensor, Tensor]:
    """Samples and the image `spec` trained on that is most similar to each, by cosine of features.

    pixels, known: images and features of the whole training set.
    """
    best = (features @ own_images(spec, known).T).argmax(1)
    return samples, own_images(spec, pixels)[best]
