from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from search.console.progress import Progress
from search.data.decoding import DecodedImages
from search.evaluation.calibration import TemperatureScaling
from search.evaluation.predictions import Predictions
from search.pipeline import evaluate
from search.pipeline.retraining.out_of_fold import OutOfFold
from search.runs.run_folder import RunFolder
from search.runs.summary import (
    CalibrationChange,
    CalibrationScores,
    DataCounts,
    Evaluations,
    ReliabilityBin,
    RunSummary,
    Samples,
    read_summary,
)
from search.runs.tables import read_rows
from spaces.base import Space
from spaces.sources import digits
from tests.fixtures.prepared_data import decoded, prepared_data

CLASSES = ("ant", "bee", "cow", "dog")
SPACE = Space(source=digits(), params={"backbone": "tinynet"})
SCORES = CalibrationScores(ece=0.1, log_loss=0.5, bins=[])
SAMPLES = Samples(images=3, n_with_gradcam=3, error=None)
CHANGE = CalibrationChange(n=40, before=replace(SCORES, log_loss=0.9), after=SCORES)
OUT_OF_FOLD: Any = OutOfFold(
    None, TemperatureScaling(2.0, CHANGE, log_loss_gain=0.4, log_loss_gain_se=0.1)
)


class Oracle:
    """Predicts each image's class from the value of its pixels; takes 9 for class 0."""

    card = SimpleNamespace(temperature=2.0, image_size=2)
    weights = (1.0,)

    def __init__(self, digest: str = "oracle") -> None:
        self.digest = digest
        self.parts = (self,)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        values = images[:][:, 0, 0, 0].long()
        return torch.eye(4)[None, torch.where(values == 9, 0, values)] * 4

    def predict_with_ood(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return half of the pixels' value as the OOD score."""
        return self.logits(images), images[:][:, 0, 0, 0].float() / 2


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
    monkeypatch.setattr(evaluate, "model_digest", lambda model: model.digest)
    return parts


def evaluated(
    tmp_path: Path,
    external: DecodedImages | None = None,
    near_duplicates: list[bool] | None = None,
    baseline: Any = None,
    expected_discordance: float | None = None,
    model: Any = None,
    folder: RunFolder | None = None,
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
    folder, model = folder or RunFolder(tmp_path), model or Oracle()
    evaluate.evaluate(
        prepared, model, baseline, OUT_OF_FOLD, folder, Said(tmp_path), expected_discordance
    )
    return folder


class Said(Progress):
    """Writes what is said and warned of to the file `said`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / "said"
        self._path.touch()

    def say(self, text: str, node: str | None = None) -> None:
        self._path.write_text(f"{self._path.read_text()}{text}\n")

    warn = say


def resumed(tmp_path: Path, folder: RunFolder, **arguments: Any) -> RunFolder:
    """Evaluate a model in the folder of an earlier session, as the search leaves it."""
    later = ("calibration", "test", "comparison", "external")
    folder.write_summary(replace(folder.summary, **dict.fromkeys(later)))
    (tmp_path / "said").unlink()
    return evaluated(tmp_path, folder=folder, **arguments)


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


def test_an_unchanged_model_does_not_open_the_test_set_again(tmp_path, saved):
    folder = evaluated(tmp_path, baseline=Constant("baseline"))
    first, table = folder.summary, (tmp_path / "test_predictions.csv").read_bytes()
    assert first.evaluation == Evaluations(times=1, models=["oracle"])
    folder.write_summary(replace(folder.summary, samples={"data": SAMPLES}))
    saved.clear()

    class Shut(Oracle):
        def logits(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the test set was opened")

    (tmp_path / "test_predictions.csv").unlink()
    resumed(tmp_path, folder, model=Shut(), baseline=Shut("baseline"))
    assert replace(folder.summary, samples=None) == first
    assert (tmp_path / "test_predictions.csv").read_bytes() == table
    assert saved == {}, "the images that the report shows are those of this model"
    said = (tmp_path / "said").read_text()
    assert said.count("the test set is not evaluated again: the model is unchanged") == 1


def test_every_other_model_that_predicts_the_test_set_counts(tmp_path, saved):
    folder = evaluated(tmp_path)
    folder.write_summary(replace(folder.summary, samples={"data": SAMPLES}))
    saved.clear()
    resumed(tmp_path, folder, model=Constant("other"))
    assert folder.summary.evaluation == Evaluations(times=2, models=["oracle", "other"])
    assert folder.summary.test.accuracy == pytest.approx(1 / 3)
    assert saved["data"], "the report shows no images of the model before"
    resumed(tmp_path, folder)
    assert folder.summary.evaluation == Evaluations(times=3, models=["oracle", "other"])
    assert "the test set was evaluated 3 times, by 2 models" in (tmp_path / "said").read_text()
    resumed(tmp_path, folder, baseline=Constant("baseline"))
    assert folder.summary.evaluation.times == 4, "what it is compared with is new"
    assert folder.summary.comparison.baseline_accuracy == pytest.approx(1 / 3)


def test_an_evaluation_that_is_cut_short_counts(tmp_path):
    class Killed(Oracle):
        def predict_with_ood(self, images: torch.Tensor) -> Any:
            raise KeyboardInterrupt

    folder = RunFolder(tmp_path)
    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            evaluated(tmp_path, model=Killed(), folder=folder)
        assert read_summary(tmp_path / "summary.json").evaluation.times == times
    resumed(tmp_path, folder)
    assert folder.summary.evaluation == Evaluations(times=3, models=["oracle"])


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ("evaluation.npz", Evaluations(times=2, models=["oracle"])),
        ("test_predictions.csv", Evaluations(times=1, models=["oracle"])),
        ("summary", Evaluations(times=1, models=["oracle"])),
        ("both", Evaluations(times=2, models=["unknown", "oracle"])),
    ],
)
def test_what_is_lost_of_an_earlier_evaluation_does_not_hide_it(tmp_path, damaged, expected):
    folder = evaluated(tmp_path)
    if damaged in ("summary", "both"):
        folder.write_summary(replace(folder.summary, evaluation=None))
    if damaged != "summary":
        (tmp_path / ("evaluation.npz" if damaged == "both" else damaged)).write_bytes(b"PK")
    resumed(tmp_path, folder)
    assert folder.summary.evaluation == expected
    assert folder.summary.test.accuracy == pytest.approx(2 / 3)


def test_the_external_images_are_predicted_in_every_session(tmp_path):
    folder = evaluated(tmp_path)
    resumed(tmp_path, folder, external=outside([0, 1, 3]))
    assert folder.summary.evaluation.times == 1
    assert folder.summary.external.n == 3


def test_what_so_few_images_cannot_say_follows_from_the_accuracy(tmp_path):
    folder = RunFolder(tmp_path)
    data = DataCounts(
        classes=list(CLASSES),
        n=6,
        train=2,
        val=1,
        test=3,
        excluded=0,
        unused_files=0,
        excluded_by_request=0,
    )
    folder.write_summary(RunSummary(data=data))
    test, *others = evaluated(tmp_path, folder=folder).summary.data.warnings
    assert test.startswith("3 test images, fewer than 30: the accuracy could be anywhere between")
    assert "between 21% and 94%" in test  # Wilson, 2 of 3
    assert [text.split(",")[0] for text in others] == [
        "1 validation image",
        "4 classes have fewer than 10 images: 'ant' 1",
    ]
