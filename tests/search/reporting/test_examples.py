import os
from pathlib import Path

import numpy as np
import pytest
import torch

from search.evaluation.predictions import PredictedImage, Predictions
from search.reporting import examples
from search.reporting.examples import (
    least_confident,
    least_confident_first,
    save_samples,
    top_losses,
)
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from search.runs.summary import Samples
from tests.search.reporting.conftest import CACHE_SIZE
from trainables.models.ensemble import Ensemble
from trainables.models.grad_cam import GradCamError

CLASSES = ("ant", os.fsdecode(b"b\xe9e"), "cow")


def prediction(name: str, label: str | None, predicted: str, probability: float) -> PredictedImage:
    return PredictedImage(name, label, ((predicted, probability), ("other", 1 - probability)))


PREDICTIONS = (
    prediction("confident, correct", "ant", "ant", 0.99),
    prediction("unsure, correct", "ant", "ant", 0.51),
    prediction("unsure, wrong", "ant", "bee", 0.6),
    prediction("confident, wrong", "ant", "cow", 0.9),
    prediction("no label", None, "cow", 0.7),
)


def names(predictions: list[PredictedImage]) -> list[str]:
    return [one.name for one in predictions]


def test_top_losses_are_wrong_and_come_most_confident_first() -> None:
    assert names(top_losses(PREDICTIONS)) == ["confident, wrong", "unsure, wrong"]


def test_correct_predictions_come_least_confident_first() -> None:
    assert names(least_confident(PREDICTIONS)) == ["unsure, correct", "confident, correct"]


def test_wrong_predictions_come_before_the_least_confident() -> None:
    assert names(least_confident_first(PREDICTIONS)) == [
        "unsure, wrong",
        "confident, wrong",
        "unsure, correct",
        "no label",
        "confident, correct",
    ]


@pytest.fixture
def predictions() -> Predictions:
    """Of 50 images, the first 20 are predicted wrong; later ones with more confidence."""
    generator = torch.Generator().manual_seed(0)
    size = (50, CACHE_SIZE, CACHE_SIZE, 3)
    probabilities = np.full((50, 3), [0.1, 0.8, 0.1])
    probabilities += np.arange(50)[:, None] * [-0.001, 0.002, -0.001]
    return Predictions(
        names=[str(i) for i in range(50)],
        table=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
        rows=np.arange(50),
        labels=np.array([0] * 20 + [1] * 30),
        probabilities=probabilities.astype(np.float32),
        classes=CLASSES,
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_the_images_that_the_report_shows_are_saved(
    folder: RunFolder, small_ensemble: Ensemble, predictions: Predictions
) -> None:
    save_samples(folder, small_ensemble, "data", predictions)
    gallery = Gallery(folder.path)
    saved = {i for i in range(50) if gallery.find("data", str(i))}
    assert saved == set(range(20)) | set(range(20, 20 + examples.MAX_LEAST_CONFIDENT))
    heatmaps = {i: gallery.find_heatmap("data", str(i)) for i in range(50)}
    with_gradcam = {i for i, heatmap in heatmaps.items() if heatmap is not None}
    assert with_gradcam <= set(range(4, 20))  # the 16 top losses
    assert len(with_gradcam) > 8
    assert all(heatmap.max() == 1.0 for heatmap in heatmaps.values() if heatmap is not None)
    assert folder.summary.samples == {"data": Samples(images=32, n_with_gradcam=16, error=None)}


def test_the_heat_maps_of_an_earlier_model_are_deleted(
    folder: RunFolder, small_ensemble: Ensemble, predictions: Predictions
) -> None:
    gallery = Gallery(folder.path)
    gallery.save_heatmap("data", "49", np.ones((2, 2)))
    gallery.save_heatmap("external", "49", np.ones((2, 2)))
    save_samples(folder, small_ensemble, "data", predictions)
    assert gallery.find_heatmap("data", "49") is None
    assert gallery.find_heatmap("external", "49") is not None


@pytest.mark.parametrize(
    "error",
    [GradCamError("cnn has no feature map in its last stage"), RuntimeError("out of memory\nat 1")],
)
def test_a_run_survives_a_failure_of_grad_cam(
    folder: RunFolder,
    small_ensemble: Ensemble,
    predictions: Predictions,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: object) -> np.ndarray:
        raise error

    monkeypatch.setattr(examples, "grad_cam", fail)
    save_samples(folder, small_ensemble, "data", predictions)
    first_line = str(error).splitlines()[0]
    failed = Samples(images=32, n_with_gradcam=0, error=first_line)
    assert folder.summary.samples == {"data": failed}
    assert Gallery(folder.path).find("data", "0") is not None


def test_a_set_may_have_nothing_to_show(
    folder: RunFolder, small_ensemble: Ensemble, predictions: Predictions
) -> None:
    empty = Predictions(
        [], predictions.table, np.arange(0), np.arange(0), np.empty((0, 3)), CLASSES
    )
    save_samples(folder, small_ensemble, "data", empty)
    assert folder.summary.samples == {"data": Samples(images=0, n_with_gradcam=0, error=None)}
