from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from search.data.decoding import DecodedImages
from search.evaluation.calibration import TemperatureScaling
from search.evaluation.predictions import Predictions
from search.pipeline import evaluate
from search.pipeline.retraining.out_of_fold import OutOfFold
from search.runs.run_folder import RunFolder
from search.runs.summary import CalibrationChange, CalibrationScores, ReliabilityBin
from search.runs.tables import read_rows
from spaces.base import Space
from spaces.sources import digits
from tests.fixtures.prepared_data import decoded, prepared_data

CLASSES = ("ant", "bee", "cow", "dog")
SPACE = Space(source=digits(), params={"backbone": "tinynet"})
SCORES = CalibrationScores(ece=0.1, log_loss=0.5, bins=[])
CHANGE = CalibrationChange(n=40, before=replace(SCORES, log_loss=0.9), after=SCORES)
OUT_OF_FOLD: Any = OutOfFold(None, TemperatureScaling(2.0, CHANGE, log_loss_gain_se=0.1))


class Oracle:
    """Predicts each image's class from the value of its pixels; takes 9 for class 0."""

    card = SimpleNamespace(temperature=2.0)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        values = images[:][:, 0, 0, 0].long()
        return torch.eye(4)[None, torch.where(values == 9, 0, values)] * 4

    def predict_with_ood(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return half of the pixels' value as the OOD score."""
        return self.logits(images), images[:][:, 0, 0, 0].float() / 2

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(images)[0] / 2, 1)


class Constant(Oracle):
    """Predicts class 1 for every image."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(4)[None, torch.ones(len(images), dtype=torch.long)]


def pixels_of(values: list[int]) -> np.ndarray:
    """Return images, each all of one value."""
    array = np.array(values, np.uint8)[:, None, None, None]
    return np.ascontiguousarray(np.broadcast_to(array, (len(values), 2, 2, 3)))


@pytest.fixture(autouse=True)
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """By part, the names of the images whose samples are saved."""
    parts: dict[str, list[str]] = {}

    def save_samples(_folder: RunFolder, _model: Any, part: str, predictions: Predictions) -> None:
        parts[part] = list(predictions.names)

    monkeypatch.setattr(evaluate, "save_samples", save_samples)
    return parts


def evaluated(
    tmp_path: Path,
    external: DecodedImages | None = None,
    near_duplicates: list[bool] | None = None,
    baseline: Any = None,
    expected_discordance: float | None = None,
) -> RunFolder:
    """Evaluate the oracle on six images, of which rows 1, 3 and 5 are the test set."""
    prepared = prepared_data(
        SPACE,
        pixels_of([0, 1, 2, 9, 3, 3]),
        [0, 1, 2, 2, 3, 3],
        CLASSES,
        ["train", "test", "val", "test", "train", "test"],
        external=external,
        external_near_duplicates=near_duplicates,
    )
    folder, model = RunFolder(tmp_path), Oracle()
    evaluate.evaluate(
        prepared,
        model,  # type: ignore[arg-type]
        baseline,
        OUT_OF_FOLD,
        folder,
        expected_discordance,
    )
    return folder


def outside(labels: list[int]) -> DecodedImages:
    """Return an external test set; the last image is predicted as class 0 whatever it is."""
    return decoded(pixels_of([0, 1, 9]), labels, CLASSES)


def test_the_test_set_is_evaluated_and_written(tmp_path, saved):
    folder = evaluated(tmp_path)
    test = folder.summary.test
    assert (test.n, test.n_ood) == (3, 2)
    assert test.accuracy == pytest.approx(2 / 3)
    rows = read_rows(tmp_path / "test_predictions.csv")
    assert [(row["image"], row["label"], row["prediction_1"]) for row in rows] == [
        ("1.png", "bee", "bee"),
        ("3.png", "cow", "ant"),
        ("5.png", "dog", "dog"),
    ]
    confidence = np.exp(2) / (np.exp(2) + 3)
    assert rows[0]["probability_1"] == f"{confidence:.6f}", "the temperature is used"
    assert [(row["ood_score"], row["is_ood"]) for row in rows] == [
        ("0.5000", "0"),
        ("4.5000", "1"),
        ("1.5000", "1"),
    ]
    calibration = folder.summary.calibration
    assert calibration.temperature == 2.0
    assert calibration.out_of_fold == CHANGE
    before, after = calibration.test.before, calibration.test.after
    assert after.ece == pytest.approx(abs(2 / 3 - confidence), abs=1e-6)
    assert before.ece > after.ece
    assert after.bins == [
        ReliabilityBin(
            confidence=pytest.approx(confidence, abs=1e-6), accuracy=pytest.approx(2 / 3), n=3
        )
    ]
    assert (folder.summary.external, folder.summary.comparison) == (None, None)
    assert not (tmp_path / "external_predictions.csv").exists()
    assert saved == {"data": ["1.png", "3.png", "5.png"]}


def test_the_model_is_compared_with_the_baseline(tmp_path):
    compared = evaluated(
        tmp_path, baseline=Constant(), expected_discordance=0.25
    ).summary.comparison
    assert (compared.expected_discordance, compared.detectable_difference) == (0.25, None)
    assert (compared.accuracy, compared.baseline_accuracy) == pytest.approx((2 / 3, 1 / 3))
    assert (compared.n_model_only_correct, compared.n_baseline_only_correct) == (1, 0)


def test_labelled_external_images_are_evaluated(tmp_path, saved):
    external = evaluated(tmp_path, outside([0, 1, 3])).summary.external
    assert (external.n, external.n_labelled, external.n_near_duplicates) == (3, 3, 0)
    assert external.scores.accuracy == pytest.approx(2 / 3)
    rows = read_rows(tmp_path / "external_predictions.csv")
    assert [(row["image"], row["label"], row["prediction_1"]) for row in rows] == [
        ("0.png", "ant", "ant"),
        ("1.png", "bee", "bee"),
        ("2.png", "dog", "ant"),
    ]
    assert saved["external"] == ["0.png", "1.png", "2.png"]


def test_external_images_without_labels_are_only_predicted(tmp_path):
    external = evaluated(tmp_path, outside([-1, -1, -1])).summary.external
    assert (external.n, external.n_labelled, external.n_ood) == (3, 0, 1)
    assert external.scores is None
    rows = read_rows(tmp_path / "external_predictions.csv")
    assert [(row["image"], row["label"], row["prediction_1"]) for row in rows] == [
        ("0.png", "", "ant"),
        ("1.png", "", "bee"),
        ("2.png", "", "ant"),
    ]


def test_external_near_duplicates_are_predicted_and_not_evaluated(tmp_path):
    external = evaluated(tmp_path, outside([0, 1, 3]), [False, False, True]).summary.external
    assert (external.n, external.n_labelled, external.n_near_duplicates) == (3, 2, 1)
    assert external.scores.accuracy == 1.0
    assert len(read_rows(tmp_path / "external_predictions.csv")) == 3
