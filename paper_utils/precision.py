"""Reference numbers come from float32 and deterministic algorithms; TF32 is for training."""

import torch


def exact():
    """A context, or decorator, in which convolutions on a GPU are float32 and deterministic."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True,
                                      allow_tf32=False)
