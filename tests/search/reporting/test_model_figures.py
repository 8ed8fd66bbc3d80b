import dataclasses
from pathlib import Path

from search.reporting.model_figures import (
    chart_accuracies,
    draw_accuracies,
    draw_reliability,
)
from search.reporting.run_record import read_record
from search.runs.run_folder import RunFolder
from tests.fixtures.handmade_run import make_run


def test_reliability_counts_the_images_of_each_bin() -> None:
    (axes,) = draw_reliability([0.95, 0.99, 1.0, 0.35], [True, True, True, False]).axes
    assert [text.get_text() for text in axes.texts] == ["1", "3"]


def test_each_source_of_the_accuracy_has_a_row() -> None:
    (axes,) = draw_accuracies(1.0, [0.9, 0.95], {"test set": (0.92, (0.88, 0.95))}).axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["best validation", "2-fold CV", "test set"]


def test_the_accuracy_of_a_probe_is_not_called_validation(tmp_path: Path) -> None:
    record = read_record(RunFolder.open(make_run(tmp_path / "a")))
    best = record.summary.best
    assert best is not None
    probe = dataclasses.replace(best, trial=None)
    of_probe = dataclasses.replace(
        record,
        summary=dataclasses.replace(record.summary, best=probe),
        folds={best.name: [0.9, 0.95]},
    )
    *_, chart = chart_accuracies(of_probe)
    (axes,) = chart.figure.axes
    assert axes.get_yticklabels()[0].get_text() == "linear probe, cross-validated"
    assert chart.alt.startswith("Linear probe, cross-validated ")
    assert "optimistic" not in chart.caption
