"""Open, read and rank the Optuna study of a run: the record of every trial and every epoch.

A trial that ASHA stopped is PRUNED, a failed one is FAIL with its reason, and only a trial that ran
to its full length is COMPLETE. Values are ranking values (see `search.tuning.ranking`); the
metrics of a trial's best epoch are in its user attribute `best`. The module is long because all
that knows the form of the record is in one place.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from pydantic import Strict, TypeAdapter

from search.runs.journal import Journal, StudyStorage
from search.runs.run_folder import STUDY
from search.runs.tables import spreadsheet_text, write_csv
from search.runs.validation import FolderError
from spaces.base import Space, TrialConfig
from spaces.rules import Metric, Value
from trainables.atomic_write import write_patiently
from trainables.json_text import parse_json
from trainables.trial_result import EpochResult, TrialResult

_log = logging.getLogger(__name__)

BASELINE_TRIAL = 0
"""Number of the space's first trial, which the best trial is compared with."""

# User attributes of a trial.
BEST = "best"
"""Best epoch so far: {"epoch": from 1, "val_score": higher is better, "val_accuracy": in [0, 1],
"val_loss": in nats}."""
LEARNING_RATES = "learning_rates"
"""Learning rates of a plateau schedule, by the epoch from which on each applied: {"1": 0.001}."""
REASON = "reason"
NODE = "node"
EPOCHS = "epochs"
"""Full length of a trial, where it is not the space's."""
SECONDS = "seconds"

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
"""Names of the states in which a trial has ended."""
UNFINISHED = "unfinished"
"""Name of any other state."""

_Float = Annotated[float, Strict()]
_Int = Annotated[int, Strict()]


@dataclass(frozen=True, kw_only=True)
class _Best:
    epoch: _Int
    val_score: _Float
    val_accuracy: _Float
    val_loss: _Float


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """What is read back of a trial: its user attributes, and its ranking values by epoch."""

    best: _Best | None = None
    learning_rates: dict[str, _Float] = field(default_factory=dict)
    epochs: _Int = 1
    seconds: _Float = 0.0
    values: dict[_Int, _Float]


_RECORDED = TypeAdapter(_Recorded)

_DAMAGE = (
    *(ValueError, LookupError, TypeError, AssertionError, ArithmeticError, AttributeError),
    RecursionError,
)
"""What reading a damaged journal raises, as Optuna takes its lines for its own."""

_PROGRESS_COLUMNS = tuple(one.name for one in fields(EpochResult))


class _NoLock(JournalFileOpenLock):
    """Lock nothing: a reader writes nothing."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def open_storage(run_folder: Path, warn: Callable[[str], None] = _log.warning) -> StudyStorage:
    """Open the journal of a run's study to write to it; a torn last line is cut off.

    A line is torn where an earlier session was killed, or its disk was full, while it wrote.

    Args:
        run_folder: The run's folder.
        warn: Called with what happens to the file meanwhile: see `search.runs.journal`.

    Raises:
        FolderError: the journal is damaged.
    """
    path = run_folder / STUDY
    if path.exists():
        os.truncate(path, _whole_bytes(path.read_bytes()))
    try:
        return StudyStorage(Journal(path, warn))
    except _DAMAGE as error:
        raise FolderError(
            f"{path} is damaged ({error}): put a copy of it back, or begin a new run"
        ) from None


def _whole_bytes(content: bytes) -> int:
    """Return how many bytes of a journal are whole lines; a damaged last one does not count."""
    end = content.rfind(b"\n") + 1
    start = content.rfind(b"\n", 0, max(0, end - 1)) + 1
    try:
        parse_json(content[start:end])
    except ValueError:
        return start
    return end


def open_study(storage: BaseStorage, name: str = "search") -> optuna.Study:
    """Load a run's study, whatever its name, or create it by this name."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = optuna.get_all_study_names(storage)
    if names:
        return optuna.load_study(study_name=names[0], storage=storage)
    return optuna.create_study(storage=storage, study_name=name, direction="maximize")


def name_metric(study: optuna.Study, metric: Metric) -> None:
    """Name what trials are compared by, for optuna-dashboard."""
    if study.metric_names is None:
        sign = "negative " if metric == "log_loss" else ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([f"{sign}validation {metric}"])


def load_study(run_folder: Path) -> optuna.Study | None:
    """Load a run's study to read it, also while another process writes to it.

    Returns:
        None where there is no study, or none that can be read.
    """
    path = run_folder / STUDY
    if not path.is_file():
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        backend = JournalFileBackend(str(path), lock_obj=_NoLock(str(path)))
        storage = JournalStorage(backend)
        names = optuna.get_all_study_names(storage)
        study = optuna.load_study(study_name=names[0], storage=storage) if names else None
        _check_trials([] if study is None else study.get_trials(deepcopy=False))
    except _DAMAGE:
        return None
    return study


def _check_trials(trials: Iterable[FrozenTrial]) -> None:
    """Check what a search has recorded of its trials, in the order that it writes it in.

    Raises:
        ValueError, LookupError, TypeError: an attribute is missing, or of another type.
    """
    for trial in trials:
        attributes, values = trial.user_attrs, trial.intermediate_values
        _RECORDED.validate_python({**attributes, "values": values})
        if values or BEST in attributes:
            best_epoch(trial)


def check_readable(run_folder: Path) -> None:
    """Check that the study of a run whose trials have begun can be read.

    Raises:
        FolderError: it is damaged.
    """
    if any((run_folder / "trials").glob("*/progress.csv")) and load_study(run_folder) is None:
        raise FolderError(
            f"{run_folder / STUDY} is damaged: put a copy of it back, or begin a new run"
        )


def learning_curves(study: optuna.Study) -> dict[int, dict[int, float]]:
    """Return, by trial number, the ranking value of each epoch."""
    return {
        trial.number: trial.intermediate_values
        for trial in study.get_trials(deepcopy=False)
        if trial.intermediate_values
    }


def retrain_epochs(config: TrialConfig, length: int, best_epoch: int) -> int:
    """Return how many epochs the folds of a complete trial train.

    A cosine schedule is trained to its end, where the learning rate is 0; others to the best epoch.

    Args:
        config: The trial's configuration.
        length: Its full length.
        best_epoch: Its best epoch.
    """
    return length if config.scheduler == "cosine" else best_epoch


def ranked_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials, best first; the pruned and unfinished ones if there is none.

    Of equal scores the lower validation loss comes first, then the earlier trial.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    others = (TrialState.PRUNED, TrialState.RUNNING)
    partial = [t for t in trials if t.state in others and t.intermediate_values]
    return sorted(complete or partial, key=lambda trial: best_epoch(trial).score, reverse=True)


def best_epoch(trial: FrozenTrial) -> EpochResult:
    """Return the number and the validation metrics of a trial's best epoch.

    The trial must have ended one; other fields are not filled.
    """
    return EpochResult(**trial.user_attrs[BEST])


def learning_rates(trial: FrozenTrial) -> tuple[float, ...]:
    """Return the learning rate of each epoch up to the best, of a trial with a plateau schedule."""
    changes = trial.user_attrs[LEARNING_RATES]
    rates: list[float] = []
    for epoch in range(1, best_epoch(trial).epoch + 1):
        rates.append(changes[str(epoch)] if str(epoch) in changes else rates[-1])
    return tuple(rates)


def trial_length(trial: FrozenTrial | optuna.Trial, space: Space) -> int:
    """Return the epochs of a trial that is not stopped early."""
    return int(trial.user_attrs.get(EPOCHS, space.epochs))


def trial_params(trial: FrozenTrial | optuna.Trial, space: Space) -> dict[str, Value]:
    """Return a trial's parameters, the space's constants included."""
    return space.complete(trial.params)


def ended_trials(
    study: optuna.Study,
) -> Iterator[tuple[int, dict[str, Value], str, TrialResult]]:
    """Yield the number, the searched parameters, the state and the result of each ended trial."""
    for trial in study.get_trials(deepcopy=False, states=tuple(STATES)):
        result = TrialResult(failure=trial.user_attrs.get(REASON))
        if trial.intermediate_values:
            best = best_epoch(trial)
            result = TrialResult(
                epoch=max(trial.intermediate_values),
                best_val_score=best.val_score,
                best_val_accuracy=best.val_accuracy,
                best_epoch=best.epoch,
                trained_seconds=trial.user_attrs.get(SECONDS, math.nan),
                failure=trial.user_attrs.get(REASON),
            )
        yield trial.number, dict(trial.params), STATES[trial.state], result


def count_states(study: optuna.Study) -> dict[str, int]:
    """Count the trials that have ended, by state: complete, pruned or failed."""
    ended = study.get_trials(deepcopy=False, states=tuple(STATES))
    found = Counter(trial.state for trial in ended)
    return {name: found[state] for state, name in STATES.items()}


def count_unfinished(study: optuna.Study) -> int:
    """Count the trials that were interrupted, which a resumed run continues."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def kept_scores(study: optuna.Study) -> dict[int, tuple[float, float]]:
    """Return each complete trial's score, as `search.tuning.checkpoints` ranks them."""
    return {
        trial.number: best_epoch(trial).score
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    }


def append_epoch(path: Path, result: TrialResult) -> bool:
    """Append an epoch to a trial's `progress.csv`, unless it is there already.

    A last line that an earlier session did not write whole is cut off first.

    Returns:
        Whether it was appended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if f"{result.epoch}".encode() in {line.split(b",")[0] for line in whole.splitlines()[1:]}:
        return False
    lines = [] if whole else [",".join(_PROGRESS_COLUMNS)]
    lines.append(",".join(str(getattr(result, name)) for name in _PROGRESS_COLUMNS))

    def write() -> None:
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(len(whole))
            file.truncate()
            file.write("".join(f"{line}\n" for line in lines).encode())

    write_patiently(write, path, _log.warning)
    return True


def write_trials(path: Path, study: optuna.Study, space: Space) -> None:
    """Write `trials.csv`, which only people read: see `trial_table`."""
    columns, rows = trial_table(study, space)
    safe = [[spreadsheet_text(c) if isinstance(c, str) else c for c in row] for row in rows]
    write_csv(path, columns, safe)


def trial_table(
    study: optuna.Study | None, space: Space
) -> tuple[tuple[str, ...], list[list[object]]]:
    """Return one row per trial, with its parameters, outcome, seconds and node.

    Args:
        study: The study; None has no trials.
        space: The space that the run searches.

    Returns:
        The columns, and the rows; None is unknown.
    """
    head = (
        *("number", "state", "best_val_score", "best_val_accuracy", "best_epoch"),
        *("epochs", "seconds", "node"),
    )
    names = tuple(space.params)
    rows: list[list[object]] = []
    for trial in study.get_trials(deepcopy=False) if study is not None else ():
        best = best_epoch(trial) if trial.intermediate_values else None
        attributes = trial.user_attrs
        params = trial_params(trial, space)
        rows.append(
            [
                trial.number,
                STATES.get(trial.state, UNFINISHED),
                best and best.val_score,
                best and best.val_accuracy,
                best and best.epoch,
                len(trial.intermediate_values),
                attributes.get(SECONDS),
                attributes.get(NODE),
                *(params.get(name) for name in names),
                attributes.get(REASON),
            ]
        )
    return (*head, *names, "reason"), rows
