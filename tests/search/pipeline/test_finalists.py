from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from search.pipeline.finalists import Candidate, choose_finalists
from search.runs.run_folder import RunFolder
from spaces.base import Space
from spaces.sources import digits

DISTRIBUTIONS = {"lr": FloatDistribution(1e-4, 1e-1, log=True)}
EPOCHS = 4


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


def study_of(*trials: tuple[float, TrialState, tuple[float, ...]]) -> optuna.Study:
    """Make a study of trials: learning rate, state, validation accuracies."""
    study = optuna.create_study(direction="maximize")
    for lr, state, values in trials:
        best = max(range(len(values)), key=lambda i: values[i]) + 1 if values else None
        study.add_trial(
            create_trial(
                params={"lr": lr, "backbone": "tinynet"},
                distributions={**DISTRIBUTIONS, "backbone": CategoricalDistribution(["tinynet"])},
                state=state,
                value=max(values) if state == TrialState.COMPLETE else None,
                intermediate_values=dict(enumerate(values, start=1)),
                user_attrs={"best_epoch": best},
            )
        )
    return study


def chosen(tmp_path: Path, study: optuna.Study, space: Space | None = None) -> list[Candidate]:
    return choose_finalists(study, space or space_of(), 1, RunFolder(tmp_path))


def test_the_first_trial_is_always_a_finalist(tmp_path: Path) -> None:
    first = (1e-3, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.85))
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    candidates = chosen(tmp_path, study_of(first, best))
    assert [(c.number, c.retrain_config.epochs, c.search_accuracy) for c in candidates] == [
        (1, 4, 0.95),
        (0, 3, 0.9),
    ]


def test_a_first_trial_that_there_is_no_time_for_is_one_only_where_it_is_best(
    tmp_path: Path,
) -> None:
    good = (1e-3, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.85))
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    for trials, number in (((good, best), 1), ((best, good), 0)):
        study, folder = study_of(*trials), RunFolder(tmp_path)
        candidates = choose_finalists(study, space_of(), 1, folder, with_first=False)
        assert [candidate.number for candidate in candidates] == [number]


def test_trials_that_are_too_slow_are_left_out(tmp_path: Path) -> None:
    """The next best takes its place; the probe alone where there is none."""
    trials = [(lr, TrialState.COMPLETE, (0.7, value)) for lr, value in ((1e-3, 0.8), (1e-2, 0.9))]
    study, folder = study_of(*trials), RunFolder(tmp_path)
    folder.note("probe", {"tinynet": {"accuracy": 0.5}})
    for slow, numbers in (({1}, [0, None]), ({0, 1}, [None])):
        candidates = choose_finalists(study, space_of(), 1, folder, with_first=False, without=slow)
        assert [candidate.number for candidate in candidates] == numbers


def test_once_if_it_is_the_best(tmp_path: Path) -> None:
    best = (1e-3, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    other = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.8, 0.8))
    assert [c.number for c in chosen(tmp_path, study_of(best, other))] == [0]


def test_stopped_early_it_goes_its_full_length(tmp_path: Path) -> None:
    """Without a search nobody would have stopped it."""
    first = (1e-3, TrialState.PRUNED, (0.5,))
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    candidate = chosen(tmp_path, study_of(first, best))[1]
    assert (candidate.number, candidate.retrain_config.epochs) == (0, EPOCHS)
    assert candidate.retrain_config.config.lr == 1e-3


def test_rates_of_a_plateau_stay_as_they_were_last(tmp_path: Path) -> None:
    for number, rates in ((0, (1e-3, 1e-4)), (1, (1e-2,) * 4)):
        (tmp_path / "trials" / str(number)).mkdir(parents=True)
        lines = [f"{epoch},{rate}" for epoch, rate in enumerate(rates, start=1)]
        curve = tmp_path / "trials" / str(number) / "progress.csv"
        curve.write_text("\n".join(["epoch,lr", *lines]) + "\n")
    first = (1e-3, TrialState.PRUNED, (0.5, 0.6))
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    study = study_of(first, best)
    retrain_config = chosen(tmp_path, study, space_of("plateau"))[1].retrain_config
    assert retrain_config.epoch_lrs == (1e-3, 1e-4, 1e-4, 1e-4)


@pytest.mark.parametrize("values", [(), (0.4,)])
def test_one_that_failed_is_none(tmp_path: Path, values: tuple[float, ...]) -> None:
    first = (1e-3, TrialState.FAIL, values)
    best = (1e-2, TrialState.COMPLETE, (0.7, 0.8, 0.9, 0.95))
    assert [c.number for c in chosen(tmp_path, study_of(first, best))] == [1]


def test_the_probe_is_always_a_finalist(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.note("probe", {"tinynet": {"accuracy": 0.97}})
    study = study_of((1e-3, TrialState.COMPLETE, (0.9,)))
    candidates = choose_finalists(study, space_of(), 1, folder)
    assert [(c.number, c.search_accuracy) for c in candidates] == [(0, 0.9), (None, 0.97)]


def test_a_study_without_an_epoch_has_none(tmp_path: Path) -> None:
    assert chosen(tmp_path, study_of((1e-3, TrialState.FAIL, ()))) == []
