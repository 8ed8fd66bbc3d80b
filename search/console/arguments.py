"""Parse command-line arguments: what the commands have in common."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Any, NoReturn

from search.console.commands import as_called, version
from search.console.formatting import printable, quote_path
from spaces.base import Space
from spaces.rules import RULES, Value
from spaces.sources import did_you_mean

_UNKNOWN = "unrecognized arguments: "
"""How argparse begins the error about arguments that it does not know."""


class Parser(argparse.ArgumentParser):
    """A parser with --version, whose errors are one line, with the most similar option.

    Attributes:
        raises: What a malformed command line raises; None exits with code 2.
    """

    raises: type[Exception] | None = None

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        for name in ("prog", "usage", "description", "epilog"):
            if text := settings.get(name):
                # A text of several lines keeps them; examples in it can be copied.
                width = get_terminal_size().columns - 2
                settings[name] = as_called(text if "\n" in text else fill(text, width))
        super().__init__(**settings)
        self.add_argument("--version", action=Show, text=version, help="print the version and exit")

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message, or raise what `raises` names."""
        message += self._hint(message)
        if self.raises is not None:
            raise self.raises(message)
        self.exit(2, f"error: {printable(message)} (see --help)\n")

    def _hint(self, message: str) -> str:
        """Return what a mistaken word could have been, as the end of a message."""
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        if not message.startswith(_UNKNOWN):
            return ""
        words = message.removeprefix(_UNKNOWN).split(" ")
        # Without the dashes, which would make any two options similar.
        options = re.findall(r"^  (?:-\w, )?--([\w-]+)", self.format_help(), re.MULTILINE)
        unknown = [word[2:].split("=")[0] for word in words if word.startswith("--")]
        if not unknown and "data" in options and Path(words[0]).is_dir():
            return f"; did you mean --data {quote_path(words[0])}?"
        hints = dict.fromkeys(did_you_mean(word, options) for word in unknown)
        return "".join(hints).replace("mean '", "mean '--")


class Show(argparse.Action):
    """Prints a text and exits, as --help does; the text is made only then."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, text: Callable[[], str], help: str
    ) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the text and exit with code 0."""
        print(self._text())
        parser.exit()


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a finished run: see `search.runs.listing.find_run`."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN_DIR",
        help="a run's folder, its model.pt, or latest: the newest finished run in results/"
        " (DIR/latest: in DIR)",
    )


# argparse has no public name for what parsers and their groups have in common.
def add_labels(parser: argparse._ActionsContainer) -> None:
    """Add the options that say how images are labelled and grouped."""
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="a table of the images and their labels instead of class folders (.csv, .tsv, .jsonl,"
        " .parquet): a column of paths, one of labels, and perhaps `split` and `group`",
    )
    for name, what in (("image", "paths"), ("label", "labels"), ("group", "groups")):
        parser.add_argument(
            f"--{name}-column",
            metavar="NAME",
            help=f"column of {what} in --labels (default: found by its name)",
        )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="group images by a pattern in their names, such as '^([^_]+)_': those of one patient,"
        " camera or product are then in one split and one fold",
    )


def add_max_megapixels(parser: argparse._ActionsContainer) -> None:
    """Add the option that says how many pixels an image may have."""
    parser.add_argument(
        "--max-megapixels",
        type=whole_number(1),
        metavar="N",
        help="read images of up to N million pixels (default: 178); 100 million take up to 1.6 GB"
        " of memory while they are read, however small the file is",
    )


def model_path(run: Path) -> Path:
    """Return the path of a run's model, given the run's folder or the file itself."""
    return run / "model.pt" if run.is_dir() else run


_MAX_WHOLE = 10**9
"""No number of trials, images or megapixels is larger; some larger ones take all memory."""
_MAX_SECONDS = 3650 * 86_400


def whole_number(low: int, high: int = _MAX_WHOLE) -> Callable[[str], int]:
    """Return an argument type: whole numbers >= `low` and <= `high`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            is_shown = high != _MAX_WHOLE or number > high
            bounds = f">= {low}" + (f" and <= {high}" if is_shown else "")
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, but got {text!r}")
        return number

    return read


def probability(text: str) -> float:
    """Read a probability, > 0 and <= 1.

    Raises:
        ArgumentTypeError: the text is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be a probability > 0 and <= 1, but got {text!r}")
    return number


def positive_number(text: str) -> float:
    """Read a number above 0.

    Raises:
        ArgumentTypeError: the text is no such number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, but got {text!r}")
    return number


_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_TIME = re.compile(r"\s*".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS))


def seconds(text: str) -> float:
    """Read a time such as 90s, 30m, 1h30m or 2d: numbers with units, the largest unit first.

    Returns:
        The time in seconds, above 0.

    Raises:
        ArgumentTypeError: the text is no such time, or has a number without a unit.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"must have a unit, such as {text}s, {text}m, {text}h or {text}d, but got {text!r}"
        )
    parts = match.groupdict() if (match := _TIME.fullmatch(text)) else {}
    total = sum(float(number) * _UNITS[unit] for unit, number in parts.items() if number)
    if total > _MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"must be a time of at most {_MAX_SECONDS // 86_400}d, but got {text!r}"
        )
    if total <= 0:
        raise argparse.ArgumentTypeError(
            f"must be a time such as 90s, 30m, 1h30m or 2d, but got {text!r}"
        )
    return total


def setting(text: str) -> tuple[str, Value]:
    """Read NAME=VALUE; return the name, and the value in the type of the parameter."""
    name, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not value:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, such as lr=1e-3, but got {text!r}")
    if name not in RULES:
        raise argparse.ArgumentTypeError(_no_parameter(name, value))
    try:
        return name, RULES[name].parse(name, value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _no_parameter(name: str, value: str) -> str:
    options = ("trials", "epochs", "folds", "image_size", "external", "backbones", "classes")
    if name in (*options, "metric"):
        option = f"--{name.replace('_', '-')}"
        return f"{name!r} is no hyperparameter, but an option: {option} {value}"
    if name in (field.name for field in fields(Space)):
        return f"{name!r} is no hyperparameter, but a field of the space: change a copy of its file"
    return f"there is no hyperparameter {name!r}{did_you_mean(name, RULES)}"


def split_names(text: str) -> tuple[str, ...]:
    """Return names that commas divide, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def run_folders(text: str) -> tuple[str, ...]:
    """Return folders of runs as absolute paths, for a run that is resumed in another folder."""
    # Path.expanduser raises an error where there is no such user.
    folders = [os.path.expanduser(name) for name in split_names(text)]  # noqa: PTH111
    if not folders:
        raise argparse.ArgumentTypeError("must name the folder of an earlier run")
    return tuple(str(Path(folder).absolute()) for folder in folders)
