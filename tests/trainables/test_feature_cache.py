import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from trainables.augmentation import augment_and_normalise
from trainables.compute import mixed_precision
from trainables.feature_cache import (
    FeatureCache,
    as_features,
    build_view,
    bytes_per_image,
    view_magnitude,
    views_up_to,
)
from trainables.images import crop_and_normalise
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.weights import PACKAGED, load_weights

CPU = torch.device("cpu")
N_IMAGES = 40  # more than one batch of the build


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    backbone = create_backbone("tinynet", load_weights(PACKAGED["tinynet"]))
    backbone.freeze(5)
    return backbone.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (N_IMAGES, 36, 36, 3)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def through(backbone: Backbone, x: Tensor, stages: int) -> Tensor:
    with torch.no_grad(), mixed_precision(CPU):
        return backbone(x, 0, stages).float()


@pytest.mark.parametrize(
    ("view", "n_views", "magnitude"),
    [(0, 8, 0.0), (7, 8, 1.0), (2, 5, 0.5), (0, 1, 0.0), (1, 2, 1.0)],
)
def test_view_magnitude(view, n_views, magnitude):
    assert view_magnitude(view, n_views) == magnitude


@pytest.mark.parametrize(
    ("augment", "n_views", "count"),
    [(0.0, 8, 1), (0.14, 8, 1), (0.15, 8, 2), (0.5, 5, 3), (0.999, 8, 7), (1.0, 8, 8), (1.0, 1, 1)],
)
def test_views_up_to(augment, n_views, count):
    assert views_up_to(augment, n_views) == count


@pytest.mark.parametrize("n_views", [1, 2, 3, 8, 11, 50])
def test_views_up_to_includes_the_view_of_that_magnitude(n_views):
    counts = [views_up_to(view_magnitude(view, n_views), n_views) for view in range(n_views)]
    assert counts == list(range(1, n_views + 1))


def test_bytes_per_image_match_the_stage_outputs(backbone):
    sizes = bytes_per_image(backbone, 32)
    with torch.no_grad():
        x = torch.zeros(1, 3, 32, 32)
        assert sizes == tuple(backbone(x, 0, b).numel() * 2 for b in range(1, 6))


@pytest.mark.parametrize("magnitude", [0.0, 0.6])
def test_build_view_equals_the_output_of_each_stage(backbone, images, magnitude):
    stages = (1, 3, 4, 5)
    built = build_view(backbone, images, 32, magnitude, True, stages, 7, CPU)
    assert tuple(built) == stages
    generator = torch.Generator().manual_seed(7)
    batches = [
        augment_and_normalise(batch, 32, torch.full((len(batch),), magnitude), True, generator)
        for batch in images.split(32)
    ]
    for stage, bits in built.items():
        assert bits.dtype == np.int16
        features = as_features(bits)
        expected = torch.cat([through(backbone, x, stage) for x in batches])
        if stage < 5:
            features = features.permute(0, 3, 1, 2)
        assert features.shape == expected.shape
        torch.testing.assert_close(features.float(), expected, atol=1e-2, rtol=1e-2)
        assert expected.std() > 0.1, "the tolerance would hide a mistake"


def test_view_0_is_not_augmented_and_others_depend_on_the_seed(backbone, images):
    def built(magnitude: float, seed: int) -> np.ndarray:
        return build_view(backbone, images, 32, magnitude, True, (5,), seed, CPU)[5]

    clean = through(backbone, crop_and_normalise(images, 32), 5)
    torch.testing.assert_close(as_features(built(0.0, 1)).float(), clean, atol=1e-2, rtol=1e-2)
    assert np.array_equal(built(0.0, 1), built(0.0, 2))
    assert np.array_equal(built(0.5, 1), built(0.5, 1))
    assert not np.array_equal(built(0.5, 1), built(0.5, 2))


def test_as_features_does_not_copy():
    values = torch.tensor([[1.0, -2.5], [0.0, 3e38]]).to(torch.bfloat16)
    bits = values.view(torch.int16).numpy().copy()
    features = as_features(bits)
    assert features.dtype == torch.bfloat16
    assert torch.equal(features, values)
    assert features.data_ptr() == bits.__array_interface__["data"][0]
    bits.setflags(write=False)  # like an array from Ray's object store
    assert as_features(bits).data_ptr() == bits.__array_interface__["data"][0]


def numbered_cache(
    n_views: int = 5, n_built: int | None = None, block_size: int = 3
) -> FeatureCache:
    """Build a cache of four images, rows 9, 2, 7 and 4 of a table of ten.

    Each feature is 10 · the image's row + the view.
    """
    rows = torch.tensor([9, 2, 7, 4])
    row_of = torch.full((10,), -1)
    row_of[rows] = torch.arange(4)
    views = tuple(
        (rows * 10 + view).to(torch.bfloat16)[:, None].split(block_size)
        for view in range(n_built or n_views)
    )
    return FeatureCache(views, n_views, row_of, block_size)


@pytest.mark.parametrize("block_size", [1, 3, 4, 128])
def test_clean_returns_view_0_of_the_given_images(block_size):
    clean = numbered_cache(block_size=block_size).clean(torch.tensor([4, 9, 4, 2]))
    assert clean.squeeze(1).tolist() == [40, 90, 40, 20]


@pytest.mark.parametrize("block_size", [1, 3, 4, 128])
def test_draw_returns_views_of_the_given_images(block_size):
    asked = torch.tensor([2, 7, 4, 9, 7] * 20)
    generator = torch.Generator().manual_seed(0)
    drawn = numbered_cache(block_size=block_size).draw(asked, 1.0, generator).squeeze(1)
    assert torch.equal(drawn.long() // 10, asked)
    assert drawn.dtype == torch.bfloat16


@pytest.mark.parametrize(("augment", "n_drawn"), [(0.0, 1), (0.3, 2), (0.5, 3), (1.0, 5)])
def test_draw_is_uniform_over_the_views_up_to_augment(augment, n_drawn):
    asked = torch.tensor([2, 4]).repeat(2000)
    generator = torch.Generator().manual_seed(1)
    views = numbered_cache().draw(asked, augment, generator).squeeze(1).long() % 10
    for image in (2, 4):
        counts = torch.bincount(views[asked == image], minlength=5)
        assert not counts[n_drawn:].any()
        assert counts[:n_drawn].all()
        if n_drawn > 1:
            assert chisquare(counts[:n_drawn].numpy()).pvalue > 0.001


def test_draw_does_not_depend_on_the_blocks():
    asked = torch.tensor([2, 4, 7, 9]).repeat(20)
    first, second = (
        numbered_cache(block_size=size).draw(asked, 1.0, torch.Generator().manual_seed(0))
        for size in (3, 128)
    )
    assert torch.equal(first, second)


def test_draw_depends_on_the_generator_alone():
    asked = torch.tensor([2, 4]).repeat(50)
    first, again, other = (
        numbered_cache().draw(asked, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draw_uses_the_built_views_if_later_ones_are_missing():
    asked = torch.tensor([2] * 500)
    drawn = numbered_cache(n_built=2).draw(asked, 1.0, torch.Generator().manual_seed(0))
    assert set((drawn.squeeze(1).long() % 10).tolist()) == {0, 1}


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_feature_maps_are_returned_in_a_networks_layout(backbone, images, augment):
    built = [build_view(backbone, images, 32, m, False, (2,), 0, CPU)[2] for m in (0.0, 1.0)]
    views = tuple(as_features(bits).split(16) for bits in built)
    cache = FeatureCache(views, 2, torch.arange(N_IMAGES).flip(0), block_size=16)
    rows = torch.tensor([3, 39, 0])
    shape = (3, *backbone.stage_output_shapes(32)[1])
    assert shape[1] > shape[2], "channels and height must differ for this test to see them swapped"
    clean, drawn = cache.clean(rows), cache.draw(rows, augment, torch.Generator().manual_seed(0))
    assert clean.shape == drawn.shape == shape
    assert clean.is_contiguous(memory_format=torch.channels_last)
    assert drawn.is_contiguous(memory_format=torch.channels_last)
    expected = through(backbone, crop_and_normalise(images[39 - rows], 32), 2)
    torch.testing.assert_close(clean.float(), expected, atol=1e-2, rtol=1e-2)
