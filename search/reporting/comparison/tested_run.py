"""Read two runs that were evaluated on the same test images.

Images are the same where their bytes are: by the digests in `split.csv`, whatever their names are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search.console.formatting import count, quote_path, some
from search.evaluation.comparison import compare_models
from search.reporting.sentences import describe_evaluations
from search.runs.run_folder import RunFolder
from search.runs.summary import Comparison, Scores
from search.runs.tables import read_fraction, read_rows
from search.runs.validation import FolderError
from spaces.errors import SearchError


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
        for row in rows:
            read_fraction(row["probability_1"])
    except (KeyError, ValueError, OSError) as error:
        raise FolderError(
            f"{path} is damaged: test_predictions.csv and split.csv must list the same images, with"
            f" predictions, but {error!r}; put copies of them back"
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
