"""What a run left in its folder, read back for the report. Any part of it may be missing."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from search.evaluation.label_issues import LabelIssue, read_issues
from search.reporting.audit_page import Finding
from search.runs.run_folder import STUDY, RunFolder

STUDY_NAME = "search"
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}
"""What a reader is told of a trial; one that waits has not begun and is left out."""


@dataclass(frozen=True)
class Epoch:
    """One line of a trial's curve: mean cross-entropies in nats, and shares in [0, 1]."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class TrialRecord:
    """One trial: what was tried, how it went and how it ended.

    Attributes:
        number: The study's.
        state: "complete", "stopped early", "failed" or "unfinished".
        params: The searched ones.
        curve: The epochs that it ended.
        accuracy: On the validation split at its best epoch; None when it ended no epoch.
        best_epoch: Counted from 1.
        seconds: That it took, as far as it is known.
        reason: Why it failed, else "".
    """

    number: int
    state: str
    params: Mapping[str, Any]
    curve: tuple[Epoch, ...]
    accuracy: float | None
    best_epoch: int | None
    seconds: float | None
    reason: str


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        name: The image's.
        label: Its class, or None where it is not known.
        ranked: The likeliest classes with their probabilities, at most three.
        is_ood: Whether it is not like the training images; False where the model cannot tell.
    """

    name: str
    label: str | None
    ranked: tuple[tuple[str, float], ...]
    is_ood: bool = False

    @property
    def correct(self) -> bool | None:
        """Whether the likeliest class is the right one; None where that is not known."""
        return None if self.label is None else self.ranked[0][0] == self.label

    @property
    def low_confidence(self) -> bool:
        """Whether the second class is nearly as likely as the first."""
        runner_up = self.ranked[1][1] if len(self.ranked) > 1 else 0.0
        return self.ranked[0][1] - runner_up < 0.2


@dataclass(frozen=True)
class Record:
    """All that a run's folder tells.

    Attributes:
        folder: The run's.
        summary: `summary.json`.
        environment: `environment.json`.
        space_source: `space.py`.
        study: None where there is none that can be read.
        trials: By number, without those that wait.
        folds: By trial, the accuracy of each fold.
        test: Of the held-out images.
        external: Of the images from elsewhere.
        audit: What was found in the images.
        class_counts: By class, then by split, the number of images.
        label_issues: Labels that look wrong, the worst first.
        ablation: By rung, its epochs.
    """

    folder: Path
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    space_source: str
    study: optuna.Study | None
    trials: tuple[TrialRecord, ...]
    folds: Mapping[int | None, tuple[float, ...]]
    test: tuple[Prediction, ...]
    external: tuple[Prediction, ...]
    audit: tuple[Finding, ...]
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
    def winner(self) -> TrialRecord | None:
        """The trial whose folds are the model."""
        number = self.summary.get("best", {}).get("trial")
        return next((trial for trial in self.trials if trial.number == number), None)


def read_record(folder: RunFolder) -> Record:
    """Read what there is in a run's folder."""
    path = folder.path
    study = _open_study(path / STUDY)
    frozen = study.get_trials(deepcopy=False) if study is not None else []
    counts: dict[str, Counter[str]] = {}
    for row in _rows(path / "split.csv"):
        counts.setdefault(row["label"], Counter())[row["split"]] += 1
    folds: dict[int | None, tuple[float, ...]] = {}
    for row in _rows(path / "folds" / "folds.csv"):
        number = int(row["trial"]) if row["trial"].isdigit() else None  # the probe has none
        folds[number] = (*folds.get(number, ()), float(row["accuracy"]))
    return Record(
        folder=path,
        summary=folder.summary,
        environment=folder.environment,
        space_source=(path / "space.py").read_text(encoding="utf-8", errors="replace"),
        study=study,
        trials=tuple(_read_trial(t, path / "trials") for t in frozen if t.state in _STATES),
        folds=folds,
        test=read_predictions(path / "test_predictions.csv"),
        external=read_predictions(path / "external_predictions.csv"),
        audit=tuple(
            Finding(**{name: row.get(name) or "" for name in Finding.__annotations__})
            for row in _rows(path / "audit.csv")
        ),
        class_counts=counts,
        label_issues=read_issues(path / "folds" / "label_issues.csv"),
        ablation=_read_ablation(path / "ladder.csv"),
    )


def _open_study(path: Path) -> optuna.Study | None:
    """Open the study as it is; a file that a killed run left without one counts as none."""
    if not path.is_file():
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path.absolute()}", skip_table_creation=True
        )
        return optuna.load_study(study_name=STUDY_NAME, storage=storage)
    except (KeyError, SQLAlchemyError, StorageInternalError):
        return None


def _read_trial(trial: FrozenTrial, folder: Path) -> TrialRecord:
    curve = _read_curve(folder / str(trial.number) / "progress.csv")
    best = max(curve, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss), default=None)
    kept, values = trial.user_attrs, trial.intermediate_values
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        params=trial.params,
        curve=curve,
        accuracy=best.val_accuracy if best else max(values.values(), default=None),
        best_epoch=best.epoch if best else kept.get("best_epoch"),
        seconds=kept.get("seconds"),
        reason=str(kept.get("reason", "")),
    )


def _read_ablation(path: Path) -> dict[str, tuple[Epoch, ...]]:
    """Read the rungs of the ladder, lowest first."""
    rungs: dict[str, tuple[Epoch, ...]] = {}
    for row in _rows(path):
        values = [float(row[name]) for name in list(Epoch.__annotations__)[1:]]
        epoch = Epoch(int(row["epoch"]), *values)
        rungs[row["name"]] = (*rungs.get(row["name"], ()), epoch)
    return rungs


def _read_curve(path: Path) -> tuple[Epoch, ...]:
    """Read a trial's epochs; the last line may be torn where a run was killed."""
    epochs: dict[int, Epoch] = {}
    for row in _rows(path):
        try:
            values = [float(row[name]) for name in list(Epoch.__annotations__)[1:]]
            epochs[int(row["epoch"])] = Epoch(int(row["epoch"]), *values)
        except (TypeError, ValueError):
            continue
    return tuple(epochs[number] for number in sorted(epochs))


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Read a table of predictions, in its order; nothing where there is none."""
    places = ("first", "second", "third")
    return tuple(
        Prediction(
            name=row["name"],
            label=row["label"] or None,
            ranked=tuple((row[p], float(row[f"{p}_probability"])) for p in places if row.get(p)),
            is_ood=row.get("is_ood") == "1",
        )
        for row in _rows(path)
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield a table's rows by column; nothing where there is no file.

    The bytes of a file's name need not be UTF-8; what is not is shown as a replacement mark.
    """
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            yield from csv.DictReader(file)
