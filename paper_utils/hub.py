"""Models that others released: diffusers pipelines, by hub name or folder, among this project's.

`denoisers` makes a denoiser of a pipeline's network and scheduler; here it gets a solver, and an
identity that its weights and settings decide.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from paper_utils import artifacts, denoisers, models, networks
from paper_utils.errors import UserError, check_device
from paper_utils.models import Model
from paper_utils.samplers import Solver


def ddpm(source, device: str = "cpu") -> Model:
    """A diffusers pipeline, itself or by hub name or folder, as one more model (DDIM, 50 steps).

    Raises UserError when it cannot be loaded, and for images of another size than this project's.
    """
    pipeline = denoisers.pipeline(source, "DDPMPipeline")
    denoiser = denoisers.from_diffusers(pipeline).to(check_device(device))
    config = denoiser.network.unet.config
    size = config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size or ())
    if (config.in_channels, *size) != models.BANK.shape:
        raise UserError(f"{_name(source)} makes images of {' x '.join(map(str, size))} pixels in "
                        f"{config.in_channels} channels: give a pipeline of 32 x 32 in 3")
    solver = Solver("ddim", 50, "karras", 0.01, 80)
    widths = "-".join(map(str, config.block_out_channels))
    return Model(
        name=_name(source), family="U-Net",
        architecture=f"UNet2DModel {widths}", framework=denoiser.framework.label, solver=solver,
        evaluations=solver.evaluations, parameters=networks.count_parameters(denoiser),
        images=None, images_seen=None, identity=_identity_of(pipeline, solver),
        generate=models.by_solver(denoiser, solver, device), denoiser=lambda: denoiser,
        device=device)


def dit(source, classes: Sequence[int], device: str = "cpu") -> Model:
    """A class-conditional DiT pipeline of diffusers, itself or by hub name or folder (DDIM, 50
    steps).

    classes: the labels it is sampled with. Its noises are latents, its samples decoded images.
    Raises UserError when it cannot be loaded or does not know a class.
    """
    pipeline = denoisers.pipeline(source, "DiTPipeline")
    denoiser, decode = denoisers.from_diffusers_dit(pipeline, check_device(device))
    denoiser.check_labels(torch.tensor(classes))
    solver, config = Solver("ddim", 50, "karras", 0.01, 80), denoiser.network.transformer.config
    latents = models.by_solver(denoiser, solver, device, tuple(classes))

    def generate(noise: Tensor, title: str = "") -> Tensor:
        found = latents(noise, title)
        return torch.stack([decode(row).cpu() for row in found])

    identity = _identity_of(pipeline, solver) | {"classes": list(classes)}
    side = config.sample_size
    return Model(
        name=_name(source), family="transformer",
        architecture=f"DiT, {config.num_layers} deep, patch {config.patch_size}, latents",
        framework=denoiser.framework.label, solver=solver, evaluations=solver.evaluations,
        parameters=networks.count_parameters(denoiser), images=None, images_seen=None,
        identity=identity, generate=generate, denoiser=lambda: denoiser, classes=tuple(classes),
        shape=(config.in_channels, side, side), device=device)


def _name(source) -> str:
    """The last part of a hub name or folder, or the class of a pipeline."""
    named = isinstance(source, (str, PathLike))
    return Path(source).name if named else type(source).__name__


def _identity_of(pipeline, solver: Solver) -> dict:
    """Weights and settings of a diffusers pipeline, down to its scheduler and decoder, wherever it
    lies."""
    parts = {name: part for name, part in pipeline.components.items()
             if hasattr(part, "to_json_string")}
    weights = {f"{name}.{key}": value for name, part in parts.items() if isinstance(part, nn.Module)
               for key, value in part.state_dict().items()}
    return {"weights": artifacts.digest(weights), "solver": asdict(solver),
            "settings": {name: _settings(part) for name, part in parts.items()},
            "code": models.sampling_code()}


def _settings(part) -> dict:
    """The configuration of a part of a pipeline, without its path and its diffusers' version."""
    found = json.loads(part.to_json_string())
    return {key: value for key, value in found.items() if not key.startswith("_")}


def available(sources: Iterable[str], load: Callable[[str, str], Model],
              device: str = "cpu") -> list[Model]:
    """What `load` makes of hub names and the device; one that cannot be had is said and left out.

    Raises UserError for a device that is not there.
    """
    found = []
    check_device(device)  # no reason to leave anything out
    for source in sources:
        try:
            found.append(load(source, device))
        except UserError as error:
            print(f"left out: {error}")
    return found
