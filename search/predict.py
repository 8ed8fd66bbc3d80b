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
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from search.console.arguments import Parser, add_run, whole_number
from search.console.formatting import printable, printable_name
from search.console.output import SafeConsole, command, print_error
from search.console.signals import INTERRUPTED
from search.data.image_files import DataError, find_image_files
from search.runs.tables import ood_cells, ranked_cells, ranked_columns
from trainables.image_formats import unsupported_suffix
from trainables.images import ImageError

if TYPE_CHECKING:
    from search.deployment.predictor import Prediction, Predictor


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
    try:
        paths = list(expand(options.images, sys.stdin))
        if not paths:
            raise FileNotFoundError("the list holds no path of an image")
    except (FileNotFoundError, DataError) as error:
        print_error(error)
        return 2
    # Imported here, as PyTorch takes seconds: mistakes in the arguments are reported before.
    from trainables.models.ensemble import ModelError

    try:
        predictor = load(options.run)
    except ModelError as error:
        print_error(error)
        return 2
    try:
        n_unreadable = _write(options, paths, predictor)
    except KeyboardInterrupt:
        return INTERRUPTED
    if n_unreadable:
        print(f"{n_unreadable} of {len(paths)} images cannot be read", file=sys.stderr)
    return 1 if n_unreadable else 0


def _write(options: argparse.Namespace, paths: Sequence[Path], predictor: Predictor) -> int:
    """Predict and write; return the number of images that cannot be read."""
    if options.format == "csv":
        # As all our tables: UTF-8, and the bytes of a file's name that are not stay as they are.
        with suppress(AttributeError):  # a notebook's stream
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    if options.format == "json":
        write = json_writer()
    elif options.format == "csv":
        write = csv_writer(min(options.top, len(predictor.model.card.classes)))
    else:
        write = table_writer(max(len(printable_name(path)) for path in paths))
    n_unreadable = 0
    with _progress() as progress:
        task = progress.add_task("images", total=len(paths))
        for result in predictor.predict_each(paths, options.top):
            n_unreadable += isinstance(result, ImageError)
            write(result)
            progress.advance(task)
    write(None)
    sys.stdout.flush()
    return n_unreadable


Writer = Callable[["Prediction | ImageError | None"], None]
"""Writes the result of one image to standard output; None ends the output.

Results are written one by one, as a list of images may be long and `head` may read the output; so
the CSV is not written by pandas.
"""


def table_writer(width: int) -> Writer:
    """Return a writer of a line per image: its path, then the top-k predictions."""

    def write(result: Prediction | ImageError | None) -> None:
        if isinstance(result, ImageError):
            reason = printable(result.reason)
            print(
                f"{printable_name(result.path):<{width}}  cannot be read: {reason}", file=sys.stderr
            )
        elif result is not None:
            pairs = zip(result.classes, result.probabilities, strict=True)
            named = "   ".join(f"{printable_name(name)} {p:.4f}" for name, p in pairs)
            note = "   out of distribution" if result.is_ood else ""
            print(f"{printable_name(result.image):<{width}}  {named}{note}")

    return write


def json_writer() -> Writer:
    """Return a writer of a JSON array, one image per line."""
    before = "[\n"

    def write(result: Prediction | ImageError | None) -> None:
        nonlocal before
        if result is None:
            print("[]" if before == "[\n" else "\n]")
            return
        print(before + json.dumps(as_json(result)), end="")
        before = ",\n"

    return write


def csv_writer(top: int) -> Writer:
    """Return a writer of CSV: the path, the top-k predictions, the OOD score, the error."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = ranked_columns(top)
    writer.writerow(["image", *columns, "ood_score", "is_ood", "error"])

    def write(result: Prediction | ImageError | None) -> None:
        if isinstance(result, ImageError):
            writer.writerow([result.path, *[""] * len(columns), "", "", result.reason])
        elif result is not None:
            pairs = zip(result.classes, result.probabilities, strict=True)
            scores = ood_cells(result.ood_score, result.is_ood)
            writer.writerow([result.image, *ranked_cells(pairs), *scores, ""])

    return write


def as_json(result: Prediction | ImageError) -> dict[str, object]:
    """Return the JSON object of an image; it has the keys that the server's has."""
    if isinstance(result, ImageError):
        return {"image": result.path, "error": result.reason}
    pairs = zip(result.classes, result.probabilities, strict=True)
    content: dict[str, object] = {
        "image": result.image,
        "classes": [{"class": name, "probability": round(p, 6)} for name, p in pairs],
    }
    if result.ood_score is not None:
        content |= {"ood_score": round(result.ood_score, 4), "is_ood": result.is_ood}
    return content


def expand(arguments: Iterable[str], stdin: Iterable[str]) -> Iterator[Path]:
    """Expand arguments to image files.

    Args:
        arguments: Files, folders (the images below them), patterns such as `a/**/*.jpg`, and
            `-` for a list.
        stdin: The list, one path per line; a missing file is an error only when it is read.

    Raises:
        FileNotFoundError: an argument matches nothing.
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
    images, others = find_image_files(folder)
    # Such as a camera's raw files: photos, so that the reader says why they are not predicted.
    photos = [path for path, _ in others if unsupported_suffix(path.name)]
    if not images and not photos:
        raise FileNotFoundError(f"there are no images in {folder}")
    yield from sorted((*images, *photos))


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
    shape = parser.add_mutually_exclusive_group()
    for name, what in (("json", "a JSON array"), ("csv", "CSV with a header")):
        shape.add_argument(
            f"--{name}", dest="format", action="store_const", const=name, help=f"write {what}"
        )
    parser.set_defaults(format="table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
