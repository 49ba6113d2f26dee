"""Reproducibility and consistency in diffusion models: the code behind the notebooks."""

from paper_utils.shim import install as _install

__version__ = "0.1.0"

_install()
