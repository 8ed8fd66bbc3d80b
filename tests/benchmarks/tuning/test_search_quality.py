"""Searches over tables of curves: looked up, raced and compared as they should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import create_trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from benchmarks.tuning import curve_tables, search_quality
from benchmarks.tuning.curve_tables import CurveTable, TableConfig, draw_params
from benchmarks.tuning.regret_figure import bootstrap, draw_regrets
from benchmarks.tuning.simulated_search import SIDES, Side, race

EPOCHS, POOL = 4, 60


def made(n: int = 80, seconds: float | None = None) -> CurveTable:
    """Make a table whose best learning rate is 1e-3, and whose curves rise."""
    rng = np.random.default_rng(0)
    params = tuple(draw_params(number) for number in range(n))
    chance = np.array([0.95 - 0.25 * abs(np.log10(p["lr"]) + 3) for p in params])  # type: ignore
    rise = 1 - 0.5 ** np.arange(1, EPOCHS + 1)
    right = rng.random((n, EPOCHS, POOL)) < (chance[:, None] * rise)[:, :, None]
    loss = np.where(right, 0.1, 2.0).astype(np.float16)
    taken = rng.uniform(1, 9, n) if seconds is None else np.full(n, seconds)
    labels = np.arange(POOL) % 3
    return CurveTable(
        TableConfig("made", 10, POOL, POOL // 3, 32, EPOCHS), params, labels, right, loss, taken
    )


TABLE = made()


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "made.npz"
    TABLE.save(path)
    again = curve_tables.load_table(path)
    assert (again.config, again.params) == (TABLE.config, TABLE.params)
    for name in ("labels", "right", "loss", "seconds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(TABLE, name))
    assert [file.name for file in path.parent.iterdir()] == ["made.npz"]


def test_configurations_lie_in_the_space_and_are_the_same_every_time() -> None:
    for number in range(50):
        params = draw_params(number)
        assert params == draw_params(number)
        assert set(params) == set(curve_tables.SPACE.distributions)
        # Raises where a parameter is out of range.
        create_trial(params=params, distributions=curve_tables.SPACE.distributions, value=0.5)
    assert {draw_params(n)["freeze_depth"] for n in range(50)} == set(curve_tables.DEPTHS)


def test_a_configuration_of_the_table_is_its_own_nearest() -> None:
    assert [TABLE.nearest(params) for params in TABLE.params] == list(range(len(TABLE.params)))


def test_the_nearest_has_the_same_backbone_and_depth_and_above_all_the_learning_rate() -> None:
    base: dict[str, Any] = {
        "backbone": "mobilenet_v2",
        "freeze_depth": 4,
        "lr": 1e-3,
        "dropout": 0.3,
        "augment": 0.5,
        "weight_decay": 1e-4,
    }
    others = (
        {**base, "backbone": "squeezenet1_0"},
        {**base, "freeze_depth": 5},
        {**base, "lr": 4e-3},  # a fifth of its range, three times
        {**base, "augment": 1.0},  # half of its range, once
    )
    rows = [0, 1, 2, 3]
    cut = replace(
        TABLE,
        params=others,
        right=TABLE.right[rows],
        loss=TABLE.loss[rows],
        seconds=TABLE.seconds[rows],
    )
    assert cut.nearest(base) == 3
    assert cut.nearest({**base, "augment": 0.0, "lr": 3e-3}) == 2
    assert cut.nearest(base, {3}) == 2, "no curve is an answer twice"
    assert cut.nearest(base, {2, 3}) == 3, "but for where there is no other"


def test_neighbours_predict_where_the_proposal_matters() -> None:
    generator = np.random.default_rng(1)
    shuffled = replace(TABLE, loss=generator.permutation(TABLE.loss))
    assert TABLE.neighbour_correlation() > 0.6
    assert abs(shuffled.neighbour_correlation()) < 0.4


def test_each_seed_splits_the_pool_into_validation_and_test_images() -> None:
    one, same, other = (TABLE.split(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.val_accuracy, same.val_accuracy)
    assert (one.val_accuracy != other.val_accuracy).any()
    whole = TABLE.right.mean(2)
    np.testing.assert_allclose((one.val_accuracy + 2 * one.test_accuracy) / 3, whole)


def test_the_best_epoch_of_equals_has_the_lower_loss() -> None:
    view = replace(
        TABLE.split(0),
        val_accuracy=np.array([[0.5, 0.9, 0.9, 0.8], [0.7, 0.7, 0.6, 0.6]]),
        val_loss=np.array([[0.0, 0.4, 0.3, 0.1], [0.2, 0.3, 0.0, 0.0]]),
    )
    assert view.best_epochs().tolist() == [2, 0]


class Listed(Searcher):
    """Proposes rows of a table in turn, and records how it is called."""

    def __init__(self, table: CurveTable, rows: list[int]) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self.rows = iter(rows)
        self.table = table
        self.calls: list[tuple[str, str, int]] = []
        self.losses: list[float] = []

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return dict(self.table.params[next(self.rows)])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.calls.append(("result", trial_id, result["epoch"]))
        self.losses.append(result["val_loss"] + result["best_val_loss"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        assert result is not None
        self.calls.append(("complete", trial_id, result["epoch"]))


class StopsAtTwo(FIFOScheduler):
    """Stops trial 1 after two epochs."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stopped = trial.trial_id == "1" and result["epoch"] == 2
        return str(TrialScheduler.STOP if stopped else TrialScheduler.CONTINUE)


def test_searchers_are_called_as_tune_would_call_them() -> None:
    table = made(seconds=1.0)
    searcher = Listed(table, [3, 5, 7, 9])
    side = Side(lambda seed: searcher, lambda epochs: StopsAtTwo())
    found = race(side, table, table.split(0), budget=7, workers=2, seed=0)
    assert searcher.calls == [
        ("result", "0", 1),
        ("result", "1", 1),
        ("result", "0", 2),
        ("complete", "1", 2),
        ("result", "0", 3),
        ("result", "2", 1),
        ("complete", "0", 4),
    ]
    assert (found.n_trials, found.n_full) == (4, 1)
    assert all(searcher.losses)


def test_a_side_that_sees_no_losses_gets_none() -> None:
    searcher = Listed(TABLE, [3, 5])
    side = Side(lambda seed: searcher, lambda epochs: FIFOScheduler(), sees_losses=False)
    race(side, TABLE, TABLE.split(0), budget=EPOCHS, workers=1, seed=0)
    assert searcher.losses == [0.0] * (EPOCHS - 1)


def test_the_best_so_far_is_a_full_length_trial_once_there_is_one() -> None:
    table = made(seconds=1.0)
    view = table.split(0)
    rows = np.argsort(view.val_accuracy.max(1))
    worst, best = int(rows[0]), int(rows[-1])
    side = Side(lambda seed: Listed(table, [worst, best, worst]), lambda epochs: FIFOScheduler())
    found = race(side, table, view, budget=2 * EPOCHS, workers=1, seed=0)
    curve = view.val_accuracy
    np.testing.assert_allclose(found.val[:EPOCHS], np.maximum.accumulate(curve[worst]))
    assert found.val[EPOCHS] == curve[worst].max(), "a trial that is not through does not count"
    assert found.val[-1] == curve[best].max()
    assert found.test[-1] == view.test_accuracy[best, view.best_epochs()[best]]


@pytest.mark.parametrize("name", SIDES)
def test_every_side_searches_and_its_seed_decides(name: str) -> None:
    view = TABLE.split(0)
    runs = [race(SIDES[name], TABLE, view, 100, 3, seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0].val, runs[1].val)
    assert (runs[0].val != runs[2].val).any()
    assert (np.diff(runs[0].val[EPOCHS * 3 :]) >= 0).all()
    stopped = runs[0].n_trials - runs[0].n_full - 3
    assert (stopped > 0) == (name != "random")


def test_a_bootstrap_interval_holds_the_mean_and_is_as_wide_as_it_should_be() -> None:
    values = np.random.default_rng(0).normal([1.0, 5.0], [1.0, 0.1], (100, 2))
    mean, low, high = bootstrap(values)
    assert (low < mean).all()
    assert (mean < high).all()
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std(0) / 10, rtol=0.1)


def test_regrets_are_drawn_as_a_small_svg(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 8))
    path = tmp_path / "regrets.svg"
    draw_regrets(path, {"made": ({"random": values, "ours": values / 2}, {"ours": values})})
    text = path.read_text()
    assert text.count("made, ") == 2
    assert len(text) < 60_000


def test_a_table_that_is_not_there_names_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        search_quality.read_table(tmp_path, "caltech")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: there is no table {tmp_path}/caltech.npz; train it with"
        " python -m benchmarks.tuning.search_quality --build --sets caltech\n"
    )


def test_an_unknown_set_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        search_quality.split_sets("caltech,dogs")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: --sets must be among caltech, cats_dogs, products, but got 'dogs'\n"
    )


@pytest.mark.slow
def test_a_table_is_extended_and_refuses_another_config(tmp_path: Path) -> None:
    from benchmarks.harness.workbench import decode_images, generate_images

    config = TableConfig("tiny", n_train=9, n_pool=12, n_val=6, image_size=32, epochs=2, n_views=2)
    images = decode_images(generate_images(tmp_path / "images", 24), config.image_size)
    states = dict.fromkeys(curve_tables.BACKBONES)
    path = tmp_path / "tiny.npz"
    curve_tables.extend_table(path, config, images, states, 2)
    grown = curve_tables.extend_table(path, config, images, states, 5)
    whole = curve_tables.extend_table(tmp_path / "whole.npz", config, images, states, 5)
    assert grown.params == whole.params == tuple(map(draw_params, range(5)))
    np.testing.assert_array_equal(grown.right, whole.right)
    assert grown.right.shape == (5, 2, 12)
    with pytest.raises(ValueError, match=r"tiny\.npz was made by TableConfig\(.*remove it first"):
        curve_tables.extend_table(path, replace(config, epochs=3), images, states, 5)
