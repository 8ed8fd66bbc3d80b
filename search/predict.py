"""Predict images with a finished run's model.

```
python -m search.predict results/caltech-1 photo.jpg folder-of-photos/ "more/**/*.png"
find photos -name '*.jpg' | python -m search.predict results/caltech-1 - --csv > predictions.csv
```

From Python: `from search.predict import load`, then `load("results/caltech-1").predict(paths)`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from search.console.arguments import Parser, add_max_megapixels, add_run, probability, whole_number
from search.console.formatting import count, printable_name, some
from search.console.output import SafeConsole, command, print_error
from search.console.signals import INTERRUPTED
from search.data.image_files import NOT_AN_IMAGE, DataError, find_image_files
from search.deployment.prediction_writers import (
    csv_writer,
    json_writer,
    needs_review,
    table_writer,
)
from search.runs.listing import find_run
from search.runs.validation import FolderError
from trainables.image_inputs import is_url, refuse_url
from trainables.images import ImageError, pixel_limit

if TYPE_CHECKING:
    from search.deployment.predictor import Predictor


def load(run: str | Path) -> Predictor:
    """Load a run's model, from the run's folder or from its `model.pt` alone.

    Raises:
        ModelError: there is no model, or it is damaged.
    """
    from search.deployment.predictor import load as load_predictor

    return load_predictor(run)


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = create_parser().parse_args(arguments)
    skipped: list[Path] = []
    try:
        paths = list(expand(options.images, _lines(), skipped))
        if not paths:
            raise FileNotFoundError("the list holds no path of an image")
        run = find_run(options.run)
    except (FileNotFoundError, DataError, FolderError) as error:
        print_error(error)
        return 2
    except OSError as error:  # such as a name that is too long
        print_error(f"{error.filename} cannot be read: {error.strerror}")
        return 2
    if run != options.run:
        print(f"{options.run} is {printable_name(run)}", file=sys.stderr)
    if skipped:
        named = some(map(printable_name, skipped))
        print(f"{count(len(skipped), 'file')} skipped as no image: {named}", file=sys.stderr)
    # Imported here, as PyTorch takes seconds: mistakes in the arguments are reported before.
    from trainables.compute import keep_freed_memory
    from trainables.models.model_card import ModelError

    keep_freed_memory()
    try:
        predictor = load(run)
    except ModelError as error:
        print_error(error)
        return 2
    try:
        with pixel_limit(options.max_megapixels):
            counts = _write(options, paths, predictor)
    except KeyboardInterrupt:
        return INTERRUPTED
    if counts["needs_review"]:
        print(
            f"{counts['needs_review']} of {len(paths)} images need review: the probability is"
            f" below {options.threshold:g}",
            file=sys.stderr,
        )
    if counts["unreadable"]:
        print(f"{counts['unreadable']} of {len(paths)} images cannot be read", file=sys.stderr)
    return 1 if counts["unreadable"] else 0


def _write(
    options: argparse.Namespace, paths: Sequence[Path], predictor: Predictor
) -> Counter[str]:
    """Predict and write; return how many images are unreadable, and how many need review."""
    threshold: float | None = options.threshold
    if options.format == "json":
        write = json_writer(threshold)
    elif options.format == "csv":
        write = csv_writer(min(options.top, len(predictor.model.card.classes)), threshold)
    else:
        write = table_writer(max(len(printable_name(path)) for path in paths), threshold)
    counts: Counter[str] = Counter()
    with _progress() as progress:
        task = progress.add_task("images", total=len(paths))
        for result in predictor.predict_each(paths, options.top):
            counts["unreadable"] += isinstance(result, ImageError)
            counts["needs_review"] += needs_review(result, threshold) or False
            write(result)
            progress.advance(task)
    write(None)
    return counts


def _lines() -> Iterator[str]:
    """Yield the lines of the standard input; bytes that are not UTF-8 stay as in file names."""
    with suppress(AttributeError):  # a notebook's or a test's stream
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    yield from sys.stdin


def expand(
    arguments: Iterable[str], stdin: Iterable[str], skipped: list[Path] | None = None
) -> Iterator[Path]:
    """Expand arguments to image files.

    Args:
        arguments: Files, folders (the images below them, by the search's own rule), patterns such
            as `a/**/*.jpg`, and `-` for a list.
        stdin: The list, one path per line; a missing file is an error only when it is read.
        skipped: Files in folders that are no images are appended here.

    Raises:
        FileNotFoundError: an argument matches nothing.
        DataError: a folder cannot be read, or an argument is a URL.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            yield from (Path(line.rstrip("\r\n")) for line in stdin if line.strip())
        elif path.is_dir():
            yield from _inside(path, [] if skipped is None else skipped)
        elif path.exists():
            yield path
        elif is_url(argument):
            raise DataError(f"{argument} {refuse_url(argument)}")
        elif has_magic(argument):
            # Path.glob takes no absolute pattern.
            found = sorted(Path(match) for match in glob(argument, recursive=True))  # noqa: PTH207
            images = [p for p in found if p.is_file()]
            if not images:
                raise FileNotFoundError(f"no file matches {argument}")
            yield from images
        else:
            raise FileNotFoundError(f"there is no image {path}")


def _inside(folder: Path, skipped: list[Path]) -> Iterator[Path]:
    images, others = find_image_files(folder)
    # Images of a format that cannot be read are reported, each with its reason.
    unread = [path for path, reason in others if reason != NOT_AN_IMAGE and path.is_file()]
    skipped += [path for path, _ in others if path not in unread]
    if not images and not unread:
        raise FileNotFoundError(f"there are no images in {folder}")
    yield from sorted([*images, *unread])


def _progress() -> Progress:
    """Return a progress bar for a terminal; hidden where the results go there themselves."""
    console = SafeConsole(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal or sys.stdout.isatty()
    return Progress(*columns, console=console, transient=True, disable=hidden)


def create_parser() -> Parser:
    """Return the parser of `python -m search.predict`."""
    parser = Parser(
        prog="python -m search.predict",
        description="Print the top-k predictions for images.",
        epilog="exit codes: 0 all images predicted, 1 some cannot be read, 2 wrong request",
    )
    add_run(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders, patterns in quotes, or - for a list of paths on standard input",
    )
    parser.add_argument(
        "--top",
        type=whole_number(1),
        default=3,
        metavar="K",
        help="classes per image (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        metavar="P",
        help="mark images whose first class has a probability below P: they need review by a"
        " person",
    )
    add_max_megapixels(parser)
    shape = parser.add_mutually_exclusive_group()
    for name, what in (("json", "a JSON array"), ("csv", "CSV with a header")):
        shape.add_argument(
            f"--{name}", dest="format", action="store_const", const=name, help=f"write {what}"
        )
    parser.set_defaults(format="table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
