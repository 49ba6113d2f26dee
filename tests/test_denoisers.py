"""Frameworks against their published definitions, closed forms against brute force."""

import math
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from paper_utils import data, denoisers, networks
from paper_utils.denoisers import (FRAMEWORKS, GaussianDenoiser, MixtureDenoiser, OptimalDenoiser,
                                   Preconditioned, framework, from_diffusers)
from paper_utils.errors import UserError
from paper_utils.samplers import Solver, sample

SIGMAS = torch.tensor([0.01, 0.05, 0.3, 1.0, 4.0, 30.0], dtype=torch.float64)


class Recorder(nn.Module):
    """A network that keeps what it was given and answers with a constant."""

    num_classes = 0

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x, noise_label, labels=None):
        self.x, self.noise_label = x, noise_label
        return self.answer.expand_as(x)


def test_discrete_vp_interpolates_the_index_in_log_sigma():
    alphas = torch.tensor([0.999, 0.9, 0.5, 0.01], dtype=torch.float64)
    sigmas = ((1 - alphas) / alphas).sqrt()
    *_, index = denoisers.discrete(alphas).precondition((sigmas[1:] * sigmas[:-1]).sqrt())
    torch.testing.assert_close(index, torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64))


@pytest.mark.parametrize("answer, told", [
    (lambda x: x[:, :1], r"float32 \[2, 1, 4, 4\]"), (lambda x: {"sample": x}, "dict")])
def test_a_network_answers_with_a_tensor_like_its_input(answer, told):
    """One of another shape would be broadcast, train, and be sampled."""
    network = Recorder(torch.zeros(1))
    network.forward = lambda x, noise_label, labels: answer(x)
    with pytest.raises(UserError, match=rf"a tensor like x, \[2, 3, 4, 4\], not {told}: "):
        Preconditioned(network, framework("edm"))(torch.zeros(2, 3, 4, 4), 1.0)


def beta_integral(t: float) -> float:
    """The integral of beta(s) = 0.1 + 19.9 s by the midpoint rule: exact for a linear function."""
    n = 1000
    return sum(0.1 + 19.9 * (k + 0.5) * t / n for k in range(n)) * t / n


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_vp_undoes_its_own_diffusion(t):
    """x_t = alpha x0 + sqrt(1 - alpha^2) eps with a perfect eps-network gives x0 back."""
    alpha = math.exp(-beta_integral(t) / 2)
    check_perfect_epsilon("vp", alpha, math.sqrt(1 - alpha**2), 999 * t)


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_subvp_undoes_its_own_diffusion(t):
    """sub-VP: the standard deviation is 1 - alpha^2 (Song et al. 2021, eq. 29)."""
    alpha = math.exp(-beta_integral(t) / 2)
    check_perfect_epsilon("subvp", alpha, 1 - alpha**2, 999 * t)


@pytest.mark.parametrize("step", [0, 10, 500, 999])
def test_discrete_vp_sees_the_index_of_ddpm(step):
    alphas = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    alpha = alphas[step].sqrt().item()
    check_perfect_epsilon("vp-discrete", alpha, math.sqrt(1 - alpha**2), step)


def check_perfect_epsilon(name: str, alpha: float, spread: float, label: float) -> None:
    rng = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(2, 1, 3, 4, 4, generator=rng, dtype=torch.float64)
    denoiser = Preconditioned(Recorder(eps), framework(name))
    found = denoiser((alpha * clean + spread * eps) / alpha, spread / alpha)
    torch.testing.assert_close(found, clean)
    torch.testing.assert_close(denoiser.network.x, alpha * clean + spread * eps)
    assert denoiser.network.noise_label.item() == pytest.approx(label, rel=1e-6, abs=1e-6)


def test_v_prediction_undoes_its_own_diffusion():
    rng = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(2, 1, 3, 4, 4, generator=rng, dtype=torch.float64)
    alpha, spread = math.cos(0.7), math.sin(0.7)
    denoiser = Preconditioned(Recorder(alpha * eps - spread * clean), framework("v"))
    found = denoiser((alpha * clean + spread * eps) / alpha, spread / alpha)
    torch.testing.assert_close(found, clean)
    assert denoiser.network.noise_label.item() == pytest.approx(999 * 0.7 / (math.pi / 2))


def test_ve_predicts_the_score_times_sigma():
    rng = torch.Generator().manual_seed(0)
    clean, eps = torch.randn(2, 1, 3, 4, 4, generator=rng, dtype=torch.float64)
    denoiser = Preconditioned(Recorder(-eps), framework("ve"))
    torch.testing.assert_close(denoiser(clean + 3 * eps, 3.0), clean)
    assert denoiser.network.noise_label.item() == pytest.approx(math.log(1.5))


def test_edm_input_and_target_have_unit_variance():
    """Karras et al. 2022, appendix B.6: for data of std 0.5, c_in u and the target of F do."""
    c_skip, c_out, c_in, c_noise = framework("edm").precondition(SIGMAS)
    torch.testing.assert_close(c_in**2 * (0.25 + SIGMAS**2), torch.ones_like(SIGMAS))
    target = ((1 - c_skip) ** 2 * 0.25 + c_skip**2 * SIGMAS**2) / c_out**2
    torch.testing.assert_close(target, torch.ones_like(SIGMAS))
    torch.testing.assert_close(c_noise, SIGMAS.log() / 4)


def test_edm_noise_levels_are_log_normal():
    quantiles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    logs = framework("edm").noise_level(quantiles).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert logs.std().item() == pytest.approx(1.2, abs=5e-3)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_training_noise_levels_grow_with_the_quantile_within_reach(name):
    sigmas = framework(name).noise_level(torch.linspace(0.001, 0.999, 99, dtype=torch.float64))
    assert (sigmas.diff() >= 0).all() and sigmas[0] > 0 and sigmas[-1] < 200


def test_labels_for_an_unconditional_model_are_refused():
    denoiser = Preconditioned(Recorder(torch.zeros(1, 3, 4, 4)), framework("edm"))
    with pytest.raises(UserError, match="unconditional"):
        denoiser(torch.zeros(2, 3, 4, 4), 1.0, torch.zeros(2, dtype=torch.long))


def test_unknown_framework_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'subvp'"):
        framework("sub-vp")


# --- closed forms -------------------------------------------------------------------------------

def small_images(n: int = 40) -> torch.Tensor:
    return data.load("bundled").pixels[:n, :, ::4, ::4].contiguous()


@pytest.mark.parametrize("sigma", [0.002, 0.3, 2.0, 80.0])
@pytest.mark.parametrize("block", [7, 4096])
def test_optimal_denoiser_is_the_sum_over_images(sigma, block):
    pixels = small_images()
    images = data.to_unit(pixels).double()
    u = images[:5] + sigma * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0),
                                         dtype=torch.float64)
    distances = (u[:, None] - images[None]).square().sum((2, 3, 4))
    weights = (-distances / (2 * sigma**2)).softmax(1)
    expected = torch.einsum("bn,nchw->bchw", weights, images)
    found = OptimalDenoiser(pixels, block)(u, sigma)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_optimal_denoiser_takes_a_noise_level_per_row():
    denoiser, u = OptimalDenoiser(small_images()), torch.randn(3, 3, 8, 8)
    levels = torch.tensor([0.1, 1.0, 10.0])
    rows = torch.cat([denoiser(u[k:k + 1], levels[k]) for k in range(3)])
    torch.testing.assert_close(denoiser(u, levels), rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 10.0, 80.0])
@pytest.mark.parametrize("block", [100, 512])
def test_the_streamed_softmax_is_that_of_float64(sigma, block):
    """Points near images and points of pure noise; blocks that matter, come late, or are left out.

    The softmax runs over all images at once, from differences in float64.
    """
    pixels = torch.cat([data.load("bundled", split).pixels for split in ("train", "test")])
    pixels = pixels[:, :, ::2, ::2]
    pixels = torch.cat([pixels, pixels.flip(3)])
    images = data.to_unit(pixels).double().flatten(1)
    noise = torch.randn(8, 768, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = sigma * noise
    u[:6] += images[[0, 5, 500, 600, 1000, 1023]]
    distances = (u[:, None] - images).square().sum(2)
    expected = (-distances / (2 * sigma**2)).softmax(1) @ images
    found = OptimalDenoiser(pixels, block)(u.view(8, 3, 16, 16), sigma)
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sigma", [0.0, 1e-20, 1e25])
def test_the_optimal_denoiser_at_extreme_noise_levels(sigma):
    pixels = small_images()
    images = data.to_unit(pixels)
    expected = images.mean(0).expand_as(images) if sigma > 1 else images
    torch.testing.assert_close(OptimalDenoiser(pixels, 7)(images, sigma), expected)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_the_optimal_denoiser_has_a_gradient(sigma):
    pixels = small_images()
    images = data.to_unit(pixels).double().flatten(1)
    u = torch.randn(3, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u.requires_grad_()
    distances = (u[:, None] - images).square().sum(2)
    exact = (-distances / (2 * sigma**2)).softmax(1) @ images
    expected, = torch.autograd.grad(exact.square().sum(), u)
    found = OptimalDenoiser(pixels, 7)(u.view(3, 3, 8, 8), sigma)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), u)[0], expected,
                               rtol=1e-3, atol=1e-3)


def test_the_optimal_denoiser_keeps_a_float_per_image_beside_the_images():
    denoiser = OptimalDenoiser(small_images())
    assert denoiser.half_norms.shape == (40,) and denoiser.pixels.dtype == torch.uint8
    kept = [x.numel() for x in vars(denoiser).values() if isinstance(x, torch.Tensor)]
    assert sum(kept) == 40 * 192 + 192 + 40


def test_the_optimal_denoisers_ode_ends_on_training_images():
    """The theorem of the paper's appendix B: every sample is a training image."""
    pixels = data.load("bundled").pixels[:64]
    noise = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = sample(OptimalDenoiser(pixels), noise, Solver("heun", 18))
    assert len(noise) == len(found) and found.isfinite().all()
    distances = torch.cdist(found.flatten(1), data.to_unit(pixels).flatten(1),
                            compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert distances.max() < 0.01


@pytest.mark.parametrize("n", [2_000, 40])  # more and fewer images than the 192 pixels
def test_gaussian_denoiser_is_the_wiener_filter(n):
    """D = mean + C (C + sigma^2)^-1 (u - mean), by a linear solve instead of an eigenbasis."""
    many = [data.load("bundled").pixels[:, :, i::4, k::4] for i in range(4) for k in range(4)]
    pixels = torch.cat(many)[:n]
    flat = pixels.flatten(1).double() / 127.5 - 1
    covariance = torch.cov(flat.T, correction=0)
    u = torch.randn(4, 192, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shrunk = torch.linalg.solve(covariance + 0.09 * torch.eye(192).double(), (u - flat.mean(0)).T).T
    expected = flat.mean(0) + shrunk @ covariance
    found = GaussianDenoiser.fit(pixels)(u.view(4, 3, 8, 8), 0.3)
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=1e-12)
    for other in (data.to_unit(pixels), pixels.numpy(), pixels[:0], pixels[0, 0, 0]):
        with pytest.raises(UserError, match=r"fitted to uint8 images \[N, C, H, W\].*to_bytes"):
            GaussianDenoiser.fit(other)


def test_the_gaussian_flow_is_what_the_ode_does_where_data_has_no_variance():
    denoiser = GaussianDenoiser.fit(small_images(5))
    u = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    solver = Solver("heun", 200, sigma_min=0.002, sigma_max=3)
    torch.testing.assert_close(sample(denoiser, u / 3, solver), denoiser.flow(u, 3, 0.0),
                               rtol=0, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [0, 1.0])
def test_the_gaussian_of_one_image_is_that_image(sigma, dtype):
    """No variance and no noise: a gain of 0 / 0, which is 0. What is not a number stays so."""
    image = small_images(1)
    u = torch.randn(2, *image.shape[1:], dtype=dtype)
    found = GaussianDenoiser.fit(image)(u, sigma)
    torch.testing.assert_close(found, data.to_unit(image).to(dtype).expand_as(u))
    assert GaussianDenoiser.fit(image)(u * torch.nan, sigma).isnan().all()


# --- diffusers ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pipeline():
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16),
                       layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
                       down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                       up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return DDPMPipeline(unet, DDPMScheduler(clip_sample=False))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_diffusers_pipeline_is_a_denoiser(pipeline, prediction):
    """Our D equals the pred_original_sample of the pipeline's own scheduler at every timestep."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config,
                                                     prediction_type=prediction)
    denoiser = from_diffusers(type(pipeline)(pipeline.unet, scheduler))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (0, 400, 999):
        with torch.no_grad():
            out = pipeline.unet(x, t).sample
            expected = scheduler.step(out, t, x).pred_original_sample
            alpha = scheduler.alphas_cumprod[t].double().sqrt()
            found = denoiser(x.double() / alpha, (1 - alpha**2).sqrt() / alpha)
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


def test_a_saved_pipeline_loads_by_the_path_of_the_hub(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "ddpm")
    u = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(from_diffusers(tmp_path / "ddpm")(u, 1.0),
                                   from_diffusers(pipeline)(u, 1.0))


def test_a_missing_pipeline_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no diffusers pipeline") as error:
        from_diffusers(tmp_path / "nothing")
    assert "\n" not in str(error.value)


# --- mixtures -----------------------------------------------------------------------------------

def a_mixture() -> MixtureDenoiser:
    """Two unequal components on a line, of deviation 0.1 and 0.4."""
    parts = [GaussianDenoiser(torch.tensor([mean]), torch.tensor([deviation**2]),
                              torch.ones(1, 1)) for mean, deviation in ((-0.5, 0.1), (0.7, 0.4))]
    return MixtureDenoiser(torch.tensor([3.0, 1.0]), parts)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 3.0])
def test_the_mixture_denoiser_is_the_posterior_mean(sigma):
    """Against numerical integration of x p(x) N(u; x, sigma^2) over a fine grid."""
    x = torch.linspace(-4, 5, 200_001, dtype=torch.float64)
    density = sum(weight * torch.exp(-(x - mean) ** 2 / (2 * s**2)) / s
                  for weight, mean, s in ((0.75, -0.5, 0.1), (0.25, 0.7, 0.4)))
    u = torch.linspace(-1.5, 2, 15, dtype=torch.float64)
    likelihood = torch.exp(-(u[:, None] - x) ** 2 / (2 * sigma**2)) * density
    expected = (likelihood * x).sum(1) / likelihood.sum(1)
    found = a_mixture()(u[:, None], sigma)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_log_density_is_that_of_torch():
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    mean = torch.tensor([1.0, -1.0], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)
    u = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.MultivariateNormal(mean, covariance + 0.49 * torch.eye(2))
    constant = math.log(2 * math.pi)
    found = GaussianDenoiser(mean, values, vectors).log_density(u, 0.7) - constant
    torch.testing.assert_close(found, exact.log_prob(u))
    flat = GaussianDenoiser(mean, values[1:], vectors[:, 1:])  # no variance along the other axis
    degenerate = vectors[:, 1:] * values[1:] @ vectors[:, 1:].T
    exact = torch.distributions.MultivariateNormal(mean, degenerate + 0.49 * torch.eye(2))
    torch.testing.assert_close(flat.log_density(u, 0.7) - constant, exact.log_prob(u))


def test_a_mixture_of_one_and_of_points_are_the_other_closed_forms():
    pixels = small_images(6)
    u = data.to_unit(pixels).double() + 0.3 * torch.randn(pixels.shape, dtype=torch.float64)
    fitted = GaussianDenoiser.fit(pixels)
    torch.testing.assert_close(MixtureDenoiser(torch.ones(1), [fitted])(u, 0.3), fitted(u, 0.3))
    d = pixels[0].numel()
    points = [GaussianDenoiser(image, torch.zeros(1), torch.eye(d)[:, :1])
              for image in data.to_unit(pixels)]
    found = MixtureDenoiser(torch.ones(6), points)(u, 2.0)
    torch.testing.assert_close(found, OptimalDenoiser(pixels)(u, 2.0), rtol=0, atol=1e-4)


def test_points_drawn_have_the_moments_of_the_mixture():
    found = a_mixture().draw(40_000, torch.Generator().manual_seed(0))[:, 0]
    mean = 0.75 * -0.5 + 0.25 * 0.7
    second = 0.75 * (0.01 + 0.25) + 0.25 * (0.16 + 0.49)
    assert found.mean().item() == pytest.approx(mean, abs=0.015)
    assert found.square().mean().item() == pytest.approx(second, abs=0.015)


def test_the_optimal_denoiser_takes_points_as_they_are():
    points = torch.tensor([[0.0], [1.0]]).double()
    found = OptimalDenoiser(points)(torch.tensor([[0.4]]).double(), 1.0)
    odds = math.exp(-0.6**2 / 2 + 0.4**2 / 2)
    assert found.item() == pytest.approx(odds / (1 + odds), abs=1e-6)


# --- classes and guidance -----------------------------------------------------------------------

def conditional(label_dropout: float = 0.1) -> Preconditioned:
    """A tiny class-conditional network whose every layer is awake."""
    torch.manual_seed(3)
    network = networks.build("unet", image_size=8, width=8, channel_mult=(1,), blocks=1,
                             attention=(), num_classes=4, label_dropout=label_dropout)
    for p in network.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return Preconditioned(network, framework("edm")).eval()


def noisy(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(4)
    return torch.randn(n, 3, 8, 8, generator=rng), torch.tensor([0, 3, 1][:n])


def test_a_conditional_model_needs_labels():
    with pytest.raises(UserError, match="class-conditional: give it labels, 0 to 3"):
        conditional()(noisy()[0], 1.0)


def test_no_images_have_no_optimal_denoiser():
    for pixels in (small_images(5)[:0], small_images(5).numpy(), [1, 2]):
        with pytest.raises(UserError, match=r"at least one image, a tensor \[N, "):
            OptimalDenoiser(pixels)


@pytest.mark.parametrize("labels", [[0, 3, 1], np.array([0, 3, 1]), torch.tensor([0.0, 3, 1]),
                                    torch.tensor([0, 3, 1], dtype=torch.int32), torch.tensor(3)])
def test_labels_of_another_kind_are_one_line(labels):
    with pytest.raises(UserError, match=r"labels are int64 \[B\].*torch.tensor"):
        conditional()(noisy()[0], 1.0, labels)


@pytest.mark.parametrize("label, dropout, words", [
    (5, 0.1, "label 5 is out of range: this model knows 0 to 3, or 4 for no class"),
    (-1, 0.1, "label -1 is out of range"), (4, 0.0, "label 4 is out of range.*knows 0 to 3$")])
def test_a_label_out_of_range_is_named(label, dropout, words):
    u, labels = noisy()
    labels[1] = label
    with pytest.raises(UserError, match=words):
        conditional(dropout)(u, 1.0, labels)


def test_guidance_is_an_extrapolation_from_no_class_to_the_class():
    model, (u, labels) = conditional(), noisy()
    with_class, without = model(u, 0.7, labels), model(u, 0.7, torch.full((3,), 4))
    assert not torch.allclose(with_class, without, atol=1e-3)
    for weight, expected in [(0, without), (1, with_class), (3, 3 * with_class - 2 * without)]:
        torch.testing.assert_close(denoisers.guided(model, weight)(u, 0.7, labels), expected)


def test_guidance_scales_the_implied_classifier():
    """Gaussian classes: the guided score is that of p(u) p(c|u)^w (Ho & Salimans 2022)."""
    means = torch.tensor([-1.0, 2.0])
    sigma, spread, weight = 0.8, 0.5, 3.0
    total = spread**2 + sigma**2

    class Two:
        classes, has_null_class = 2, True

        def __call__(self, u, _, labels):
            parts = means[None] + spread**2 / total * (u - means[None])
            share = (-(u - means[None]) ** 2 / (2 * total)).softmax(1)
            options = torch.cat([parts, (share * parts).sum(1, keepdim=True)], 1)
            return options.gather(1, labels[:, None])

    u = torch.linspace(-2, 3, 7, dtype=torch.float64)[:, None].requires_grad_()
    density = torch.stack([-(u[:, 0] - m) ** 2 / (2 * total) for m in means], 1)
    marginal = density.logsumexp(1)
    powered = marginal + weight * (density[:, 1] - marginal)
    score, = torch.autograd.grad(powered.sum(), u)
    answer = denoisers.guided(Two(), weight)(u, sigma, torch.ones(7, dtype=torch.long))
    torch.testing.assert_close((answer - u) / sigma**2, score, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight, dropout, words", [
    (2.0, 0.0, "label_dropout=0.1"), (-1.0, 0.1, "from 0 up"), (float("nan"), 0.1, "from 0 up")])
def test_guidance_that_cannot_be_is_refused(weight, dropout, words):
    with pytest.raises(UserError, match=words):
        denoisers.guided(conditional(dropout), weight)


def test_a_function_is_not_guided():
    with pytest.raises(UserError, match="not a function: guide two denoisers of yours by between"):
        denoisers.guided(lambda u, sigma, labels: u, 2.0)


ALPHAS = (1 - torch.linspace(1e-4, 0.02, 50)).cumprod(0)


@pytest.mark.parametrize("odd", [
    torch.linspace(1e-4, 0.02, 50), 1 - ALPHAS, ALPHAS.flip(0), torch.cat([torch.ones(1), ALPHAS]),
    -ALPHAS.flip(0), ALPHAS[:1], ALPHAS[None]])
def test_what_is_no_alphas_cumprod_is_refused(odd):
    with pytest.raises(UserError, match=r"\(1 - betas\).cumprod\(0\)"):
        denoisers.discrete(odd)


def test_alphas_cumprod_may_be_an_array_a_list_or_end_at_0():
    framework = denoisers.discrete(ALPHAS)
    sigma = torch.tensor([0.3], dtype=torch.float64)
    for same in (ALPHAS.numpy(), ALPHAS.tolist(), torch.cat([ALPHAS, torch.zeros(1)])):
        found = denoisers.discrete(same).precondition(sigma)
        torch.testing.assert_close(found, framework.precondition(sigma), rtol=1e-6, atol=1e-6)


def test_noise_alone_is_drawn_by_no_training():
    """The sigma of a zero terminal SNR is infinite."""
    quantile, whole = torch.arange(200) / 200, denoisers.discrete(ALPHAS)
    ended = denoisers.discrete(torch.cat([ALPHAS, torch.zeros(1)]), "v_prediction")
    assert torch.equal(ended.noise_level(quantile), whole.noise_level(quantile))
    assert (ended.sigma_min, ended.sigma_max) == (whole.sigma_min, whole.sigma_max)


def test_a_diffusers_network_needs_its_scheduler_and_no_classes():
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
                       num_class_embeds=10)
    with pytest.raises(UserError, match="a UNet2DModel alone has no noise levels"):
        denoisers.from_diffusers(unet)
    with pytest.raises(UserError, match="is class-conditional"):
        denoisers.from_diffusers(DDPMPipeline(unet, DDPMScheduler()))


@pytest.mark.parametrize("parts", [{"transformer": nn.Identity()}, {"unet": nn.Identity()}])
def test_a_pipeline_of_another_network_says_how_it_becomes_a_denoiser(parts):
    odd = SimpleNamespace(scheduler=SimpleNamespace(), **parts)
    with pytest.raises(UserError, match="is no UNet2DModel: write its network as forward"):
        denoisers.from_diffusers(odd)


def test_a_scheduler_is_not_its_alphas():
    from diffusers import DDPMScheduler

    with pytest.raises(UserError, match="this is a DDPMScheduler: give its alphas_cumprod"):
        denoisers.discrete(DDPMScheduler())


@pytest.mark.parametrize("odd", ["edm", denoisers.edm, None])
def test_a_framework_is_no_name_and_no_function(odd):
    with pytest.raises(UserError, match="denoisers.framework\\('edm'\\), not"):
        Preconditioned(Echo(), odd)


def test_a_network_without_parameters_computes_in_single_precision():
    u = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    echo = Echo()
    assert Preconditioned(echo, denoisers.edm()).eval()(u, 1.0).dtype == torch.float64
    assert echo.seen == torch.float32


class Echo(nn.Module):
    """Answers what it is given, and notes its type."""

    def forward(self, x, noise_label, labels=None):
        self.seen = x.dtype
        return x


def test_without_label_dropout_weight_one_is_the_model_itself():
    model = conditional(0.0)
    assert denoisers.guided(model, 1) is model


def of_time(t: float) -> float:
    """sigma of VP at time t: alpha^2 = exp(-integral of beta), sigma^2 = 1 / alpha^2 - 1."""
    return math.sqrt(math.expm1(beta_integral(t)))


def subvp_of_time(t: float) -> float:
    """The same of sub-VP: (1 - alpha^2) / alpha."""
    return (1 - math.exp(-beta_integral(t))) * math.exp(beta_integral(t) / 2)


DDPM_ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
LEVELS = {  # quantile -> sigma, as published
    "vp": lambda q: of_time(1e-5 + q * (1 - 1e-5)),
    "subvp": lambda q: subvp_of_time(5e-3 + q * (1 - 5e-3)),
    "vp-discrete": lambda q: (1 / DDPM_ALPHAS[int(1000 * q)] - 1).sqrt().item(),
    "ve": lambda q: 0.02 * (100 / 0.02) ** q,
    "edm": lambda q: math.exp(-1.2 + 1.2 * NormalDist().inv_cdf(q)),
    "v": lambda q: math.tan((1 - q) * math.atan(0.002) + q * math.atan(80)),
    "x0": lambda q: math.tan((1 - q) * math.atan(0.002) + q * math.atan(80)),
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("quantile", [0.01, 0.25, 0.5, 0.9, 0.999])
def test_training_draws_the_frameworks_own_noise_levels(name, quantile):
    found = framework(name).noise_level(torch.tensor([quantile], dtype=torch.float64)).item()
    assert found == pytest.approx(LEVELS[name](quantile), rel=1e-6)
