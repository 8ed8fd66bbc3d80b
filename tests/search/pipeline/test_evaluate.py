import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from search.evaluation.intervals import wilson_interval
from search.pipeline import evaluate
from search.pipeline.evaluate import score, top_accuracy, write_predictions
from search.runs.run_folder import RunFolder

CLASSES = ("ant", "bee", "cow", "dog")


def predictions(n: int = 200, n_classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels, and probabilities that are right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes)) + 1.2 * np.eye(n_classes)[labels]
    odds = np.exp(logits)
    return labels, (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_metrics_are_scikit_learns(n_classes):
    labels, probabilities = predictions(n_classes=n_classes)
    predicted = probabilities.argmax(1)
    judged = score(labels, probabilities, CLASSES[:n_classes])
    assert 0.4 < judged["accuracy"] < 0.9
    macro = {"average": "macro", "zero_division": 0.0}
    assert judged["n"] == 200
    assert judged["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert judged["macro_precision"] == pytest.approx(
        metrics.precision_score(labels, predicted, **macro)
    )
    assert judged["macro_recall"] == pytest.approx(metrics.recall_score(labels, predicted, **macro))
    assert judged["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, **macro))
    assert judged["log_loss"] == pytest.approx(
        -np.log(probabilities[np.arange(200), labels]).mean(), rel=1e-5
    )
    assert judged["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()
    json.dumps(judged)


def test_metrics_by_hand():
    """ant: 2 right of 3; bee: 1 of 1, but one ant is called a bee; no cow; the dog is lost."""
    labels = np.array([0, 0, 0, 1, 3])
    probabilities = np.array(
        [
            [0.7, 0.1, 0.1, 0.1],
            [0.4, 0.3, 0.2, 0.1],
            [0.3, 0.5, 0.1, 0.1],
            [0.1, 0.6, 0.2, 0.1],
            [0.4, 0.3, 0.2, 0.1],
        ]
    )
    judged = score(labels, probabilities, CLASSES)
    assert judged["accuracy"] == 0.6
    assert judged["accuracy_ci95"] == wilson_interval(3, 5)
    assert judged["top3_accuracy_ci95"] == wilson_interval(4, 5)
    for name in ("macro_precision", "macro_recall", "macro_f1"):
        low, high = judged[f"{name}_ci95"]
        assert 0 < low < judged[name] < high < 1
    assert judged["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    # Means are over ant, bee and dog: nobody can be right about a cow.
    assert judged["macro_precision"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert judged["macro_recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert judged["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert judged["top3_accuracy"] == 0.8
    assert judged["log_loss"] == pytest.approx(-np.log([0.7, 0.4, 0.3, 0.6, 0.1]).mean())
    ant, bee, cow, dog = judged["per_class"]
    assert ant == {
        "class": "ant",
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "recall_ci95": wilson_interval(2, 3),
        "f1": pytest.approx(2 / 3),
        "n": 3,
    }
    assert (bee["precision"], bee["recall"], bee["n"]) == (0.5, 1.0, 1)
    assert (cow["n"], cow["recall_ci95"]) == (0, (0.0, 1.0))
    assert (dog["recall"], dog["recall_ci95"]) == (0.0, wilson_interval(0, 1))


def test_a_class_never_seen_does_not_lower_the_means():
    labels, probabilities = np.array([0, 1]), np.eye(4)[[0, 1]]
    judged = score(labels, probabilities, CLASSES)
    assert judged["macro_f1"] == judged["macro_recall"] == judged["macro_precision"] == 1.0


def test_certainty_in_the_wrong_stays_finite():
    judged = score(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), CLASSES[:2])
    assert 10 < judged["log_loss"] < 40
    assert np.isfinite(judged["log_loss"])


def test_one_image():
    judged = score(np.array([2]), np.array([[0.1, 0.2, 0.3, 0.4]]), CLASSES)
    assert (judged["n"], judged["accuracy"], judged["top3_accuracy"]) == (1, 0.0, 1.0)


def test_top_three():
    labels, probabilities = predictions()
    expected = metrics.top_k_accuracy_score(labels, probabilities, k=3)
    assert top_accuracy(labels, probabilities) == pytest.approx(expected)
    assert 0.5 < expected < 1
    two_labels, two = predictions(n_classes=2)
    assert top_accuracy(two_labels, two) == 1.0
    # Not all classes need occur among the labels.
    assert top_accuracy(np.array([0, 0]), np.array([[4, 3, 2, 1], [1, 2, 3, 4]]) / 10) == 0.5


def test_predictions_are_written_a_line_a_image(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(
        path,
        ['a, "b".jpg', "Käfer/ü.jpg", "two\nlines.jpg"],
        np.array([1, 3, -1]),
        np.array([[0.1, 0.6, 0.2, 0.1], [0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]]),
        CLASSES,
    )
    first, second, third = rows_of(path)
    assert first == {
        "name": 'a, "b".jpg',
        "label": "bee",
        "correct": "1",
        "first": "bee",
        "first_probability": "0.600000",
        "second": "cow",
        "second_probability": "0.200000",
        "third": "ant",
        "third_probability": "0.100000",
        "p:ant": "0.100000",
        "p:bee": "0.600000",
        "p:cow": "0.200000",
        "p:dog": "0.100000",
    }
    assert (second["name"], second["label"], second["correct"]) == ("Käfer/ü.jpg", "dog", "0")
    assert [second[place] for place in ("first", "second", "third")] == ["ant", "bee", "cow"]
    assert (third["name"], third["label"], third["correct"]) == ("two\nlines.jpg", "", "")


def test_a_name_that_is_no_text_is_written_as_it_is(tmp_path):
    path = tmp_path / "predictions.csv"
    name = os.fsdecode(b"caf\xe9.jpg")
    write_predictions(path, [name], np.array([0]), np.array([[0.6, 0.4]]), CLASSES[:2])
    assert path.read_bytes().splitlines()[1].startswith(b"caf\xe9.jpg,ant,1,ant,")


def test_two_classes_have_two_likeliest(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, ["a"], np.array([0]), np.array([[0.3, 0.7]]), CLASSES[:2])
    assert path.read_text(encoding="utf-8").splitlines() == [
        "name,label,correct,first,first_probability,second,second_probability,p:ant,p:bee",
        "a,ant,0,bee,0.700000,ant,0.300000,0.300000,0.700000",
    ]


class Oracle:
    """Knows the class of each image, which is the value of its pixels; errs on 9."""

    card = SimpleNamespace(temperature=2.0)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        values = images[:][:, 0, 0, 0].long()
        return torch.eye(4)[None, torch.where(values == 9, 0, values)] * 4

    def predict_with_ood(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return doubt too: half of the pixels' value."""
        return self.logits(images), images[:][:, 0, 0, 0].float() / 2

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(images)[0] / 2, 1)


def table_of(values: list[int], path: Path) -> Path:
    """Map a table of images, each all of one value, from a file: so no Ray is needed."""
    shape = (len(values), 2, 2, 3)
    np.save(path, np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], shape))
    return path


@pytest.fixture(autouse=True)
def exhibited(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """By part, the first pixel of each image that people may be shown."""
    parts: dict[str, list[int]] = {}

    def keep(_folder: RunFolder, _model: Any, part: str, images: torch.Tensor) -> None:
        parts[part] = images[:][:, 0, 0, 0].tolist()

    monkeypatch.setattr(evaluate, "save_samples", keep)
    return parts


def evaluated(tmp_path: Path, external: Any, near_duplicates: Any = None) -> RunFolder:
    """Evaluate the oracle on six images, of which rows 1, 3 and 5 are the test split."""
    prepared = SimpleNamespace(
        manifest=SimpleNamespace(classes=CLASSES),
        decoded=SimpleNamespace(table=table_of([0, 1, 2, 9, 3, 3], tmp_path / "table.npy")),
        context=SimpleNamespace(labels=np.array([0, 1, 2, 2, 3, 3])),
        external=external,
        external_near_duplicates=near_duplicates,
        rows=lambda split: np.array({"test": [1, 3, 5]}[split]),
        names=lambda rows: [f"row {row}" for row in rows],
    )
    folder = RunFolder(tmp_path)
    evaluate.evaluate(prepared, Oracle(), folder)
    return folder


def outside(labels: list[int], tmp_path: Path) -> Any:
    """List external images, of which the third is damaged and left out.

    A table in a file keeps the room of what was left out, at its end.
    """
    manifest = SimpleNamespace(
        labels=np.array(labels), names=("e0", "e1", "broken", "e3"), classes=CLASSES
    )
    table = table_of([0, 1, 9, 2], tmp_path / "external.npy")
    return manifest, SimpleNamespace(table=table, kept=np.array([0, 1, 3]))


def test_the_test_split_is_judged_and_written(tmp_path):
    folder = evaluated(tmp_path, None)
    assert folder.summary["test"]["n"] == 3
    assert folder.summary["test"]["accuracy"] == pytest.approx(2 / 3)
    lines = rows_of(tmp_path / "test_predictions.csv")
    assert [(line["name"], line["label"], line["first"]) for line in lines] == [
        ("row 1", "bee", "bee"),
        ("row 3", "cow", "ant"),
        ("row 5", "dog", "dog"),
    ]
    sure = np.exp(2) / (np.exp(2) + 3)
    assert lines[0]["first_probability"] == f"{sure:.6f}", "the temperature is used"
    assert [(line["ood_score"], line["is_ood"]) for line in lines] == [
        ("0.5000", "0"),
        ("4.5000", "1"),
        ("1.5000", "1"),
    ]
    assert folder.summary["test"]["n_ood"] == 2
    calibration = folder.summary["calibration"]
    assert calibration["temperature"] == 2.0
    before, after = (calibration["test"][when] for when in ("before", "after"))
    assert after["ece"] == pytest.approx(abs(2 / 3 - sure), abs=1e-6)
    assert before["ece"] > after["ece"]
    assert after["bins"] == [
        {"confidence": pytest.approx(sure, abs=1e-6), "accuracy": pytest.approx(2 / 3), "n": 3}
    ]
    assert "external" not in folder.summary
    assert not (tmp_path / "external_predictions.csv").exists()


def test_external_images_are_judged_where_labelled(tmp_path):
    folder = evaluated(tmp_path, outside([0, 1, 2, 3], tmp_path))
    judged = folder.summary["external"]
    assert (judged["n"], judged["accuracy"]) == (3, pytest.approx(2 / 3))
    lines = rows_of(tmp_path / "external_predictions.csv")
    assert [(line["name"], line["label"], line["correct"]) for line in lines] == [
        ("e0", "ant", "1"),
        ("e1", "bee", "1"),
        ("e3", "dog", "0"),
    ]


def test_external_images_without_labels_are_only_predicted(tmp_path):
    folder = evaluated(tmp_path, outside([-1, -1, -1, -1], tmp_path))
    assert folder.summary["external"] == {
        "n": 3,
        "accuracy": None,
        "top3_accuracy": None,
        "n_ood": 1,
    }
    lines = rows_of(tmp_path / "external_predictions.csv")
    assert [(line["name"], line["label"], line["first"]) for line in lines] == [
        ("e0", "", "ant"),
        ("e1", "", "bee"),
        ("e3", "", "ant"),
    ]


def test_external_near_duplicates_are_predicted_and_not_judged(tmp_path):
    near_duplicates = np.array([False, False, True])
    folder = evaluated(tmp_path, outside([0, 1, 2, 3], tmp_path), near_duplicates)
    judged = folder.summary["external"]
    assert (judged["n"], judged["n_labelled"], judged["n_twins"]) == (3, 2, 1)
    assert judged["accuracy"] == 1.0
    assert len(rows_of(tmp_path / "external_predictions.csv")) == 3
