"""The one exception a user's mistake raises, and how the command lines report it and are ended."""

import contextlib
import os
import select
import signal
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from numbers import Integral
from types import FrameType
from typing import TextIO

SHOWN = 30  # names in a message; all of a grid of models would be hundreds


class UserError(ValueError):
    """A mistake the user can mend; its message is one line that says how."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows, and so JupyterLab and papermill: the line without the frames."""
        return [f"{type(self).__name__}: {self}"]


def choose(name: str, valid: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `valid`, else raise UserError with the nearest valid name."""
    valid = list(map(str, valid))
    if name in valid:
        return name
    near = get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    rest = f" and {len(valid) - SHOWN} more" if len(valid) > SHOWN else ""
    names = ", ".join(valid[:SHOWN])
    raise UserError(f"unknown {what} {name!r}: {hint}valid are {names or 'none'}{rest}")


def check_numbers(who: str, kind: type, **values: object) -> None:
    """UserError unless each is a number of this kind, numbers.Integral or Real, and above 0."""
    for name, value in values.items():
        if not (isinstance(value, kind) and value > 0):
            number = "whole number" if kind is Integral else "number"
            raise UserError(f"{name}={value!r} of {who}: give a {number} above 0")


def check_device(device):
    """Return `device`; UserError when it is no device, or CUDA where there is none."""
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError:
        kind, index = "", 0
    if kind not in ("cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: use 'cpu', 'cuda' or 'cuda:1'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r} was asked for, but this machine has no CUDA GPU: "
                        "use device='cpu' (--device cpu on a command line, -p device cpu with "
                        'papermill, ON="--device cpu" with make)')
    if kind == "cuda" and index >= (count := torch.cuda.device_count()):
        raise UserError(f"device {device!r} was asked for, but this machine has {count} GPU(s), "
                        "which are counted from 'cuda:0'")
    return device


def positive(kind: type) -> Callable[[str], float]:
    """The argparse type of a number above zero: `kind` is int or float."""
    def number(text: str):
        value = kind(text)
        if not value > 0:
            raise ArgumentTypeError(f"{text} is not above zero")
        return value

    number.__name__ = kind.__name__  # argparse names it where the text is no number
    return number


def exit_code(command: Callable[[], int | None], *failures: type[Exception],
              interrupted: str = "interrupted") -> int:
    """Run a command line's work: what it returns, or 0; 2 for a user's mistake, 1 for a file, a
    package that is not installed or one of `failures`, 130 for Ctrl-C.

    An exception becomes one line on stderr, and of a pipe that nobody reads any more none.
    """
    try:
        return command() or 0
    except (UserError, OSError, *failures) as error:
        if isinstance(error, BrokenPipeError) and _unread(sys.stdout):
            return 128 + signal.SIGPIPE
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, UserError) else 1
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: `make` installs what notebooks need, "
              "`make test` also the rest, and pip install -e '.[notebooks,report,test]' all",
              file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr, flush=True)
        return 130


def _unread(output: TextIO) -> bool:
    """Whether nobody reads it any more, as in `... | head`; it then goes nowhere."""
    asked = select.poll()
    with contextlib.suppress(OSError):  # of a stream that is no file
        asked.register(output.fileno(), 0)
    if broken := bool(asked.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # for the flush at the end
    return broken


_asked: list[int] = []  # the signals that came


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end what is done in here, by KeyboardInterrupt or SystemExit.

    Those that are ignored stay so, as nohup wants it.
    """
    def end(number: int, frame: FrameType | None) -> None:
        _asked.append(number)
        raise_lost()

    before = {number: signal.getsignal(number)
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    heeded = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])
        _asked.clear()


def raise_lost() -> None:
    """Raise again what a signal raised: inside a callback, as of an import, that is lost."""
    if _asked:
        raise KeyboardInterrupt if _asked[-1] == signal.SIGINT else SystemExit(128 + _asked[-1])
