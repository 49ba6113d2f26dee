"""The local, translation-equivariant denoiser: what a convolutional network would ideally compute.

Kamb & Ganguli, "An analytic theory of creativity in convolutional diffusion models"
(arXiv 2412.20292): a network that sees only a k x k neighbourhood and treats all positions alike
is best off answering, for each pixel, the posterior mean of the patch's centre over all training
patches at all positions. Nothing is trained. k follows the noise: a pixel alone at the highest, the
largest patches at sigma 5 to 20, and below them the less noise the smaller, down to a pixel again.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from paper_utils.data import Images, to_unit
from paper_utils.errors import UserError
from paper_utils.noise import stream

Table = tuple[tuple[float, int], ...]

# calibrate(CIFAR-10's 50,000 training images, first 16 test images, these sigmas): patches=8192,
# tolerance 1 %. The errors fall from 0.24 (the data's variance) through 0.143 at 5, 0.050 at 1 and
# 0.011 at 0.15 to below 0.001: at the low end what is left is the bag's choice of colours. Two
# limits: 15, chosen at 20, 10 and 5, is the largest size tried (at 10, 21 has a 3 % lower error),
# and a bag of another number of patches, as the 2,048 of the laptop profile, was not calibrated.
PATCH_SIZES: Table = ((80.0, 1), (40.0, 3), (20.0, 15), (10.0, 15), (5.0, 15), (3.0, 11), (2.0, 9),
                      (1.0, 5), (0.6, 5), (0.3, 3), (0.15, 3), (0.06, 1), (0.02, 1), (0.005, 1))
SIZES = (1, 3, 5, 7, 9, 11, 15)
LEAST = 1e-6  # sigma; at less, squared distances over its square would leave float32
_LOGITS = 1 << 21  # entries of a block of the softmax: 8 MB, kept in the processor's cache


class LocalEquivariantDenoiser:
    """The equivariant local score machine ("ELS") of Kamb & Ganguli as D(u, sigma) -> x0_hat.

    For pixel p with neighbourhood u_p [C k²] and the bag of training patches b_i with centres c_i

        D(u; σ)_p = Σ_i softmax_i( -‖m_p (u_p - b_i)‖² / 2σ² ) c_i

    Two choices. The patches are a seeded random bag of `patches`, at positions where the whole
    patch lies inside its image, instead of all of them. At a border, m_p drops the pixels outside
    the image: the exact posterior mean given the visible part (Kamb & Ganguli's other variant, zero
    padding, would tell a pixel where it is). So D commutes with every shift wherever the patch lies
    inside the image.

    images: the training set; table: (σ, odd patch size) pairs, the nearest in log σ is used; the
    default was measured with 8,192 patches, see `calibrate`. At σ = 0, and below LEAST, the answer
    is the limit, the centre of the nearest patch.
    Raises UserError for no patches, an empty table or a σ of it that is not above 0, and for patch
    sizes that are even or larger than the images.
    """

    def __init__(self, images: Images, patches: int = 8192, table: Table = PATCH_SIZES,
                 seed: int = 0, device: str = "cpu"):
        if patches < 1:
            raise UserError(f"the local score needs at least one patch, not {patches}")
        if not table or not all(sigma > 0 for sigma, _ in table):
            raise UserError("the local score's table needs at least one (sigma, patch size), every "
                            f"sigma above 0: it is {table}")
        _check(images, (size for _, size in table))
        self.images, self.patches, self.table = images, patches, table
        self.seed, self.device = seed, torch.device(device)
        self.bag = lru_cache(maxsize=None)(self._bag)

    def size(self, sigma: float) -> int:
        """The patch size used at `sigma`."""
        log = torch.tensor([s for s, _ in self.table]).log()
        here = torch.tensor(max(float(sigma), LEAST)).log()
        return self.table[int((log - here).abs().argmin())][1]

    @torch.no_grad()
    def __call__(self, u: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """u [B, C, H, W], sigma a scalar or [B] -> x0_hat [B, C, H, W]; labels are ignored."""
        sigmas = torch.as_tensor(sigma, dtype=torch.float64).expand(len(u)).tolist()
        out = torch.empty_like(u)
        for sigma in dict.fromkeys(sigmas):
            rows = [k for k, s in enumerate(sigmas) if s == sigma]
            out[rows] = self._denoise(u[rows].float(), sigma).to(u)
        return out

    def _denoise(self, u: Tensor, sigma: float) -> Tensor:
        """One σ for all: queries @ patches by blocks, then softmax, which subtracts the maximum."""
        size, sigma = self.size(sigma), max(sigma, LEAST)
        patches, centres = self.bag(size)
        penalty = _visible_norms(patches, size, u.shape[2:]) / (-2 * sigma**2)
        step = max(1, _LOGITS // len(patches))
        out = torch.empty(len(u), u[0, 0].numel(), u.shape[1], device=self.device)
        for image, answer in zip(u.to(self.device), out):
            queries = _unfold(image[None], size)[0]
            for k in range(0, len(queries), step):
                logits = torch.addmm(penalty[k:k + step], queries[k:k + step], patches.T,
                                     alpha=sigma**-2)
                answer[k:k + step] = logits.softmax(1) @ centres
        return out.transpose(1, 2).reshape(u.shape)

    def _bag(self, size: int) -> tuple[Tensor, Tensor]:
        """Random whole patches [P, C size²] (channel, row, column order) and centres [P, C]."""
        pixels = self.images.pixels
        channels, height, width = pixels.shape[1:]
        generator = stream("local-score", self.seed, size)

        def draw(bound: int) -> Tensor:
            return torch.randint(bound, (self.patches, 1, 1, 1), generator=generator)

        within = torch.arange(size)
        image, row, column = draw(len(pixels)), draw(height - size + 1), draw(width - size + 1)
        picked = pixels[image, torch.arange(channels)[:, None, None], row + within[:, None],
                        column + within]
        picked = to_unit(picked).to(self.device)
        return picked.flatten(1), picked[:, :, size // 2, size // 2].contiguous()


def _unfold(x: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> every pixel's zero-padded neighbourhood [B, H W, C size²]."""
    return F.unfold(x, size, padding=size // 2).transpose(1, 2)


def _visible_norms(patches: Tensor, size: int, shape: torch.Size) -> Tensor:
    """‖m_p b_i‖² for every pixel p and patch i: [H W, P], m_p the part of a patch in the image."""
    mask = _unfold(torch.ones(1, 1, *shape, device=patches.device), size)[0]
    return mask @ patches.unflatten(1, (-1, size**2)).square().sum(1).T


def _check(images: Images, sizes: Sequence[int]) -> None:
    limit = min(images.pixels.shape[2:])
    for size in sizes:
        if size % 2 == 0 or not 1 <= size <= limit:
            raise UserError(f"patch size {size} cannot be used with {images.name}: "
                            f"choose an odd size from 1 to {limit}")


# --- calibration --------------------------------------------------------------------------------


def denoising_errors(images: Images, held_out: Images, sigmas: Sequence[float],
                     sizes: Sequence[int] = SIZES, patches: int = 8192, seed: int = 0) -> Tensor:
    """Mean squared denoising error on `held_out` for each sigma and patch size.

    Returns [len(sigmas), len(sizes)]. Every size sees the same noise: one draw per held-out
    image, scaled by sigma.
    """
    clean = to_unit(held_out.pixels)
    noise = torch.randn(clean.shape, generator=stream("local-score", seed, "calibration"))
    machines = [LocalEquivariantDenoiser(images, patches, ((1.0, size),), seed) for size in sizes]
    return torch.tensor([[F.mse_loss(machine(clean + sigma * noise, sigma), clean).item()
                          for machine in machines] for sigma in sigmas])


def calibrate(images: Images, held_out: Images, sigmas: Sequence[float],
              sizes: Sequence[int] = SIZES, patches: int = 8192, seed: int = 0,
              tolerance: float = 0.01) -> Table:
    """For each sigma, the smallest of `sizes` (ascending) whose error is within `tolerance` of the
    least: (sigma, size) pairs for LocalEquivariantDenoiser's `table`.

    The error is that of denoising held-out real images; no network is involved (Kamb & Ganguli
    calibrate on a trained one). tolerance=0 gives the size of least error.
    """
    errors = denoising_errors(images, held_out, sigmas, sizes, patches, seed)
    good = errors <= (1 + tolerance) * errors.amin(1, keepdim=True)
    return tuple((sigma, sizes[k]) for sigma, k in zip(sigmas, good.int().argmax(1).tolist()))
