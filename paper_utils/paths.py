"""Where things are: the repository, and what was downloaded or computed."""

import os
import re
from pathlib import Path

from paper_utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def cache_dir() -> Path:
    """Where downloads and computed artifacts live, outside the repository.

    PAPER_UTILS_CACHE if set, else paper_utils below XDG_CACHE_HOME, where that is an absolute path,
    or ~/.cache. Raises UserError where there is no such home.
    """
    given, base = (os.environ.get(name, "") for name in ("PAPER_UTILS_CACHE", "XDG_CACHE_HOME"))
    path = Path(given or Path(base if os.path.isabs(base) else "~/.cache") / "paper_utils")
    try:
        return path.expanduser()
    except RuntimeError:  # of a user whom the machine does not know
        raise UserError(f"{path} has no home directory: set PAPER_UTILS_CACHE to the whole path of "
                        "a folder") from None


def folder_name(profile: str, **chosen: object) -> str:
    """Where below figures/ a run with these parameters writes: 'laptop', 'laptop-noises-64'.

    What a run chose beside its profile stands in the name, so that it never writes over what the
    profile itself gave. 0, '' and what the notebooks of the figures have by default are no choice.
    """
    words = [f"{name}-{value}" for name, value in chosen.items()
             if value not in (0, "", "all", "cifar-copy")]
    return "-".join([profile, *(re.sub(r"[^\w.@-]+", "_", word) for word in words)])
