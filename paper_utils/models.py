"""The models of section 2, each one a function from the shared noise to an image.

A model may be trained on the spot, loaded from zoo/, or closed-form; what compares them does not
know which.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from paper_utils import (artifacts, contrast, data, denoisers, local_score, networks, profiles,
                         samplers, training, zoo)
from paper_utils.errors import UserError, check_device
from paper_utils.noise import NoiseBank, hyperplane
from paper_utils.profiles import Profile
from paper_utils.progress import progress
from paper_utils.samplers import Solver

BANK = NoiseBank()
CLOSED_FORMS = ("optimal", "gaussian", "local")
TRANSFORMERS = ("uvit", "dit")


@dataclass(frozen=True)
class Model:
    """A row of the table of models.

    generate: unit normal noise [B, 3, 32, 32] -> x0 [B, 3, 32, 32] in [-1, 1]. identity: all that
    decides what it generates (names its samples in the artifact store). images_seen: the training
    budget; 0 for a closed form, None where it is not known. spec: of the diffusion models this
    project trained. denoiser: makes the denoiser, None for GANs and VAEs.
    """

    name: str
    family: str              # 'U-Net', 'transformer', 'closed form', 'GAN' or 'VAE'
    architecture: str
    framework: str
    solver: str
    evaluations: int
    parameters: int
    images: int
    images_seen: int | None
    identity: dict
    generate: Callable[..., Tensor]
    spec: training.Spec | None = None
    denoiser: Callable[[], denoisers.Denoiser] | None = None

    @property
    def trained_diffusion(self) -> bool:
        return self.family in ("U-Net", "transformer")


# --- making models ------------------------------------------------------------------------------

def diffusion(spec: training.Spec, denoiser: denoisers.Preconditioned, weights: str) -> Model:
    """A trained denoiser with the solver of its specification; `weights` is their hash."""
    family = "transformer" if spec.network in TRANSFORMERS else "U-Net"
    return Model(spec.name, family, _architecture(spec), denoiser.framework.label,
                 f"{spec.solver.sampler}, {spec.solver.steps} steps", spec.solver.evaluations,
                 networks.count_parameters(denoiser), spec.images, spec.images_seen,
                 {"weights": weights, "solver": asdict(spec.solver), "code": _sampling_code()},
                 _sampled(denoiser, spec.solver), spec, lambda: denoiser)


def _sampled(denoiser: denoisers.Preconditioned, solver: Solver) -> Callable[..., Tensor]:
    """noise -> x0, both on the CPU, by `solver` on the device of the denoiser."""
    device = next(denoiser.parameters()).device

    def generate(noise: Tensor, title: str = "") -> Tensor:
        return samplers.sample(denoiser, noise.to(device), solver, progress=title).cpu()

    return generate


def from_hub(source: str, device: str = "cpu") -> Model:
    """A diffusers pipeline, by hub name or folder, as one more model (DDIM, 50 steps).

    Raises UserError when it cannot be loaded.
    """
    denoiser = denoisers.from_diffusers(source).to(device)
    solver = Solver("ddim", 50, "karras", 0.01, 80)
    widths = "-".join(map(str, denoiser.network.unet.config.block_out_channels))
    identity = {"source": source, "solver": asdict(solver), "code": _sampling_code()}
    return Model(source.rstrip("/").split("/")[-1], "U-Net", f"UNet2DModel {widths}",
                 denoiser.framework.label, f"{solver.sampler}, {solver.steps} steps",
                 solver.evaluations, networks.count_parameters(denoiser), 50_000, None, identity,
                 _sampled(denoiser, solver), None, lambda: denoiser)


def _architecture(spec: training.Spec) -> str:
    args = spec.network_args
    if spec.network in TRANSFORMERS:
        return f"{spec.network}, {args['dim']} wide, {args['depth']} deep, patch {args['patch']}"
    if spec.network == "diffusers_unet":
        return f"UNet2DModel {'-'.join(map(str, args['block_out_channels']))}"
    if spec.network == "mlp":
        return f"perceptron, width {args['width']}"
    patch = f", {args['patch']}x{args['patch']} patches" if args.get("patch", 1) > 1 else ""
    mult = "-".join(str(args["width"] * m) for m in args["channel_mult"])
    return f"{spec.network} {mult}{patch}"


def contrast_model(name: str, spec: contrast.Spec, network: nn.Module, weights: str,
                   images: int) -> Model:
    """A GAN or VAE on the same noises, in one evaluation."""
    def generate(noise: Tensor, title: str = "") -> Tensor:
        return contrast.sample(network, noise).cpu()

    return Model(name, spec.kind.upper(), f"convolutional, width {spec.width}", spec.kind.upper(),
                 "one step", 1, networks.count_parameters(network), images, spec.images_seen,
                 {"weights": weights, "code": artifacts.code_version(contrast)}, generate)


def closed_forms(images: data.Images, bag: int, device: str = "cpu") -> dict[str, Model]:
    """The optimal denoiser, the Gaussian denoiser and the local equivariant score of `images`.

    All through the same solver (Heun, 18 steps). They are built when first asked for a sample.
    """
    makers = {"optimal": lambda: denoisers.OptimalDenoiser(images.pixels),
              "gaussian": lambda: gaussian(images),
              "local": lambda: local_score.LocalEquivariantDenoiser(images, bag, device=device)}
    labels = {"optimal": "optimal denoiser (empirical)", "gaussian": "Gaussian (Wiener) denoiser",
              "local": f"local equivariant score, {bag} patches"}
    return {name: _closed_form(name, labels[name], makers[name], images, bag, device)
            for name in CLOSED_FORMS}


def _closed_form(name: str, label: str, make: Callable, images: data.Images, bag: int,
                 device: str) -> Model:
    solver, built = Solver(), lru_cache(make)

    def generate(noise: Tensor, title: str = "") -> Tensor:
        x0 = samplers.sample(built(), noise.to(device), solver, batch=256, progress=title)
        return x0.cpu()

    identity = {"closed form": name, "images": images.hash, "code": _sampling_code()}
    return Model(name, "closed form", label, "closed form", f"heun, {solver.steps} steps",
                 solver.evaluations, 0, len(images), 0,
                 identity | ({"bag": bag} if name == "local" else {}), generate, None, built)


def gaussian(images: data.Images) -> denoisers.GaussianDenoiser:
    """The Gaussian denoiser of these images; its eigendecomposition is an artifact."""
    def compute() -> artifacts.Tensors:
        fitted = denoisers.GaussianDenoiser.fit(images.pixels)
        return {"mean": fitted.mean, "eigenvalues": fitted.eigenvalues,
                "eigenvectors": fitted.eigenvectors}

    spec = {"images": images.hash, "code": artifacts.code_version(denoisers)}
    return denoisers.GaussianDenoiser(**artifacts.remember("gaussian", spec, compute))


def _sampling_code() -> str:
    return artifacts.code_version(samplers, denoisers, networks, local_score)


# --- training on the spot -----------------------------------------------------------------------

def train(spec: training.Spec, images: data.Images,
          device: str = "cpu") -> tuple[Model, Tensor]:
    """The trained model of `spec` and its loss at every step, from the artifact store or else now.

    A run that was killed goes on from its checkpoint; progress is a bar in a notebook, plain lines
    in a batch log. Raises UserError as training.train does.
    """
    check_device(device)
    made = {"spec": json.loads(spec.to_json()), "images": images.hash,
            "code": artifacts.code_version(training, denoisers, networks)}
    path = artifacts.path_of("model", made)

    def compute() -> artifacts.Tensors:
        checkpoint, saved = path.with_name(f"{path.stem}.checkpoint"), time.monotonic()
        losses = torch.full((spec.steps,), torch.nan)  # the steps of a killed run stay so
        runs = training.train(spec, images, checkpoint, device)
        for run in progress(runs, spec.name, spec.steps, "step", lambda r: f"loss {r.loss:.4f}"):
            losses[run.step - 1] = run.loss
            if run.step < spec.steps and time.monotonic() - saved > 60:
                training.save_checkpoint(run, checkpoint)
                saved = time.monotonic()
        for path_done in (checkpoint, training.previous(checkpoint)):
            path_done.unlink(missing_ok=True)
        return {f"network.{k}": v for k, v in run.ema.network.state_dict().items()} | {
            "loss": losses}

    tensors = artifacts.remember("model", made, compute)
    denoiser = training.build(spec)
    denoiser.network.load_state_dict(training.below("network.", tensors))
    return diffusion(spec, denoiser.to(device).eval(), path.stem), tensors["loss"]


def train_contrast(name: str, spec: contrast.Spec, images: data.Images,
                   device: str = "cpu") -> Model:
    """The trained GAN or VAE of `spec`, from the artifact store or else trained now."""
    made = {"spec": asdict(spec), "images": images.hash, "code": artifacts.code_version(contrast)}

    def compute() -> artifacts.Tensors:
        for state in progress(contrast.train(spec, images, None, device), name, spec.steps, "step"):
            pass
        return contrast.trained(spec, state).state_dict()

    network = contrast.build(spec.kind, spec.width)
    network.load_state_dict(artifacts.remember("contrast", made, compute))
    return contrast_model(name, spec, network.to(device),
                          artifacts.path_of("contrast", made).stem, len(images))


# --- the models of a profile --------------------------------------------------------------------

def unconditional(profile: Profile, images: data.Images, device: str = "cpu") -> dict[str, Model]:
    """Every model of section 2 by name: trained diffusion models, closed forms, GANs and VAEs.

    The laptop profile takes the trained ones from zoo/; the others train them on `images`, and the
    paper profile adds a released model from the hub.
    """
    if profile.shipped:
        trained = {name: shipped(name, device) for name, row in zoo.entries().items()
                   if row.kind != "closed form"}
    else:
        trained = {name: train(spec, spec.subset(images), device)[0]
                   for name, spec in profiles.specs(profile.name).items()}
        trained |= {name: train_contrast(name, spec, images, device)
                    for name, spec in profiles.contrast_specs(profile.name).items()}
    hub = [from_hub(source, device) for source in profile.hub]
    trained |= {model.name: model for model in hub}
    order = [*profiles.specs(profile.name), *profiles.contrast_specs(profile.name)]
    trained = dict(sorted(trained.items(), key=lambda item: order.index(item[0])
                          if item[0] in order else len(order)))
    last = {name: m for name, m in trained.items() if not m.trained_diffusion}
    first = {name: m for name, m in trained.items() if m.trained_diffusion}
    return first | closed_forms(images, profile.bag, device) | last


def shipped(name: str, device: str = "cpu") -> Model:
    """A model of zoo/ with its weights; UserError for an unknown name or damaged weights."""
    row = zoo.entry(name)
    if not row.weights:
        raise UserError(f"{name} is a closed form, it has no weights: see models.closed_forms")
    tensors, values = row.load_weights()
    return assembled(name, row.kind, values, tensors, row.weights, row.weights_sha256, device)


def assembled(name: str, kind: str, values: dict, weights: dict[str, Tensor], where: str,
              digest: str, device: str = "cpu") -> Model:
    """A trained model from its specification (JSON values) and weights, as the zoo stores them.

    Raises UserError when the weights, which came from `where`, belong to another architecture.
    """
    if kind == "contrast":
        spec = contrast.Spec(**{k: v for k, v in values.items() if k != "images"})
        network = contrast.build(spec.kind, spec.width)
        load_into(network, weights, where)
        return contrast_model(name, spec, network.to(device), digest, values["images"])
    spec = training.Spec.from_json(json.dumps(values))
    denoiser = training.build(spec).eval()
    load_into(denoiser.network, weights, where)
    return diffusion(spec, denoiser.to(device), digest)


def load_into(network: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load a state dict; UserError when it belongs to another architecture."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        mine, theirs = set(network.state_dict()), set(tensors)
        odd = sorted(mine ^ theirs) or sorted(
            k for k in mine if network.state_dict()[k].shape != tensors[k].shape)
        raise UserError(f"{where} belongs to another architecture than {type(network).__name__} "
                        f"(first difference: {odd[0]})") from None


# --- samples ------------------------------------------------------------------------------------

def samples(model: Model, n: int, start: int = 0, bank: NoiseBank = BANK) -> Tensor:
    """The model's 8-bit images of noises start..start+n-1: uint8 [n, 3, 32, 32], an artifact."""
    spec = {"model": model.identity, "bank": bank.name, "noises": [start, start + n]}

    def compute() -> artifacts.Tensors:
        noise = bank[start:start + n]
        return {"images": data.to_bytes(model.generate(noise, model.name))}

    return artifacts.remember("samples", spec, compute)["images"]


def all_samples(models: dict[str, Model], profile: Profile) -> dict[str, Tensor]:
    """Images of the first profile.noises noises from every model, uint8 [n, 3, 32, 32] each.

    The laptop profile reads the shipped sheets, as far as they reach; see `tables.check_sheets`.
    """
    sheets = zoo.entries() if profile.shipped else {}
    return {name: sheets[name].load_sheet()[:profile.noises]
            if name in sheets and sheets[name].noises >= profile.noises
            else samples(model, profile.noises) for name, model in models.items()}


def hyperplane_samples(model: Model, grid: int, extent: tuple[float, float] = (-0.5, 1.5),
                       bank: NoiseBank = BANK) -> tuple[Tensor, Tensor]:
    """The model's images on the plane through noises 0, 1, 2, an artifact.

    Returns the corners' images uint8 [3, 3, 32, 32] and the grid's [grid * grid, 3, 32, 32].
    """
    spec = {"model": model.identity, "bank": bank.name, "grid": grid, "extent": extent}

    def compute() -> artifacts.Tensors:
        noise = torch.cat([bank[:3], hyperplane(bank[:3], grid, *extent)])
        return {"images": data.to_bytes(model.generate(noise, f"{model.name}, plane"))}

    images = artifacts.remember("hyperplane", spec, compute)["images"]
    return images[:3], images[3:]
