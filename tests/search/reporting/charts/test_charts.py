"""The figures that need only a few numbers each: what they show, and when there is none."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from search.evaluation.predictions import LabelledProbabilities, PredictedImage
from search.reporting.charts.class_balance import chart_class_balance
from search.reporting.charts.coverage import (
    THRESHOLDS,
    chart_coverage,
    coverage_at,
    coverages,
    describe_coverage,
)
from search.reporting.charts.latency import chart_latency
from search.reporting.charts.one_vs_rest import chart_one_vs_rest, curves_by_class
from search.reporting.charts.slices import chart_slices
from search.reporting.charts.trial_curves import chart_trial_curves
from search.reporting.run_record import Record, read_record
from search.reporting.style import Chart
from search.runs.run_folder import RunFolder
from search.runs.summary import ModelCost, ProbeScore
from tests.fixtures.handmade_run import SETTINGS, make_run


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


def predictions_of(labels: list[int], probabilities: list[list[float]]) -> LabelledProbabilities:
    classes = tuple(f"class {i}" for i in range(len(probabilities[0])))
    return LabelledProbabilities(classes, np.array(labels), np.array(probabilities))


def test_curves_of_a_class_are_those_of_the_class_against_the_others() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 60)
    probabilities = generator.dirichlet((1, 1, 1), 60)
    curves = curves_by_class(predictions_of(labels.tolist(), probabilities.tolist()))
    assert [*curves] == ["class 0", "class 1", "class 2"]
    one = curves["class 1"]
    assert one.roc_auc == pytest.approx(roc_auc_score(labels == 1, probabilities[:, 1]))
    assert (one.recall[0], one.recall[-1]) == (0, 1)
    assert (np.diff(one.precision) <= 0).all(), "the highest at a recall or above it"
    first = probabilities[:, 1].argmax()
    assert one.precision[-1] >= (labels == 1).mean()
    assert one.precision[0] <= 1 - (labels[first] != 1) / 60


def test_a_class_without_test_images_has_no_curve_and_no_part_in_the_mean(record: Record) -> None:
    sure = [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0], [0.1, 0.9, 0.0]]
    predictions = predictions_of([0, 1, 0, 1], sure)
    assert [*curves_by_class(predictions)] == ["class 0", "class 1"]
    charts = list(chart_one_vs_rest(replace(record, test_probabilities=predictions)))
    assert [chart.name for chart in charts] == ["roc", "precision_recall"]
    for chart in charts:
        assert "1 class has no test images, so no curve and no part in the mean." in chart.caption
        assert "1.000" in chart.caption
    assert list(chart_one_vs_rest(replace(record, test_probabilities=None))) == []
    alone = predictions_of([0, 0], sure[:2])
    assert list(chart_one_vs_rest(replace(record, test_probabilities=alone))) == []


def test_of_many_classes_only_the_lowest_and_the_mean_are_drawn(record: Record) -> None:
    n = 30
    probabilities = 0.7 * np.eye(n)[np.r_[0:n, 0:n]] + 0.3 / n
    probabilities[4] = np.eye(n)[5]
    predictions = predictions_of([*range(n), *range(n)], probabilities.tolist())
    roc, _ = chart_one_vs_rest(replace(record, test_probabilities=predictions))
    labels = [line.get_label() for line in roc.figure.axes[0].lines]
    assert labels[:2] == ["lowest: class 4", "mean of the classes"]
    assert "pointer" not in roc.caption


def test_the_mean_area_is_that_of_the_summary(record: Record) -> None:
    assert record.summary.test is not None
    summary = replace(record.summary, test=replace(record.summary.test, roc_auc=0.9876))
    roc, _ = chart_one_vs_rest(replace(record, summary=summary))
    assert "(macro ROC AUC) 0.988" in roc.caption


def test_a_slice_has_all_trials_by_their_score(record: Record) -> None:
    chart = only(chart_slices(record))
    panels = [axes for axes in chart.figure.axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == ["backbone", "lr", "freeze_depth"]
    scored = {t.number: t for t in record.trials if t.score is not None}
    pruned, complete, ring = panels[2].lines
    assert len(pruned.get_xdata()) + len(complete.get_xdata()) == len(scored) == 11
    assert len(complete.get_xdata()) == 6
    assert ring.get_xdata()[0] == pytest.approx(scored[0].params["freeze_depth"] / 5)  # type: ignore[operator]
    assert max(complete.get_ydata()) == scored[0].score
    assert "trial 0 is ringed" in chart.caption


def test_a_slice_of_a_log_loss_shows_it_as_such(record: Record) -> None:
    trials = tuple(
        replace(one, score=None if one.score is None else one.score - 1.5) for one in record.trials
    )
    settings = replace(SETTINGS, metric="log_loss")
    summary = replace(record.summary, settings=settings)
    chart = only(chart_slices(replace(record, trials=trials, summary=summary)))
    format_tick = chart.figure.axes[0].yaxis.get_major_formatter()
    assert format_tick(-0.5, 0) == "0.500"


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
    "chart",
    [chart_trial_curves, chart_latency, chart_coverage, chart_class_balance, chart_slices],
)
def test_without_numbers_there_is_no_figure(
    record: Record, chart: Callable[[Record], Iterator[Chart]]
) -> None:
    summary = replace(record.summary, linear_probe=None)
    empty = replace(record, trials=(), test=(), class_counts={}, summary=summary)
    assert list(chart(empty)) == []
