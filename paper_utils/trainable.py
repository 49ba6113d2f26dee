"""Which parameters of a network train: all, attention alone, the last blocks, low-rank adapters.

    names = restrict(network, "attention")    # freezes the rest

A regular expression on parameter names does as well as one of WAYS, which know the names of the
networks of `networks`, diffusers' U-Net included. The attention of a U-Net is its norm, query, key,
value and output layers; its last blocks are those of the decoder's finest level.
"""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paper_utils.errors import UserError

RANK = 4
ADAPTED = re.compile(r"(^|\.)(qkv|proj|to_[qkv]|to_out\.0)$")  # proj only beside a qkv
WAYS = {
    "all": "",
    "attention": r"^(en|de)coder.*\.(norm2|qkv|proj)\.|\.attn\.|\.attentions\.",
    "last": "",       # depends on how many blocks there are, see _last
    "low-rank": r"\.parametrizations\.weight\.0\.",
}


class LowRank(nn.Module):
    """W -> W + B A with B [out, rank] zero at first (LoRA, Hu et al. 2022, alpha = rank)."""

    def __init__(self, weight: Tensor):
        super().__init__()
        outputs, inputs = weight.shape
        self.a = nn.Parameter(weight.new_empty(RANK, inputs))
        self.b = nn.Parameter(weight.new_zeros(outputs, RANK))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def restrict(network: nn.Module, trains: str = "all") -> list[str]:
    """Let only some parameters train; returns their names, in the network's order.

    trains: one of WAYS or a regular expression that is searched in the names. 'low-rank' first adds
    an adapter of rank 4 to the linear layers of attention (qkv and the proj beside it; in diffusers
    to_q, to_k, to_v and to_out.0), which changes their weights' names (see `merged`); layers that
    have one keep it. Raises UserError for no regular expression, or one that matches nothing.
    """
    if trains == "low-rank":
        _add_adapters(network)
    names = [name for name, _ in network.named_parameters()]
    pattern = _compiled(_last(names) if trains == "last" else WAYS.get(trains, trains))
    chosen = [name for name in names if pattern.search(name)]
    if not chosen:
        raise UserError(f"no parameter of {type(network).__name__} matches {trains!r}: choose "
                        f"{', '.join(WAYS)}, or a pattern for names made of {_words(names)}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(bool(pattern.search(name)))
    return chosen


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression ({error}): give one, or one of "
                        f"{', '.join(WAYS)}") from None


def _words(names: list[str]) -> str:
    """The words that occur in the names, first by first."""
    words = dict.fromkeys(word for name in names for word in name.split(".") if word.isidentifier())
    return ", ".join(words)


def layers(names: list[str]) -> list[str]:
    """The layers of these parameters, numbers left out, each once: 'decoder.blocks.*.*.qkv'."""
    stems = (re.sub(r"(\.parametrizations\.weight\.0)?\.[^.]+$", "", name) for name in names)
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", stem) for stem in stems))


def _last(names: list[str]) -> str:
    """The blocks of the finest level of a U-Net's decoder, or a transformer's last block, and the
    output; not the resampling into that level. Without such blocks a pattern that matches nothing.
    """
    level = re.compile(r"^(decoders?(?:\.\d+)?\.blocks|out_blocks|blocks|unet\.up_blocks)\.(\d+)\.")
    deepest = {}
    for name in names:
        if found := level.match(name):
            deepest[found[1]] = max(int(found[2]), deepest.get(found[1], 0))
    ends = [rf"^{re.escape(stem)}\.{index}\." for stem, index in deepest.items()]
    output = r"^(norm|modulation|decoder_pred|final\w*|unet\.conv_\w*out)\."
    return "|".join([*ends, r"(^|\.)head\.", output]) if ends else r"(?!)"


def _add_adapters(network: nn.Module) -> None:
    layers = dict(network.named_modules())
    found = [layer for name, layer in layers.items() if isinstance(layer, nn.Linear)
             and ADAPTED.search(name) and re.sub("proj$", "qkv", name) in layers]
    if not found:
        raise UserError(f"{type(network).__name__} has no attention for low-rank adapters: choose "
                        "another way to train it")
    for layer in found:
        if not parametrize.is_parametrized(layer, "weight"):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors with its adapters added into the weights, under the weights' old names.

    Those of a network without adapters are returned as they are.
    """
    found = {}
    for name, value in state.items():
        layer, adapter, part = name.partition(".parametrizations.weight.")
        if not adapter:
            found[name] = value
        elif part == "original":
            a, b = (state[f"{layer}{adapter}0.{x}"] for x in "ab")
            found[f"{layer}.weight"] = value + b @ a
    return found
