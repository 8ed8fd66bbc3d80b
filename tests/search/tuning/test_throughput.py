"""Training time per image, measured for each stage of a backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from search.cluster.shared_file import StoredObject
from search.tuning.throughput import measure_throughput, seconds_per_image
from trainables.worker import TrainingContext, clone_backbone

N_IMAGES, SIDE = 36, 32


@pytest.fixture(scope="module")
def context(ray_session: None) -> TrainingContext:
    """Noise in two classes."""
    table = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIDE, SIDE, 3), np.uint8)
    return TrainingContext(
        table=StoredObject.put(table),
        image_size=SIDE,
        flip=False,
        weights={},
        seed=0,
        labels=np.arange(N_IMAGES) % 2,
        n_classes=2,
        epochs=1,
        patience=None,
        heads={},
        feature_source=None,
    )


def test_every_stage_of_every_backbone_is_measured(context: TrainingContext) -> None:
    measured = measure_throughput(context, np.arange(N_IMAGES), {"tinynet": 0.0, "cnn": 0.0})
    assert set(measured) == {"tinynet", "cnn"}
    for seconds in measured.values():
        assert len(seconds) == 5
        assert all(0 < one < 10 for one in seconds)


def test_all_stages_are_measured_after_a_trial_that_froze_them(context: TrainingContext) -> None:
    clone_backbone(context, "tinynet", 5, torch.device("cpu")).freeze(5)
    assert len(seconds_per_image(context, "tinynet", np.arange(N_IMAGES))) == 5
