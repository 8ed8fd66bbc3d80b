"""The study as its only writer sees it: the same as anybody would who reads it anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from search.tuning.cached_storage import CachedStorage

SEARCHED = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "backbone": CategoricalDistribution(["a", "b"]),
}


def begin(folder: Path) -> tuple[optuna.Study, CachedStorage]:
    storage = CachedStorage(f"sqlite:///{folder / 'study.db'}")
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True), storage


def on_disk(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 'study.db'}").trials


def told(trials: list[FrozenTrial]) -> list[object]:
    """All of trials but when they began and ended."""
    times = {"datetime_start": None, "datetime_complete": None}
    return [{name.lstrip("_"): v for name, v in {**vars(t), **times}.items()} for t in trials]


def timed(trials: list[FrozenTrial]) -> list[tuple[bool, bool]]:
    return [(t.datetime_start is None, t.datetime_complete is None) for t in trials]


@pytest.mark.parametrize("transaction", [False, True])
def test_what_it_remembers_is_what_is_on_disk(tmp_path, transaction):
    study, storage = begin(tmp_path)
    study.enqueue_trial({"lr": 1e-3, "backbone": "b"}, user_attrs={"why": "first"})
    rng = np.random.default_rng(0)
    running: list[optuna.Trial] = []

    def act() -> None:
        if len(running) < 3:
            running.append(study.ask(SEARCHED))
        trial = running[int(rng.integers(len(running)))]
        n_reported = len(storage.get_trial(trial._trial_id).intermediate_values)
        trial.report(float(rng.uniform()), step=n_reported)
        trial.set_user_attr("losses", {str(rng.integers(3)): 0.5})
        if rng.uniform() < 0.4:
            running.remove(trial)
            outcome = int(rng.integers(3))
            if outcome == 0:
                study.tell(trial, float(rng.uniform()))
            else:
                study.tell(trial, state=(TrialState.PRUNED, TrialState.FAIL)[outcome - 1])

    for _ in range(25):
        if transaction:
            with storage.transaction():
                act()
        else:
            act()
        assert told(study.trials) == told(on_disk(tmp_path))
        assert timed(study.trials) == timed(on_disk(tmp_path))
    again, _ = begin(tmp_path)
    assert told(again.trials) == told(study.trials)
    assert len({t.state for t in study.trials}) == 4


def test_trials_are_read_once(tmp_path):
    study, storage = begin(tmp_path)
    for _ in range(3):
        study.tell(study.ask(SEARCHED), 0.5)
    trial = study.ask(SEARCHED)
    trial.report(0.5, step=1)
    statements: list[str] = []
    engine = storage._backend._backend.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert len(study.get_trials(deepcopy=False)) == 4
    assert study.get_trials(deepcopy=False)[3].intermediate_values == {1: 0.5}
    assert not statements
    trial.report(0.6, step=2)
    assert statements, "the test would see them"


def test_a_block_that_fails_leaves_nothing(tmp_path):
    study, storage = begin(tmp_path)
    with storage.transaction():
        trial = study.ask(SEARCHED)
        trial.report(0.5, step=1)
    before = told(study.trials)

    def write() -> None:
        with storage.transaction():
            trial.report(0.6, step=2)
            study.ask(SEARCHED)
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        write()
    assert told(study.trials) == told(on_disk(tmp_path)) == before
    with storage.transaction():
        trial.report(0.7, step=3)
    assert study.trials[0].intermediate_values == {1: 0.5, 3: 0.7}
    assert told(study.trials) == told(on_disk(tmp_path))


def test_a_write_that_optuna_would_pass_over_is_an_error(tmp_path, monkeypatch):
    study, storage = begin(tmp_path)
    trial = study.ask(SEARCHED)

    def collide(*args: object) -> None:
        raise IntegrityError("INSERT", {}, Exception("there is one"))

    backend = storage._backend._backend  # type: ignore[attr-defined]
    monkeypatch.setattr(backend, "_set_trial_intermediate_value_without_commit", collide)

    def write() -> None:
        with storage.transaction():
            trial.set_user_attr("a", 1)
            trial.report(0.5, step=1)

    with pytest.raises(StorageInternalError, match="ignored"):
        write()
    assert study.trials[0].user_attrs == on_disk(tmp_path)[0].user_attrs == {}


def test_it_serves_any_storage():
    study = optuna.create_study(storage=CachedStorage(optuna.storages.InMemoryStorage()))
    with study._storage.transaction():  # type: ignore[attr-defined]
        study.tell(study.ask(SEARCHED), 0.5)
    study.set_user_attr("a", 1)
    assert (study.best_value, study.user_attrs, len(study.trials)) == (0.5, {"a": 1}, 1)


def test_another_writer_is_noticed(tmp_path):
    (study, _), (other, _) = begin(tmp_path), begin(tmp_path)
    study.ask(SEARCHED)
    other.get_trials()
    study.ask(SEARCHED)
    with pytest.raises(StorageInternalError, match="somebody else"):
        other.ask(SEARCHED)
