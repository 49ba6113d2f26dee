"""Conditional models: the scores against cases with a known answer, guidance, labels, sheets."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from paper_utils import conditional, data, denoisers, descriptors, models, profiles, recipes, rules
from paper_utils import samplers, scores, training, zoo
from paper_utils.errors import UserError
from paper_utils.models import BANK
from paper_utils.samplers import SAMPLERS, Solver, sample
from paper_utils.training import Spec

pytestmark = pytest.mark.usefixtures("cache")

TINY = Spec("tiny-cond", "unet", dict(width=8, channel_mult=(1,), blocks=1, attention=(), patch=4,
                                      num_classes=10, label_dropout=0.1),
            images=16, solver=Solver("heun", 3))


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(TINY, 0.2)


def directions(n: int, classes: int, d: int = 64, seed: int = 0) -> torch.Tensor:
    """Unit rows that have nothing to do with each other, [n, classes, d]."""
    return normalize(torch.randn(n, classes, d, generator=torch.Generator().manual_seed(seed)),
                     dim=-1)


# --- sampling -----------------------------------------------------------------------------------

def test_a_conditional_model_makes_every_class_of_every_noise(model):
    found = model.generate(BANK[:2])
    assert found.shape == (2, 10, 3, 32, 32) and model.classes == tuple(range(10))
    for k, label in [(0, 0), (0, 7), (1, 3)]:
        alone = sample(model.denoiser(), BANK[k:k + 1], TINY.solver, torch.tensor([label]))
        torch.testing.assert_close(found[k, label], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, 0], found[:, 7], atol=1e-2)


def test_samples_of_a_conditional_model_are_kept_with_their_classes(model):
    first = models.samples(model, 3)
    silent = replace(model, generate=lambda *_: pytest.fail("made again"))
    assert first.shape == (3, 10, 3, 32, 32) and torch.equal(models.samples(silent, 3), first)


def test_noise_k_has_class_k_under_guidance_and_weight_one_is_no_guidance(model):
    every, one = model.generate(BANK[:12]), conditional.guided(model, 1.0).generate(BANK[:12])
    for k in range(12):
        torch.testing.assert_close(one[k], every[k, k % 10], rtol=1e-4, atol=1e-4)
    assert conditional.guided(model, 1.0).evaluations == model.evaluations
    strong = conditional.guided(model, 3.0)
    assert strong.evaluations == 2 * model.evaluations and strong.name == "tiny-cond@w3"
    assert not torch.allclose(strong.generate(BANK[:2]), one[:2], atol=1e-2)
    assert strong.identity != model.identity


def test_guidance_needs_a_denoiser(model):
    with pytest.raises(UserError, match="gan has no denoiser"):
        conditional.guided(replace(model, name="gan", denoiser=None), 2.0)


def test_guidance_needs_label_dropout():
    spec = replace(TINY, network_args=TINY.network_args | {"label_dropout": 0.0})
    plain = models.diffusion(spec, training.build(spec).eval(), "weights")
    with pytest.raises(UserError, match="label_dropout=0.1"):
        conditional.guided(plain, 2.0)


def test_guided_samples_of_weight_one_are_those_of_the_model(model):
    sizes = profiles.get("smoke", class_noises=3)
    images = {"m": models.samples(model, 3)}
    found = conditional.guided_samples({"m": model}, images, sizes)
    assert list(found) == list(conditional.WEIGHTS)
    assert torch.equal(found[1.0]["m"], images["m"][torch.arange(3), torch.arange(3)])
    assert all(rows["m"].shape == (3, 3, 32, 32) for rows in found.values())
    assert len({rows["m"].numpy().tobytes() for rows in found.values()}) == len(found)


def test_labels_must_be_as_many_as_noises(model):
    with pytest.raises(UserError, match="3 labels for 2 noises"):
        sample(model.denoiser(), BANK[:2], TINY.solver, torch.tensor([0, 1, 2]))


def test_the_gaussian_of_each_class_is_that_of_its_images():
    images = data.load("bundled")
    made = conditional.gaussian(images).generate(BANK[:1])
    assert made.shape == (1, 10, 3, 32, 32)
    alone = denoisers.GaussianDenoiser.fit(images.classes(4, 4).pixels)
    exact = alone.flow(80 * BANK[:1].double(), 80.0, 0.0).float()
    assert (made[0, 4] - exact[0]).abs().mean() < 0.02  # 18 Heun steps of the same ODE
    other = (made[0, 5] - exact[0]).abs().mean()
    assert other > 0.1


@pytest.mark.parametrize("odd", [dict(spec=None), dict(classes=())])
@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_only_conditional_models_of_this_project_are_guided(model, odd, weight):
    with pytest.raises(UserError, match="is not guided here: give a class-conditional model"):
        conditional.guided(replace(model, **odd), weight)


@pytest.mark.parametrize("n", [2, 3])
def test_under_guidance_the_opposite_noise_keeps_its_class(model, n):
    guided = conditional.guided(model, 2.0)
    both = models.of_both_signs(guided, n)
    torch.testing.assert_close(both[1], guided.generate(-BANK[:n]))


@pytest.mark.parametrize("weight, part", [(0.0, None), (1e-9, None), (1.0, 0), (1.0, 1)])
def test_the_guided_gaussian_lies_between_that_of_all_and_that_of_the_class(weight, part):
    """Weight 0 is the Gaussian denoiser of all images, 1 that of the class of noise k."""
    images, noise = data.load("bundled"), BANK[:2]
    made = conditional.guided_gaussian(images, weight).generate(noise)
    assert made.shape == noise.shape
    k = part or 0
    if part is None:
        expected = samplers.sample_gaussian(models.gaussian(images), noise, Solver())[k]
    else:
        expected = conditional.gaussian(images).generate(noise)[k, k]
    torch.testing.assert_close(made[k], expected, rtol=1e-3, atol=1e-3)


def test_the_guided_control_takes_what_is_there_and_makes_the_rest():
    images, sizes = data.load("bundled"), profiles.get("smoke", class_noises=2)
    plain = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    own = torch.arange(20, dtype=torch.uint8).view(2, 10, 1, 1, 1).expand(2, 10, 3, 32, 32)
    found = conditional.guided_control(images, plain, own, sizes)
    assert list(found) == list(conditional.CONTROLLED)
    assert found[0.0][:, 0, 0, 0].tolist() == [0, 1] and found[1.0][:, 0, 0, 0].tolist() == [0, 11]
    for weight in (1.5, 2.0):
        made = conditional.guided_gaussian(images, weight).generate(BANK[:2])
        assert torch.equal(found[weight], data.to_bytes(made))


def test_guidance_leads_away_from_the_gaussian_of_all():
    images, noise = data.load("bundled"), BANK[:1]
    plain, own, strong = (conditional.guided_gaussian(images, w) for w in (0.0, 1.0, 2.0))
    x0 = [one.generate(noise) for one in (plain, own, strong)]
    assert (x0[2] - x0[0]).norm() > 1.2 * (x0[1] - x0[0]).norm()
    assert len({str(one.identity) for one in (plain, own, strong)}) == 3


@pytest.mark.parametrize("noise", [-1, 3])
def test_a_noise_that_was_not_sampled_is_refused(noise):
    with pytest.raises(UserError, match="choose 0 to 2"):
        conditional.check_noise(noise, profiles.get("smoke", class_noises=3))


def test_one_noise_beside_its_twin():
    plain, every = torch.arange(3.0), torch.arange(6.0).view(3, 2)
    conditional.check_noise(0, profiles.get("smoke", class_noises=3))
    assert conditional.beside_twin(plain, every, 0).tolist() == [0, 0, 1]
    assert conditional.beside_twin(plain, every, 2).tolist() == [2, 4, 5]


# --- scores -------------------------------------------------------------------------------------

def test_rp_cond_counts_noises_and_classes():
    one = directions(50, 4)
    other = one.clone()
    other[:, 0] = directions(50, 1, seed=9)[:, 0]  # the first class of every noise differs
    copies = scores.copies(0.75)
    row = scores.pairwise({"a": one, "b": other}, copies).iloc[0]
    assert row.score == pytest.approx(0.75) and row.n == 50 and row.shuffled == 0


def test_rp_between_is_a_maximum_over_classes_beside_its_chance():
    theirs = directions(40, 5)
    mine = theirs[torch.arange(40), torch.arange(40) % 5]
    mine[:10] = directions(10, 1, seed=7)[:, 0]  # ten noises have no class like them
    row = conditional.between({"u": mine}, {"c": theirs}, 0.75).iloc[0]
    assert row.score == pytest.approx(30 / 40) and row.random == 0 and (row.model, row.other) == (
        "u", "c")
    assert row["one class"] == pytest.approx(30 / 40 / 5)  # one of five classes is like it


def test_chance_takes_other_noises_and_as_many_samples():
    rows = torch.arange(6.0).view(6, 1, 1).expand(6, 10, 1).clone()
    taken = conditional.elsewhere(rows)
    assert taken.shape == rows.shape and (taken != rows).all()
    assert torch.equal(taken, conditional.elsewhere(rows)) and len(taken.unique()) == 6


def test_chance_is_one_where_every_sample_is_alike():
    same = directions(1, 1).expand(20, 3, 64)
    row = conditional.between({"u": same[:, 0]}, {"c": same}, 0.75).iloc[0]
    assert row.score == row.random == 1


def test_the_winning_class_is_counted_against_the_twin():
    theirs = directions(8, 3)
    mine = theirs[torch.arange(8), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])]
    table = conditional.winning_classes({"m": mine}, {"m-cond": theirs}, {"m-cond": "m"}, "xyz")
    assert table.set_index("class").share.to_dict() == {"x": 0.5, "y": 0.25, "z": 0.25}
    both = {"m-cond": theirs, "n-cond": theirs.flip(1)}
    row = conditional.same_winner({"m": mine}, both, dict.fromkeys(both, "m")).iloc[0]
    assert row.score == 0.25 and row.low < 0.25 < row.high
    assert row.chance == pytest.approx(2 * 0.5 * 0.25 + 0.25**2)


def test_guidance_has_a_row_for_every_weight_and_pair():
    rows = {w: {name: directions(10, 1, seed=s)[:, 0] for name, s in
                (("a-cond", w), ("b-cond", w if w < 2 else 7), ("c-cond", 9))} for w in (0, 1, 2)}
    table = conditional.over_guidance(rows, scores.copies(0.75))
    assert len(table) == 9 and set(table.pair) == {"a / b", "a / c", "b / c"}
    found = table[table.pair == "a / b"].set_index("guidance")
    assert found.score.to_dict() == {0: 1.0, 1: 1.0, 2: 0.0}
    assert found.change.to_dict() == {0: 0.0, 1: 0.0, 2: -1.0}
    assert (found["change low"][1], found["change high"][1]) == (0, 0)  # the weight against itself
    assert found["change low"][0] < 0 < found["change high"][0]


def test_what_is_lost_with_classes_is_counted_on_the_same_noises():
    """Half of the noises agree in both, a quarter without classes only."""
    one, other = directions(40, 1, seed=1)[:, 0], directions(40, 1, seed=2)[:, 0]
    plain = {"a": one, "b": torch.cat([one[:30], other[30:]])}
    every = {"a-cond": one[:, None].expand(-1, 5, -1),
             "b-cond": torch.cat([one[:20], other[20:]])[:, None].expand(-1, 5, -1)}
    twin, copies = {"a-cond": "a", "b-cond": "b"}, scores.copies(0.75)
    row = conditional.carried_over(every, plain, twin, copies).iloc[0]
    assert (row.score, row.twins, row.difference) == (0.5, 0.75, -0.25) and row.n == 40
    apart = conditional.carried_over(every, {"a": one, "b": torch.cat([other[:30], one[30:]])},
                                     twin, copies).iloc[0]
    assert apart.high - apart.low > row.high - row.low  # other noises agree: less certain


def test_two_images_of_one_model_with_two_classes():
    every = torch.eye(4, 5).expand(3, 4, 5)
    rows = {"a": every, "b": every[:, :1].expand(3, 4, 5)}
    table = conditional.of_another_class(rows, scores.copies(0.5))
    assert table.to_dict("list") == {"model": ["a", "b"], "other class": [0.0, 1.0]}


def test_every_model_is_held_against_the_guided_gaussian():
    one, other = directions(10, 1)[:, 0], directions(10, 1, seed=2)[:, 0]
    rows = {w: {"a-cond": one, "b-cond": torch.cat([one[:4], other[4:]])} for w in (1.0, 2.0)}
    table = conditional.with_guided_gaussian(rows, {1.0: one, 2.0: other}, scores.copies(0.75))
    assert table[["guidance", "pair", "control", "score"]].values.tolist() == [
        [w, *best] for w in (1.0, 2.0) for best in (["a", 1.0, 1.0], ["b", 2.0, 0.6])]
    rp = conditional.over_guidance(rows, scores.copies(0.75))
    found = conditional.guidance_beside_control(rp, table)["a / b"]
    assert found[["what", "guidance", "score"]].values.tolist() == [
        *(["with each other", w, 0.4] for w in (1.0, 2.0)),
        *(["Gaussian / the nearer of the two", w, 1.0] for w in (1.0, 2.0))]  # of a
    claim, = rules.more_under_guidance(rp, table, 2.0)
    assert claim.verdict == "in 0 of 1 pairs; the reverse in 0" and "1.00" in claim.ours


# --- specifications -----------------------------------------------------------------------------

@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_conditional_models_are_the_unconditional_ones_with_labels(profile):
    plain, found = recipes.specs(profile), recipes.conditional_specs(profile)
    assert list(found) == ["edm-cond", "ddpm-vp-cond", "multistage-cond", "uvit-cond"]
    for name, spec in found.items():
        twin = plain[name.removesuffix("-cond")]
        labelled = twin.network_args | {"num_classes": 10, "label_dropout": 0.1}
        assert spec == replace(twin, name=name, network_args=labelled)  # the budget too
        network = training.build(spec).network if profile in ("smoke", "laptop") else None
        assert network is None or (network.num_classes, network.has_null_class) == (10, True)


def test_a_shipped_model_of_another_subset_is_refused(tmp_path):
    images, spec = data.load("bundled"), replace(TINY, name="x")
    zoo.add("x", "diffusion", torch.zeros(1, 10, 3, 32, 32, dtype=torch.uint8), BANK, "test",
            training.build(spec).network.state_dict(), training.json.loads(spec.to_json()),
            tmp_path, images.first(15).hash)
    with pytest.raises(UserError, match="x.safetensors belongs to another subset of images"):
        models.shipped_by({"x": spec}, tmp_path, images)
    with pytest.raises(UserError, match="trained by another recipe than x has"):
        models.shipped_by({"x": replace(spec, batch=3)}, tmp_path, images)
    assert models.shipped_by({"y": spec}, tmp_path, images) == {}


# --- ImageNet -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """A tiny random pipeline of the class of facebook/DiT-XL-2-256, saved to disk."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(6)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000)
    for p in transformer.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
                        down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2)
    folder = tmp_path_factory.mktemp("hub") / "dit-tiny"
    DiTPipeline(transformer, vae, DDIMScheduler()).save_pretrained(folder)
    return folder


def test_a_dit_pipeline_joins_by_the_path_of_the_hub(dit):
    found = conditional.from_hub(f"{dit}, ")
    model = found["dit-tiny"]
    assert model.shape == (4, 8, 8) and model.classes == tuple(range(0, 1000, 100))
    assert model.images is None and model.images_seen is None
    images = models.samples(model, 2)
    assert images.shape == (2, 10, 3, 16, 16) and images.dtype == torch.uint8
    assert not torch.equal(images[:, 0], images[:, 1]) and conditional.from_hub("") == {}


def test_pipelines_are_compared_on_noises_of_one_shape_and_by_name(dit, capsys):
    model = conditional.from_hub(str(dit))["dit-tiny"]
    images, describe = models.samples(model, 4), descriptors.load("cifar-copy")
    images = descriptors.resize_bytes(images.flatten(0, 1), 32).unflatten(0, images.shape[:2])
    pair = {"one": model, "two": replace(model, name="two")}
    row = conditional.imagenet_rp(pair, dict.fromkeys(pair, images), describe).iloc[0]
    assert row.score == 1 and row.n == 4
    with pytest.raises(UserError, match="noises of different shapes"):
        conditional.imagenet_rp(pair | {"large": replace(model, shape=(4, 16, 16))}, {}, describe)
    with pytest.raises(UserError, match="two pipelines are called 'dit-tiny'"):
        conditional.from_hub(f"{dit},{dit}")
    assert list(conditional.from_hub("", [f"{dit}/nothing", str(dit)])) == ["dit-tiny"]
    assert "left out: no diffusers pipeline" in capsys.readouterr().out


def test_a_dit_agrees_with_diffusers_own_sampler(dit):
    """The same latents, class and DDIM steps, without guidance, through diffusers' scheduler."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel

    transformer = DiTTransformer2DModel.from_pretrained(dit, subfolder="transformer").eval()
    scheduler = DDIMScheduler.from_pretrained(dit, subfolder="scheduler", clip_sample=False,
                                              set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    noise, label = torch.randn(1, 4, 8, 8), torch.tensor([7])
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = transformer(x, timestep=t[None], class_labels=label).sample[:, :4]
            x = scheduler.step(eps, t, x).prev_sample
    alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()
    sigmas = torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1, dtype=torch.float64)])
    denoiser, decode = denoisers.from_diffusers_dit(str(dit))
    vae = AutoencoderKL.from_pretrained(dit, subfolder="vae").eval()
    with torch.no_grad():
        image = vae.decode(noise / vae.config.scaling_factor).sample
    torch.testing.assert_close(decode(noise), image)
    u0 = (1 + sigmas[0] ** 2).sqrt() * noise  # diffusers starts at x, we at u = x / s
    with torch.no_grad():
        conditioned = partial(denoiser, labels=label)
        *_, u = SAMPLERS["euler"](conditioned, (u0 / sigmas[0]).double(), sigmas)
    torch.testing.assert_close(u.float(), x, rtol=2e-3, atol=2e-3)


def test_a_hub_that_has_no_such_pipeline_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no diffusers pipeline with safetensors"):
        conditional.from_hub(str(tmp_path / "nothing"))


# --- claims -------------------------------------------------------------------------------------

def pairs(low: float, high: float, chance: float = 0.0, names=("a", "b")):
    return pd.DataFrame([(*names, (low + high) / 2, low, high, chance, chance, 0.25, 0.25, 100)],
                        columns=["model", "other", "score", "low", "high", "shuffled", "random",
                                 "other class", "one class", "n"])


def gap(difference: float, half: float):
    return pd.DataFrame([("a", "b", 0.6, 0.6 - difference, difference, difference - half,
                          difference + half, 100)],
                        columns=["model", "other", "score", "twins", "difference", "low", "high",
                                 "n"])


@pytest.mark.parametrize("difference, half, chance, verdict", [
    (0.0, 0.05, 0.1, "reproduced"), (-0.04, 0.05, 0.1, "reproduced"),
    (-0.3, 0.05, 0.1, "partly: above chance, lower than without classes"),
    (0.0, 0.3, 0.1, "not decided: the intervals are too wide"),
    (0.0, 0.05, 0.6, "not reproduced")])
def test_carrying_over_is_judged_by_the_twins(difference, half, chance, verdict):
    claim = rules.carries_over(gap(difference, half), pairs(0.5, 0.7, chance))
    assert claim.verdict == verdict and "another class 0.25 to 0.25" in claim.measured


def test_one_class_alone_has_no_other():
    rows = {"a": torch.ones(4, 1, 2), "b": torch.ones(4, 1, 2)}
    pairs = pd.DataFrame({"model": ["a"], "other": ["b"]})
    assert conditional.other_class(pairs, rows, scores.copies(0.5)).isna().all()


def test_another_class_from_the_same_noise():
    """The models make one image a class; the third's are the first's of the class before."""
    rows = torch.eye(4, 5).expand(3, 4, 5)
    features = {"a": rows, "b": rows, "c": rows.roll(1, 1)}
    equal = lambda one, other: (one == other).all(-1)  # noqa: E731
    table = scores.pairwise(features, equal)
    assert table.score.tolist() == [1.0, 0.0, 0.0]
    assert conditional.other_class(table, features, equal).tolist() == [0.0, 1 / 3, 1 / 3]


@pytest.mark.parametrize("low, random, verdict", [
    (0.8, 0.2, "reproduced"), (0.6, 0.2, "partly: lower than two unconditional models"),
    (0.6, 0.4, "not reproduced"), (0.1, 0.2, "not reproduced")])
def test_between_is_judged_by_random_samples_and_by_unconditional_models(low, random, verdict):
    claim = rules.one_class_is_the_unconditional(pairs(low, 0.95, random), pairs(0.8, 0.9))
    assert claim.verdict == verdict and "recalled" in claim.statement


def curves(*changes: tuple):
    return pd.DataFrame([(w, p, 0.5, c, c - 0.1, c + 0.1) for p, c in enumerate(changes)
                         for w, c in ((1.0, 0.0), (4.0, c))],
                        columns=["guidance", "pair", "score", "change", "change low",
                                 "change high"])


def test_guidance_is_judged_by_the_change_at_its_largest_weight():
    verdicts = [rules.guidance_matters(curves(*c)).verdict
                for c in ((-0.5, 0.0, 0.2), (-0.5, 0.0), (0.05,))]
    assert verdicts == ["lower for 1, higher for 1 of 3 pairs", "lower for 1, higher for 0 of 2 "
                        "pairs", "no difference seen"]


def test_the_control_stands_apart_in_the_claims():
    rp = pd.concat([pairs(0.8, 0.9), pairs(0.1, 0.3, names=("a", "g")),
                    pairs(0.1, 0.3, names=("b", "g"))])
    between = pd.concat([pairs(0.8, 0.9), pairs(0.0, 0.1, 0.5, ("a", "g"))])
    mae = pd.concat([pairs(0.1, 0.2), pairs(0.1, 0.3, names=("a", "g")),
                     pairs(0.8, 0.9, names=("b", "g"))])
    guided = conditional.with_guided_gaussian({}, {}, scores.close)
    found = rules.conditional(rp, mae, gap(0.0, 0.05), pairs(0.8, 0.9), between, curves(0.0),
                              guided, "g")
    assert [claim.verdict for claim in found] == [
        "reproduced", "reproduced", "yes", "in 0 of 1 pairs; the reverse in 0", "yes",
        "no difference seen"]
    # a conditional model, too, may be near the closed form; two closed forms are no control
    for model, verdict in (("gaussian", "in 0 of 1 pairs; the reverse in 0"),
                           ("local", "yes")):
        more = pd.concat([between, pairs(0.9, 1.0, names=(model, "b")),
                          pairs(1.0, 1.0, names=(model, "g"))])
        found = rules.conditional(rp, mae, gap(0.0, 0.05), pairs(0.8, 0.9), more, curves(0.0),
                                  guided, "g")
        assert found[4].verdict == verdict


def test_without_models_nothing_is_decided():
    nothing = scores.pairwise({}, scores.close)
    gaps = conditional.carried_over({}, {}, {}, scores.close)
    found = rules.conditional(nothing, nothing, gaps, nothing, conditional.between({}, {}, 0.5),
                              curves(), conditional.with_guided_gaussian({}, {}, scores.close),
                              "g")
    assert {claim.verdict for claim in found} == {"not decided: not trained yet"}
