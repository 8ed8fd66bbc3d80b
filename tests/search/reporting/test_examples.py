import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.pipeline.evaluate import write_predictions
from search.reporting import examples
from search.reporting.examples import least_confident, least_confident_first, mistakes, save_samples
from search.reporting.gallery import Gallery
from search.reporting.run_record import Prediction
from search.runs.run_folder import RunFolder
from trainables.models.backbones import create_backbone
from trainables.models.ensemble import Classifier, Ensemble, ModelCard, create_head
from trainables.models.grad_cam import GradCamError

CLASSES = ("ant", os.fsdecode(b"b\xe9e"), "cow")
SIDE = 40


def prediction(name: str, label: str | None, said: str, probability: float) -> Prediction:
    return Prediction(name, label, ((said, probability), ("other", 1 - probability)))


PREDICTIONS = (
    prediction("sure and right", "ant", "ant", 0.99),
    prediction("unsure and right", "ant", "ant", 0.51),
    prediction("unsure and wrong", "ant", "bee", 0.6),
    prediction("sure and wrong", "ant", "cow", 0.9),
    prediction("unknown", None, "cow", 0.7),
)


def names(predictions: list[Prediction]) -> list[str]:
    return [one.name for one in predictions]


def test_mistakes_come_most_confident_first() -> None:
    assert names(mistakes(PREDICTIONS)) == ["sure and wrong", "unsure and wrong"]


def test_what_is_right_comes_least_sure_first() -> None:
    assert names(least_confident(PREDICTIONS)) == ["unsure and right", "sure and right"]


def test_from_elsewhere_the_wrong_and_then_the_doubtful_come_first() -> None:
    assert names(least_confident_first(PREDICTIONS)) == [
        "unsure and wrong",
        "sure and wrong",
        "unsure and right",
        "unknown",
        "sure and right",
    ]


@pytest.fixture
def judged(tmp_path: Path) -> tuple[RunFolder, Ensemble, torch.Tensor]:
    """A run whose model has 20 images wrong and 30 right."""
    torch.manual_seed(0)
    network = create_backbone("tinynet")
    network.freeze(5)
    member = Classifier(network, create_head(network.feature_size, 3, 0, 0.0)).member_weights()
    card = ModelCard("tinynet", CLASSES, 32, SIDE, 5, 0, 1)
    ensemble = Ensemble(card, network.stages.state_dict(), [member])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    labels = np.array([0] * 20 + [1] * 30)
    rows = np.full((50, 3), [0.1, 0.8, 0.1]) + np.arange(50)[:, None] * [-0.001, 0.002, -0.001]
    folder = RunFolder(tmp_path)
    write_predictions(
        tmp_path / "test_predictions.csv", [str(i) for i in range(50)], labels, rows, CLASSES
    )
    return folder, ensemble, images


def test_the_images_that_will_be_shown_are_kept(judged: Any) -> None:
    folder, ensemble, images = judged
    save_samples(folder, ensemble, "data", images)
    gallery = Gallery(folder.path)
    kept = {i for i in range(50) if gallery.find("data", str(i))}
    assert kept == set(range(20)) | set(range(20, 20 + examples.MAX_LEAST_CONFIDENT))
    heats = {i: gallery.find_heat("data", str(i)) for i in range(50)}
    told = {i for i, heat in heats.items() if heat is not None}
    assert told <= set(range(4, 20))  # the 16 most confident mistakes
    assert len(told) > 8
    assert all(heat.max() == 1.0 for heat in heats.values() if heat is not None)
    assert folder.summary["samples"] == {"data": {"images": 32, "attributed": 16, "problem": None}}


def test_what_an_earlier_model_saw_is_forgotten(judged: Any) -> None:
    folder, ensemble, images = judged
    Gallery(folder.path).keep_heat("data", "49", np.ones((2, 2)))
    Gallery(folder.path).keep_heat("external", "49", np.ones((2, 2)))
    save_samples(folder, ensemble, "data", images)
    assert Gallery(folder.path).find_heat("data", "49") is None
    assert Gallery(folder.path).find_heat("external", "49") is not None


@pytest.mark.parametrize(
    "error",
    [GradCamError("cnn has no feature map in its last stage"), RuntimeError("out of memory\nat 1")],
)
def test_a_run_is_not_lost_where_attribution_fails(
    judged: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> np.ndarray:
        raise error

    monkeypatch.setattr(examples, "grad_cam", fail)
    folder, ensemble, images = judged
    save_samples(folder, ensemble, "data", images)
    kept = folder.summary["samples"]["data"]
    assert kept == {"images": 32, "attributed": 0, "problem": str(error).splitlines()[0]}
    assert Gallery(folder.path).find("data", "0") is not None


def test_a_set_without_anything_to_show_is_no_problem(judged: Any) -> None:
    folder, ensemble, images = judged
    write_predictions(
        folder.path / "test_predictions.csv", [], np.array([]), np.empty((0, 3)), CLASSES
    )
    save_samples(folder, ensemble, "data", images[:0])
    assert folder.summary["samples"]["data"]["images"] == 0
