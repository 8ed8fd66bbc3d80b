"""The board of a whole run; what people see of it is tested in `tests/system/browser`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

from search.evaluation.predictions import Predictions
from search.reporting.tensorboard.run_board import RunBoard, principal_components
from search.runs.run_folder import RunFolder
from spaces.base import Space
from spaces.sources import digits
from trainables.images import ImageRows
from trainables.models.ensemble import Ensemble

CLASSES = ("7", "8\tb")


def predictions(n: int, classes: tuple[str, str] = CLASSES) -> Predictions:
    """Images of two classes, each all of its own number; one in four is predicted wrong."""
    rows = np.arange(n)
    labels = rows % 2
    table = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, 36, 36, 3).contiguous()
    right = np.where(rows % 4 == 0, 0.1, 0.9)
    probabilities = np.stack([1 - right, right], 1)
    probabilities[labels == 0] = probabilities[labels == 0, ::-1]
    names = [f"{i}.jpg" for i in rows]
    return Predictions(names, table, rows, labels, probabilities.astype(np.float32), classes)


@pytest.fixture
def board(tmp_path: Path) -> RunBoard:
    return RunBoard(RunFolder(tmp_path), n_trials=4)


def tags(folder: Path, kind: str) -> set[str]:
    """Return the tags that TensorBoard reads from the board's files."""
    read = EventAccumulator(str(folder / "tensorboard" / "overview")).Reload()
    return set(read.Tags()[kind])


def embedding(folder: Path) -> EmbeddingInfo:
    text = (folder / "tensorboard" / "overview" / "projector_config.pbtxt").read_text()
    (found,) = text_format.Parse(text, ProjectorConfig()).embeddings
    return found


def test_the_projector_has_features_a_table_and_thumbnails(
    board: RunBoard, tmp_path: Path, small_ensemble: Ensemble
) -> None:
    board.show_model(small_ensemble, predictions(12), predictions(8), None)
    found, folder = embedding(tmp_path), tmp_path / "tensorboard" / "overview"
    assert len(np.loadtxt(folder / found.tensor_path, delimiter="\t")) == 12
    lines = (folder / found.metadata_path).read_text().splitlines()
    assert lines[:3] == [
        "class\tpredicted\tprediction\timage",
        "7\t8 b\twrong\t0.jpg",
        "8 b\t8 b\tcorrect\t1.jpg",
    ]
    assert len(lines) == 13
    width, height = found.sprite.single_image_dim
    sprite = Image.open(folder / found.sprite.image_path)
    assert sprite.size == (4 * width, 4 * height)
    assert sprite.getpixel((width + 1, height + 1)) == (5, 5, 5)  # the sixth


def test_classes_that_are_numbers_are_no_scale(
    board: RunBoard, tmp_path: Path, small_ensemble: Ensemble
) -> None:
    board.show_model(small_ensemble, predictions(4, ("7", "8")), predictions(4), None)
    table = tmp_path / "tensorboard" / "overview" / embedding(tmp_path).metadata_path
    assert table.read_text().splitlines()[1] == "class 7\tclass 8\twrong\t0.jpg"


def test_tensorboard_reads_all_that_is_shown(
    board: RunBoard, tmp_path: Path, small_ensemble: Ensemble
) -> None:
    space = Space(digits(), {"backbone": "tinynet", "augment": 0.6}, image_size=32, flip=False)
    images = predictions(8)
    board.show_augmentation(
        ImageRows(images.table, torch.from_numpy(images.rows)), images.labels, space
    )
    board.show_model(small_ensemble, predictions(12), predictions(8), predictions(4))
    assert tags(tmp_path, "images") == {
        *(f"augmentation/strength_{strength}" for strength in ("0.20", "0.40", "0.60")),
        *(f"{kind}/{part}" for kind in ("confusion", "top_losses")
          for part in ("test", "out_of_fold", "external")),
        "predictions/external",
    }  # fmt: skip


def test_many_dimensions_become_the_principal_ones() -> None:
    features = np.random.default_rng(0).normal(size=(100, 500)).astype(np.float32)
    features[:50, 7] += 100
    reduced = principal_components(features)
    assert reduced.shape == (100, 64)
    assert abs(reduced[:50, 0].mean() - reduced[50:, 0].mean()) > 90
    few = features[:, :3]
    assert np.allclose(principal_components(few), few, atol=1e-3)
