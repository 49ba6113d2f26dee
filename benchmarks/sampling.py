"""Our samplers against loops over diffusers' schedulers; samples of the optimal denoiser."""

import torch
from torch import Tensor, nn

from benchmarks.measuring import (Row, Size, alone, extra_memory, no_slower, seconds, some_noise,
                                  some_pixels)
from benchmarks.training import diffusers_unet
from paper_utils import denoisers, networks, samplers
from paper_utils.samplers import Solver


@torch.no_grad()
def scheduler_loop(unet: nn.Module, scheduler, noise: Tensor) -> Tensor:
    """What a diffusers pipeline does, without its progress bar and its conversion to PIL."""
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def rows(size: Size) -> list[Row]:
    """Wall time of our samplers over that of diffusers' schedulers, with the same network."""
    from diffusers import DDIMScheduler, HeunDiscreteScheduler, UNet2DModel

    unet = UNet2DModel(**diffusers_unet("cpu").network_args).eval()
    network = networks.DiffusersUNet(unet)
    denoiser = denoisers.Preconditioned(network, denoisers.vp_discrete()).eval()
    noise = some_noise(size.batch)
    pairs = {"ddim": DDIMScheduler(), "heun": HeunDiscreteScheduler(beta_end=0.02,
                                                                    beta_start=1e-4)}
    return [compare(name, unet, denoiser, scheduler, noise, size)
            for name, scheduler in pairs.items()]


def compare(name: str, unet: nn.Module, denoiser: nn.Module, scheduler, noise: Tensor,
            size: Size) -> Row:
    def ours() -> Tensor:
        return samplers.sample(denoiser, noise, Solver(name, size.steps, sigma_max=80))

    def theirs() -> Tensor:
        scheduler.set_timesteps(size.steps)
        return scheduler_loop(unet, scheduler, noise)

    return no_slower(f"{name} against {type(scheduler).__name__}, {size.batch} images", unet, ours,
                     theirs, size.repeats)


def optimal(size: Size) -> list[Row]:
    """Wall time of 18 steps of Heun with the optimal denoiser, and the memory beyond its images."""
    def work() -> None:
        denoiser = denoisers.OptimalDenoiser(some_pixels(size.images_known))
        samplers.sample(denoiser, some_noise(size.noises), batch=size.noises)

    taken = seconds(work)
    few, many = (alone(memory, n) for n in (size.images_known // 4, size.images_known))
    what = f"optimal denoiser, {size.noises} noises, 35 evaluations, {size.images_known:,} images"
    return [Row(f"{what}: time", f"{taken:.1f} s", "< 40 s", taken < 40),
            Row(f"{what}: memory", f"{many / 2**20:.0f} MiB beyond the images, {few / 2**20:.0f} "
                "MiB for a quarter of them", "the same", many < 1.25 * few + 2**25)]


def memory(images: int) -> int:
    """Peak memory of one answer of the optimal denoiser beyond its images, in bytes."""
    pixels = torch.zeros(images, 3, 32, 32, dtype=torch.uint8)
    noisy = torch.zeros(64, 3, 32, 32)
    return extra_memory(lambda: denoisers.OptimalDenoiser(pixels)(noisy, 1.0))
