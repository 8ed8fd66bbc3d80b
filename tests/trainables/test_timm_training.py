"""DINOv2's ViT-S/14, with random weights, is trained from the feature cache and resumed."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from spaces.base import TrialConfig
from trainables.batches import ImageSet
from trainables.feature_cache import (
    FeatureCache,
    as_features,
    build_view,
    bytes_per_image,
    view_magnitude,
)
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.batchnorm_folding import fold_batchnorm
from trainables.trainer import Trainer

NAME = "timm/vit_small_patch14_dinov2.lvd142m"
DEPTHS, N_VIEWS, N_IMAGES, N_TRAIN = (3, 4, 5), 2, 12, 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[56, pytest.param(224, marks=pytest.mark.long)])
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def new_backbone(size: int) -> Callable[[], Backbone]:
    state = create_backbone(NAME, seed=1, image_size=size).stages.state_dict()
    return lambda: create_backbone(NAME, state, image_size=size)


@pytest.fixture(scope="module")
def images(size: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 256, (N_IMAGES, size, size, 3), generator=generator)
    return ImageSet(table.to(torch.uint8), torch.arange(N_IMAGES) % 3, 3, size, flip=True)


@pytest.fixture(scope="module")
def caches(
    size: int, new_backbone: Callable[[], Backbone], images: ImageSet
) -> dict[int, FeatureCache]:
    backbone = new_backbone()
    expected = bytes_per_image(backbone, size)
    folded = fold_batchnorm(backbone)
    folded.freeze(5)
    views = [
        build_view(folded, images.table, size, view_magnitude(v, N_VIEWS), True, DEPTHS, v, CPU)
        for v in range(N_VIEWS)
    ]
    for view in views:  # the memory that a run plans with
        assert {depth: bits.nbytes for depth, bits in view.items()} == {
            depth: N_IMAGES * expected[depth - 1] for depth in DEPTHS
        }
    rows = torch.arange(N_IMAGES)
    return {
        depth: FeatureCache(
            tuple((as_features(view[depth]),) for view in views), N_VIEWS, rows, N_IMAGES
        )
        for depth in DEPTHS
    }


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_resumed_training_from_the_cache_equals_an_uninterrupted_one(
    depth: int,
    new_backbone: Callable[[], Backbone],
    images: ImageSet,
    caches: dict[int, FeatureCache],
    tmp_path: Path,
) -> None:
    config = TrialConfig(NAME, freeze_depth=depth, augment=0.3, batch_size=4)

    def create() -> Trainer:
        rows = torch.arange(N_IMAGES)
        parts = rows[:N_TRAIN], rows[N_TRAIN:]
        return Trainer(config, new_backbone(), images, *parts, 2, seed=0, cache=caches[depth])

    whole, first, second = create(), create(), create()
    expected = [asdict(whole.run_epoch()), asdict(whole.run_epoch())][-1]
    first.run_epoch()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed = asdict(second.run_epoch())
    times = ("seconds", "images_per_second")
    assert {k: v for k, v in resumed.items() if k not in times} == {
        k: v for k, v in expected.items() if k not in times
    }
    weights = second.model.member_weights()
    for key, value in whole.model.member_weights().items():
        assert torch.equal(weights[key], value), key
    assert (depth == 5) == (not any(key.startswith("stages.") for key in weights))
