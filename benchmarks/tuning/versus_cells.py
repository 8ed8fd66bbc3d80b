"""The cells of `versus`: one training each, run in a process of its own, recorded as it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.reporting import ROOT, describe_commit
from benchmarks.tuning.competitors.commands import COMPETITORS, python_of
from benchmarks.tuning.competitors.job import Job
from benchmarks.tuning.versus_sets import ImageSet
from search.evaluation.metrics import score_predictions

ALL = "all"
"""Value of `Cell.images` that takes all training images."""

_MAX_OVERRUN = 2.0
_MAX_EXTRA_SECONDS = 300.0
_MAX_SECONDS = 3600.0
"""A process ends by force after so many times its time and so many seconds more; or after the last,
where it was given no time."""

_ERROR_CHARACTERS = 2000


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        set: Name of the image set.
        images: Training images of each class, or ALL.
        seed: Seed of the subset and of the training.
        seconds: Wall time that is given; None where the competitor takes none.
        competitor: One of `competitors.commands.COMPETITORS`.
    """

    set: str
    images: str
    seed: int
    seconds: float | None
    competitor: str

    @property
    def n_per_class(self) -> int | None:
        """Training images of each class; None for all."""
        return None if self.images == ALL else int(self.images)

    def __str__(self) -> str:
        """Describe the cell in one line."""
        given = "" if self.seconds is None else f", {self.seconds:g} s"
        return f"{self.set}, {self.images} a class, seed {self.seed}{given}, {self.competitor}"


Record = dict[str, Any]
"""A cell's fields, and `accuracy`, `log_loss`, `n`, `taken` and `model_after` in seconds,
`overran`, `error`, `commit`, `load`."""


def plan_cells(
    sets: Sequence[str],
    images: Sequence[str],
    seeds: Sequence[int],
    times: Sequence[float],
    competitors: Sequence[str],
) -> list[Cell]:
    """List the cells, those of the first seed first; each that takes no time once."""
    cells = [
        Cell(name, count, seed, seconds if COMPETITORS[who].takes_time else None, who)
        for seed in seeds
        for count in images
        for name in sets
        for seconds in times
        for who in competitors
    ]
    return list(dict.fromkeys(cells))


def read_records(path: Path) -> dict[Cell, Record]:
    """Read what was recorded, the last record of each cell; a torn last line is passed over."""
    records = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[Cell(**{field.name: record[field.name] for field in fields(Cell)})] = record
    return records


def append_record(path: Path, record: Record) -> None:
    """Append a record as one line, on disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def pending(cells: Sequence[Cell], records: dict[Cell, Record]) -> Iterator[Cell]:
    """Yield the cells without a result; those that failed are run again."""
    yield from (cell for cell in cells if records.get(cell, {"error": ""})["error"] is not None)


def run_cell(
    cell: Cell,
    images: ImageSet,
    weights: Path | None,
    backbones: Sequence[str],
    image_size: int,
    autogluon_python: str | None,
    folder: Path,
) -> Record:
    """Train, predict the test images with the model file, and return the record.

    Args:
        cell: What to run.
        images: The set's images.
        weights: Folder of pretrained weights.
        backbones: The networks that may be used.
        image_size: Side in pixels that networks see.
        autogluon_python: See `competitors.commands.python_of`.
        folder: An empty folder for everything that the training writes.
    """
    competitor = COMPETITORS[cell.competitor]
    images = images.take(cell.n_per_class, cell.seed)
    images.link(folder / "images")
    model = folder / competitor.model
    job = Job(
        images=str(folder / "images"),
        model=str(model),
        weights=None if weights is None else str(weights.resolve()),
        backbones=tuple(backbones),
        seconds=cell.seconds,
        seed=cell.seed,
        image_size=image_size,
    )
    python = python_of(cell.competitor, autogluon_python)
    started, load = time.time(), os.getloadavg()[0]
    error = run_process([python, *competitor.command(job, folder)], cell.seconds, folder / "log")
    taken = time.time() - started
    record: Record = {
        **asdict(cell),
        "taken": round(taken, 2),
        "overran": cell.seconds is not None and taken > cell.seconds,
        "error": error,
        "commit": describe_commit(),
        "load": round(load, 2),
    }
    if error is None and not model.exists():
        record["error"] = f"it ended without a model; {_tail(folder / 'log')}"
    if record["error"] is None:
        record["model_after"] = round(model.stat().st_mtime - started, 2)
        probabilities, classes = competitor.predict(model, images.test.paths, python)
        record |= score(images, probabilities, classes)
    return record


def score(images: ImageSet, probabilities: np.ndarray, classes: Sequence[str]) -> Record:
    """Compute accuracy and log loss on the test images.

    Args:
        images: The set.
        probabilities: float [test images, classes].
        classes: The classes in the order of the columns.
    """
    if sorted(classes) != sorted(images.test.classes):
        raise ValueError(f"the model's classes {classes} are not {images.test.classes}")
    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place[images.test.classes[label]] for label in images.test.labels])
    scores = score_predictions(labels, probabilities, classes)
    return {"accuracy": scores.accuracy, "log_loss": scores.log_loss, "n": scores.n}


def run_process(command: Sequence[str], seconds: float | None, log: Path) -> str | None:
    """Run a command to its end; return why it failed, or None.

    What it prints goes to a file. A process that overruns its time by far ends by force, with all
    that it has started.
    """
    limit = _MAX_SECONDS if seconds is None else _MAX_OVERRUN * seconds + _MAX_EXTRA_SECONDS
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TUNE_")}
    environment["PYTHONPATH"] = str(ROOT)
    with log.open("w") as file:
        process = subprocess.Popen(
            list(command),
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return f"it was ended by force after {limit:g} s"
            raise
    return None if process.returncode == 0 else f"exit code {process.returncode}; {_tail(log)}"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-_ERROR_CHARACTERS:]
