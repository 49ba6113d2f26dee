"""Networks: the score-SDE / EDM U-Nets, U-ViT, DiT and the multi-stage U-Net.

Every network is called as `network(x, noise_label, labels=None)`: x [B, C, H, W], noise_label [B]
float (whatever c_noise(sigma) gives), labels int64 [B], where `num_classes` is the null class, for
which None stands too; it returns a tensor like x. `has_null_class` tells whether it trains with
label dropout, so that the null class means something. `build(arch, **kwargs)` makes one by name.
They train fastest in channels_last, under bfloat16 autocast where the device has it
(precision.has_bf16).
"""

import inspect
import math
import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paper_utils.errors import UserError, check_numbers, choose

SQRT_HALF = math.sqrt(0.5)

# The families of Song et al. 2021 as flags, at the depth of Karras et al. 2022 (DDPM: of Ho et al.
# 2020) for CIFAR-10. `UNet(**DDPMPP, width=64)`; to change one, `UNet(**DDPMPP | {"blocks": 2})`.
DDPM = dict(channel_mult=(1, 2, 2, 2), blocks=2, attention=(16,), resampling="conv",
            decoder_attention="all", skip_scale=1.0)
DDPMPP = dict(channel_mult=(2, 2, 2), blocks=4, attention=(16,), skip_scale=SQRT_HALF)
NCSNPP = dict(channel_mult=(2, 2, 2), blocks=4, attention=(16,), skip_scale=SQRT_HALF,
              embedding="fourier", channel_mult_noise=2, encoder="residual", taps=(1, 3, 3, 1))


# ---------------------------------------------------------------------------------------------
# Pieces shared by all networks

def xavier(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """Glorot-uniform weight times `gain` (0: a zero layer), zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain) if gain else nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def linear(inputs: int, outputs: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer initialised as the U-Nets' are, see `xavier`."""
    return xavier(nn.Linear(inputs, outputs, bias=bias), gain)


def conv(inputs: int, outputs: int, kernel: int = 3, gain: float = 1.0, **kwargs) -> nn.Conv2d:
    """A convolution that keeps the size, initialised as the U-Nets' are, see `xavier`."""
    return xavier(nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **kwargs}), gain)


class GroupNorm(nn.GroupNorm):
    """Group norm in the precision of its weights; in bfloat16 channels_last the CPU kernel is 5x
    slower.

    On a CPU, where the weight trains but nothing before it, the input must ask for a gradient all
    the same: torch's channels_last kernel crashes without (seen with torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(self.weight.dtype)
        trains = self.weight.requires_grad and torch.is_grad_enabled()
        if wide.device.type == "cpu" and trains and not wide.requires_grad:
            wide = wide.detach().requires_grad_()
        return super().forward(wide).to(x.dtype)


def group_norm(channels: int) -> GroupNorm:
    """Groups of at least 4 channels, at most 32 groups, as in SongUNet.

    Raises UserError where the channels do not divide into them.
    """
    groups = min(32, max(1, channels // 4))
    if channels % groups:
        raise UserError(f"a layer of {channels} channels does not divide into {groups} groups: "
                        "choose another width (multiples of 32 fit on every level)")
    return GroupNorm(groups, channels, eps=1e-6)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Multi-head softmax attention. qkv [B, L, 3*D] ordered (which, head, channel) -> [B, L, D]."""
    batch, length, width = qkv.shape
    q, k, v = qkv.view(batch, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16  # the fused CPU kernel is 5x slower
    core = softmax_attention if slow else F.scaled_dot_product_attention
    return core(q, k, v).transpose(1, 2).reshape(batch, length, width // 3)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, for q, k, v [..., L, d]."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v


def geometric_frequencies(dim: int, endpoint: bool = False) -> Tensor:
    """[dim/2] angular frequencies from 1 down to 1e-4 (reached only with `endpoint`)."""
    half = dim // 2
    return 10000.0 ** (-torch.arange(half, dtype=torch.float32) / (half - endpoint))


def waves(t: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of t [B] at frequencies [K]: two [B, K] tensors, float32 or as wide as those."""
    angles = t.float()[:, None] * frequencies
    return angles.cos(), angles.sin()


class Labels(nn.Module):
    """Class labels [B]; null where None was given and, in training, for a random part of them."""

    def __init__(self, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.null, self.dropout = num_classes, dropout

    def forward(self, labels: Tensor | None, like: Tensor) -> Tensor:
        if labels is None:
            return torch.full((len(like),), self.null, device=like.device)
        if not (self.training and self.dropout):
            return labels
        lost = torch.rand(labels.shape, device=like.device) < self.dropout
        return labels.masked_fill(lost, self.null)


def count_parameters(network: nn.Module) -> int:
    """Number of scalars in the parameters, trained or frozen."""
    return sum(p.numel() for p in network.parameters())


def load_into(network: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load a state dict, which came from `where`; UserError when it is of another architecture."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        mine, theirs = network.state_dict(), set(tensors)
        odd = sorted(set(mine) ^ theirs) or sorted(
            k for k in mine if mine[k].shape != tensors[k].shape)
        raise UserError(f"{where} belongs to another architecture than {type(network).__name__} "
                        f"(first difference: {odd[0]})") from None


# ---------------------------------------------------------------------------------------------
# U-Net

class Resample(nn.Module):
    """Halve or double the resolution with a separable filter: (1, 1) box, (1, 3, 3, 1) FIR."""

    def __init__(self, direction: str, taps: tuple[int, ...] = (1, 1), padding: int | None = None):
        super().__init__()
        self.up, self.box = direction == "up", tuple(taps) == (1, 1)
        self.padding = (len(taps) - 1) // 2 if padding is None else padding
        f = torch.tensor(taps, dtype=torch.float32)
        f = f / f.sum() * (2 if self.up else 1)
        self.register_buffer("kernel", torch.outer(f, f)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return F.interpolate(x, scale_factor=2.0) if self.up else F.avg_pool2d(x, 2)
        apply = F.conv_transpose2d if self.up else F.conv2d
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        return apply(x, kernel, stride=2, padding=self.padding, groups=channels)


class ResampleConv(nn.Module):
    """DDPM's change of resolution: a strided 3x3 convolution, or nearest neighbour, then 3x3."""

    def __init__(self, channels: int, direction: str):
        super().__init__()
        self.up = direction == "up"
        self.conv = conv(channels, channels, stride=1 if self.up else 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else x)


class Block(nn.Module):
    """Residual block (BigGAN style when it resamples), shifted by the embedding, then attention.

    Attention has one head.
    """

    def __init__(self, inputs: int, outputs: int, *, embedding: int, resample: str = "",
                 attention: bool = False, dropout: float = 0.0, skip_scale: float = 1.0,
                 taps: tuple[int, ...] = (1, 1)):
        super().__init__()
        self.dropout, self.skip_scale = dropout, skip_scale
        self.resample = Resample(resample, taps) if resample else nn.Identity()
        self.norm0, self.conv0 = group_norm(inputs), conv(inputs, outputs)
        self.affine = linear(embedding, outputs)
        self.norm1, self.conv1 = group_norm(outputs), conv(outputs, outputs, gain=0.0)
        self.skip = conv(inputs, outputs, 1) if resample or inputs != outputs else nn.Identity()
        self.attention = attention
        if attention:
            self.norm2 = group_norm(outputs)
            self.qkv = linear(outputs, 3 * outputs, gain=math.sqrt(0.2))
            self.proj = linear(outputs, outputs, gain=0.0)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training) if self.dropout else h)
        x = self.join(self.skip(self.resample(x)), h)
        return self.join(x, self.attend(x)) if self.attention else x

    def join(self, x: Tensor, h: Tensor) -> Tensor:
        return (x + h).mul_(self.skip_scale) if self.skip_scale != 1 else x + h

    def attend(self, x: Tensor) -> Tensor:
        tokens = self.norm2(x).flatten(2).transpose(1, 2)
        h = self.proj(attend(self.qkv(tokens), 1))
        return h.transpose(1, 2).unflatten(2, x.shape[2:])


class Embedding(nn.Module):
    """Noise level, class and augmentation vector -> one vector [B, outputs] for all blocks."""

    def __init__(self, kind: str, noise: int, outputs: int, num_classes: int, augment_dim: int,
                 label_dropout: float):
        super().__init__()
        fourier = kind == "fourier"
        freqs = geometric_frequencies(noise, endpoint=True)
        freqs = torch.randn_like(freqs) * 16 * 2 * math.pi if fourier else freqs
        self.register_buffer("freqs", freqs, persistent=fourier)
        self.num_classes, self.labels = num_classes, Labels(num_classes, label_dropout)
        self.label = linear(num_classes, noise) if num_classes else None
        self.augment = linear(augment_dim, noise, bias=False) if augment_dim else None
        self.layer0, self.layer1 = linear(noise, outputs), linear(outputs, outputs)

    def forward(self, noise_label: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        cos, sin = waves(noise_label, self.freqs)
        emb = torch.cat([sin, cos], 1).to(self.layer0.bias.dtype)
        if self.label is not None:
            labels = self.labels(labels, noise_label)
            one_hot = F.one_hot(labels, self.num_classes + 1)[:, :-1].to(emb.dtype)
            emb = emb + self.label(one_hot * math.sqrt(self.num_classes))
        if self.augment is not None and augment is not None:
            emb = emb + self.augment(augment)
        return F.silu(self.layer1(F.silu(self.layer0(emb))))


@dataclass(frozen=True)
class UNetFlags:
    """The U-Net family of Song et al. 2021 and Karras et al. 2022 (SongUNet), one flag per choice.

    Widths are `width * channel_mult[level]`; `attention` lists the resolutions with attention,
    measured after the space-to-depth by `patch`. Raises UserError where the flags do not fit
    together.
    """

    image_size: int = 32
    channels: int = 3
    width: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4                     # residual blocks per level; the decoder has one more
    attention: tuple[int, ...] = (16,)
    num_classes: int = 0
    dropout: float = 0.0
    label_dropout: float = 0.0
    embedding: str = "positional"       # or "fourier"
    channel_mult_noise: int = 1         # length of the noise embedding / width
    encoder: str = "standard"           # or "residual": the image enters again at every level
    decoder_attention: str = "last"     # or "all": the decoder blocks of a level that attend
    resampling: str = "block"           # or "conv", as in DDPM
    taps: tuple[int, ...] = (1, 1)      # resampling filter
    skip_scale: float = SQRT_HALF
    augment_dim: int = 0
    patch: int = 1

    def __post_init__(self) -> None:
        choose(self.embedding, ("positional", "fourier"), "embedding")
        choose(self.encoder, ("standard", "residual"), "encoder")
        choose(self.decoder_attention, ("last", "all"), "decoder_attention")
        choose(self.resampling, ("block", "conv"), "resampling")
        check_numbers("a U-Net", Integral, image_size=self.image_size, channels=self.channels,
                      width=self.width, patch=self.patch,
                      channel_mult_noise=self.channel_mult_noise)
        if (noise := self.width * self.channel_mult_noise) % 2 or noise < 4:
            raise UserError(f"width={self.width} of a U-Net: give an even number from 4 up")
        divisor = self.patch * 2 ** (len(self.channel_mult) - 1)
        if self.image_size % divisor:
            raise UserError(f"image_size {self.image_size} must be a multiple of {divisor} "
                            f"(patch {self.patch}, {len(self.channel_mult)} levels)")
        sides = [self.image_size // self.patch >> k for k in range(len(self.channel_mult))]
        if odd := set(self.attention) - set(sides):
            raise UserError(f"attention at resolution {min(odd)}, which no level has: give some of "
                            f"{', '.join(map(str, sides))}, or none")

    @property
    def pixels(self) -> int:
        """Channels of the inner image."""
        return self.channels * self.patch**2

    def attends(self, level: int) -> bool:
        return self.image_size // self.patch >> level in self.attention

    def block(self, inputs: int, outputs: int, **kwargs) -> Block:
        return Block(inputs, outputs, embedding=4 * self.width, dropout=self.dropout,
                     skip_scale=self.skip_scale, taps=self.taps, **kwargs)

    def resampler(self, channels: int, direction: str) -> nn.Module:
        if self.resampling == "conv":
            return ResampleConv(channels, direction)
        return self.block(channels, channels, resample=direction)

    def make_embedding(self) -> Embedding:
        return Embedding(self.embedding, self.width * self.channel_mult_noise, 4 * self.width,
                         self.num_classes, self.augment_dim, self.label_dropout)


class Encoder(nn.Module):
    """Inner image [B, C, H, W] -> list of the features that the decoder takes back."""

    def __init__(self, flags: UNetFlags):
        super().__init__()
        self.scale, self.skip_channels = flags.skip_scale, [flags.width]
        self.stem = conv(flags.pixels, flags.width)
        self.down, self.residual, self.blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, image = flags.width, flags.pixels
        for level, mult in enumerate(flags.channel_mult):
            residual = bool(level) and flags.encoder == "residual"
            self.down.append(flags.resampler(channels, "down") if level else None)
            self.residual.append(blurred_conv(image, channels, flags.taps) if residual else None)
            image = channels if residual else image
            widths = [channels] + [flags.width * mult] * flags.blocks
            self.skip_channels += widths if level else widths[1:]
            self.blocks.append(nn.ModuleList(
                flags.block(*pair, attention=flags.attends(level)) for pair in pairwise(widths)))
            channels = widths[-1]

    def forward(self, image: Tensor, emb: Tensor) -> list[Tensor]:
        x = self.stem(image)
        skips = [x]
        for down, residual, blocks in zip(self.down, self.residual, self.blocks):
            if down is not None:
                x = down(x, emb)
                if residual is not None:
                    x = image = (x + residual(image)) * self.scale
                skips.append(x)
            for block in blocks:
                x = block(x, emb)
                skips.append(x)
        return skips


def blurred_conv(inputs: int, outputs: int, taps: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolution, then the filter; the convolution pads for both."""
    padding = 1 + (len(taps) - 1) // 2
    return nn.Sequential(conv(inputs, outputs, padding=padding), Resample("down", taps, padding=0))


class Decoder(nn.Module):
    """The encoder's features -> inner image. Its levels run from the deepest to the finest."""

    def __init__(self, flags: UNetFlags, skip_channels: list[int]):
        super().__init__()
        left, channels = list(skip_channels), skip_channels[-1]
        self.in0 = flags.block(channels, channels, attention=True)
        self.in1 = flags.block(channels, channels)
        self.up, self.blocks, self.head = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, mult in reversed(list(enumerate(flags.channel_mult))):
            deepest = level == len(flags.channel_mult) - 1
            self.up.append(None if deepest else flags.resampler(channels, "up"))
            blocks = nn.ModuleList()
            for index in range(flags.blocks + 1):
                chosen = index == flags.blocks or flags.decoder_attention == "all"
                inputs, channels = channels + left.pop(), flags.width * mult
                attention = chosen and flags.attends(level)
                blocks.append(flags.block(inputs, channels, attention=attention))
            self.blocks.append(blocks)
            self.head.append(None if level else image_head(channels, flags.pixels))

    def forward(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        left = list(skips)
        x = self.in1(self.in0(left[-1], emb), emb)
        for up, blocks in zip(self.up, self.blocks):
            x = x if up is None else up(x, emb)
            for block in blocks:
                x = block(torch.cat([x, left.pop()], 1), emb)
        return self.head[-1](x)


def image_head(channels: int, outputs: int) -> nn.Sequential:
    """Features [B, channels, H, W] -> the output image; 0 before training."""
    return nn.Sequential(group_norm(channels), nn.SiLU(), conv(channels, outputs, gain=0.0))


class UNet(nn.Module):
    """DDPM, DDPM++ or NCSN++ by flags: `UNet(**DDPMPP, width=64)`; see UNetFlags."""

    def __init__(self, **flags):
        super().__init__()
        flags = UNetFlags(**flags)
        self.patch, self.num_classes = flags.patch, flags.num_classes
        self.has_null_class = flags.label_dropout > 0
        self.embedding, self.encoder = flags.make_embedding(), Encoder(flags)
        self.decoder = Decoder(flags, self.encoder.skip_channels)

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None,
                augment: Tensor | None = None) -> Tensor:
        emb = self.embedding(noise_label, labels, augment)
        image = self.decoder(self.encoder(F.pixel_unshuffle(x, self.patch), emb), emb)
        return F.pixel_shuffle(image, self.patch)


class MultistageUNet(nn.Module):
    """One encoder, one decoder per interval of noise (Zhang et al. 2024, multi-stage framework).

    `boundaries`: increasing noise labels; decoder k has boundaries[k-1] < label <= boundaries[k].
    The rest: UNetFlags. Raises UserError where the boundaries do not increase.
    """

    def __init__(self, boundaries: tuple[float, ...], **flags):
        super().__init__()
        flags = UNetFlags(**flags)
        if list(boundaries) != sorted(set(boundaries)):
            raise UserError(f"boundaries {boundaries} must increase")
        self.patch, self.num_classes = flags.patch, flags.num_classes
        self.has_null_class = flags.label_dropout > 0
        self.embedding, self.encoder = flags.make_embedding(), Encoder(flags)
        self.decoders = nn.ModuleList(Decoder(flags, self.encoder.skip_channels)
                                      for _ in range(len(boundaries) + 1))
        self.register_buffer("boundaries", torch.tensor(boundaries, dtype=torch.float32))

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None,
                augment: Tensor | None = None) -> Tensor:
        emb = self.embedding(noise_label, labels, augment)
        skips = self.encoder(F.pixel_unshuffle(x, self.patch), emb)
        stage = torch.bucketize(noise_label.float(), self.boundaries)
        return F.pixel_shuffle(self.decode(stage, skips, emb), self.patch)

    def decode(self, stage: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Each row through the decoder of its stage [B]."""
        present = stage.unique().tolist()
        if len(present) == 1:
            return self.decoders[present[0]](skips, emb)
        rows = [(stage == k).nonzero()[:, 0] for k in present]
        parts = [self.decoders[k]([s[r] for s in skips], emb[r]) for k, r in zip(present, rows)]
        return torch.cat(parts)[torch.cat(rows).argsort()]


# ---------------------------------------------------------------------------------------------
# Transformers

class Attention(nn.Module):
    """Multi-head self-attention of tokens [B, L, D]."""

    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim, bias), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(self.qkv(x), self.heads))


def mlp(dim: int, ratio: float, approximate: str = "none") -> nn.Sequential:
    """The feed-forward part of a transformer block; approximate: of GELU, 'none' or 'tanh'."""
    hidden = int(dim * ratio)
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate), nn.Linear(hidden, dim))


def patchify(channels: int, dim: int, patch: int) -> nn.Conv2d:
    """Image [B, C, H, W] -> patch embeddings [B, dim, H / patch, W / patch]."""
    return nn.Conv2d(channels, dim, patch, stride=patch)


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """Tokens [B, h*h, patch*patch*C], channel fastest -> [B, C, h*patch, h*patch]."""
    side = math.isqrt(tokens.shape[1])
    x = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def check_tokens(image_size: int, patch: int, dim: int, heads: int) -> None:
    """UserError where the sizes of a transformer are none, or do not divide."""
    check_numbers("a transformer", Integral, image_size=image_size, patch=patch, dim=dim,
                  heads=heads)
    if image_size % patch or dim % heads or dim % 4:
        raise UserError(f"patch {patch} must divide image_size {image_size}, "
                        f"and heads {heads} and 4 must divide dim {dim}")


class UViTBlock(nn.Module):
    """Pre-norm transformer block; with `skip`, it first merges the features of its mirror block."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, skip: bool = False):
        super().__init__()
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads, bias=False)
        self.norm2, self.mlp = nn.LayerNorm(dim), mlp(dim, mlp_ratio)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = self.skip_linear(torch.cat([x, skip], -1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """U-ViT (Bao et al. 2023): time, class and patches are tokens; long skips join mirror blocks.

    `depth` counts the blocks but the middle one, so it is even; a class adds one more token.
    Raises UserError on sizes that do not divide.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, patch: int = 2, dim: int = 512,
                 depth: int = 12, heads: int = 8, mlp_ratio: float = 4.0, num_classes: int = 0,
                 label_dropout: float = 0.0):
        super().__init__()
        check_tokens(image_size, patch, dim, heads)
        if depth % 2:
            raise UserError(f"depth {depth} must be even: half of the blocks mirror the other half")
        self.patch, self.num_classes = patch, num_classes
        self.has_null_class = label_dropout > 0
        self.labels = Labels(num_classes, label_dropout)
        self.extras = 2 if num_classes else 1
        block = partial(UViTBlock, dim, heads, mlp_ratio)
        self.patch_embed = patchify(channels, dim, patch)
        self.label_emb = nn.Embedding(num_classes + 1, dim) if num_classes else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + (image_size // patch) ** 2, dim))
        self.in_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip=True) for _ in range(depth // 2))
        self.norm, self.decoder_pred = nn.LayerNorm(dim), nn.Linear(dim, patch**2 * channels)
        self.final_layer = nn.Conv2d(channels, channels, 3, padding=1)
        self.register_buffer("freqs", geometric_frequencies(dim), persistent=False)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(small_normal)

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.tokens(x, noise_label, labels)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder_pred(self.norm(x[:, self.extras:]))
        return self.final_layer(unpatchify(x, self.patch))

    def tokens(self, x: Tensor, noise_label: Tensor, labels: Tensor | None) -> Tensor:
        """[class,] time and patch tokens with their positions added, [B, L, D]."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        parts = [torch.cat(waves(noise_label, self.freqs), 1)[:, None].to(x.dtype), x]
        if self.label_emb is not None:
            parts = [self.label_emb(self.labels(labels, x))[:, None].to(x.dtype), *parts]
        return torch.cat(parts, 1) + self.pos_embed


def small_normal(module: nn.Module) -> None:
    """Linear layers: truncated normal of deviation 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos_positions(dim: int, side: int) -> Tensor:
    """Fixed 2-D positions [1, side*side, dim]: sin, cos of the column, then sin, cos of the row."""
    cos, sin = waves(torch.arange(side), geometric_frequencies(dim // 2))
    line = torch.cat([sin, cos], 1)
    return torch.cat([line.repeat(side, 1), line.repeat_interleave(side, 0)], 1)[None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, L, D] times 1 + scale [B, D], plus shift [B, D]."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class DiTBlock(nn.Module):
    """Transformer block whose norms and residual gates come from the conditioning (adaLN-Zero)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn, self.mlp = Attention(dim, heads, bias=True), mlp(dim, mlp_ratio, "tanh")
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, 1)
        x = torch.addcmul(x, gate1[:, None], self.attn(modulate(self.norm1(x), shift1, scale1)))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class DiT(nn.Module):
    """Diffusion transformer with adaLN-Zero (Peebles & Xie 2023).

    Raises UserError on sizes that do not divide.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, patch: int = 2, dim: int = 384,
                 depth: int = 12, heads: int = 6, mlp_ratio: float = 4.0, num_classes: int = 0,
                 label_dropout: float = 0.0):
        super().__init__()
        check_tokens(image_size, patch, dim, heads)
        self.patch, self.num_classes = patch, num_classes
        self.has_null_class = label_dropout > 0
        self.labels = Labels(num_classes, label_dropout)
        self.patch_embed = patchify(channels, dim, patch)
        self.time_embed = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label_emb = nn.Embedding(num_classes + 1, dim) if num_classes else None
        self.blocks = nn.ModuleList(DiTBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation, self.final = nn.Linear(dim, 2 * dim), nn.Linear(dim, patch**2 * channels)
        self.register_buffer("freqs", geometric_frequencies(256), persistent=False)
        positions = sincos_positions(dim, image_size // patch)
        self.register_buffer("positions", positions, persistent=False)
        self.initialize()

    def initialize(self) -> None:
        """Glorot everywhere, N(0, 0.02) embeddings, zero modulations and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                xavier(module)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(len(self.patch_embed.weight), -1))
        nn.init.zeros_(self.patch_embed.bias)
        for layer in [self.time_embed[0], self.time_embed[2], self.label_emb]:
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
        for layer in [self.final, self.modulation, *(block.modulation for block in self.blocks)]:
            xavier(layer, gain=0.0)

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.positions
        c = F.silu(self.condition(noise_label, labels))
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, 1)
        return unpatchify(self.final(modulate(self.norm(x), shift, scale)), self.patch)

    def condition(self, noise_label: Tensor, labels: Tensor | None) -> Tensor:
        """Time (and class) embedding [B, D]."""
        time = torch.cat(waves(noise_label, self.freqs), 1).to(self.time_embed[0].bias.dtype)
        c = self.time_embed(time)
        return c if self.label_emb is None else c + self.label_emb(self.labels(labels, c))


# ---------------------------------------------------------------------------------------------
# Other people's networks and weights

class MLP(nn.Module):
    """Residual perceptron for points [B, channels, 1, 1]; the noise level joins every block."""

    num_classes = 0

    def __init__(self, channels: int, width: int = 256, depth: int = 3):
        super().__init__()
        check_numbers("a perceptron", Integral, channels=channels, width=width)
        self.enter, self.leave = linear(channels, width), linear(width, channels, gain=0.0)
        self.blocks = nn.ModuleList(
            nn.Sequential(linear(width, width), nn.SiLU(), linear(width, width, gain=0.1))
            for _ in range(depth))
        self.noise = nn.ModuleList(linear(64, width) for _ in range(depth))
        self.register_buffer("freqs", geometric_frequencies(64) * 10, persistent=False)

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = torch.cat(waves(noise_label, self.freqs), 1).to(self.enter.bias.dtype)
        h = self.enter(x.flatten(1))
        for block, noise in zip(self.blocks, self.noise):
            h = h + block(F.silu(h + noise(embedding)))
        return self.leave(F.silu(h)).view_as(x)


class DiffusersUNet(nn.Module):
    """diffusers.UNet2DModel(**kwargs) behind this interface; its last class is the null one."""

    def __init__(self, unet: nn.Module | None = None, label_dropout: float = 0.0, **kwargs):
        super().__init__()
        if unet is None:
            from diffusers import UNet2DModel

            unet = UNet2DModel(**kwargs)
        self.unet = unet
        self.num_classes = (unet.config.num_class_embeds or 1) - 1
        self.has_null_class = label_dropout > 0
        self.labels = Labels(self.num_classes, label_dropout)

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = self.labels(labels, x) if self.num_classes else None
        return self.unet(x, noise_label, class_labels=labels).sample


class DiffusersDiT(nn.Module):
    """diffusers.DiTTransformer2DModel behind this interface, on latents [B, C, H, W].

    It also predicts a variance, which is left out; its last class is the null one.
    """

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer
        self.num_classes, self.has_null_class = transformer.config.num_embeds_ada_norm, True

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = Labels(self.num_classes)(labels, x).long()
        out = self.transformer(x, timestep=noise_label, class_labels=labels).sample
        return out[:, :x.shape[1]]


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a released EDM network or U-ViT under this project's names, others unchanged."""
    bare = {name.removeprefix("model."): value for name, value in state.items()}
    if {"map_layer0.weight", "map_layer1.weight"} <= bare.keys():
        return rename_edm(bare)
    return rename_uvit(bare) if {"patch_embed.proj.weight", "pos_embed"} <= bare.keys() else state


def rename_edm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a released EDM network (SongUNet) under this UNet's names, for a strict load.

    Attention's 1x1 convolutions become linear layers, and their interleaved q, k, v rows regroup.
    """
    sizes = sorted({int(m[1]) for k in state if (m := re.match(r"enc\.(\d+)x", k))})
    level = {str(size): index for index, size in enumerate(sizes)}
    return {edm_name(k, level): edm_tensor(k, v) for k, v in state.items()
            if not k.endswith("resample_filter")}


def edm_name(name: str, height: dict[str, int]) -> str:
    """`height`: how many levels a resolution, as text, stands above the deepest."""
    top = max(height.values())
    enc, dec = (lambda m: str(top - height[m[1]])), (lambda m: str(height[m[1]]))
    rules = [
        (r"map_noise\.", "embedding."), (r"map_", "embedding."),
        (r"enc\.\d+x\d+_conv\.", "encoder.stem."),
        (r"enc\.(\d+)x\d+_block(\d+)", lambda m: f"encoder.blocks.{enc(m)}.{m[2]}"),
        (r"enc\.(\d+)x\d+_down", lambda m: f"encoder.down.{enc(m)}"),
        (r"enc\.(\d+)x\d+_aux_residual", lambda m: f"encoder.residual.{enc(m)}.0"),
        (r"dec\.\d+x\d+_in(\d)", r"decoder.in\1"),
        (r"dec\.(\d+)x\d+_block(\d+)", lambda m: f"decoder.blocks.{dec(m)}.{m[2]}"),
        (r"dec\.(\d+)x\d+_up", lambda m: f"decoder.up.{dec(m)}"),
        (r"dec\.(\d+)x\d+_aux_norm", lambda m: f"decoder.head.{dec(m)}.0"),
        (r"dec\.(\d+)x\d+_aux_conv", lambda m: f"decoder.head.{dec(m)}.2"),
    ]
    for pattern, new in rules:
        name = re.sub("^" + pattern, new, name)
    return name


def edm_tensor(name: str, value: Tensor) -> Tensor:
    """The tensor as this UNet stores it; SongUNet attends with one head."""
    if name == "map_noise.freqs":
        return 2 * math.pi * value
    if re.search(r"\.(qkv|proj)\.weight$", name):
        value = value.flatten(1)
    if ".qkv." in name:
        value = value.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
    return value


def rename_uvit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a released U-ViT under this UViT's names, for a strict load."""
    new = {"patch_embed.proj.": "patch_embed.", "mlp.fc1.": "mlp.0.", "mlp.fc2.": "mlp.2."}
    pattern = re.compile("|".join(map(re.escape, new)))
    return {pattern.sub(lambda m: new[m[0]], k): v for k, v in state.items()}


ARCHITECTURES = {"unet": UNet, "multistage": MultistageUNet, "uvit": UViT, "dit": DiT,
                 "mlp": MLP, "diffusers_unet": DiffusersUNet}


def build(arch: str, **kwargs) -> nn.Module:
    """A network by name, one of ARCHITECTURES. Raises UserError on an unknown name or argument, and
    where one that has no default is not given."""
    known = defaults(arch)
    any_name = any(p.kind is p.VAR_KEYWORD for p in _parameters(arch).values())
    for name in () if any_name else kwargs:
        choose(name, sorted(known), f"argument of {arch}")
    for name, value in known.items():
        if value is inspect.Parameter.empty and name not in kwargs:
            raise UserError(f"{arch} needs {name}: give it among the network's arguments")
    return ARCHITECTURES[arch](**kwargs)


def defaults(arch: str) -> dict:
    """What `build` takes for this architecture by a name of its own, each with its default."""
    return {name: p.default for name, p in _parameters(arch).items()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _parameters(arch: str) -> dict[str, inspect.Parameter]:
    network = ARCHITECTURES[choose(arch, ARCHITECTURES, "network")]
    found = dict(inspect.signature(network).parameters)
    if found.pop("flags", None):
        found |= inspect.signature(UNetFlags).parameters
    return found
