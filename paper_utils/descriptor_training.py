"""Training of the small copy-detection descriptor by the recipe of SSCD (Pizzi et al., CVPR 2022).

Two augmented views of each image must find each other among all others (InfoNCE), descriptors are
spread over the sphere (differential entropy), and a few second views are mixed with another image,
which both originals must then find. Every random choice is drawn from a named stream.
"""

import math
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paper_utils import data, files, noise, zoo
from paper_utils.copy_detection import (FALSE_POSITIVES, HELD_OUT, pair_similarities,
                                        threshold_at)
from paper_utils.descriptors import CopyNet, CopyNetSpec, write_weights
from paper_utils.errors import check_device, exit_code, positive
from paper_utils.precision import bf16


@dataclass(frozen=True)
class Recipe:
    """What is trained and how. Temperature and the share of mixed views are those of SSCD's code.

    SSCD weighs the entropy by 30 (batch 4096, 100 epochs); here 30 drowned the contrastive loss
    within a short budget (in 120 steps 10 % of distorted copies found first, 27 % with 3).
    """

    network: CopyNetSpec = CopyNetSpec()
    steps: int = 2200
    batch: int = 256
    rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.01
    temperature: float = 0.05
    entropy: float = 3.0
    mixed: float = 0.05
    run: str = "cifar-copy"
    autocast: bool = True


@dataclass(frozen=True)
class State:
    """After a step: the network (in training mode), images seen, seconds and the loss's parts."""

    network: nn.Module
    step: int
    images_seen: int
    seconds: float
    contrastive: float
    entropy: float


def train(recipe: Recipe, images: Tensor) -> Iterator[State]:
    """Train a CopyNet on images uint8 [N, 3, H, W], on their device; yields after every step.

    The caller owns logging and saving. Each step sees `batch` images in two views each.
    """
    device, start = images.device, time.perf_counter()
    network = initialise(recipe).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
        rows = batch_rows(len(images), recipe, step).to(device)
        views, sources = make_views(images[rows], recipe, step)
        with bf16(device.type, recipe.autocast):
            features = network(views.contiguous(memory_format=torch.channels_last))
        contrastive, entropy = losses(features.float(), sources, recipe.temperature)
        optimizer.zero_grad()
        (contrastive + recipe.entropy * entropy).backward()
        optimizer.step()
        yield State(network, step + 1, (step + 1) * recipe.batch, time.perf_counter() - start,
                    contrastive.item(), entropy.item())


def initialise(recipe: Recipe) -> CopyNet:
    """A new network from the run's own stream; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(noise.seed_of(recipe.run, "initialisation"))
        return CopyNet(recipe.network)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a half cosine to zero."""
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, progress)))
    return recipe.rate * min((step + 1) / max(1, recipe.warmup), cosine)


def batch_rows(n: int, recipe: Recipe, step: int) -> Tensor:
    """The rows of step `step`: epochs without repetition, the last incomplete batch dropped."""
    per_epoch = max(1, n // recipe.batch)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(n, generator=noise.stream(recipe.run, "order", epoch))
    return order[place * recipe.batch:(place + 1) * recipe.batch]


def make_views(images: Tensor, recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    """Two views of each image -> ([2B, 3, H, W] in [-1, 1], sources bool [2B, B]).

    sources[v, i] says that view v shows image i: mixed views show two.
    """
    g = noise.stream(recipe.run, "augmentation", step, device=images.device)
    pixels = images.float() / 255
    first, second = (augment(pixels, g) for _ in range(2))
    first = maybe(first, pixels, 0.2, g)
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    mixed, partner = mix(second, recipe.mixed, g)
    both = own | own[partner]
    return torch.cat([first, mixed]) * 2 - 1, torch.cat([own, both])


def mix(views: Tensor, probability: float, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix a share of the views with another one: half by mixup, half by cutmix.

    Returns the views and, per view, the row of its partner (itself where it was not mixed).
    """
    n, _, h, w = views.shape
    kind = uniform(n, g) / probability
    rows = torch.arange(n, device=views.device)
    partner = torch.where(kind.flatten() < 1, rows.roll(1), rows)
    share = uniform(n, g, 0.3, 0.7)
    blend = share.expand(n, 1, h, w)
    inside = rectangle(n, h, w, share, g)
    weight = torch.where(kind < 0.5, blend, 1 - inside)
    return weight * views + (1 - weight) * views[partner], partner


def losses(features: Tensor, sources: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE over views, with several positives, and the entropy term (Pizzi et al., eq. 1 to 4).

    features: [V, D], unit rows; sources: bool [V, N]. The positives of a view are the views that
    share an image with it; each is contrasted with the negatives alone. The entropy term is the
    mean of -log distance to the nearest negative (Kozachenko-Leonenko).
    """
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    shared = sources.float() @ sources.float().T > 0
    positive = shared & ~itself
    cosine = features @ features.T
    logits = cosine / temperature
    negatives = logits.masked_fill(shared, -torch.inf).logsumexp(1, keepdim=True)
    pairwise = torch.logaddexp(logits, negatives) - logits
    contrastive = ((pairwise * positive).sum(1) / positive.sum(1)).mean()
    nearest = cosine.masked_fill(shared, -1).amax(1)
    entropy = -0.5 * torch.log((2 - 2 * nearest).clamp(min=1e-6)).mean()
    return contrastive, entropy


# --- augmentation: batched, each image its own draw, values in [0, 1] ---------------------------

def augment(pixels: Tensor, g: torch.Generator) -> Tensor:
    """Strong random distortion of pixels float [B, 3, H, W] in [0, 1]; 8-bit values come back.

    Besides the usual ones, elastic warps and smooth colour fields stand for two models that drew
    the same picture with small differences.
    """
    x = warp(pixels, g)
    x = occlude(x, g)
    x = recolour(x, g)
    x = maybe(x, smooth_field(x, g), 0.3, g)
    x = maybe(x, blur(x, uniform(len(x), g, 0.4, 1.6)), 0.4, g)
    x = maybe(x, x + uniform(len(x), g, 0.0, 0.12) * normal(x.shape, g), 0.4, g).clamp(0, 1)
    x = maybe(x, jpeg(x, uniform(len(x), g, 10, 80)), 0.2, g)
    return (x * 255).round().clamp(0, 255) / 255


def warp(x: Tensor, g: torch.Generator) -> Tensor:
    """Flip, crop and resize, shift, rotation and elastic warp, in one resampling."""
    n, _, h, w = x.shape
    flip = torch.where(uniform(n, g) < 0.5, -1.0, 1.0)
    zoom = torch.where(uniform(n, g) < 0.2, uniform(n, g, 1.0, 1.3), uniform(n, g, 0.3, 1).sqrt())
    aspect = uniform(n, g, -0.28, 0.28).exp().sqrt()
    angle = normal((n, 1, 1, 1), g) * torch.where(uniform(n, g) < 0.3, 0.35, 0.03)
    size_x, size_y = zoom * aspect, zoom / aspect
    reach_x, reach_y = (torch.clamp(1 - s, min=0.25) for s in (size_x, size_y))
    centre_x = uniform(n, g, -1, 1) * reach_x
    centre_y = uniform(n, g, -1, 1) * reach_y
    theta = torch.cat([
        torch.cat([flip * size_x * angle.cos(), -size_y * angle.sin(), centre_x], 3),
        torch.cat([flip * size_x * angle.sin(), size_y * angle.cos(), centre_y], 3)], 2)[:, 0]
    grid = F.affine_grid(theta.view(n, 2, 3), list(x.shape), align_corners=False)
    bend = coarse_field(n, 2, 4, (h, w), g) * uniform(n, g, 0, 0.08) * (uniform(n, g) < 0.4)
    padding = ("zeros", "border", "reflection")[int(torch.randint(3, (), generator=g,
                                                                  device=g.device))]
    return F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), padding_mode=padding,
                         align_corners=False)


def recolour(x: Tensor, g: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue for four images in five; grey for one in eight."""
    n = len(x)
    jittered = x * uniform(n, g, 0.6, 1.4)
    mean = jittered.mean((1, 2, 3), keepdim=True)
    jittered = mean + (jittered - mean) * uniform(n, g, 0.6, 1.4)
    grey = luma(jittered)
    jittered = grey + rotate_hue(jittered - grey, 0.35 * normal((n, 1, 1, 1), g)) * uniform(
        n, g, 0.4, 1.6)
    return maybe(maybe(x, jittered.clamp(0, 1), 0.8, g), luma(x).expand_as(x), 0.125, g)


def occlude(x: Tensor, g: torch.Generator) -> Tensor:
    """Cover a rectangle of up to a fifth of the image with one colour, in one image of five."""
    n, c, h, w = x.shape
    inside = rectangle(n, h, w, uniform(n, g, 0.02, 0.2), g)
    colour = torch.rand(n, c, 1, 1, generator=g, device=g.device)
    return maybe(x, x + inside * (colour - x), 0.2, g)


def smooth_field(x: Tensor, g: torch.Generator) -> Tensor:
    """Add a smooth random colour field: shading that one model drew and another did not."""
    coarse = coarse_field(len(x), x.shape[1], 5, x.shape[-2:], g)
    return (x + uniform(len(x), g, 0.02, 0.15) * coarse).clamp(0, 1)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, sigma [B, 1, 1, 1] in pixels, kernels renormalised at the border."""
    return smoother(x.shape[-2], sigma) @ x @ smoother(x.shape[-1], sigma).mT


def smoother(size: int, sigma: Tensor) -> Tensor:
    """[B, 1, size, size] matrix whose rows are Gaussian kernels."""
    places = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    kernel = torch.exp(-0.5 * ((places - places[:, None]) / sigma) ** 2)
    return kernel / kernel.sum(-1, keepdim=True)


LUMINANCE_STEPS = (  # the example quantisation table of the JPEG standard (ITU T.81, table K.1)
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99))


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Quantise 8x8 cosine coefficients as JPEG does, the luminance table on every channel.

    x: [B, C, H, W] in [0, 1], H and W multiples of 8; quality: [B, 1, 1, 1] in 1..100.
    """
    n, c, h, w = x.shape
    cosines = dct_matrix(x)
    steps = torch.tensor(LUMINANCE_STEPS, dtype=x.dtype, device=x.device) / 255
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[..., None, None]
    steps = (steps * scale).clamp(min=1 / 255)
    blocks = x.reshape(n, c, h // 8, 8, w // 8, 8).transpose(3, 4) - 0.5
    coefficients = cosines @ blocks @ cosines.T
    coefficients = (coefficients / steps).round() * steps
    blocks = cosines.T @ coefficients @ cosines + 0.5
    return blocks.transpose(3, 4).reshape(n, c, h, w).clamp(0, 1)


def dct_matrix(like: Tensor) -> Tensor:
    """Orthonormal 8x8 matrix of the discrete cosine transform (type II)."""
    k = torch.arange(8, dtype=like.dtype, device=like.device)
    rows = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) / 2
    return torch.cat([rows[:1] / math.sqrt(2), rows[1:]])


def luma(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W], weights of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device)
    return torch.einsum("bchw,c->bhw", x, weights)[:, None]


def rotate_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate colours by angle [B, 1, 1, 1] (radians) about the grey axis (Rodrigues)."""
    across = (x.roll(1, 1) - x.roll(2, 1)) / math.sqrt(3)
    along = x.mean(1, keepdim=True)
    return x * angle.cos() + across * angle.sin() + along * (1 - angle.cos())


def rectangle(n: int, h: int, w: int, share: Tensor, g: torch.Generator) -> Tensor:
    """[n, 1, h, w] of 0 and 1: a rectangle of about `share` [n, 1, 1, 1] of the image, inside."""
    aspect = uniform(n, g, -0.5, 0.5).exp()
    height, width = ((share * f).sqrt().clamp(max=1) for f in (aspect, 1 / aspect))
    top = uniform(n, g) * (1 - height)
    left = uniform(n, g) * (1 - width)
    y = ((torch.arange(h, device=g.device) + 0.5) / h).view(1, 1, h, 1)
    x = ((torch.arange(w, device=g.device) + 0.5) / w).view(1, 1, 1, w)
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return (rows & columns).float()


def coarse_field(n: int, channels: int, points: int, size: tuple[int, int],
                 g: torch.Generator) -> Tensor:
    """Unit normal values on a points x points grid, interpolated to [n, channels, *size]."""
    coarse = normal((n, channels, points, points), g)
    return F.interpolate(coarse, size=tuple(size), mode="bicubic", align_corners=False)


def maybe(x: Tensor, changed: Tensor, probability: float, g: torch.Generator) -> Tensor:
    """`changed` for a random share of the images, `x` for the others."""
    return torch.where(uniform(len(x), g) < probability, changed, x)


def uniform(n: int, g: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """[n, 1, 1, 1] uniform draws."""
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=g, device=g.device)


def normal(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=g, device=g.device)


# --- command line -------------------------------------------------------------------------------

def save(path: Path, recipe: Recipe, state: State, held_out: Tensor) -> dict:
    """Calibrate on held-out images and write half-precision weights; returns what is recorded.

    The threshold is the cosine that FALSE_POSITIVES of all pairs of held-out images exceed.
    """
    network = CopyNet(recipe.network)
    network.load_state_dict(zoo.halved(state.network.state_dict()))
    found = calibrate(network.eval(), held_out)
    made = found | {"name": "cifar-copy", "licence": "MIT", "recipe": asdict(recipe),
                    "trained_on": "CIFAR-10 train images 0 to 44999",
                    "images_seen": state.images_seen, "seconds": round(state.seconds)}
    write_weights(path, network, recipe.network, made)
    return made


@torch.inference_mode()
def calibrate(network: nn.Module, held_out: Tensor) -> dict:
    """The threshold that a share FALSE_POSITIVES of all pairs of the uint8 images [N, 3, H, W]
    exceeds, and how it was found."""
    features = torch.cat([network(data.to_unit(rows)) for rows in held_out.split(250)])
    threshold = threshold_at(pair_similarities(features), FALSE_POSITIVES)
    return {"threshold": round(threshold, 4), "false_positive_rate": FALSE_POSITIVES,
            "calibrated_on": f"all pairs of {len(held_out)} held-out CIFAR-10 train images"}


def main(arguments: list[str] | None = None) -> int:
    """Train the descriptor on CIFAR-10 and write its weights; a plain line every 100 steps."""
    parser = ArgumentParser(prog="python -m paper_utils.descriptor_training",
                            description=main.__doc__)
    parser.add_argument("--steps", type=positive(int), default=Recipe.steps)
    parser.add_argument("--batch", type=positive(int), default=Recipe.batch)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("descriptor.safetensors"))
    asked = parser.parse_args(arguments)
    return exit_code(lambda: _train(asked))


def _train(asked: Namespace) -> None:
    check_device(asked.device)
    files.check_target(asked.out)
    recipe = Recipe(steps=asked.steps, batch=asked.batch)
    images = data.load("cifar10", "train").pixels
    for state in train(recipe, images[:-HELD_OUT].to(asked.device)):
        if state.step % 100 == 0 or state.step == recipe.steps:
            print(f"step {state.step}  {state.seconds:.0f} s  contrastive {state.contrastive:.3f}"
                  f"  entropy {state.entropy:.3f}", flush=True)
    print(save(asked.out, recipe, state, images[-HELD_OUT:]))


if __name__ == "__main__":
    sys.exit(main())
