"""Linear probes, fitted in a Ray session on the real feature cache; and how many views it needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution

from search.cluster.feature_cache_client import start_feature_cache
from search.cluster.shared_file import StoredObject
from search.console.progress import Progress
from search.pipeline.prepare import PreparedData
from search.pipeline.probe import (
    ProbeResult,
    count_drawn_views,
    plan_feature_cache,
    probe_backbones,
)
from spaces.base import Space
from spaces.rules import Distribution, Value
from spaces.sources import digits, folder
from tests.fixtures.prepared_data import prepared_data
from trainables.models.weights import PACKAGED, load_weights

CLASSES = ("red", "green", "blue")
SPLITS = np.array(["train"] * 60 + ["val"] * 18 + ["test"] * 12)
SIDE = 32
SPACE = Space(
    source=folder(),
    params={"backbone": "tinynet", "freeze_depth": 5},
    image_size=SIDE,
    resize_size=SIDE,
    views=1,
)


def prepare(changed: str | None) -> PreparedData:
    """Return noise whose class is its strongest channel; one split has other images and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(len(SPLITS)) % len(CLASSES)
    pixels = rng.integers(0, 190, (len(SPLITS), SIDE, SIDE, 3), dtype=np.uint8)
    pixels[np.arange(len(SPLITS)), :, :, labels] += 55
    rows = np.flatnonzero(changed == SPLITS)
    pixels[rows] = 255 - pixels[rows]
    labels[rows] = (labels[rows] + 1) % len(CLASSES)
    return prepared_data(
        SPACE,
        pixels,
        labels.tolist(),
        CLASSES,
        SPLITS.tolist(),
        table=StoredObject.put(pixels),
        weights={"tinynet": StoredObject.put(load_weights(PACKAGED["tinynet"]))},
    )


def probed(changed: str | None) -> ProbeResult:
    prepared = prepare(changed)
    plan = plan_feature_cache(prepared)
    cache = start_feature_cache(plan)
    return probe_backbones(prepared, plan, cache, None, Progress(quiet=True))


@pytest.mark.usefixtures("ray_session")
def test_a_probe_depends_on_training_images_alone() -> None:
    """Trials begin with its head, and are compared on the validation images."""
    first = probed(None)
    head, accuracy = first.heads["tinynet"], first.scores["tinynet"].accuracy
    assert accuracy > 0.6
    for name in ("val", "test", "train"):
        other = probed(name)
        is_equal = torch.equal(other.heads["tinynet"]["weight"], head["weight"])
        assert is_equal is (name != "train"), name
        if name != "train":
            assert other.scores["tinynet"].accuracy == accuracy


@pytest.mark.parametrize(
    ("augment", "views", "ablation", "count"),
    [
        (FloatDistribution(0.0, 1.0), 8, False, 8),
        (FloatDistribution(0.0, 0.6), 8, False, 7),
        (FloatDistribution(0.0, 0.6), 8, True, 7),
        (0.3, 8, False, 5),
        (0.0, 8, False, 1),
        (0.0, 8, True, 5),  # the ablation's transfer step has a strength of 0.2
        (0.5, 1, True, 1),
    ],
)
def test_only_views_that_a_training_can_draw_are_counted(
    augment: Distribution | float, views: int, ablation: bool, count: int
) -> None:
    params: dict[str, Distribution | Value] = {"backbone": "tinynet", "augment": augment}
    space = Space(digits(), params, views=views, ablation=ablation)
    assert count_drawn_views(space) == count
