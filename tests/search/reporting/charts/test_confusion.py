import dataclasses
from pathlib import Path

import numpy as np

from search.reporting.charts.confusion import (
    chart_confusions,
    draw_confusion,
    most_confused_classes,
)
from search.reporting.run_record import Record, read_record
from search.runs.run_folder import RunFolder
from search.runs.summary import RunSummary
from tests.fixtures.handmade_run import make_run, scores


def test_only_cells_with_images_are_drawn_and_each_is_counted() -> None:
    figure = draw_confusion([[8, 2], [0, 10]], ["cat", "$dog"], "title")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["8", "2", "10"]
    assert [round(float(cell.get_alpha()), 2) for cell in axes.patches] == [0.8, 0.2, 1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "$dog"]


def test_a_class_without_images_is_no_error() -> None:
    draw_confusion([[0, 0], [1, 3]], ["cat", "dog"], "title")


def test_large_matrices_have_no_numbers() -> None:
    n = 40
    matrix = [[int(i == j) for i in range(n)] for j in range(n)]
    (axes,) = draw_confusion(matrix, [str(i) for i in range(n)], "title").axes
    assert len(axes.texts) == 0
    assert len(axes.patches) == n


def test_percentages_are_of_all_images_of_the_true_class() -> None:
    figure = draw_confusion([[6, 2], [0, 10]], ["cat", "dog"], "title", totals=[10, 10])
    assert [text.get_text() for text in figure.axes[0].texts] == ["60", "20", "100"]


def record_of(folder: Path, confusion: np.ndarray) -> Record:
    """Return the record of a run with this confusion matrix of the test set."""
    record = read_record(RunFolder.open(make_run(folder)))
    classes = [f"class {i}" for i in range(len(confusion))]
    return dataclasses.replace(record, summary=RunSummary(test=scores(confusion.tolist(), classes)))


def test_the_most_confused_classes_stay_in_their_order() -> None:
    confusion = [[5, 0, 1, 0], [0, 9, 0, 0], [0, 0, 7, 0], [3, 0, 0, 4]]
    assert most_confused_classes(confusion, 3) == [0, 2, 3]
    assert most_confused_classes(confusion, 2) == [0, 3]
    assert most_confused_classes(confusion, 9) == [0, 1, 2, 3]


def test_few_classes_are_all_shown(tmp_path: Path) -> None:
    name, _, alt, caption = next(iter(chart_confusions(record_of(tmp_path / "a", np.eye(4) * 9))))
    assert name == "confusion_test"
    assert "not shown" not in alt + caption


def test_of_many_classes_only_the_most_confused_are_shown(tmp_path: Path) -> None:
    confusion = 9 * np.eye(100, dtype=int)
    confusion[7, 93] = 2
    record = record_of(tmp_path / "a", confusion)
    _, figure, alt, caption = next(iter(chart_confusions(record)))
    assert "60 classes with fewer confusions are not shown." in alt
    assert "60 classes with fewer confusions are not shown." in caption
    (axes,) = figure.axes
    assert axes.get_title().endswith("the 40 most confused classes")
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert len(names) == 40
    assert {"class 7", "class 93"} <= set(names)
