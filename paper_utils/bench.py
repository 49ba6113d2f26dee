"""Ratios against the code people would write otherwise: `python -m paper_utils.bench [--quick]`.

Both sides of a ratio are timed in the same run, turn by turn; the median of the repeats counts.
Let nothing else run meanwhile.

store         artifacts read by eight processes at once through the store, against plain reading of
              the same files: sha256, then safetensors
GL            max_i M(x, y_i) of every sample, against the loop of the authors' `mscore` in numpy
sampling      the same network, equally many evaluations, against a loop over a diffusers scheduler
optimal       256 samples of the optimal denoiser of 32,768 images, and its memory
inverse       Algorithm 1 step by step against deepinv's DPS in its deterministic setting, and its
              memory; 64 reconstructions with a model of zoo/
training      images per second, same network and batch, against the loop of diffusers' example of
              unconditional training with accelerate and against plain float32; several at once
compile       images per second with torch.compile (on a GPU: CUDA graphs) against without, and how
              long compiling takes
distillation  a step against the three evaluations of its network and one backward pass that it
              cannot do without; how long the halvings from 32 steps to 1 take at that rate
"""

import argparse
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paper_utils import (artifacts, data, denoisers, inverse, models, networks, operators, profiles,
                         samplers, training)
from paper_utils.denoisers import CONSISTENCY
from paper_utils.descriptors import max_similarity
from paper_utils.distillation import halvings
from paper_utils.errors import UserError, check_device, exit_code
from paper_utils.noise import stream
from paper_utils.precision import bf16
from paper_utils.samplers import Solver

DIM = 1024
MSCORE_BATCH = 128  # samples a step in the authors' mscore


@dataclass(frozen=True)
class Size:
    """How much is timed.

    At full size the loop of mscore would need an array of 26 GB, so it runs on a slice and its time
    is extrapolated, linear in both counts.
    """

    samples: int = 10_000
    images: int = 50_000
    slice: int = 2_000     # training images of the slice; its samples are one batch of mscore
    batch: int = 8         # images sampled at once
    steps: int = 10
    repeats: int = 9       # of sampling; a third of it for GL
    training: int = 8      # steps of a turn of training
    images_known: int = 32_768  # of the optimal denoiser
    noises: int = 256
    guided: int = 32       # images of Algorithm 1 at once
    restored: int = 64     # images reconstructed, in as many steps:
    restoring: int = 50
    distilled: int = 64    # images of a step of distillation; four times as many on a GPU
    distilling: int = 2    # steps of a turn; ten times as many on a GPU
    stored: int = 32       # artifacts of 4 MiB


QUICK = Size(samples=2_000, images=10_000, slice=1_000, batch=4, steps=5, training=2,
             images_known=16_384, noises=2, guided=4, restored=2, restoring=5,
             distilled=16, stored=8)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the target, and whether it is met."""

    what: str
    measured: str
    target: str
    met: bool


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(repeats: int, *works: Callable[[], object]) -> list[list[float]]:
    """Seconds of each of `works`, `repeats` times in turn, the other way round every other time."""
    times = {work: [] for work in works}
    for k in range(repeats):
        for work in works[::1 if k % 2 else -1]:
            times[work].append(seconds(work))
    return list(times.values())


# --- the store ----------------------------------------------------------------------------------

def kept(k: int) -> artifacts.Tensors:
    """Artifact k of the benchmark, 4 MiB; computed only where it is not there yet."""
    return artifacts.remember("bench", {"k": k}, lambda: {"x": torch.full((2**20,), float(k))})


def plainly(k: int) -> artifacts.Tensors:
    """The same from its file, with no more than the hash that tells whether it is damaged."""
    path = artifacts.path_of("bench", {"k": k})
    if artifacts.sha256(path) != path.with_name(path.name + ".sha256").read_text().strip():
        raise UserError(f"{path} is damaged")
    return load_file(path)


WAYS = {"store": kept, "plain": plainly}


def read_when_told(count: int) -> None:
    """For each line of standard input, 'store' or 'plain', read `count` artifacts that way."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    for way in map(str.strip, sys.stdin):
        right = [float(WAYS[way](k)["x"][-1]) == k for k in range(count)]
        print(json.dumps(right), flush=True)


class Readers:
    """Processes that read the same artifacts at the same time."""

    def __init__(self, processes: int, count: int, cache: str):
        code = f"from paper_utils.bench import read_when_told as r; r({count})"
        self.right = json.dumps([True] * count)
        self.running = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True,
                                         env=os.environ | {"PAPER_UTILS_CACHE": cache})
                        for _ in range(processes)]
        self._expect("ready")

    def read(self, way: str) -> None:
        for process in self.running:
            process.stdin.write(f"{way}\n")
            process.stdin.flush()
        self._expect(self.right)

    def _expect(self, line: str) -> None:
        for process in self.running:
            if process.stdout.readline().strip() != line:
                raise RuntimeError("a reader failed")

    def close(self) -> None:
        for process in self.running:
            process.communicate()


@contextlib.contextmanager
def readers(*processes: int, count: int) -> Iterator[list[Readers]]:
    """Readers of `count` artifacts in a store of their own, which have read them all once."""
    with tempfile.TemporaryDirectory() as cache:
        groups = [Readers(n, count, cache) for n in processes]
        try:
            for group in groups:
                group.read("store")
            yield groups
        finally:
            for group in groups:
                group.close()


def store(size: Size) -> list[Row]:
    """Time of eight concurrent readers over that of plain reading; one reader alone.

    Missed when three rounds in four, or more, are beyond the target.
    """
    with readers(8, 1, count=size.stored) as (eight, one):
        ours, plain, alone = in_turns(size.repeats, lambda: eight.read("store"),
                                      lambda: eight.read("plain"), lambda: one.read("store"))
    low, ratio, high = quartiles_over(ours, plain)
    what = f"store, {size.stored} artifacts of 4 MiB"
    rates = [n * 4 * size.stored / median(times)
             for n, times in ((8, ours), (8, plain), (1, alone))]
    return [Row(f"{what}, eight readers against plain reading",
                f"{ratio:.2f}x the time (quartiles {low:.2f} to {high:.2f}; {rates[0]:.0f} against "
                f"{rates[1]:.0f} MiB/s in total)", "<= 1.10x", low <= 1.10),
            Row(f"{what}, one reader", f"{rates[2]:.0f} MiB/s", "none", True)]


# --- GL -----------------------------------------------------------------------------------------

def unit_features(n: int, name: str) -> Tensor:
    """Random unit rows [n, 1024], made in place."""
    rows = torch.empty(n, DIM).normal_(generator=stream("bench", name))
    for part in rows.split(1024):
        part /= part.norm(dim=1, keepdim=True)
    return rows


def mscore(samples: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The authors' loop: every product of a batch and all images, [128, N, 1024], then its sum."""
    best = [(samples[k:k + MSCORE_BATCH, None] * images[None]).sum(2).max(1)
            for k in range(0, len(samples), MSCORE_BATCH)]
    return np.concatenate(best)


def gl(size: Size) -> list[Row]:
    """Time of all similarities, and the memory that they need beyond the features."""
    samples, images = unit_features(size.samples, "samples"), unit_features(size.images, "images")
    few, part = samples[:MSCORE_BATCH].numpy(), images[:size.slice].numpy()
    scale = (size.samples / len(few)) * (size.images / len(part))
    torch.testing.assert_close(max_similarity(samples[:len(few)], images[:len(part)]),
                               torch.from_numpy(mscore(few, part)))
    ours, loop = in_turns(size.repeats // 3, lambda: max_similarity(samples, images),
                          lambda: mscore(few, part))
    ratio = median(scale * b / a for a, b in zip(ours, loop))
    what = f"GL, {size.samples:,} samples, {size.images:,} images, {DIM}-d"
    shown = (f"{ratio:.0f}x faster ({median(ours):.1f} s; loop {scale * median(loop):.0f} s, "
             f"extrapolated from {len(few)} x {len(part):,})")
    extra = extra_memory(size.samples, size.images)
    return [Row(f"{what}: time", shown, ">= 50x", ratio >= 50),
            Row(f"{what}: memory", f"{extra / 2**30:.2f} GiB extra", "< 1 GiB", extra < 2**30)]


def extra_memory(samples: int, images: int) -> int:
    """Peak memory of max_similarity beyond its inputs in bytes, in a process of its own."""
    return number_printed(f"print_extra({samples}, {images})")


def number_printed(call: str, **environment: str) -> int:
    """What a function of this module prints when a process of its own calls it."""
    code = f"from paper_utils import bench; bench.{call}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          env=os.environ | environment)
    return int(done.stdout)


def print_extra(samples: int, images: int) -> None:
    a, b = unit_features(samples, "samples"), unit_features(images, "images")
    before = peak_memory()
    max_similarity(a, b)
    print(peak_memory() - before)


def peak_memory() -> int:
    """Highest resident size of this process so far, in bytes.

    On Linux from /proc: getrusage there inherits the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- sampling -----------------------------------------------------------------------------------

def small_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(sample_size=32, block_out_channels=(32, 64), layers_per_block=1,
                       down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=8,
                       up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()


@torch.no_grad()
def scheduler_loop(unet: nn.Module, scheduler, noise: Tensor) -> Tensor:
    """What a diffusers pipeline does, without its progress bar and its conversion to PIL."""
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def evaluations(network: nn.Module, work: Callable[[], object]) -> int:
    """How often `work` calls the network."""
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    work()
    handle.remove()
    return len(calls)


def sampling(size: Size) -> list[Row]:
    """Wall time of our samplers over that of diffusers' schedulers, with the same network."""
    from diffusers import DDIMScheduler, HeunDiscreteScheduler

    unet = small_unet()
    denoiser = denoisers.Preconditioned(networks.DiffusersUNet(unet), denoisers.vp_discrete())
    noise = torch.randn(size.batch, 3, 32, 32, generator=stream("bench", "noise"))
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


def no_slower(what: str, network: nn.Module, ours: Callable[[], Tensor],
              theirs: Callable[[], Tensor], repeats: int) -> Row:
    """Our time over theirs, of equally many evaluations of the network.

    'No slower' is missed when three rounds in four, or more, are slower.
    """
    calls = {evaluations(network, ours), evaluations(network, theirs)}
    if len(calls) != 1:
        raise RuntimeError(f"{what}: unequal numbers of evaluations, {calls}")
    mine, other = in_turns(repeats, ours, theirs)
    low, ratio, high = quartiles_over(mine, other)
    shown = (f"{ratio:.2f} of its time (quartiles {low:.2f} to {high:.2f}; {median(mine):.2f} s, "
             f"{median(other):.2f} s)")
    return Row(f"{what}, {calls.pop()} evaluations", shown, "no slower", low <= 1)


def quartiles_over(mine: list[float], other: list[float]) -> list[float]:
    """The three quartiles of our time over theirs, round by round."""
    return quantiles([a / b for a, b in zip(mine, other)], n=4)


# --- the optimal denoiser -----------------------------------------------------------------------

def optimal(size: Size) -> list[Row]:
    """Wall time of its samples by 18 steps of Heun, and the memory beyond the images."""
    def work(n: int) -> None:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8,
                               generator=stream("bench", "pixels"))
        noise = torch.randn(size.noises, 3, 32, 32, generator=stream("bench", "noise"))
        samplers.sample(denoisers.OptimalDenoiser(pixels), noise, batch=size.noises)

    time_taken = seconds(lambda: work(size.images_known))
    few, many = (optimal_memory(n) for n in (size.images_known // 4, size.images_known))
    what = f"optimal denoiser, {size.noises} noises, 35 evaluations, {size.images_known:,} images"
    return [Row(f"{what}: time", f"{time_taken:.1f} s", "< 40 s", time_taken < 40),
            Row(f"{what}: memory", f"{many / 2**20:.0f} MiB beyond the images, {few / 2**20:.0f} "
                "MiB for a quarter of them", "the same", many < 1.25 * few + 2**25)]


def optimal_memory(images: int) -> int:
    """Peak memory of one answer of the optimal denoiser beyond its images, in bytes."""
    return number_printed(f"print_optimal({images})")


def print_optimal(images: int) -> None:
    pixels = torch.zeros(images, 3, 32, 32, dtype=torch.uint8)
    before = peak_memory()
    denoisers.OptimalDenoiser(pixels)(torch.zeros(64, 3, 32, 32), 1.0)
    print(peak_memory() - before)


# --- inverse problems ---------------------------------------------------------------------------

class Inpainting:
    """Random inpainting, for both: the same denoiser, mask, noise, noise levels and zeta.

    With these settings deepinv's step is that of Algorithm 1, so the answers agree up to rounding
    (deepinv's denoiser gets float32). The weights are random; the state of both is float64.
    """

    def __init__(self, batch: int, steps: int):
        self.denoiser = training.build(replace(training_spec("cpu"), framework="edm")).eval()
        self.operator = operators.random_inpainting(batch, 0.7)
        self.noise = some_noise(batch)
        self.y = operators.measure(some_noise(batch, "images"), self.operator).y
        self.guidance = inverse.Guidance(1.0, Solver("dpm-solver-1", steps), "flow")

    @torch.no_grad()
    def ours(self) -> Tensor:
        for state in inverse.dps(self.denoiser, self.noise.double(), self.y.double(),
                                 self.operator, self.guidance):
            pass
        return state.u

    def deepinv(self) -> Callable[[], Tensor]:
        """DPS of deepinv with DDIM's step, eta 0, in the levels of our solver: t is sigma."""
        from deepinv import physics, sampling

        sigmas = self.guidance.solver.sigmas
        guided = sampling.PosteriorDiffusion(
            sampling.DPSDataFidelity(weight=self.guidance.zeta), self.denoiser,
            sampling.EDMDiffusionSDE(lambda t: t, variance_exploding=True),
            sampling.DDIMSolver(sigmas, eta=0), minus_one_one=False)
        masked = physics.Inpainting((3, 32, 32), self.operator.state)
        return lambda: guided(self.y, masked, sigmas[0] * self.noise.double())


def some_noise(count: int, name: str = "noise") -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=stream("bench", name))


def invert(size: Size) -> list[Row]:
    """Time and memory of Algorithm 1 over deepinv's, if it is there; seconds to reconstruct."""
    if find_spec("deepinv"):
        return [*against_deepinv(size), reconstruction(size)]
    missing = Row("Algorithm 1 against deepinv's DPS",
                  "deepinv is not installed: pip install deepinv", "no slower", True)
    return [missing, reconstruction(size)]


def against_deepinv(size: Size) -> list[Row]:
    """Wall time of equally many steps, one evaluation each on both sides, and peak memory."""
    both = Inpainting(size.guided, size.steps)
    ours, theirs = both.ours, both.deepinv()
    torch.testing.assert_close(ours(), theirs(), rtol=0, atol=1e-4)
    what = f"Algorithm 1 against deepinv's DPS, {size.guided} images"
    row = no_slower(f"{what}, {size.steps} steps", both.denoiser.network, ours, theirs,
                    size.repeats)
    mine, other = (dps_memory(side, size.guided) / 2**20 for side in ("ours", "deepinv"))
    return [row, Row(f"{what}: memory", f"{mine:.1f} MiB beyond the model, {other:.1f} MiB",
                     "no more", mine <= other)]


def dps_memory(side: str, batch: int) -> int:
    """Peak memory of two steps beyond what both sides need to start, in bytes.

    glibc returns every freed block of 128 KiB or more, lest its reuse of them blur the peak.
    """
    return number_printed(f"print_dps({side!r}, {batch})", MALLOC_MMAP_THRESHOLD_=str(2**17))


def print_dps(side: str, batch: int) -> None:
    both = Inpainting(batch, 2)
    works = {"ours": both.ours, "deepinv": both.deepinv()}
    before = peak_memory()
    works[side]()
    print(peak_memory() - before)


def reconstruction(size: Size) -> Row:
    """Seconds that a model of zoo/ takes to reconstruct images of random pixels, 70 % lost."""
    n, steps = size.restored, size.restoring
    operator = operators.random_inpainting(n, 0.7)
    measurement = operators.measure(some_noise(n, "images").clamp(-1, 1), operator)
    denoiser, noise = models.shipped("edm").denoiser(), some_noise(n)
    guidance = inverse.Guidance(solver=Solver("dpm-solver-1", steps))
    taken = seconds(lambda: inverse.reconstruct(denoiser, measurement, operator, noise, guidance))
    return Row(f"reconstruction of {n} images, {steps} steps", f"{taken:.1f} s", "< 300 s",
               taken < 300)


# --- training -----------------------------------------------------------------------------------

def training_spec(device: str) -> training.Spec:
    """diffusers' own U-Net, which both loops can train: 32 channels on a CPU, 64 on a GPU."""
    width = 64 if device == "cuda" else 32
    args = dict(sample_size=32, block_out_channels=(width, 2 * width), layers_per_block=1,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=8,
                up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return training.Spec("bench", "diffusers_unet", args, "vp-discrete", images=512,
                         batch=128 if device == "cuda" else 32, precision="bf16",
                         images_seen=10**9)


def some_images() -> data.Images:
    pixels = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    return data.Images(pixels, torch.zeros(512, dtype=torch.int64), "bench")


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
    clipped, images through a DataLoader with crop, flip and normalization. precision: 'no' (its
    default) or 'bf16'.
    """

    def __init__(self, spec: training.Spec, device: str, precision: str):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, else
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
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


def train(size: Size, device: str) -> list[Row]:
    """Images per second of our loop over those of the others, same network and batch."""
    spec = training_spec(device)
    ours = Ours(spec, device)
    loops = {"diffusers' example, its default precision": (Example(spec, device, "no"),
                                                           3.0 if device == "cuda" else 1.15),
             "diffusers' example, bf16": (Example(spec, device, "bf16"), None),
             "plain float32 loop": (Plain(spec, device), None)}
    for loop in (ours, *(loop for loop, _ in loops.values())):
        loop.steps(2)
    times = in_turns(max(size.repeats // 2, 1), lambda: ours.steps(size.training),
                     *(lambda loop=loop: loop.steps(size.training) for loop, _ in loops.values()))
    images = spec.batch * size.training
    rows = []
    for (name, (_, target)), theirs in zip(loops.items(), times[1:]):
        ratio = median(b / a for a, b in zip(times[0], theirs))
        shown = f"{ratio:.2f}x ({images / median(times[0]):.0f} against " \
                f"{images / median(theirs):.0f} images/s)"
        rows.append(Row(f"training against {name}", shown, f">= {target}x" if target else "none",
                        target is None or ratio >= target))
    return [*rows, matrix_share(spec, ours, images / median(times[0]), device)]


def matrix_share(spec: training.Spec, loop: Ours, rate: float, device: str) -> Row:
    """What training reaches of the bf16 matrix rate, in floating-point operations per second."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loop.steps(1)
    used = counter.get_total_flops() / spec.batch * rate
    side = 8192 if device == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)

    def multiply() -> None:
        for _ in range(3):
            a @ a
        wait_for(device)

    multiply()
    peak = 3 * 2 * side**3 / min(seconds(multiply) for _ in range(3))
    return Row("training: share of the measured bf16 matrix rate",
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
    code = f"from paper_utils.bench import print_rate as p; p({steps}, {device!r}, {threads})"
    running = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for process in running:
        process.stdout.readline()  # ready
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [float(process.communicate()[0]) for process in running]


def print_rate(steps: int, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    spec = training_spec(device)
    loop = Ours(spec, device)
    loop.steps(2)
    print("ready", flush=True)
    sys.stdin.readline()
    print(4 * steps * spec.batch / seconds(lambda: loop.steps(4 * steps)))


def compiling(size: Size, device: str) -> list[Row]:
    """Images per second of section 3's middle network with torch.compile over those without."""
    profile = "gpu" if device == "cuda" else "laptop"
    name = f"unet-{profiles.GRIDS[profile].widths[1]}-n1024"
    spec = replace(profiles.regime_specs(profile)[name], images=512)
    eager, ours = Ours(spec, device), Ours(spec, device, compiled=True)
    eager.steps(2)
    taken = seconds(lambda: ours.steps(3))
    mine, other = in_turns(max(size.repeats // 2, 1), lambda: ours.steps(size.training),
                           lambda: eager.steps(size.training))
    ratio, images = median(b / a for a, b in zip(mine, other)), spec.batch * size.training
    return [Row(f"training with torch.compile against without, {name}, batch {spec.batch}",
                f"{ratio:.2f}x ({images / median(mine):.0f} against {images / median(other):.0f} "
                f"images/s; compiled in {taken:.0f} s)", "none", True)]


# --- distillation -------------------------------------------------------------------------------

def distillation_spec(objective: str, batch: int) -> training.Spec:
    """A student, 32 channels wide, whose step evaluates three networks and differentiates one.

    objective: 'progressive' (the teacher twice and the student) or 'cd' (the teacher, whose step is
    Euler's, the target and the student).
    """
    spec = training.Spec(f"bench-{objective}", "unet", images=512, batch=batch, images_seen=10**9,
                         network_args=networks.DDPMPP | profiles.GRIDS["gpu"].network
                         | {"width": 32}, solver=Solver("ddim", 8, "cosine"), precision="bf16",
                         start="teacher", objective=objective)
    if objective == "progressive":
        return spec
    return replace(spec, framework=spec.framework + CONSISTENCY, objective_args={"solver": "euler"})


def distilled(spec: training.Spec, device: str) -> Ours:
    """The loop of a student whose teacher has random weights."""
    teacher = replace(spec, framework=spec.teacher_framework, objective="denoising", start="")
    return Ours(spec, device, training.build(teacher).network.state_dict())


class Bare:
    """What such a step cannot do without: two passes without gradient, one with, one backward.

    It evaluates the network of `run` itself, on as many images in the same precision; there is no
    optimizer, no average of the weights and no noise to draw.
    """

    def __init__(self, run: training.Training):
        self.network, self.device = run.denoiser.network, run.device.type
        self.noisy = some_noise(run.spec.batch).to(run.device)
        self.times = torch.zeros(run.spec.batch, device=run.device)
        self.half = run.spec.precision == "bf16"

    def steps(self, count: int) -> None:
        for _ in range(count):
            with torch.no_grad():
                self._answer()
                self._answer()
            loss = self._answer().float().square().mean()
            self.network.zero_grad()
            loss.backward()
        wait_for(self.device)

    def _answer(self) -> Tensor:
        with bf16(self.device, self.half):
            return self.network(self.noisy, self.times)


def distill(size: Size, device: str) -> list[Row]:
    """Overhead of both kinds of distillation; what the halvings take at the measured rate."""
    more, steps = (4, 10 * size.distilling) if device == "cuda" else (1, size.distilling)
    specs = [distillation_spec(name, more * size.distilled) for name in ("progressive", "cd")]
    rows, rates = zip(*(overhead(spec, steps, size.repeats, device) for spec in specs))
    return [*rows, *(halving(name, rates[0], device) for name in ("laptop", "gpu"))]


def overhead(spec: training.Spec, steps: int, repeats: int, device: str) -> tuple[Row, float]:
    """Time of a step over that of its evaluations alone, and its images per second.

    Missed when three rounds in four, or more, are beyond the target.
    """
    ours = distilled(spec, device)
    bare = Bare(ours.run)
    for loop in (ours, bare):
        loop.steps(2)
    mine, other = in_turns(repeats, lambda: ours.steps(steps), lambda: bare.steps(steps))
    low, ratio, high = quartiles_over(mine, other)
    rate, bound = (spec.batch * steps / median(times) for times in (mine, other))
    shown = (f"{ratio:.2f}x the time (quartiles {low:.2f} to {high:.2f}; {rate:.0f} against "
             f"{bound:.0f} images/s)")
    row = Row(f"distillation ({spec.objective}) against three forward passes and one backward, "
              f"batch {spec.batch}", shown, "< 1.15x", low < 1.15)
    return row, rate


def halving(profile: str, rate: float, device: str) -> Row:
    """Minutes of all halvings with the budget of a profile, at `rate` images per second.

    Of the steps alone, and judged on a GPU only.
    """
    study = profiles.DISTILLATIONS[profile]
    stages = len(halvings(study.steps))
    minutes = stages * study.stage_budget / rate / 60
    gpu = device == "cuda"
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} thread(s) of a CPU"
    return Row(f"distilling a U-Net of width 32 from {study.steps} steps to 1, budget '{profile}'",
               f"{minutes:.1f} min on {where} ({stages} x {study.stage_budget:,} images at "
               f"{rate:.0f} a second)", "< 10 min on one H200-class GPU" if gpu else "none",
               not gpu or minutes < 10)


# --- the table ----------------------------------------------------------------------------------

def show(rows: list[Row]) -> None:
    widths = [max(len(getattr(row, field)) for row in rows) for field in ("what", "measured")]
    for row in rows:
        verdict = "met" if row.met else "MISSED"
        print(f"{row.what:<{widths[0]}}  {row.measured:<{widths[1]}}  target {row.target}: "
              f"{verdict}")


PARTS = {"store": lambda size, device: store(size), "GL": lambda size, device: gl(size),
         "sampling": lambda size, device: sampling(size),
         "optimal": lambda size, device: optimal(size),
         "inverse": lambda size, device: invert(size),
         "training": lambda size, device: train(size, device) + at_once(size, device),
         "compile": lambda size, device: compiling(size, device),
         "distillation": lambda size, device: distill(size, device)}


def main(arguments: list[str] | None = None) -> int:
    """The command line: print the tables."""
    parser = argparse.ArgumentParser(prog="python -m paper_utils.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, some seconds")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    parser.add_argument("--device", default="cpu", help="of training, compile and distillation")
    asked = parser.parse_args(arguments)
    return exit_code(lambda: _measure(asked))


def _measure(asked: argparse.Namespace) -> None:
    check_device(asked.device)
    size = QUICK if asked.quick else Size()
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    for name, part in PARTS.items():
        if asked.only in (None, name):
            show(part(size, asked.device))


if __name__ == "__main__":
    sys.exit(main())
