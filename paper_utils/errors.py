"""The one exception a user's mistake raises, and the helper that suggests the right name."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake the user can mend; its message is one line that says how."""


def choose(name: str, valid: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `valid`, else raise UserError with the nearest valid name."""
    valid = list(valid)
    if name in valid:
        return name
    near = get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {what} {name!r}: {hint}valid are {', '.join(map(str, valid))}")


def check_device(device):
    """Return `device`; UserError when it is no device, or CUDA where there is none."""
    import torch

    try:
        torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}: use 'cpu', 'cuda' or 'cuda:1'") from None
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r} was asked for, but this machine has no CUDA GPU: "
                        "use device='cpu'")
    return device
