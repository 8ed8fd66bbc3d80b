import csv
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.study import (
    StudySearcher,
    count_states,
    kept_scores,
    open_study,
    ranked_trials,
    storage_url,
    trial_params,
    write_trials,
)
from spaces.base import Space
from spaces.sources import folder

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


def opened(
    space: Space = SPACE,
    sampler: str = "random",
    n_trials: int = 20,
    seed: int = 0,
    storage: Any = None,
) -> optuna.Study:
    return open_study(storage or InMemoryStorage(), space, sampler, n_trials, seed)


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
    searcher = StudySearcher(opened(), SPACE, 5)
    first, second, third = (searcher.suggest(name) for name in "abc")
    assert first == {"number": 0, "params": FIRSTS[0]}
    assert second["params"].items() >= FIRSTS[1].items()
    assert second["params"]["freeze_depth"] in range(6)
    assert set(third["params"]) == set(SPACE.params)
    assert [searcher.number_of(name) for name in "abc"] == [0, 1, 2]


def test_it_is_finished_when_as_many_have_begun_as_were_asked_for():
    study = opened()
    searcher = StudySearcher(study, SPACE, 3)
    for name in "abc":
        assert searcher.suggest(name) != Searcher.FINISHED
    assert searcher.suggest("d") == Searcher.FINISHED
    searcher.on_trial_complete("a", epoch(1, 0.5, finished=True))
    searcher.on_trial_complete("b", epoch(1, 0.5))
    searcher.on_trial_complete("c", None, error=True)
    assert searcher.suggest("d") == Searcher.FINISHED, "failing trials must not be tried for ever"
    assert count_states(study) == {"complete": 1, "pruned": 1, "failed": 1}
    extended = StudySearcher(study, SPACE, 4)
    assert extended.suggest("e")["number"] == 3
    assert extended.suggest("f") == Searcher.FINISHED


def test_a_full_length_trial_is_complete_with_its_best_epochs_value():
    study = opened()
    searcher = StudySearcher(study, SPACE, 5)
    searcher.suggest("a")
    searcher.on_trial_result("a", epoch(1, 0.7))
    searcher.on_trial_result("a", epoch(2, 0.9))
    last = epoch(3, 0.8, best=0.9, finished=True)
    searcher.on_trial_result("a", last)
    searcher.on_trial_complete("a", last)
    (trial,) = (t for t in study.trials if t.state == TrialState.COMPLETE)
    assert trial.value == 0.9
    assert trial.intermediate_values == {1: 0.7, 2: 0.9, 3: 0.8}
    assert (
        trial.user_attrs.items()
        >= {
            "best_epoch": 2,
            "best_val_accuracy": 0.9,
            "best_val_loss": pytest.approx(0.1),
            "seconds": 4.5,
            "node": "10.0.0.7",
        }.items()
    )
    assert "reason" not in trial.user_attrs


def test_a_trial_stopped_early_is_pruned_and_never_complete():
    study = opened()
    searcher = StudySearcher(study, SPACE, 5)
    searcher.suggest("a")
    for result in (epoch(1, 0.7), epoch(2, 0.6, best=0.7)):
        searcher.on_trial_result("a", result)
    searcher.on_trial_complete("a", epoch(2, 0.6, best=0.7))
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.7, 2: 0.6}
    assert trial.user_attrs["best_epoch"] == 1
    assert count_states(study) == {"complete": 0, "pruned": 1, "failed": 0}


def test_a_trial_that_failed_keeps_its_reason_and_has_no_value():
    study = opened()
    searcher = StudySearcher(study, SPACE, 5)
    for name in "ab":
        searcher.suggest(name)
    searcher.on_trial_result("a", epoch(1, 0.7))
    searcher.on_trial_error("a", "the training loss is nan in epoch 2")
    searcher.on_trial_complete("a", None, error=True)
    searcher.on_trial_complete("b", None)
    first, second = study.trials[:2]
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.FAIL)
    assert (first.value, second.value) == (None, None)
    assert first.user_attrs["reason"] == "the training loss is nan in epoch 2"
    assert second.user_attrs["reason"] == "stopped before an epoch ended"


def test_the_end_of_a_trial_that_is_over_changes_nothing():
    study = opened()
    searcher = StudySearcher(study, SPACE, 5)
    searcher.suggest("a")
    searcher.on_trial_complete("a", epoch(1, 0.5, finished=True))
    searcher.on_trial_complete("a", None, error=True)
    assert count_states(study) == {"complete": 1, "pruned": 0, "failed": 0}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_the_seed_decides_what_is_tried(sampler):
    runs = [
        run_all(StudySearcher(opened(SMALL, sampler, 14, seed), SMALL, 14)) for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("n_first", [0, 2])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_is_carried_on_tries_new_configurations(sampler, n_first):
    space = replace(SPACE, first_trials=FIRSTS[:n_first])
    storage = InMemoryStorage()
    begun = run_all(StudySearcher(opened(space, sampler, storage=storage), space, 4))
    again = run_all(StudySearcher(opened(space, sampler, storage=storage), space, 10))
    assert (len(begun), len(again)) == (4, 6)
    assert not {trial["lr"] for trial in begun} & {trial["lr"] for trial in again}


def test_a_grid_that_is_carried_on_is_finished_in_the_end():
    storage = InMemoryStorage()
    begun = run_all(StudySearcher(opened(SMALL, "grid", storage=storage), SMALL, 4))
    again = run_all(StudySearcher(opened(SMALL, "grid", storage=storage), SMALL, 40))
    assert sorted((trial["backbone"], trial["dropout"]) for trial in begun + again) == [
        (backbone, dropout) for backbone in ("cnn", "tinynet") for dropout in (0.0, 0.25, 0.5)
    ]


def test_a_grid_whose_last_points_are_running_is_finished():
    searcher = StudySearcher(opened(SMALL, "grid"), SMALL, 40)
    points = [searcher.suggest(str(index)) for index in range(6)]
    assert len({tuple(point["params"].values()) for point in points}) == 6
    assert searcher.suggest("6") == Searcher.FINISHED


def test_the_study_is_kept_on_disk(tmp_path):
    url = storage_url(tmp_path)
    assert url == f"sqlite:///{tmp_path}/study.db"
    searcher = StudySearcher(opened(storage=url), SPACE, 1)
    run_all(searcher)
    again = opened(storage=url)
    assert len(again.get_trials(states=(TrialState.COMPLETE,))) == 1
    assert again.get_trials(states=(TrialState.WAITING,))[0].system_attrs["fixed_params"] == {
        "backbone": "tinynet",
        "lr": 2e-3,
    }


def test_random_and_tpe_begin_alike_and_tpe_learns():
    best = {
        sampler: [
            max(map(value_of, run_all(StudySearcher(opened(sampler=sampler, seed=s), SPACE, 20))))
            for s in range(3)
        ]
        for sampler in ("random", "tpe")
    }
    assert sum(best["tpe"]) >= sum(best["random"])


# What became of it


Ended = Callable[..., int]


@pytest.fixture
def study() -> optuna.Study:
    return opened(Space(source=SPACE.source, params=SPACE.params))


@pytest.fixture
def end(study: optuna.Study) -> Ended:
    """End a trial of two epochs; return its number."""
    searcher = StudySearcher(study, SPACE, 99)

    def end(best: float, loss: float = 0.5, finished: bool = True, failed: bool = False) -> int:
        number: int = searcher.suggest("x")["number"]
        result = {**epoch(2, best, finished=finished), "best_val_loss": loss}
        searcher.on_trial_result("x", result)
        searcher.on_trial_complete("x", None if failed else result, error=failed)
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


def test_nothing_is_ranked_where_no_epoch_ended(study):
    assert ranked_trials(study) == []
    searcher = StudySearcher(study, SPACE, 9)
    searcher.suggest("a")
    searcher.on_trial_complete("a", None, error=True)
    assert ranked_trials(study) == []


def test_scores_are_those_of_full_length_trials(study, end):
    first, second = end(0.8, 0.3), end(0.9, 0.2)
    end(0.99, finished=False)
    assert kept_scores(study) == {first: (0.8, -0.3), second: (0.9, -0.2)}


def test_trials_are_written_a_line_each(study, end, tmp_path):
    end(0.8)
    end(0.7, finished=False)
    searcher = StudySearcher(study, SPACE, 99)
    searcher.suggest("a")
    searcher.on_trial_error("a", "too large, by far")
    searcher.on_trial_complete("a", None, error=True)
    write_trials(tmp_path / "trials.csv", study, SPACE)
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as file:
        full, stopped, failed = csv.DictReader(file)
    assert (
        full.items()
        >= {
            "number": "0",
            "state": "complete",
            "best_val_accuracy": "0.8",
            "best_epoch": "2",
            "epochs": "1",
            "seconds": "3.0",
            "node": "10.0.0.7",
            "scheduler": "cosine",
            "reason": "",
        }.items()
    )
    assert full["lr"] == str(study.trials[0].params["lr"])
    assert (stopped["state"], stopped["best_val_accuracy"]) == ("pruned", "0.7")
    assert (failed["state"], failed["reason"]) == ("failed", "too large, by far")
    assert failed["best_val_accuracy"] == failed["epochs"] or failed["epochs"] == "0"
