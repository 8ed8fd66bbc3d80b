"""Define what a tracker gets, a search, its trials and its results, and the base of trackers."""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.runs.run_folder import RunFolder
from search.runs.summary import RunSummary
from search.tuning.study import BEST, REASON, SECONDS, STATES, trial_params
from spaces.base import Space
from spaces.rules import Metric, Value

FILES = ("report.html", "summary.json", "environment.json", "trials.csv", "space.py")
"""Files of a run that a tracker gets beside the model."""


@dataclass(frozen=True)
class TrackedTrial:
    """A trial as far as it is.

    Attributes:
        number: Its number in the study.
        state: "complete", "pruned", "failed" or "running".
        params: Its parameters, the space's constants included.
        epochs: The metrics of each epoch by their names in `progress.csv`, `epoch` (from 1) among
            them; those that are not finite are missing.
        outcome: Figures of its best epoch and its seconds, by name.
        reason: Why it failed, else "".
        frozen: The trial in the study.
    """

    number: int
    state: str
    params: Mapping[str, Value]
    epochs: Sequence[Mapping[str, float]]
    outcome: Mapping[str, float]
    reason: str
    frozen: FrozenTrial

    @property
    def name(self) -> str:
        """The number, zero-padded: names that are sorted are in order."""
        return f"{self.number:04d}"

    @property
    def has_ended(self) -> bool:
        """Whether it will have no more epochs."""
        return self.state != "running"


@dataclass(frozen=True)
class TrackedSearch:
    """A search whose trials are tracked.

    Attributes:
        name: The run's name, also where its folder was renamed.
        run_id: Identifies the run among all others.
        path: The run's folder.
        study: All trials.
        space: What is searched.
        settings: The options that apply, by name.
    """

    name: str
    run_id: str
    path: Path
    study: optuna.Study
    space: Space
    settings: Mapping[str, str]

    @classmethod
    def of(cls, folder: RunFolder, study: optuna.Study, space: Space) -> TrackedSearch:
        """Return the search of a run whose settings are in its summary."""
        environment, settings = folder.environment, folder.summary.settings
        return cls(
            environment.request.name,
            environment.run_id,
            folder.path,
            study,
            space,
            {} if settings is None else _flat(asdict(settings)),
        )

    def begun_trials(self) -> Iterator[FrozenTrial]:
        """Yield the trials that have begun, up to the first that has not."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == TrialState.WAITING:
                return
            yield trial

    def trial(self, number: int) -> TrackedTrial:
        """Return a trial as far as it is now."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        attributes = frozen.user_attrs
        best = attributes.get(BEST, {})
        figures = {f"best_{name}": value for name, value in best.items()}
        return TrackedTrial(
            number,
            STATES.get(frozen.state, "running"),
            trial_params(frozen, self.space),
            list(_read_epochs(self.path / "trials" / str(number) / "progress.csv")),
            _finite({**figures, "seconds": attributes.get(SECONDS, math.nan)}),
            str(attributes.get(REASON) or ""),
            frozen,
        )


class Tracker(ABC):
    """Shows a search and its trials in another program; may raise any error where that is away.

    A worker calls all methods in one thread, again after an error: they do what is still to be
    done.
    """

    name: str
    """The program's name."""

    @abstractmethod
    def begin(self, search: TrackedSearch) -> str:
        """Begin the search there, or continue it where an earlier session began it.

        Returns:
            Where it is shown, for the user.
        """

    @abstractmethod
    def update(self, trial: TrackedTrial) -> None:
        """Show a trial as far as it is."""

    @abstractmethod
    def end(self, summary: RunSummary | None) -> None:
        """End the session.

        Args:
            summary: The results of a finished run; None for one that was interrupted.
        """


def figures(summary: RunSummary) -> dict[str, float]:
    """Return a finished run's figures by name: finite ones alone."""
    metric, found = summary.metric, dict[str, float]()
    if summary.best is not None:
        found["best_val_accuracy"] = summary.best.val_accuracy
        found["best_val_score"] = summary.best.val_score
    if (kfold := summary.kfold) is not None:
        found["cross_validation_accuracy"] = kfold.accuracy_corrected
        for finalist in kfold.finalists:
            name = "probe" if finalist.trial is None else f"trial_{finalist.trial}"
            found[f"finalist_{name}_accuracy"] = finalist.accuracy_mean
    external = None if summary.external is None else summary.external.scores
    for part, scores in (("test", summary.test), ("external", external)):
        if scores is not None:
            names: Iterable[Metric] = dict.fromkeys((metric, "accuracy", "macro_f1", "log_loss"))
            for name in names:
                value, (low, high) = scores.of_metric(name)
                found |= {f"{part}_{name}": value}
                found |= {f"{part}_{name}_ci95_low": low, f"{part}_{name}_ci95_high": high}
            found[f"{part}_n"] = scores.n
    return _finite(found)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the values of nested dicts as texts, each by its path with dots."""
    found: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = str(value)
    return found


def _read_epochs(path: Path) -> Iterator[dict[str, float]]:
    """Yield the epochs of a trial; its last line may not be whole yet."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(whole.splitlines()):
        yield _finite({name: float(value) for name, value in row.items()})


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
