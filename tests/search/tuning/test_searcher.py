"""Trials that Tune is given, and what the study has of them, whatever happens in between."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.runs import journal
from search.tuning.ranking import ranking_value
from search.tuning.samplers import create_sampler
from search.tuning.searcher import MAX_LOST_WORKERS, StudySearcher
from search.tuning.study import (
    best_epoch,
    count_states,
    count_unfinished,
    learning_curves,
    learning_rates,
    open_storage,
    open_study,
)
from spaces.base import Space
from spaces.conditions import ByValue, When
from spaces.sources import folder
from tests.fixtures.trial_results import epoch_result, failure_result

FIRSTS = (
    {"backbone": "cnn", "lr": 1e-3, "freeze_depth": 0, "scheduler": "cosine"},
    {"backbone": "tinynet", "lr": 2e-3},
)
SPACE = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(["tinynet", "cnn"]),
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "scheduler": "cosine",
    },
    first_trials=FIRSTS,
)
SMALL = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(["tinynet", "cnn"]),
        "dropout": FloatDistribution(0.0, 0.5),
    },
)


def opened(space: Space = SPACE) -> tuple[BaseStorage, optuna.Study]:
    storage = InMemoryStorage()
    return storage, open_study(storage)


def searching(
    storage: BaseStorage,
    n_trials: int | None,
    space: Space = SPACE,
    sampler: str = "random",
    seed: int = 0,
    **more: Any,
) -> StudySearcher:
    return StudySearcher(storage, space, n_trials, sampler, seed, **more)


def value_of(params: dict[str, Any]) -> float:
    """Return the accuracy of a configuration."""
    return 1 / (1 + abs(math.log10(params.get("lr", 1e-3)) + 2.5)) - 0.1 * params.get("dropout", 0)


def run_all(searcher: StudySearcher, most: int = 100) -> list[dict[str, Any]]:
    """Run trials of one epoch until the searcher ends the search."""
    tried = []
    for index in range(most):
        suggested = searcher.suggest(str(index))
        if suggested == Searcher.FINISHED:
            return tried
        tried.append(suggested["params"])
        result = epoch_result(1, value_of(suggested["params"]), finished=True)
        searcher.on_trial_result(str(index), result)
        searcher.on_trial_complete(str(index), result)
    raise AssertionError(f"still not finished after {most} trials")


def test_first_trials_come_first_with_the_constants():
    searcher = searching(InMemoryStorage(), 5)
    first, second, third = (searcher.suggest(name) for name in "abc")
    assert first == {"number": 0, "params": FIRSTS[0], "epochs": SPACE.epochs}
    assert second["params"].items() >= FIRSTS[1].items()
    assert second["params"]["freeze_depth"] in range(6)
    assert set(third["params"]) == set(SPACE.params)
    assert [suggested["number"] for suggested in (first, second, third)] == [0, 1, 2]


def test_it_is_finished_when_as_many_have_begun_as_were_asked_for():
    storage, study = opened()
    searcher = searching(storage, 3)
    for name in "abc":
        assert searcher.suggest(name) != Searcher.FINISHED
    assert searcher.suggest("d") is None, "one that is running may lose its worker and come back"
    searcher.on_trial_complete("a", epoch_result(1, 0.5, finished=True))
    searcher.on_trial_complete("b", epoch_result(1, 0.5))
    searcher.on_trial_complete("c", failure_result("the training loss is nan in epoch 2"))
    assert searcher.suggest("d") == Searcher.FINISHED, "failing trials must not be tried for ever"
    assert count_states(study) == {"complete": 1, "pruned": 1, "failed": 1}
    extended = searching(storage, 4)
    assert extended.suggest("e")["number"] == 3
    assert extended.suggest("f") is None
    extended.on_trial_complete("e", epoch_result(1, 0.5, finished=True))
    assert extended.suggest("f") == Searcher.FINISHED


def test_as_many_trials_run_in_parallel_as_there_are_slots():
    slots = 2
    searcher = searching(InMemoryStorage(), 9, max_concurrent=lambda: slots)
    assert searcher.suggest("a") is not None
    assert searcher.suggest("b") is not None
    assert searcher.suggest("c") is None
    slots = 3  # a machine has joined
    assert searcher.suggest("c")["number"] == 2
    assert searcher.suggest("d") is None
    searcher.on_trial_complete("a", epoch_result(1, 0.5, finished=True))
    assert searcher.suggest("d")["number"] == 3


def test_a_full_length_trial_is_complete_with_its_best_epochs_value():
    storage, study = opened()
    searcher = searching(storage, 5)
    searcher.suggest("a")
    searcher.on_trial_result("a", epoch_result(1, 0.7))
    searcher.on_trial_result("a", epoch_result(2, 0.9))
    last = epoch_result(3, 0.8, best=0.9, finished=True)
    searcher.on_trial_result("a", last)
    searcher.on_trial_complete("a", last)
    trial = study.trials[0]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, ranking_value(0.9, 1 - 0.9))
    assert trial.intermediate_values == {
        epoch: ranking_value(accuracy, 1 - accuracy)
        for epoch, accuracy in ((1, 0.7), (2, 0.9), (3, 0.8))
    }
    assert trial.user_attrs == {
        "best": {
            **{"epoch": 2, "val_score": 0.9, "val_accuracy": 0.9},
            "val_loss": pytest.approx(0.1),
        },
        "seconds": 4.5,
        "node": "10.0.0.7",
    }
    assert (best_epoch(trial).val_accuracy, best_epoch(trial).epoch) == (0.9, 2)


def test_a_trial_stopped_early_is_pruned_and_never_complete():
    storage, study = opened()
    searcher = searching(storage, 5)
    searcher.suggest("a")
    searcher.on_trial_result("a", epoch_result(1, 0.7))
    # Tune does not pass the epoch at which it stops a trial to `on_trial_result`.
    searcher.on_trial_complete("a", epoch_result(2, 0.6, best=0.7))
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: ranking_value(0.7, 1 - 0.7), 2: ranking_value(0.6, 0.4)}
    assert (best_epoch(trial).val_accuracy, best_epoch(trial).epoch) == (0.7, 1)
    assert count_states(study) == {"complete": 0, "pruned": 1, "failed": 0}


def test_a_trial_that_failed_keeps_its_reason_and_has_no_value():
    storage, study = opened()
    searcher = searching(storage, 5)
    searcher.suggest("a")
    searcher.on_trial_result("a", epoch_result(1, 0.7))
    failure = failure_result("the training loss is nan in epoch 2")
    searcher.on_trial_result("a", failure)
    searcher.on_trial_complete("a", failure)
    trial = study.trials[0]
    assert (trial.state, trial.value) == (TrialState.FAIL, None)
    assert trial.user_attrs["reason"] == "the training loss is nan in epoch 2"
    assert list(trial.intermediate_values) == [1]
    assert not searcher.will_retry(0)


def test_a_trial_that_lost_its_worker_is_continued_first_under_its_number():
    storage, study = opened()
    searcher = searching(storage, 3)
    lost = searcher.suggest("a")
    searcher.on_trial_result("a", epoch_result(1, 0.7))
    searcher.suggest("b")
    searcher.on_trial_complete("a", epoch_result(1, 0.7), error=True)
    assert searcher.will_retry(0)
    assert not searcher.will_retry(1)
    assert count_states(study) == {"complete": 0, "pruned": 0, "failed": 0}
    assert searcher.suggest("c") == lost
    assert searcher.suggest("d")["number"] == 2
    searcher.on_trial_complete("c", epoch_result(2, 0.8, finished=True))
    assert sorted(study.trials[0].intermediate_values) == [1, 2]
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_trial_that_loses_worker_after_worker_has_failed():
    storage, study = opened()
    searcher = searching(storage, 1)
    for attempt in range(MAX_LOST_WORKERS):
        assert searcher.suggest(f"a{attempt}")["number"] == 0
        searcher.on_trial_complete(f"a{attempt}", None, error=True)
    searcher.suggest("b")
    searcher.on_trial_result("b", epoch_result(1, 0.7))  # it made progress: the count starts again
    for attempt in range(MAX_LOST_WORKERS):
        searcher.on_trial_complete("b" if attempt == 0 else f"c{attempt}", None, error=True)
        assert searcher.suggest(f"c{attempt + 1}")["number"] == 0
    searcher.on_trial_complete(f"c{MAX_LOST_WORKERS}", None, error=True)
    assert not searcher.will_retry(0)
    assert searcher.suggest("d") == Searcher.FINISHED
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].user_attrs["reason"] == "its worker was lost again and again"


class FullDisk(InMemoryStorage):
    """There may be no space for values of epochs."""

    is_full = False

    def set_trial_intermediate_value(self, *args: Any) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().set_trial_intermediate_value(*args)


def test_nothing_is_recorded_once_the_study_cannot_be_written():
    storage = FullDisk()
    study = open_study(storage)
    searcher = searching(storage, 3)
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_result("a", epoch_result(1, 0.7))
    storage.is_full = True
    searcher.on_trial_complete("a", epoch_result(2, 0.8, finished=True))
    storage.is_full = False
    assert str(searcher.storage_error) == "[Errno 28] No space left on device"
    # There is space again, but the session is over: what it would record has gaps.
    searcher.on_trial_complete("a", None, error=True)
    searcher.on_trial_complete("b", epoch_result(1, 0.9, finished=True))
    assert searcher.suggest("c") is None
    assert [t.state for t in study.trials[:2]] == [TrialState.RUNNING] * 2
    assert learning_curves(study) == {0: {1: ranking_value(0.7, 1 - 0.7)}}
    again = searching(storage, 3)
    assert [again.suggest(name)["number"] for name in "xyz"] == [0, 1, 2]


def test_another_process_that_writes_is_noticed(tmp_path: Path):
    searcher, intruder = (searching(open_storage(tmp_path), 9) for _ in range(2))
    for name in "abc":
        searcher.suggest(name)
    intruder.suggest("d")
    assert searcher.storage_error is None
    assert searcher.suggest("e") is None or searcher.suggest("f") is None
    assert "another process writes to the study" in str(searcher.storage_error)


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_study_cut_at_any_byte_is_resumed(tmp_path: Path, sampler: str):
    """Killed at any moment: no trial is doubled or lost, none is what it was not."""
    whole = tmp_path / "whole"
    whole.mkdir()
    searcher = searching(open_storage(whole), 4, sampler=sampler)
    steps = [
        ("a", epoch_result(1, 0.6)),
        ("b", epoch_result(1, 0.7)),
        ("b", epoch_result(2, 0.8, finished=True)),
        ("a", epoch_result(2, 0.5, best=0.6)),
    ]
    ends = {"a": 3, "b": 2}
    proposed = {name: searcher.suggest(name) for name in "ab"}
    for index, (name, result) in enumerate(steps):
        if ends[name] == index:
            searcher.on_trial_complete(name, result)
        else:
            searcher.on_trial_result(name, result)
    content = (whole / "study.journal").read_bytes()
    cut_folder = tmp_path / "cut"
    cut_folder.mkdir()
    for length in range(0, len(content), 37):
        (cut_folder / "study.journal").write_bytes(content[:length])
        storage = open_storage(cut_folder)
        study = open_study(storage)
        again = searching(storage, 4, sampler=sampler)
        for trial in study.trials:
            if trial.intermediate_values:
                assert best_epoch(trial).epoch >= 1
            if trial.state.is_finished():
                assert trial.user_attrs["node"] == "10.0.0.7"
        ended = {trial.number for trial in study.trials if trial.state.is_finished()}
        suggestions = [again.suggest(name) for name in "xy"]
        numbers = [suggestion["number"] for suggestion in suggestions]
        assert numbers == [number for number in range(4) if number not in ended][:2]
        for suggestion in suggestions:
            if suggestion["number"] < 2:
                assert suggestion == proposed["ab"[suggestion["number"]]]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_trial_cut_off_while_it_was_drawn_gets_the_rest_of_its_parameters(sampler: str):
    hidden_units = When({"backbone": ("cnn", "tinynet")}, CategoricalDistribution([0, 64]))
    params = {"hidden_units": hidden_units, **SPACE.params}
    space = replace(SPACE, params=params, first_trials=FIRSTS[1:])
    for cut in (0, 3):
        storage, study = opened(space)
        begun = searching(storage, 12, space, sampler)
        expected = [begun.suggest(str(index)) for index in range(cut)]
        study.sampler = create_sampler(sampler, space, 12, 0, cut)
        half = study.ask({"backbone": space.distributions["backbone"]})  # killed here
        again = searching(storage, 12, space, sampler)
        assert [again.suggest(f"again {index}") for index in range(cut)] == expected
        whole = again.suggest("whole")
        assert whole["number"] == half.number == cut
        assert whole["params"].items() >= half.params.items()
        assert set(whole["params"]) == set(space.params)
        assert again.suggest("next")["number"] == cut + 1


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_a_resumed_search_draws_the_same_parameters_that_depend_on_others(sampler: str):
    wide, narrow = (FloatDistribution(low, 1e-2, log=True) for low in (1e-4, 5e-3))
    params = {
        "hidden_units": When({"freeze_depth": 5}, CategoricalDistribution([0, 64])),
        "lr": ByValue("backbone", {"cnn": narrow}, default=wide),
        "backbone": CategoricalDistribution(["tinynet", "cnn"]),
        "freeze_depth": CategoricalDistribution([0, 5]),
    }
    first = {"backbone": "cnn", "lr": 7e-3, "freeze_depth": 0}
    space = replace(SPACE, params=params, first_trials=(first,))

    storage, study = opened(space)
    whole = run_all(searching(storage, 12, space, sampler))
    assert whole[0] == first
    for found in whole:
        assert ("hidden_units" in found) is (found["freeze_depth"] == 5)
        assert found["lr"] >= (5e-3 if found["backbone"] == "cnn" else 1e-4)
    pieces, again = opened(space)
    begun = searching(pieces, 12, space, sampler)
    for index in range(5):
        result = epoch_result(1, value_of(begun.suggest(str(index))["params"]), finished=True)
        begun.on_trial_complete(str(index), result)
    run_all(searching(pieces, 12, space, sampler))
    assert [t.params for t in again.trials] == [t.params for t in study.trials]


def test_an_epoch_that_is_reported_again_keeps_its_first_value():
    storage, study = opened()
    searcher = searching(storage, 5)
    searcher.suggest("a")
    for number, accuracy in ((1, 0.7), (2, 0.8), (2, 0.1), (3, 0.9)):
        searcher.on_trial_result("a", epoch_result(number, accuracy))
    assert learning_curves(study)[0] == {
        epoch: ranking_value(accuracy, 1 - accuracy)
        for epoch, accuracy in ((1, 0.7), (2, 0.8), (3, 0.9))
    }


def report(searcher: StudySearcher, name: str, learning_rates: dict[int, float]) -> None:
    """Report epochs with their learning rates; the last is the best."""
    for epoch, lr in learning_rates.items():
        searcher.on_trial_result(name, epoch_result(epoch, 0.1 * epoch, lr=lr))


def test_learning_rates_of_a_plateau_are_recorded_once():
    space = replace(SPACE, params={**SPACE.params, "scheduler": "plateau"}, first_trials=())
    storage, study = opened(space)
    searcher = searching(storage, 1, space)
    searcher.suggest("a")
    report(searcher, "a", {1: 0.5, 2: 0.5, 3: 0.05})
    searcher.on_trial_complete("a", None, error=True)
    searcher.suggest("b")  # begins again at its last checkpoint, which is older
    report(searcher, "b", {2: 0.5, 3: 0.5})
    assert learning_rates(study.trials[0]) == (0.5, 0.5, 0.05)
    again = searching(storage, 1, space)  # the session was killed here
    again.suggest("c")
    report(again, "c", {3: 0.05, 4: 0.05, 5: 0.005})
    again.on_trial_complete("c", epoch_result(6, 0.6, lr=0.005, finished=True))
    assert learning_rates(study.trials[0]) == (0.5, 0.5, 0.05, 0.05, 0.005, 0.005)
    assert study.trials[0].user_attrs["learning_rates"] == {"1": 0.5, "3": 0.05, "5": 0.005}


@pytest.mark.parametrize("lr", [0.5, 0.05])
def test_the_learning_rate_of_an_epoch_that_was_not_recorded_is_replaced(lr: float):
    """Killed between the two writes, the trial may train that epoch with another one."""
    space = replace(SPACE, params={**SPACE.params, "scheduler": "plateau"}, first_trials=())
    storage = FullDisk()
    searcher = searching(storage, 1, space)
    searcher.suggest("a")
    report(searcher, "a", {1: 0.5})
    storage.is_full = True
    report(searcher, "a", {2: 0.005})
    storage.is_full = False
    study = open_study(storage)
    assert study.trials[0].user_attrs["learning_rates"] == {"1": 0.5, "2": 0.005}
    again = searching(storage, 1, space)
    again.suggest("b")
    report(again, "b", {2: lr, 3: lr})
    assert learning_rates(study.trials[0]) == (0.5, lr, lr)


def test_the_end_of_a_trial_that_is_over_changes_nothing():
    storage, study = opened()
    searcher = searching(storage, 5)
    searcher.suggest("a")
    searcher.on_trial_complete("a", epoch_result(1, 0.5, finished=True))
    searcher.on_trial_complete("a", None, error=True)
    assert count_states(study) == {"complete": 1, "pruned": 0, "failed": 0}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_the_seed_decides_what_is_tried(sampler: str):
    runs = [run_all(searching(InMemoryStorage(), 12, SMALL, sampler, seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("n_first", [0, 2])
@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_search_in_two_sessions_tries_what_one_would_have_tried(sampler: str, n_first: int):
    space = replace(SPACE, first_trials=FIRSTS[:n_first])
    whole = run_all(searching(InMemoryStorage(), 12, space, sampler))
    storage = InMemoryStorage()
    begun = run_all(searching(storage, 5, space, sampler))
    again = run_all(searching(storage, 12, space, sampler))
    assert len(begun) == 5
    assert begun + again == whole
    points = [tuple(trial.values()) for trial in begun + again]
    assert len(set(points)) == 12


def test_a_grid_is_finished_when_it_is_used_up():
    storage = InMemoryStorage()
    searcher = searching(storage, 40, SMALL, "grid")
    points = [searcher.suggest(str(index)) for index in range(6)]
    assert sorted((p["params"]["backbone"], p["params"]["dropout"]) for p in points) == [
        (backbone, dropout) for backbone in ("cnn", "tinynet") for dropout in (0.0, 0.25, 0.5)
    ]
    assert searcher.suggest("6") is None, "while the last points are running"
    for index in range(6):
        searcher.on_trial_complete(str(index), epoch_result(1, 0.5, finished=True))
    assert searcher.suggest("6") == Searcher.FINISHED
    assert searching(storage, 40, SMALL, "grid").suggest("7") == Searcher.FINISHED


def test_a_grid_point_that_was_enqueued_before_a_kill_is_tried_once():
    storage = InMemoryStorage()
    study = open_study(storage)
    study.enqueue_trial({"backbone": "cnn", "dropout": 0.25})  # killed here
    points = run_all(searching(storage, 40, SMALL, "grid"))
    assert points[0] == {"backbone": "cnn", "dropout": 0.25}
    assert len({tuple(point.items()) for point in points}) == len(points) == 6


@pytest.mark.parametrize("n_begun", [0, 1])
def test_a_first_trial_that_was_enqueued_before_a_kill_is_tried_once(n_begun: int):
    storage = InMemoryStorage()
    for _ in range(n_begun):
        searching(storage, 9).suggest("a")
    open_study(storage).enqueue_trial(dict(FIRSTS[n_begun]))  # killed here
    searcher = searching(storage, 9)
    begun = [searcher.suggest(name)["params"] for name in "xyz"]
    for params, first in zip(begun, FIRSTS, strict=False):
        assert {name: params[name] for name in first} == first


def test_first_trials_are_frozen_as_deep_as_there_is_time_for_but_for_the_baseline():
    firsts = tuple(
        {"backbone": "cnn", "lr": lr, "freeze_depth": 2} for lr in (1e-3, 2e-3, 3e-3, 4e-3)
    )
    space = replace(SPACE, first_trials=firsts)
    fitting = {4: 6, 5: 9}
    searcher = searching(InMemoryStorage(), 9, space, lengths=lambda backbone: fitting)
    assert [searcher.suggest(name)["params"]["freeze_depth"] for name in "abc"] == [2, 4, 4]
    fitting.pop(4)  # while the others were running
    assert searcher.suggest("d")["params"]["freeze_depth"] == 5


def test_interrupted_trials_are_continued_first_under_their_numbers():
    storage = InMemoryStorage()
    earlier = searching(storage, 6)
    begun = [earlier.suggest(name) for name in "abc"]
    earlier.on_trial_result("b", epoch_result(1, 0.6))
    earlier.on_trial_result("b", epoch_result(2, 0.7))
    earlier.on_trial_complete("a", epoch_result(1, 0.5, finished=True))
    study = open_study(storage)  # the session was killed here
    assert count_unfinished(study) == 2
    expected = {1: ranking_value(0.6, 1 - 0.6), 2: ranking_value(0.7, 1 - 0.7)}
    assert learning_curves(study) == {0: {1: ranking_value(0.5, 0.5)}, 1: expected}
    searcher = searching(storage, 6)
    second, third, new = (searcher.suggest(name) for name in "xyz")
    assert second == begun[1]
    assert third == begun[2]
    assert new["number"] == 3
    searcher.on_trial_result("x", epoch_result(2, 0.1))
    searcher.on_trial_result("x", epoch_result(3, 0.8))
    searcher.on_trial_complete("x", epoch_result(3, 0.8, finished=True))
    last = {3: ranking_value(0.8, 1 - 0.8)}
    assert study.trials[1].intermediate_values == expected | last
    assert best_epoch(study.trials[1]).val_accuracy == 0.8


def test_tpe_learns():
    best = {
        sampler: [
            max(map(value_of, run_all(searching(InMemoryStorage(), 20, SPACE, sampler, seed))))
            for seed in range(3)
        ]
        for sampler in ("random", "tpe")
    }
    assert sum(best["tpe"]) > sum(best["random"])


def test_the_journal_is_lines_of_json(tmp_path: Path):
    run_all(searching(open_storage(tmp_path), 3))
    for line in (tmp_path / "study.journal").read_text().splitlines():
        json.loads(line)


def end(searcher: StudySearcher, *accuracies: float | None) -> None:
    """Run one trial after the other; None is one that was pruned."""
    for accuracy in accuracies:
        number = searcher.suggest("x")["number"]
        finished = accuracy is not None
        result = epoch_result(1, accuracy if finished else 0.99, finished=finished)
        searcher.on_trial_complete("x", result)
        assert number < 100


def test_a_search_with_an_open_end_goes_on():
    searcher = searching(InMemoryStorage(), None)
    assert len({searcher.suggest(str(index))["number"] for index in range(60)}) == 60


def test_patience_ends_a_search_that_finds_nothing_better():
    searcher = searching(InMemoryStorage(), None, patience_trials=3)
    end(searcher, 0.5, 0.4, None, 0.6, 0.6, None)
    assert not searcher.out_of_patience
    running = searcher.suggest("running")
    end(searcher, 0.3)
    assert searcher.suggest("y") is None, "one that runs may be better"
    assert running["number"] == 6
    searcher.on_trial_complete("running", epoch_result(1, 0.7, finished=True))
    end(searcher, 0.1, 0.2, 0.7)
    assert searcher.suggest("y") == Searcher.FINISHED
    assert searcher.out_of_patience


@pytest.mark.parametrize("cut", range(1, 7))
def test_patience_lasts_as_long_in_two_sessions(cut: int):
    accuracies = (0.5, 0.8, None, 0.6, 0.7, 0.8)
    storage = InMemoryStorage()
    end(searching(storage, None, patience_trials=4), *accuracies[:cut])
    searcher = searching(storage, None, patience_trials=4)
    end(searcher, *accuracies[cut:])
    assert searcher.suggest("x") == Searcher.FINISHED
    assert isinstance(searching(storage, None, patience_trials=5).suggest("x"), dict)


def test_an_interrupted_trial_is_continued_when_patience_is_over():
    storage = InMemoryStorage()
    searcher = searching(storage, None, patience_trials=1)
    searcher.suggest("lost")
    end(searcher, 0.5, 0.4)
    again = searching(storage, None, patience_trials=1)
    assert again.suggest("a")["number"] == 0
    assert again.suggest("b") is None


def test_the_length_of_a_trial_is_chosen_once():
    """By its backbone and its depth; a resumed trial keeps it, though there is less time."""
    storage, study = opened()
    lengths = {"cnn": {0: 7, 5: 20}, "tinynet": dict.fromkeys(range(6), 9)}
    searcher = searching(storage, 9, lengths=lengths.get)
    first, second = (searcher.suggest(name) for name in "ab")
    assert (first["epochs"], second["epochs"]) == (7, 9)
    assert [trial.user_attrs["epochs"] for trial in study.trials[:2]] == [7, 9]
    shorter = {"cnn": {0: 5}, "tinynet": {0: 5}}
    again = searching(storage, 9, lengths=shorter.get)
    assert [again.suggest(name) for name in "cd"] == [first, second]
    without_budget = searching(storage, 9)
    assert [without_budget.suggest(name) for name in "ef"] == [first, second]


def test_a_first_trial_that_there_is_no_time_for_is_as_long_as_the_shortest():
    searcher = searching(InMemoryStorage(), 9, lengths=lambda backbone: {3: 6, 4: 8, 5: 20})
    assert searcher.suggest("a")["epochs"] == 6


def test_a_proposal_of_tpe_reads_a_bounded_number_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_read: list[tuple[int, int]] = []
    best_and_latest = journal.best_and_latest

    def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
        chosen = best_and_latest(trials)
        n_read.append((len(trials), len(chosen)))
        return chosen

    monkeypatch.setattr(journal, "MAX_TRIALS_SEEN", 20)
    monkeypatch.setattr(journal, "N_BEST_SEEN", 5)
    monkeypatch.setattr(journal, "best_and_latest", counted)
    run_all(searching(open_storage(tmp_path), 20, sampler="tpe"))
    assert n_read
    assert all(n_chosen == n for n, n_chosen in n_read)
    n_read.clear()
    run_all(searching(open_storage(tmp_path), 40, sampler="tpe"))
    assert [n for n, _ in n_read] == sorted({n for n, _ in n_read}), "once for each proposal"
    assert len(n_read) >= 15, "all but the random proposals"
    assert {n_chosen for _, n_chosen in n_read} == {20}
