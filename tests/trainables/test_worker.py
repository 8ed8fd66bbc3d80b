"""What trainings of a worker share, with stand-ins for what the driver shares with workers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from spaces.base import TrialConfig
from trainables.augmentation import augment_pixels
from trainables.feature_cache import FeatureCache, as_features
from trainables.models.backbones import create_backbone
from trainables.models.classifier import Weights
from trainables.worker import (
    FeatureContext,
    TrainingContext,
    build_block,
    clone_backbone,
    create_trainer,
    folded_backbone,
    open_table,
    resolve_config,
)

CPU = torch.device("cpu")
N_IMAGES, SIDE = 12, 32
ROWS = torch.arange(N_IMAGES)


@dataclass(frozen=True, eq=False)
class Shared:
    """Stands in for an array or weights in shared memory; counts how often it is opened."""

    value: Any
    opened: list[int] = field(default_factory=list)

    def open(self) -> Any:
        self.opened.append(1)
        return self.value


@dataclass
class Features:
    """Stands in for the feature cache: has the views of `stage_output` alone."""

    context: FeatureContext
    stage_output: int
    requests: list[tuple[str, int, float]] = field(default_factory=list)

    def get_views(self, backbone: str, stage_output: int, augment: float) -> FeatureCache | None:
        self.requests.append((backbone, stage_output, augment))
        if stage_output != self.stage_output:
            return None
        rows = np.arange(N_IMAGES)
        (bits,) = build_block(self.context, backbone, rows, 0, 1, (stage_output,), seed=0)
        view = (torch.from_numpy(bits).view(torch.bfloat16),)
        return FeatureCache((view,), 1, torch.from_numpy(rows), N_IMAGES)


def weights_of(seed: int) -> Weights:
    """Return weights as a file has them."""
    return dict(create_backbone("tinynet", seed=seed).stages.state_dict())


@pytest.fixture
def context() -> TrainingContext:
    """Noise in two classes, and weights that are not those of another seed."""
    table = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIDE, SIDE, 3), np.uint8)
    return TrainingContext(
        table=Shared(table),
        image_size=SIDE,
        flip=False,
        weights={"tinynet": Shared(weights_of(seed=7))},
        seed=0,
        labels=np.arange(N_IMAGES) % 2,
        n_classes=2,
        epochs=1,
        patience=None,
        heads={},
        feature_source=None,
    )


def test_the_table_is_opened_without_a_copy(context: TrainingContext) -> None:
    table = context.table.open()
    assert open_table(context.table, CPU).data_ptr() == table.ctypes.data
    assert context.images(CPU).table.data_ptr() == table.ctypes.data


def test_frozen_stages_are_shared_and_the_others_are_copies(context: TrainingContext) -> None:
    one, two = (clone_backbone(context, "tinynet", 3, CPU) for _ in range(2))
    for i, (a, b) in enumerate(zip(one.stages, two.stages, strict=True)):
        assert (a is b) is (i < 3)
    torch.testing.assert_close(dict(one.stages.state_dict()), weights_of(seed=7))


def test_a_worker_reads_weights_once_and_knows_other_weights(context: TrainingContext) -> None:
    weights = context.weights["tinynet"]
    for _ in range(2):
        clone_backbone(context, "tinynet", 5, CPU)
        folded_backbone(context, "tinynet", CPU)
    assert isinstance(weights, Shared)
    assert len(weights.opened) == 1
    other = Shared(weights_of(seed=8))
    changed = clone_backbone(replace(context, weights={"tinynet": other}), "tinynet", 5, CPU)
    torch.testing.assert_close(dict(changed.stages.state_dict()), weights_of(seed=8))


@pytest.mark.parametrize("view", [0, 1, 4, 7])
def test_a_view_is_augmented_at_its_magnitude(context: TrainingContext, view: int) -> None:
    """Against the augmentation and the network themselves, at the documented magnitude."""
    context = replace(context, flip=True)
    rows = np.array([7, 0, 3])
    (bits,) = build_block(context, "tinynet", rows, view, 8, (5,), seed=11)
    magnitudes = torch.full((len(rows),), view**2 / 49)
    backbone = create_backbone("tinynet", weights_of(seed=7)).eval()

    def features(magnitudes: torch.Tensor) -> torch.Tensor:
        images = torch.from_numpy(context.table.open()[rows])
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            return backbone(augment_pixels(images, SIDE, magnitudes, True, generator), 0, 5)

    found, expected = as_features(bits).float(), features(magnitudes)
    scale = float((expected - expected.mean(0)).norm())
    assert float((found - expected).norm()) < 0.1 * scale, "bfloat16 against float32"
    other = features(torch.full((len(rows),), view / 7 if view in (1, 4) else 0.5))
    assert float((found - other).norm()) > 0.2 * scale, "the tolerance would hide a mistake"


def test_a_training_requests_the_features_of_its_configuration(context: TrainingContext) -> None:
    features = Features(context, stage_output=4)
    context = replace(context, feature_source=features)
    assert context.cached_features(TrialConfig("tinynet", freeze_depth=0)) is None
    assert features.requests == [], "nothing is frozen"
    assert context.cached_features(TrialConfig("tinynet", freeze_depth=4, augment=0.3)) is not None
    assert context.pooled_features("tinynet") is None
    assert features.requests == [("tinynet", 4, 0.3), ("tinynet", 5, 0.0)]


@pytest.mark.parametrize("stage_output", [4, 5], ids=["cached", "not cached"])
def test_a_trainer_trains_with_and_without_cached_features(
    context: TrainingContext, stage_output: int
) -> None:
    context = replace(context, feature_source=Features(context, stage_output))
    config = TrialConfig("tinynet", freeze_depth=4, batch_size=6)
    trainer = create_trainer(context, config, ROWS, ROWS, seed=0, epochs=2)
    assert [trainer.run_epoch().epoch for _ in range(2)] == [1, 2]
    assert trainer.finished


def test_a_network_without_pretrained_weights_is_never_frozen() -> None:
    assert resolve_config({"backbone": "cnn", "freeze_depth": 4, "lr": 0.1}) == TrialConfig(
        "cnn", lr=0.1, freeze_depth=0
    )
    assert resolve_config({"backbone": "cnn"}).freeze_depth == 0
    assert resolve_config({"backbone": "tinynet", "freeze_depth": 4}).freeze_depth == 4
