"""GANs and VAEs fed the same noises as the diffusion models: they do not share reproducibility.

The paper (Zhang et al., ICML 2024) states that GANs and VAEs lack the property and does not name
the models it looked at; the architectures and sizes here are this project's choice. The latent of
noise k is the noise itself seen through one fixed linear map, so every model of the project, of
whatever kind, is a function of the same `NoiseBank` entry.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import ceil, prod
from numbers import Integral, Real
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from paper_utils import training
from paper_utils.artifacts import below, load_tensors, save
from paper_utils.data import Images, to_unit
from paper_utils.errors import UserError, check_numbers, choose
from paper_utils.files import replace_file
from paper_utils.noise import seed_of, stream
from paper_utils.precision import bf16, exact

LATENT = 128
SHAPE = (3, 32, 32)
DECODER_STD = 0.5  # of a VAE, on the [-1, 1] scale
KINDS = ("gan", "vae")
PRECISIONS = ("float32", "bfloat16")

State = dict[str, Tensor]


@dataclass(frozen=True)
class Spec:
    """Everything that decides a contrast model's weights, next to its training images.

    kind: 'gan' or 'vae'; width: channels at 16x16; images_seen: training images, counted with
    repetition; lr: of Adam; ema_images: half-life of the weight average in images; precision: of
    the convolutions in training (sampling is always float32).
    """

    kind: str
    width: int
    images_seen: int
    batch: int = 64
    lr: float = 2e-4
    ema_images: int = 20_000
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        choose(self.kind, KINDS, "kind of contrast model")
        choose(self.precision, PRECISIONS, "precision")
        check_numbers(f"a {self.kind}", Integral, width=self.width, images_seen=self.images_seen,
                      batch=self.batch)
        check_numbers(f"a {self.kind}", Real, lr=self.lr, ema_images=self.ema_images)

    @property
    def run(self) -> str:
        """The name of this training's random streams; images_seen is left out, so more of the
        same training is the same training."""
        return f"contrast-{self.kind}-{self.width}-{self.batch}-{self.lr}-{self.seed}"

    @property
    def steps(self) -> int:
        return ceil(self.images_seen / self.batch)


PRESETS = {
    "gan-32": Spec("gan", 32, 320_000, precision="bfloat16"),
    "gan-64": Spec("gan", 64, 192_000, precision="bfloat16"),
    "vae-32": Spec("vae", 32, 160_000, lr=1e-3, precision="bfloat16"),
    "vae-64": Spec("vae", 64, 96_000, lr=3e-4, precision="bfloat16"),
}


# --- the shared latent --------------------------------------------------------------------------


@lru_cache(maxsize=1)
def projection() -> Tensor:
    """The map from noise to latent: float32 [128, 3072], orthonormal rows, the same for all.

    The Q factor of a normal matrix drawn from a stream of its own, signs fixed by R's diagonal
    (Mezzadri 2007: uniform over orthonormal frames), so z = P ε is N(0, I_128) when ε is N(0, I).
    """
    generator = stream("contrast", "projection")
    normal = torch.randn(prod(SHAPE), LATENT, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    return (q * r.diagonal().sign()).T.float().contiguous()


def project(noise: Tensor) -> Tensor:
    """noise [B, 3, 32, 32] -> latent [B, 128] on the same device.

    Raises UserError for noise of another shape.
    """
    if tuple(noise.shape[1:]) != SHAPE:
        raise UserError(f"contrast models take noise of shape [B, 3, 32, 32], "
                        f"not {list(noise.shape)}: use NoiseBank(shape=(3, 32, 32))")
    return noise.flatten(1).float() @ projection().to(noise.device).T


@torch.no_grad()
def sample(model: nn.Module, noise: Tensor) -> Tensor:
    """The images of `noise`: [B, 3, 32, 32] -> [B, 3, 32, 32] in [-1, 1]; a VAE's decoder mean.

    Runs in evaluation mode, where an image does not depend on the others of its batch.
    Raises UserError for noise of another shape.
    """
    device = next(model.parameters()).device
    with exact():
        return model.eval()(project(noise).to(device))


# --- networks -----------------------------------------------------------------------------------


class Generator(nn.Module):
    """DCGAN's generator (Radford et al. 2016) for 32x32: latent [B, 128] -> image in [-1, 1]."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(LATENT, 4 * width * 16)
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(4 * width), nn.ReLU(),
            *_up(4 * width, 2 * width), *_up(2 * width, width),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.blocks(self.dense(z).unflatten(1, (-1, 4, 4))).float()


class Discriminator(nn.Module):
    """DCGAN's discriminator, every layer spectrally normalised (Miyato et al. 2018)."""

    def __init__(self, width: int):
        super().__init__()
        convolutions = [nn.Conv2d(a, b, 4, 2, 1) for a, b in _down(width)]
        layers = [layer for conv in convolutions for layer in (spectral_norm(conv), _leaky())]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), spectral_norm(nn.Linear(4 * width * 16, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1).float()


class VAE(nn.Module):
    """A convolutional VAE (Kingma & Welling 2014) whose decoder is the GAN's generator.

    forward(z) is the decoder mean; encode(x) the posterior's mean and log variance, [B, 128] each.
    With encoder=False only the decoder exists: that is what is stored and sampled.
    """

    def __init__(self, width: int, encoder: bool = True):
        super().__init__()
        self.decoder = Generator(width)
        self.encoder = _encoder(width) if encoder else None

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(x).float().chunk(2, dim=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def _down(width: int) -> list[tuple[int, int]]:
    """Input and output channels of the three halvings, 32 -> 16 -> 8 -> 4."""
    return [(3, width), (width, 2 * width), (2 * width, 4 * width)]


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU()]


def _encoder(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in _down(width):
        layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), _leaky()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 2 * LATENT))


def build(kind: str, width: int) -> nn.Module:
    """The network that is stored and sampled, weights not yet loaded, in evaluation mode.

    kind 'gan' gives a Generator, 'vae' a VAE without encoder; both map [B, 128] to images.
    Raises UserError for another kind.
    """
    vae = choose(kind, KINDS, "kind of contrast model") == "vae"
    return (VAE(width, encoder=False) if vae else Generator(width)).eval()


# --- training -----------------------------------------------------------------------------------


def train(spec: Spec, images: Images, state: State | None = None,
          device: str = "cpu") -> Iterator[State]:
    """Train `spec` on `images`, by the loop its kind asks for: see train_gan and train_vae.

    Raises UserError for images of another size than SHAPE.
    """
    if (shape := tuple(images.pixels.shape[1:])) != SHAPE:
        raise UserError(f"contrast models make images {list(SHAPE)}, but those of {images.name} "
                        f"are {list(shape)}: resize them, and make grey ones RGB")
    loop = train_gan if spec.kind == "gan" else train_vae
    return loop(spec, images, state, device)


def train_gan(spec: Spec, images: Images, state: State | None = None,
              device: str = "cpu") -> Iterator[State]:
    """Hinge-loss GAN training (Lim & Ye 2017), one step of each player a batch, no augmentation.

    Yields the state after every step: a flat dict of tensors, live, so clone what you keep. Given
    such a state it goes on from there, on the CPU to the same bits as without the stop. `trained`
    turns a state into a model.
    """
    bench = _Bench(spec, device, generator=Generator, discriminator=Discriminator)
    generator, discriminator = bench.nets["generator"], bench.nets["discriminator"]
    for step in bench.steps(state):
        real, z = bench.draw_images(images, step), bench.draw_latent(step)
        with bench.autocast():
            fake = generator(z)
            gap = F.relu(1 - discriminator(real)).mean()
            gap = gap + F.relu(1 + discriminator(fake.detach())).mean()
        bench.descend("discriminator", gap)
        with bench.autocast():
            loss = -discriminator(fake).mean()
        bench.descend("generator", loss)
        yield bench.state(step, {"generator": loss, "discriminator": gap})


def train_vae(spec: Spec, images: Images, state: State | None = None,
              device: str = "cpu") -> Iterator[State]:
    """Maximise the evidence lower bound (Kingma & Welling 2014), Gaussian decoder of DECODER_STD.

    That is about the data's: with a tighter one the posterior leaves the prior the samples come
    from, and they lose all shape. Yields states as train_gan does; losses in nats an image.
    """
    bench = _Bench(spec, device, vae=VAE)
    vae = bench.nets["vae"]
    for step in bench.steps(state):
        real, normal = bench.draw_images(images, step), bench.draw_latent(step)
        with bench.autocast():
            mean, log_variance = vae.encode(real)
            decoded = vae(mean + (log_variance / 2).exp() * normal)
        rate = gaussian_kl(mean, log_variance).mean()
        distortion = (decoded - real).square().sum((1, 2, 3)).mean() / (2 * DECODER_STD**2)
        bench.descend("vae", rate + distortion)
        yield bench.state(step, {"rate": rate, "distortion": distortion})


def save_checkpoint(name: str, spec: Spec, images: Images, state: State, path: Path) -> None:
    """Write a state so that `load_checkpoint` gives it back; UserError, which tells the name, for
    one that has diverged, and where there is no room or no permission."""
    training.check_finite(name, state)
    replace_file(path, save(state, _made(spec, images)))


def load_checkpoint(spec: Spec, images: Images, path: Path) -> State | None:
    """The state to go on from, None where there is no such file; UserError for another training's,
    and for a damaged one."""
    if not path.exists():
        return None
    state, made = load_tensors(path)
    if made != _made(spec, images):
        raise UserError(f"checkpoint {path} belongs to another specification or other images: "
                        "give this run a folder of its own")
    return state


def _made(spec: Spec, images: Images) -> dict[str, str]:
    return {"spec": json.dumps(asdict(spec) | {"images": len(images)}), "subset": images.hash}


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) || N(0, I)) in nats: two [B, d] -> [B]."""
    return (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2


def trained(spec: Spec, state: State) -> nn.Module:
    """The averaged (EMA) generator or decoder of a training state, in evaluation mode."""
    model = build(spec.kind, spec.width)
    wanted = model.state_dict()
    model.load_state_dict({k: v for k, v in below("average.", state).items() if k in wanted})
    return model


class _Bench:
    """What both loops need: networks, an Adam each, the average of the first, named streams."""

    def __init__(self, spec: Spec, device: str, **makers: Callable[[int], nn.Module]):
        self.spec, self.device = spec, torch.device(device)
        self.nets = {name: self._net(name, make) for name, make in makers.items()}
        self.adams = {name: torch.optim.Adam(net.parameters(), spec.lr, betas=(0.5, 0.999))
                      for name, net in self.nets.items()}
        self.source = next(iter(self.nets.values())).state_dict()
        self.average = {k: v.clone() for k, v in self.source.items()}

    def _net(self, name: str, make: Callable[[int], nn.Module]) -> nn.Module:
        """A network initialised from a seed of its own; the global random state is untouched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.spec.run, "init", name))
            net = make(self.spec.width)
        return net.to(self.device, memory_format=torch.channels_last).train()

    def steps(self, state: State | None) -> range:
        """The steps still to do, after loading `state`; UserError for another model's state."""
        if state is None:
            return range(self.spec.steps)
        try:
            self._load(state)
            return range(int(state["step"]), self.spec.steps)
        except (KeyError, RuntimeError):
            raise UserError(f"this training state is not of a {self.spec.kind} of width "
                            f"{self.spec.width}: use the spec it was trained with") from None

    @torch.no_grad()
    def _load(self, state: State) -> None:
        for name, net in self.nets.items():
            net.load_state_dict(below(f"{name}.", state))
            _load_adam(self.adams[name], below(f"adam.{name}.", state))
        for key, average in self.average.items():
            average.copy_(state[f"average.{key}"])

    def draw_images(self, images: Images, step: int) -> Tensor:
        rows = torch.randint(len(images), (self.spec.batch,),
                             generator=stream(self.spec.run, "order", step))
        real = to_unit(images.pixels[rows])
        return real.to(self.device, memory_format=torch.channels_last)

    def draw_latent(self, step: int) -> Tensor:
        generator = stream(self.spec.run, "latent", step)
        return torch.randn(self.spec.batch, LATENT, generator=generator).to(self.device)

    def autocast(self):
        return bf16(self.device.type, self.spec.precision == "bfloat16")

    def descend(self, name: str, loss: Tensor) -> None:
        adam = self.adams[name]
        adam.zero_grad()
        loss.backward(inputs=list(self.nets[name].parameters()))
        adam.step()

    @torch.no_grad()
    def state(self, step: int, losses: dict[str, Tensor]) -> State:
        """Average the weights, then list everything: nets, Adams, average, losses, step."""
        self._average(step)
        state = {"step": torch.tensor(step + 1)}
        state |= {f"loss.{name}": loss.detach() for name, loss in losses.items()}
        state |= {f"average.{key}": value for key, value in self.average.items()}
        for name, net in self.nets.items():
            state |= {f"{name}.{key}": value for key, value in net.state_dict().items()}
            for index, slots in self.adams[name].state_dict()["state"].items():
                state |= {f"adam.{name}.{index}.{slot}": v for slot, v in slots.items()}
        return state

    def _average(self, step: int) -> None:
        """Exponential average of weights and batch statistics; the half-life starts short."""
        seen = (step + 1) * self.spec.batch
        half_life = min(self.spec.ema_images, 0.05 * seen)
        weight = 1 - 0.5 ** (self.spec.batch / half_life)
        for key, average in self.average.items():
            if average.is_floating_point():
                average.lerp_(self.source[key], weight)
            else:
                average.copy_(self.source[key])


def _load_adam(adam: torch.optim.Adam, flat: State) -> None:
    slots: dict[int, State] = {}
    for key, value in flat.items():
        index, slot = key.split(".")
        slots.setdefault(int(index), {})[slot] = value.clone()
    adam.load_state_dict({"state": slots, "param_groups": adam.state_dict()["param_groups"]})
