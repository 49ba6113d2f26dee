"""Reference numbers are float32 and deterministic; TF32 and bfloat16 are for training."""

import contextlib
import warnings
from collections.abc import Iterator

import torch


EXACT = ((torch.backends.cuda.matmul, "fp32_precision", "ieee"),
         (torch.backends.cudnn.conv, "fp32_precision", "ieee"),
         (torch.backends.cudnn, "benchmark", False), (torch.backends.cudnn, "deterministic", True))


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """A context, or decorator, in which a GPU computes in float32, its convolutions deterministic.

    Gradients are summed on a GPU in no fixed order by torch's fused attention, which Algorithm 1
    differentiates, and by reflected padding and bicubic reduction, which it takes for blur and
    super-resolution: the last bits differ there.
    """
    before = [getattr(where, name) for where, name, _ in EXACT]
    try:
        for where, name, value in EXACT:
            setattr(where, name, value)
        yield
    finally:
        for (where, name, _), value in zip(EXACT, before):
            setattr(where, name, value)


def has_bf16(device: str) -> bool:
    """Whether this type of device ('cpu', 'cuda') multiplies in bfloat16 itself.

    A CPU without AVX-512 or SVE emulates it, several times slower than float32, and so does a GPU
    before Ampere.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device != "cpu" or torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))


def bf16(device: str, wanted: bool = True) -> torch.autocast:
    """A context that autocasts to bfloat16 where it is wanted and the device has it; see has_bf16.

    A warning says where it is wanted in vain. No cache is kept: older torch keeps weights that
    were cast without a gradient (a target's).
    """
    there = has_bf16(device)
    if wanted and not there:
        name = "CPU" if device == "cpu" else "GPU"
        warnings.warn(f"this {name} would emulate bfloat16, slower than float32: computing in "
                      "float32", stacklevel=2)
    return torch.autocast(device, torch.bfloat16, wanted and there, cache_enabled=False)
