"""Compare two finished runs on the test images that both have.

```
python -m search.compare results/photos-1 results/photos-2
python -m search.compare results/photos-1 results/photos-2 --csv > only_one_correct.csv
```

Images are the same where their bytes are: by the digests in `split.csv`, whatever their names are.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from search.console.arguments import Parser
from search.console.formatting import count, interval, percent, printable_name, quote_path, some
from search.console.output import command, csv_output, print_error, table_console
from search.evaluation.comparison import compare_models
from search.evaluation.predictions import TOP_K
from search.reporting.sentences import describe_evaluations
from search.runs.listing import find_run
from search.runs.run_folder import RunFolder
from search.runs.summary import Comparison, Scores
from search.runs.tables import prediction_columns, read_rows
from search.runs.validation import FolderError
from spaces.errors import SearchError

_LETTERS = "AB"


class CompareError(SearchError):
    """Two runs cannot be compared image by image."""


@dataclass(frozen=True, eq=False)
class TestedRun:
    """A run that was evaluated on its test set.

    Attributes:
        path: The run's folder.
        scores: The metrics of its test set.
        rows: The lines of its table of predictions, each with the image's digest as `digest`, in
            the order of digests: the same for two runs on the same images.
        note: What more than one evaluation of the test set means; None where there was one.
    """

    path: Path
    scores: Scores
    rows: Sequence[Mapping[str, str]]
    note: str | None

    def column(self, name: str) -> list[str]:
        """Return one column of the table."""
        return [row[name] for row in self.rows]


def read_tested_run(path: Path) -> TestedRun:
    """Read a run's test set and what its model predicted.

    Raises:
        FolderError: it is no run, or a damaged one.
        CompareError: it was not evaluated yet.
    """
    folder = RunFolder.open(path)
    scores, table = folder.summary.test, path / "test_predictions.csv"
    if scores is None or not table.is_file():
        raise CompareError(
            f"{path} must be a finished run, but its test set is not evaluated: python -m"
            f" search.run --resume {quote_path(path)}"
        )
    try:
        digests = {row["image"]: row["digest"] for row in read_rows(path / "split.csv")}
        rows = [{**row, "digest": digests[row["image"]]} for row in read_rows(table)]
        n_correct = sum(row["label"] == row["prediction_1"] for row in rows)
    except (KeyError, ValueError, OSError) as error:
        raise FolderError(
            f"{path} is damaged: test_predictions.csv and split.csv must list the same images, but"
            f" {error!r}; put copies of them back"
        ) from None
    if (len(rows), n_correct) != (scores.n, round(scores.accuracy * scores.n)):
        raise FolderError(
            f"{path} is damaged: summary.json counts {round(scores.accuracy * scores.n)} of"
            f" {scores.n} test images as correct, test_predictions.csv {n_correct} of {len(rows)};"
            " put copies of them back, or resume the run"
        )
    rows.sort(key=lambda row: (row["digest"], row["label"], row["image"]))
    return TestedRun(path, scores, rows, describe_evaluations(folder.summary.evaluation))


def check_same_images(first: TestedRun, second: TestedRun) -> None:
    """Check that two runs have the same test images, with the same labels.

    Raises:
        CompareError: they have not; the message says what differs.
    """
    differences = _alone(first, second) + _alone(second, first)
    if not differences:
        pairs = zip(first.rows, second.rows, strict=True)
        relabelled = [(a, b) for a, b in pairs if a["label"] != b["label"]]
        differences = [
            f"{count(len(relabelled), 'image')} with another label, such as {a['image']}:"
            f" {a['label']!r} in {first.path}, {b['label']!r} in {second.path}"
            for a, b in relabelled[:1]
        ]
    if differences:
        raise CompareError(
            f"{first.path} and {second.path} must have the same test images to be compared, but"
            f" there are {'; '.join(differences)}. Runs on the same images with the same --seed and"
            " --limit have the same test set, and so have all runs on a data set that brings one"
        )


def _alone(run: TestedRun, other: TestedRun) -> list[str]:
    """Return, in words, the test images that only one run has; nothing where there are none."""
    missing = Counter(run.column("digest")) - Counter(other.column("digest"))
    names = [row["image"] for row in run.rows if row["digest"] in missing]
    if not names:
        return []
    return [f"{missing.total()} of {len(run.rows)} in {run.path} alone ({some(names, 2)})"]


def compare_runs(first: TestedRun, second: TestedRun) -> Comparison:
    """Compare two runs on the same test images: the first is the model, the second the baseline."""
    numbers: dict[str, int] = {}
    columns = (
        first.column("label"),
        first.column("prediction_1"),
        second.column("prediction_1"),
    )
    labels, model, baseline = (
        np.array([numbers.setdefault(name, len(numbers)) for name in names]) for names in columns
    )
    return compare_models(labels, model, baseline)


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = create_parser().parse_args(arguments)
    try:
        first, second = (
            read_tested_run(find_run(path)) for path in (options.first, options.second)
        )
        check_same_images(first, second)
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
    return 0


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
            cells = {**row, "run": str(run.path), "is_correct": str(int(is_correct))}
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
        " accuracies with its 95% confidence interval, and McNemar's test (mid-p-value).",
        epilog="Of several runs that are compared, the best one's accuracy is optimistic: its test"
        " set has chosen it.",
    )
    for name, letter in (("first", "A"), ("second", "B")):
        parser.add_argument(name, type=Path, metavar=letter, help="a run's folder, or latest")
    shape = parser.add_mutually_exclusive_group()
    for name, what in (
        ("json", "write JSON"),
        ("csv", "write the images that one of the two alone predicts correctly, as CSV"),
    ):
        shape.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=what)
    return parser


if __name__ == "__main__":
    sys.exit(main())
