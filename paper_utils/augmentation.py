"""Non-leaky augmentation: the network is told what was done to each image it learns from.

Karras et al. 2022, appendix F.2: flips, scaling, rotation, anisotropic scaling and translation,
each with its own draw; nine numbers that describe them enter the network beside the noise level.
All nine are 0 for an untouched image, which is what a sampler asks for by giving none.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LABELS = 9         # numbers that describe an augmentation; `augment_dim` of a network
SCALE = 2**0.2     # of one standard deviation, isotropic and anisotropic alike
SHIFT = 1 / 8      # of the image's side, likewise


def draw(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """What to do to n images: [n, 8] on the generator's device, zeros for nothing.

    Columns: flip along x and y (0 or 1); log of the scale in units of log SCALE; angle of rotation;
    axis of the anisotropic scaling and the log of its strength; shift along x and y in units of
    SHIFT. The flip along x is drawn for every image, each other kind for a part `probability`.
    """
    where = {"generator": generator, "device": generator.device}
    flips = torch.randint(2, (n, 2), **where).float()
    angles = (2 * torch.rand(n, 2, **where) - 1) * math.pi
    normal = torch.randn(n, 4, **where)
    flip_y, scale, turn, stretch, shift = (torch.rand(5, n, 1, **where) < probability).float()
    return torch.cat([flips[:, :1], flips[:, 1:] * flip_y, normal[:, :1] * scale,
                      angles[:, :1] * turn, angles[:, 1:], normal[:, 1:2] * stretch,
                      normal[:, 2:] * shift], 1)


def describe(drawn: Tensor) -> Tensor:
    """[n, LABELS] for the network from [n, 8] of `draw`; angles as their cosines and sines."""
    flip_x, flip_y, scale, turn, axis, stretch, shift_x, shift_y = drawn.unbind(1)
    return torch.stack([flip_x, flip_y, scale, turn.cos() - 1, turn.sin(), stretch * axis.cos(),
                        stretch * axis.sin(), shift_x, shift_y], 1)


def warp(images: Tensor, drawn: Tensor) -> Tensor:
    """Images [n, C, H, H] in [-1, 1] flipped, scaled, turned, stretched and shifted, in that order.

    Bicubic interpolation, clamped to [-1, 1]; the image is mirrored at its edges. (Karras et al.
    filter through wavelets instead.) Coordinates grow to the right and downwards.
    """
    flip_x, flip_y, scale, turn, axis, stretch, *shift = drawn.unbind(1)
    # grid_sample asks where each pixel comes from: the inverses, last transformation first
    inverse = (_diagonal(1 - 2 * flip_x, 1 - 2 * flip_y)
               @ _diagonal(SCALE**-scale, SCALE**-scale) @ _rotation(-turn)
               @ _rotation(axis) @ _diagonal(SCALE**-stretch, SCALE**stretch) @ _rotation(-axis))
    shift = 2 * SHIFT * torch.stack(shift, 1)[:, :, None]  # the side is 2 long, from -1 to 1
    grid = F.affine_grid(torch.cat([inverse, -inverse @ shift], 2), list(images.shape), False)
    warped = F.grid_sample(images, grid, "bicubic", "reflection", False).clamp(-1, 1)
    touched = (drawn != 0)[:, [0, 1, 2, 3, 5, 6, 7]].any(1)  # the axis alone does nothing
    return torch.where(touched[:, None, None, None], warped, images)


def augment(images: Tensor, probability: float,
            generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [n, C, H, H] in [-1, 1], augmented, and the [n, LABELS] that describe how.

    What is done is drawn on the generator's device: on the CPU it is the same wherever images are.
    """
    drawn = draw(len(images), probability, generator).to(images.device)
    return warp(images, drawn), describe(drawn)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y], 1))


def _rotation(angle: Tensor) -> Tensor:
    """[n, 2, 2]: turns the x axis towards the y axis."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
