"""Compare two finished runs on the test images that both have.

```
python -m search.compare results/photos-1 results/photos-2
python -m search.compare results/photos-1 results/photos-2 --csv > only_one_correct.csv
```

A page, `comparison.html`, shows both side by side.

Images are the same where their bytes are: by the digests in `split.csv`, whatever their names are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from search.console.arguments import Parser
from search.console.formatting import (
    count,
    interval,
    percent,
    printable,
    printable_name,
)
from search.console.output import command, csv_output, print_error, table_console
from search.evaluation.predictions import TOP_K
from search.reporting.comparison.tested_run import (
    CompareError,
    TestedRun,
    check_same_images,
    compare_runs,
    read_tested_run,
)
from search.runs.listing import find_run
from search.runs.run_folder import RunFolder
from search.runs.summary import Comparison
from search.runs.tables import prediction_columns, spreadsheet_text
from spaces.errors import SearchError

_LETTERS = "AB"

PAGE = Path("comparison.html")
"""Where the page is written unless `--out` says so."""


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = create_parser().parse_args(arguments)
    try:
        first, second = (
            read_tested_run(find_run(path)) for path in (options.first, options.second)
        )
        check_same_images(first, second)
        page = _page(options.out, options.format)
    except SearchError as error:
        print_error(error)
        return 2
    compared = compare_runs(first, second)
    if options.format == "json":
        print(json.dumps(as_json(first, second, compared), indent=2))
    elif options.format == "csv":
        _write_csv(first, second)
    else:
        _show(first, second, compared)
    if page is None:
        return 0
    try:
        _write_page(page, first, second, compared)
    except OSError as error:
        problem = f"{page} cannot be written to: {error.strerror}"
        if options.out is None:  # the table is there; nobody asked for the page
            print(f"warning: {printable(problem)}; give --out for the page", file=sys.stderr)
            return 0
        print_error(CompareError(f"--out {problem}; give another --out"))
        return 2
    if options.format is None:
        print(printable_name(page))
    return 0


def _page(out: Path | None, shape: str | None) -> Path | None:
    """Return the page to write: `--out`, else one beside the printed table; None for none.

    Raises:
        CompareError: its folder is missing.
    """
    page = out or (PAGE if shape is None else None)
    if page is not None and not page.absolute().parent.is_dir():
        raise CompareError(f"--out must lie in a folder that exists, but got {page}")
    return page


def _write_page(page: Path, first: TestedRun, second: TestedRun, compared: Comparison) -> None:
    """Write the page, and print what it lacks.

    Raises:
        OSError: it cannot be written.
    """
    # They load matplotlib, which JSON and CSV do not need.
    from search.reporting.comparison.page import OneCorrect, write_comparison
    from search.reporting.run_record import read_record

    records = tuple(read_record(RunFolder.open(run.path)) for run in (first, second))
    gaps = write_comparison(
        page,
        (records[0], records[1]),
        compared,
        _describe(compared),
        [
            OneCorrect(
                a["image"],
                a["label"],
                (_prediction(a), _prediction(b)),
                is_first=a["label"] == a["prediction_1"],
            )
            for a, b in zip(first.rows, second.rows, strict=True)
            if (a["label"] == a["prediction_1"]) != (b["label"] == b["prediction_1"])
        ],
    )
    for gap in gaps:
        print(f"warning: {printable(gap)}", file=sys.stderr)


def _prediction(row: Mapping[str, str]) -> tuple[str, float]:
    return row["prediction_1"], float(row["probability_1"])


def as_json(first: TestedRun, second: TestedRun, compared: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON has it; the difference is the first minus the second."""
    n_alone = compared.n_model_only_correct, compared.n_baseline_only_correct
    return {
        "n": compared.n,
        "runs": [
            {
                "run": str(run.path),
                "accuracy": run.scores.accuracy,
                "accuracy_ci95": run.scores.accuracy_ci95,
                "log_loss": run.scores.log_loss,
                "macro_f1": run.scores.macro_f1,
                "macro_f1_ci95": run.scores.macro_f1_ci95,
                "n_only_correct": n_only,
                "note": run.note,
            }
            for run, n_only in zip((first, second), n_alone, strict=True)
        ],
        "difference": compared.difference,
        "difference_ci95": compared.difference_ci95,
        "p_value": compared.p_value,
        "verdict": compared.verdict,
    }


def _write_csv(first: TestedRun, second: TestedRun) -> None:
    """Write the images that one run alone predicts correctly, each with the lines of both."""
    write = csv_output()
    listed = {*first.rows[0], *second.rows[0]}
    top = sum(f"prediction_{k}" in listed for k in range(1, TOP_K + 1))
    columns = prediction_columns(top, label=True, extra=["run", "is_correct"])
    write(columns)
    for pair in zip(first.rows, second.rows, strict=True):
        correct = [row["label"] == row["prediction_1"] for row in pair]
        if correct[0] == correct[1]:
            continue
        for run, row, is_correct in zip((first, second), pair, correct, strict=True):
            cells = {
                **row,
                "run": spreadsheet_text(str(run.path)),
                "is_correct": str(int(is_correct)),
            }
            write(cells.get(name, "") for name in columns)


def _show(first: TestedRun, second: TestedRun, compared: Comparison) -> None:
    console = table_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "run"):
        table.add_column(name, overflow="fold")
    for name in ("accuracy, 95% CI", "log loss", "macro F1, 95% CI", "correct alone"):
        table.add_column(name, no_wrap=True)
    n_alone = compared.n_model_only_correct, compared.n_baseline_only_correct
    for letter, run, n_only in zip(_LETTERS, (first, second), n_alone, strict=True):
        scores = run.scores
        table.add_row(
            letter,
            Text(printable_name(run.path)),
            f"{percent(scores.accuracy)}, {interval(scores.accuracy_ci95)}",
            f"{scores.log_loss:.4f}",
            f"{scores.macro_f1:.3f}, {scores.macro_f1_ci95[0]:.3f}–{scores.macro_f1_ci95[1]:.3f}",
            count(n_only, "image"),
        )
    console.print(table)
    console.print(Text(_describe(compared)), soft_wrap=True)
    for run in (first, second):
        if run.note is not None:
            console.print(Text(f"note: {run.path}: {run.note}"), soft_wrap=True)


def _describe(compared: Comparison) -> str:
    """Return the difference of two runs, called A and B, in words."""
    low, high = (100 * bound for bound in compared.difference_ci95)
    verdict = compared.verdict
    if verdict.startswith(("better", "worse")):
        verdict = f"A is {verdict}"
    return (
        f"A - B on the same {count(compared.n, 'test image')}: {100 * compared.difference:+.1f}"
        f" points, 95% CI {low:+.1f} to {high:+.1f}, p = {compared.p_value:.2g}: {verdict}"
    )


def create_parser() -> Parser:
    """Return the parser of `python -m search.compare`."""
    parser = Parser(
        prog="python -m search.compare",
        description="Compare two finished runs on the same test images: the difference of their"
        " accuracies with its 95% confidence interval, and McNemar's test (mid-p-value). A page"
        " shows both side by side.",
        epilog="Of several runs that are compared, the best one's accuracy is optimistic: its test"
        " set has chosen it.",
    )
    for name, letter in (("first", "A"), ("second", "B")):
        parser.add_argument(name, type=Path, metavar=letter, help="a run's folder, or latest")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="HTML",
        help=f"page that shows both runs side by side (default: {PAGE}; with --json or --csv none)",
    )
    shape = parser.add_mutually_exclusive_group()
    for name, what in (
        ("json", "write JSON"),
        ("csv", "write the images that one of the two alone predicts correctly, as CSV"),
    ):
        shape.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=what)
    return parser


if __name__ == "__main__":
    sys.exit(main())
