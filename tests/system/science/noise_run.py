"""A whole run on noise, as a user starts it, that records which images every training takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from search.runs.tables import read_rows
from tests.system.science.noise import draw_images, planted_group

ROOT = Path(__file__).parents[3]
SEED = 0
N_FOLDS = 3
N_EPOCHS = 8
FIRST_TRIALS = (
    {"freeze_depth": 5, "lr": 1e-4},  # stays close to the probe's head, which it begins with
    {"freeze_depth": 0, "lr": 3e-3},
    {"freeze_depth": 5, "lr": 1e-2},
)

SPACE = f"""
from optuna.distributions import FloatDistribution, IntDistribution
from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(),
    params={{
        "backbone": "tinynet",
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "batch_size": 8,
    }},
    first_trials={FIRST_TRIALS},
    trials={len(FIRST_TRIALS)},
    image_size=32, resize_size=32, epochs={N_EPOCHS}, folds={N_FOLDS}, views=2, flip=False,
)
"""


@dataclass
class Training:
    """The images that one training took, as rows of the image table.

    Attributes:
        fitted: On which its initial head was fitted.
        learned: On which it was trained.
        predicted: Which it predicted, in this order.
    """

    fitted: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)

    @property
    def seen(self) -> set[int]:
        """Rows of all images whose labels it has seen."""
        return {*self.fitted, *self.learned}


@dataclass(frozen=True)
class NoiseRun:
    """The run's folder, and what it recorded.

    Attributes:
        path: Holds the images, `record.jsonl`, and the run's folder.
    """

    path: Path

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.path / "run"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return content

    @cached_property
    def split(self) -> list[dict[str, str]]:
        """The lines of `split.csv`: line i is of row i of the image table."""
        return [dict(row) for row in read_rows(self.folder / "split.csv")]

    def rows(self, *splits: str) -> set[int]:
        """Return the rows of some splits."""
        return {i for i, image in enumerate(self.split) if image["split"] in splits}

    def names(self, *splits: str) -> list[str]:
        """Return the names of the images of some splits."""
        return [self.split[row]["image"] for row in sorted(self.rows(*splits))]

    def groups(self, rows: Sequence[int] | set[int]) -> set[str]:
        """Return the planted groups of some rows."""
        return {planted_group(self.split[row]["image"]) for row in rows}

    @cached_property
    def labels(self) -> np.ndarray:
        """The label of each row."""
        return np.unique([image["label"] for image in self.split], return_inverse=True)[1]

    @cached_property
    def events(self) -> dict[str, list[dict[str, Any]]]:
        """The events of each stage."""
        stages: dict[str, list[dict[str, Any]]] = {}
        waiting: list[dict[str, Any]] = []
        for line in (self.path / "record.jsonl").read_text().splitlines():
            event = json.loads(line)
            waiting.append(event)
            if "end" in event:
                stages[event["end"]] = waiting[:-1]
                waiting = []
        return stages

    def trainings(self, stage: str) -> list[Training]:
        """Return the trainings of a stage; in each worker one follows the other."""
        events = self.events[stage]
        by_worker = [
            [event for event in events if event["pid"] == pid]
            for pid in dict.fromkeys(event["pid"] for event in events)
        ]
        return [training for worker in by_worker for training in _trainings(worker)]


def _trainings(events: list[dict[str, Any]]) -> Iterator[Training]:
    training, begun = Training(), False
    for event in events:
        if event["does"] in ("fits a head", "begins"):
            if begun:
                yield training
                training = Training()
            begun = event["does"] == "begins"
        elif event["does"] == "learns":
            (training.learned if begun else training.fitted).extend(event["rows"])
        elif event["does"] == "predicts":
            training.predicted.extend(event["rows"])
    if begun:
        yield training


def run_on_noise(path: Path) -> None:
    """Draw the images, and run the whole flow on them in an own process.

    Raises:
        AssertionError: the run fails.
    """
    path.mkdir(parents=True)
    data, external = draw_images(path, SEED)
    (path / "space.py").write_text(SPACE)
    arguments = ["--space", path / "space.py", "--data", data, "--external", external]
    arguments += ["--out", path, "--name", "run", "--seed", SEED, "--scheduler", "none"]
    arguments += ["--finalists", len(FIRST_TRIALS), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.science.recorded", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "RECORD": str(path / "record.jsonl")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
