import csv
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.tuning.ranking import score
from search.tuning.samplers import create_sampler
from search.tuning.study import (
    MAX_LOST_WORKERS,
    STUDY_NAME,
    StudySearcher,
    best_epoch,
    best_value,
    count_states,
    count_unfinished,
    curves,
    kept_scores,
    open_study,
    ranked_trials,
    storage_url,
    trial_params,
    write_trials,
)
from spaces.base import Space
from spaces.sources import folder
from trainables.trial import FAILURE

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


def opened(space: Space = SPACE, storage: Any = None) -> optuna.Study:
    return open_study(storage or InMemoryStorage(), space)


def searching(
    study: optuna.Study,
    n_trials: int,
    space: Space = SPACE,
    sampler: str = "random",
    seed: int = 0,
) -> StudySearcher:
    return StudySearcher(study, space, n_trials, sampler, seed)


def epoch(number: int, accuracy: float, best: float | None = None, **more: Any) -> dict[str, Any]:
    """Make what a trial reports at the end of an epoch."""
    best = accuracy if best is None else best
    return {
        "epoch": number,
        "val_accuracy": accuracy,
        "val_loss": 1 - accuracy,
        "best_val_accuracy": best,
        "best_val_loss": 1 - best,
        "best_epoch": number if best == accuracy else number - 1,
        "trained_seconds": 1.5 * number,
        "node": "10.0.0.7",
        "finished": False,
        **more,
    }


def value_of(params: dict[str, Any]) -> float:
    """Judge a configuration."""
    return 1 / (1 + abs(math.log10(params.get("lr", 1e-3)) + 2.5)) - 0.1 * params.get("dropout", 0)


def run_all(searcher: StudySearcher, most: int = 100) -> list[dict[str, Any]]:
    """Run trials of one epoch until the searcher says that there are enough."""
    tried = []
    for index in range(most):
        suggested = searcher.suggest(str(index))
        if suggested == Searcher.FINISHED:
            return tried
        tried.append(suggested["params"])
        result = epoch(1, value_of(suggested["params"]), finished=True)
        searcher.on_trial_result(str(index), result)
        searcher.on_trial_complete(str(index), result)
    raise AssertionError(f"still not finished after {most} trials")


def test_first_trials_come_first_with_the_constants():
    searcher = searching(opened(), 5)
    first, second, third = (searcher.suggest(name) for name in "abc")
    assert first == {"number": 0, "params": FIRSTS[0], "reported": 0}
    assert second["params"].items() >= FIRSTS[1].items()
    assert second["params"]["freeze_depth"] in range(6)
    assert set(third["params"]) == set(SPACE.params)
    assert [suggested["number"] for suggested in (first, second, third)] == [0, 1, 2]


def test_it_is_finished_when_as_many_have_begun_as_were_asked_for():
    study = opened()
    searcher = searching(study, 3)
    for name in "abc":
        assert searcher.suggest(name) != Searcher.FINISHED
    assert searcher.suggest("d") is None, "one that is running may lose its worker and come back"
    searcher.on_trial_complete("a", epoch(1, 0.5, finished=True))
    searcher.on_trial_complete("b", epoch(1, 0.5))
    searcher.on_trial_complete("c", {FAILURE: "the training loss is nan in epoch 2"})
    assert searcher.suggest("d") == Searcher.FINISHED, "failing trials must not be tried for ever"
    assert count_states(study) == {"complete": 1, "pruned": 1, "failed": 1}
    extended = searching(study, 4)
    assert extended.suggest("e")["number"] == 3
    assert extended.suggest("f") is None
    extended.on_trial_complete("e", epoch(1, 0.5, finished=True))
    assert extended.suggest("f") == Searcher.FINISHED


def test_a_full_length_trial_is_complete_with_its_best_epochs_value():
    study = opened()
    searcher = searching(study, 5)
    searcher.suggest("a")
    searcher.on_trial_result("a", epoch(1, 0.7))
    searcher.on_trial_result("a", epoch(2, 0.9))
    last = epoch(3, 0.8, best=0.9, finished=True)
    searcher.on_trial_result("a", last)
    searcher.on_trial_complete("a", last)
    trial = study.trials[0]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.9)
    assert trial.intermediate_values == {1: 0.7, 2: 0.9, 3: 0.8}
    assert trial.user_attrs == {
        "best_epoch": 2,
        "val_losses": {"1": pytest.approx(0.3), "2": pytest.approx(0.1)},
        "best_val_loss": pytest.approx(0.1),
        "seconds": 4.5,
        "node": "10.0.0.7",
    }
    assert (best_value(trial), best_epoch(trial)) == (0.9, 2)


def test_a_trial_stopped_early_is_pruned_and_never_complete():
    study = opened()
    searcher = searching(study, 5)
    searcher.suggest("a")
    searcher.on_trial_result("a", epoch(1, 0.7))
    # Tune does not hand the epoch on which it stops a trial to `on_trial_result`.
    searcher.on_trial_complete("a", epoch(2, 0.6, best=0.7))
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.7, 2: 0.6}
    assert (best_value(trial), best_epoch(trial)) == (0.7, 1)
    assert count_states(study) == {"complete": 0, "pruned": 1, "failed": 0}


def test_a_trial_that_failed_keeps_its_reason_and_has_no_value():
    study = opened()
    searcher = searching(study, 5)
    searcher.suggest("a")
    searcher.on_trial_result("a", epoch(1, 0.7))
    failure = {FAILURE: "the training loss is nan in epoch 2", "done": True}
    searcher.on_trial_result("a", failure)
    searcher.on_trial_complete("a", failure)
    trial = study.trials[0]
    assert (trial.state, trial.value) == (TrialState.FAIL, None)
    assert trial.user_attrs["reason"] == "the training loss is nan in epoch 2"
    assert trial.intermediate_values == {1: 0.7}
    assert not searcher.will_retry(0)


def test_a_trial_that_lost_its_worker_goes_on_first_under_its_number():
    study = opened()
    searcher = searching(study, 3)
    lost = searcher.suggest("a")
    searcher.on_trial_result("a", epoch(1, 0.7))
    searcher.suggest("b")
    searcher.on_trial_complete("a", epoch(1, 0.7), error=True)
    assert searcher.will_retry(0)
    assert not searcher.will_retry(1)
    assert count_states(study) == {"complete": 0, "pruned": 0, "failed": 0}
    assert searcher.suggest("c") == {**lost, "reported": 1}
    assert searcher.suggest("d")["number"] == 2
    searcher.on_trial_complete("c", epoch(2, 0.8, finished=True))
    assert study.trials[0].intermediate_values == {1: 0.7, 2: 0.8}
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_trial_that_loses_worker_after_worker_has_failed():
    study = opened()
    searcher = searching(study, 1)
    for attempt in range(MAX_LOST_WORKERS):
        assert searcher.suggest(f"a{attempt}")["number"] == 0
        searcher.on_trial_complete(f"a{attempt}", None, error=True)
    searcher.suggest("b")
    searcher.on_trial_result("b", epoch(1, 0.7))  # it got on: the count begins anew
    for attempt in range(MAX_LOST_WORKERS):
        searcher.on_trial_complete("b" if attempt == 0 else f"c{attempt}", None, error=True)
        assert searcher.suggest(f"c{attempt + 1}")["number"] == 0
    searcher.on_trial_complete(f"c{MAX_LOST_WORKERS}", None, error=True)
    assert not searcher.will_retry(0)
    assert searcher.suggest("d") == Searcher.FINISHED
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].user_attrs["reason"] == "its worker was lost again and again"


def test_once_the_study_cannot_be_written_nothing_more_is_told(monkeypatch):
    study = opened()
    searcher = searching(study, 3)
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_result("a", epoch(1, 0.7))
    full = StorageInternalError("database or disk is full")

    def refuse(*_: Any, **__: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(study._storage, "set_trial_intermediate_value", refuse)
        searcher.on_trial_complete("a", epoch(2, 0.8, finished=True))
    assert searcher.broken is full
    # There is room again, but the session is over: what it would tell has gaps.
    searcher.on_trial_complete("a", None, error=True)
    searcher.on_trial_complete("b", epoch(1, 0.9, finished=True))
    assert searcher.suggest("c") is None
    assert [t.state for t in study.trials[:2]] == [TrialState.RUNNING] * 2
    assert study.trials[0].intermediate_values == {1: 0.7}
    again = searching(study, 3)
    assert [again.suggest(name)["number"] for name in "xyz"] == [0, 1, 2]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_trial_cut_off_while_it_was_drawn_gets_the_rest_of_its_parameters(sampler):
    space = replace(SPACE, first_trials=FIRSTS[1:])
    for cut in (0, 3):
        study = opened(space)
        begun = searching(study, 12, space, sampler)
        expected = [begun.suggest(str(index)) for index in range(cut)]
        study.sampler = create_sampler(sampler, space, 12, 0, cut)
        half = study.ask({"backbone": space.distributions["backbone"]})  # killed here
        again = searching(study, 12, space, sampler)
        assert [again.suggest(f"again {index}") for index in range(cut)] == expected
        whole = again.suggest("whole")
        assert whole["number"] == half.number == cut
        assert whole["params"].items() >= half.params.items()
        assert set(whole["params"]) == set(SPACE.params)
        assert again.suggest("next")["number"] == cut + 1


def test_a_study_killed_while_it_was_begun_has_all_first_trials():
    storage = InMemoryStorage()
    half = optuna.create_study(storage=storage, study_name=STUDY_NAME, direction="maximize")
    half.enqueue_trial({k: v for k, v in FIRSTS[0].items() if k in SPACE.distributions})
    opened(storage=storage)
    waiting = opened(storage=storage).get_trials(states=(TrialState.WAITING,))
    assert [t.system_attrs["fixed_params"]["backbone"] for t in waiting] == ["cnn", "tinynet"]


def test_an_epoch_that_is_told_again_keeps_its_first_value():
    study = opened()
    searcher = searching(study, 5)
    searcher.suggest("a")
    for result in (epoch(1, 0.7), epoch(2, 0.8), epoch(2, 0.1), epoch(3, 0.9)):
        searcher.on_trial_result("a", result)
    assert study.trials[0].intermediate_values == {1: 0.7, 2: 0.8, 3: 0.9}


def test_the_end_of_a_trial_that_is_over_changes_nothing():
    study = opened()
    searcher = searching(study, 5)
    searcher.suggest("a")
    searcher.on_trial_complete("a", epoch(1, 0.5, finished=True))
    searcher.on_trial_complete("a", None, error=True)
    assert count_states(study) == {"complete": 1, "pruned": 0, "failed": 0}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_the_seed_decides_what_is_tried(sampler):
    runs = [run_all(searching(opened(SMALL), 12, SMALL, sampler, seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("n_first", [0, 2])
@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_search_in_two_sessions_tries_what_one_would_have_tried(sampler, n_first):
    space = replace(SPACE, first_trials=FIRSTS[:n_first])
    whole = run_all(searching(opened(space), 12, space, sampler))
    storage = InMemoryStorage()
    begun = run_all(searching(opened(space, storage), 5, space, sampler))
    again = run_all(searching(opened(space, storage), 12, space, sampler))
    assert len(begun) == 5
    if sampler != "tpe":  # how many of its trials are random depends on how many are asked for
        assert begun + again == whole
    points = [tuple(trial.values()) for trial in begun + again]
    assert len(set(points)) == 12


def test_a_grid_is_finished_when_it_is_used_up():
    searcher = searching(opened(SMALL), 40, SMALL, "grid")
    points = [searcher.suggest(str(index)) for index in range(6)]
    assert sorted((p["params"]["backbone"], p["params"]["dropout"]) for p in points) == [
        (backbone, dropout) for backbone in ("cnn", "tinynet") for dropout in (0.0, 0.25, 0.5)
    ]
    assert searcher.suggest("6") is None, "while the last points are running"
    for index in range(6):
        searcher.on_trial_complete(str(index), epoch(1, 0.5, finished=True))
    assert searcher.suggest("6") == Searcher.FINISHED
    assert searching(opened(SMALL, searcher._study._storage), 40, SMALL, "grid").suggest("7") == (
        Searcher.FINISHED
    )


def test_trials_that_were_cut_off_go_on_first_under_their_numbers():
    storage = InMemoryStorage()
    earlier = searching(opened(storage=storage), 6)
    begun = [earlier.suggest(name) for name in "abc"]
    earlier.on_trial_result("b", epoch(1, 0.6))
    earlier.on_trial_result("b", epoch(2, 0.7))
    earlier.on_trial_complete("a", epoch(1, 0.5, finished=True))
    study = opened(storage=storage)  # the session was killed here
    assert count_unfinished(study) == 2
    assert curves(study) == {0: {1: score(0.5, 0.5)}, 1: {1: score(0.6, 0.4), 2: score(0.7, 0.3)}}
    searcher = searching(study, 6)
    second, third, new = (searcher.suggest(name) for name in "xyz")
    assert second == {**begun[1], "reported": 2}
    assert third == {**begun[2], "reported": 0}
    assert new["number"] == 3
    searcher.on_trial_result("x", epoch(2, 0.1))
    searcher.on_trial_result("x", epoch(3, 0.8))
    searcher.on_trial_complete("x", epoch(3, 0.8, finished=True))
    assert study.trials[1].intermediate_values == {1: 0.6, 2: 0.7, 3: 0.8}
    assert study.trials[1].value == 0.8


def test_an_epoch_that_was_no_best_counts_less_than_the_best_of_the_same_accuracy():
    study = opened()
    searcher = searching(study, 5)
    searcher.suggest("a")
    searcher.on_trial_result("a", {**epoch(1, 0.7), "best_val_loss": 0.3})
    searcher.on_trial_result("a", {**epoch(2, 0.7), "best_val_loss": 0.3, "best_epoch": 1})
    assert curves(study)[0][1] == score(0.7, 0.3) > curves(study)[0][2]


def test_the_study_is_kept_on_disk(tmp_path):
    url = storage_url(tmp_path)
    assert url == f"sqlite:///{tmp_path}/study.db"
    run_all(searching(opened(storage=url), 1))
    again = opened(storage=url)
    assert len(again.get_trials(states=(TrialState.COMPLETE,))) == 1
    (waiting,) = again.get_trials(states=(TrialState.WAITING,))
    assert waiting.system_attrs["fixed_params"] == FIRSTS[1], "enqueued once, and not again"


def test_tpe_learns():
    best = {
        sampler: [
            max(map(value_of, run_all(searching(opened(), 20, SPACE, sampler, seed))))
            for seed in range(3)
        ]
        for sampler in ("random", "tpe")
    }
    assert sum(best["tpe"]) > sum(best["random"])


# What became of it


Ended = Callable[..., int]


@pytest.fixture
def study() -> optuna.Study:
    return opened(Space(source=SPACE.source, params=SPACE.params))


@pytest.fixture
def end(study: optuna.Study) -> Ended:
    """End a trial of two epochs; return its number."""
    searcher = searching(study, 99)

    def end(best: float, loss: float = 0.5, finished: bool = True, failed: bool = False) -> int:
        number: int = searcher.suggest("x")["number"]
        result = {**epoch(2, best, finished=finished), "best_val_loss": loss}
        searcher.on_trial_result("x", result)
        searcher.on_trial_complete("x", {FAILURE: "lost"} if failed else result)
        return number

    return end


def test_full_length_trials_are_ranked_by_accuracy_then_loss_then_age(study, end):
    low, late, early = end(0.8, 0.1), end(0.9, 0.4), end(0.9, 0.3)
    same = end(0.9, 0.3)
    end(0.99, finished=False)
    end(1.0, failed=True)
    assert [t.number for t in ranked_trials(study)] == [early, same, late, low]


def test_unfinished_trials_are_ranked_where_none_is_full(study, end):
    worse, better = end(0.5, finished=False), end(0.6, finished=False)
    assert [t.number for t in ranked_trials(study)] == [better, worse]
    assert trial_params(ranked_trials(study)[0], SPACE)["scheduler"] == "cosine"


def test_a_trial_that_was_cut_off_is_ranked_among_the_unfinished(study, end):
    pruned = end(0.5, finished=False)
    searcher = searching(study, 9)
    number = searcher.suggest("a")["number"]
    for result in (epoch(1, 0.9), epoch(2, 0.9), epoch(3, 0.7)):
        searcher.on_trial_result("a", result)
    first, second = ranked_trials(study)
    assert (first.number, second.number) == (number, pruned)
    assert (best_value(first), best_epoch(first)) == (0.9, 1)


def test_nothing_is_ranked_where_no_epoch_ended(study):
    assert ranked_trials(study) == []
    searcher = searching(study, 9)
    searcher.suggest("a")
    searcher.on_trial_complete("a", {FAILURE: "lost"})
    assert ranked_trials(study) == []


def test_scores_are_those_of_full_length_trials(study, end):
    first, second = end(0.8, 0.3), end(0.9, 0.2)
    end(0.99, finished=False)
    assert kept_scores(study) == {first: (0.8, -0.3), second: (0.9, -0.2)}


def test_trials_are_written_a_line_each(study, end, tmp_path):
    end(0.8)
    end(0.7, finished=False)
    searcher = searching(study, 99)
    searcher.suggest("a")
    searcher.on_trial_complete("a", {FAILURE: 'too "large", by far'})
    searcher.suggest("b")
    searcher.on_trial_result("b", epoch(1, 0.6))
    write_trials(tmp_path / "trials.csv", study, SPACE)
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as file:
        full, stopped, failed, cut_off = csv.DictReader(file)
    expected = {
        "number": "0",
        "state": "complete",
        "best_val_accuracy": "0.8",
        "best_epoch": "2",
        "epochs": "1",
        "seconds": "3.0",
        "node": "10.0.0.7",
        "scheduler": "cosine",
        "reason": "",
    }
    assert full.items() >= expected.items()
    assert full["lr"] == str(study.trials[0].params["lr"])
    assert (stopped["state"], stopped["best_val_accuracy"]) == ("pruned", "0.7")
    assert (failed["state"], failed["reason"]) == ("failed", 'too "large", by far')
    assert (failed["best_val_accuracy"], failed["epochs"]) == ("", "0")
    assert (cut_off["state"], cut_off["best_val_accuracy"]) == ("unfinished", "0.6")
