import dataclasses
from pathlib import Path

import numpy as np

from search.reporting.model_charts import chart_evaluation, most_confused
from search.reporting.run_record import Record, read_record
from search.runs.run_folder import RunFolder
from tests.search.reporting.test_page import make_run, scores


def record_of(folder: Path, confusion: np.ndarray) -> Record:
    """The record of a run with these confusions of held-out images."""
    record = read_record(RunFolder.open(make_run(folder)))
    classes = [f"class {i}" for i in range(len(confusion))]
    return dataclasses.replace(record, summary={"test": scores(confusion.tolist(), classes)})


def test_the_most_confused_classes_stay_in_their_order() -> None:
    confusion = [[5, 0, 1, 0], [0, 9, 0, 0], [0, 0, 7, 0], [3, 0, 0, 4]]
    assert most_confused(confusion, 3) == [0, 2, 3]
    assert most_confused(confusion, 2) == [0, 3]
    assert most_confused(confusion, 9) == [0, 1, 2, 3]


def test_few_classes_are_all_shown(tmp_path: Path) -> None:
    name, _, alt, caption = next(iter(chart_evaluation(record_of(tmp_path / "a", np.eye(4) * 9))))
    assert name == "confusion_test"
    assert "left out" not in alt + caption


def test_of_many_classes_the_others_are_said_to_be_left_out(tmp_path: Path) -> None:
    confusion = 9 * np.eye(100, dtype=int)
    confusion[7, 93] = 2
    record = record_of(tmp_path / "a", confusion)
    _, figure, alt, caption = next(iter(chart_evaluation(record)))
    assert "60 classes with fewer confusions are left out." in alt
    assert "60 classes with fewer confusions are left out." in caption
    (axes,) = figure.axes
    assert axes.get_title().startswith("Confusions of the 40 most confused classes")
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert len(names) == 40
    assert {"class 7", "class 93"} <= set(names)
