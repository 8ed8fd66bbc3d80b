"""Read back what a run left in its folder, for the report. Any part of it may be missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.data.audit import read_audit_csv
from search.data.manifest import Issue
from search.evaluation.label_issues import LabelIssue, read_issues
from search.evaluation.predictions import PredictedImage, read_predictions
from search.runs.environment import Environment
from search.runs.run_folder import RunFolder
from search.runs.summary import RunSummary
from search.runs.tables import read_rows
from search.tuning.study import BEST, REASON, SECONDS, STATES, UNFINISHED, best_epoch, load_study
from spaces.rules import Value


@dataclass(frozen=True)
class Epoch:
    """One line of a learning curve: mean cross-entropies in nats, and fractions in [0, 1]."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class TrialRecord:
    """One trial: its parameters, its learning curve, and how it ended.

    Attributes:
        number: Its number in the study.
        state: "complete", "pruned", "failed" or "unfinished".
        params: The searched ones.
        curve: The epochs that it ended.
        accuracy: The best validation accuracy; None where it ended no epoch.
        best_epoch: Counted from 1.
        seconds: Seconds that it took; None where that is unknown.
        reason: Why it failed, else "".
    """

    number: int
    state: str
    params: Mapping[str, Value]
    curve: tuple[Epoch, ...]
    accuracy: float | None
    best_epoch: int | None
    seconds: float | None
    reason: str


@dataclass(frozen=True)
class Record:
    """The content of a run folder.

    Attributes:
        folder: The run's folder.
        summary: `summary.json`.
        environment: `environment.json`.
        space_source: `space.py`.
        study: None where there is none that can be read.
        trials: By number, without those that have not begun.
        folds: By trial, the accuracy of each fold.
        test: Predictions of the test set.
        external: Predictions of the external test set.
        audit: Issues that were found in the images.
        class_counts: By class, then by split, the number of images.
        label_issues: Possible label errors, the lowest quality first.
        ablation: By step, its learning curve.
    """

    folder: Path
    summary: RunSummary
    environment: Environment
    space_source: str
    study: optuna.Study | None
    trials: tuple[TrialRecord, ...]
    folds: Mapping[int | None, tuple[float, ...]]
    test: tuple[PredictedImage, ...]
    external: tuple[PredictedImage, ...]
    audit: tuple[Issue, ...]
    class_counts: Mapping[str, Mapping[str, int]]
    label_issues: tuple[LabelIssue, ...] = ()
    ablation: Mapping[str, tuple[Epoch, ...]] = field(default_factory=dict)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The searched parameters with their ranges."""
        found: dict[str, BaseDistribution] = {}
        if self.study is not None:
            for trial in self.study.get_trials(deepcopy=False):
                found.update(trial.distributions)
        return found

    @property
    def best_trial(self) -> TrialRecord | None:
        """The trial that the final model was retrained from, or the best so far."""
        number = None if self.summary.best is None else self.summary.best.trial
        return next((trial for trial in self.trials if trial.number == number), None)


def read_record(folder: RunFolder) -> Record:
    """Read everything that there is in a run's folder."""
    path = folder.path
    study = load_study(path)
    frozen = study.get_trials(deepcopy=False) if study is not None else []
    counts: dict[str, Counter[str]] = {}
    for row in _rows(path / "split.csv"):
        counts.setdefault(row["label"], Counter())[row["split"]] += 1
    folds: dict[int | None, tuple[float, ...]] = {}
    for row in _rows(path / "folds" / "folds.csv"):
        number = int(row["trial"]) if row["trial"].isdigit() else None  # a linear probe has none
        folds[number] = (*folds.get(number, ()), float(row["accuracy"]))
    return Record(
        folder=path,
        summary=folder.summary,
        environment=folder.environment,
        space_source=(path / "space.py").read_text(encoding="utf-8", errors="replace"),
        study=study,
        trials=tuple(
            _read_trial(trial, path / "trials")
            for trial in frozen
            if trial.state != TrialState.WAITING
        ),
        folds=folds,
        test=read_predictions(path / "test_predictions.csv"),
        external=read_predictions(path / "external_predictions.csv"),
        audit=read_audit_csv(path / "audit.csv", errors="replace"),
        class_counts=counts,
        label_issues=read_issues(path / "folds" / "label_issues.csv"),
        ablation=_read_ablation(path / "ablation.csv"),
    )


def _read_trial(trial: FrozenTrial, folder: Path) -> TrialRecord:
    curve = tuple(map(_read_epoch, _rows(folder / str(trial.number) / "progress.csv")))
    best = best_epoch(trial) if BEST in trial.user_attrs else None
    return TrialRecord(
        number=trial.number,
        state=STATES.get(trial.state, UNFINISHED),
        params=trial.params,
        curve=curve,
        accuracy=best.val_accuracy if best else None,
        best_epoch=best.epoch if best else None,
        seconds=trial.user_attrs.get(SECONDS),
        reason=str(trial.user_attrs.get(REASON, "")),
    )


def _read_ablation(path: Path) -> dict[str, tuple[Epoch, ...]]:
    """Read the learning curve of each step, in their order."""
    steps: dict[str, tuple[Epoch, ...]] = {}
    for row in _rows(path):
        steps[row["name"]] = (*steps.get(row["name"], ()), _read_epoch(row))
    return steps


def _read_epoch(row: Mapping[str, str]) -> Epoch:
    values = {one.name: float(row[one.name]) for one in fields(Epoch)[1:]}
    return Epoch(int(row["epoch"]), **values)


def _rows(path: Path) -> list[dict[str, str]]:
    """Read a table's rows; bytes of names that are not UTF-8 become replacement marks."""
    return read_rows(path, errors="replace")
