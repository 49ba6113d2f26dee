"""Measurement operators of inverse problems: y = A(x) + noise, x [B, C, H, W] in [-1, 1].

What is random in an operator (a mask, a kernel) and the measurement noise are drawn once an image,
from streams of their own, so that every model sees the same measurement. An operator is anything
with a method A(x) -> y that torch can differentiate, as a physics object of deepinv, or itself such
a function or module. `measure` makes a measurement of images, `measured` one of a y of your own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from paper_utils.errors import UserError, choose
from paper_utils.noise import NoiseBank, seed_of, stream
from paper_utils.precision import exact

LARGEST = 10.0  # no image in [-1, 1] reaches it, nor do normal numbers; 8-bit pixels do


class WithA(Protocol):
    """What deepinv's physics objects have."""

    def A(self, x: Tensor) -> Tensor:  # the literature's name, and deepinv's
        ...


Physics = WithA | Callable[[Tensor], Tensor]  # what this project takes for a measurement operator


@dataclass(frozen=True)
class Operator:
    """An operator of this project.

    forward: (images [B, C, H, W], state of each image or None) -> measurements [B, ...]; state:
    what was drawn for each image, [n, ...], image k's in row k; fits: raises UserError for a shape
    [C, H, W] it is not made for.
    """

    name: str
    forward: Callable[[Tensor, Tensor | None], Tensor]
    state: Tensor | None = None
    fits: Callable[[tuple[int, ...]], None] = lambda shape: None

    def A(self, x: Tensor) -> Tensor:
        """The noiseless measurement of x [B, C, H, W]; UserError for images it does not fit."""
        self.fits(tuple(x.shape[1:]))
        if self.state is not None and len(x) != len(self.state):
            raise UserError(f"{self.name} was drawn for {len(self.state)} images and got {len(x)}: "
                            "take the rows of both, operator.rows(which)")
        return self.forward(x, None if self.state is None else self.state.to(x))

    def rows(self, which: slice | Tensor) -> "Operator":
        """The same operator for these of its images, by number."""
        state = None if self.state is None else self.state[which]
        return Operator(self.name, self.forward, state, self.fits)


def applied(operator: Physics, x: Tensor) -> Tensor:
    """A(x), looked at: anybody's function may stand here.

    Raises UserError where operator and images do not fit, and for an answer that is no tensor of
    real numbers [n, ...].
    """
    A, name = getattr(operator, "A", operator), name_of(operator)
    if not callable(A):
        raise UserError(f"an operator has a method A(x), or is a function of x, and {name} is not")
    try:
        y = A(x)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        if x.requires_grad and "numpy" in str(error):
            raise without_gradient(operator) from None
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} does not fit images of shape {tuple(x.shape)}, {x.dtype} on "
                        f"{x.device}: {said}") from None
    real = isinstance(y, Tensor) and y.is_floating_point()
    if not (real and y.ndim > 1 and len(y) == len(x)):
        found = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"an operator answers with a tensor of real floats [{len(x)}, ...] here, "
                        f"and {name} with {found}: of complex ones give torch.view_as_real")
    return y


def name_of(operator: Physics) -> str:
    """As messages have it: the operator's name, or that of the function or class."""
    own = getattr(operator, "name", None) or getattr(operator, "__name__", None)
    return own or type(operator).__name__


def without_gradient(operator: Physics) -> UserError:
    """To be raised where A(x) cannot guide."""
    return UserError(f"Algorithm 1 follows the gradient of A(x), and {name_of(operator)} has none: "
                     "compute it by torch alone, without numpy, detach, no_grad or rounding")


def fingerprint(operator: Physics, shape: tuple[int, ...],
                like: Tensor = torch.empty(0)) -> Tensor:
    """What the operator does, one number an image [n]: A(a seeded probe) against a seeded normal.

    shape: of the images it measures, [n, C, H, W]; like: of their type and on their device. The
    same for any two objects that measure alike, whatever their class; compared up to rounding, so
    it does not depend on the machine.
    """
    return _projected(_probed(operator, shape, like))


@exact()
@torch.no_grad()
def _probed(operator: Physics, shape: tuple[int, ...], like: Tensor) -> Tensor:
    probe = torch.rand(shape[1:], generator=stream("operator probe")) * 2 - 1
    return applied(operator, probe.to(like).expand(shape))


def _projected(y: Tensor) -> Tensor:
    y = y.flatten(1).double()
    normal = torch.randn(y.shape[1], generator=stream("fingerprint"), dtype=torch.float64)
    return y @ normal.to(y) / y.shape[1] ** 0.5


# --- the operators ------------------------------------------------------------------------------

def random_inpainting(n: int, drop: float, side: int = 32, seed: int = 0) -> Operator:
    """A share `drop` of the pixels is lost, others in each of n images; lost ones measure 0."""
    if not 0 <= drop <= 1:
        raise UserError(f"random inpainting with {drop:g}: give the share of pixels that is lost, "
                        "over 0 and under 1")
    lost = round(drop * side**2)
    order = _each(n, lambda k: torch.randperm(side**2, generator=stream("pixels", seed, k)))
    mask = torch.ones(n, side**2).scatter_(1, order[:, :lost], 0)
    return _masked(f"random inpainting, {drop:.0%} lost", mask.view(n, 1, side, side))


def box_inpainting(n: int, box: float, side: int = 32, seed: int = 0) -> Operator:
    """A square of `box` x `box` pixels is lost, elsewhere in each of n images."""
    box = _whole(box, "box inpainting", "the side of the box in pixels")
    corner = _each(n, lambda k: torch.randint(0, max(side - box, 0) + 1, (2,),
                                              generator=stream("box", seed, k)))
    offset = torch.arange(side) - corner[..., None]
    inside = (offset >= 0) & (offset < box)
    mask = ~(inside[:, 0, :, None] & inside[:, 1, None, :])
    return _masked(f"box inpainting, {box} x {box} lost", mask[:, None].float())


def _each(n: int, draw: Callable[[int], Tensor]) -> Tensor:
    if n < 1:
        raise UserError(f"an operator for {n} images: give at least 1")
    return torch.stack([draw(k) for k in range(n)])


def _masked(name: str, mask: Tensor) -> Operator:
    kept = mask.mean((1, 2, 3))
    if not 0 < kept.min() or not kept.max() < 1:
        which = "nothing" if kept.max() == 1 else "everything"
        raise UserError(f"{name}: this mask drops {which}; it must keep some pixels of "
                        f"{mask.shape[-1]} x {mask.shape[-1]} and drop some")
    return Operator(name, lambda x, mask: x * mask, mask, _square(mask.shape[-1], name))


def _whole(level: float, what: str, wanted: str) -> int:
    if not float(level).is_integer():
        raise UserError(f"{what} with {level:g}: give a whole number, {wanted}")
    return int(level)


def super_resolution(n: int, factor: float, side: int = 32, seed: int = 0) -> Operator:
    """Bicubic reduction to 1/factor of the side, as in DPS (Chung et al. 2023)."""
    factor = _whole(factor, "super-resolution", f"a divisor of {side} that is over 1")
    if factor < 2 or side % factor:
        raise UserError(f"super-resolution by {factor}: give a divisor of {side} that is over 1")
    small = side // factor

    def reduce(x: Tensor, state: None) -> Tensor:
        return F.interpolate(x, (small, small), mode="bicubic", antialias=True)

    name = f"super-resolution, {factor}x"
    return Operator(name, reduce, None, _square(side, name))


def gaussian_blur(n: int, deviation: float, side: int = 32, seed: int = 0) -> Operator:
    """Convolution with a Gaussian of that deviation in pixels; the border is reflected."""
    if not 0 < deviation <= side / 8:
        raise UserError(f"Gaussian blur of {deviation:g} pixels: give a deviation over 0, up to "
                        f"{side / 8:g} for images of {side} x {side}")
    reach = min(int(4 * deviation) + 1, side // 2)
    line = torch.exp(-torch.arange(-reach, reach + 1).double()**2 / (2 * deviation**2))
    kernel = (line[:, None] * line).expand(n, -1, -1)
    return _convolution(f"Gaussian blur, {deviation:g} px", kernel, side)


def motion_blur(n: int, length: float, side: int = 32, seed: int = 0) -> Operator:
    """Smears along a random curve of `length` pixels, another in each of n images."""
    if not 2 <= length <= side // 2:
        raise UserError(f"motion blur of {length:g} pixels: give a length from 2 to {side // 2}")
    kernels = _each(n, lambda k: _curve(length, stream("motion", seed, k)))
    return _convolution(f"motion blur, {length:g} px", kernels, side)


def _curve(length: float, rng: torch.Generator, points: int = 64) -> Tensor:
    """A path that turns at random, drawn with bilinear weights: [2 reach + 1, 2 reach + 1]."""
    turns = torch.randn(points, generator=rng, dtype=torch.float64) * (2 / points**0.5)
    angle = torch.rand(1, generator=rng, dtype=torch.float64) * 2 * torch.pi + turns.cumsum(0)
    path = torch.stack([angle.cos(), angle.sin()], 1).cumsum(0) * (length / points)
    path = path - path.mean(0)
    reach = int(length) // 2 + 1
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cell = path.floor() + torch.tensor(corner)
        weight = (1 - (path - cell).abs()).prod(1)
        row, column = (cell.long() + reach).unbind(1)
        kernel.index_put_((row, column), weight, accumulate=True)
    return kernel


def _convolution(name: str, kernels: Tensor, side: int) -> Operator:
    """Every image with its own kernel [n, k, k], normalized here; the border is reflected.

    As in networks, the kernel is not flipped.
    """
    kernels = (kernels / kernels.sum((1, 2), keepdim=True)).float()
    reach = kernels.shape[-1] // 2

    def blur(x: Tensor, kernels: Tensor) -> Tensor:
        n, channels = x.shape[:2]
        padded = F.pad(x, [reach] * 4, mode="reflect").flatten(0, 1)[None]
        weight = kernels.repeat_interleave(channels, 0)[:, None]
        return F.conv2d(padded, weight, groups=n * channels)[0].unflatten(0, (n, channels))

    return Operator(name, blur, kernels, _square(side, name))


def high_dynamic_range(n: int, gain: float, side: int = 32, seed: int = 0) -> Operator:
    """An overexposed photograph, not linear: gain * x, clipped to [-1, 1]."""
    if not 1 < gain < float("inf"):
        raise UserError(f"high dynamic range with gain {gain:g}: give a gain over 1, which clips")
    name = f"high dynamic range, gain {gain:g}"
    return Operator(name, lambda x, state: (gain * x).clamp(-1, 1), None, _square(side, name))


def _square(side: int, name: str) -> Callable[[tuple[int, ...]], None]:
    def check(shape: tuple[int, ...]) -> None:
        if shape[1:] != (side, side):
            raise UserError(f"{name} is made for square images, of {side} x {side}, and got "
                            f"{' x '.join(map(str, shape[1:]))}")
    return check


OPERATORS: dict[str, Callable[..., Operator]] = {
    "random-inpainting": random_inpainting, "box-inpainting": box_inpainting,
    "super-resolution": super_resolution, "gaussian-blur": gaussian_blur,
    "motion-blur": motion_blur, "high-dynamic-range": high_dynamic_range,
}
TITLES = {  # with the level {0:g}, or a hundred times it
    "random-inpainting": "random inpainting {1:g}%", "box-inpainting": "box inpainting {0:g} px",
    "super-resolution": "super-resolution {0:g}x", "gaussian-blur": "Gaussian blur {0:g} px",
    "motion-blur": "motion blur {0:g} px", "high-dynamic-range": "high dynamic range {0:g}x",
}


# --- measurements -------------------------------------------------------------------------------

def _check_sigma(sigma: float) -> None:
    if not (isinstance(sigma, Real) and 0 <= sigma < float("inf")):
        raise UserError(f"measurement noise {sigma}: give a deviation from 0 up")


@dataclass(frozen=True)
class Task:
    """An inverse problem: an operator of OPERATORS, how hard, and the noise of the measurement.

    level: what the operator takes (share of pixels lost, side of the box, factor, deviation, length
    or gain); sigma: deviation of the noise on the scale [-1, 1], .05 in DPS (Chung et al. 2023).
    """

    operator: str
    level: float
    sigma: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        choose(self.operator, OPERATORS, "operator")
        _check_sigma(self.sigma)

    @property
    def name(self) -> str:
        """As figures and tables have it, say 'random inpainting 70%'."""
        return TITLES[self.operator].format(self.level, 100 * self.level)

    def build(self, n: int, side: int = 32) -> Operator:
        """The operator for n images; UserError for a level it cannot have."""
        return OPERATORS[self.operator](n, self.level, side, self.seed)


@dataclass(frozen=True)
class Measurement:
    """y [n, ...] and what made it: the fingerprint of the operator [n], the noise's deviation.

    Raises UserError unless they are finite numbers of at least one image.
    """

    y: Tensor
    operator: Tensor
    sigma: float

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Tensor):
            raise UserError("a Measurement holds the fingerprint of its operator: make one of your "
                            "y by operators.measured(y, operator, shape, sigma)")
        known = isinstance(self.y, Tensor) and self.y.is_floating_point()
        if not (known and self.y.ndim > 1 and len(self.y)):
            found = self.y.dtype if isinstance(self.y, Tensor) else type(self.y).__name__
            raise UserError(f"y is a tensor of real floats [n, ...], n at least 1, and not {found}"
                            f"{list(getattr(self.y, 'shape', []))}: of complex ones give "
                            "torch.view_as_real")
        if not self.y.isfinite().all():
            raise UserError("y has numbers that are not finite: where nothing was measured give "
                            "what the operator answers there, as 0")
        _check_sigma(self.sigma)

    def to(self, device: str | torch.device) -> "Measurement":
        """The same on a device."""
        return replace(self, y=self.y.to(device), operator=self.operator.to(device))

    def check(self, operator: Physics, shape: tuple[int, ...]) -> None:
        """UserError unless `operator` made this measurement, of images of that shape [n, C, H, W].
        """
        made, name = _probed(operator, shape, self.y), name_of(operator)
        if made.shape != self.y.shape:
            raise UserError(f"y is {list(self.y.shape)}, and of images {list(shape)} {name} makes "
                            f"{list(made.shape)}: give y in that shape, with 0 where it is lost")
        if not torch.allclose(found := _projected(made), self.operator.to(found), atol=1e-3):
            raise UserError(f"this measurement was made by another operator than {name} (other "
                            "pixels, kernel or level): reconstruct with the operator that measured")


@torch.no_grad()
def measure(images: Tensor, operator: Physics, sigma: float = 0.05, seed: int = 0) -> Measurement:
    """A(x) + sigma * noise of images [n, C, H, W] in [-1, 1]; image k's noise depends on (seed, k).

    Where A loses a pixel, y is noise alone; see inverse.guide for what that does. Raises UserError
    where operator and images do not fit, for other images and a sigma under 0.
    """
    known = isinstance(images, Tensor) and images.is_floating_point()
    if not (known and images.ndim == 4 and len(images)):
        raise UserError("what is measured are float images [n, C, H, W] in [-1, 1], at least one: "
                        "convert 8-bit pixels by data.to_unit")
    if not (largest := images.abs().max()) < LARGEST:
        raise UserError(f"images are in [-1, 1] and these reach {largest:g}: bring pixels from 0 "
                        "to 255 there by x / 127.5 - 1")
    _check_sigma(sigma)
    y = applied(operator, images)
    noise = NoiseBank(seed_of("measurement", seed), tuple(y.shape[1:]))[:len(y)]
    return Measurement(y + sigma * noise.to(y), fingerprint(operator, images.shape, images), sigma)


def measured(y: Tensor, operator: Physics, shape: tuple[int, ...],
             sigma: float = 0.05) -> Measurement:
    """A y of your own [n, ...] as the measurement by `operator` of images of `shape` [n, C, H, W].

    sigma: the deviation of its noise, which Algorithm 1 does not use. Raises UserError unless y has
    the shape that the operator makes of such images.
    """
    if len(shape) != 4:
        raise UserError(f"the shape of the images is [n, C, H, W], not {list(shape)}")
    found = Measurement(y, torch.empty(0), sigma)
    found = replace(found, operator=fingerprint(operator, shape, y))
    found.check(operator, shape)
    return found
