import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from trainables.augmentation import augment_pixels
from trainables.compute import mixed_precision
from trainables.feature_cache import (
    FeatureCache,
    as_features,
    build_view,
    bytes_per_image,
    count_views,
    view_magnitude,
    view_probabilities,
)
from trainables.images import crop_pixels
from trainables.models.backbones import Backbone, create_backbone
from trainables.pretrained.weights import PACKAGED, load_weights

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
    [
        *((0, 8, 0.0), (1, 8, 1 / 49), (2, 8, 4 / 49), (5, 8, 25 / 49), (7, 8, 1.0)),
        *((0, 1, 0.0), (1, 2, 1.0), (1, 3, 1 / 49), (2, 3, 1.0), (1, 4, 1 / 49), (3, 4, 1.0)),
        *((1, 16, 1 / 225), (15, 16, 1.0)),
    ],
)
def test_view_magnitude(view, n_views, magnitude):
    assert view_magnitude(view, n_views) == pytest.approx(magnitude, rel=1e-12)


@pytest.mark.parametrize("n_views", [2, 3, 4, 7, 8, 50, 256])
def test_magnitudes_ascend_from_0_to_1_and_the_first_is_small(n_views):
    magnitudes = [view_magnitude(view, n_views) for view in range(n_views)]
    assert magnitudes == sorted(set(magnitudes))
    assert (magnitudes[0], magnitudes[-1]) == (0, 1)
    assert n_views == 2 or magnitudes[1] <= 1 / 49 + 1e-12


STRENGTHS = (0.05, 0.1, 0.2, 0.28, 0.5, 1.0)


@pytest.mark.parametrize("n_views", [3, 4, 8, 16])
@pytest.mark.parametrize("augment", STRENGTHS)
def test_probabilities_have_the_mean_of_the_augmentation_and_no_clean_view(augment, n_views):
    probabilities = view_probabilities(augment, n_views)
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities[0] == 0
    magnitudes = [view_magnitude(view, n_views) for view in range(len(probabilities))]
    assert np.dot(probabilities, magnitudes) == pytest.approx(augment / 2, abs=0.01)
    assert magnitudes[-2] < augment <= magnitudes[-1], "no view above the neighbour of `augment`"


@pytest.mark.parametrize("augment", STRENGTHS)
def test_two_views_keep_the_mean_by_clean_ones(augment):
    assert view_probabilities(augment, 2) == pytest.approx((1 - augment / 2, augment / 2))


@pytest.mark.parametrize(("augment", "n_views"), [(0.0, 8), (0.0, 2), (0.7, 1)])
def test_only_the_clean_view_is_drawn_without_augmentation(augment, n_views):
    assert view_probabilities(augment, n_views) == (1.0,)


@pytest.mark.parametrize("n_views", [3, 4, 8])
def test_probabilities_are_those_of_interpolated_magnitudes(n_views):
    """Draw m and choose between its neighbours, as the docstring says, instead of integrating."""
    rng, n = np.random.default_rng(0), 40_000
    magnitudes = np.array([view_magnitude(view, n_views) for view in range(n_views)])
    m = rng.random(n) * 0.6
    upper = np.searchsorted(magnitudes, m).clip(1)
    nearness = (m - magnitudes[upper - 1]) / (magnitudes[upper] - magnitudes[upper - 1])
    view = np.where(rng.random(n) < nearness, upper, upper - 1).clip(1)
    probabilities = np.array(view_probabilities(0.6, n_views))
    counts = np.bincount(view, minlength=len(probabilities))
    assert chisquare(counts[1:], n * probabilities[1:]).pvalue > 0.001


@pytest.mark.parametrize(
    ("augment", "n_views", "count"),
    [
        *((0.0, 8, 1), (0.01, 8, 2), (0.05, 8, 3), (0.3, 8, 5), (0.6, 8, 7), (1.0, 8, 8)),
        *((1.0, 1, 1), (0.01, 2, 2), (0.02, 3, 2), (0.3, 3, 3)),
    ],
)
def test_count_views(augment, n_views, count):
    assert count_views(augment, n_views) == count


@pytest.mark.parametrize("n_views", [2, 3, 8, 11, 50])
def test_the_view_of_the_strength_itself_is_the_last(n_views):
    counts = [count_views(view_magnitude(view, n_views), n_views) for view in range(n_views)]
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
        augment_pixels(batch, 32, torch.full((len(batch),), magnitude), True, generator)
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

    clean = through(backbone, crop_pixels(images, 32), 5)
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


@pytest.mark.parametrize("augment", [0.0, 0.03, 0.3, 1.0])
def test_draw_has_the_probabilities_of_the_views(augment):
    asked = torch.tensor([2, 4]).repeat(2000)
    generator = torch.Generator().manual_seed(1)
    views = numbered_cache().draw(asked, augment, generator).squeeze(1).long() % 10
    probabilities = np.array(view_probabilities(augment, 5))
    drawn = probabilities > 0
    for image in (2, 4):
        counts = np.bincount(views[asked == image], minlength=len(probabilities))
        assert len(counts) == len(probabilities)
        assert not counts[~drawn].any()
        if drawn.sum() > 1:
            assert chisquare(counts[drawn], 2000 * probabilities[drawn]).pvalue > 0.001


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


def test_draw_raises_where_views_are_missing():
    cache, generator = numbered_cache(n_built=2), torch.Generator()
    drawn = cache.draw(torch.tensor([2] * 9), 0.02, generator)
    assert set(drawn.flatten().tolist()) == {21}
    with pytest.raises(ValueError, match=r"augment=1\.0 needs 5 views, but got 2"):
        cache.draw(torch.tensor([2]), 1.0, generator)


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
    expected = through(backbone, crop_pixels(images[39 - rows], 32), 2)
    torch.testing.assert_close(clean.float(), expected, atol=1e-2, rtol=1e-2)
