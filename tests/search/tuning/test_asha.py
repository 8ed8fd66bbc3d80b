"""ASHA decides as Ray's does, and as it would have without a break."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from search.tuning.asha import REDUCTION_FACTOR, PastTrial, ResumableASHA, rung_epochs
from search.tuning.ranking import ranking_value
from search.tuning.searcher import StudySearcher
from search.tuning.study import best_epoch, learning_curves, open_study
from spaces.base import Space
from spaces.sources import folder

PARAMS = {"backbone": "tinynet", "freeze_depth": 0}


def result_of(curve: list[float], losses: list[float], epoch: int) -> dict[str, Any]:
    best = max(zip(curve[:epoch], [-loss for loss in losses[:epoch]], strict=True))
    return {"epoch": epoch, "best_val_score": best[0], "best_val_loss": -best[1]}


def feed(
    scheduler: ResumableASHA,
    number: int,
    curve: list[float],
    first: int = 1,
    session: str = "one",
    losses: list[float] | None = None,
    length: int | None = None,
    freeze_depth: int = 0,
) -> int:
    """Report a trial's epochs from `first`; return the epoch it was stopped at, or 0.

    A curve is of the trial's full length unless that is given.
    """
    params = {"backbone": "tinynet", "freeze_depth": freeze_depth}
    config = {"number": number, "params": params, "epochs": length or len(curve)}
    trial: Any = SimpleNamespace(trial_id=f"{session}-{number}", config=config)
    scheduler.on_trial_add(None, trial)
    for epoch in range(first, len(curve) + 1):
        result = result_of(curve, losses or [0.0] * len(curve), epoch)
        if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            return epoch
    return 0


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [
        (1, []),
        (2, [1]),
        (5, [3]),
        (8, [4]),
        (11, [6]),
        (12, [3, 6]),
        (20, [5, 10]),
        (30, [8, 15]),
    ],
)
def test_rungs_well_before_the_full_length(epochs: int, rungs: list[int]) -> None:
    assert rung_epochs(epochs) == rungs


def test_trials_of_any_length_meet_at_the_same_rungs() -> None:
    """A long trial is compared with others after the same part of its length."""
    scheduler = ResumableASHA({})
    assert feed(scheduler, 0, [0.5] * 12) == 0  # rungs at 3 and 6
    assert feed(scheduler, 1, [0.9] * 20) == 0  # at 5 and 10
    assert feed(scheduler, 2, [0.4] * 5 + [0.95] * 25) == 0  # at 8 and 15
    values = {n: ranking_value(value, 0) for n, value in enumerate((0.5, 0.9, 0.95))}
    assert scheduler.rungs == {(False, 0): values, (False, 1): values}
    assert feed(scheduler, 3, [0.8] * 5 + [0.99] * 15) == 5, "it is not among the best third"
    assert feed(scheduler, 4, [0.1]) == 0, "one epoch has no rung"


def test_trials_of_the_head_alone_are_compared_with_each_other_alone() -> None:
    scheduler = ResumableASHA({})
    assert feed(scheduler, 0, [0.9] * 8, freeze_depth=5) == 0
    assert feed(scheduler, 1, [0.5] * 8, freeze_depth=0) == 0
    assert feed(scheduler, 2, [0.4] * 8, freeze_depth=4) == 4
    assert feed(scheduler, 3, [0.8] * 8, freeze_depth=5) == 4
    assert {key: set(values) for key, values in scheduler.rungs.items()} == {
        (True, 0): {0, 3},
        (False, 0): {1, 2},
    }


def past(
    curves: Mapping[int, Mapping[int, float]], length: int, freeze_depth: int = 0
) -> dict[int, PastTrial]:
    """Return the trials of an earlier session, all of one length."""
    return {number: PastTrial(curve, length, freeze_depth) for number, curve in curves.items()}


def test_rungs_are_rebuilt_by_the_length_and_the_depth_of_each_trial() -> None:
    kinds = {0: (8, 0), 1: (20, 5), 2: (30, 3), 3: (5, 5)}
    curves = {n: [0.5 + n / 10 + e / 1000 for e in range(k)] for n, (k, _) in kinds.items()}
    whole = ResumableASHA({})
    stopped = [feed(whole, n, curve, freeze_depth=kinds[n][1]) for n, curve in curves.items()]
    assert stopped == [0] * 4
    # Curves of the study have ranking values.
    ended = {n: {e: ranking_value(v, 0) for e, v in enumerate(c, 1)} for n, c in curves.items()}
    rebuilt = ResumableASHA({n: PastTrial(ended[n], *kind) for n, kind in kinds.items()})
    assert rebuilt.rungs == whole.rungs


# Full lengths with one rung: Ray's are powers of 3 apart.
@pytest.mark.parametrize(("epochs", "first"), [(2, 1), (8, 4), (11, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_it_decides_as_rays_asha(epochs: int, first: int, seed: int) -> None:
    """Random curves, with ties, of trials that run in parallel; Ray's rungs begin empty, too."""
    generator = np.random.default_rng(seed)
    ours = ResumableASHA({})
    rays: Any = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="value",
        mode="max",
        max_t=epochs,
        grace_period=first,
        reduction_factor=REDUCTION_FACTOR,
    )
    curves = np.maximum.accumulate(generator.integers(30, 60, (80, epochs)) / 60, axis=1)
    losses = [1.0] * epochs
    running: dict[Any, int] = {}
    n_stopped, waiting = 0, list(range(len(curves)))
    while running or waiting:
        if waiting and len(running) < 4:
            number = waiting.pop(0)
            config = {"number": number, "params": PARAMS, "epochs": epochs}
            trial: Any = SimpleNamespace(trial_id=f"t{number}", config=config)
            running[number] = 0
            rays.on_trial_add(None, trial)
            ours.on_trial_add(None, trial)
        number = int(generator.choice(list(running)))
        config = {"number": number, "params": PARAMS, "epochs": epochs}
        trial = SimpleNamespace(trial_id=f"t{number}", config=config)
        running[number] += 1
        epoch = running[number]
        result = result_of(list(curves[number]), losses, epoch)
        if epoch == epochs:  # a trial that ends of itself
            value = ranking_value(result["best_val_score"], 1.0)
            rays.on_trial_complete(None, trial, {**result, "value": value})
            ours.on_trial_complete(None, trial, result)
            del running[number]
            continue
        value = ranking_value(result["best_val_score"], 1.0)
        decision = ours.on_trial_result(None, trial, result)
        assert decision == rays.on_trial_result(None, trial, {**result, "value": value})
        if decision == TrialScheduler.STOP:
            n_stopped += 1
            rays.on_trial_complete(None, trial, {**result, "value": value})
            ours.on_trial_complete(None, trial, result)
            del running[number]
    assert 30 < n_stopped < 75


def test_rebuilt_rungs_decide_as_the_lost_ones() -> None:
    generator = np.random.default_rng(0)
    epochs = 9
    curves = [list(np.sort(generator.uniform(0.3, 1.0, epochs))) for _ in range(30)]
    whole = ResumableASHA({})
    stopped = [feed(whole, number, curve) for number, curve in enumerate(curves)]
    assert any(stopped)
    assert not all(stopped)
    for cut in (1, 7, 19):
        ended = {
            number: {e: curves[number][e - 1] for e in range(1, (stopped[number] or epochs) + 1)}
            for number in range(cut)
        }
        rest = ResumableASHA(past(ended, epochs))
        later = [feed(rest, number, curves[number]) for number in range(cut, 30)]
        assert later == stopped[cut:]
        assert rest.rungs == whole.rungs


def test_of_equal_accuracies_a_third_continues_by_the_lower_loss() -> None:
    losses = list(np.random.default_rng(0).permutation(30) / 30)
    scheduler = ResumableASHA({})
    stopped = [
        feed(scheduler, number, [0.975] * 4, losses=[loss] * 4)
        for number, loss in enumerate(losses)
    ]
    assert 7 <= sum(not epoch for epoch in stopped) <= 13
    on = [loss for loss, epoch in zip(losses[10:], stopped[10:], strict=True) if not epoch]
    off = [loss for loss, epoch in zip(losses[10:], stopped[10:], strict=True) if epoch]
    assert max(on) < min(off) + 0.2
    assert feed(scheduler, 30, [0.98] * 4, losses=[9.0] * 4) == 0, "accuracy comes first"


def test_rungs_of_equal_accuracies_are_rebuilt() -> None:
    losses = np.random.default_rng(1).permutation(20) / 20
    whole = ResumableASHA({})
    stopped = [feed(whole, n, [0.9] * 4, losses=[loss] * 4) for n, loss in enumerate(losses)]
    earlier = {n: dict.fromkeys((1, 2), ranking_value(0.9, losses[n])) for n in range(12)}
    rest = ResumableASHA(past(earlier, 4))
    later = [feed(rest, n, [0.9] * 4, losses=[losses[n]] * 4) for n in range(12, 20)]
    assert later == stopped[12:]
    assert rest.rungs == whole.rungs


def whole_and_cut(last: dict[int, float]) -> tuple[ResumableASHA, list[int], ResumableASHA]:
    """Run four trials; begin a session that knows two, and of the others what they reported."""
    whole = ResumableASHA({})
    stopped = [feed(whole, number, curve) for number, curve in enumerate(CURVES)]
    known = {number: dict(enumerate(CURVES[number], start=1)) for number in (0, 1)}
    return (
        whole,
        stopped,
        ResumableASHA(past({**known, 2: dict.fromkeys((1, 2, 3), 0.2), 3: last}, 5)),
    )


CURVES = [
    [0.5, 0.6, 0.7, 0.7, 0.8],
    [0.9, 0.9, 0.9, 0.9, 0.9],
    [0.2] * 5,
    [0.95, 0.96, 0.4, 1, 1],
]


@pytest.mark.parametrize("first", [1, 3])
def test_an_unfinished_trial_stands_where_it_stood(first: int) -> None:
    """Cut off after an epoch was reported: one before the rung, or that of the rung."""
    whole, stopped, rest = whole_and_cut(dict(enumerate(CURVES[3][:first], start=1)))
    assert feed(rest, 3, CURVES[3], first=first, session="two") == stopped[3]
    assert rest.rungs == whole.rungs


def test_what_was_reported_but_not_decided_is_decided_later() -> None:
    whole, stopped, rest = whole_and_cut({1: 0.95})
    assert stopped[2] == 3
    assert feed(rest, 2, CURVES[2], first=3, session="two") == 3
    assert feed(rest, 3, CURVES[3], session="two") == stopped[3]
    assert rest.rungs == whole.rungs


def test_a_trial_that_is_continued_in_the_same_session_has_one_place() -> None:
    whole = ResumableASHA({})
    for number, curve in enumerate(CURVES):
        feed(whole, number, curve[:3] if number == 3 else curve, length=5)
    before = {rung: dict(values) for rung, values in whole.rungs.items()}
    feed(whole, 3, CURVES[3], first=2, session="another worker")
    assert whole.rungs == before


COARSE = Space(
    source=folder(),
    params={"backbone": "cnn", "lr": FloatDistribution(1e-4, 1e-1, log=True)},
    epochs=9,
)


def reported_by(lr: float, epoch: int) -> dict[str, Any]:
    """Make an epoch's result of a few validation images: many accuracies are equal."""
    far = abs(np.log10(lr) + 2.3)
    losses = [far + 1 / at for at in range(1, epoch + 1)]
    accuracies = [round(1 - 0.2 * loss, 1) for loss in losses]
    best = max(range(epoch), key=lambda at: (accuracies[at], -losses[at]))
    return {
        "epoch": epoch,
        "val_score": accuracies[-1],
        "val_accuracy": accuracies[-1],
        "val_loss": losses[-1],
        "best_val_score": accuracies[best],
        "best_val_accuracy": accuracies[best],
        "best_val_loss": losses[best],
        "best_epoch": best + 1,
        "trained_seconds": 1.0 * epoch,
        "node": "10.0.0.7",
        "finished": epoch == 9,
    }


def session(storage: InMemoryStorage, n_trials: int, n_epochs: int) -> optuna.Study:
    """Search with one trial after the other, and be killed after so many epochs."""
    study = open_study(storage)
    reported = learning_curves(study)
    searcher = StudySearcher(storage, COARSE, n_trials, "tpe", seed=3)
    scheduler = ResumableASHA(past(learning_curves(study), 9))
    while isinstance(suggested := searcher.suggest(name := f"{id(study)} {n_epochs}"), dict):
        trial: Any = SimpleNamespace(trial_id=name, config=suggested)
        scheduler.on_trial_add(None, trial)
        # The last epoch before a break is reported once more, from its checkpoint.
        last = max(reported.get(suggested["number"], {}), default=0)
        for epoch in range(max(1, last), 10):
            if n_epochs == 0:
                return study
            n_epochs -= epoch != last
            result = reported_by(suggested["params"]["lr"], epoch)
            if not result["finished"]:
                decision = scheduler.on_trial_result(None, trial, result)
            if result["finished"] or decision == TrialScheduler.STOP:
                scheduler.on_trial_complete(None, trial, result)
                searcher.on_trial_complete(name, result)
                break
            searcher.on_trial_result(name, result)
    return study


def test_a_search_cut_anywhere_decides_as_a_whole_one() -> None:
    whole = session(InMemoryStorage(), 24, 999)
    expected = [(t.params, t.state, t.intermediate_values) for t in whole.trials]
    accuracies = [best_epoch(trial).val_accuracy for trial in whole.trials]
    assert len(set(accuracies)) < 12, "ties are what this is about"
    for step in (1, 4, 7):
        storage = InMemoryStorage()
        for _ in range(300):
            pieces = session(storage, 24, step)
            if sum(trial.state.is_finished() for trial in pieces.trials) == 24:
                break
        assert [(t.params, t.state, t.intermediate_values) for t in pieces.trials] == expected
