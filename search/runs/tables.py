"""Read and write a run's CSV files, with pandas.

Cells are text as it stands in the file: an empty cell is "", and a label such as "007" or "NA"
stays that. A file's name may hold bytes that are no UTF-8; they are written and read as they are.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from search.runs.validation import FolderError
from trainables.atomic_write import write_atomically

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that spreadsheets take for a formula."""

SPLITS = ("train", "val", "test", "excluded")
"""Splits of `split.csv`."""

PROBABILITY = "prob_"
"""Begin of the columns that hold the probability of a class, whose name follows."""

SPLIT_COLUMNS = ("image", "label", "split", "group", "digest")
AUDIT_COLUMNS = ("image", "issue", "detail", "duplicate_of", "similarity")
EXCLUDED_COLUMNS = ("image",)
FOLD_COLUMNS = ("trial", "fold", "accuracy", "n", "seconds", "node")
LABEL_ISSUE_COLUMNS = ("image", "given_label", "predicted_label", "label_quality")
CURVE_COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
ABLATION_COLUMNS = ("step", "name", *CURVE_COLUMNS)
"""Columns of the tables that more than one module reads."""


def prediction_columns(
    top: int, *, label: bool = False, extra: Sequence[str] = (), classes: Iterable[str] = ()
) -> list[str]:
    """Return the columns of a table of predictions, in the order that all such tables have.

    Args:
        top: The most probable classes that are listed for each image.
        label: Whether there is a column with the image's class.
        extra: Columns that this table has beside the others.
        classes: Those whose probability has a column, `PROBABILITY` and the name.
    """
    return [
        *("image", *(["label"] if label else []), *ranked_columns(top), "ood_score", "is_ood"),
        *(*extra, *(f"{PROBABILITY}{name}" for name in classes)),
    ]


def ranked_columns(n: int) -> list[str]:
    """Return the columns of the n most probable classes of an image."""
    return [f"{what}_{k}" for k in range(1, n + 1) for what in ("prediction", "probability")]


def ranked_cells(ranked: Iterable[tuple[str, float]]) -> list[str]:
    """Return the cells in `ranked_columns` of classes with their probabilities, in this order."""
    return [cell for name, probability in ranked for cell in (name, f"{probability:.6f}")]


def ood_cells(ood_score: float | None, is_ood: bool) -> list[str]:
    """Return the cells in the columns `ood_score` and `is_ood`; empty without a score."""
    return ["", ""] if ood_score is None else [f"{ood_score:.4f}", str(int(is_ood))]


def spreadsheet_text(cell: str) -> str:
    """Return a cell that only people read, with an apostrophe before what would be a formula.

    Texts of other people, such as a file's name in an error, may be formulas to a spreadsheet that
    opens the table. Numbers stay. The names of images and classes are not for this function: they
    lead to the files, and are compared.
    """
    if not cell.startswith(_FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def read_fraction(cell: str) -> float:
    """Read a probability or another fraction.

    Raises:
        ValueError: it is no number in [0, 1].
    """
    if not 0 <= (value := float(cell)) <= 1:
        raise ValueError(f"{cell[:50]!r} is not in [0, 1]")
    return value


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table atomically.

    Args:
        path: The CSV file.
        columns: The header.
        rows: Their cells, in the order of `columns`; None becomes an empty cell, NaN "nan".
    """
    import pandas as pd  # takes half a second, which `--help` does not need

    # As objects, whole numbers beside empty cells stay whole, and odd names are not looked into.
    cells = [["" if cell is None else cell for cell in row] for row in rows]
    frame = pd.DataFrame(cells, columns=pd.Index(list(columns), dtype="object"), dtype=object)
    # Most readers end a line at a carriage return, which `csv` alone would not quote.
    has_return = any("\r" in cell for row in cells for cell in row if isinstance(cell, str))
    with write_atomically(path) as partial:
        frame.to_csv(
            partial,
            index=False,
            na_rep="nan",
            lineterminator="\n",
            quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL,
            encoding="utf-8",
            errors="surrogateescape",
        )


def read_csv(path: Path, errors: str = "surrogateescape") -> pd.DataFrame:
    """Read a table; one without rows and columns where there is no file.

    A last line without its end is not read: whoever wrote it was cut off.

    Args:
        path: The CSV file.
        errors: What becomes of bytes that are no UTF-8: see `bytes.decode`.

    Raises:
        ValueError: the file is no table.
    """
    import pandas as pd

    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole.strip():
        return pd.DataFrame(dtype=object)
    lines = pd.read_csv(
        BytesIO(whole),
        header=None,
        dtype=object,
        keep_default_na=False,
        lineterminator="\n",
        encoding_errors=errors,
    )
    columns = pd.Index(lines.iloc[0], dtype="object")
    return lines[1:].set_axis(columns, axis="columns").reset_index(drop=True)


def read_records(
    path: Path,
    parse: Callable[[dict[str, str]], _T],
    errors: str = "surrogateescape",
    way_out: str = "put a copy of it back",
) -> list[_T]:
    """Read a table's rows and parse each; see `read_csv`.

    Args:
        path: The CSV file.
        parse: Makes of a row, a dict from column to cell, what it stands for.
        errors: As for `read_csv`.
        way_out: What to do where the table is damaged.

    Raises:
        FolderError: the file is no table, or `parse` misses a column or a value of a row.
    """
    try:
        rows = read_rows(path, errors)
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FolderError(f"{path} is damaged: it is no table ({reason}); {way_out}") from None
    records = []
    for line, row in enumerate(rows, 2):
        try:
            records.append(parse(row))
        except KeyError as error:
            raise FolderError(f"{path} is damaged: it has no column {error}; {way_out}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise FolderError(f"{path} is damaged: line {line}: {error}; {way_out}") from None
    return records


def read_split_rows(path: Path, n_images: int | None = None) -> list[dict[str, str]]:
    """Read the rows of `split.csv`, which a resumed run depends on.

    Args:
        path: The table.
        n_images: How many images it should list; None where that is unknown.

    Raises:
        FolderError: it is damaged, or does not list all.
    """

    def parse(row: dict[str, str]) -> dict[str, str]:
        if row["split"] not in SPLITS:
            raise ValueError(f"{row['split']!r} is no split")
        int(row["group"])
        return {name: row[name] for name in SPLIT_COLUMNS}

    way_out = "put a copy of it back, or begin a new run"
    rows = read_records(path, parse, way_out=way_out)
    if n_images is not None and len(rows) != n_images:
        raise FolderError(
            f"{path} is damaged: it lists {len(rows)} of the {n_images} images that the run began"
            f" with; {way_out}"
        )
    return rows


def read_rows(path: Path, errors: str = "surrogateescape") -> list[dict[str, str]]:
    """Read a table's rows, each a dict from column to cell; see `read_csv`."""
    return read_csv(path, errors).to_dict("records")  # type: ignore[return-value]
