"""What the commands over a finished run share: their parser, and how they name its model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one message."""

    def error(self, message: str) -> NoReturn:
        """End with 2 and the message."""
        self.exit(2, f"error: {message} (see --help)\n")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a finished run."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's folder, or a model.pt")


def model_path(run: Path) -> Path:
    """Return where the model of a run lies, given its folder or the file itself."""
    return run / "model.pt" if run.is_dir() else run


def whole_number(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `least` on."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, but got {text!r}")
        return number

    return read
