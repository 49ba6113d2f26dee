"""The command line: print the table of all parts or of one."""

import argparse
import sys
from collections.abc import Callable

import torch

import benchmarks
from benchmarks import distillation, inverse, sampling, similarity, store, training
from benchmarks.measuring import QUICK, Row, Size
from paper_utils.errors import check_device, exit_code

PARTS: dict[str, Callable[[Size, str], list[Row]]] = {
    "store": lambda size, device: store.rows(size),
    "GL": lambda size, device: similarity.rows(size),
    "sampling": lambda size, device: sampling.rows(size),
    "optimal": lambda size, device: sampling.optimal(size),
    "inverse": lambda size, device: inverse.rows(size),
    "training": lambda size, device: training.rows(size, device) + training.at_once(size, device),
    "compile": training.compiling,
    "distillation": distillation.rows}


def show(rows: list[Row]) -> None:
    widths = [max(len(getattr(row, field)) for row in rows) for field in ("what", "measured")]
    for row in rows:
        verdict = "met" if row.met else "MISSED"
        print(f"{row.what:<{widths[0]}}  {row.measured:<{widths[1]}}  target {row.target}: "
              f"{verdict}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, some seconds")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    parser.add_argument("--device", default="cpu", help="of training, compile and distillation")
    asked = parser.parse_args(arguments)
    return exit_code(lambda: _measure(asked), RuntimeError)


def _measure(asked: argparse.Namespace) -> None:
    """Print the rows of every part that is asked for. RuntimeError at the end names those that
    failed, and why."""
    check_device(asked.device)
    size = QUICK if asked.quick else Size()
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    failed = []
    for name in [asked.only] if asked.only else PARTS:
        try:
            rows = PARTS[name](size, asked.device)
        except Exception as error:  # the parts do without each other
            failed.append(f"{name}: {type(error).__name__}: {error}")
        else:
            show(rows)
    if failed:
        raise RuntimeError("; ".join(failed))


if __name__ == "__main__":
    sys.exit(main())
