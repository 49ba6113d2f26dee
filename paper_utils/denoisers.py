"""Everything is a denoiser in sigma coordinates: D(u, sigma, labels=None) -> x0_hat.

Every diffusion process is written x_t = s(t) (x0 + sigma(t) eps) and handled as u = x_t / s. u
and x0_hat are [B, C, H, W], data in [-1, 1]; sigma is a scalar or [B]; labels int64 [B] or None.
A framework (VP, sub-VP, VE, EDM, v-prediction) is a preconditioning: how u and sigma become the
network's input and its output becomes x0_hat. The closed forms are denoisers as they stand.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from paper_utils import data
from paper_utils.errors import UserError, choose
from paper_utils.precision import exact


class Denoiser(Protocol):
    """Estimates the clean image behind u = x0 + sigma * eps."""

    def __call__(self, u: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        ...


def column(sigma: Tensor | float, like: Tensor) -> Tensor:
    """sigma (a number, scalar or [B]) as [B, 1, 1, 1] in the dtype and on the device of `like`."""
    sigma = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    return sigma.expand(len(like)).view(-1, *[1] * (like.ndim - 1))


# --- frameworks ---------------------------------------------------------------------------------

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Framework:
    """A perturbation process, the network's parameterization, and the noise it is trained with.

    precondition: sigma -> (c_skip, c_out, c_in, c_noise), so that
        D(u; sigma) = c_skip u + c_out F(c_in u; c_noise)         (Karras et al. 2022, eq. 7)
    noise_level: quantile in (0, 1) -> sigma, the training distribution of noise levels.
    sigma_min, sigma_max: the noise levels it is meant for: a teacher is asked at no others, and a
    consistency function is the identity at sigma_min.
    """

    name: str
    label: str
    precondition: Callable[[Tensor], Coefficients]
    noise_level: Callable[[Tensor], Tensor]
    sigma_min: float
    sigma_max: float

    def answers(self) -> Tensor:
        """What `precondition` answers at some noise levels, [4, 9, 1, 1, 1] float64: tells two
        frameworks of one name apart."""
        levels = torch.logspace(-3, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1)
        return torch.stack(torch.broadcast_tensors(*self.precondition(levels)))


class Preconditioned(nn.Module):
    """A network F and a framework make a denoiser (Karras et al. 2022, eq. 7).

    The coefficients are computed in the dtype of u, the network runs in its own. Raises UserError
    for a network that is not called as `networks` says, or answers with no tensor of the shape of
    u, for what is no Framework, and for labels that do not fit, see `check_labels`.
    """

    def __init__(self, network: nn.Module, framework: Framework):
        super().__init__()
        if not isinstance(framework, Framework):
            raise UserError("a framework is a denoisers.Framework, as denoisers.edm() or "
                            f"denoisers.framework('edm'), not {framework!r}")
        try:
            inspect.signature(network.forward).bind("x", "noise_label", "labels")
        except TypeError as error:
            raise UserError("a network is called as network(x, noise_label, labels), labels None "
                            f"where there are none, and this {type(network).__name__} cannot be "
                            f"({error}): write forward(self, x, noise_label, labels=None)"
                            ) from None
        except ValueError:  # of what is written in C it is not known
            pass
        self.network, self.framework = network, framework

    @property
    def classes(self) -> int:
        """Number of classes, 0 for an unconditional network."""
        return getattr(self.network, "num_classes", 0) or 0

    @property
    def has_null_class(self) -> bool:
        """Whether it was trained with label dropout; label `classes` then stands for no class."""
        return getattr(self.network, "has_null_class", False)

    def check_labels(self, labels: Tensor | None) -> None:
        """UserError for labels given to an unconditional network, labels missing from a
        conditional one, what is not int64 [B], or a label out of range. The range is checked only
        outside training, because it makes the CPU wait for the device."""
        if labels is None and self.classes:
            raise UserError(f"this model is class-conditional: give it labels, 0 to "
                            f"{self.classes - 1}")
        if labels is not None and not self.classes:
            raise UserError("labels were given to an unconditional model: leave them out")
        if labels is None:
            return
        if not (isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1):
            raise UserError("labels are int64 [B], the index of a class each: give them as "
                            "torch.tensor([3, 5])")
        if self.training:
            return
        odd = labels[(labels < 0) | (labels >= self.classes + self.has_null_class)]
        if len(odd):
            null = f", or {self.classes} for no class" if self.has_null_class else ""
            raise UserError(f"label {int(odd[0])} is out of range: this model knows 0 to "
                            f"{self.classes - 1}{null}")

    def forward(self, u: Tensor, sigma: Tensor | float, labels: Tensor | None = None,
                augment: Tensor | None = None) -> Tensor:
        """D(u; sigma). augment: [B, 9] of `augmentation`, for a network that trains with it."""
        self.check_labels(labels)
        c_skip, c_out, c_in, c_noise = self.framework.precondition(column(sigma, u))
        dtype = next((p.dtype for p in self.network.parameters()), torch.float32)
        told = () if augment is None else (augment,)
        out = self.network((c_in * u).to(dtype), c_noise.flatten().to(dtype), labels, *told)
        if not isinstance(out, Tensor) or out.shape != u.shape:
            raise UserError(f"a network answers with a tensor like x, {list(u.shape)}, not "
                            f"{data.described(out)}: let its forward return one; UNet2DModel of "
                            "diffusers becomes such a network by networks.DiffusersUNet")
        return c_skip * u + c_out * out.to(u.dtype)


def between(plain: Denoiser, own: Denoiser, weight: float) -> Denoiser:
    """D + weight (D_own - D): guidance of two unconditional denoisers, D at weight 0, D_own at 1.
    """
    return lambda u, sigma: torch.lerp(plain(u, sigma), own(u, sigma), weight)


def guided(denoiser: Preconditioned, weight: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022) as a denoiser of its own.

        D(u; c) + (weight - 1) (D(u; c) - D(u; no class))

    weight 1 is the conditional model, 0 the unconditional one; Ho & Salimans' w is weight - 1. Two
    evaluations a call where weight is not 1. Raises UserError where the model has no null class,
    and where weight is not a number from 0 up.
    """
    if not weight >= 0:
        raise UserError(f"guidance weight {weight}: give a number from 0 up; 1 is no guidance")
    if weight == 1:
        return denoiser
    if not hasattr(denoiser, "has_null_class"):
        raise UserError(f"guidance asks a Preconditioned network for its null class, not a "
                        f"{type(denoiser).__name__}: guide two denoisers of yours by between")
    if not denoiser.has_null_class:
        raise UserError("guidance needs a model trained with label dropout, and this one never saw "
                        "the null class: train it with label_dropout=0.1, or use weight 1")

    def answer(u: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        with_class = denoiser(u, sigma, labels)
        without = denoiser(u, sigma, torch.full_like(labels, denoiser.classes))
        return with_class + (weight - 1) * (with_class - without)

    return answer


def _unit_variance(sigma: Tensor) -> Tensor:
    return 1 / (1 + sigma**2).sqrt()


def _v_coefficients(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """v = alpha eps - alpha sigma x0 with alpha = 1 / sqrt(1 + sigma^2) (Salimans & Ho 2022)."""
    scale = _unit_variance(sigma)
    return scale**2, -sigma * scale, scale


_PREDICTIONS = {  # c_skip, c_out, c_in of a variance-preserving process
    "epsilon": lambda s: (torch.ones_like(s), -s, _unit_variance(s)),
    "v_prediction": _v_coefficients,
    "sample": lambda s: (torch.zeros_like(s), torch.ones_like(s), _unit_variance(s)),
}


def _predicting(what: str, c_noise: Callable[[Tensor], Tensor]
                ) -> Callable[[Tensor], Coefficients]:
    """The preconditioning of a variance-preserving process whose network predicts `what`."""
    coefficients = _PREDICTIONS[choose(what, _PREDICTIONS, "prediction type")]
    return lambda sigma: (*coefficients(sigma), c_noise(sigma))


BETA_MIN, BETA_RANGE = 0.1, 19.9  # the linear schedule of score-SDE: beta(t) = 0.1 + 19.9 t


def _vp_time(sigma: Tensor) -> Tensor:
    """The t at which VP has this sigma: log(1 + sigma^2) = beta_range t^2 / 2 + beta_min t."""
    return _time_of_integral(torch.log1p(sigma**2))


def _time_of_integral(integral: Tensor) -> Tensor:
    return ((BETA_MIN**2 + 2 * BETA_RANGE * integral).sqrt() - BETA_MIN) / BETA_RANGE


def _vp_sigma(t: Tensor) -> Tensor:
    return torch.expm1(BETA_RANGE * t**2 / 2 + BETA_MIN * t).sqrt()


def _subvp_scale(sigma: Tensor) -> Tensor:
    """s = alpha, the root of sigma = (1 - alpha^2) / alpha, without cancellation."""
    return 2 / (sigma + (sigma**2 + 4).sqrt())


def _subvp_sigma(t: Tensor) -> Tensor:
    integral = BETA_RANGE * t**2 / 2 + BETA_MIN * t
    return -torch.expm1(-integral) * torch.exp(integral / 2)


def _subvp_time(sigma: Tensor) -> Tensor:
    return _time_of_integral(-2 * _subvp_scale(sigma).log())


def _between(low: float, high: float) -> Callable[[Tensor], Tensor]:
    return lambda quantile: low + quantile * (high - low)


def vp() -> Framework:
    """VP-SDE in continuous time, eps-prediction (Song et al. 2021, score-SDE)."""
    time = _between(1e-5, 1.0)
    return Framework("vp", "VP, continuous", _predicting("epsilon", lambda s: 999 * _vp_time(s)),
                     lambda q: _vp_sigma(time(q)), 0.001, 152.0)


def subvp() -> Framework:
    """sub-VP-SDE in continuous time, eps-prediction: sigma = (1 - alpha^2) / alpha.

    Song et al. 2021, section 3.4. The standard deviation of the noise in x_t is 1 - alpha^2, so
    near t = 0 the noise vanishes faster than in VP.
    """
    time = _between(5e-3, 1.0)

    def precondition(sigma: Tensor) -> Coefficients:
        return torch.ones_like(sigma), -sigma, _subvp_scale(sigma), 999 * _subvp_time(sigma)

    return Framework("subvp", "sub-VP, continuous", precondition, lambda q: _subvp_sigma(time(q)),
                     0.002, 152.0)


def discrete(alphas_cumprod: Tensor, prediction: str = "epsilon") -> Framework:
    """A discrete-time VP process of T steps (Ho et al. 2020; every diffusers DDPM scheduler).

    alphas_cumprod: [T], below 1 and decreasing; the last may be 0, which is noise alone at sigma =
    infinity and is left out. prediction: what the network predicts, 'epsilon', 'v_prediction' or
    'sample' (x0). It sees the index 0..T-1, a floating-point number that is interpolated in log
    sigma between the trained noise levels. Raises UserError for others.
    """
    if hasattr(alphas_cumprod, "alphas_cumprod"):
        raise UserError(f"this is a {type(alphas_cumprod).__name__}: give its alphas_cumprod and "
                        "its config.prediction_type")
    alphas = torch.as_tensor(alphas_cumprod).double()
    steps_down = alphas.ndim == 1 and len(alphas) > 1 and bool((alphas.diff() < 0).all())
    if not (steps_down and alphas[0] < 1 and alphas[-1] >= 0):
        raise UserError("alphas_cumprod decreases from below 1 towards 0, the products of all "
                        "1 - beta so far: give (1 - betas).cumprod(0), [T]")
    alphas = alphas[alphas > 0]
    sigmas = ((1 - alphas) / alphas).sqrt()
    low, high = sigmas[0].item(), sigmas[-1].item()
    on = lru_cache(sigmas.to)  # once a device: a copy makes the CPU wait for a GPU

    def index(sigma: Tensor) -> Tensor:
        grid = on(sigma.device).log()
        here = sigma.detach().double().log().clamp(grid[0], grid[-1])
        above = torch.searchsorted(grid, here).clamp(min=1)
        before, after = grid[above - 1], grid[above]
        return (above - 1 + (here - before) / (after - before)).to(sigma.dtype)

    def noise_level(quantile: Tensor) -> Tensor:
        rows = (quantile * len(sigmas)).long().clamp(max=len(sigmas) - 1)
        return on(quantile.device)[rows].to(quantile.dtype)

    precondition = _predicting(prediction, index)
    what = {"epsilon": "", "v_prediction": ", v-prediction", "sample": ", x0-prediction"}
    return Framework("vp-discrete", f"VP, discrete{what[prediction]}", precondition, noise_level,
                     low, high)


def vp_discrete() -> Framework:
    """The 1,000-step linear schedule of DDPM (Ho et al. 2020)."""
    return discrete((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))


def ve() -> Framework:
    """VE-SDE, a geometric range of noise levels (Song et al. 2021; as in Karras et al. 2022)."""
    low, high = 0.02, 100.0
    log_sigma = _between(math.log(low), math.log(high))

    def precondition(sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return one, sigma, one, (sigma / 2).log()

    return Framework("ve", "VE", precondition, lambda q: log_sigma(q).exp(), low, high)


def edm() -> Framework:
    """EDM (Karras et al. 2022, table 1, last column): log-normal noise levels, unit-variance F."""
    sigma_data = 0.5

    def precondition(sigma: Tensor) -> Coefficients:
        total = (sigma**2 + sigma_data**2).sqrt()
        return (sigma_data / total) ** 2, sigma * sigma_data / total, 1 / total, sigma.log() / 4

    def noise_level(quantile: Tensor) -> Tensor:
        return (torch.special.ndtri(quantile.double().clamp(1e-7, 1 - 1e-7)) * 1.2 - 1.2).exp()

    return Framework("edm", "EDM", precondition, lambda q: noise_level(q).to(q.dtype), 0.002, 80.0)


def cosine(prediction: str, name: str, label: str) -> Framework:
    """The cosine schedule sigma = tan(pi t / 2) in continuous time (Salimans & Ho 2022).

    prediction: 'v_prediction' or 'sample' (x0).
    """
    low, high = 0.002, 80.0
    angle = _between(math.atan(low), math.atan(high))
    precondition = _predicting(prediction, lambda sigma: sigma.atan() * (999 * 2 / math.pi))
    return Framework(name, label, precondition, lambda q: angle(q).tan(), low, high)


def f_prediction(process: Framework) -> Framework:
    """The same process, noise levels and time embedding with EDM's output parameterization.

    eps-prediction multiplies the network's error by sigma, so it needs a long training before its
    high noise levels are right; c_skip and c_out of EDM (Karras et al. 2022, table 1) train in a
    fraction of that. The models trained on a CPU use it.
    """
    target = edm()

    def precondition(sigma: Tensor) -> Coefficients:
        c_skip, c_out, _, _ = target.precondition(sigma)
        return c_skip, c_out, *process.precondition(sigma)[2:]

    return replace(process, name=f"{process.name}-f", label=f"{process.label}, F-prediction",
                   precondition=precondition)


CONSISTENCY = "-consistency"


def consistent(process: Framework) -> Framework:
    """The same network as a consistency function: f(u; sigma_min) = u (Song et al. 2023, eq. 5).

        f(u; sigma) = u + (1 - sigma_min / sigma) (D(u; sigma) - u)

    That is Euler's step of D from sigma to sigma_min, so a student that starts from the weights of
    a denoiser starts from its one-step answer, whatever it predicts. For EDM, c_out is that of Song
    et al. (appendix C), c_skip differs from theirs by less than sigma_min / (2 sigma_data).
    """
    def precondition(sigma: Tensor) -> Coefficients:
        c_skip, c_out, c_in, c_noise = process.precondition(sigma)
        share = 1 - process.sigma_min / sigma
        return 1 + share * (c_skip - 1), share * c_out, c_in, c_noise

    return replace(process, name=process.name + CONSISTENCY, precondition=precondition,
                   label=f"{process.label}, consistency")


FRAMEWORKS: dict[str, Callable[[], Framework]] = {
    "vp": vp, "vp-discrete": vp_discrete, "subvp": subvp, "ve": ve, "edm": edm,
    "v": lambda: cosine("v_prediction", "v", "VP, v-prediction"),
    "x0": lambda: cosine("sample", "x0", "VP, x0-prediction"),
    "vp-f": lambda: f_prediction(vp()), "vp-discrete-f": lambda: f_prediction(vp_discrete()),
    "subvp-f": lambda: f_prediction(subvp()), "ve-f": lambda: f_prediction(ve()),
}


def framework(name: str) -> Framework:
    """The framework of that name; '-consistency' after it makes it that of a consistency model.

    Raises UserError listing the valid ones.
    """
    process = FRAMEWORKS[choose(name.removesuffix(CONSISTENCY), FRAMEWORKS, "framework")]()
    return consistent(process) if name.endswith(CONSISTENCY) else process


def from_diffusers(source) -> Preconditioned:
    """Any diffusers pipeline with an unconditional UNet2DModel and a scheduler, as a denoiser.

    source: a pipeline, or what DDPMPipeline.from_pretrained takes (a folder or a hub name such as
    'google/ddpm-cifar10-32'). Weights must be safetensors: a pickle is never loaded.
    Raises UserError when it cannot be loaded, for another network, and for a class-conditional one.
    """
    from diffusers import UNet2DModel
    from paper_utils.networks import DiffusersUNet

    found = pipeline(source, "DDPMPipeline")
    network = getattr(found, "unet", None)
    if not isinstance(network, UNet2DModel):
        raise UserError(f"the unet of this {type(found).__name__} is no UNet2DModel: write its "
                        "network as forward(x, noise_label, labels=None) and give Preconditioned("
                        "network, denoisers.discrete(scheduler.alphas_cumprod)).eval()")
    if network.config.num_class_embeds:
        raise UserError("this UNet2DModel is class-conditional, and nothing says whether its last "
                        "class is no class: give an unconditional one")
    return _scheduled(DiffusersUNet(network), found.scheduler)


def from_diffusers_dit(source, device: str = "cpu"
                       ) -> tuple[Preconditioned, Callable[[Tensor], Tensor]]:
    """A class-conditional DiTPipeline of diffusers: its denoiser of latents, and their decoder.

    source: a pipeline, a folder or a hub name such as 'facebook/DiT-XL-2-256' (ImageNet). The
    decoder maps latents [B, C, h, w] to images [B, 3, H, W] in [-1, 1]. Weights must be
    safetensors. Raises UserError when it cannot be loaded.
    """
    from paper_utils.networks import DiffusersDiT

    found = pipeline(source, "DiTPipeline")
    vae = found.vae.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    @exact()
    def decode(latents: Tensor) -> Tensor:
        latents = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        return vae.decode(latents).sample.float()

    denoiser = _scheduled(DiffusersDiT(found.transformer), found.scheduler)
    return denoiser.to(device), decode


def _scheduled(network: nn.Module, scheduler) -> Preconditioned:
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(f"a {type(scheduler).__name__} has no alphas_cumprod: give a pipeline with "
                        "the scheduler of a discrete VP process, as DDPMScheduler")
    kind = discrete(scheduler.alphas_cumprod, scheduler.config.prediction_type)
    return Preconditioned(network, kind).eval()


def pipeline(source, kind: str):
    """`source` itself, or the diffusers pipeline of class `kind` at that folder or hub name.

    Raises UserError when it cannot be loaded, and for what has no scheduler.
    """
    import diffusers

    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        if not hasattr(source, "scheduler"):
            raise UserError(f"a {type(source).__name__} alone has no noise levels: give a pipeline,"
                            f" {kind}(network, scheduler)")
        return source
    try:
        return getattr(diffusers, kind).from_pretrained(str(source), use_safetensors=True)
    except Exception as error:  # of whichever library reads, or asks the network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"no diffusers pipeline with safetensors at '{source}' ({reason}): give a "
                        "folder saved by save_pretrained or a hub name") from None


# --- closed forms -------------------------------------------------------------------------------

class OptimalDenoiser:
    """The minimizer of the denoising loss on finitely many images (the theorem, appendix B).

        D*(u; sigma) = sum_i softmax_i(-|u - y_i|^2 / 2 sigma^2) y_i

    The softmax streams over the images in blocks with a running maximum, so memory does not grow
    with N beyond the 8-bit images and a float for each. Distances are float32 around the mean
    image: two images closer to each other than about 0.001 in squared distance are not told apart,
    and need not be. Images whose weight is under 1e-12 in every row are left out.

    pixels: uint8 [N, C, H, W], or float data of any shape [N, ...] as they are. block: images at
    a time; 512 of 3,072 numbers stay in the cache of a CPU. Raises UserError for no images.
    """

    def __init__(self, pixels: Tensor, block: int = 512):
        if not isinstance(pixels, Tensor) or not len(pixels):
            raise UserError("the optimal denoiser needs at least one image, a tensor [N, C, H, W]")
        self.pixels, self.block = pixels, block
        total = sum(data.to_unit(part).double().sum(0) for part in pixels.split(block))
        self.mean = (total / len(pixels)).float()
        self.half_norms = torch.cat([images.square().sum(1) / 2 for images in
                                     self._centred(self.mean.device)])

    def _centred(self, device: torch.device) -> Iterator[Tensor]:
        """The images less their mean, [block, d] float32, in a buffer that the next overwrites."""
        divisor, shift = (127.5, 1) if self.pixels.dtype == torch.uint8 else (1, 0)
        mean = self.mean.to(device).flatten() + shift
        buffer = torch.empty(min(self.block, len(self.pixels)), len(mean), device=device)
        for part in self.pixels.split(self.block):
            images = buffer[:len(part)].copy_(part.to(device).flatten(1))
            yield images.div_(divisor).sub_(mean)

    def __call__(self, u: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        mean, half_norms = self.mean.to(u.device), self.half_norms.to(u.device)
        query = (u - mean).flatten(1).float()
        precision = (1 / column(sigma, u).flatten(1).double() ** 2).clamp(1e-37, 1e37).float()
        best = torch.full_like(precision, -torch.inf)
        total, mixed = torch.zeros_like(best).double(), torch.zeros_like(query)
        for images, half in zip(self._centred(u.device), half_norms.split(self.block)):
            images = images.clone() if query.requires_grad else images
            closeness = torch.addmm(half, query, images.T, beta=-1)  # a logit is this * precision
            top = torch.maximum(best, closeness.detach().amax(1, keepdim=True))
            weights = closeness.sub_(top).mul_(precision).exp_()
            near = (weights > 1e-12).any(0)
            if not near.any():
                continue
            if not near.all():
                weights, images = weights[:, near], images[near]
            shrink = ((best - top) * precision).exp()
            mixed.mul_(shrink).addmm_(weights, images)
            total, best = total * shrink + weights.sum(1, keepdim=True), top
        return ((mixed / total.float()).view_as(u) + mean).to(u.dtype)


class GaussianDenoiser:
    """The optimal linear (Wiener) denoiser: exact for data drawn from N(mean, covariance).

        D(u; sigma) = mean + C (C + sigma^2 I)^-1 (u - mean)

    Wang & Vastola (2024) and Li et al. (2024) find trained networks near it in the generalization
    regime. mean: [C, H, W]; the covariance is given by its eigenvalues [r] and eigenvectors [d, r];
    it is 0 in every other direction.
    """

    def __init__(self, mean: Tensor, eigenvalues: Tensor, eigenvectors: Tensor):
        self.mean, self.eigenvalues, self.eigenvectors = mean, eigenvalues, eigenvectors

    @classmethod
    def fit(cls, pixels: Tensor) -> "GaussianDenoiser":
        """Mean and covariance of the images uint8 [N, C, H, W], in float64.

        The smallest eigenvalues of CIFAR-10 are 1e-8 of the largest: sums in float32 lose them. For
        fewer images than pixels, from the singular values of the images themselves. Raises
        UserError for images that are not uint8, and for none.
        """
        if not (isinstance(pixels, Tensor) and pixels.dtype == torch.uint8 and pixels.ndim > 1
                and len(pixels)):
            raise UserError("a Gaussian is fitted to uint8 images [N, C, H, W], at least one, as a "
                            "tensor: see data.to_bytes")
        size = pixels[0].numel()
        if len(pixels) < size:
            x = pixels.flatten(1).double() / 127.5 - 1
            _, values, vectors = torch.linalg.svd(x - x.mean(0), full_matrices=False)
            return cls(x.mean(0).view_as(pixels[0]), values**2 / len(x), vectors.T)
        total, product = torch.zeros(size).double(), torch.zeros(size, size).double()
        band = max(size // 4, 1)
        for part in pixels.split(1024):  # the products sum to at most 2^24: exact in float32
            x = part.flatten(1).float() - 128
            total += x.sum(0)
            for start in range(0, size, band):  # the upper triangle, in bands of rows
                rows = slice(start, start + band)
                product[rows, start:] += x[:, rows].T @ x[:, start:]
        mean = total / len(pixels)
        covariance = (product / len(pixels) - mean.outer(mean)) / 127.5**2
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance, UPLO="U")
        return cls(((mean + 0.5) / 127.5).view_as(pixels[0]), eigenvalues.clamp(min=0),
                   eigenvectors)

    def __call__(self, u: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        values, vectors = (t.to(u) for t in (self.eigenvalues, self.eigenvectors))
        mean, variance = self.mean.to(u), column(sigma, u).flatten(1) ** 2
        gain = values / (values + variance).clamp(min=torch.finfo(u.dtype).tiny)  # 0/0 is 0
        return mean + ((((u - mean).flatten(1) @ vectors) * gain) @ vectors.T).view_as(u)

    def squared_mahalanobis(self, u: Tensor, sigma: Tensor | float) -> Tensor:
        """Squared Mahalanobis distance of u from N(mean, covariance + sigma^2 I): [B]."""
        values, vectors = (t.to(u) for t in (self.eigenvalues, self.eigenvectors))
        x, variance = (u - self.mean.to(u)).flatten(1), column(sigma, u).flatten(1) ** 2
        inside = (x @ vectors).square()
        outside = (x.square().sum(1) - inside.sum(1)).clamp(min=0)
        return (inside / (values + variance)).sum(1) + outside / variance[:, 0]

    def log_density(self, u: Tensor, sigma: Tensor | float) -> Tensor:
        """log N(u; mean, covariance + sigma^2 I) without the constant -d/2 log 2 pi: [B]."""
        values, variance = self.eigenvalues.to(u), column(sigma, u).flatten(1) ** 2
        rest = u[0].numel() - len(values)
        return -0.5 * (self.squared_mahalanobis(u, sigma) + (values + variance).log().sum(1)
                       + rest * variance[:, 0].log())

    def points(self, normal: Tensor) -> Tensor:
        """Points of N(mean, covariance) from as many unit normals: [n, r] -> [n, *mean's shape]."""
        spread = (normal * self.eigenvalues.sqrt()) @ self.eigenvectors.T
        return self.mean + spread.view(-1, *self.mean.shape)

    def flow(self, u: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
        """The exact solution of the probability-flow ODE for this Gaussian, from u at sigma_from.

        Along eigenvector i, u - mean scales by sqrt((l_i + sigma_to^2) / (l_i + sigma_from^2)).
        """
        values, vectors, mean = (t.to(u) for t in (self.eigenvalues, self.eigenvectors, self.mean))
        gain = ((values + sigma_to**2) / (values + sigma_from**2)).sqrt()
        elsewhere = sigma_to / sigma_from
        inside = (((u - mean).flatten(1) @ vectors) * (gain - elsewhere)) @ vectors.T
        return mean + elsewhere * (u - mean) + inside.view_as(u)


class MixtureDenoiser:
    """The exact denoiser of a mixture of Gaussians (paper, section 3.2.1, appendix C).

        D(u; sigma) = sum_k w_k D_k(u; sigma),   w_k ~ pi_k N(u; mu_k, S_k + sigma^2 I)

    D_k is the Gaussian denoiser of component k. weights: [K] positive, normalized here.
    """

    def __init__(self, weights: Tensor, components: Sequence[GaussianDenoiser]):
        self.weights, self.components = weights / weights.sum(), list(components)

    def __call__(self, u: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        densities = [part.log_density(u, sigma) for part in self.components]
        logits = torch.stack(densities, 1) + self.weights.to(u).log()
        answers = torch.stack([part(u, sigma) for part in self.components], 1)
        return torch.einsum("bk,bk...->b...", logits.softmax(1), answers)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points of the mixture, [n, *shape of the mean]."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, len(self.components[0].eigenvalues), generator=generator)
        points = torch.empty(n, *self.components[0].mean.shape, dtype=self.components[0].mean.dtype)
        for k, part in enumerate(self.components):
            rows = which == k
            points[rows] = part.points(normal[rows])
        return points
