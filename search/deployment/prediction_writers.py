"""Write predictions to the standard output, one by one: as lines for people, as JSON, or as CSV."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from search.console.formatting import printable, printable_name
from search.console.output import csv_output
from search.runs.tables import ood_cells, prediction_columns, ranked_cells, spreadsheet_text
from trainables.images import ImageError

if TYPE_CHECKING:
    from search.deployment.predictor import Prediction

Writer = Callable[["Prediction | ImageError | None"], None]
"""Writes the result of one image to standard output; None ends the output.

Results are written one by one, as a list of images may be long and `head` may read the output; so
the CSV is not written by pandas.
"""


def needs_review(result: Prediction | ImageError, threshold: float | None) -> bool | None:
    """Return whether a person should look at a prediction; None where that was not asked for."""
    if threshold is None or isinstance(result, ImageError):
        return None
    return result.probabilities[0] < threshold


def table_writer(width: int, threshold: float | None = None) -> Writer:
    """Return a writer of a line per image: its path, then the top-k predictions."""

    def write(result: Prediction | ImageError | None) -> None:
        if isinstance(result, ImageError):
            name, reason = printable_name(result.path), printable(result.reason)
            print(f"{name:<{width}}  cannot be read: {reason}", file=sys.stderr)
        elif result is not None:
            pairs = zip(result.classes, result.probabilities, strict=True)
            parts = [f"{printable_name(name)} {p:.4f}" for name, p in pairs]
            parts += ["out of distribution"] if result.is_ood else []
            parts += ["needs review"] if needs_review(result, threshold) else []
            print(f"{printable_name(result.image):<{width}}  {'   '.join(parts)}")

    return write


def json_writer(threshold: float | None = None) -> Writer:
    """Return a writer of a JSON array, one image per line."""
    before = "[\n"

    def write(result: Prediction | ImageError | None) -> None:
        nonlocal before
        if result is None:
            print("[]" if before == "[\n" else "\n]")
            return
        print(before + json.dumps(as_json(result, threshold)), end="")
        before = ",\n"

    return write


def csv_writer(top: int, threshold: float | None = None) -> Writer:
    """Return a writer of CSV: the path, the top-k predictions, the OOD score, the error."""
    write_row = csv_output()
    review = [] if threshold is None else ["needs_review"]
    write_row(prediction_columns(top, extra=[*review, "error"]))

    def write(result: Prediction | ImageError | None) -> None:
        if isinstance(result, ImageError):
            write_row(
                [result.path, *[""] * (2 * top + 2 + len(review)), spreadsheet_text(result.reason)]
            )
        elif result is not None:
            pairs = zip(result.classes, result.probabilities, strict=True)
            cells = [result.image, *ranked_cells(pairs)]
            cells += ood_cells(result.ood_score, result.is_ood)
            if (mark := needs_review(result, threshold)) is not None:
                cells.append(str(int(mark)))
            write_row([*cells, ""])

    return write


def as_json(result: Prediction | ImageError, threshold: float | None = None) -> dict[str, object]:
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
    if (mark := needs_review(result, threshold)) is not None:
        content["needs_review"] = mark
    return content
