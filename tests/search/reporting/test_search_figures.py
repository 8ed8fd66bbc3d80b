from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from matplotlib.figure import Figure
from optuna.distributions import FloatDistribution, IntDistribution

from search.reporting.charts.parameter_axis import Axis
from search.reporting.run_record import read_record
from search.reporting.search_figures import (
    chart_history,
    chart_importances,
    chart_parameters,
    draw_history,
    draw_parallel_coordinates,
    draw_survival,
    importances,
)
from search.runs.run_folder import RunFolder
from search.tuning.study import BEST
from tests.fixtures.handmade_run import make_run, remove


def lines(figure: Figure) -> dict[str, list[list[float]]]:
    """What is drawn, by its label: points as [x, y]."""
    (axes,) = figure.axes
    return {str(line.get_label()): line.get_xydata().tolist() for line in axes.get_lines()}


def test_values_lie_on_their_axis_by_their_range() -> None:
    assert Axis("depth", [], low=0, high=5).position(5) == 1
    assert Axis("lr", [], low=1e-4, high=1e-2, log=True).position(1e-3) == pytest.approx(0.5)
    assert Axis("net", [], choices=("a", "b", "c")).position("b") == 0.5
    assert Axis("fixed", [], low=2, high=2).position(2) == 0.5
    assert Axis("flag", [], choices=(True,)).position(True) == 0.5


@pytest.mark.parametrize(
    ("axis", "texts"),
    [
        (Axis("lr", [], low=1e-4, high=3e-2, log=True), ["0.0001", "0.001", "0.01", "0.03"]),
        (Axis("depth", [], low=0, high=3, integer=True), ["0", "1", "2", "3"]),
        (Axis("units", [], low=0, high=511, integer=True), ["0", "256", "511"]),
        (Axis("dropout", [], low=0, high=0.5), ["0", "0.25", "0.5"]),
        (Axis("accuracy", [], low=0.5, high=1, percent=True), ["50.0%", "75.0%", "100.0%"]),
        (Axis("lr", [], low=9.9e-4, high=1e-2, log=True), ["0.00099", "0.01"]),
    ],
)
def test_ticks_are_few_and_apart(axis: Axis, texts: list[str]) -> None:
    assert [text for _, text in axis.ticks()] == texts


def test_only_complete_trials_raise_the_best_so_far() -> None:
    accuracies = {0: 0.8, 1: 0.95, 2: 0.9, 3: 0.85}
    drawn = lines(draw_history(accuracies, complete=[0, 2], failed=[4], final=2))
    assert drawn["best so far"] == [[0, 0.8], [2, 0.9], [4, 0.9]]
    assert drawn["pruned"] == [[1, 0.95], [3, 0.85]]
    assert drawn["final model"] == [[2, 0.9]]
    assert [x for x, _ in drawn["failed"]] == [4]


def test_a_poor_trial_does_not_flatten_the_others() -> None:
    accuracies = {n: 0.9 + n / 1000 for n in range(20)} | {20: 0.1}
    figure = draw_history(accuracies, complete=list(range(20)), failed=[], final=None)
    assert figure.axes[0].get_ylim()[0] > 0.8
    assert [x for x, _ in lines(figure)["below the scale"]] == [20]


def test_no_accuracy_is_above_100_percent() -> None:
    figure = draw_history({0: 1.0, 1: 1.0}, complete=[0, 1], failed=[], final=1)
    axes = figure.axes[0]
    assert axes.get_ylim()[1] > 1, "room for the points"
    texts = [axes.yaxis.get_major_formatter()(tick, 0) for tick in (0.99, 1.0, 1.005)]
    assert texts == ["99%", "100%", ""]


def test_survival_counts_trials_by_epoch() -> None:
    (axes,) = draw_survival([1, 1, 3], full_length=3).axes
    assert [bar.get_height() for bar in axes.patches] == [3, 1, 1]


def test_every_trial_has_its_line_and_the_final_model_its_own() -> None:
    columns = [Axis("net", ["a", "b", "a", "b"], choices=("a", "b"))]
    figure = draw_parallel_coordinates(columns, [0.5, 0.6, 0.7, 0.9], final=3)
    drawn = {c.get_label(): len(c.get_paths()) for c in figure.axes[0].collections}
    assert drawn == {"other trials": 3, "final model": 1}


def legend_of(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.legends[0].get_texts()}


def drawn_of(folder: Path) -> dict[str, Figure]:
    record = read_record(RunFolder.open(folder))
    charts = (*chart_history(record), *chart_parameters(record))
    return {name: figure for name, figure, *_ in charts}


def test_a_search_without_cross_validation_has_no_final_model_yet(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    drawn = drawn_of(folder)
    assert "final model" in legend_of(drawn["history"])
    assert "final model" in legend_of(drawn["parallel_coordinates"])
    remove(folder, "summary:kfold")
    drawn = drawn_of(folder)
    assert "final model" not in legend_of(drawn["history"])
    assert "final model" not in legend_of(drawn["parallel_coordinates"])


def test_importances_add_up_to_one(tmp_path: Path) -> None:
    found = importances(read_record(RunFolder.open(make_run(tmp_path / "run", n_trials=20))))
    assert set(found) == {"backbone", "lr", "freeze_depth"}
    assert abs(sum(found.values()) - 1) < 1e-6


def test_few_trials_have_no_importances(tmp_path: Path) -> None:
    record = read_record(RunFolder.open(make_run(tmp_path / "run", n_trials=6)))
    assert [t.state for t in record.trials].count("complete") == 3
    assert importances(record) == {}


def test_parameters_that_depend_on_others_are_drawn(tmp_path: Path) -> None:
    """Trials without one are below its axis, and ranges that differ are one."""
    record = read_record(RunFolder.open(make_run(tmp_path / "run", n_trials=12)))
    study = optuna.create_study(direction="maximize")
    trials = []
    for number in range(12):
        is_head, high = number % 2 == 1, (1e-3, 1e-1)[number % 2]
        params = {"lr": high / (number + 1), **({"hidden_units": 64} if is_head else {})}
        ranges = {"lr": FloatDistribution(high / 100, high, log=True)}
        ranges |= {"hidden_units": IntDistribution(0, 64)} if is_head else {}  # type: ignore[dict-item]
        best = {BEST: {"epoch": 1, "val_accuracy": 0.5 + number / 50, "val_loss": 0.1}}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=ranges, value=number / 50, user_attrs=best
            )
        )
        one = replace(record.trials[0], number=number, params=params, accuracy=number / 50)
        trials.append(one)
    record = replace(record, study=study, trials=tuple(trials))
    (parallel,), (importance,) = chart_parameters(record), chart_importances(record)
    assert {"none", "64", "0.1", "1e-05"} <= {t.get_text() for t in parallel.figure.axes[0].texts}
    assert parallel.caption.endswith("Below an axis are trials without that parameter.")
    assert importances(record) == {"lr": 1.0}
    assert importance.caption.endswith("Without hidden_units, which not every trial has.")
