"""Lets torchvision be imported beside a torch build that its C++ operators do not match.

A CUDA-built torchvision next to a CPU-only torch (what plain ``pip install`` can leave behind)
fails at import with ``operator torchvision::nms does not exist``, and so does every package that
imports it, diffusers among them. Declaring the two operators it looks up is enough for
everything except detection. ``import paper_utils`` arranges this for the first import of
torchvision that follows, and costs nothing until then.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_libraries: list[Any] = []  # torch forgets a declaration when its Library object dies


def torchvision_ops() -> tuple[str, ...]:
    """Declare torchvision's operators where its own cannot load; returns the names declared.

    Declares nothing where torchvision is absent, already imported, or whole, or on a second call.
    """
    folder = _torchvision_folder()
    if folder is None or "torchvision" in sys.modules or _loads(folder):
        return ()
    import torch

    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(OPERATORS[name])
    _libraries.append(library)
    return tuple(missing)


def install() -> None:
    """Have `torchvision_ops` run just before the first import of torchvision."""
    installed = any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path)
    if not installed and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing itself: runs the shim once and leaves the import to the finders after it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Called by Python before every first import of a module."""
        if fullname == "torchvision":
            torchvision_ops()


def _torchvision_folder() -> Path | None:
    spec = PathFinder.find_spec("torchvision")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _loads(folder: Path) -> bool:
    """Whether torchvision's compiled operators load beside the installed torch."""
    import torch

    compiled = [file for pattern in ("_C*.so", "_C*.pyd") for file in folder.glob(pattern)]
    try:
        for file in compiled:
            torch.ops.load_library(str(file))
    except OSError:
        return False
    return bool(compiled)
