"""Our training loop against the loop of diffusers' example and a plain one; torch.compile."""

from dataclasses import replace
from statistics import median

import torch
from torch import nn

from benchmarks.measuring import (Row, Size, at_the_same_time, in_turns, seconds, some_pixels,
                                  wait_for_all, within)
from paper_utils import artifacts, data, precision, recipes, training


def diffusers_unet(device: str) -> training.Spec:
    """diffusers' own U-Net, which both loops can train: 32 channels on a CPU, 64 on a GPU."""
    width = 64 if device == "cuda" else 32
    args = dict(sample_size=32, block_out_channels=(width, 2 * width), layers_per_block=1,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=8,
                up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return training.Spec("bench", "diffusers_unet", args, "vp-discrete", images=512,
                         batch=128 if device == "cuda" else 32, precision="bf16",
                         images_seen=10**9)


def some_images() -> data.Images:
    return data.Images(some_pixels(512), torch.zeros(512, dtype=torch.int64), "bench")


class Ours:
    """`training.Training`, a step at a time."""

    def __init__(self, spec: training.Spec, device: str, start: artifacts.Tensors | None = None,
                 compiled: bool = False):
        self.run = training.Training(spec, some_images(), device, start, compiled)
        self.device = device

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.run.advance()
        wait_for(self.device)


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Example:
    """The loop of diffusers' examples/unconditional_image_generation with accelerate.

    As that script runs by default, with its EMA (--use_ema): AdamW, cosine schedule, gradients
    clipped, images through a DataLoader with crop, flip and normalization. mixed: the precision,
    'no' (its default) or 'bf16'.
    """

    def __init__(self, spec: training.Spec, device: str, mixed: str):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, else
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=device == "cpu")
        network = UNet2DModel(**spec.network_args)
        self.ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True,
                            inv_gamma=1.0, power=3 / 4)
        self.ema.to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999),
                                      weight_decay=1e-6, eps=1e-8)
        self.scheduler = DDPMScheduler()
        rates = get_scheduler("cosine", optimizer, num_warmup_steps=500,
                              num_training_steps=10_000)
        prepared = self.accelerator.prepare(network, optimizer, self._loader(spec.batch), rates)
        self.network, self.optimizer, self.loader, self.rates = prepared
        self.batches = self._endless()

    @staticmethod
    def _loader(batch: int):
        from PIL import Image
        from torchvision import transforms

        change = transforms.Compose([
            transforms.Resize(32), transforms.CenterCrop(32), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
        images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in some_images().pixels]
        return torch.utils.data.DataLoader(images, batch, shuffle=True, drop_last=True,
                                           collate_fn=lambda rows: torch.stack(list(map(change,
                                                                                        rows))))

    def _endless(self):
        while True:
            yield from self.loader

    def steps(self, count: int) -> None:
        for _ in range(count):
            clean = next(self.batches)
            noise = torch.randn(clean.shape, device=clean.device)
            times = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
            noisy = self.scheduler.add_noise(clean, noise, times)
            with self.accelerator.accumulate(self.network):
                output = self.network(noisy, times).sample
                loss = nn.functional.mse_loss(output.float(), noise.float())
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
                self.optimizer.step()
                self.rates.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.ema.step(self.network.parameters())
            loss.detach().item()  # the script logs it at every step


class Plain:
    """The least one would write: float32, Adam, no average of the weights, images in memory."""

    def __init__(self, spec: training.Spec, device: str):
        self.denoiser = training.build(spec).to(device)
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=1e-4)
        self.clean = data.to_unit(some_images().pixels).to(device)
        self.spec, self.device = spec, device

    def steps(self, count: int) -> None:
        kind = self.denoiser.framework
        for _ in range(count):
            clean = self.clean[torch.randint(0, 512, (self.spec.batch,), device=self.device)]
            sigma = kind.noise_level(torch.rand(len(clean), device=self.device))
            loss = training.denoising_loss(self.denoiser, kind, clean, sigma,
                                           torch.randn_like(clean))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        wait_for(self.device)


def rows(size: Size, device: str) -> list[Row]:
    """Images per second of our loop over those of the others, same network and batch."""
    spec = diffusers_unet(device)
    ours = Ours(spec, device)
    loops = {"diffusers' example, its default precision": (Example(spec, device, "no"),
                                                           3.0 if device == "cuda" else 1.15),
             "plain float32 loop": (Plain(spec, device), None)}
    if precision.has_bf16(device):
        loops["diffusers' example, bf16"] = Example(spec, device, "bf16"), None
    for loop in (ours, *(loop for loop, _ in loops.values())):
        loop.steps(2)
    times = in_turns(max(size.repeats // 2, 1), lambda: ours.steps(size.training),
                     *(lambda loop=loop: loop.steps(size.training) for loop, _ in loops.values()))
    images = spec.batch * size.training
    table = []
    for (name, (_, target)), theirs in zip(loops.items(), times[1:]):
        ratio = median(b / a for a, b in zip(times[0], theirs))
        shown = f"{ratio:.2f}x ({images / median(times[0]):.0f} against " \
                f"{images / median(theirs):.0f} images/s)"
        table.append(Row(f"training against {name}", shown, f">= {target}x" if target else "none",
                        target is None or within(times[0], theirs, 1 / target)))
    return [*table, matrix_share(spec, ours, images / median(times[0]), device)]


def matrix_share(spec: training.Spec, loop: Ours, rate: float, device: str) -> Row:
    """What training reaches of the rate of matrix products, in floating-point operations a second:
    those of bf16, or of float32 where the processor has no other."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loop.steps(1)
    used = counter.get_total_flops() / spec.batch * rate
    side = 8192 if device == "cuda" else 2048
    kind = torch.bfloat16 if precision.has_bf16(device) else torch.float32
    a = torch.randn(side, side, device=device, dtype=kind)

    def multiply() -> None:
        for _ in range(3):
            a @ a
        wait_for(device)

    multiply()
    peak = 3 * 2 * side**3 / min(seconds(multiply) for _ in range(3))
    return Row(f"training: share of the measured {str(kind).removeprefix('torch.')} matrix rate",
               f"{used / peak:.2f} ({used / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s)", "none", True)


def at_once(size: Size, device: str) -> list[Row]:
    """Aggregate images per second of small models trained in as many processes, over one alone."""
    count = 8 if device == "cuda" else torch.get_num_threads()
    if count == 1:
        return []
    alone, together = (sum(concurrently(k, size.training, device)) for k in (1, count))
    ratio, target = together / alone, 2.0 if device == "cuda" else None
    return [Row(f"training {count} models at once, in total",
                f"{ratio:.2f}x ({together:.0f} against {alone:.0f} images/s alone)",
                f">= {target}x" if target else "none", target is None or ratio >= target)]


def concurrently(count: int, steps: int, device: str) -> list[float]:
    """Images per second of each of `count` processes that train at the same time."""
    threads = torch.get_num_threads() if count == 1 else 1
    with at_the_same_time(count, threads) as pool:
        return list(pool.map(_rate, [4 * steps] * count, [device] * count))


def _rate(steps: int, device: str) -> float:
    spec = diffusers_unet(device)
    loop = Ours(spec, device)
    loop.steps(2)
    wait_for_all()
    return steps * spec.batch / seconds(lambda: loop.steps(steps))


def compiling(size: Size, device: str) -> list[Row]:
    """Images per second of section 3's middle network with torch.compile over those without."""
    profile = "gpu" if device == "cuda" else "laptop"
    name = f"unet-{recipes.GRIDS[profile].widths[1]}-n1024"
    spec = replace(recipes.regime_specs(profile)[name], images=512)
    eager, ours = Ours(spec, device), Ours(spec, device, compiled=True)
    eager.steps(2)
    taken = seconds(lambda: ours.steps(3))
    mine, other = in_turns(max(size.repeats // 2, 1), lambda: ours.steps(size.training),
                           lambda: eager.steps(size.training))
    ratio, images = median(b / a for a, b in zip(mine, other)), spec.batch * size.training
    return [Row(f"training with torch.compile against without, {name}, batch {spec.batch}",
                f"{ratio:.2f}x ({images / median(mine):.0f} against {images / median(other):.0f} "
                f"images/s; compiled in {taken:.0f} s)", "none", True)]
