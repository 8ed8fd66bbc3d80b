import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from search.tuning.ranking import ranking_value
from search.tuning.samplers import BudgetedSampler, create_sampler, draw_params, grid_points
from spaces.base import Space, load_space
from spaces.conditions import ByValue, When
from spaces.sources import folder

SPACES = Path(__file__).parents[3] / "spaces"
STUDIES = ("caltech", "cats_dogs", "digits", "fashion_mnist", "products", "tools")


def space_of(**params: Any) -> Space:
    return Space(source=folder(), params={"backbone": "cnn", **params})


def tried(
    space: Space, sampler: str, n_trials: int, seed: int = 0, n_proposed: int = 0
) -> list[dict[str, Any]]:
    """Propose trials of which all come to the same."""
    study = optuna.create_study(
        sampler=create_sampler(sampler, space, n_trials, seed, n_proposed), direction="maximize"
    )
    for first in space.first_trials:
        study.enqueue_trial({k: v for k, v in first.items() if k in space.distributions})
    for _ in range(n_trials):
        study.tell(study.ask(space.distributions), 0.5)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_every_study_can_be_searched(name: str, sampler: str):
    """What is proposed lies inside its range; first trials may lack parameters."""
    space = load_space(SPACES / f"{name}.py")
    proposed = tried(space, sampler, 25)
    if sampler == "grid":  # the points are enqueued, which the range is checked of when they run
        proposed[len(space.first_trials) :] = itertools.islice(grid_points(space, 0), 25)
    assert len(proposed) >= 25
    for params in proposed:
        assert set(params) == set(space.distributions)
        # A distribution refuses what is out of its range.
        optuna.trial.create_trial(value=0.5, params=params, distributions=space.distributions)
    searched = {k: v for k, v in space.first_trials[0].items() if k in space.distributions}
    assert proposed[0].items() >= searched.items()


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (CategoricalDistribution(["adam", "sgd"]), ["adam", "sgd"]),
        (FloatDistribution(0.0, 0.6), [0.0, 0.3, 0.6]),
        (FloatDistribution(1e-5, 1e-1, log=True), [1e-5, 1e-3, 1e-1]),
        (FloatDistribution(0.2, 0.2), [0.2]),
        (FloatDistribution(0.0, 0.6, step=0.2), [0.0, 0.2, 0.4, 0.6]),
        (FloatDistribution(0.0, 0.9, step=0.1), [0.0, 0.4, 0.9]),
        (IntDistribution(0, 5), [0, 1, 2, 3, 4, 5]),
        (IntDistribution(0, 4, step=2), [0, 2, 4]),
        (IntDistribution(16, 256, log=True), [16, 136, 256]),
        (IntDistribution(0, 600), [0, 300, 600]),
        (IntDistribution(3, 3), [3]),
    ],
)
def test_the_grid_over_one_parameter(distribution, values):
    key = "optimizer" if isinstance(distribution, CategoricalDistribution) else "hidden_units"
    key = "dropout" if isinstance(distribution, FloatDistribution) else key
    if isinstance(distribution, FloatDistribution) and distribution.log:
        key = "lr"
    points = [params[key] for params in grid_points(space_of(**{key: distribution}), 0)]
    assert sorted(points, key=values.index if key == "optimizer" else None) == pytest.approx(values)
    assert {type(point) for point in points} == {type(values[0])}
    if key not in ("optimizer",):
        assert (min(points), max(points)) == (distribution.low, distribution.high)


def test_a_grid_is_tried_whole_and_once_in_an_order_of_its_seed():
    space = space_of(
        dropout=FloatDistribution(0.0, 0.5), scheduler=CategoricalDistribution(["none", "cosine"])
    )
    runs = [
        [(p["scheduler"], p["dropout"]) for p in grid_points(space, seed)] for seed in (1, 1, 2)
    ]
    whole = sorted((s, d) for s in ("none", "cosine") for d in (0.0, 0.25, 0.5))
    assert [sorted(run) for run in runs] == [whole] * 3
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_the_seed_and_how_far_the_search_is_decide(sampler, seed):
    space = space_of(lr=FloatDistribution(1e-4, 1e-2, log=True))
    first, again, later = (tried(space, sampler, 6, seed, n) for n in (0, 0, 4))
    assert first == again
    assert not {p["lr"] for p in first} & {p["lr"] for p in later}


def proposed_after(
    space: Space, best: float, seed: int, n_proposed: int, n_known: int = 20
) -> float:
    """Return the logarithm of the next learning rate, after trials of which one was the best."""
    study = optuna.create_study(
        direction="maximize", sampler=create_sampler("tpe", space, 99, seed, n_proposed)
    )
    for tried_lr in np.linspace(-5, -1, n_known):
        study.add_trial(
            optuna.trial.create_trial(
                params={"lr": 10**tried_lr},
                distributions=space.distributions,
                value=-abs(tried_lr - best),
            )
        )
    return math.log10(study.ask(space.distributions).params["lr"])


@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_every_fourth_proposal_is_random():
    """It depends on no trial, while all others do."""
    space = space_of(lr=FloatDistribution(1e-5, 1e-1, log=True))
    alike = [
        proposed_after(space, -4, seed=0, n_proposed=n) == proposed_after(space, -2, 0, n)
        for n in range(40, 52)
    ]
    assert alike == [False, False, False, True] * 3


@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_tpe_is_less_greedy_than_optunas_default():
    """It prefers what was best, and still tries what is half a decade off."""
    space = space_of(lr=FloatDistribution(1e-5, 1e-1, log=True))
    proposed = [proposed_after(space, -2, seed, n_proposed=40) for seed in range(30)]
    assert np.median(np.abs(np.array(proposed) + 2)) < 0.5
    assert np.std(proposed) > 0.2, "of 24 candidates the most promising are all alike"


@pytest.mark.parametrize("stopped", [False, True])
def test_tpe_learns_from_losses_where_all_accuracies_are_equal(stopped):
    """By accuracies alone, it would take the first trials for the best."""
    space = space_of(lr=FloatDistribution(1e-5, 1e-1, log=True))
    proposed = []
    for seed in range(5):
        study = optuna.create_study(direction="maximize")
        for index in range(40):
            study.sampler = create_sampler("tpe", space, 99, seed, index)
            trial = study.ask(space.distributions)
            far = abs(math.log10(trial.params["lr"]) + 2)
            value = ranking_value(0.975, loss=far)
            trial.report(value, step=1)
            if stopped:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, value)
            proposed += [far] if index >= 20 else []
    assert np.median(proposed) < 0.5, "at random it would be 1"


@pytest.mark.parametrize("depths", [IntDistribution(0, 4), CategoricalDistribution([4, 0, 2])])
@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_freeze_depths_are_the_nearest_that_there_is_time_for(depths):
    """And else are as they would have been; where there is none, the deepest is."""
    space = space_of(
        backbone=CategoricalDistribution(["cnn", "tinynet"]),
        freeze_depth=depths,
        lr=FloatDistribution(1e-4, 1e-2, log=True),
    )
    assert space.freeze_depths in ((0, 1, 2, 3, 4), (0, 2, 4))

    def ask(allowed: dict[str, Sequence[int]] | None) -> list[dict[str, Any]]:
        study = optuna.create_study(direction="maximize")
        for number in range(40):
            sampler = create_sampler("tpe", space, 40, 0, number)
            if allowed is not None:
                lengths = {name: dict.fromkeys(those, 9) for name, those in allowed.items()}
                sampler = BudgetedSampler(sampler, space, lengths.__getitem__)
            study.sampler = sampler
            study.tell(study.ask(space.distributions), 0.5)
        return [trial.params for trial in study.trials]

    proposed = ask({"cnn": (2, 4, 5), "tinynet": (2,)})
    seen = {
        name: {params["freeze_depth"] for params in proposed if params["backbone"] == name}
        for name in ("cnn", "tinynet")
    }
    assert seen == {"cnn": {2, 4}, "tinynet": {2}}
    assert {params["freeze_depth"] for params in ask({"cnn": (5,), "tinynet": (5,)})} == {4}
    everything = dict.fromkeys(("cnn", "tinynet"), range(6))
    assert ask(everything) == ask(None)


@pytest.mark.parametrize("n_known", [0, 1, 9, 10, 11])
@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_the_first_proposals_of_tpe_are_random(n_known):
    """Of 40 trials ten are: what came of those before changes none of them."""
    space = space_of(dropout=FloatDistribution(0.0, 0.9))
    proposed = []
    for best in (0.1, 0.8):
        study = optuna.create_study(
            sampler=create_sampler("tpe", space, 40, 0), direction="maximize"
        )
        for dropout in np.linspace(0, 0.9, n_known):
            study.add_trial(
                optuna.trial.create_trial(
                    params={"dropout": dropout},
                    distributions=space.distributions,
                    value=-abs(dropout - best),
                )
            )
        proposed.append(study.ask(space.distributions).params["dropout"])
    assert (proposed[0] == proposed[1]) is (n_known < 10)


LOW, HIGH = (FloatDistribution(*ends, log=True) for ends in ((1e-6, 1e-4), (1e-3, 1e-1)))
DEPENDENT = {
    "hidden_units": When({"freeze_depth": 5}, CategoricalDistribution([0, 64])),
    "lr": ByValue("backbone", {"vit_*": LOW}, default=HIGH),
    "backbone": CategoricalDistribution(["vit_b_16", "resnet18"]),
    "freeze_depth": IntDistribution(4, 5),
    "batch_size": ByValue("backbone", {"vit_*": 8}, default=IntDistribution(8, 64)),
}


def is_of_its_branch(params: dict[str, Any]) -> bool:
    """Return whether a trial has the parameters, and the ranges, of its backbone and depth."""
    is_vit = params["backbone"] == "vit_b_16"
    low, high = (1e-6, 1e-4) if is_vit else (1e-3, 1e-1)
    return (
        low <= params["lr"] <= high
        and ("batch_size" in params) is not is_vit
        and ("hidden_units" in params) is (params["freeze_depth"] == 5)
    )


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_parameters_that_depend_on_others(sampler: str):
    """Each trial has what belongs to its branch, and TPE finds the best of each."""
    space = Space(source=folder(), params=DEPENDENT)
    study = optuna.create_study(direction="maximize")
    for number in range(60):
        study.sampler = create_sampler(sampler, space, 60, 0, number)
        trial = study.ask()
        draw_params(trial, space)
        assert is_of_its_branch(trial.params)
        best = 2e-6 if trial.params["backbone"] == "vit_b_16" else 5e-2
        off = abs(math.log10(trial.params["lr"] / best))
        study.tell(trial, -off + (trial.params.get("hidden_units") == 64))
    assert len({frozenset(trial.params) for trial in study.trials}) == 4
    n_good = sum(trial.params.get("hidden_units") == 64 for trial in study.trials[30:])
    assert (n_good >= 15) is (sampler == "tpe")


@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_one_backbone_tells_tpe_about_another():
    """What is proposed for a new backbone has the depth that was best for the other."""
    space = Space(source=folder(), params=DEPENDENT)
    study = optuna.create_study(direction="maximize")
    for index in range(30):
        depth, lr = 4 + index % 2, 10 ** (-3 + index / 15)
        params = {"backbone": "resnet18", "freeze_depth": depth, "lr": lr, "batch_size": 32}
        ranges: dict[str, Any] = {name: space.distributions[name] for name in params}
        if depth == 5:
            params["hidden_units"] = 64
            ranges["hidden_units"] = space.distributions["hidden_units"]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=depth))
    depths = []
    for seed in range(20):
        study.sampler = create_sampler("tpe", space, 99, seed, 32)
        study.enqueue_trial({"backbone": "vit_b_16"})
        trial = study.ask()
        draw_params(trial, space)
        assert is_of_its_branch(trial.params)
        depths.append(trial.params["freeze_depth"])
        study.tell(trial, state=TrialState.FAIL)
    assert depths.count(5) >= 17


def test_a_grid_has_each_branch_once():
    space = Space(source=folder(), params=DEPENDENT)
    points = list(grid_points(space, 0))
    assert all(is_of_its_branch(point) for point in points)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    per_vit, per_resnet = 3, 3 * 3  # learning rates, and batch sizes
    assert len(points) == (per_vit + per_resnet) * (1 + 2)


@pytest.mark.filterwarnings(f"ignore::{ExperimentalWarning.__module__}.ExperimentalWarning")
def test_a_gaussian_process_finds_the_best_with_several_trials_running():
    """Twice the same: in what it proposes jointly; the rest is of the trial's own branch."""
    space = Space(source=folder(), params={**DEPENDENT, "dropout": FloatDistribution(0.0, 0.9)})
    runs = []
    for _ in range(2):
        study = optuna.create_study(direction="maximize")
        running: list[optuna.Trial] = []
        for number in range(16):
            study.sampler = create_sampler("gp", space, 16, 0, number)
            trial = study.ask()
            draw_params(trial, space)
            assert is_of_its_branch(trial.params)
            running.append(trial)
            if len(running) == 3:
                ended = running.pop(0)
                study.tell(ended, -abs(ended.params["dropout"] - 0.6))
        runs.append([trial.params for trial in study.trials])
    assert runs[0] == runs[1]
    assert np.median([abs(params["dropout"] - 0.6) for params in runs[0][8:]]) < 0.1
