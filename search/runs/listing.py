"""List the runs in a folder of results, with what each one was on and how good its model is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from search.runs.run_folder import ENVIRONMENT, MODEL, RUN_LOG, RunFolder
from search.runs.validation import FolderError

LATEST = "latest"
"""Stands for the newest finished run of a folder: `latest`, `other-results/latest`."""

RESULTS = Path("results")
"""The folder of runs where none is given."""

METRIC = "accuracy"
"""What models are compared by."""

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """One run of a folder of results; None is unknown, or has not been reached yet.

    Attributes:
        run: Its folder.
        began: When it began, UTC: "2026-01-31T12:00:00Z".
        data: The folder of its images, or the name of its space where that brings them.
        n_classes: Number of classes.
        n_images: Number of images.
        metric: What `test` is.
        test: The metric on the test set, in [0, 1].
        test_ci95: Its 95% confidence interval.
        n_test: Images in the test set.
        minutes: What all its sessions took, in minutes.
        is_complete: Whether its last stage has ended.
        problem: Why its files cannot be read; "" where they can.
    """

    run: str
    began: str | None = None
    data: str | None = None
    n_classes: int | None = None
    n_images: int | None = None
    metric: str = METRIC
    test: float | None = None
    test_ci95: tuple[float, float] | None = None
    n_test: int | None = None
    minutes: float | None = None
    is_complete: bool = False
    problem: str = ""


def list_runs(results: Path) -> list[ListedRun]:
    """List the runs of a folder, the latest last; one that cannot be read has its problem.

    Raises:
        FolderError: there is no such folder.
    """
    if not results.is_dir():
        raise FolderError(f"there is no folder {results}: give the one that holds the runs")
    found = [describe_run(path.parent) for path in results.glob(f"*/{ENVIRONMENT}")]
    return sorted(found, key=lambda one: (one.began or "", one.run))


def find_run(path: Path) -> Path:
    """Return the run that a path names: itself, or for `latest` the newest finished one.

    `latest` alone is that of the folder `RESULTS`, `other/latest` that of the folder `other`. What
    really has this name is taken as it is.

    Raises:
        FolderError: the folder has no finished run with a model.
    """
    if path.name != LATEST or os.path.lexists(path):
        return path
    results = RESULTS if path == Path(LATEST) else path.parent
    finished = [
        run.run
        for run in list_runs(results)
        if run.is_complete and (Path(run.run) / MODEL).is_file()
    ]
    if not finished:
        raise FolderError(
            f"{path} is the newest finished run in {results}, but none there is finished:"
            " python -m search.list shows them"
        )
    return Path(finished[-1])


def describe_run(path: Path) -> ListedRun:
    """Describe the run in a folder."""
    try:
        folder = RunFolder.open(path)
    except FolderError as error:
        return ListedRun(run=str(path), began=_began(path), problem=str(error))
    request, summary = folder.environment.request, folder.summary
    test, counts, stages = summary.test, summary.data, summary.stages
    return ListedRun(
        run=str(path),
        began=_began(path),
        data=str(request.data) if request.data else f"space {request.space.stem}",
        n_classes=None if counts is None else len(counts.classes),
        n_images=None if counts is None else counts.n,
        test=None if test is None else test.accuracy,
        test_ci95=None if test is None else test.accuracy_ci95,
        n_test=None if test is None else test.n,
        minutes=None if stages is None else round(sum(stages.values()) / 60, 2),
        is_complete=test is not None and "report" in (stages or {}),
    )


def _began(path: Path) -> str | None:
    """Return when a run began: the first line of its log, or the time of its oldest file."""
    log, space = path / RUN_LOG, path / "space.py"
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as lines:
            if found := _DATE.match(lines.readline()):
                return found[0]
    if not space.is_file():
        return None
    return datetime.fromtimestamp(space.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
