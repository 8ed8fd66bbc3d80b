"""The figures that need only a few numbers each: what they show, and when there is none."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from search.evaluation.predictions import PredictedImage
from search.reporting.charts.class_balance import chart_class_balance
from search.reporting.charts.coverage import (
    THRESHOLDS,
    chart_coverage,
    coverage_at,
    coverages,
    describe_coverage,
)
from search.reporting.charts.latency import chart_latency
from search.reporting.charts.trial_curves import chart_trial_curves
from search.reporting.run_record import Record, read_record
from search.reporting.style import Chart
from search.runs.run_folder import RunFolder
from search.runs.summary import ModelCost, ProbeScore
from tests.fixtures.handmade_run import make_run


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A finished run of 12 trials, of which 11 have a curve."""
    return read_record(RunFolder.open(make_run(tmp_path_factory.mktemp("runs") / "run")))


def predicted(probability: float, correct: bool | None) -> PredictedImage:
    label = None if correct is None else "cat" if correct else "dog"
    return PredictedImage("a.jpg", label, (("cat", probability), ("dog", 1 - probability)))


def test_an_image_is_answered_at_its_threshold_and_above() -> None:
    found = coverage_at(0.9, [0.95, 0.9, 0.89], [True, False, True])
    assert (found.n, found.fraction, found.accuracy) == (2, pytest.approx(2 / 3), 0.5)
    assert found.ci95 is not None
    assert found.ci95[0] < 0.5 < found.ci95[1]
    none = coverage_at(0.99, [0.95], [True])
    assert (none.n, none.accuracy, none.ci95) == (0, None, None)


def test_the_sentence_about_a_threshold_follows_from_the_table() -> None:
    images = [predicted(0.95, correct=True)] * 3 + [predicted(0.6, correct=False)]
    assert describe_coverage(images) == (
        "answer only above 0.90: 75.0% of images (3 images), 100.0% of them right, 95% CI"
        " 43.9–100.0%"
    )
    unsure = [predicted(0.6, correct=True)]
    assert describe_coverage(unsure) == (
        "answer only above 0.90: 0.0% of images, so nothing is left to be right or wrong"
    )
    assert [one.threshold for one in coverages(images)] == list(THRESHOLDS)
    assert describe_coverage([predicted(0.95, correct=None)]) == ""
    assert coverages([predicted(0.95, correct=None)]) == []


def only(charts: Iterator[Chart]) -> Chart:
    (chart,) = charts
    return chart


def test_the_curves_of_all_trials_are_in_one_figure(record: Record) -> None:
    chart = only(chart_trial_curves(record))
    curves = [trial for trial in record.trials if trial.curve]
    (axes,) = chart.figure.axes
    assert len(axes.lines) == len(curves) == 11
    assert axes.lines[-1].get_label() == "trial 0", "the best is above the others"
    assert "11 trials, 4 of them pruned" in chart.alt
    assert "The bold curve is trial 0." in chart.caption


def test_accuracy_against_latency_has_all_candidates_and_the_model(record: Record) -> None:
    probes = {
        "resnet18": ProbeScore(accuracy=0.81, latency_ms=20.0),
        "cnn": ProbeScore(accuracy=0.6, latency_ms=1.0, excluded="far behind"),
        "vgg": ProbeScore(excluded="no weights"),
    }
    cost = ModelCost(
        parameters=1000, megabytes=1.0, latency_ms=40.0, latency_ms_batch_32=10.0, device="cpu"
    )
    summary = replace(record.summary, linear_probe=probes, model_cost=cost)
    chart = only(chart_latency(replace(record, summary=summary)))
    assert chart.alt == (
        "Cross-validation accuracy against latency: resnet18 81.0% at 20.0 ms; cnn 60.0% at 1.0"
        " ms; the model 94.5% at 40.0 ms."
    )
    (axes,) = chart.figure.axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["not searched", "linear probe", "final model"]
    assert axes.get_xscale() == "log"


def test_coverage_ends_with_the_accuracy_of_all_images(record: Record) -> None:
    (axes,) = only(chart_coverage(record)).figure.axes
    x, y = axes.lines[0].get_data()
    assert (x[-1], y[-1]) == (1.0, pytest.approx(38 / 40))
    assert y[0] == 1.0


def test_the_largest_class_comes_first(record: Record) -> None:
    counts = {"ant": {"train": 1, "test": 1}, "bee": {"train": 5, "val": 2, "test": 3}}
    chart = only(chart_class_balance(replace(record, class_counts=counts)))
    assert chart.alt == (
        "Images by class: 10 images of bee, the largest class, 2 of ant, the smallest."
    )
    (axes,) = chart.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bee", "ant"]
    assert max(bar.get_x() + bar.get_width() for bar in axes.patches) == 10


@pytest.mark.parametrize(
    "chart", [chart_trial_curves, chart_latency, chart_coverage, chart_class_balance]
)
def test_without_numbers_there_is_no_figure(
    record: Record, chart: Callable[[Record], Iterator[Chart]]
) -> None:
    summary = replace(record.summary, linear_probe=None)
    empty = replace(record, trials=(), test=(), class_counts={}, summary=summary)
    assert list(chart(empty)) == []
