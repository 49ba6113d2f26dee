"""The rules: each decides on both sides of every threshold of its own."""

import pandas as pd
import pytest
import torch

from paper_utils import claims, published, rules, scores


def table(*rows: tuple) -> pd.DataFrame:
    """Pairs (model, other, score[, half width[, shuffled]])."""
    full = [(*row, 0.02, 0.01)[:5] if len(row) == 3 else (*row, 0.01)[:5] for row in rows]
    return pd.DataFrame([(a, b, s, s - w, s + w, chance, 100) for a, b, s, w, chance in full],
                        columns=["model", "other", "score", "low", "high", "shuffled", "n"])


# --- section 2 ----------------------------------------------------------------------------------

@pytest.mark.parametrize("lowest, half_width, chance, verdict", [
    (0.70, 0.02, 0.01, "reproduced"),
    (0.699, 0.02, 0.01, "partly: lower than the paper"),
    (0.5, 0.0625, 0.17, "partly: lower than the paper"),
    (0.5, 0.0625, 0.18, "not reproduced"),
    (0.05, 0.02, 0.0, "not reproduced"),
])
def test_high_for_every_pair(lowest, half_width, chance, verdict):
    """Half way from chance to the paper's .70; only counterparts of the paper's models decide."""
    pairs = table(("edm", "ct", 0.9), ("edm", "uvit", lowest, half_width, chance),
                  ("edm", "cd", 0.02))
    claim = rules.high_for_every_pair("RP", pairs, published.RP)
    assert claim.verdict == verdict
    assert claim.measured.startswith(f"lowest {lowest:.2f} (edm, uvit), highest 0.90")
    assert claim.measured.endswith("the lowest of all 3 pairs is 0.02 (edm, cd)")
    none = rules.high_for_every_pair("RP", table(("a", "b", 0.9)), published.RP)
    assert none.verdict == "not decided: not trained yet"


@pytest.mark.parametrize("highest, verdict", [
    (0.45, "reproduced"), (0.47, "not decided: intervals overlap"),
    (0.49, "not decided: intervals overlap"), (0.50, "not reproduced"), (0.51, "not reproduced")])
def test_lower_without_diffusion(highest, verdict):
    """Intervals are .02 wide to either side."""
    diffusion = table(("a", "b", 0.5), ("a", "c", 0.8))
    contrast = table(("gan", "vae", 0.1), ("gan", "gan2", highest))
    claim = rules.lower_without_diffusion("RP", diffusion, contrast, published.RP)
    assert claim.verdict == verdict


@pytest.mark.parametrize("lowest, verdict", [
    (0.38, "reproduced"), (0.36, "not decided: by this score diffusion models hardly have it")])
def test_lower_than_next_to_nothing_is_no_property(lowest, verdict):
    """Half way to the paper's .70, less an interval of .02."""
    contrast = table(("gan", "vae", 0.0))
    diffusion = table(("a", "b", lowest), ("a", "c", 0.8))
    claim = rules.lower_without_diffusion("RP", diffusion, contrast, published.RP)
    assert claim.verdict == verdict


@pytest.mark.parametrize("reference, verdict", [
    ((0.1, 0.1, 0.45), "yes"), ((0.1, 0.1, 0.7), "in 2 of 3 pairs; the reverse in 0"),
    ((0.8, 0.1, 0.1), "in 1 of 3 pairs; the reverse in 0"),
    ((0.9, 0.9, 0.1), "in 0 of 3 pairs; the reverse in 1"),
    ((0.9, 0.9, 0.9), "in 0 of 3 pairs; the reverse in 3"),
])
def test_more_than_a_closed_form(reference, verdict):
    """A pair is above it where it is above either model's score with it, intervals apart."""
    models = table(("a", "b", 0.5), ("a", "c", 0.7), ("b", "c", 0.8))
    closed = table(*[(name, "gaussian", score) for name, score in zip("abc", reference)])
    assert rules.more_than("RP", models, closed, "the Gaussian").verdict == verdict


def gl_table(**scores: float) -> pd.DataFrame:
    return pd.DataFrame([(name, s, s - 0.01, s + 0.01, 100) for name, s in scores.items()],
                        columns=["model", "GL", "low", "high", "n"])


@pytest.mark.parametrize("lowest, control, verdict", [
    (0.96, 0.2, "reproduced"), (0.91, 0.89, "reproduced"), (0.89, 0.2, "not reproduced"),
    (0.89, 1.0, "not reproduced"),
    (0.91, 0.91, "reproduced, also by the Gaussian denoiser, which cannot copy")])
def test_nothing_copied(lowest, control, verdict):
    claim = rules.nothing_copied(gl_table(a=0.99, b=lowest), held_out=0.95, control=control)
    assert claim.verdict == verdict and "(b)" in claim.measured and "0.95" in claim.measured
    assert claim.ours == f"{lowest:.2f} [{lowest - 0.01:.2f}, {lowest + 0.01:.2f}] (b)"
    assert (claim.paper, claim.grade, claim.n) == (
        "0.98-1.00 at 32768 images (U-Nets of section 3)", "F", 100)


NO_MORE = "partly: no more than GANs and VAEs, or than with the noise itself"


@pytest.mark.parametrize("gans, nearest", [(0.77, 0.75), (0.6, 0.77)])
@pytest.mark.parametrize("worst, verdict", [
    (0.78, "reproduced"), (0.77, NO_MORE), (0.71, NO_MORE), (0.70, "partly: above chance"),
    (0.41, "partly: above chance"), (0.40, "not reproduced"), (0.2, "not reproduced")])
def test_maps_alike(worst, verdict, gans, nearest):
    agreement = {("a", "b"): 0.99, ("a", "c"): worst}
    claim = rules.maps_alike(agreement, 0.40, {("gan", "vae"): gans}, [0.5, nearest])
    assert claim.verdict == verdict and "0.77" in claim.measured


def over(*rows: tuple[str, str, float], against: str = "a, gan") -> pd.DataFrame:
    """As of scores.gains, intervals an eighth wide to either side."""
    return pd.DataFrame([(*row[:2], 0.5, against, d := row[2], d - 0.125, d + 0.125, 100)
                         for row in rows], columns=["model", "other", "score", "against",
                                                    "difference", "low", "high", "n"])


@pytest.mark.parametrize("least, half_width, gain, verdict", [
    (0.21, 0.2, 0.13, "yes"), (0.21, 0.2, 0.12, "in 2 of 3 pairs"),
    (0.3, 0.3, 0.3, "in 2 of 3 pairs")])
def test_even_parts_shared(least, half_width, gain, verdict):
    """Above 0 with the interval, and above either with a GAN or VAE on the same noises."""
    pairs = table(("a", "b", 0.5), ("a", "c", 0.4), ("b", "c", least, half_width),
                  ("a", "gan", 0.1), ("gan", "vae", 0.2), ("a", "student", 0.0))
    gains = over(("a", "b", 0.4), ("a", "c", 0.3), ("b", "c", gain))
    claim = rules.even_parts_shared(pairs, gains, ["gan", "vae"])
    assert claim.verdict == verdict and "with a GAN or VAE 0.10 to 0.20" in claim.measured
    assert claim.ours.startswith(f"{least:.2f} [") and "minus a, gan" in claim.ours


def test_the_claims_of_section_2_take_each_number_from_its_place():
    rp = table(("edm", "uvit", 0.72), ("edm", "gan", 0.05), ("gan", "vae", 0.30),
               ("edm", "gaussian", 0.40), ("uvit", "gaussian", 0.60), ("gan", "gaussian", 0.95),
               ("edm", "cd", 0.25), ("cd", "gaussian", 0.99))
    mae = table(("edm", "uvit", 0.69), ("gan", "vae", 0.75), ("edm", "gaussian", 0.80),
                ("uvit", "gaussian", 0.80), ("edm", "cd", 0.25))
    gl = gl_table(edm=1.0, uvit=0.97, cd=1.0, gan=0.1, gaussian=0.2, **{"held-out": 0.99})
    a = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    winners = {"edm": a, "uvit": a.where(a < 2, 1), "cd": a, "gan": a, "vae": a.flip(0),
               rules.NEAREST: a.roll(1)}
    even = table(("edm", "uvit", 0.3), ("edm", "gan", 0.1), ("gan", "vae", 0.2), ("edm", "cd", 0.1))
    found = rules.unconditional(rp, mae, ["edm", "uvit", "cd"], ["edm", "uvit"], ["gan", "vae"],
                                even, over(("edm", "uvit", 0.2)), gl, winners)
    assert [claim.verdict for claim in found] == [
        "reproduced", "reproduced", "yes",
        "reproduced", "not reproduced", "in 0 of 1 pairs; the reverse in 1", "yes",
        "reproduced", "reproduced"]
    assert "0.70" in found[0].rule and "0.68" in found[3].rule  # the lowest of each heat map


# --- section 3 ----------------------------------------------------------------------------------

def curve(scores: dict[int, float], half_width: float = 0.05, **columns) -> pd.DataFrame:
    return pd.DataFrame([dict(images=n, score=s, low=s - half_width, high=s + half_width,
                              shuffled=0.0, n=100, **columns) for n, s in scores.items()])


@pytest.mark.parametrize("scores, verdict", [
    ({64: .7, 4096: .3, 32768: .8}, "reproduced"),
    ({64: .7, 1024: .5, 4096: .3}, "partly: of 1 pairs 1 with a fall, 0 with a rise, 1"),
    ({64: .31, 4096: .3, 32768: .32}, "not reproduced"), ({64: .3, 1024: .5}, "not decided"),
    ({64: .7, 8192: .3, 32768: .8}, "reproduced"),
])
def test_the_valley(scores, verdict):
    assert rules.valley(curve(scores, pair="16 / 32")).verdict.startswith(verdict)


@pytest.mark.parametrize("scores, verdict, where", [
    ({64: .7, 256: .3, 4096: .7, 32768: .8}, "partly: of 1 pairs 1 with a fall, 1 with a",
     "lowest 0.30 at 256 (not between the paper's regimes)"),
    ({64: .7, 1024: .3, 4096: .7}, "partly", "at 1024 (not between"),
    ({64: .7, 4096: .7, 16384: .3, 32768: .8}, "partly", "at 16384 (not between"),
    ({64: .3, 4096: .7, 32768: .8}, "partly: of 1 pairs 0 with", "at 64 (at an end of the sizes"),
    ({64: .7, 256: .3, 4096: .3, 32768: .8}, "reproduced", "at 4096 (between the paper's"),
])
def test_the_valley_lies_between_the_papers_regimes(scores, verdict, where):
    found = rules.valley(curve(scores, pair="16 / 32"))
    assert found.verdict.startswith(verdict) and where in found.measured
    assert "more than 1024 and less than 11585 images" in found.rule


@pytest.mark.parametrize("small, large, shape, order", [
    ({64: 0., 1024: .8, 32768: 1.}, {64: 0., 1024: .2, 32768: 1.}, "reproduced", "reproduced"),
    ({64: 0., 1024: .8, 32768: 1.}, {64: 0., 1024: .6, 32768: 1.}, "reproduced", "not decided"),
    ({64: 0., 1024: .2, 32768: 1.}, {64: 0., 1024: .8, 32768: 1.}, "reproduced", "not reproduced"),
    ({64: .9, 1024: .9, 32768: 1.}, {64: 0., 1024: .8, 32768: 1.}, "not reproduced", "not decided"),
])
def test_gl_moves_right_with_the_width(small, large, shape, order):
    table = pd.concat([curve(small, width=16), curve(large, width=32)])
    found = rules.moves_right(table)
    assert found[0].verdict == shape and found[1].verdict.startswith(order)


def test_what_cannot_be_decided_is_not_decided():
    one = curve({64: .5}, width=48)
    assert all(c.verdict.startswith("not decided") for c in rules.moves_right(one))
    assert rules.leaves_the_optimum(one).verdict.startswith("not decided")
    both = pd.concat([curve({64: 0., 1024: 1.}, width=16), one])
    found = rules.moves_right(both)
    assert found[0].verdict == "reproduced" and found[1].verdict.startswith("not decided")


def test_a_width_with_a_gap_does_not_say_where_it_ceases_to_copy():
    fine = [curve({64: 0., 256: middle, 1024: 1.}, width=width) for width, middle in (
        (16, 1.), (32, 0.))]
    order = rules.moves_right(pd.concat([*fine, curve({64: 0., 1024: 1.}, width=64)]))[1]
    assert order.verdict == "reproduced"
    assert order.measured.endswith("width 64: 64-1024 images, not trained in between")
    assert rules.moves_right(pd.concat([fine[1], fine[0].assign(width=64)]))[1].verdict == (
        "not reproduced")


def test_half_way_is_between_two_sizes():
    assert rules.half_way(curve({64: 0.0, 256: 0.49, 1024: 0.5, 4096: 1.0})) == (256, 1024)
    assert rules.half_way(curve({64: 0.6, 1024: 1.0})) is None


@pytest.mark.parametrize("scores, verdict", [
    ({64: .5, 1024: .0}, "reproduced"), ({64: .5, 1024: .3}, "partly"),
    ({64: .05, 1024: .0}, "not reproduced"),
])
def test_leaving_the_optimum(scores, verdict):
    assert rules.leaves_the_optimum(curve(scores, width=16)).verdict.startswith(verdict)


@pytest.mark.parametrize("hits, n, verdict", [(13, 256, "reproduced"), (5, 16, "not reproduced")])
def test_no_verdict_hangs_on_an_interval_that_is_a_point(hits, n, verdict):
    """0 of 16 noises do not tell 0 from 5 in 16; 0 of 256 tell it from 13 in 256."""
    found = [dict(images=images, width=16, **vars(scores.proportion(torch.arange(n) < k)))
             for images, k in ((64, hits), (1024, 0))]
    table = pd.DataFrame(found).rename(columns={"value": "score"})
    assert rules.leaves_the_optimum(table).verdict == verdict


@pytest.mark.parametrize("scores, gain, verdict", [
    ({64: .1, 1024: .6}, .11, "reproduced"),
    ({64: .1, 1024: .6}, .09, "partly: no more than with the Gaussian denoiser"),
    ({64: .1, 1024: .6}, -.3, "partly: no more than with the Gaussian denoiser"),
    ({64: .6, 1024: .6}, .5, "not reproduced"),
    ({64: .1}, .5, "not decided: not trained yet")])
def test_halves(scores, gain, verdict):
    """The interval of the difference reaches .1 below it."""
    halves = curve(scores, width=32, control=.5, gain=gain, **{"gain low": gain - .1,
                                                               "gain high": gain + .1})
    claim = rules.halves_agree(halves)
    assert claim.verdict == verdict
    assert (f"{gain:.2f} [{gain - .1:.2f}" in claim.ours) == (len(halves) > 1)


@pytest.mark.parametrize("low, verdict", [(.51, "yes"), (.5, "for 0 of 1 pairs")])
def test_halves_without_a_threshold(low, verdict):
    """Of the most images."""
    halves = curve({64: .9, 1024: .6}, width=32).assign(nearer=[.1, .6], **{
        "nearer low": [0., low], "nearer high": [.2, .7]})
    claim, = rules.halves_nearer(halves)
    assert claim.verdict == verdict and f"0.60 [{low:.2f}, 0.70] (width 32" in claim.ours
    assert rules.halves_nearer(halves[:0]) == []


def nets(**scores: float) -> pd.DataFrame:
    """Pairs of U-Net 48, U-Net 96, DiT and Gaussian: 'ab' of the first two, 'ag' with the last."""
    names = {"a": "U-Net 48", "b": "U-Net 96", "d": "DiT", "g": "gaussian"}
    return table(*((names[pair[0]], names[pair[1]], score) for pair, score in scores.items()))


def test_the_gaussian_controls_of_section_3_look_at_every_pair_of_the_most_images():
    few = nets(ab=.0, ad=.0, bd=.0, ag=.9, bg=.9, dg=.9)
    alike = {64: few, 1024: nets(ab=.6, ad=.6, bd=.9, ag=.9, bg=.5, dg=.4)}
    nearer = {64: nets(ab=.9, ad=.9, bd=.9), 1024: nets(ab=.3, ad=.51, bd=.9)}
    more, closer = rules.more_than_gaussian(alike, nearer)
    assert "1,024" in more.statement and more.verdict == "in 1 of 3 pairs; the reverse in 0"
    assert closer.verdict == "for 1 of 3 pairs"  # .51 is within .02 of a half
    assert closer.ours.startswith("0.30 [0.28, 0.32] (U-Net 48, U-Net 96)")
    alike[1024] = nets(ab=.95, ad=.95, bd=.95, ag=.9, bg=.5, dg=.4)
    nearer[1024] = nets(ab=.6, ad=.6, bd=.9)
    assert [c.verdict for c in rules.more_than_gaussian(alike, nearer)] == ["yes", "yes"]
    assert rules.more_than_gaussian({64: few}, {64: few}) == []


def mixture_errors(sigma=0.1, asked=("training", "new"), empirical=(1., 3.), truth=(2., 1.)):
    return pd.concat([pd.DataFrame({"asked about": what, "points": [8, 512], "sigma": sigma,
                                    "to empirical": empirical, "to ground truth": truth})
                      for what in asked])


def mixture_crossings(sigma=0.1, decided=True, **crossing):
    at = pd.Series([*crossing.values()])
    return pd.DataFrame({"asked about": [*crossing], "sigma": sigma, "crossing": at,
                         "low": 0.9 * at, "high": 1.1 * at, "n": 256, "decided": decided})


NEARER = {"starts": ((1., 1.), (2., 2.)), "ends": ((3., 3.), (2., 1.)),
          "none": ((1., 3.), (2., 1.))}



def with_gain(scores: dict[int, float], pair: str) -> pd.DataFrame:
    """A curve, and its gain over the fewest images, with an interval .08 wide to either side."""
    gain = pd.Series(scores.values()) - scores[min(scores)]
    return curve(scores, pair=pair).assign(gain=gain, **{"gain low": gain - 0.08,
                                                         "gain high": gain + 0.08})


@pytest.mark.parametrize("narrow, wide, verdict", [
    ({64: 0.1, 4096: 0.4}, {64: 0.0, 1024: 0.3, 4096: 0.2}, "yes"),
    ({64: 0.1, 4096: 0.4}, {64: 0.1, 1024: 0.0, 4096: 0.17}, "partly: for 1 of 2 widths"),
    ({64: 0.1, 4096: 0.4}, {64: -0.3, 1024: -0.1, 4096: 0.05}, "partly: for 1 of 2 widths"),
    ({64: 0.1, 4096: 0.1}, {64: 0.05, 1024: 0.3, 4096: 0.1}, "no"),
    ({64: 0.1, 4096: 0.4}, {64: 0.9}, "yes")])
def test_even_parts_converge(narrow, wide, verdict):
    """Each width from its fewest to its next most images: more, and above 0."""
    found = pd.concat([with_gain(dict(reversed(narrow.items())), "width 16"),
                       with_gain(wide, "width 32")])
    claim = rules.even_parts_converge(found)
    assert claim.verdict == verdict
    assert f"width 16: 0.10 at 64 images, {narrow[4096]:.2f} at 4096" in claim.measured
    assert ("width 32" in claim.measured) == (len(wide) > 1)


def test_the_width_that_decides_stands_first():
    found = pd.concat([with_gain({64: 0.1, 4096: 0.4}, "width 16"),
                       with_gain({64: 0.1, 4096: 0.3}, "width 32")])
    assert rules.even_parts_converge(found).ours == (
        "0.30 [0.25, 0.35] (width 32, 4096 images); 0.20 [0.12, 0.28] (minus that at 64 images)")


@pytest.mark.parametrize("curves", [{64: 0.1}, {}])
def test_even_parts_of_one_size_decide_nothing(curves):
    found = curve(curves or {1: 0}, pair="width 16")[:len(curves)]
    assert rules.even_parts_converge(found).verdict == "not decided: too few sizes trained"


@pytest.mark.parametrize("least, half_width, verdict", [
    (0.2, 0.1, "yes"), (0.2, 0.2, "in 2 of 3 pairs"), (-0.2, 0.1, "in 2 of 3 pairs")])
def test_even_parts_of_the_most(least, half_width, verdict):
    """Of the most images alone."""
    pairs = table(("U-Net 16", "U-Net 32", 0.3), ("U-Net 16", "DiT", 0.3),
                  ("U-Net 32", "DiT", least, half_width))
    claim, = rules.even_parts_of_the_most({64: table(("U-Net 16", "DiT", 0.9)), 1024: pairs})
    assert claim.verdict == verdict and "1,024 images" in claim.statement
    assert f"{least:.2f} (U-Net 32, DiT) to 0.30" in claim.measured
    assert rules.even_parts_of_the_most({}) == []


@pytest.mark.parametrize("training, new, verdict", [
    ("none", "none", "reproduced"), ("none", "ends", "partly: only at noisy training points"),
    ("none", "starts", "partly: only at noisy training points"),
    ("ends", "none", "partly: only at noisy new points"), ("starts", "ends", "not reproduced")])
def test_the_mixture_crosses_where_it_is_asked_about(training, new, verdict):
    """The one nearer at both ends: the empirical optimum ('starts'), the truth ('ends'), none."""
    errors = pd.concat([mixture_errors(0.1, [what], *NEARER[kind]) for what, kind in
                        (("training", training), ("new", new))])
    found = rules.mixture_crosses(errors, mixture_crossings(training=40., new=50.))
    assert found.verdict == verdict
    assert found.measured == ("training points, sigma 0.1: at 40 points; "
                              "new points, sigma 0.1: at 50 points")
    assert "at 40 [36, 44] points (at noisy training points, sigma 0.1); crossing" in found.ours
    assert found.n == 256


@pytest.mark.parametrize("training, new, verdict", [
    (True, True, "reproduced"), (True, False, "partly: only at noisy training points"),
    (False, True, "partly: only at noisy new points"),
    (False, False, "not decided: the two truths are nearer")])
def test_an_undecided_crossing_is_none(training, new, verdict):
    crossings = pd.concat([mixture_crossings(0.1, training, training=40.),
                           mixture_crossings(0.1, new, new=50.),
                           mixture_crossings(0.4, True, new=90.)])
    found = rules.mixture_crosses(mixture_errors(), crossings)
    assert found.verdict.startswith(verdict) and "sigma 0.4: at 90 points" in found.measured
    assert ("at 40 points" in found.measured) == ("at 40 [" in found.ours) == training


def test_without_a_crossing_there_is_no_number():
    for none in (mixture_crossings(training=float("nan")),
                 mixture_crossings(decided=False, training=40.)):
        found = rules.mixture_crosses(mixture_errors(), none)
        assert (found.measured, found.n) == ("no decided crossing", None)
        assert found.ours == "no decided crossing (sigma 0.1)"
        assert found.verdict.startswith("not decided")


@pytest.mark.parametrize("asked, verdict", [
    (["training", "new"], "not reproduced: only at sigma 0.2, not at the lowest"),
    (["training"], "not reproduced"), (["new"], "not reproduced")])
def test_a_mixture_that_crosses_at_higher_noise_alone(asked, verdict):
    errors = pd.concat([mixture_errors(0.1, empirical=(3., 3.)), mixture_errors(0.2)])
    crossings = pd.concat([mixture_crossings(0.1, training=9., new=9.),
                           mixture_crossings(0.2, **dict.fromkeys(asked, 40.))])
    assert rules.mixture_crosses(errors, crossings).verdict == verdict


# --- section 4: students ------------------------------------------------------------------------

@pytest.mark.parametrize("lowest, half_width, chance, verdict", [
    (0.82, 0.02, 0.01, "reproduced"),
    (0.819, 0.02, 0.01, "partly: lower than the paper"),
    (0.75, 0.25, 0.17, "partly: lower than the paper"), (0.75, 0.25, 0.19, "not reproduced")])
def test_the_progressive_student_agrees(lowest, half_width, chance, verdict):
    pairs = table(("a", "progressive-1", 0.9), ("b", "progressive-1", lowest, half_width, chance))
    claim = rules.progressive_agrees(pairs)
    assert claim.verdict == verdict and "at least 0.82" in claim.rule
    assert claim.measured.startswith(f"{lowest:.2f} (b, progressive-1) to 0.90, shuffled noises at")


@pytest.mark.parametrize("ct, verdict", [
    ((0.125, 0.125), "reproduced"), ((0.125, 0.25), "partly: lower with 1, higher with none of 2"),
    ((0.75, 0.125), "partly: lower with 1, higher with none of 2"),
    ((0.125, 0.875), "not reproduced: lower with 1, higher with 1 of 2"),
    ((0.25, 0.75), "not reproduced: lower with 0, higher with 0 of 2"),
    ((0.875, 0.25), "not reproduced: lower with 0, higher with 1 of 2")])
def test_consistency_agrees_less(ct, verdict):
    """Intervals are an eighth wide to either side: those of 0.25 and 0.75 touch that of 0.5."""
    pairs = table(*[(name, "ct", score, 0.125) for name, score in zip("ab", ct)])
    progressive = table(*[(name, "progressive-1", 0.5, 0.125) for name in "ab"])
    claim = rules.consistency_agrees_less(pairs, progressive)
    assert claim.verdict == verdict and "0.70 to 0.81" in claim.rule


    ours = rules.consistency_agrees_less(pairs, progressive, improved=True)
    assert ours.verdict == verdict.replace("not reproduced", "no").replace("reproduced", "yes")
    assert ours.statement.startswith("Improved consistency training") and not ours.paper
    assert ours.ours == claim.ours


@pytest.mark.parametrize("both, verdict", [
    (0.9375, "reproduced"), (0.875, "not decided: intervals overlap"),
    (0.6875, "not decided: intervals overlap"), (0.5, "not reproduced"),
    (0.1, "not reproduced")])
def test_students_of_each_other(both, verdict):
    """Its interval is an eighth wide to either side; the highest of the others is 0.75."""
    rp = table(("a", "ct", 0.25), ("ct", "b", 0.5), ("c", "ct", 0.75), ("a", "b", 0.99),
               ("cd", "ct", 0.99), ("progressive-1", "ct", both, 0.125))
    claim = rules.students_of_each_other(rp, ["a", "b", "c"])
    assert claim.verdict == verdict and "with the others 0.25 to 0.75" in claim.measured


@pytest.mark.parametrize("cd, ct, verdict", [
    (0.9, 0.8, "yes"), (0.9, 0.7, "for 1 of 2"), (0.9, 0.2, "for 1 of 2; the reverse for 1"),
    (0.5, 0.5, "for 0 of 2")])
def test_a_student_must_be_nearer_to_its_teacher_than_the_gaussian(cd, ct, verdict):
    """Intervals are an eighth wide to either side: those of 0.5 and 0.7 overlap."""
    pairs = table(("teacher", "cd", cd, 0.125), ("ct", "teacher", ct, 0.125))
    control = table(("teacher", "gaussian", 0.5, 0.125))
    claim = rules.nearer_than_gaussian("RP", pairs, control)
    assert claim.verdict == verdict
    assert claim.measured == f"the Gaussian denoiser 0.50; cd {cd:.2f}, ct {ct:.2f}"


def fresh_noise(own: float, teacher: float, lost: float) -> pd.DataFrame:
    """At two and four steps alike; at one, which does not count, all the same."""
    rows = [(what, steps, score if steps > 1 else 1.0) for steps in (1, 2, 4) for what, score in (
        ("each other", own), ("the teacher", teacher), ("Gaussian denoiser", 0.95),
        ("the teacher's own image", lost), ("teacher and Gaussian", 0.9))]
    return pd.DataFrame([(*row, row[2] - 0.0625, row[2] + 0.0625, 100) for row in rows],
                        columns=["what", "steps", "score", "low", "high", "n"])


@pytest.mark.parametrize("numbers, verdict", [
    ((0.9, 0.8, 0.1), "yes"), ((0.9, 0.8, 0.7), "no"), ((0.8, 0.9, 0.7), "no")])
def test_several_steps_are_one_image_where_they_agree_on_it(numbers, verdict):
    """Intervals are a sixteenth wide to either side."""
    table = fresh_noise(*numbers)
    claim = rules.several_steps(table)
    assert claim.verdict == verdict and claim.n == 100
    alone = rules.several_steps(table[table.what != "each other"])  # of one such model
    assert alone.verdict == "not decided: not trained yet"
    assert claim.measured.startswith(f"2 steps: each other {numbers[0]:.2f}, teacher")


def gains(**students: tuple[float, float]) -> pd.DataFrame:
    """Of each student the width of its teacher's filter and what it has beyond that."""
    rows = [(who, width, 0.75 + gain, 0.75, gain, gain - 0.125, gain + 0.125, 100)
            for who, (width, gain) in students.items()]
    return pd.DataFrame(rows, columns=["who", "width", "student", "blurred", "difference", "low",
                                       "high", "n"])


@pytest.mark.parametrize("cd, ct, verdict", [
    ((0.5, 0.25), (0.7, 0.2), "no"), ((0.5, 0.25), (0.0, -0.5), "no"),
    ((0.5, 0.25), (0.7, 0.1), "not decided: more for 1, less for 0 of 2"),
    ((0.5, -0.25), (0.7, 0.1), "not decided: more for 0, less for 1 of 2"),
    ((0.0, 0.2), (0.0, 0.2), "nothing to explain: no student is blurrier than its teacher")])
def test_blur_explains_what_a_teacher_as_blurred_has_too(cd, ct, verdict):
    claim = rules.blur_explains(gains(cd=cd, ct=ct), {"teacher": 0.9, "cd": 0.7, "ct": 0.4})
    assert claim.verdict == verdict
    assert claim.measured.endswith(
        f"; ct (sharpness 0.40): {0.75 + ct[1]:.2f}, equally sharp teacher 0.75, difference "
        f"{ct[1]:+.2f}; teacher's sharpness 0.90")


@pytest.mark.parametrize("cd, gain, verdict", [
    (0.5, 0.2, "yes"), (0.5, 0.1, "for 1 of 2"), (0.02, 0.3, "for 1 of 2")])
def test_even_parts_taught(cd, gain, verdict):
    """Above every model trained without the teacher, on the same noises, and above 0."""
    pairs = table(("teacher", "progressive-1", 0.9), ("cd", "teacher", cd), ("ct", "teacher", -0.3),
                  ("teacher", "a", 0.4), ("progressive-1", "cd", 0.0), ("ct", "a", 1.0))
    found = over(("progressive-1", "teacher", 0.4), ("cd", "teacher", gain), against="a, teacher")
    claim = rules.even_parts_taught(pairs, found)
    assert claim.verdict == verdict
    assert claim.measured == f"students {cd:.2f} (cd, teacher) to 0.90; without the teacher " \
                             "-0.30 (ct, teacher) to 0.40"
    assert claim.ours.startswith(f"{cd:.2f} [{cd - 0.02:.2f}, {cd + 0.02:.2f}] (cd, teacher)")
    assert rules.even_parts_taught(pairs, found[:0]).verdict.startswith("not decided")


@pytest.mark.parametrize("gaussian, verdict", [
    (0.25, "yes"), (0.82, "in 3 of 4 pairs; the reverse in 0")])
def test_the_claims_on_students_take_each_number_from_its_place(gaussian, verdict):
    """ct is lower than the progressive student with a and with b, but not crosswise."""
    rp = table(("progressive-1", "a", 0.95), ("b", "progressive-1", 0.85), ("ct", "b", 0.80),
               ("ct", "a", 0.90), ("ct", "progressive-1", 0.99), ("teacher", "a", 0.1),
               ("a", "b", 0.2), ("ct", "gaussian", 0.3), ("gaussian", "progressive-1", gaussian),
               ("teacher", "gaussian", 0.99), ("a", "gaussian", 0.5), ("ct", "teacher", 0.3))
    rp = pd.concat([rp, table(("progressive-1", "teacher", 1.0))])
    mae = table(("ct", "teacher", 0.9), ("progressive-1", "teacher", 0.9),
                ("gaussian", "teacher", 0.4), ("ct", "gaussian", 1.0))
    nearer = table(("a", "ct", 0.6), ("progressive-1", "a", 0.4), ("b", "ct", 0.6),
                   ("progressive-1", "b", 0.6), ("ct", "progressive-1", 0.1),
                   ("a", "b", 0.1), ("teacher", "ct", 0.9), ("progressive-1", "teacher", 0.8))
    form = ("teacher", "gaussian", 0.6), ("ct", "gaussian", 0.5)
    fresh = {steps: table(("ct", "teacher", score), *form) for steps, score in ((2, 0.9), (4, 0.4))}
    even = table(("progressive-1", "teacher", 0.5), ("ct", "teacher", 0.4), ("a", "teacher", 0.4),
                 ("b", "teacher", 0.1), ("a", "ct", 0.9), ("progressive-1", "a", 0.1))
    sharp = {"teacher": 0.9, "progressive-1": 0.8, "ct": 0.7}
    taught = over(("progressive-1", "teacher", 0.2), against="a, teacher")
    found = rules.distillation(rp, mae, nearer, even, taught, ["a", "b"],
                               fresh_noise(0.9, 0.8, 0.1), fresh, gains(ct=(0.5, 0.5)), sharp)
    assert [claim.verdict for claim in found] == ["reproduced"] * 3 + [
        verdict, "for 3 of 4 pairs", "for 0 of 2; the reverse for 1", "yes", "yes", "yes",
        "yes", "yes", "in 0 of 1 pairs; the reverse in 1", "no"]
    with_ict = pd.concat([rp, table(("ict", "a", 1.0), ("ict", "b", 0.2), ("ict", "gaussian", 0))])
    found = rules.distillation(with_ict, mae, nearer, even, taught, ["a", "b"],
                               fresh_noise(0.9, 0.8, 0.1), fresh, gains(ct=(0.5, 0.5)),
                               sharp | {"ict": 0.7})
    assert found[2].verdict == "no: lower with 1, higher with 1 of 2"


@pytest.mark.parametrize("attention, verdict", [
    (0.15, "yes"), (0.10, "no: for 1 of 2 ways, the reverse for 0"),
    (-0.15, "no: for 1 of 2 ways, the reverse for 1")])
def test_even_parts_added(attention, verdict):
    """Above that of the pre-trained networks; scratch was never one of them."""
    even = pd.concat([curve({64: score}, way=way) for way, score in (
        ("all", 0.5), ("attention", 0.4), ("scratch", 0.1))])
    gain = over(("a", "b", 0.2), ("c", "d", attention)).assign(way=["all", "attention"])
    bases = scores.Score(0.3, 0.25, 0.375, 16)
    claim = rules.even_parts_added(even, gain, bases)
    assert claim.verdict == verdict and "scratch 0.10" in claim.measured
    assert claim.ours.endswith("(attention minus the pre-trained networks)")
    assert rules.even_parts_added(even, gain[:0], bases).verdict.startswith("not decided")


# --- the verdict table: what the paper says, and ours with its interval -------------------------

def in_series(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame([(*row, row[2] - 0.125, row[2] + 0.125, 100) for row in rows],
                        columns=["series", "steps", "score", "low", "high", "n"])


def sections() -> dict[str, list[claims.Claim]]:
    """The claims of every section, from small tables with the columns of a run."""
    def blocks(*tasks: str) -> pd.DataFrame:
        return pd.concat([in_series(("U-Nets", 1, 0.75), ("transformers", 1, 0.5),
                                       ("across", 1, 0.25))
                          .assign(task=task, **{
                              "other noise": 0.125, "more": 0.125, "more low": 0.1,
                              "more high": 0.15, "n": 64}) for task in tasks]
                         ).rename(columns={"series": "block"})

    pairs = table(("edm", "ct", 0.72), ("gan", "vae", 0.30), ("edm", "gaussian", 0.40))
    winners = {"edm": [0, 0, 1, 2], "ct": [0, 0, 1, 1], "gan": [0, 1, 2, 0], "vae": [1, 1, 2, 0],
               rules.NEAREST: [0, 0, 1, 1]}
    widths = pd.concat([curve({64: .3, 4096: .1, 32768: 1.}, width=16),
                        curve({64: .4, 4096: .2, 32768: .95}, width=32)])
    errors, crossings = mixture_errors(), mixture_crossings(training=40., new=40.)
    unlike = table(("U-Net 16", "DiT", 0.8), ("U-Net 16", "gaussian", 0.6),
                   ("DiT", "gaussian", 0.5), ("U-Net 16", "optimal", 0.9))
    rp_cond = table(("a", "b", 0.5), ("a", "g", 0.25)).assign(**{"other class": 0.25})
    gap = pd.DataFrame([("a", "b", 0.5, 0.55, -0.05, -0.08, -0.02, 100)], columns=[
        "model", "other", "score", "twins", "difference", "low", "high", "n"])
    guidance = pd.DataFrame([(w, "a / b", 0.5, c, c - 0.1, c + 0.1, 100) for w, c in
                             ((1.0, 0.0), (4.0, -0.3))], columns=[
        "guidance", "pair", "score", "change", "change low", "change high", "n"])
    gaps = pd.DataFrame([("blur", "U-Nets", 0.5, 0.4, 0.6, 64),
                         ("blur", "transformers", 0.25, 0.2, 0.3, 64)],
                        columns=["task", "block", "difference", "low", "high", "n"])
    zetas = pd.concat([blocks("blur").assign(x=x) for x in (0.5, 8.0)])
    stochastic = pd.DataFrame([(runs, s, s - 0.1, s + 0.1, 32) for runs, s in (
        ("two models", 0.8), ("two models, same fresh noise", 0.9),
        ("one model, other fresh noise", 0.2))], columns=["runs", "score", "low", "high", "n"])
    energy = pd.DataFrame({"low": [0.9, 0.9], "high": [1.1, 1.1]})
    ways = pd.concat([curve({4: s, 64: 0.9}, way=way, pair="different starts")
                      for way, s in (("scratch", 0.6), ("attention", 0.2))])
    gain = pd.DataFrame([("attention", 4, 0.8, 0.5, 0.3, 0.2, 0.4, 100)], columns=[
        "way", "images", "same", "different", "difference", "low", "high", "n"])
    students = table(("progressive-1", "a", 0.95), ("ct", "a", 0.90), ("ct", "progressive-1", 0.99),
                     ("ct", "gaussian", 0.3), ("gaussian", "progressive-1", 0.5),
                     ("teacher", "ct", 0.9), ("teacher", "gaussian", 0.5))
    taught = table(("teacher", "progressive-1", 0.8), ("teacher", "ct", 0.3), ("teacher", "a", 0.2))
    return {
        "unconditional": rules.unconditional(
            pairs, pairs, ["edm", "ct"], ["edm", "ct"], ["gan", "vae"], pairs,
            over(("edm", "ct", 0.5)),
            gl_table(edm=1., ct=.97, gaussian=1., **{"held-out": .99}),
            {name: torch.tensor(w) for name, w in winners.items()}),
        "two_regimes": rules.two_regimes(
            widths.assign(pair="16 / 32"), widths, widths, curve(
                {64: .1, 1024: .6}, width=32, control=.5, nearer=.6, gain=.1, **{
                    "nearer low": .5, "nearer high": .7, "gain low": .05, "gain high": .15}),
            with_gain({64: 0.1, 256: 0.4}, "width 16"),
            {1024: table(("U-Net 16", "DiT", 0.3))},
            errors, crossings, {64: table(("U-Net 16", "DiT", 0.4)), 1024: unlike},
            {1024: table(("U-Net 16", "DiT", 0.7))}),
        "conditional": rules.conditional(
            rp_cond, rp_cond, gap, table(("a", "b", 0.55)),
            rp_cond.assign(**{"random": 0.1, "one class": 0.1, "model": "a"}), guidance,
            guidance.assign(pair="a"), "g"),
        "inverse": rules.inverse_problems(
            gaps, gaps.rename(columns={"task": "problem"}), blocks("blur"),
            zetas.rename(columns={"block": "who"}), stochastic,
            {"edm": {0.0: energy, 8.0: energy + 1}}, energy),
        "fine_tuning": rules.fine_tuning(ways, ways, gain, ways, scores.Score(.7, .6, .8, 99),
                                         ways.assign(run=""), ways,
                                         scores.Score(.7, .6, .8, 99), ways,
                                         over(("a", "b", 0.2)).assign(way="attention"),
                                         scores.Score(.3, .25, .35, 16)),
        "distillation": rules.distillation(
            students, students, students, taught,
            over(("progressive-1", "teacher", 0.5), against="a, teacher"), ["a"],
            fresh_noise(0.9, 0.8, 0.1),
            {2: table(("ct", "teacher", 0.9), ("ct", "gaussian", 0.5),
                      ("teacher", "gaussian", 0.6))},
            gains(ct=(0.5, 0.25)), {"teacher": 0.9, "progressive-1": 0.8, "ct": 0.7})}


def test_every_claim_says_what_the_paper_says_or_is_ours():
    found = sections()
    assert set(found) == set(claims.SECTIONS)
    for claim in sum(found.values(), []):
        own = "(our " in claim.statement or "Kadkhodaie" in claim.statement
        assert (claim.paper == claim.grade == "") == own, claim
        assert own or claim.paper and claim.grade in {"S", "F", "M"}, claim
        assert claim.grade != "M" or claim.paper == "recalled, not seen"
        assert claim.grade in {"S", "F"} or not any(map(str.isdigit, claim.paper)), claim
        assert ("recalled" in claim.statement) <= (claim.grade == "M")


def test_every_claim_has_our_number_and_its_interval_where_there_is_one():
    without = {"Hyperplane", "The larger", "Inverse problems: the guided"}
    for claim in sum(sections().values(), []):
        no_interval = claim.statement.startswith(tuple(without))
        assert claim.ours and (claim.n is None) == ("[" not in claim.ours) == no_interval, claim
        assert isinstance(claim.n, int) or no_interval


@pytest.mark.parametrize("section, k, paper, grade, ours, n", [
    ("unconditional", 0, "0.70 to 0.91", "S", "0.72 [0.70, 0.74] (edm, ct)", 100),
    ("unconditional", 1, "said, without a number", "S",
     "0.30 [0.28, 0.32] (gan, vae); 0.72 [0.70, 0.74] (edm, ct)", 100),
    ("unconditional", 2, "", "",
     "0.72 [0.70, 0.74] (edm, ct); 0.40 [0.38, 0.42] (edm, gaussian)", 100),
    ("unconditional", 3, "0.68 to 0.92", "S", "0.72 [0.70, 0.74] (edm, ct)", 100),
    ("unconditional", 6, "", "",
     "0.72 [0.70, 0.74] (edm, ct); 0.50 [0.38, 0.62] (edm, ct minus a, gan)", 100),
    ("unconditional", 8, "said, without a number", "S", "0.75 (edm, ct)", None),
    ("two_regimes", 1, "0.00 at 64 images, 0.98-1.00 at 32768 images", "F",
     "0.40 [0.35, 0.45] (width 32, 64 images); 0.95 [0.90, 1.00] (width 32, 32768 images)", 100),
    ("two_regimes", 2, "width 64: 2048-4096 images; width 128: 4096-8192 images; "
     "width 256: 8192-16384 images", "F",
     "width 16: 4096-32768 images; width 32: 4096-32768 images", None),
    ("two_regimes", 3, "0.48-0.51 at 64 images, 0.00 at 32768 images", "F",
     "0.30 [0.25, 0.35] (width 16, 64 images); 1.00 [0.95, 1.05] (width 16, 32768 images)", 100),
    ("two_regimes", 4, "", "",
     "0.60 [0.55, 0.65] (width 32, 1024 images); 0.10 [0.05, 0.15] (width 32, 64 images); "
     "0.10 [0.05, 0.15] (minus the control at 1024 images)", 100),
    ("two_regimes", 5, "", "", "0.60 [0.50, 0.70] (width 32, of the other half)", 100),
    ("two_regimes", 6, "", "", "0.80 [0.78, 0.82] (U-Net 16, DiT); "
     "0.60 [0.58, 0.62] (U-Net 16, gaussian)", 100),
    ("two_regimes", 7, "", "", "0.70 [0.68, 0.72] (U-Net 16, DiT)", 100),
    ("two_regimes", 10, "studied, settings not seen", "S",
     "crossing at 40 [36, 44] points (at noisy training points, sigma 0.1); "
     "crossing at 40 [36, 44] points (at noisy new points, sigma 0.1)", 256),
    ("conditional", 0, "said, without a number", "S",
     "-0.05 [-0.08, -0.02] (a, b: RP_cond minus RP of their twins)", 100),
    ("conditional", 1, "recalled, not seen", "M",
     "0.50 [0.48, 0.52] (a, b); 0.55 [0.53, 0.57] (unconditional: a, b)", 100),
    ("conditional", 5, "", "", "-0.30 [-0.40, -0.20] (a / b: weight 4 minus weight 1)", 100),
    ("inverse", 0, "said, without a number", "S",
     "0.25 [0.20, 0.30] (blur: transformers minus across)", 64),
    ("inverse", 1, "", "", "0.25 [0.20, 0.30] (blur: transformers minus across)", 64),
    ("inverse", 2, "", "", "0.25 [0.12, 0.38] (across, step size 8); "
     "0.25 [0.12, 0.38] (across, step size 0.5)", 64),
    ("inverse", 3, "", "", "0.12 [0.10, 0.15] (blur: U-Nets minus from other noises)", 64),
    ("inverse", 4, "", "", "0.80 [0.70, 0.90] (two models, deterministic); "
     "0.20 [0.10, 0.30] (one model, stochastic)", 32),
    ("inverse", 5, "recalled, not seen", "M", "100% (edm, zeta 8); 0% (edm, not guided)", None),
    ("fine_tuning", 0, "recalled, not seen", "M",
     "0.20 [0.15, 0.25] (RP, attention, 4 images); 0.60 [0.55, 0.65] (RP, scratch, 4 images); "
     "0.20 [0.15, 0.25] (GL, attention, 4 images); 0.60 [0.55, 0.65] (GL, scratch, 4 images)",
     100),
    ("fine_tuning", 1, "", "", "0.30 [0.20, 0.40] (attention on 4 images)", 100),
    ("fine_tuning", 2, "", "",
     "0.90 [0.85, 0.95] (scratch); 0.90 [0.85, 0.95] (scratch with the Gaussian denoiser)", 100),
    ("distillation", 0, "0.82 to 0.88", "S", "0.95 [0.93, 0.97] (progressive-1, a)", 100),
    ("distillation", 1, "0.70 to 0.81, progressive 0.82 to 0.88", "S",
     "0.90 [0.88, 0.92] (ct, a); 0.95 [0.93, 0.97] (progressive-1, a)", 100),
    ("distillation", 2, "0.91", "S",
     "0.99 [0.97, 1.01] (ct, progressive-1); 0.90 [0.88, 0.92] (ct, a)", 100),
    ("distillation", 9, "", "",
     "0.90 [0.84, 0.96] (4 steps, each other); 0.10 [0.04, 0.16] (4 steps, the teacher's own "
     "image)", 100),
    ("distillation", 11, "", "", "0.25 [0.12, 0.38] (ct minus its equally sharp teacher)", 100)])
def test_what_stands_in_the_verdict_table(section, k, paper, grade, ours, n):
    claim = sections()[section][k]
    assert (claim.paper, claim.grade, claim.ours, claim.n) == (paper, grade, ours, n)


def test_the_valley_stands_beside_the_papers_with_the_pair_that_fits_worst():
    good = curve({64: .7, 4096: .3, 32768: .8}, pair="16 / 32")
    flat = curve({64: .31, 4096: .3, 32768: .32}, pair="32 / 64")
    claim = rules.valley(pd.concat([good, flat]))
    assert claim.paper == ("falls from 0.62-0.69 at 64 images to 0.02-0.18, rises to 0.61-0.845 "
                           "at 32768 images") and claim.grade == "F"
    assert claim.ours == ("0.31 [0.26, 0.36] (32 / 64 at 64 images); "
                          "0.30 [0.25, 0.35] (32 / 64 at 4096 images); "
                          "0.32 [0.27, 0.37] (32 / 64 at 32768 images)") and claim.n == 100
    none = rules.valley(good[:2])
    assert (none.ours, none.n, none.grade) == ("", None, "F")
