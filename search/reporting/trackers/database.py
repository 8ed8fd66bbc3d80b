"""Copy a run's study into a database, live, beside the studies of other runs.

The run's own journal stays the record: a database that is away, or was changed by others, changes
no run. What it missed is copied when it is back, at the latest when the run is resumed.
"""

from __future__ import annotations

import optuna
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from search.reporting.trackers.base import TrackedSearch, TrackedTrial, Tracker
from search.runs.summary import RunSummary
from search.tuning.study import name_metric
from spaces.errors import SearchError

_RUN_ID = "run_id"
"""User attribute of a study that identifies its run."""


class DatabaseError(SearchError):
    """The database of `--study` cannot be used."""


class StudyCopy(Tracker):
    """The copy of a study in a database; trials there have the numbers that they have here."""

    name = "the database of --study"

    def __init__(self, url: str) -> None:
        self._url = url
        self._copy: optuna.Study | None = None
        self._search: TrackedSearch | None = None

    def begin(self, search: TrackedSearch) -> str:
        """Load the copy, or create it."""
        copy = optuna.create_study(
            storage=RDBStorage(self._url),
            study_name=search.name,
            direction="maximize",
            load_if_exists=True,
        )
        copy.set_user_attr(_RUN_ID, search.run_id)
        name_metric(copy, search.space.metric)
        self._copy, self._search = copy, search
        return f"study {search.name} in {make_url(self._url)}"

    def update(self, trial: TrackedTrial) -> None:
        """Copy what a trial has more than its copy, and trials before it that are missing."""
        if self._copy is None or self._search is None:
            raise RuntimeError("the copy has not begun")
        copies = self._copy.get_trials(deepcopy=False)
        if trial.number >= len(copies):
            for missing in list(self._search.begun_trials())[len(copies) : trial.number + 1]:
                self._copy.add_trial(missing)
            return
        self._complete(copies[trial.number], trial.frozen)

    def end(self, summary: RunSummary | None) -> None:
        """Do nothing: a study has no end."""

    def _complete(self, copied: FrozenTrial, trial: FrozenTrial) -> None:
        if copied.state.is_finished() or self._copy is None:
            return
        # As the searcher continues trials: the public class, by the identifier in the storage.
        copy = optuna.Trial(self._copy, copied._trial_id)
        for name, value in trial.user_attrs.items():
            if copied.user_attrs.get(name) != value:
                copy.set_user_attr(name, value)
        for step, value in trial.intermediate_values.items():
            if step not in copied.intermediate_values:
                copy.report(value, step)
        if trial.state.is_finished():
            values = trial.values if trial.state == TrialState.COMPLETE else None
            self._copy.tell(copy, values, trial.state)


def check_database(url: str) -> None:
    """Check that a database can be reached, and that it is or becomes one of Optuna.

    Raises:
        DatabaseError: it cannot.
    """
    try:
        shown = make_url(url)  # which hides the password
    except (SQLAlchemyError, ValueError):  # of a saved request that was changed
        raise DatabaseError(
            "--study must be the URL of a database, such as sqlite:///studies.db, but got"
            f" {url[:200]!r}"
        ) from None
    try:
        RDBStorage(url)
    except ImportError as error:
        raise DatabaseError(
            f"--study {shown} needs a driver of that database: pip install {error.name or 'it'}"
        ) from None
    except (OptunaError, SQLAlchemyError, RuntimeError, OSError) as error:
        cause = error.__cause__ or error
        reason = (str(getattr(cause, "orig", cause)).strip() or type(cause).__name__).splitlines()
        raise DatabaseError(
            f"--study {shown} cannot be used: {reason[0]}; check the URL, and that the database"
            " runs and may be written to"
        ) from None


def check_study_name(url: str, name: str, run_id: str) -> None:
    """Check that a database has no study of this name that is another run's.

    Raises:
        DatabaseError: it has one.
    """
    try:
        study = optuna.load_study(study_name=name, storage=RDBStorage(url))
    except KeyError:
        return
    except (StorageInternalError, SQLAlchemyError):
        return  # it was there a moment ago: the run begins, with a warning
    if study.user_attrs.get(_RUN_ID) != run_id:
        raise DatabaseError(
            f"--study {make_url(url)} has a study called {name!r} that is another run's: give"
            " another --name"
        )
