"""The rules that say whether this run agrees with the paper: a function a claim, by section.

The paper's numbers are in `published`; `HISTORY` says how the rules came about.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pandas as pd
from torch import Tensor

from paper_utils import published, recipes, scores, trainable
from paper_utils.claims import Claim
from paper_utils.scores import CONTROL, Score, across, among

RECALLED = " (recalled from the paper, not seen in a source)"
HISTORY = """Rules were written before their claim first ran, with four exceptions: the rule on
architecture families and those on even parts of sections 2 and 3 followed a trial, nearness to each
other is a second control that came later, and the controls of guidance and, by nearness, of
disjoint halves became claims after their numbers had been seen. A rule that was changed after
numbers had been seen

- became stricter, or got better intervals (Wilson's, Newcombe's and Student's; those of differences
  on the same noises, for even parts, of which there were 16 noises at first and are 32 now; those
  of shares that differ for fewer than six images, which reach 0);
- asks in more places (the mixture, at first only at new points) or about every pair, saying in how
  many it holds (the Gaussian control of section 3, at first only for the lowest pair; that of
  consistency models of several steps, at first for means; partial fine-tuning, at first attention
  alone);
- has the nearest control (the Gaussian denoiser under guidance, at first of the models' own
  weight; even parts of either model with GANs and VAEs, at first of any, by point values);
- leaves undecided what the intervals do not decide (with which model consistency training agrees
  most);
- does not count what did not move (the shared start of fine-tuning) or was not trained finely
  enough to tell (the widest network, where GL passes 1/2);
- asks what can be answered (blur, which was once filtered on both sides), or says so (consistency
  models of several steps, of which the claim once said that they make one image)."""
NEAREST = "nearest noise"  # the map of the noise plane that shows the noises themselves
MARGIN = 0.1  # RP that counts as lost; settled before any of these scores was seen
SAID = {"paper": "said, without a number", "grade": "S"}
UNSEEN = {"paper": "recalled, not seen", "grade": "M"}
SCORE, DIFFERENCE = ("score", "low", "high"), ("difference", "low", "high")


def _ours(*parts: tuple, columns: Sequence[str] = SCORE) -> dict:
    """The fields `ours` and `n` of a Claim, from rows of tables and what each is.

    parts: (row, what, columns): what may name columns of the row in braces; columns: those of the
    number and the ends of its interval, which parts without them take from `columns`. n: that of
    the first row; a row that is None is left out.
    """
    parts = [(row, what, own[0] if own else columns) for row, what, *own in parts
             if row is not None]
    if not parts:
        return {}
    texts = ["{:z.2f} [{:z.2f}, {:z.2f}] ({})".format(*row[list(own)], what.format_map(row))
             for row, what, own in parts]
    n = parts[0][0].get("n")
    return {"ours": "; ".join(dict.fromkeys(texts)), "n": None if n is None else int(n)}


def _least(table: pd.DataFrame, by: pd.Series) -> pd.Series | None:
    """The first row where `by` is lowest; None of an empty table."""
    return table.iloc[by.argmin()] if len(table) else None


def _span(numbers: Iterable[float], between: str = " to ") -> str:
    """Lowest and highest number with two digits, or with more where the paper has more."""
    numbers = list(numbers)
    ends = [max(f"{x:.2f}", f"{x:g}", key=len) for x in (min(numbers), max(numbers))]
    return between.join(dict.fromkeys(ends))


def _ends(numbers: Iterable[float]) -> str:
    """Lowest and highest number with two digits."""
    return "{:z.2f} to {:z.2f}".format(min(numbers), max(numbers))


def _papers_end(score: str, k: int) -> str:
    """All widths of published.CURVES at its fewest (k = 0) or most (k = -1) images."""
    values = _span((curve[k] for curve in published.CURVES[score].values()), "-")
    return f"{values} at {published.SIZES[k]} images"


def _papers_half_way() -> str:
    """Between which numbers of images the paper's curves of GL pass 1/2."""
    curves = published.curves("GL", "width").groupby("width", sort=False)
    return "; ".join(f"width {width}: {n}-{m} images"
                     for width, (n, m) in ((width, half_way(curve)) for width, curve in curves))


def worst(pairs: pd.DataFrame) -> str:
    """The pair with the lowest score: a verdict on all pairs hangs on it."""
    row = pairs.loc[pairs.score.idxmin()]
    return f"{row.model}, {row.other}"


def _range(pairs: pd.DataFrame) -> str:
    """The lowest score with its pair, and the highest."""
    return f"{pairs.score.min():.2f} ({worst(pairs)}) to {pairs.score.max():.2f}"


# --- section 2 ----------------------------------------------------------------------------------

def high_for_every_pair(name: str, pairs: pd.DataFrame,
                        paper: Sequence[Sequence[float]]) -> Claim:
    """Different diffusion models make nearly the same image; paper: published.RP or published.MAE.

    pairs: of all diffusion models; those of the paper's seven decide.
    """
    lowest = min(map(min, paper))
    statement = f"{name}: any two diffusion models make nearly the same image"
    rule = (f"the lowest pair of counterparts of the paper's models has at least {lowest:.2f}, the "
            "paper's lowest; partly if every interval is above the midpoint between shuffled "
            "noises and that")
    ours = among(pairs, published.COUNTERPARTS.values())
    if ours.empty:
        return Claim(statement, rule, "no such pair", "not decided: not trained yet")
    verdict = _as_high(ours, lowest)
    return Claim(statement, rule,
                 f"lowest {ours.score.min():.2f} ({worst(ours)}), highest {ours.score.max():.2f}, "
                 f"shuffled noises at most {ours.shuffled.max():.2f}; the lowest of all "
                 f"{len(pairs)} pairs is {pairs.score.min():.2f} ({worst(pairs)})", verdict,
                 _span(sum(paper, ())), "S", **_ours((_least(ours, ours.score),
                                                      "{model}, {other}")))


def _as_high(pairs: pd.DataFrame, lowest: float) -> str:
    """The verdict on pairs whose counterparts in the paper have at least `lowest`."""
    half_way = (pairs.shuffled + lowest) / 2
    return ("reproduced" if pairs.score.min() >= lowest else
            "partly: lower than the paper" if (pairs.low > half_way).all() else "not reproduced")


def lower_without_diffusion(name: str, diffusion: pd.DataFrame, contrast: pd.DataFrame,
                            paper: Sequence[Sequence[float]]) -> Claim:
    """GANs and VAEs do not share the property.

    diffusion: pairs of many-step models; paper: published.RP or published.MAE.
    """
    low, high = diffusion.score.min(), contrast.score.max()
    hardly = _as_high(diffusion, min(map(min, paper))) == "not reproduced"
    verdict = ("not reproduced" if high >= low else
               "not decided: by this score diffusion models hardly have it" if hardly else
               "reproduced" if contrast.high.max() < diffusion.low.min() else
               "not decided: intervals overlap")
    return Claim(f"{name}: GANs and VAEs do not have this property",
                 "their highest pair is below the lowest pair of many-step diffusion models, with "
                 "non-overlapping intervals, and the latter is above the midpoint between shuffled "
                 "noises and the paper's lowest",
                 f"highest GAN/VAE pair {high:.2f}, lowest diffusion pair {low:.2f} "
                 f"({worst(diffusion)})", verdict, **SAID,
                 **_ours((_least(contrast, -contrast.score), "{model}, {other}"),
                         (_least(diffusion, diffusion.score), "{model}, {other}")))


def more_than(name: str, pairs: pd.DataFrame, reference: pd.DataFrame, what: str) -> Claim:
    """This project's control: agreement with each other, not only with a closed form.

    reference: agreement with the closed form of at least one model of every pair.
    """
    beside = scores.beside_control(pairs, reference)
    more, less = beside.more.sum(), beside.less.sum()
    verdict = ("yes" if more == len(pairs) else
               f"in {more} of {len(pairs)} pairs; the reverse in {less}")
    least = _least(beside, beside.score - beside.nearest)
    own = reference[(reference.model == least.nearer) | (reference.other == least.nearer)]
    return Claim(f"{name}: the models agree more with each other than with {what} (our control)",
                 "every pair's score is above that of either model with the closed form, with "
                 "non-overlapping intervals",
                 f"models: {_range(pairs)}, median {pairs.score.median():.2f}; with the closed "
                 f"form: {reference.score.min():.2f} to {reference.score.max():.2f}, median "
                 f"{reference.score.median():.2f}; above one of the two at least in "
                 f"{beside.above.sum()} of {len(pairs)} pairs, below one in {beside.below.sum()}",
                 verdict, **_ours((least, "{model}, {other}"),
                                  (_least(own, -own.score), "{model}, {other}")))


def nothing_copied(gl: pd.DataFrame, held_out: float, control: float) -> Claim:
    """The models are in the generalization regime: their samples are no training images.

    gl: columns model, GL, low, high, n; control: GL of a closed form that cannot copy.
    """
    least = gl.iloc[gl.GL.argmin()]
    verdict = ("not reproduced" if least.GL < held_out - 0.05 else
               "reproduced" if control < held_out - 0.05 else
               "reproduced, also by the Gaussian denoiser, which cannot copy")
    return Claim("GL: trained on all of CIFAR-10, the models do not copy it",
                 "the lowest GL is at most 0.05 below that of held-out real images",
                 f"lowest GL {least.GL:.2f} ({least.model}), held-out real images {held_out:.2f}, "
                 f"the Gaussian denoiser (our control) {control:.2f}",
                 verdict, f"{_papers_end('GL', -1)} (U-Nets of section 3)", "F",
                 **_ours((least, "{model}"), columns=("GL", "low", "high")))


def even_parts_shared(pairs: pd.DataFrame, gain: pd.DataFrame, contrast: Sequence[str]) -> Claim:
    """This project's control: what no affine denoiser makes is shared too.

    pairs: scores.pairwise of tables.even_parts_of, without the even part of the Gaussian denoiser's
    limited images, of diffusion models and of GANs and VAEs (`contrast`). gain: scores.gains of
    every two many-step models over the pairs of either with one of those.
    """
    ours = gain[["model", "other"]].merge(pairs)
    other = pairs[pairs.model.isin(contrast) | pairs.other.isin(contrast)]
    more = ((ours.low > 0) & (gain.low > 0)).sum()
    least = _least(gain, gain.low)
    return Claim("Even part: the models share what no Gaussian denoiser makes (our control)",
                 "for every two many-step models the cosine of even parts on the same noise (what "
                 "stays of an image when the noise changes sign, without that of the Gaussian "
                 "denoiser's images limited to the range of pixels) is above 0, its interval "
                 "included, and above that of either with every GAN and VAE (by the interval of "
                 "the difference, same noises)",
                 f"models: {_range(ours)}, median {ours.score.median():.2f}; shuffled noises "
                 f"{_ends(ours.shuffled)}; with a GAN or VAE {_ends(other.score)}",
                 "yes" if more == len(ours) else f"in {more} of {len(ours)} pairs",
                 **_ours((_least(ours, ours.low), "{model}, {other}"),
                         (least, "{model}, {other} minus {against}", DIFFERENCE)))


def maps_alike(agreement: Mapping[tuple[str, str], float], chance: float,
               contrast: Mapping[tuple[str, str], float], nearest: Sequence[float]) -> Claim:
    """The noise hyperplane is divided alike by different models.

    Controls: GANs and VAEs among themselves, and the map of the corner that is nearest in noise
    with each model's.
    """
    least, pair = min(agreement.values()), ", ".join(min(agreement, key=agreement.get))
    verdict = ("not reproduced" if least <= chance else
               "partly: above chance" if least <= (1 + chance) / 2 else
               "reproduced" if least > max(*contrast.values(), *nearest) else
               "partly: no more than GANs and VAEs, or than with the noise itself")
    return Claim("Hyperplane: different models divide the noise plane alike",
                 "every two maps name the same corner at a share of points above the midpoint "
                 "between chance and 1, above the share of any two GANs or VAEs, and above the "
                 "share at which any model names the corner nearest in noise (our controls); "
                 "partly if above chance",
                 f"lowest agreement {least:.2f} ({pair}), chance {chance:.2f}; GANs and VAEs among "
                 f"themselves {_ends(contrast.values())}; with the corner nearest in noise "
                 f"{_ends(nearest)}", verdict, **SAID, ours=f"{least:.2f} ({pair})")


def unconditional(rp: pd.DataFrame, mae: pd.DataFrame, diffusion: list[str],
                  many_steps: list[str], contrast: list[str], even: pd.DataFrame,
                  gain: pd.DataFrame, gl: pd.DataFrame,
                  winners: Mapping[str, Tensor]) -> list[Claim]:
    """The claims of section 2, for pairs `rp`, `mae` and `even`, GL per model, hyperplane maps.

    diffusion: all diffusion models, `many_steps` those that are no students of one step. even,
    gain: see even_parts_shared. winners: which corner each point of the plane is most like, by
    model (scores.hyperplane_map), and NEAREST: which is nearest in noise.
    """
    claims = []
    for name, pairs, paper in (("RP", rp, published.RP), ("MAE score", mae, published.MAE)):
        ours = among(pairs, many_steps)
        claims += [high_for_every_pair(name, among(pairs, diffusion), paper),
                   lower_without_diffusion(name, ours, among(pairs, contrast), paper),
                   more_than(name, ours, across(pairs, many_steps, ["gaussian"]),
                             "the Gaussian denoiser")]
    found = gl.set_index("model", drop=False)
    agreement, chance = scores.map_agreement({name: winners[name] for name in diffusion})
    others, _ = scores.map_agreement({name: winners[name] for name in contrast})
    nearest = [(winners[name] == winners[NEAREST]).double().mean().item() for name in diffusion]
    return [*claims, even_parts_shared(even, gain, contrast),
            nothing_copied(found.loc[diffusion], found.GL["held-out"], found.GL["gaussian"]),
            maps_alike(agreement, chance, others, nearest)]


# --- section 3 ----------------------------------------------------------------------------------

def valley(rp: pd.DataFrame) -> Claim:
    """RP falls with the number of images, has its minimum between the regimes, rises after."""
    measured, found, worst_fit = [], [], None
    rp = rp[rp.groupby("pair").images.transform("nunique") > 2]  # a valley has two sides
    for pair, curve in rp.groupby("pair", sort=False):
        curve = curve.sort_values("images")
        lowest = _lowest(curve)
        falls, rises = (bool((side.low > lowest.high).any()) for side in
                        (curve[curve.images < lowest.images], curve[curve.images > lowest.images]))
        found.append((falls, rises, lowest.inside))
        if worst_fit is None or sum(found[-1]) < worst_fit[0]:
            worst_fit = sum(found[-1]), (curve.iloc[0], lowest, curve.iloc[-1])
        measured.append(f"{pair}: {curve.score.iloc[0]:.2f} at {curve.images.iloc[0]}, lowest "
                        f"{lowest.score:.2f} at {lowest.images} ({_where(lowest, curve)}), "
                        f"{curve.score.iloc[-1]:.2f} at {curve.images.iloc[-1]}")
    falls, rises, there = (sum(pair[k] for pair in found) for k in range(3))
    verdict = ("not decided: too few sizes trained" if not found else
               "reproduced" if falls == rises == there == len(found) else
               "not reproduced" if not falls + rises else
               f"partly: of {len(found)} pairs {falls} with a fall, {rises} with a rise, {there} "
               "with the lowest between the paper's regimes")
    return Claim("RP falls with the number of images, is lowest between the regimes, and rises "
                 "after",
                 "for every two widths, some size on each side of the lowest RP has an interval "
                 "above that of the lowest, and the lowest is at more than "
                 f"{published.MEMORIZATION} and less than {published.GENERALIZATION:.0f} images; "
                 "partly if some of this holds",
                 "; ".join(measured), verdict,
                 f"falls from {_papers_end('RP', 0)} to "
                 f"{_span(map(min, published.CURVES['RP'].values()), '-')}, rises to "
                 f"{_papers_end('RP', -1)}", "F",
                 **_ours(*((row, "{pair} at {images} images") for row in
                           (worst_fit[1] if worst_fit else ()))))


def _lowest(curve: pd.DataFrame) -> pd.Series:
    """The row with the lowest score; of several, one between the paper's regimes (`inside`)."""
    inside = curve.images.between(published.MEMORIZATION, published.GENERALIZATION,
                                  inclusive="neither")
    rows = curve.assign(inside=inside)[curve.score == curve.score.min()]
    return rows.loc[rows.inside.idxmax()]


def _where(lowest: pd.Series, curve: pd.DataFrame) -> str:
    ends = curve.images.min(), curve.images.max()
    return ("between the paper's regimes" if lowest.inside else
            "at an end of the sizes trained" if lowest.images in ends else
            "not between the paper's regimes")


def half_way(curve: pd.DataFrame) -> tuple[int, int] | None:
    """The two numbers of images between which GL passes 1/2; None where it does not."""
    rows = curve.sort_values("images")
    pairs = pairwise(zip(rows.images, rows.score))
    return next(((n, m) for (n, low), (m, high) in pairs if low < 0.5 <= high), None)


def moves_right(gl: pd.DataFrame) -> list[Claim]:
    """GL goes from 0 to 1 with the number of images, and later for a larger model."""
    ends, middles = {}, {}
    gl = gl[gl.groupby("width").images.transform("nunique") > 1]
    for width, curve in gl.groupby("width"):
        curve = curve.sort_values("images")
        ends[width] = curve.iloc[0], curve.iloc[-1]
        middles[width] = half_way(curve)
    highest, lowest = (pick((end[k] for end in ends.values()), key=lambda row: row.score,
                            default=None) for pick, k in ((max, 0), (min, 1)))
    apart = bool(ends) and highest.score < 0.5 and lowest.score > 0.9
    shape = Claim("GL goes from 0 (all copies) to 1 (none) with the number of training images",
                  "for every width GL is below 0.5 at its fewest images and above 0.9 at its most",
                  "; ".join(f"width {w}: {a.score:.2f} to {b.score:.2f}"
                            for w, (a, b) in ends.items()),
                  "not decided: too few sizes trained" if not ends else
                  "reproduced" if apart else "not reproduced",
                  f"{_papers_end('GL', 0)}, {_papers_end('GL', -1)}", "F",
                  **_ours((highest, "width {width:.0f}, {images:.0f} images"),
                          (lowest, "width {width:.0f}, {images:.0f} images")))
    sizes = sorted({*gl.images})
    told = {w: m for w, m in middles.items() if not m or m in pairwise(sizes)}
    known = [middle for middle in told.values() if middle]
    verdict = ("not decided: too few widths trained" if len(told) < 2 else
               "not decided: GL of a width never passes 1/2 here" if len(known) < len(told) else
               "reproduced" if all(a[1] <= b[0] for a, b in pairwise(known)) else
               "not decided: two widths pass 1/2 between the same sizes"
               if all(a <= b for a, b in pairwise(known)) else "not reproduced")
    passed = "; ".join(f"width {w}: " + ("{}-{} images".format(*m) if m else "never")
                       + ("" if w in told else ", not trained in between")
                       for w, m in middles.items())
    return [shape, Claim("The larger the model, the more images it can memorize",
                         "for every larger width GL passes 1/2 at more images: between two sizes "
                         "that are no smaller than those of the width before; a width not trained "
                         "at sizes in between, where others were, does not count", passed, verdict,
                         _papers_half_way(), "F", ours=passed)]


def leaves_the_optimum(optimal: pd.DataFrame) -> Claim:
    """Agreement with the optimal denoiser falls to 0."""
    optimal = optimal[optimal.groupby("width").images.transform("nunique") > 1]
    ends = {w: c.sort_values("images").iloc[[0, -1]] for w, c in optimal.groupby("width")}
    falls = all(e.low.iloc[0] > e.high.iloc[1] for e in ends.values())
    gone = all(e.low.iloc[1] < 0.01 for e in ends.values())
    worst_fit = max(ends.values(), default=optimal, key=lambda e: (
        e.low.iloc[0] <= e.high.iloc[1], e.low.iloc[1]))
    verdict = ("not decided: too few sizes trained" if not ends else
               "reproduced" if falls and gone else
               "partly: it falls" if falls else "not reproduced")
    return Claim("Agreement with the optimal denoiser falls to 0 as the number of images grows",
                 "for every width the interval at the fewest images is above that at the most, and "
                 "the latter reaches below 0.01",
                 "; ".join(f"width {w}: {e.score.iloc[0]:.2f} to {e.score.iloc[1]:.2f}"
                           for w, e in ends.items()), verdict,
                 f"{_papers_end('optimal', 0)}, {_papers_end('optimal', -1)}", "F",
                 **_ours(*((row, "width {width:.0f}, {images:.0f} images")
                           for _, row in worst_fit.iterrows())))


def halves_agree(halves: pd.DataFrame) -> Claim:
    """Networks trained on disjoint halves come to agree (Kadkhodaie et al. 2024).

    Our control: two halves share their mean and covariance nearly, so two networks that learned
    nothing else would agree too, as much as each does with the Gaussian denoiser. halves: of
    regimes.across_halves.
    """
    statement = ("Two networks that share no training image agree once they have enough of them "
                 "(Kadkhodaie et al. 2024)")
    rule = ("RP at the most images is above that at the fewest, with non-overlapping intervals, "
            "and above shuffled noises; partly if it is not above the higher of the two networks' "
            "RP with the Gaussian denoiser, by the interval of the difference (our control)")
    curve = halves.sort_values("images")
    if curve.images.nunique() < 2:
        return Claim(statement, rule, f"{len(halves)} pairs", "not decided: not trained yet")
    first, last = curve.iloc[0], curve.iloc[-1]
    verdict = ("not reproduced" if last.low <= max(first.high, last.shuffled) else
               "reproduced" if last["gain low"] > 0 else
               "partly: no more than with the Gaussian denoiser")
    measured = (f"{first.score:.2f} at {first.images:.0f} images, {last.score:.2f} at "
                f"{last.images:.0f}, where RP with the Gaussian denoiser is {last.control:.2f}, "
                f"difference {last.gain:+.2f} [{last['gain low']:.2f}, {last['gain high']:.2f}]")
    return Claim(statement, rule, measured, verdict, **_ours(
        (last, "width {width:.0f}, {images:.0f} images"),
        (first, "width {width:.0f}, {images:.0f} images"),
        (last, "minus the control at {images:.0f} images", ("gain", "gain low", "gain high"))))


def halves_nearer(halves: pd.DataFrame) -> list[Claim]:
    """Our control of disjoint halves without a threshold, at the most images."""
    last = halves[halves.images == halves.images.max()]
    pairs = last[["n"]].assign(model=[f"width {width}" for width in last.width],
                               other="of the other half", score=last.nearer,
                               low=last["nearer low"], high=last["nearer high"])
    return [nearer_to_each_other("Two networks trained on disjoint halves, of the most images,",
                                 pairs)] if len(pairs) else []


def more_than_gaussian(alike: Mapping[int, pd.DataFrame],
                       nearer: Mapping[int, pd.DataFrame]) -> list[Claim]:
    """Our controls of the networks of the most images, U-Nets and a transformer: do they agree more
    than each does with the Gaussian denoiser, and are they nearer to each other than to it?

    alike, nearer: of regimes.across_architectures, number of images -> RP with closed forms among
    the rows, and scores.nearer_than the Gaussian denoiser.
    """
    if len(alike) < 2:  # of the fewest images at most, where all copy
        return []
    most = max(alike)
    nets = {*nearer[most].model, *nearer[most].other}
    return [more_than(f"RP of U-Nets and a transformer trained on {most:,} images",
                      among(alike[most], nets), across(alike[most], nets, ["gaussian"]),
                      "the Gaussian denoiser"),
            nearer_to_each_other(f"U-Nets and a transformer trained on {most:,} images",
                                 nearer[most])]


def nearer_to_each_other(what: str, pairs: pd.DataFrame) -> Claim:
    """Our control without a threshold. pairs: scores.nearer_than the Gaussian denoiser."""
    statement = (f"{what} are nearer to each other than either is to the Gaussian denoiser (our "
                 "control, without a threshold)")
    rule = ("for every pair on more than half of the noises by the descriptor, the interval "
            "included (about 0 if all they share is that denoiser, a third if the three are "
            "equally far apart)")
    if pairs.empty:
        return Claim(statement, rule, "no pair", "not decided: not trained yet")
    more = int((pairs.low > 1 / 2).sum())
    return Claim(statement, rule,
                 f"{_range(pairs)}, median {pairs.score.median():.2f}",
                 "yes" if more == len(pairs) else f"for {more} of {len(pairs)} pairs",
                 **_ours((_least(pairs, pairs.score), "{model}, {other}"),
                         (_least(pairs, -pairs.score), "{model}, {other}")))


def even_parts_converge(curves: pd.DataFrame) -> Claim:
    """Our question, where the Gaussian denoiser has nothing: do networks of fewer images learn what
    those of the most learn?

    curves: 'that of the most images' of regimes.even_parts_alike.
    """
    statement = ("Even part: with more images networks come to share with the network of the most "
                 "what no Gaussian denoiser makes (our question)")
    rule = ("for every width, the cosine of even parts on the same noise with the network of that "
            "width trained on the most images is, at the next most images, above 0 and above that "
            "at the fewest (by the interval of the difference, same noises); partly if for some "
            "width; a width with fewer than two smaller sizes does not count")
    curves = curves[curves.groupby("pair").images.transform("nunique") > 1]
    if curves.empty:
        return Claim(statement, rule, "too few sizes", "not decided: too few sizes trained")
    ends = {width: [row for _, row in curve.sort_values("images").iloc[[0, -1]].iterrows()]
            for width, curve in curves.groupby("pair")}
    margin = {width: min(last.low, last["gain low"]) for width, (_, last) in ends.items()}
    rises, least = sum(by > 0 for by in margin.values()), min(margin, key=margin.get)
    return Claim(statement, rule,
                 "; ".join(f"{width}: {first.score:z.2f} at {first.images} images, "
                           f"{last.score:z.2f} at {last.images}"
                           for width, (first, last) in ends.items()),
                 "yes" if rises == len(ends) else
                 f"partly: for {rises} of {len(ends)} widths" if rises else "no",
                 **_ours((ends[least][1], "{pair}, {images} images"),
                         (ends[least][1], f"minus that at {ends[least][0].images} images",
                          ("gain", "gain low", "gain high"))))


def even_parts_of_the_most(shared: Mapping[int, pd.DataFrame]) -> list[Claim]:
    """Our control of the networks of the most images: do they share what no affine denoiser makes?

    shared: number of images -> cosines of even parts, of regimes.across_architectures.
    """
    if not shared:
        return []
    most = max(shared)
    pairs, more = shared[most], int((shared[most].low > 0).sum())
    return [Claim(f"Even part: U-Nets and a transformer trained on {most:,} images share what no "
                  "Gaussian denoiser makes (our control)",
                  "for every pair the cosine of even parts on the same noise is above 0, its "
                  "interval included", f"{_range(pairs)}, median {pairs.score.median():.2f}",
                  "yes" if more == len(pairs) else f"in {more} of {len(pairs)} pairs",
                  **_ours((_least(pairs, pairs.score), "{model}, {other}"),
                          (_least(pairs, -pairs.score), "{model}, {other}")))]


def mixture_crosses(errors: pd.DataFrame, crossings: pd.DataFrame) -> Claim:
    """From the empirical optimum to the ground truth, in a mixture of Gaussians.

    errors, crossings: of `mixture`, both at noisy training points and at new ones.
    """
    kinds, lowest = ("training", "new"), errors.sigma.min()
    found = crossings[crossings.crossing.notna() & crossings.decided]
    nearer = {at: (part["to ground truth"] < part["to empirical"]).tolist() for at, part
              in errors.sort_values("points").groupby(["asked about", "sigma"])}
    leaves = {at for at, truth in nearer.items() if truth[-1] and not truth[0]}
    holds = leaves & set(zip(found["asked about"], found.sigma))
    here = [kind for kind in kinds if (kind, lowest) in holds]
    others = ", ".join(f"{sigma:g}" for sigma in sorted(set(errors.sigma))
                       if all((kind, sigma) in holds for kind in kinds))
    verdict = ("reproduced" if len(here) == len(kinds) else
               f"partly: only at noisy {here[0]} points" if here else
               "not decided: the two truths are nearer to each other than the network is to them"
               if all((kind, lowest) in leaves for kind in kinds) else
               f"not reproduced: only at sigma {others}, not at the lowest" if others else
               "not reproduced")
    rows = found.to_dict("records")
    there = ["crossing at {crossing:.0f} [{low:.0f}, {high:.0f}] points (at noisy {asked about} "
             "points, sigma {sigma:g})".format_map(row) for row in rows if row["sigma"] == lowest]
    return Claim("Mixture of Gaussians: with more data the network leaves the empirical optimum "
                 "for the ground truth (settings and rule are ours)",
                 "at the lowest noise level the empirical optimum is nearer with the fewest points "
                 "and the ground truth with the most, both at noisy new points and at noisy "
                 "training points (added after the former had been seen); a crossing counts only "
                 "where the two are farther from each other than the network is from them",
                 "; ".join("{asked about} points, sigma {sigma:g}: at {crossing:.0f} points"
                           .format_map(row) for row in rows) or "no decided crossing", verdict,
                 "studied, settings not seen", "S",
                 ours="; ".join(there) or f"no decided crossing (sigma {lowest:g})",
                 n=int(found.n.iloc[0]) if there else None)


def two_regimes(rp: pd.DataFrame, gl: pd.DataFrame, optimal: pd.DataFrame, halves: pd.DataFrame,
                even: pd.DataFrame, shared: Mapping[int, pd.DataFrame], errors: pd.DataFrame,
                crossings: pd.DataFrame, alike: Mapping[int, pd.DataFrame],
                nearer: Mapping[int, pd.DataFrame]) -> list[Claim]:
    """The claims of section 3, from the tables of `regimes` and `mixture`.

    even, shared: see even_parts_converge and even_parts_of_the_most.
    """
    return [valley(rp), *moves_right(gl), leaves_the_optimum(optimal), halves_agree(halves),
            *halves_nearer(halves), *more_than_gaussian(alike, nearer), even_parts_converge(even),
            *even_parts_of_the_most(shared), mixture_crosses(errors, crossings)]


# --- section 4: conditional models --------------------------------------------------------------

def carries_over(gaps: pd.DataFrame, rp_cond: pd.DataFrame) -> Claim:
    """The property carries over to class-conditional models.

    gaps: conditional.carried_over.
    """
    statement = ("The property carries over to conditional models: same noise, same class, nearly "
                 "the same image")
    rule = (f"for every pair of twins RP_cond is at most {MARGIN} below the unconditional RP on "
            "the same noises (by the interval of the difference; the margin is our reading of "
            "\"carries over\"), and every RP_cond is above that of the same class with shuffled "
            "noises; partly if only the latter holds")
    if gaps.empty:
        return Claim(statement, rule, "no pair", "not decided: not trained yet", **SAID)
    verdict = ("not reproduced" if not (rp_cond.low > rp_cond.shuffled).all() else
               "reproduced" if (gaps.low > -MARGIN).all() else
               "partly: above chance, lower than without classes" if (gaps.high < -MARGIN).any()
               else "not decided: the intervals are too wide")
    least = gaps.loc[gaps.difference.idxmin()]
    return Claim(statement, rule,
                 f"RP_cond {_range(rp_cond)}, shuffled noises at most "
                 f"{rp_cond.shuffled.max():.2f}, same noise but another class "
                 f"{rp_cond['other class'].min():.2f} to "
                 f"{rp_cond['other class'].max():.2f}; the lowest difference of {len(gaps)} pairs "
                 f"of twins is that of {least.model}, {least.other}: "
                 f"{least.score:.2f} against {least.twins:.2f} without classes, "
                 f"{least.difference:.2f} [{least.low:.2f}, {least.high:.2f}]", verdict, **SAID,
                 **_ours((least, "{model}, {other}: RP_cond minus RP of their twins"),
                         columns=DIFFERENCE))


def one_class_is_the_unconditional(between: pd.DataFrame, unconditional: pd.DataFrame) -> Claim:
    """RP_between, against its own chance level and the agreement of unconditional models."""
    statement = ("For some class a conditional model makes the unconditional model's image from "
                 "the same noise" + RECALLED)
    rule = ("every pair reaches the lowest RP of two unconditional models on these noises; partly "
            "if every pair's interval is above the midpoint between that and the maximum over as "
            "many samples of the conditional model from other noises. In how many pairs one class "
            "alone, on average over the classes, reaches it too is said, since then no class needs "
            "to be looked for")
    if between.empty or unconditional.empty:
        return Claim(statement, rule, "no pair", "not decided: not trained yet", **UNSEEN)
    lowest = unconditional.score.min()
    half_way = (between.low > (between.random + lowest) / 2).all()
    any_class = (between["one class"] >= lowest).sum()
    verdict = ("not reproduced" if not half_way else
               "partly: lower than two unconditional models" if between.score.min() < lowest else
               "reproduced" + (f", in {any_class} of {len(between)} pairs also with one class, "
                               "whichever" if any_class else ""))
    return Claim(statement, rule,
                 f"RP_between {_range(between)}, with one class on average "
                 f"{between['one class'].min():.2f} to {between['one class'].max():.2f}, random "
                 f"samples {between.random.min():.2f} to {between.random.max():.2f}, two "
                 "unconditional models "
                 f"{lowest:.2f} to {unconditional.score.max():.2f}", verdict,
                 **UNSEEN, **_ours((_least(between, between.score), "{model}, {other}"),
                                   (_least(unconditional, unconditional.score),
                                    "unconditional: {model}, {other}")))


def guidance_matters(curves: pd.DataFrame) -> Claim:
    """This project's question: what guidance does to RP_cond."""
    most = curves.guidance.max()
    plain, strong = (curves[curves.guidance == w] for w in (1.0, most))
    statement = "Strong guidance changes RP_cond (our question)"
    rule = "the interval of the difference between the largest weight and 1 excludes 0"
    if strong.empty:
        return Claim(statement, rule, "no pair", "not decided: not trained yet")
    fall, rise = int((strong["change high"] < 0).sum()), int((strong["change low"] > 0).sum())
    verdict = (f"lower for {fall}, higher for {rise} of {len(strong)} pairs" if fall or rise
               else "no difference seen")
    return Claim(statement, rule,
                 f"median RP_cond {plain.score.median():.2f} at weight 1, "
                 f"{strong.score.median():.2f} at {most:g}; differences "
                 f"{strong.change.min():+.2f} to {strong.change.max():+.2f}", verdict,
                 **_ours((_least(strong, -strong.change.abs()),
                          "{pair}: weight {guidance:g} minus weight 1"),
                         columns=("change", "change low", "change high")))


def more_under_guidance(curves: pd.DataFrame, control: pd.DataFrame, weight: float) -> list[Claim]:
    """Our control at one weight; curves, control: of conditional.over_guidance and
    with_guided_gaussian."""
    pairs, own = (table[table.guidance == weight] for table in (curves, control))
    if pairs.empty or own.empty:
        return []
    model, other = zip(*pairs.pair.str.split(" / "))
    return [more_than(f"RP_cond under guidance of weight {weight:g}",
                      pairs.assign(model=model, other=other),
                      own.assign(model=own.pair, other="gaussian"),
                      "the guided Gaussian denoiser, at the weight where it is nearest")]


def conditional(rp_cond: pd.DataFrame, mae_cond: pd.DataFrame, gaps: pd.DataFrame,
                unconditional: pd.DataFrame, between: pd.DataFrame, guidance: pd.DataFrame,
                guided_control: pd.DataFrame, control: str) -> list[Claim]:
    """The claims of appendix D.

    unconditional: RP of the unconditional models; guidance, guided_control: see
    more_under_guidance; control: the column of rp_cond, mae_cond and between that nobody trained.
    """
    networks = set(rp_cond.model) | set(rp_cond.other)
    ours = among(rp_cond, networks - {control})
    known = between.model.isin({*unconditional.model, *unconditional.other})
    trained = between[known & (between.other != control)]
    closed = between[known & (between.other == control)
                     | (between.model == "gaussian") & (between.other != control)]
    claims = [carries_over(gaps, ours), one_class_is_the_unconditional(trained, unconditional)]
    if len(ours):
        claims += [*(more_than(name, among(table, networks - {control}),
                               across(table, networks - {control}, [control]),
                               "the Gaussian denoiser of the class")
                     for name, table in (("RP_cond", rp_cond), ("MAE_cond", mae_cond))),
                   more_than("RP_between", trained, closed,
                             "a Gaussian denoiser (of the class or of all)")]
    return [*claims, guidance_matters(guidance),
            *more_under_guidance(guidance, guided_control, 2.0)]


# --- section 4: fine-tuning ---------------------------------------------------------------------

def partial_with_few(pairs: pd.DataFrame, gl: pd.DataFrame, with_base: pd.DataFrame,
                     bases: Score) -> Claim:
    """With few images, partial fine-tuning lowers RP and raises GL, compared with scratch.

    pairs: RP of two runs of each way; with_base: of each with the network it started from; bases:
    of the two of those.
    """
    statement = "Partial fine-tuning lowers RP and raises GL when data are few" + RECALLED
    rule = ("at the fewest images RP of every partial way (attention, the last blocks, low-rank "
            "adapters) is below that of 'scratch' and its GL above, with non-overlapping "
            "intervals; partly if only one of these holds, or not for every way; a way whose RP "
            f"with the network it started from is within {MARGIN} of 1, while that of 'scratch', "
            "which never started there, is not, did not leave it and does not count")
    n = pairs.images.min()
    pairs, copied, still = (table[table.images == n].set_index("way")
                            for table in (pairs, gl, with_base))
    there = set(pairs.index) & set(copied.index)
    partial = [way for way in trainable.WAYS if way != "all" and way in there]
    if not partial or "scratch" not in there:
        return Claim(statement, rule, "not trained yet", "not decided: not trained yet", **UNSEEN)
    left = [way for way in partial
            if not still.score[way] > 1 - MARGIN >= still.score["scratch"]]
    lower = [way for way in left if pairs.high[way] < pairs.low["scratch"]]
    higher = [way for way in left if copied.low[way] > copied.high["scratch"]]
    verdict = ("not decided: none left the network it started from" if not left else
               "reproduced" if lower == higher == left else
               "not reproduced" if not lower + higher else
               f"partly: of the ways that left their start ({', '.join(left)}) {len(lower)} with "
               f"lower RP, {len(higher)} with higher GL")
    shown = [*(left or partial[:1]), "scratch"]
    return Claim(statement, rule, f"at {n} images, RP, GL and RP with the network it started "
                 "from: " + "; ".join(f"{way} {pairs.score[way]:.2f}, {copied.score[way]:.2f}, "
                                      f"{still.score[way]:.2f}" for way in [*partial, "scratch"])
                 + f"; RP of the two such networks with each other {bases}", verdict, **UNSEEN,
                 **_ours(*((table.loc[which], f"{score}, {which}, {n} images")
                           for score, table in (("RP", pairs), ("GL", copied))
                           for which in shown)))


def shared_start(gain: pd.DataFrame, with_base: pd.DataFrame) -> Claim:
    """Does a shared start explain the agreement of fine-tuned models?

    gain: fine_tuning.shared_start, a row per way and number of images; with_base: RP of each with
    the network it started from.
    """
    statement = ("Two fine-tunings of one pre-trained model agree more than fine-tunings of two "
                 "(our question)")
    rule = ("the interval of the difference, on the same noises, is above 0; ways and sizes whose "
            f"RP with the network they started from is within {MARGIN} of 1 did not leave it and "
            "do not count")
    if gain.empty:
        return Claim(statement, rule, "no pair", "not decided: not trained yet")
    every = gain.merge(with_base[["way", "images", "score"]])
    gain = every[every.score <= 1 - MARGIN]
    if gain.empty:
        return Claim(statement, rule, f"{len(every)} ways and sizes",
                     "not decided: none left the network it started from")
    more, less = int((gain.low > 0).sum()), int((gain.high < 0).sum())
    verdict = ("yes, everywhere" if more == len(gain) else
               f"more at {more}, less at {less} of {len(gain)} ways and sizes" if more or less
               else "no difference seen")
    widest, least = gain.loc[gain.difference.idxmax()], _least(gain, gain.low)
    return Claim(statement, rule,
                 f"{len(gain)} of {len(every)} ways and sizes left the network they started from; "
                 f"differences {gain.difference.min():+.2f} to {gain.difference.max():+.2f}; the "
                 f"largest: {widest.way} on {widest.images} images, {widest.same:.2f} against "
                 f"{widest.different:.2f}", verdict,
                 **_ours((widest, "{way} on {images} images"), (least, "{way} on {images} images"),
                         columns=DIFFERENCE))


def ways_beyond_gaussian(pairs: pd.DataFrame, gaussian: pd.DataFrame) -> Claim:
    """Our control: at the most images, do two runs of a way agree more than each with the Gaussian?

    pairs: RP of two runs of each way; gaussian: RP of every run with the Gaussian denoiser.
    """
    statement = ("With the most images two runs of the same way of fine-tuning agree more with "
                 "each other than with the Gaussian denoiser (our control)")
    rule = ("for every way RP is above that of either run with the Gaussian denoiser, with "
            "non-overlapping intervals")
    most = pairs.images.max()
    pairs, forms = (table[table.images == most] for table in (pairs, gaussian))
    if pairs.empty or forms.empty:
        return Claim(statement, rule, "no pair", "not decided: not trained yet")
    own = [forms[(forms.way == row.way) & forms.run.isin(["", recipes.other_start(row.way)])]
           for row in pairs.itertuples()]
    more = [row.way for row, each in zip(pairs.itertuples(), own) if row.low > each.high.max()]
    less = [row.way for row, each in zip(pairs.itertuples(), own) if row.high < each.low.min()]
    verdict = ("yes" if len(more) == len(pairs) else
               f"for {len(more)} of {len(pairs)} ways" + (f" ({', '.join(more)})" if more else "")
               + (f"; the reverse for {len(less)}" if less else ""))
    return Claim(statement, rule,
                 f"at {most} images, with each other and with the Gaussian denoiser: " + "; ".join(
                     f"{row.way} {row.score:.2f} and {each.score.min():.2f} to "
                     f"{each.score.max():.2f}"
                     for row, each in zip(pairs.itertuples(), own)), verdict,
                 **_ours((_least(pairs, pairs.score), "{way}"),
                         (_least(forms, -forms.score), "{way} with the Gaussian denoiser")))


def ways_nearer(nearer: pd.DataFrame, bases: Score) -> Claim:
    """Our control without a threshold, at the most images.

    nearer: scores.nearer_than the Gaussian denoiser, of two runs of each way; bases: of the two
    pre-trained networks.
    """
    pairs = nearer[nearer.images == nearer.images.max()]
    pairs = pairs.assign(model=pairs.way, other="two runs")
    claim = nearer_to_each_other("With the most images two runs of the same way of fine-tuning",
                                 pairs)
    return replace(claim, measured=f"{claim.measured}; the two pre-trained networks {bases}")


def even_parts_added(even: pd.DataFrame, gain: pd.DataFrame, bases: Score) -> Claim:
    """Our question, where the Gaussian denoiser has nothing: does fine-tuning add to what two
    pre-trained networks share?

    even: cosines of even parts of two runs of each way, from different starts; gain: of
    fine_tuning.over_bases; bases: of the two pre-trained networks.
    """
    statement = ("Even part: with the most images, fine-tuning two pre-trained networks adds to "
                 "what they share that no Gaussian denoiser makes (our question)")
    rule = ("for every way of fine-tuning, the cosine of even parts of two runs from different "
            "starts on the same noise is above that of the two pre-trained networks (by the "
            "interval of the difference, same noises)")
    if gain.empty:
        return Claim(statement, rule, "no pair", "not decided: not trained yet")
    more, less = int((gain.low > 0).sum()), int((gain.high < 0).sum())
    least = _least(gain, gain.low)
    return Claim(statement, rule,
                 "; ".join(f"{row.way} {row.score:z.2f}" for row in even.itertuples())
                 + f"; the two pre-trained networks {bases}",
                 "yes" if more == len(gain) else
                 f"no: for {more} of {len(gain)} ways, the reverse for {less}",
                 **_ours((least, "{way} minus the pre-trained networks"), columns=DIFFERENCE))


def fine_tuning(rp: pd.DataFrame, gl: pd.DataFrame, gain: pd.DataFrame, with_base: pd.DataFrame,
                bases: Score, gaussian: pd.DataFrame, nearer: pd.DataFrame, bases_nearer: Score,
                even: pd.DataFrame, even_gain: pd.DataFrame, bases_even: Score) -> list[Claim]:
    """The claims of appendix G, from the tables of `fine_tuning`; nearer, bases_nearer: see
    `ways_nearer`; even, even_gain, bases_even: see `even_parts_added`."""
    rp, nearer, even = (table[table.pair == "different starts"] for table in (rp, nearer, even))
    return [partial_with_few(rp, gl, with_base, bases), shared_start(gain, with_base),
            ways_beyond_gaussian(rp, gaussian), ways_nearer(nearer, bases_nearer),
            even_parts_added(even, even_gain, bases_even)]


# --- section 4: inverse problems ----------------------------------------------------------------

def families_differ(gaps: pd.DataFrame, blocks: pd.DataFrame) -> Claim:
    """RP is high inside one architecture family and low between U-Nets and transformers.

    gaps: reconstructions.family_gap of every task; blocks: block_scores of every task.
    """
    statement = ("Inverse problems: RP is high inside one architecture family and low between "
                 "U-Nets and transformers")
    rule = (f"on every task RP across the families is more than {MARGIN} below that inside either "
            "(by the interval of the difference, same images); partly if this holds on some. "
            "Written after a trial of three models on five tasks")
    below, clear = (gaps.groupby("task", sort=False).low.min() > bound for bound in (0, MARGIN))
    each = gaps.loc[gaps.groupby("task", sort=False).low.idxmin()]
    nearest = _least(each, -each.low)  # the task nearest to what the rule asks
    verdict = ("reproduced" if clear.all() else
               f"{'partly' if clear.any() else 'not reproduced'}: lower across on {below.sum()} of "
               f"{len(below)} tasks, by more than {MARGIN} on {clear.sum() or 'none'}")
    return Claim(statement, rule, "; ".join(
        f"{task}: " + ", ".join(f"{row.block} {row.score:.2f}" for row in part.itertuples())
        for task, part in blocks.groupby("task", sort=False)), verdict, **SAID,
        **_ours(*((row, "{task}: {block} minus across") for row in (
            nearest, _least(gaps, gaps.low))), columns=DIFFERENCE))


def families_differ_apart(gaps: pd.DataFrame) -> Claim:
    """This project's control: two seeds of one recipe are always inside a family.

    gaps: reconstructions.family_gap of pairs of different frameworks, with a column problem.
    """
    statement = "Inverse problems: the families also differ where the frameworks do (our control)"
    rule = ("among pairs of models of different frameworks, RP across the families is lower than "
            "inside either (by the interval of the difference, same images)")
    if gaps.empty:
        return Claim(statement, rule, "no such pairs", "not decided: no such pairs")
    lower = gaps.groupby("problem", sort=False).low.min() > 0
    verdict = "yes" if lower.all() else f"on {lower.sum()} of {len(lower)} problems"
    return Claim(statement, rule, "; ".join(
        f"{problem}: " + ", ".join(f"{row.block} {row.difference:+z.2f}" for row in
                                   part.itertuples())
        for problem, part in gaps.groupby("problem", sort=False)), verdict,
        **_ours((_least(gaps, gaps.low), "{problem}: {block} minus across"), columns=DIFFERENCE))


def noise_decides(blocks: pd.DataFrame) -> Claim:
    """This project's control: the measurement alone may fix the answer, whatever the noise."""
    fixed = blocks["other noise"]
    above = int((blocks["more low"] > 0).sum())
    verdict = ("yes" if above == len(blocks) else
               f"at {above} of {len(blocks)}: elsewhere the measurement alone fixes as much")
    return Claim("Inverse problems: the shared noise adds to what the measurement fixes (our "
                 "control)",
                 "on every task and block RP is above RP of restorations from other noises "
                 "(by the interval of the difference, same images)",
                 f"same noise {blocks.score.min():.2f} to {blocks.score.max():.2f}, other noise "
                 f"{fixed.min():.2f} to {fixed.max():.2f}", verdict,
                 **_ours((_least(blocks, blocks["more low"]),
                          "{task}: {block} minus from other noises"),
                         columns=("more", "more low", "more high")))


def gap_grows(curves: pd.DataFrame) -> Claim:
    """This project's question: what the step size does to the gap. curves: RP by step size x."""
    blocks = curves[~curves.who.str.startswith(CONTROL)]
    weak, strong = (blocks[blocks.x == end].set_index("who")
                    for end in (blocks.x.min(), blocks.x.max()))
    statement = "A larger step size opens the gap between the families (our question)"
    rule = ("from the smallest to the largest step size RP across the families falls, with "
            "non-overlapping intervals, and by more than inside either family")
    falls = bool(strong.high["across"] < weak.low["across"])
    change = (strong.score - weak.score).to_dict()
    most = min(change, key=change.get) == "across"
    verdict = "yes" if falls and most else "it falls, but not more than inside" if falls else "no"
    return Claim(statement, rule, "; ".join(
        f"{block} {weak.score[block]:.2f} to {strong.score[block]:.2f}" for block in change),
        verdict, **_ours(*((part.loc["across"], "across, step size {x:g}")
                           for part in (strong, weak))))


def determinism(table: pd.DataFrame) -> Claim:
    """The contrast with stochastic DPS, from reconstructions.with_ancestral_noise."""
    rows = table.set_index("runs")
    mine, alone = rows.loc["two models"], rows.loc["one model, other fresh noise"]
    verdict = "yes" if alone.high < mine.low else "no"
    return Claim("Two deterministic runs of different models agree more than two stochastic runs "
                 "of one model (our question)", "non-overlapping intervals",
                 f"two models, deterministic {mine.score:.2f}; one model, stochastic "
                 f"{alone.score:.2f}; two models, stochastic with the same fresh noise "
                 f"{rows.score['two models, same fresh noise']:.2f}", verdict,
                 **_ours((mine, "two models, deterministic"), (alone, "one model, stochastic")))


def leaves_the_distribution(guided: Mapping[str, Mapping[float, pd.DataFrame]],
                            real: pd.DataFrame) -> Claim:
    """The paper's explanation, as this project recalls it.

    guided: model -> step size -> quartiles of the distance at every noise level, 0: unguided; real:
    the same of real images.
    """
    shares = {name: {zeta: (part.low > real.high).mean() for zeta, part in by.items()}
              for name, by in guided.items()}
    most = {name: by[max(by)] for name, by in shares.items()}
    sizes = [zeta for zeta in next(iter(shares.values())) if zeta]
    outside = [zeta for zeta in sizes if min(by[zeta] for by in shares.values()) > 0.5]
    plain = {name: by[0.0] for name, by in shares.items()}
    least, highest = min(most, key=most.get), max(plain, key=plain.get)
    verdict = ("not decided: without guidance it is outside too" if max(plain.values()) > 0.5 else
               "reproduced" if outside == sizes else
               "partly: only at zeta " + " and ".join(f"{zeta:g}" for zeta in outside)
               if min(most.values()) > 0.5 else
               "partly: for some models" if max(most.values()) > 0.5 else "not reproduced")
    return Claim("Inverse problems: the guided iterate leaves the distribution of x_t" + RECALLED,
                 "at every step size, for every model, the lower quartile of its squared "
                 "Mahalanobis distance is above the upper quartile of real noised images at more "
                 "than half of the noise levels, and without guidance for no model; partly if this "
                 "holds at the largest",
                 "; ".join(f"{name}: " + ", ".join(f"zeta {zeta:g} at {share:.0%}" for zeta, share
                                                   in by.items()) for name, by in shares.items()),
                 verdict, **UNSEEN,
                 ours=f"{most[least]:.0%} ({least}, zeta {max(shares[least]):g}); "
                      f"{plain[highest]:.0%} ({highest}, not guided)")


def inverse_problems(gaps: pd.DataFrame, apart: pd.DataFrame, blocks: pd.DataFrame,
                     over_zeta: pd.DataFrame, stochastic: pd.DataFrame,
                     guided: Mapping[str, Mapping[float, pd.DataFrame]],
                     real: pd.DataFrame) -> list[Claim]:
    """The claims of section 4's inverse problems, from the tables of `reconstructions`."""
    return [families_differ(gaps, blocks), families_differ_apart(apart), gap_grows(over_zeta),
            noise_decides(blocks), determinism(stochastic),
            leaves_the_distribution(guided, real)]


# --- section 4: distillation --------------------------------------------------------------------

def _paper_rp(label: str) -> dict[str, float]:
    """The paper's RP of one of its models with each other, by label."""
    return {other: value for pair, value in published.pairs(published.RP).items() if label in pair
            for other in pair if other != label}


def progressive_agrees(pairs: pd.DataFrame) -> Claim:
    """pairs: RP of the one-step progressive student with many-step models."""
    numbers = [value for other, value in _paper_rp("Progressivev1").items() if other != "CT"]
    return Claim("Progressive distillation: the student agrees with many-step models that it never "
                 "saw",
                 f"every RP is at least {min(numbers):.2f}, the paper's lowest (its highest is "
                 f"{max(numbers):.2f}); partly if every interval is above the midpoint between "
                 "shuffled noises and the lowest",
                 f"{_range(pairs)}, shuffled noises at most {pairs.shuffled.max():.2f}",
                 _as_high(pairs, min(numbers)), _span(numbers), "S",
                 **_ours((_least(pairs, pairs.score), "{model}, {other}")))


def consistency_agrees_less(ct: pd.DataFrame, progressive: pd.DataFrame,
                            improved: bool = False) -> Claim:
    """RP of consistency training and of the progressive student with the same models, in one order.

    improved: by the later recipe (Song & Dhariwal 2024), of which the paper says nothing.
    """
    numbers, theirs = ([value for other, value in _paper_rp(one).items() if other != two]
                       for one, two in (("CT", "Progressivev1"), ("Progressivev1", "CT")))
    lower = [a.high < b.low for a, b in zip(ct.itertuples(), progressive.itertuples())]
    higher = [a.low > b.high for a, b in zip(ct.itertuples(), progressive.itertuples())]
    yes, no = ("yes", "no") if improved else ("reproduced", "not reproduced")
    said = ("", "") if improved else (f"{_span(numbers)}, progressive {_span(theirs)}", "S")
    rule = "as for consistency training" if improved else (
        f"RP is lower with every model, with non-overlapping intervals (the paper: "
        f"{min(numbers):.2f} to {max(numbers):.2f}); partly if lower with some, higher with none")
    verdict = (yes if all(lower) else
               f"partly: lower with {sum(lower)}, higher with none of {len(lower)}"
               if any(lower) and not any(higher) else
               f"{no}: lower with {sum(lower)}, higher with {sum(higher)} of {len(lower)}")
    return Claim(f"{'Improved consistency' if improved else 'Consistency'} training agrees less "
                 "with many-step models than progressive distillation does"
                 + " (our question)" * improved, rule,
                 f"{'ict' if improved else 'ct'} {_range(ct)}, progressive "
                 f"{progressive.score.min():.2f} to {progressive.score.max():.2f}", verdict, *said,
                 **_ours(*((_least(table, progressive.low - ct.high), "{model}, {other}")
                           for table in (ct, progressive))))


def students_of_each_other(rp: pd.DataFrame, others: Sequence[str]) -> Claim:
    """Consistency training agrees with the other method's student more than with any many-step
    model."""
    both, ct = across(rp, ["ct"], ["progressive-1"]).iloc[0], across(rp, ["ct"], others)
    highest = _least(ct, -ct.score)
    verdict = ("reproduced" if both.low > highest.score else
               "not reproduced" if both.high < highest.score else
               "not decided: intervals overlap")
    return Claim("Of the progressive student and the many-step models, consistency training agrees "
                 "most with the student (.91 in the paper)",
                 "RP of ct and progressive-1, its interval included, is above that of ct with "
                 "every many-step model; not reproduced if one of those is above that interval",
                 f"{both.score:.2f} [{both.low:.2f}, {both.high:.2f}]; ct with the others "
                 f"{ct.score.min():.2f} to {ct.score.max():.2f}", verdict,
                 _span([_paper_rp("CT")["Progressivev1"]]), "S",
                 **_ours((both, "{model}, {other}"), (highest, "{model}, {other}")))


def nearer_than_gaussian(name: str, pairs: pd.DataFrame, control: pd.DataFrame) -> Claim:
    """Our control: did a student learn its teacher's image, or what needs no teacher?

    pairs: of the teacher with each student of one step; control: with the Gaussian denoiser.
    """
    form = control.iloc[0]
    more, less = int((pairs.low > form.high).sum()), int((pairs.high < form.low).sum())
    verdict = ("yes" if more == len(pairs) else
               f"for {more} of {len(pairs)}" + (f"; the reverse for {less}" if less else ""))
    students = pairs.model.where(pairs.model != "teacher", pairs.other)
    return Claim(f"{name}: one-step models agree more with the teacher than the Gaussian denoiser, "
                 "which had no teacher, does (our control)",
                 "agreement with the teacher's samples, with non-overlapping intervals",
                 f"the Gaussian denoiser {form.score:.2f}; " + ", ".join(
                     f"{who} {score:.2f}" for who, score in zip(students, pairs.score)), verdict,
                 **_ours((_least(pairs, pairs.low), "{model}, {other}"),
                         (form, "{model}, {other}")))


def even_parts_taught(pairs: pd.DataFrame, gain: pd.DataFrame) -> Claim:
    """Our control, where the Gaussian denoiser has nothing: did students learn from their teacher?

    pairs: cosines of even parts, of the teacher among others; gain: of students.over_untaught.
    """
    statement = ("Even part: students distilled from the teacher share with it what no Gaussian "
                 "denoiser makes, more than models trained without it (our control)")
    rule = ("for each such student the cosine of even parts on the same noise with the teacher is "
            "above 0 and above that of every model trained without the teacher (by the interval "
            "of the difference, same noises)")
    if gain.empty:
        return Claim(statement, rule, "no such pair", "not decided: not trained yet")
    taught = pd.DataFrame([across(pairs, ["teacher"], [name]).iloc[0] for name in gain.model])
    rest = across(pairs, ["teacher"], {*pairs.model, *pairs.other} - {"teacher", *gain.model})
    more = sum(own > 0 and by > 0 for own, by in zip(taught.low, gain.low))
    return Claim(statement, rule,
                 f"students {_range(taught)}; without the teacher {_range(rest)}",
                 "yes" if more == len(taught) else f"for {more} of {len(taught)}",
                 **_ours((_least(taught, taught.low), "{model}, {other}"),
                         (_least(gain, gain.low), "{model}, {other} minus {against}", DIFFERENCE)))


def several_steps(fresh: pd.DataFrame) -> Claim:
    """Our question: does the new noise between the steps of consistency models decide the image?

    fresh: RP, of students.with_fresh_noise.
    """
    statement = ("What consistency models of several steps agree on is decided by the new noise "
                 "between the steps too, not by the first alone (our question)")
    rule = ("at every number of steps above one, RP with each other, and with the teacher given "
            "the same new noise, is above RP with the teacher's own image, with non-overlapping "
            "intervals; whether it is more than the Gaussian denoiser's, the next two ask")
    asked = "each other", "the teacher", "the teacher's own image"
    several = fresh[(fresh.steps > 1) & fresh.what.isin(asked)].pivot(index="steps", columns="what")
    if set(several.columns.get_level_values("what")) != set(asked):
        return Claim(statement, rule, "too few models", "not decided: not trained yet")
    own, closed, lost = (several.xs(what, axis=1, level="what") for what in asked)
    same = (own.low > lost.high).all() and (closed.low > lost.high).all()
    rows = fresh[fresh.steps == several.index.max()]
    return Claim(statement, rule,
                 "; ".join(f"{steps} steps: each other {own.score[steps]:.2f}, teacher "
                           f"{closed.score[steps]:.2f}, the teacher's own image "
                           f"{lost.score[steps]:.2f}" for steps in several.index),
                 "yes" if same else "no",
                 **_ours(*((rows[rows.what == what].iloc[0], f"{{steps}} steps, {what}")
                           for what in ("each other", "the teacher's own image"))))


def blur_explains(gains: pd.DataFrame, sharp: Mapping[str, float]) -> Claim:
    """Is the students' agreement an artefact of their blur?

    gains: students.beyond_blur; sharp: sharpness of each over that of real images.
    """
    blurry = gains[gains.width > 0]
    beyond, below = int((blurry.low > 0).sum()), int((blurry.high < 0).sum())
    verdict = ("nothing to explain: no student is blurrier than its teacher" if blurry.empty else
               "no" if beyond == len(blurry) else
               f"not decided: more for {beyond}, less for {below} of {len(blurry)}")
    return Claim("The students' agreement with the other models is an artefact of their blur (our "
                 "question)",
                 "no if every student blurrier than its teacher agrees more with the models it "
                 "never saw than the teacher does after a low-pass filter to the student's "
                 "sharpness (by the interval of the difference, same noises)",
                 "; ".join(f"{row.who} (sharpness {sharp[row.who]:.2f}): {row.student:.2f}, "
                           f"equally sharp teacher {row.blurred:.2f}, difference "
                           f"{row.difference:+.2f}"
                           for row in gains.itertuples())
                 + f"; teacher's sharpness {sharp['teacher']:.2f}", verdict,
                 **_ours((_least(blurry, blurry.low), "{who} minus its equally sharp teacher"),
                         columns=DIFFERENCE))


def distillation(rp: pd.DataFrame, mae: pd.DataFrame, nearer: pd.DataFrame, even: pd.DataFrame,
                 gain: pd.DataFrame, others: Sequence[str], fresh: pd.DataFrame,
                 fresh_pairs: Mapping[int, pd.DataFrame], beyond: pd.DataFrame,
                 sharp: Mapping[str, float]) -> list[Claim]:
    """The claims on distilled students; others: many-step models that no student saw.

    rp, mae, nearer (scores.nearer_than the Gaussian denoiser), even (cosines of even parts): pairs
    of all these, the teacher and, in the former two, the Gaussian denoiser (see students.check);
    gain: see even_parts_taught; beyond: of students.beyond_blur;
    fresh, fresh_pairs: RP, of students.with_fresh_noise and students.fresh_pairs.
    """
    names = [name for name in sharp if name != "teacher"]
    progressive, *trained = (_in_order(across(rp, [name], others), others)
                             for name in ("progressive-1", "ct", "ict")
                             if name in ("progressive-1", "ct", *names))
    control = "the Gaussian denoiser"
    return [progressive_agrees(progressive),
            *(consistency_agrees_less(ct, progressive, bool(k)) for k, ct in enumerate(trained)),
            students_of_each_other(rp, others),
            more_than("RP of students", across(rp, names, others),
                      across(rp, [*names, *others], ["gaussian"]), control),
            nearer_to_each_other("Students and models they never saw",
                                 across(nearer, names, others)),
            *(nearer_than_gaussian(score, across(table, ["teacher"], names),
                                   across(table, ["teacher"], ["gaussian"]))
              for score, table in (("RP", rp), ("MAE score", mae))),
            nearer_to_each_other("One-step students and their teacher",
                                 across(nearer, ["teacher"], names)),
            even_parts_taught(even, gain), several_steps(fresh),
            *(more_than(f"RP at {steps} steps with the same new noise, teacher included",
                        pairs[(pairs.model != "gaussian") & (pairs.other != "gaussian")],
                        pairs[(pairs.model == "gaussian") | (pairs.other == "gaussian")],
                        f"{control} given that noise") for steps, pairs in fresh_pairs.items()),
            blur_explains(beyond, sharp)]


def _in_order(pairs: pd.DataFrame, others: Sequence[str]) -> pd.DataFrame:
    """Pairs with one of `others` each, in that order."""
    which = [next(name for name in (row.model, row.other) if name in set(others))
             for row in pairs.itertuples()]
    return pairs.assign(which=which).set_index("which").loc[list(others)].reset_index(drop=True)
