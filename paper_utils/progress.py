"""How far a long computation is: a bar in a notebook, plain lines in a batch log.

PAPER_UTILS_PROGRESS chooses: 'bar' (the default), 'lines' (what the batch runner sets) or 'off'.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from paper_utils.errors import choose

EVERY = 20.0  # seconds between plain lines
T = TypeVar("T")


def shell() -> Any:
    """The IPython shell that runs this code, as in a notebook; None where there is none."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def progress(items: Iterable[T], title: str, total: int, unit: str = "batch",
             note: Callable[[T], str] = lambda item: "",
             done: Callable[[T], int] | None = None) -> Iterator[T]:
    """Pass `items` through and show how many of `total` are done, or nothing without a title.

    note: what to say of an item. done: how many are, after it; for work that goes on from where it
    was stopped. By default the items are counted.
    """
    how = choose(os.environ.get("PAPER_UTILS_PROGRESS", "bar"), ("bar", "lines", "off"),
                 "PAPER_UTILS_PROGRESS")
    if how == "off" or not title:
        return iter(items)
    counted = ((done(item) if done else count, item) for count, item in enumerate(items, 1))
    return (_bar if how == "bar" else _lines)(counted, title, total, unit, note)


def _bar(counted: Iterable[tuple[int, T]], title: str, total: int, unit: str,
         note: Callable[[T], str]) -> Iterator[T]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=title, unit=unit, leave=False, delay=2) as bar:
        for count, item in counted:
            if not bar.n:
                bar.n = bar.initial = bar.last_print_n = count - 1
            yield item
            bar.update(count - bar.n)
            if count % 50 == 1 and note(item):
                bar.set_postfix_str(note(item), refresh=False)


def _lines(counted: Iterable[tuple[int, T]], title: str, total: int, unit: str,
           note: Callable[[T], str]) -> Iterator[T]:
    started = said = time.monotonic()
    before = None
    for count, item in counted:
        if before is None:
            before = count - 1
            if before:
                print(f"{title}: going on after {unit} {before:,} of {total:,}", file=sys.stderr,
                      flush=True)
        yield item
        now = time.monotonic()
        if now - said > EVERY:
            said, left = now, (now - started) / (count - before) * (total - count)
            line = f"{title}: {unit} {count:,} of {total:,}, {left / 60:.1f} min left"
            print(line, note(item), file=sys.stderr, flush=True)
