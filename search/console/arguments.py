"""Parse command-line arguments: what the commands have in common."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message."""
        self.exit(2, f"error: {message} (see --help)\n")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a finished run."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's folder, or a model.pt")


def model_path(run: Path) -> Path:
    """Return the path of a run's model, given the run's folder or the file itself."""
    return run / "model.pt" if run.is_dir() else run


def whole_number(low: int, high: float = math.inf) -> Callable[[str], int]:
    """Return an argument type: whole numbers >= `low` and <= `high`."""
    bounds = f">= {low}" + (f" and <= {high}" if math.isfinite(high) else "")

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, but got {text!r}")
        return number

    return read
