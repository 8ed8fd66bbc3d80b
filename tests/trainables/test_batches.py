"""Batches from a feature cache and from images: the same augmentation under one strength."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainables import batches, feature_cache
from trainables.augmentation import augment_pixels
from trainables.batches import CachedBatches, ImageBatches, ImageSet
from trainables.feature_cache import FeatureCache, as_features, build_view, view_magnitude
from trainables.images import crop_pixels
from trainables.models.backbones import Backbone, create_backbone
from trainables.pretrained.weights import PACKAGED, load_weights

CPU = torch.device("cpu")
N_IMAGES, SIDE, N_VIEWS = 72, 32, 8
STRENGTHS = (0.05, 0.1, 0.2, 0.28, 0.5, 1.0)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Soft, colourful images."""
    coarse = torch.rand(N_IMAGES, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 255
    soft = torch.nn.functional.interpolate(coarse, 36, mode="bicubic").clamp(0, 255)
    table = soft.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    return ImageSet(table, torch.zeros(N_IMAGES, dtype=torch.long), 1, SIDE, flip=True)


def frozen(depth: int) -> Backbone:
    backbone = create_backbone("tinynet", load_weights(PACKAGED["tinynet"]))
    backbone.freeze(depth)
    return backbone.to(memory_format=torch.channels_last).eval()


class Recorder:
    """Augments images, and records the magnitudes; checks that those of 0 change nothing."""

    def __init__(self) -> None:
        self.magnitudes = torch.empty(0)

    def __call__(
        self, images: Tensor, size: int, magnitudes: Tensor, flip: bool, generator: torch.Generator
    ) -> Tensor:
        pixels = augment_pixels(images, size, magnitudes, flip, generator)
        clean = (pixels == crop_pixels(images, size)).flatten(1).all(1)
        assert torch.equal(clean, magnitudes == 0)
        self.magnitudes = torch.cat([self.magnitudes, magnitudes])
        return pixels


@pytest.fixture(scope="module")
def cache(images: ImageSet) -> tuple[FeatureCache, Tensor]:
    """All views at depth 5, and the magnitude at which each was augmented: [V, N]."""
    backbone, views, magnitudes = frozen(5), [], []
    with pytest.MonkeyPatch.context() as patch:
        for view in range(N_VIEWS):
            recorder = Recorder()
            patch.setattr(feature_cache, "augment_pixels", recorder)
            magnitude = view_magnitude(view, N_VIEWS)
            built = build_view(backbone, images.table, SIDE, magnitude, True, (5,), view, CPU)[5]
            views.append(as_features(built).split(50))
            magnitudes.append(recorder.magnitudes)
    rows = torch.arange(N_IMAGES)
    return FeatureCache(tuple(views), N_VIEWS, rows, block_size=50), torch.stack(magnitudes)


def drawn_from_the_cache(
    cache: tuple[FeatureCache, Tensor], augment: float, rows: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the magnitudes of the views that a training is given, found by their features."""
    features = CachedBatches(cache[0], augment).train(rows, generator)
    views = torch.stack([torch.cat(blocks) for blocks in cache[0].views])  # [V, N, d]
    is_view = (features == views[:, rows]).all(2)
    assert (is_view.sum(0) == 1).all(), "an input is none of its image's views"
    return cache[1][is_view.int().argmax(0), rows]


def drawn_without_a_cache(
    images: ImageSet, augment: float, rows: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the magnitudes at which a training without frozen stages augments images."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "augment_pixels", recorder)
        ImageBatches(images, frozen(0), augment).train(rows, generator)
    return recorder.magnitudes


@pytest.mark.parametrize("augment", STRENGTHS)
def test_cached_and_new_augmentations_have_one_mean_and_leave_no_image_clean(
    images: ImageSet, cache: tuple[FeatureCache, Tensor], augment: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(N_IMAGES).repeat(200)
    depth_5 = drawn_from_the_cache(cache, augment, rows, generator)
    depth_0 = drawn_without_a_cache(images, augment, rows[:4000], generator)
    for magnitudes in (depth_5, depth_0):
        assert float(magnitudes.mean()) == pytest.approx(augment / 2, abs=0.01)
        assert float((magnitudes == 0).float().mean()) == 0
    assert float(depth_0.max()) <= augment


def test_without_augmentation_and_in_validation_all_views_are_clean(
    images: ImageSet, cache: tuple[FeatureCache, Tensor]
) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(N_IMAGES).repeat(20)
    assert not drawn_from_the_cache(cache, 0.0, rows, generator).any()
    assert not drawn_without_a_cache(images, 0.0, rows, generator).any()
    clean = torch.cat(cache[0].views[0])[rows]
    assert torch.equal(CachedBatches(cache[0], 1.0).clean(rows), clean)


@pytest.mark.parametrize("augment", [0.1, 0.28, 1.0])
def test_cached_and_computed_features_are_equally_far_from_the_clean_ones(
    images: ImageSet, cache: tuple[FeatureCache, Tensor], augment: float
) -> None:
    """The whole way, with all of the augmentation's operations and the network."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.arange(N_IMAGES).repeat(20)
    clean = cache[0].clean(rows).float()
    cached, computed = (
        float((source.train(rows, generator).float() - clean).norm(dim=1).mean())
        for source in (CachedBatches(cache[0], augment), ImageBatches(images, frozen(5), augment))
    )
    assert cached == pytest.approx(computed, rel=0.15)


@pytest.mark.parametrize("depth", [3, 5])
def test_cached_and_computed_batches_are_equal_without_augmentation(
    images: ImageSet, depth: int
) -> None:
    generator, backbone = torch.Generator().manual_seed(0), frozen(depth)
    built = build_view(backbone, images.table, SIDE, 0.0, True, (depth,), 0, CPU)[depth]
    blocks = as_features(built).split(50)
    cache = FeatureCache((blocks,), 1, torch.arange(N_IMAGES), block_size=50)
    cached, computed = CachedBatches(cache, 0.0), ImageBatches(images, backbone, 0.0)
    rows = torch.arange(N_IMAGES)
    clean = cached.clean(rows).float()
    assert clean.std() > 0.1, "the tolerance would hide a mistake"
    torch.testing.assert_close(computed.clean(rows).float(), clean, atol=1e-2, rtol=2e-2)
    trained = computed.train(rows, generator).float()
    torch.testing.assert_close(trained, clean, atol=1e-2, rtol=2e-2)
    torch.testing.assert_close(cached.train(rows, generator).float(), clean)
