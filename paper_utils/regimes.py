"""Section 3: the same scores against the number of training images, for a grid of models.

A grid is a table, a row per U-Net: model, width, images, half, seed, images seen. The functions
take it with samples or features by model name and return tables; a cell that was not trained is not
in the grid and so in no table. Transformers stand beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, product

import pandas as pd
import torch
from torch import Tensor

from paper_utils import artifacts, data, descriptors, models, recipes, samplers, scores, zoo
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

    A model of zoo/regimes/ that is not there is left out, and so are those that models.reaching
    leaves out. Raises UserError where one is that was trained on other images or by another recipe
    than its name says.
    """
    specs = recipes.regime_specs(profile.name)
    found = models.shipped_or_trained(specs, zoo.REGIMES, profile, images, device)
    return models.reaching(found, zoo.REGIMES, "grid_noises", profile.grid_noises)


def samples(found: Mapping[str, Model], profile: Profile) -> dict[str, Tensor]:
    """Images of the first profile.grid_noises noises from every model, uint8 [n, 3, 32, 32]."""
    return models.shipped_samples(found, zoo.REGIMES, profile.grid_noises, profile.shipped)


def grid(found: Mapping[str, Model]) -> pd.DataFrame:
    """What each U-Net is: model, width, images, half, seed, images seen, and whether it is a moment
    of a training before or after the budget that the others share."""
    rows = [(name, m.spec.network_args["width"], m.spec.images, m.spec.half, m.spec.seed,
             m.spec.images_seen) for name, m in found.items() if m.family == "U-Net"]
    table = pd.DataFrame(rows, columns=["model", "width", "images", "half", "seed", "images seen"])
    return table.assign(moment=pd.Series(["@" in name for name in table.model], dtype=bool))


def transformers(found: Mapping[str, Model]) -> pd.DataFrame:
    """The transformers beside the grid, of the same budget: model, images, half, images seen."""
    rows = [(name, m.spec.images, m.spec.half, m.spec.images_seen)
            for name, m in found.items() if m.family == "transformer"]
    return pd.DataFrame(rows, columns=["model", "images", "half", "images seen"])


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main grid: nested subsets, the first seed, the shared budget."""
    return table[(table.half == 0) & (table.seed == 0) & ~table.moment]


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
    return {n: models.samples(models.closed_form(name, images.first(n), device, profile.bag),
                              noises) for n in sizes}


# --- the scores against the number of images ----------------------------------------------------

def between_widths(table: pd.DataFrame, rows: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """RP (or another score) of every two widths at every number of images.

    Columns: images, pair ('16 / 32'), score, low, high, n, shuffled.
    """
    found = []
    for images, cell in cells(table).groupby("images"):
        for a, b in combinations(cell.sort_values("width").itertuples(), 2):
            score, chance = scores.agreement(rows[a.model], rows[b.model], hits)
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


def halves_beside_control(halves: pd.DataFrame) -> pd.DataFrame:
    """RP across halves under the pair 'width 16', and under 'Gaussian / width 16' RP with the
    control of the one of the two that has more of it; halves: of `across_halves`."""
    named = halves.assign(pair=[f"width {width}" for width in halves.width])
    form = named.assign(pair=CONTROL + named.pair, score=named.control,
                        low=named["control low"], high=named["control high"])
    return pd.concat([named, form], ignore_index=True)


def generalization(table: pd.DataFrame, features: Mapping[str, Tensor], known: Tensor,
                   real: Tensor, threshold: float) -> pd.DataFrame:
    """GL of every model against its own training images, and of held-out images against those.

    known: features of the whole training set; real: of held-out images. Columns: those of the grid,
    score, low, high, n, held-out.
    """
    rows, baseline = [], {}
    for cell in table.to_dict("records"):
        images, half = key = cell["images"], cell["half"]
        own = known[half * (len(known) // 2):][:images]
        if key not in baseline:
            baseline[key] = scores.gl(real, own, threshold).value
        score = scores.gl(features[cell["model"]], own, threshold)
        rows.append(score.row(**cell) | {"held-out": baseline[key]})
    return scores.table_of(rows, *table, "held-out")


def copied_by_control(gaussian: Mapping[int, Tensor], known: Tensor,
                      threshold: float) -> pd.DataFrame:
    """GL of the Gaussian denoiser of n images against these: the control of `generalization`.

    gaussian: n -> features of its samples; known: of the whole training set. Columns: images, pair
    (the name of the curve), score, low, high, n.
    """
    return pd.DataFrame([
        scores.gl(rows, known[:n], threshold).row(images=n, pair="Gaussian denoiser")
        for n, rows in gaussian.items()])


def with_closed_form(table: pd.DataFrame, samples: Mapping[str, Tensor],
                     features: Mapping[str, Tensor], theirs: Mapping[int, Tensor],
                     described: Mapping[int, Tensor], hits: Hits) -> pd.DataFrame:
    """RP of every width with samples of a closed form, of the same images or of all.

    theirs: number of images -> samples of the closed form, perhaps of fewer noises; described: the
    features of those. Columns: images, width, score, low, high, n, shuffled, distance (mean
    |difference| of pixels, 0..255).
    """
    found = []
    for row in cells(table).itertuples():
        rows, other = theirs[row.images], described[row.images]
        score, chance = scores.agreement(features[row.model][:len(rows)], other, hits)
        gap = (samples[row.model][:len(rows)].short() - rows.short()).abs().float().mean().item()
        found.append(score.row(images=row.images, width=row.width, shuffled=chance,
                               distance=gap))
    return pd.DataFrame(found)


def across_architectures(found: Mapping[str, Model], rows: Mapping[str, Tensor],
                         closed: Mapping[str, Mapping[int, Tensor]], hits: Hits) -> dict[int,
                         pd.DataFrame]:
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
        tables[row.images] = scores.pairwise(cell | {"DiT": rows[row.model]} | forms, hits)
    return tables


def across_halves(table: pd.DataFrame, features: Mapping[str, Tensor], control: Tensor,
                  hits: Hits) -> pd.DataFrame:
    """RP of two networks trained on disjoint halves (Kadkhodaie et al. 2024), the same width.

    control: features of the Gaussian denoiser of all images. Columns: images, width, score, low,
    high, n, shuffled, and with their intervals ('nearer low', 'nearer high') nearer
    (scores.nearer_than it), control (RP with it of the one of the two that has more) and gain (of
    score over that, paired).
    """
    found, first = [], cells(table)
    for row in table[table.half == 1].itertuples():
        twin = first[(first.images == row.images) & (first.width == row.width)]
        for other in twin.model:
            mine, theirs = features[row.model], features[other]
            both, form = hits(mine, theirs), max((hits(one, control) for one in (mine, theirs)),
                                                 key=lambda rows: rows.double().mean())
            nearer = scores.proportion(scores.nearer_than(control)(mine, theirs))
            score, chance = scores.agreement(mine, theirs, hits)
            own, gain = (scores.proportion(form), scores.paired_difference(both, form))
            found.append(score.row(images=row.images, width=row.width, shuffled=chance)
                         | nearer.beside("nearer") | own.beside("control") | gain.beside("gain"))
    return scores.table_of(found, "images", "width", "shuffled", *(
        name + end for name in ("nearer", "control", "gain") for end in ("", " low", " high")))


def between_seeds(table: pd.DataFrame, rows: Mapping[str, Tensor], hits: Hits) -> pd.DataFrame:
    """RP (or another score) of two seeds of one width on the same images: what another training
    changes, the floor of every difference between widths and sizes.

    Columns: images, width, score, low, high, n, shuffled.
    """
    found, first = [], cells(table)
    for row in table[table.seed > 0].itertuples():
        for twin in first[(first.images == row.images) & (first.width == row.width)].model:
            score, chance = scores.agreement(rows[twin], rows[row.model], hits)
            found.append(score.row(images=row.images, width=row.width, shuffled=chance))
    return scores.table_of(found, "images", "width", "shuffled")


def with_most_images(table: pd.DataFrame, features: Mapping[str, Tensor],
                     hits: Hits) -> pd.DataFrame:
    """RP of every network with that of its width trained on the most images: what more images
    change, where the width, and so how far training got, is the same.

    Columns: images, pair ('width 16'), score, low, high, n, and how much more that is than of the
    network of the fewest images, on the same noises: gain, gain low, gain high.
    """
    rows = []
    for width, cell in cells(table).groupby("width"):
        *fewer, most = cell.sort_values("images").itertuples()
        alike = [hits(features[row.model], features[most.model]) for row in fewer]
        for row, own in zip(fewer, alike):
            rows.append(scores.proportion(own).row(images=row.images, pair=f"width {width}")
                        | scores.paired_difference(own, alike[0]).beside("gain"))
    return scores.table_of(rows, "images", "pair", "gain", "gain low", "gain high")


def even_parts_alike(table: pd.DataFrame, parts: Mapping[str, Tensor],
                     optimal: Mapping[int, Tensor]) -> dict[str, pd.DataFrame]:
    """The cosine of even parts, what networks share that no affine denoiser makes.

    parts, optimal: of tables.even_parts_of, by model and of the optimal denoisers by number of
    images; a model that is not in `parts` is left out. Three tables, columns images, pair, score,
    low, high, n: 'each other', of every two widths; 'the optimal denoiser', of each width with that
    of the same images (these two also shuffled); 'that of the most images', of each width with its
    network of the most images of the table, where that is in `parts`.
    """
    here = cells(table)[lambda rows: rows.model.isin(parts)]
    rows = []
    for row in here.itertuples():
        score, chance = scores.agreement(parts[row.model], optimal[row.images], scores.cosine)
        rows.append(score.row(images=row.images, pair=f"width {row.width}", shuffled=chance))
    reached = here.width[here.images == cells(table).images.max()]
    return {"each other": between_widths(here, parts, scores.cosine),
            "the optimal denoiser": scores.table_of(rows, "images", "pair", "shuffled"),
            "that of the most images": with_most_images(here[here.width.isin(reached)], parts,
                                                        scores.cosine)}


def nearer_than_second(table: pd.DataFrame, samples: Mapping[str, Tensor],
                       pixels: Tensor) -> pd.DataFrame:
    """Share of copies by pixels: scores.nearest_ratio under 1/3 (Gu et al. 2023).

    Columns: images, width, score, low, high, n.
    """
    rows = []
    for row in cells(table).itertuples():
        ratio = scores.nearest_ratio(samples[row.model], pixels[:row.images])
        score = scores.proportion(ratio < 1 / 3)
        rows.append(score.row(images=row.images, width=row.width))
    return pd.DataFrame(rows)


def over_training(table: pd.DataFrame, features: Mapping[str, Tensor], gl: pd.DataFrame,
                  gaussian: Mapping[int, Tensor], hits: Hits) -> pd.DataFrame:
    """GL of the narrowest widths and RP between them against images seen (Bonnaire et al. 2025).

    gl: of `generalization`; gaussian: number of images -> features of samples of their Gaussian
    denoiser, the control. Only subset sizes of which other moments than the shared budget are
    there. Columns: images, images seen, what, pair ('width 16', '16 / 32', 'Gaussian / width 16'),
    score, low, high, n. what: 'GL', 'RP', or 'RP with its next moment', of a network with itself at
    the next of these moments of its training.
    """
    moments = table[table.moment]
    widths, rows = sorted(moments.width.unique()), []
    part = pd.concat([cells(table), moments])
    part = part[part.images.isin(moments.images) & part.width.isin(widths)]
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
            score = scores.proportion(hits(mine, theirs))
            rows.append(score.row(**where, what="RP", pair=pair))
    for (images, width), run in part.groupby(["images", "width"]):
        for row, after in pairwise(run.sort_values("images seen").to_dict("records")):
            own = hits(features[row["model"]], features[after["model"]])
            where = {"images": images, "images seen": row["images seen"]}
            rows.append(scores.proportion(own).row(
                **where, what="RP with its next moment", pair=f"width {width}"))
    return scores.table_of(rows, "images", "images seen", "what", "pair")


# --- the denoisers themselves -------------------------------------------------------------------

def partly_optimal(model: Model, images: data.Images, sigma: float, above: bool) -> Model:
    """`model` with the optimal denoiser of these images in its place at the noise levels above
    sigma, or else at all the others."""
    def generate(noise: Tensor, title: str = "") -> Tensor:
        network, optimal = model.denoiser(), OptimalDenoiser(images.pixels)
        both = lambda u, s: (optimal if (s > sigma) == above else network)(u, s)
        return samplers.sample(both, noise.to(model.device), model.solver, progress=title).cpu()

    where = f"optimal {'above' if above else 'below'}"
    made = {where: sigma, "images": images.hash,
            "code": models.sampling_code() + artifacts.code_version(partly_optimal)}
    return replace(model, name=f"{model.name}, {where} {sigma:g}", generate=generate, denoiser=None,
                   identity=model.identity | made)


def deciding_levels(found: Mapping[str, Model], table: pd.DataFrame, images: data.Images,
                    features: Mapping[str, Tensor], optimal: Mapping[int, Tensor],
                    describe: Descriptor, noises: int,
                    sigmas: Sequence[float] = (2.5, 5, 10, 20)) -> pd.DataFrame:
    """At which noise levels networks of few images leave the optimal denoiser.

    For the fewest images of the table: RP of `partly_optimal` of every width with the optimal
    denoiser alone ('width 16') and of every two widths with each other ('16 / 32'), for each sigma,
    with the network below it (where 'below') and above it ('above'). Where it has all levels, at
    the solver's sigma_max below and at 0 above, it is by itself, and where it has none the optimal
    denoiser. Models that ship as their sheet alone are left out. features: of their samples;
    optimal: number of images -> features of samples of their optimal denoiser. Columns: images,
    network, sigma, pair, score, low, high, n.
    """
    columns = "images", "network", "sigma", "pair"
    cell = cells(table)[lambda rows: rows.images == rows.images.min()].sort_values("width")
    cell = cell[[not found[name].sheet_alone for name in cell.model]]
    if cell.empty:
        return scores.table_of([], *columns)
    own, hits, rows = images.first(int(cell.images.min())), scores.copies(describe.threshold), []
    exact_, most = optimal[len(own)][:noises], found[cell.model.iloc[0]].solver.sigma_max

    def features_of(row, sigma: float, below: bool) -> Tensor:
        if sigma == most:
            return features[row.model][:noises] if below else exact_
        model = partly_optimal(found[row.model], own, sigma, above=below)
        return descriptors.features(describe, models.samples(model, noises))

    for where, sigma in product(("below", "above"), (*sigmas, most)):
        made = {row.width: features_of(row, sigma, where == "below") for row in cell.itertuples()}
        pairs = {f"width {width}": (mine, exact_) for width, mine in made.items()}
        pairs |= {f"{a} / {b}": (made[a], made[b]) for a, b in combinations(made, 2)}
        rows += [scores.proportion(hits(*both)).row(
            images=len(own), network=where, sigma=sigma, pair=pair) for pair, both in pairs.items()]
    return scores.table_of(rows, *columns)


@torch.no_grad()
@exact()
def denoiser_distances(networks: Mapping[int, Denoiser], images: data.Images,
                       asked: Mapping[str, Tensor], profile: Profile, device: str = "cpu",
                       sigmas: Sequence[float] = (0.05, 0.2, 0.5, 1, 2, 5, 20)) -> pd.DataFrame:
    """How far the answers of networks are from those of the closed forms of their images.

    networks: number of images -> denoiser; asked: images uint8 [B, 3, H, W] by what they are.
    Columns: asked about, images, form, sigma, distance (root mean square of D - D_form at
    x0 + sigma eps, per pixel, data in [-1, 1]), answer (of D_form - the mean image: how much the
    form says itself).
    """
    rows = []
    for n, network in networks.items():
        forms = {name: form.denoiser() for name, form in
                 models.closed_forms(images.first(n), profile.bag, device).items()}
        mean = forms["gaussian"].mean.to(device)
        for (what, pixels), sigma in product(asked.items(), sigmas):
            eps = torch.randn(pixels.shape, generator=stream("denoiser distances"))
            noisy = (data.to_unit(pixels) + sigma * eps).to(device)
            answer = network(noisy, sigma)
            for name, form in forms.items():
                theirs = form(noisy, sigma)
                rows.append((what, n, name, sigma, scores.rms(answer - theirs),
                             scores.rms(theirs - mean)))
    table = pd.DataFrame(rows, columns=["asked about", "images", "form", "sigma", "distance",
                                        "answer"])
    return table.sort_values("asked about", kind="stable", key=lambda c: c.map([*asked].index))


@torch.no_grad()
@exact()
def denoising_errors(networks: Mapping[str, Denoiser], pixels: Tensor, reference: Denoiser,
                     device: str = "cpu",
                     sigmas: Sequence[float] = (0.0625, 0.25, 1, 4, 16, 64)) -> pd.DataFrame:
    """Mean squared error of denoisers over that of a reference, on the same noisy images.

    pixels: the images that all are asked about, uint8 [B, 3, H, W]. Columns: network, sigma, score,
    low, high, n, error (mean of |D(x0 + sigma eps) - x0|^2 per pixel, data in [-1, 1]). The
    interval is that of a ratio of means over images (the bootstrap of its linear part), for an
    image that is hard for one is for the other.
    """
    clean, rows = data.to_unit(pixels).to(device), []
    eps = torch.randn(clean.shape, generator=stream("denoising errors")).to(device)

    def errors(denoiser: Denoiser, sigma: float) -> Tensor:
        gap = denoiser(clean + sigma * eps, sigma) - clean
        return gap.double().square().flatten(1).mean(1).cpu()

    others = {sigma: errors(reference, sigma) for sigma in sigmas}
    for (name, network), (sigma, other) in product(networks.items(), others.items()):
        error = errors(network, sigma)
        ratio = error.mean() / other.mean()
        score = scores.average(ratio + (error - ratio * other) / other.mean())
        rows.append(score.row(network=name, sigma=sigma) | {"error": error.mean().item()})
    return scores.table_of(rows, "network", "sigma", "error")


def with_nearest(samples: Tensor, features: Tensor, pixels: Tensor,
                 known: Tensor) -> tuple[Tensor, Tensor]:
    """Samples and the training image that is most similar to each, by cosine of features.

    pixels, known: training images, of the model alone, and their features.
    """
    return samples, pixels[(features @ known.T).argmax(1)]
