"""GANs and VAEs: the shared latent, exact resume, averages, and what is stored."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from paper_utils import contrast, data
from paper_utils.artifacts import below
from paper_utils.contrast import Spec
from paper_utils.errors import UserError
from paper_utils.noise import NoiseBank

SMALL = {kind: Spec(kind, width=4, images_seen=32, batch=8, ema_images=10, seed=1)
         for kind in contrast.KINDS}


@pytest.fixture(scope="module")
def images():
    return data.load("bundled")


def run(spec, images, state=None):
    """Every state of a training, copied."""
    return [{k: v.clone() for k, v in s.items()} for s in contrast.train(spec, images, state)]


def test_projection_rows_are_orthonormal():
    rows = contrast.projection().double()
    assert rows.shape == (128, 3072)
    assert torch.allclose(rows @ rows.T, torch.eye(128, dtype=torch.float64), atol=1e-6)


def test_projection_is_pinned():
    expected = torch.tensor([0.0174, -0.0122, -0.0202, 0.0067])
    assert torch.allclose(contrast.projection()[0, :4], expected, atol=1e-4)


def test_latents_of_the_bank_are_standard_normal():
    z = contrast.project(NoiseBank()[:2000])
    covariance = z.T @ z / len(z)
    assert z.mean(0).abs().max() < 5 / 2000**0.5
    assert (covariance - torch.eye(128)).abs().max() < 7 / 2000**0.5


def test_latent_is_linear_in_the_noise():
    a, b = NoiseBank()[0:1], NoiseBank()[1:2]
    mixed = contrast.project(0.6 * a + 0.8 * b)
    assert torch.allclose(mixed, 0.6 * contrast.project(a) + 0.8 * contrast.project(b), atol=1e-5)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(UserError, match="3, 32, 32"):
        contrast.project(torch.zeros(2, 1, 28, 28))


@pytest.mark.parametrize("kind", contrast.KINDS)
def test_images_of_another_shape_are_refused(kind, images):
    for pixels in (images.pixels[:, :1], images.pixels.repeat(1, 1, 2, 2)):
        with pytest.raises(UserError, match=r"\[3, 32, 32\], but .* are \[.*: resize them"):
            next(contrast.train(SMALL[kind], replace(images, pixels=pixels)))


@pytest.mark.parametrize("kind", contrast.KINDS)
def test_a_sample_does_not_depend_on_its_batch(kind):
    model = contrast.build(kind, width=4).train()
    noise = NoiseBank()[:5]
    together = contrast.sample(model, noise)
    assert together.shape == noise.shape and together.abs().max() <= 1
    assert torch.allclose(together[2:3], contrast.sample(model, noise[2:3]), atol=1e-5)


def test_build_has_no_encoder_and_refuses_unknown_kinds():
    assert not [k for k in contrast.build("vae", 4).state_dict() if k.startswith("encoder")]
    with pytest.raises(UserError, match="'gan'.*valid are gan, vae"):
        contrast.build("gam", 4)


def test_presets_are_two_of_each_kind_with_different_widths():
    kinds = [(spec.kind, spec.width) for spec in contrast.PRESETS.values()]
    assert len(set(kinds)) == 4 and sorted(k for k, _ in kinds) == ["gan", "gan", "vae", "vae"]


def test_spec_names_its_streams_apart_from_its_length():
    spec = SMALL["gan"]
    assert spec.steps == 4 and replace(spec, images_seen=33).steps == 5
    assert replace(spec, images_seen=99).run == spec.run != replace(spec, seed=2).run
    with pytest.raises(UserError, match="precision"):
        replace(spec, precision="float16")


@pytest.mark.parametrize("change", [{"images_seen": 0}, {"batch": 0}, {"batch": 8.0}, {"width": 0},
                                    {"width": "8"}, {"lr": -1}, {"lr": "1e-3"}, {"ema_images": 0}])
def test_numbers_that_make_no_sense_are_refused(change):
    [(name, value)] = change.items()
    with pytest.raises(UserError, match=f"{name}={value!r} of a gan: give a .*number above 0"):
        replace(SMALL["gan"], **change)


@pytest.mark.parametrize("precision", contrast.PRECISIONS)
@pytest.mark.parametrize("kind", contrast.KINDS)
def test_resumed_training_gives_the_same_bits(monkeypatch, kind, precision, images):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    spec = replace(SMALL[kind], precision=precision)
    whole = run(spec, images)
    resumed = run(spec, images, state=whole[1])
    assert [int(s["step"]) for s in resumed] == [3, 4]
    assert whole[-1].keys() == resumed[-1].keys()
    assert all(torch.equal(v, resumed[-1][k]) for k, v in whole[-1].items())


@pytest.mark.parametrize("kind", contrast.KINDS)
def test_training_leaves_the_global_random_state_alone(kind, images):
    before = torch.get_rng_state()
    first = run(SMALL[kind], images)[-1]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    second = run(SMALL[kind], images)[-1]
    assert all(torch.equal(v, second[k]) for k, v in first.items())


def test_another_models_state_is_refused(images):
    state = run(SMALL["gan"], images)[0]
    for other in (SMALL["vae"], replace(SMALL["gan"], width=8)):
        with pytest.raises(UserError, match="not of a"):
            next(contrast.train(other, images, state))


def test_average_is_the_exponential_one(images):
    states = run(SMALL["gan"], images)
    key = "dense.weight"
    expected = None
    for k, state in enumerate(states[1:], start=2):
        weight = 1 - 2 ** (-8 / min(10, 0.05 * 8 * k))
        before = states[k - 2][f"average.{key}"]
        expected = (1 - weight) * before + weight * state[f"generator.{key}"]
        assert torch.allclose(state[f"average.{key}"], expected, atol=1e-6)
    assert not torch.equal(expected, states[-1][f"generator.{key}"])


@pytest.mark.parametrize("kind", contrast.KINDS)
def test_trained_model_carries_the_average(kind, images):
    state = run(SMALL[kind], images)[-1]
    weights = contrast.trained(SMALL[kind], state).state_dict()
    assert all(torch.equal(v, state[f"average.{k}"]) for k, v in weights.items())


def test_half_precision_weights_give_the_same_images(images):
    spec = SMALL["vae"]
    model = contrast.trained(spec, run(spec, images)[-1])
    half = contrast.build(spec.kind, spec.width)
    half.load_state_dict({k: v.half() if v.is_floating_point() else v
                          for k, v in model.state_dict().items()})
    noise = NoiseBank()[:4]
    assert (contrast.sample(model, noise) - contrast.sample(half, noise)).abs().max() < 0.01


def test_discriminator_layers_have_unit_spectral_norm():
    torch.manual_seed(0)
    critic = contrast.Discriminator(8).train()
    for _ in range(60):
        critic(torch.zeros(2, 3, 32, 32))
    for layer in critic.layers:
        if hasattr(layer, "weight"):
            norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert float(norm) == pytest.approx(1, abs=0.05)


def test_kl_agrees_with_torch_distributions():
    mean, log_variance = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    oracle = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).sum(1)
    assert torch.allclose(contrast.gaussian_kl(mean, log_variance), oracle, atol=1e-5)


def assert_descended(loss, net, state, name):
    """Adam's first moments are those of this loss's gradient, for its betas 0.5 and 0.999."""
    grads = torch.autograd.grad(loss, list(net.parameters()))
    largest = max(grad.abs().max().item() for grad in grads)
    for k, grad in enumerate(grads):
        slot = below(f"adam.{name}.{k}.", state)
        torch.testing.assert_close(slot["exp_avg"], grad / 2, rtol=1e-3, atol=1e-5 * largest)
        torch.testing.assert_close(slot["exp_avg_sq"], grad**2 / 1000, rtol=2e-3,
                                   atol=1e-8 * largest**2)


def test_the_first_step_of_a_gan_is_that_by_hand(images):
    spec = SMALL["gan"]
    bench = contrast._Bench(spec, "cpu", generator=contrast.Generator,
                            discriminator=contrast.Discriminator)
    generator, critic = bench.nets.values()
    state = run(spec, images)[0]
    fake = generator(bench.draw_latent(0))
    real_says, fake_says = critic(bench.draw_images(images, 0)), critic(fake.detach())
    gap = (1 - real_says).clamp(min=0).mean() + (1 + fake_says).clamp(min=0).mean()
    torch.testing.assert_close(state["loss.discriminator"], gap.detach())
    assert_descended(gap, critic, state, "discriminator")
    with torch.no_grad():  # the generator meets the discriminator after its step
        for name, parameter in critic.named_parameters():
            parameter.copy_(state[f"discriminator.{name}"])
    loss = -critic(fake).mean()
    torch.testing.assert_close(state["loss.generator"], loss.detach())
    assert_descended(loss, generator, state, "generator")


def test_the_first_step_of_a_vae_is_that_by_hand(images):
    """Its rate and distortion are a divergence and a density of torch.distributions."""
    spec, std = SMALL["vae"], contrast.DECODER_STD
    bench = contrast._Bench(spec, "cpu", vae=contrast.VAE)
    vae, real = bench.nets["vae"], bench.draw_images(images, 0)
    state = run(spec, images)[0]
    mean, log_variance = vae.encode(real)
    posterior = Normal(mean, log_variance.exp().sqrt())
    decoded = vae(posterior.mean + posterior.stddev * bench.draw_latent(0))
    rate = kl_divergence(posterior, Normal(0, 1)).sum(1).mean()
    best = Normal(0, std).log_prob(torch.tensor(0.0))  # the density's constant
    distortion = (best - Normal(decoded, std).log_prob(real)).sum((1, 2, 3)).mean()
    torch.testing.assert_close(state["loss.rate"], rate.detach())
    torch.testing.assert_close(state["loss.distortion"], distortion.detach())
    assert_descended(rate + distortion, vae, state, "vae")


def test_vae_learns(images):
    spec = Spec("vae", width=8, images_seen=60 * 32, batch=32, lr=2e-3)
    losses = [float(s["loss.distortion"]) for s in contrast.train(spec, images)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_discriminator_learns_to_tell_real_from_fake(images):
    spec = Spec("gan", width=8, images_seen=40 * 32, batch=32, lr=1e-3)
    losses = [float(s["loss.discriminator"]) for s in contrast.train(spec, images)]
    assert losses[0] > 1.8 and min(losses[-10:]) < 1


def test_a_checkpoint_of_other_images_is_refused(tmp_path, images):
    spec, path = SMALL["vae"], tmp_path / "vae.safetensors"
    contrast.save_checkpoint("vae", spec, images, run(spec, images)[-1], path)
    assert int(contrast.load_checkpoint(spec, images, path)["step"]) == spec.steps
    others = replace(images, pixels=images.pixels.flip(0))
    with pytest.raises(UserError, match="other images: give this run a folder"):
        contrast.load_checkpoint(spec, others, path)
