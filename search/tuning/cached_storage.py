"""A study's storage as its only writer sees it: what it wrote it need not read again.

Optuna's own reads every trial that runs anew, several times for each that is asked for, and ends a
transaction for every parameter: with 64 trials at a time that is most of what a search's controller
does.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session, scoped_session, sessionmaker


class CachedStorage(BaseStorage):
    """Writes go through to Optuna's storage; trials are read from memory."""

    def __init__(self, storage: str | BaseStorage) -> None:
        """Begin; trials are read when they are first asked for.

        Args:
            storage: Keeps the study; the URL of a database, or any of Optuna's.
        """
        self._sessions: scoped_session[_Session] | None = None
        if isinstance(storage, str):
            storage = RDBStorage(storage)
            self._sessions = scoped_session(sessionmaker(storage.engine, class_=_Session))
            storage.scoped_session = self._sessions  # type: ignore[assignment]  # narrower
        self._storage, self._backend = storage, get_storage(storage)
        self._trials: dict[int, list[FrozenTrial]] = {}  # by study, in the order of their numbers
        self._places: dict[int, tuple[int, int]] = {}  # by trial: its study and number

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Have a database keep all that is written in this block, or nothing.

        Raises:
            StorageInternalError: it could not.
        """
        if self._sessions is None:
            yield
            return
        session = self._sessions()
        session.begin_together()
        try:
            yield
            session.end_together()
        except BaseException:
            self._forget()
            raise
        finally:
            session.close_together()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See `BaseStorage`."""
        known = self._known(study_id)
        trial_id = self._backend.create_new_trial(study_id, template_trial)
        trial = self._backend.get_trial(trial_id)
        if trial.number != len(known):
            raise StorageInternalError("somebody else writes to the study, too")
        known.append(trial)
        self._places[trial_id] = (study_id, trial.number)
        return trial_id

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """See `BaseStorage`."""
        self._backend.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        with self._changing(trial_id) as trial:
            value = distribution.to_external_repr(param_value_internal)
            trial.params = {**trial.params, param_name: value}
            trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See `BaseStorage`."""
        if not self._backend.set_trial_state_values(trial_id, state, values):
            return False
        with self._changing(trial_id) as trial:
            trial.state = state
            if values is not None:
                trial.values = list(values)
            if state == TrialState.RUNNING:
                trial.datetime_start = datetime.now()
            if state.is_finished():
                trial.datetime_complete = datetime.now()
        return True

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """See `BaseStorage`."""
        self._backend.set_trial_intermediate_value(trial_id, step, intermediate_value)
        with self._changing(trial_id) as trial:
            trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._backend.set_trial_user_attr(trial_id, key, value)
        with self._changing(trial_id) as trial:
            trial.user_attrs = {**trial.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._backend.set_trial_system_attr(trial_id, key, value)
        with self._changing(trial_id) as trial:
            trial.system_attrs = {**trial.system_attrs, key: value}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage`; what is returned never changes."""
        if trial_id not in self._places:
            return self._backend.get_trial(trial_id)
        study_id, number = self._places[trial_id]
        return self._trials[study_id][number]

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """See `BaseStorage`."""
        trials = [t for t in self._known(study_id) if states is None or t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """See `BaseStorage`."""
        return self._backend.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage`."""
        self._backend.delete_study(study_id)
        for trial in self._trials.pop(study_id, []):
            del self._places[trial._trial_id]

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._backend.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._backend.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `BaseStorage`."""
        return self._backend.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """See `BaseStorage`."""
        return self._backend.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See `BaseStorage`."""
        return self._backend.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        return self._backend.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        return self._backend.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """See `BaseStorage`."""
        return self._backend.get_all_studies()

    def remove_session(self) -> None:
        """See `BaseStorage`."""
        self._backend.remove_session()

    def _known(self, study_id: int) -> list[FrozenTrial]:
        if study_id not in self._trials:
            trials = sorted(self._backend.get_all_trials(study_id), key=lambda t: t.number)
            self._trials[study_id] = trials
            self._places |= {t._trial_id: (study_id, t.number) for t in trials}
        return self._trials[study_id]

    def _forget(self) -> None:
        """Read what is there again, when it is asked for."""
        self._backend = get_storage(self._storage)  # it remembers trials, too
        self._trials.clear()
        self._places.clear()

    @contextmanager
    def _changing(self, trial_id: int) -> Iterator[FrozenTrial]:
        """Yield a copy of a trial to be changed, which takes its place."""
        study_id, number = self._places[trial_id]
        trial = copy.copy(self._trials[study_id][number])
        yield trial
        self._trials[study_id][number] = trial


class _Session(Session):
    """A session whose transaction can outlast the calls of Optuna's that use it."""

    _together = False
    _undone = False

    def begin_together(self) -> None:
        self._together, self._undone = True, False

    def end_together(self) -> None:
        """Commit, unless one of the calls has undone it all."""
        if self._undone:
            raise StorageInternalError("a write to the study failed, and was ignored")
        super().commit()

    def close_together(self) -> None:
        self._together = False
        self.close()

    def commit(self) -> None:
        if self._together:
            self.flush()
        else:
            super().commit()

    def rollback(self) -> None:
        self._undone = True
        super().rollback()

    def close(self) -> None:
        if not self._together:
            super().close()
