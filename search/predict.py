"""Predict images with a finished run's model.

```
python -m search.predict results/caltech-1 photo.jpg folder-of-photos/ "more/**/*.png"
find photos -name '*.jpg' | python -m search.predict results/caltech-1 - --csv > predictions.csv
```

From Python: `from search.predict import load`, then `load("results/caltech-1").predict(paths)`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from search.console.arguments import Parser, add_run, whole_number
from search.console.signals import INTERRUPTED
from search.data.class_folders import DataError, files
from trainables.images import IMAGE_SUFFIXES, ImageError

if TYPE_CHECKING:
    from search.deployment.predictor import Prediction, Predictor


def load(run: str | Path) -> Predictor:
    """Load a run's model: from its folder, or from a `model.pt` alone.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    from search.deployment.predictor import load as load_predictor

    return load_predictor(run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        paths = list(expand(options.images, sys.stdin))
        if not paths:
            raise FileNotFoundError("the list holds no image's path")
    except (FileNotFoundError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Imported here, as PyTorch takes seconds: what is wrong with the images is told before.
    from trainables.models.ensemble import ModelError

    try:
        predictor = load(options.run)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A file's name may hold bytes that are no UTF-8; they are written as they are.
    with suppress(AttributeError):  # a test's stand-in for stdout
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        n_unreadable = _write(options, paths, predictor)
    except BrokenPipeError:  # what reads the output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    if n_unreadable:
        print(f"{n_unreadable} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if n_unreadable else 0


def _write(options: argparse.Namespace, paths: Sequence[Path], predictor: Predictor) -> int:
    """Predict and write; return how many images could not be read."""
    if options.format == "json":
        write = json_writer()
    elif options.format == "csv":
        write = csv_writer(min(options.top, len(predictor.model.card.classes)))
    else:
        write = table_writer(max(len(str(path)) for path in paths))
    n_unreadable = 0
    with _progress() as progress:
        task = progress.add_task("images", total=len(paths))
        for made in predictor.predict_each(paths, options.top):
            n_unreadable += isinstance(made, ImageError)
            write(made)
            progress.advance(task)
    write(None)
    sys.stdout.flush()
    return n_unreadable


Writer = Callable[["Prediction | ImageError | None"], None]
"""Writes a prediction, or why there is none, to stdout; None ends."""


def table_writer(width: int) -> Writer:
    """Write a line an image: its path, then the likeliest classes."""

    def write(made: Prediction | ImageError | None) -> None:
        if isinstance(made, ImageError):
            print(f"{made.path:<{width}}  cannot be read: {made.reason}", file=sys.stderr)
        elif made is not None:
            pairs = zip(made.classes, made.probabilities, strict=True)
            named = "   ".join(f"{name} {p:.4f}" for name, p in pairs)
            note = "   not like the training images" if made.is_ood else ""
            print(f"{made.name:<{width}}  {named}{note}")

    return write


def json_writer() -> Writer:
    """Write a JSON array, an image a line."""
    before = "[\n"

    def write(made: Prediction | ImageError | None) -> None:
        nonlocal before
        if made is None:
            print("[]" if before == "[\n" else "\n]")
            return
        print(before + json.dumps(as_json(made)), end="")
        before = ",\n"

    return write


def csv_writer(n_named: int) -> Writer:
    """Write CSV: the path, the likeliest classes, the doubt (above 1: unlike), what went wrong."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    ranks = [f"{what}_{i}" for i in range(1, n_named + 1) for what in ("class", "probability")]
    writer.writerow(["image", *ranks, "ood_score", "error"])

    def write(made: Prediction | ImageError | None) -> None:
        if isinstance(made, ImageError):
            writer.writerow([made.path, *[""] * len(ranks), "", made.reason])
        elif made is not None:
            pairs = zip(made.classes, made.probabilities, strict=True)
            cells = [cell for name, p in pairs for cell in (name, f"{p:.6f}")]
            ood_score = "" if made.ood_score is None else f"{made.ood_score:.4f}"
            writer.writerow([made.name, *cells, ood_score, ""])

    return write


def as_json(made: Prediction | ImageError) -> dict[str, object]:
    """Return what is written, and served, of an image."""
    if isinstance(made, ImageError):
        return {"image": made.path, "error": made.reason}
    likeliest = [
        {"class": name, "probability": round(p, 6)}
        for name, p in zip(made.classes, made.probabilities, strict=True)
    ]
    content: dict[str, object] = {"image": made.name, "classes": likeliest}
    if made.ood_score is not None:
        content |= {"ood_score": round(made.ood_score, 4), "is_ood": made.is_ood}
    return content


def expand(arguments: Iterable[str], stdin: Iterable[str]) -> Iterator[Path]:
    """Yield the files that arguments mean.

    Args:
        arguments: Files, folders (the images below them), patterns such as `a/**/*.jpg`, and
            `-` for a list.
        stdin: That list, a path a line; one that is missing is told when it is to be read.

    Raises:
        FileNotFoundError: an argument names nothing.
        DataError: a folder cannot be read.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            yield from (Path(line.rstrip("\r\n")) for line in stdin if line.strip())
        elif path.is_dir():
            yield from _inside(path)
        elif path.exists():
            yield path
        elif has_magic(argument):
            # Path.glob takes no absolute pattern.
            found = sorted(Path(match) for match in glob(argument, recursive=True))  # noqa: PTH207
            images = [p for p in found if p.is_file()]
            if not images:
                raise FileNotFoundError(f"no file matches {argument}")
            yield from images
        else:
            raise FileNotFoundError(f"there is no image {path}")


def _inside(folder: Path) -> Iterator[Path]:
    inside = sorted(path for path in files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not inside:
        raise FileNotFoundError(f"there are no images in {folder}")
    yield from inside


def _progress() -> Progress:
    """Show how far it is to a person, and nothing to a file or a pipe.

    Where the results go to the same terminal, they are the progress.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal or sys.stdout.isatty()
    return Progress(*columns, console=console, transient=True, disable=hidden)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m search.predict",
        description="Name the likeliest classes of images.",
        epilog="exit codes: 0 all were predicted, 1 some could not be read, 2 wrong request",
    )
    add_run(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders, patterns in quotes, or - for a list of paths on standard input",
    )
    parser.add_argument(
        "--top", type=whole_number(1), default=3, metavar="K", help="default: %(default)s"
    )
    shape = parser.add_mutually_exclusive_group()
    for name, what in (("json", "a JSON array"), ("csv", "CSV with a header")):
        shape.add_argument(
            f"--{name}", dest="format", action="store_const", const=name, help=f"write {what}"
        )
    parser.set_defaults(format="table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
