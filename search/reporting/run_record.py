"""Read back what a run left in its folder, for the report. Any part of it may be missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.console.formatting import describe, percent
from search.data.audit import read_audit_csv
from search.data.manifest import Issue
from search.evaluation.label_issues import LabelIssue, read_issues
from search.evaluation.predictions import (
    LabelledProbabilities,
    PredictedImage,
    read_predictions,
    read_probabilities,
)
from search.runs.environment import Environment
from search.runs.run_folder import STUDY, RunFolder
from search.runs.summary import RunSummary
from search.runs.tables import read_fraction, read_records
from search.runs.validation import FolderError
from search.tuning.study import BEST, REASON, SECONDS, STATES, UNFINISHED, best_epoch, load_study
from spaces.conditions import join
from spaces.rules import Value

_T = TypeVar("_T")


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
        accuracy: The best epoch's validation accuracy; None where it ended no epoch.
        score: Likewise its score, by the metric; higher is better.
        best_epoch: Counted from 1.
        seconds: Seconds that it took; None where that is unknown.
        reason: Why it failed, else "".
    """

    number: int
    state: str
    params: Mapping[str, Value]
    curve: tuple[Epoch, ...]
    accuracy: float | None
    score: float | None
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
        folds: By the number of a trial, or the name of a linear probe, the accuracy of each fold.
        test: Predictions of the test set.
        external: Predictions of the external test set.
        audit: Issues that were found in the images.
        class_counts: By class, then by split, the number of images.
        label_issues: Possible label errors, the lowest quality first.
        ablation: By step, its learning curve.
        test_probabilities: Those of the test set; None where they are missing.
        problems: Files that are damaged, in words; what they hold counts as missing.
    """

    folder: Path
    summary: RunSummary
    environment: Environment
    space_source: str
    study: optuna.Study | None
    trials: tuple[TrialRecord, ...]
    folds: Mapping[str, tuple[float, ...]]
    test: tuple[PredictedImage, ...]
    external: tuple[PredictedImage, ...]
    audit: tuple[Issue, ...]
    class_counts: Mapping[str, Mapping[str, int]]
    label_issues: tuple[LabelIssue, ...] = ()
    ablation: Mapping[str, tuple[Epoch, ...]] = field(default_factory=dict)
    test_probabilities: LabelledProbabilities | None = None
    problems: tuple[str, ...] = ()

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters that vary, with their ranges; of several, what holds all of them."""
        found: dict[str, BaseDistribution] = {}
        if self.study is not None:
            for trial in self.study.get_trials(deepcopy=False):
                for name, one in trial.distributions.items():
                    found[name] = join([found[name], one]) if name in found else one
        return {name: one for name, one in found.items() if not one.single()}

    @property
    def best_trial(self) -> TrialRecord | None:
        """The trial that the final model was retrained from, or the best so far."""
        number = None if self.summary.best is None else self.summary.best.trial
        return next((trial for trial in self.trials if trial.number == number), None)


def describe_trial(trial: TrialRecord) -> str:
    """Describe a trial: "trial 3, complete: 95.2% at epoch 4; backbone resnet18, lr 0.001"."""
    reached = "no epoch"
    if trial.accuracy is not None:
        reached = f"{percent(trial.accuracy, 2)} at epoch {trial.best_epoch}"
    return f"trial {trial.number}, {trial.state}: {reached}; {describe(trial.params)}"


def read_record(folder: RunFolder) -> Record:
    """Read everything that there is in a run's folder."""
    path = folder.path
    problems: list[str] = []

    def read(read_table: Callable[[Path], Sequence[_T]], name: str) -> Sequence[_T]:
        try:
            return read_table(path / name)
        except FolderError as error:
            problems.append(f"{error}; this report lacks what it holds")
            return ()

    study = load_study(path)
    if study is None and (path / STUDY).is_file():
        problems.append(f"{path / STUDY} is damaged; this report lacks the trials")
    frozen = study.get_trials(deepcopy=False) if study is not None else []
    counts: dict[str, Counter[str]] = {}
    for label, split in read(_read_splits, "split.csv"):
        counts.setdefault(label, Counter())[split] += 1
    folds: dict[str, tuple[float, ...]] = {}
    for trial, accuracy in read(_read_folds, "folds/folds.csv"):
        folds[trial] = (*folds.get(trial, ()), accuracy)
    test = tuple(read(read_predictions, "test_predictions.csv"))
    probabilities = None
    if test:  # else its damage is known already
        found = read(lambda table: [read_probabilities(table)], "test_predictions.csv")
        probabilities = found[0] if found else None
    ablation: dict[str, tuple[Epoch, ...]] = {}
    for step, epoch in read(_read_ablation, "ablation.csv"):
        ablation[step] = (*ablation.get(step, ()), epoch)
    return Record(
        folder=path,
        summary=folder.summary,
        environment=folder.environment,
        space_source=(path / "space.py").read_text(encoding="utf-8", errors="replace"),
        study=study,
        trials=tuple(
            _read_trial(trial, read(_read_curve, f"trials/{trial.number}/progress.csv"))
            for trial in frozen
            if trial.state != TrialState.WAITING
        ),
        folds=folds,
        test=test,
        external=tuple(read(read_predictions, "external_predictions.csv")),
        audit=tuple(read(partial(read_audit_csv, errors="replace"), "audit.csv")),
        class_counts=counts,
        label_issues=tuple(read(read_issues, "folds/label_issues.csv")),
        ablation=ablation,
        test_probabilities=probabilities,
        problems=tuple(problems),
    )


def _read_trial(trial: FrozenTrial, curve: Sequence[Epoch]) -> TrialRecord:
    best = best_epoch(trial) if BEST in trial.user_attrs else None
    return TrialRecord(
        number=trial.number,
        state=STATES.get(trial.state, UNFINISHED),
        params=trial.params,
        curve=tuple(curve),
        accuracy=best.val_accuracy if best else None,
        score=best.val_score if best else None,
        best_epoch=best.epoch if best else None,
        seconds=trial.user_attrs.get(SECONDS),
        reason=str(trial.user_attrs.get(REASON, "")),
    )


def _read_curve(path: Path) -> list[Epoch]:
    return read_records(path, _read_epoch, errors="replace")


def _read_ablation(path: Path) -> list[tuple[str, Epoch]]:
    """Read the epochs of each step, in their order."""
    return read_records(path, lambda row: (row["name"], _read_epoch(row)), errors="replace")


def _read_splits(path: Path) -> list[tuple[str, str]]:
    """Read the class and the split of each image."""
    return read_records(path, lambda row: (row["label"], row["split"]), errors="replace")


def _read_folds(path: Path) -> list[tuple[str, float]]:
    """Read the finalist and the accuracy of each fold."""
    return read_records(
        path, lambda row: (row["trial"], read_fraction(row["accuracy"])), errors="replace"
    )


def _read_epoch(row: Mapping[str, str]) -> Epoch:
    values = {one.name: float(row[one.name]) for one in fields(Epoch)[1:]}
    return Epoch(int(row["epoch"]), **values)
