"""Execute notebooks headless: one by papermill, or all that are out of date by Snakemake.

    python -m paper_utils.run notebooks/01_unconditional.ipynb --profile smoke -p noises 64
    python -m paper_utils.run --all --profile laptop        (-n says what would run)

Exit code 0: done. 1: a notebook failed. 2: a mistake on the command line or in a parameter. 3: of a
share of jobs (--shard) some failed.
"""

import argparse
import ast
import contextlib
import errno
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from paper_utils import files
from paper_utils.errors import UserError, choose, ended_by_signals, exit_code, raise_lost
from paper_utils.paths import ROOT, cache_dir, folder_name
from paper_utils.profiles import PROFILES
from paper_utils.progress import shell

HEARTBEAT = 30.0  # seconds between progress lines of a running notebook
POLL = 0.5  # seconds between two looks for an interruption that was lost
PATIENCE = 10.0  # seconds that papermill gets to clean up after its kernel was killed


class NotebookFailed(Exception):
    """A cell of a notebook raised; the message is one line."""


# Parameters


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's `parameters` cell, ``name: type = default``; its type is that of the
    default."""

    name: str
    default: str | bool | int | float

    def parse(self, text: str) -> Any:
        """The value that `text`, from a command line, stands for; UserError on a wrong type."""
        return text if isinstance(self.default, str) else self.check(_literal(text))

    def check(self, value: Any) -> Any:
        """`value` itself, or UserError on a wrong type; an int passes for a float, a bool never."""
        kind = type(self.default)
        if type(value) is kind or (kind is float and type(value) is int):
            return value
        raise UserError(f"parameter {self.name!r} takes {kind.__name__}, not {value!r} (default "
                        f"{self.default!r})")


def parameters(source: str) -> dict[str, Parameter]:
    """The parameters that the source of a cell declares, one plain literal each, or UserError."""
    found = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and node.value is not None:
            try:
                found[target.id] = Parameter(target.id, ast.literal_eval(node.value))
            except (ValueError, TypeError):
                raise UserError(f"parameter {target.id!r} of the notebook is no plain value but "
                                f"{ast.unparse(node.value)}: write it out") from None
    return found


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook: those of its cell tagged `parameters`, or none."""
    for cell in read_notebook(notebook).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            return parameters(cell.source)
    return {}


def read_notebook(path: Path) -> Any:
    """The notebook, of nbformat's version 4. Raises UserError for a file that is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError,
            UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:80]
        raise UserError(f"{short(path)} is no notebook ({reason}): open it in JupyterLab, or get "
                        "it back from git") from None


def values(given: Mapping[str, str], valid: Mapping[str, Parameter]) -> dict[str, Any]:
    """Parse what a command line gave; UserError on an unknown name or a value of a wrong type."""
    return {name: _find(name, valid).parse(text) for name, text in given.items()}


def _find(name: str, valid: Mapping[str, Parameter]) -> Parameter:
    if not valid:
        raise UserError(f"unknown parameter {name!r}: the notebook takes none")
    return valid[choose(name, valid, "parameter")]


def check_parameters(cells: Sequence[str] | None = None) -> None:
    """Refuse, inside a notebook, what papermill injected without the notebook declaring it.

    Papermill itself only warns. Call it in the first cell after the parameters. `cells`: the
    sources executed so far, by default those of the running kernel; without an injected cell
    (JupyterLab, a script) nothing is checked. Raises UserError.
    """
    cells = _executed_cells() if cells is None else cells
    injected = [i for i, source in enumerate(cells) if source.startswith("# Parameters\n")]
    if not injected:
        return
    valid = parameters(cells[injected[-1] - 1]) if injected[-1] else {}
    for name, given in parameters(cells[injected[-1]]).items():
        _find(name, valid).check(given.default)


def _executed_cells() -> list[str]:
    names = shell().user_ns if shell() else {}
    return [source for source in names.get("In", []) if source.strip()]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


# One notebook


def execute(notebook: Path, output: Path, given: Mapping[str, Any], log: TextIO) -> float:
    """Execute `notebook` with the parameters `given` in a kernel of its own; returns seconds.

    The executed notebook appears at `output` only when every cell has run. After a failing cell
    it is kept as ``<name>.failed.ipynb`` and NotebookFailed is raised, or UserError where that
    is what the cell raised, or before the first cell where `output` cannot be written. What the
    cells print goes to `log` while they run. An interruption (KeyboardInterrupt, SystemExit) kills
    the kernel and leaves nothing. Folders that were made for nothing go too.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    new = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    partial = output.with_name(f".{output.stem}.{os.getpid()}.partial.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    started = time.monotonic()
    try:
        files.check_target(output)
        _papermill(notebook, partial, given, log)
        _drop_particulars(partial)
        os.replace(partial, output)
        failed.unlink(missing_ok=True)
    except PapermillExecutionError as error:
        os.replace(partial, failed)
        raise _explain(error, notebook, failed) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename:
            raise
        raise UserError(f"{files.unwritable(output, error)} and run it again: models, samples "
                        "and figures made so far are kept") from None  # a full disk names no file
    except DeadKernelError as error:
        raise NotebookFailed(f"{notebook.stem}: its kernel died, most often for want of memory: "
                             "choose smaller sizes or a smaller profile") from error
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing is
            partial.unlink()
        for folder in new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
    return time.monotonic() - started


def _papermill(notebook: Path, output: Path, given: Mapping[str, Any], log: TextIO) -> None:
    import papermill

    folder = str(notebook.resolve().parent)  # where JupyterLab's kernel would be
    with _heartbeat(notebook), _kernel_environment(log):
        _interruptible(
            papermill.execute_notebook,
            str(notebook.resolve()),
            str(output.resolve()),
            dict(given),
            cwd=folder,
            kernel_name="python3",
            progress_bar=False,
            log_output=True,
            stdout_file=log,
            stderr_file=log,
        )


def _interruptible(work: Callable, *args: Any, **kwargs: Any) -> None:
    """`work(..., kernel_manager_class=...)` in a thread; an interruption here kills its kernel.

    Raised by a signal inside papermill, wherever it happens to be, the exception may be lost there
    (as in a callback of the event loop or of the collector) and the notebook would go on, or it
    may cut papermill's own cleaning up short. A thread that does not end with its kernel is left.
    One that came before and was lost, say while papermill was imported, is raised here again.
    """
    kernels: list[Any] = []
    outcome: Future = Future()

    def run() -> None:
        try:
            outcome.set_result(work(*args, kernel_manager_class=_recorded(kernels), **kwargs))
        except BaseException as error:
            outcome.set_exception(error)

    raise_lost()
    try:
        threading.Thread(target=run, daemon=True).start()
        while not outcome.done():
            raise_lost()
            wait([outcome], POLL)
        outcome.result()
    except (KeyboardInterrupt, SystemExit):
        deadline = time.monotonic() + PATIENCE
        while not outcome.done() and time.monotonic() < deadline:
            _kill(kernels)  # again and again: it may be about to start one
            time.sleep(0.1)
        raise


def _recorded(kernels: list[Any]) -> type:
    """A kernel manager that adds itself to `kernels`."""
    from jupyter_client.manager import AsyncKernelManager

    class Kernel(AsyncKernelManager):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            kernels.append(self)

    return Kernel


def _kill(kernels: Sequence[Any]) -> None:
    """Kill the kernels that run, and what they started."""
    for process in (getattr(kernel.provisioner, "process", None) for kernel in kernels):
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a kernel leads a group of its own


@contextlib.contextmanager
def _kernel_environment(log: TextIO) -> Iterator[None]:
    """Let the kernel import this same package, and send its own chatter to the log or nowhere."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    os.environ.setdefault("PAPER_UTILS_PROGRESS", "lines")
    screen = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno() if log is sys.stdout else log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


def _explain(error: Any, notebook: Path, kept: Path) -> Exception:
    message = str(error.evalue).strip().splitlines() or ["no message"]
    if error.ename == "UserError":
        kept.unlink(missing_ok=True)
        return UserError(f"{notebook.stem}: {message[0]}")
    where = f"cell {error.cell_index + 1}: {error.ename}: {message[0]}"
    return NotebookFailed(f"{notebook.stem} failed in {where} (see {short(kept)})")


def _drop_particulars(executed: Path) -> None:
    """Forget paths, times and versions, so that two runs with equal outputs write equal files."""
    import nbformat

    book = nbformat.read(executed, as_version=4)
    kernel = book.metadata.get("kernelspec")
    book.metadata = {"kernelspec": kernel} if kernel else {}
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if "injected-parameters" in tags:
            cell.id = "injected-parameters"
    nbformat.write(book, executed)


@contextlib.contextmanager
def _heartbeat(notebook: Path) -> Iterator[None]:
    """Turn papermill's log into a plain line now and then, and keep the rest of it off stderr."""
    logger = logging.getLogger("papermill")
    handler = _Progress(notebook.stem)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Progress(logging.Handler):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.notebook = name
        self.started = self.last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        cell = re.match(r"Executing Cell (\d+)", record.getMessage())
        now = time.monotonic()
        if cell and now - self.last > HEARTBEAT:
            self.last = now
            say(self.notebook, f"at cell {cell[1]} after {duration(now - self.started)}")


# The command line


def say(name: str, *words: str) -> None:
    """Print one plain line, at once."""
    print(f"{name:<20}", *words, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people write them: '8.2 s' or '4 min 12 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def short(path: Path) -> str:
    """The path as people write it: inside the repository, from its root."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m paper_utils.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("notebook", nargs="?", type=Path, help="the notebook to execute")
    which.add_argument("--all", action="store_true", help="all that is out of date")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--profile", help="short for -p profile NAME: "
                        + ", ".join(PROFILES))
    parser.add_argument("--device", default="", help="for the notebooks that take one; default: "
                        "that of the profile")
    parser.add_argument("--output", type=Path, help="default: figures/<profile>/executed/<name>, "
                        "or figures/<profile>-<parameter>-<value>/executed/<name>")
    parser.add_argument("--log", type=Path, help="where the cells' printing goes, not the screen")
    every = parser.add_argument_group("with --all")
    every.add_argument("-n", "--plan", action="store_true", help="say what would run, run nothing")
    every.add_argument("--report", action="store_true", help="build the site at the end")
    every.add_argument("--on", default="local", help="local or slurm")
    every.add_argument("--partition", default="", help="of SLURM")
    every.add_argument("--shard", default="", help="2/8: the second of eight shares of the models")
    return parser


def _check_scope(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """UserError for an option of one notebook given with --all, or of --all with a notebook."""
    if options.all:
        wrong, advice = ("p", "output", "log"), "is for one notebook: name it instead of --all"
    else:
        wrong, advice = ("plan", "report", "on", "partition", "shard"), "goes with --all"
    for name in wrong:
        if getattr(options, name) != parser.get_default(name):
            raise UserError(f"{'-' if len(name) == 1 else '--'}{name} {advice}")


def _all(options: argparse.Namespace) -> int:
    from paper_utils import batch

    wanted = batch.Batch(options.profile or "laptop", options.device, options.on, options.partition,
                         options.shard, options.report)
    if not options.plan:
        return batch.execute(wanted)
    for line in batch.plan(wanted):
        print(line, flush=True)
    return 0


def _one(options: argparse.Namespace) -> int:
    notebook = _existing(options.notebook)
    valid = declared(notebook)
    chosen = values(_given(options, valid), valid)
    folder = _folder(chosen, valid)
    output = options.output or folder / "executed" / notebook.name
    if os.path.isdir(output):
        raise UserError(f"{output} is a folder: give the name of a file in it")
    if output.suffix != ".ipynb":
        raise UserError(f"{output} would become a notebook: give a name that ends in .ipynb")
    if os.path.exists(output) and output.samefile(notebook):
        raise UserError(f"{output} is the notebook itself: give --output another file")
    for other, what in ((notebook, "the notebook"), (output, "its output")) if options.log else ():
        if options.log.resolve() == other.resolve():
            raise UserError(f"{options.log} is {what}: give --log another file")
    say(notebook.stem, "started")
    with _log(options.log) as log:
        seconds = execute(notebook, output, chosen, log)
    say(notebook.stem, duration(seconds), short(output))
    return 0


def _given(options: argparse.Namespace, valid: Mapping[str, Parameter]) -> dict[str, str]:
    """The parameters of the command line; UserError where one is given twice."""
    pairs = [*options.p, *[["profile", options.profile]] * bool(options.profile)]
    if options.device and "device" in valid:
        pairs.append(["device", options.device])
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"parameter {name!r} is given twice: give it once")
    return dict(pairs)


@contextlib.contextmanager
def _log(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")
    except OSError as error:
        raise files.unwritable(path, error) from None
    with file:
        yield file


def _existing(notebook: Path) -> Path:
    """The notebook; '00_start_here' is the project's own of that name."""
    named = ROOT / "notebooks" / f"{notebook}.ipynb"
    if named.is_file():
        return named
    names = sorted(map(str, notebook.parent.glob("*.ipynb"))) or sorted(
        os.path.relpath(path) for path in (ROOT / "notebooks").glob("*.ipynb"))
    return Path(choose(str(notebook), names, "notebook"))


def _folder(chosen: Mapping[str, Any], valid: Mapping[str, Parameter]) -> Path:
    """Where the notebook writes its figures with these parameters."""
    every = {name: parameter.default for name, parameter in valid.items()} | chosen
    every.pop("device", None)  # the same figures on any
    profile = every.pop("profile", "default")
    if "profile" in chosen:
        choose(profile, PROFILES, "profile")
    return ROOT / "figures" / folder_name(profile, **every)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; every failure is one line on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if os.environ.get("PAPER_UTILS_CACHE"):  # kernels run in another folder
        os.environ["PAPER_UTILS_CACHE"] = str(cache_dir().absolute())

    def work() -> int:
        _check_scope(parser, options)
        return _all(options) if options.all else _one(options)

    with ended_by_signals():
        return exit_code(work, NotebookFailed, interrupted="interrupted; run it again to go on")


if __name__ == "__main__":
    sys.exit(main())
