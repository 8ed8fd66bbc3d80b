from dataclasses import replace
from itertools import zip_longest

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from search.pipeline.finalists import Finalist, choose_finalists, next_finalists
from search.runs.summary import ProbeScore
from search.tuning.study import BEST, LEARNING_RATES
from spaces.base import Space
from spaces.sources import digits

DISTRIBUTIONS = {"lr": FloatDistribution(1e-4, 1e-1, log=True)}
EPOCHS = 4
COMPLETE = [(lr, TrialState.COMPLETE, (0.5, 0.6)) for lr in (1e-3, 1e-2, 2e-2)]


def space_of(scheduler: str = "none") -> Space:
    return Space(
        source=digits(),
        params={
            "backbone": CategoricalDistribution(["tinynet"]),
            **DISTRIBUTIONS,
            "scheduler": scheduler,
        },
        epochs=EPOCHS,
    )


def study_of(
    *trials: tuple[float, TrialState, tuple[float, ...]],
    rates: tuple[dict[str, float], ...] = (),
) -> optuna.Study:
    """Make a study of trials: learning rate, state, validation accuracies.

    `rates` has the learning rates of each trial's plateau schedule.
    """
    study = optuna.create_study(direction="maximize")
    for (lr, state, values), learning_rates in zip_longest(trials, rates, fillvalue={}):
        best = max(range(len(values)), key=lambda i: values[i]) if values else 0
        study.add_trial(
            create_trial(
                params={"lr": lr, "backbone": "tinynet"},
                distributions={**DISTRIBUTIONS, "backbone": CategoricalDistribution(["tinynet"])},
                state=state,
                value=max(values) if state == TrialState.COMPLETE else None,
                intermediate_values=dict(enumerate(values, start=1)),
                user_attrs=(
                    {
                        BEST: {
                            "epoch": best + 1,
                            "val_score": values[best],
                            "val_accuracy": values[best],
                            "val_loss": 1 - values[best],
                        },
                        LEARNING_RATES: learning_rates,
                    }
                    if values
                    else {}
                ),
            )
        )
    return study


def chosen(study: optuna.Study, space: Space | None = None) -> list[Finalist]:
    return choose_finalists(study, space or space_of(), 1, {})


def test_the_baseline_is_always_a_finalist() -> None:
    first = (1e-3, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.85))
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    finalists = chosen(study_of(first, best))
    assert [(f.trial, f.retrain_config.epochs, f.val_accuracy) for f in finalists] == [
        (1, 4, 0.95),
        (0, 3, 0.9),
    ]


def test_without_time_for_the_baseline_it_is_a_finalist_only_where_it_is_best() -> None:
    good = (1e-3, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.85))
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    for trials, number in (((good, best), 1), ((best, good), 0)):
        study = study_of(*trials)
        finalists = choose_finalists(study, space_of(), 1, {}, with_baseline=False)
        assert [finalist.trial for finalist in finalists] == [number]


def test_the_best_fine_tuned_trial_is_a_finalist_too() -> None:
    """A few hundred validation images do not tell whether it is better than the best head."""
    curves = {5: (0.7, 0.9), 3: (0.6, 0.8), 2: (0.6, 0.85)}
    study = optuna.create_study(direction="maximize")
    depths = {"freeze_depth": IntDistribution(0, 5)}
    for trial, depth in zip(study_of(*COMPLETE).trials, curves, strict=True):
        params = {**trial.params, "freeze_depth": depth}
        distributions = {**trial.distributions, **depths}
        best = {**trial.user_attrs[BEST], "val_score": curves[depth][1]}
        attributes = {**trial.user_attrs, BEST: best}
        study.add_trial(
            create_trial(
                params=params, distributions=distributions, value=0.5, user_attrs=attributes
            )
        )
    space = replace(space_of(), params={**space_of().params, **depths})
    finalists = choose_finalists(study, space, 1, {}, with_baseline=False)
    assert [finalist.trial for finalist in finalists] == [0, 2]
    assert [finalist.trial for finalist in next_finalists(study, space, finalists)] == [1]


def test_a_baseline_that_is_the_best_is_one_finalist() -> None:
    best = (1e-3, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    other = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.8, 0.8))
    assert [f.trial for f in chosen(study_of(best, other))] == [0]


def test_a_pruned_baseline_is_retrained_at_full_length() -> None:
    first = (1e-3, TrialState.PRUNED, (0.5,))
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    finalist = chosen(study_of(first, best))[1]
    assert (finalist.trial, finalist.retrain_config.epochs) == (0, EPOCHS)
    assert finalist.retrain_config.config.lr == 1e-3


def test_learning_rates_of_a_plateau_stay_as_in_the_last_epoch() -> None:
    first = (1e-3, TrialState.PRUNED, (0.5, 0.6))
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.95, 0.9))
    rates = {"1": 1e-3, "2": 1e-4}, {"1": 1e-2, "3": 1e-3, "4": 1e-4}
    best_finalist, baseline = chosen(study_of(first, best, rates=rates), space_of("plateau"))
    assert best_finalist.retrain_config.epoch_lrs == (1e-2, 1e-2, 1e-3), "up to the best epoch"
    assert baseline.retrain_config.epoch_lrs == (1e-3, 1e-4, 1e-4, 1e-4)


@pytest.mark.parametrize("values", [(), (0.4,)])
def test_a_failed_baseline_is_no_finalist(values: tuple[float, ...]) -> None:
    first = (1e-3, TrialState.FAIL, values)
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    assert [f.trial for f in chosen(study_of(first, best))] == [1]


def test_the_best_probe_is_always_a_finalist() -> None:
    probes = {
        name: ProbeScore(accuracy=accuracy, score=0.8, seconds=1.0)
        for name, accuracy in (("tinynet", 0.97), ("resnet18", 0.9))
    }
    study = study_of((1e-3, TrialState.COMPLETE, (0.9,)))
    finalists = choose_finalists(study, space_of(), 1, probes)
    assert [(f.trial, f.val_accuracy) for f in finalists] == [(None, 0.97), (0, 0.9)]
    assert [f.val_score for f in finalists] == [0.8, 0.9]
    assert [f.name for f in finalists] == ["linear probe of tinynet", "trial 0, 1 epoch"]
    best = finalists[0].as_best_model()
    assert (best.trial, best.epoch) == (None, 0)
    assert best.config == {"backbone": "tinynet", "C": 0.03}


def test_probes_of_an_ensemble_are_all_finalists() -> None:
    scores = {
        "best": ProbeScore(accuracy=0.9),
        "third": ProbeScore(accuracy=0.7),
        "second": ProbeScore(accuracy=0.8, excluded="behind", in_ensemble=True),
    }
    finalists = choose_finalists(study_of(*COMPLETE), space_of(), 1, scores)
    names = [one.name for one in finalists if one.trial is None]
    assert names == ["linear probe of best", "linear probe of second"]


def test_without_an_epoch_only_the_probe_is_a_finalist() -> None:
    """But where trials failed it would hide that."""
    probes = {"tinynet": ProbeScore(accuracy=0.97, seconds=1.0)}
    failed, empty = study_of((1e-3, TrialState.FAIL, ())), study_of()
    assert chosen(failed) == []
    assert choose_finalists(failed, space_of(), 1, probes) == []
    assert [f.trial for f in choose_finalists(empty, space_of(), 1, probes)] == [None]
