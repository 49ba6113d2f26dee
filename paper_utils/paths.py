"""Where things are: the repository, and what was downloaded or computed."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def cache_dir() -> Path:
    """Where downloads and computed artifacts live, outside the repository.

    PAPER_UTILS_CACHE if set, else paper_utils below XDG_CACHE_HOME or ~/.cache.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PAPER_UTILS_CACHE") or Path(home) / "paper_utils").expanduser()
