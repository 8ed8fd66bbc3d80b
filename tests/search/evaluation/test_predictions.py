import os
from typing import Any

import numpy as np
import pytest
import torch

from search.evaluation.predictions import (
    PredictedImage,
    Predictions,
    read_predictions,
    read_probabilities,
    write_predictions,
)
from search.runs.tables import read_rows
from search.runs.validation import FolderError

CLASSES = ("ant", "bee", "cow", "dog")


def predictions(
    names: list[str], labels: list[int], probabilities: Any, classes: Any = CLASSES, **fields: Any
) -> Predictions:
    n = len(names)
    table = torch.arange(2 * n, dtype=torch.uint8)[:, None, None, None].expand(2 * n, 2, 2, 3)
    return Predictions(
        names=names,
        table=table,
        rows=2 * np.arange(n),
        labels=np.array(labels),
        probabilities=np.array(probabilities),
        classes=classes,
        **fields,
    )


@pytest.fixture
def three() -> Predictions:
    return predictions(
        ['a, "b".jpg', "Käfer/ü.jpg", "two\nlines.jpg"],
        [1, 3, -1],
        [[0.1, 0.6, 0.2, 0.1], [0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]],
        ood_score=np.array([0.2, 1.00001, 1.0]),
    )


def test_a_line_is_written_per_image(tmp_path, three):
    path = tmp_path / "predictions.csv"
    write_predictions(path, three)
    first, second, third = read_rows(path)
    assert first == {
        "image": 'a, "b".jpg',
        "label": "bee",
        "prediction_1": "bee",
        "probability_1": "0.600000",
        "prediction_2": "cow",
        "probability_2": "0.200000",
        "prediction_3": "ant",
        "probability_3": "0.100000",
        "ood_score": "0.2000",
        "is_ood": "0",
        "prob_ant": "0.100000",
        "prob_bee": "0.600000",
        "prob_cow": "0.200000",
        "prob_dog": "0.100000",
    }
    assert (second["image"], second["label"], second["is_ood"]) == ("Käfer/ü.jpg", "dog", "1")
    assert [second[f"prediction_{k}"] for k in (1, 2, 3)] == ["ant", "bee", "cow"]
    assert (third["image"], third["label"], third["is_ood"]) == ("two\nlines.jpg", "", "0")


def test_what_is_read_is_what_the_predictions_are(tmp_path, three):
    path = tmp_path / "predictions.csv"
    write_predictions(path, three)
    assert read_predictions(path) == tuple(three.top_k())
    assert three.top_k()[0] == PredictedImage(
        'a, "b".jpg', "bee", (("bee", 0.6), ("cow", 0.2), ("ant", 0.1))
    )
    assert [one.correct for one in three.top_k()] == [True, False, None]
    assert [one.is_ood for one in three.top_k()] == [False, True, False]
    assert three.n_ood == 1
    assert read_predictions(tmp_path / "none.csv") == ()


def test_confidence_is_low_where_the_second_class_is_nearly_as_probable():
    assert PredictedImage("a", None, (("ant", 0.5), ("bee", 0.4))).low_confidence
    assert not PredictedImage("a", None, (("ant", 0.7), ("bee", 0.2))).low_confidence
    assert not PredictedImage("a", None, (("ant", 1.0),)).low_confidence


def test_a_name_that_is_not_utf8_is_written_as_it_is(tmp_path):
    path = tmp_path / "predictions.csv"
    name = os.fsdecode(b"caf\xe9.jpg")
    write_predictions(path, predictions([name], [0], [[0.6, 0.4]], CLASSES[:2]))
    assert path.read_bytes().splitlines()[1].startswith(b"caf\xe9.jpg,ant,ant,0.600000,")
    assert read_predictions(path)[0].name == "caf\ufffd.jpg"


def test_two_classes_have_two_predictions(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, predictions(["a"], [0], [[0.3, 0.7]], CLASSES[:2]))
    assert path.read_text(encoding="utf-8").splitlines() == [
        "image,label,prediction_1,probability_1,prediction_2,probability_2,ood_score,is_ood,"
        "prob_ant,prob_bee",
        "a,ant,bee,0.700000,ant,0.300000,,,0.300000,0.700000",
    ]
    assert predictions(["a"], [0], [[0.3, 0.7]], CLASSES[:2]).n_ood is None


def test_images_are_taken_from_the_table(three):
    assert three.images(np.array([2, 0]))[:, 0, 0, 0].tolist() == [4, 0]


def test_all_probabilities_of_labelled_images_are_read(tmp_path, three):
    path = tmp_path / "predictions.csv"
    write_predictions(path, three)
    found = read_probabilities(path)
    known = three.labels >= 0
    assert found.classes == tuple(three.classes)
    np.testing.assert_array_equal(found.labels, three.labels[known])
    np.testing.assert_allclose(found.probabilities, three.probabilities[known], atol=1e-6)
    assert read_probabilities(tmp_path / "missing.csv").classes == ()


@pytest.mark.parametrize("old", [",prob_dog", ",0.700000"])
def test_a_table_whose_probabilities_cannot_be_read_is_damaged(tmp_path, old):
    path = tmp_path / "predictions.csv"
    path.write_text(
        "image,label,prediction_1,probability_1,is_ood,prob_cat,prob_dog\n"
        "a.jpg,dog,dog,0.700000,0,0.300000,0.700000\n".replace(old, ",x")
    )
    with pytest.raises(FolderError, match=r"predictions\.csv is damaged: its probabilities"):
        read_probabilities(path)
