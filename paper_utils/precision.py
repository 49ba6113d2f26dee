"""Reference numbers are float32 and deterministic; TF32 and bfloat16 are for training."""

import torch


def exact():
    """A context, or decorator, in which convolutions on a GPU are float32 and deterministic."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True,
                                      allow_tf32=False)


def has_bf16(device: str) -> bool:
    """Whether this type of device ('cpu', 'cuda') multiplies in bfloat16 itself.

    A CPU without AVX-512 or SVE emulates it, several times slower than float32.
    """
    return device != "cpu" or torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))


def bf16(device: str, wanted: bool = True) -> torch.autocast:
    """A context that autocasts to bfloat16 where it is wanted and the device has it; see has_bf16.

    It keeps no cache: older torch keeps weights that were cast without a gradient (a target's).
    """
    return torch.autocast(device, torch.bfloat16, wanted and has_bf16(device), cache_enabled=False)
