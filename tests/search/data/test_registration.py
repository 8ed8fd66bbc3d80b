import numpy as np
import pytest

from search.data.registration import align, zoom
from tests.fixtures.drawing import draw, make_thumbnails

N = 20


@pytest.fixture(scope="module")
def thumbnails() -> np.ndarray:
    return make_thumbnails([draw(seed) for seed in range(N)]).pixels


def test_equal_images_agree_without_a_map(thumbnails: np.ndarray) -> None:
    aligned = align(thumbnails, thumbnails)
    np.testing.assert_allclose(aligned.detail, 1, atol=1e-3)
    np.testing.assert_allclose(aligned.agreement, 1, atol=1e-3)
    np.testing.assert_allclose(aligned.maps, np.tile(np.eye(3), (N, 1, 1)), atol=1e-3)


def test_the_map_of_a_zoomed_image_is_found(thumbnails: np.ndarray) -> None:
    aligned = align(zoom(thumbnails, 0.9), thumbnails)
    assert (aligned.detail > 0.97).all()
    np.testing.assert_allclose(aligned.maps[:, 0, 0], 0.9, atol=0.01)
    np.testing.assert_allclose(aligned.maps[:, 0, 1:], 0, atol=0.01)


def test_the_map_of_a_shifted_image_is_found(thumbnails: np.ndarray) -> None:
    """Three pixels of 48 are 0.125 of half a side."""
    aligned = align(thumbnails, np.roll(thumbnails, (0, 3), axis=(1, 2)))
    assert (aligned.detail > 0.97).all()
    np.testing.assert_allclose(aligned.maps[:, 0, 2], 0.125, atol=0.01)
    np.testing.assert_allclose(aligned.maps[:, 1, 2], 0, atol=0.01)


def test_brightness_and_contrast_do_not_matter(thumbnails: np.ndarray) -> None:
    paler = np.rint(0.6 * thumbnails.astype(np.float32) + 70).astype(np.uint8)
    aligned = align(thumbnails, paler)
    assert (aligned.detail > 0.99).all()
    assert (aligned.agreement > 0.99).all()


def test_different_images_do_not_agree(thumbnails: np.ndarray) -> None:
    assert (align(thumbnails, np.roll(thumbnails, 1, axis=0)).detail < 0.8).all()


def test_a_map_larger_than_a_slight_change_counts_as_no_agreement(thumbnails: np.ndarray) -> None:
    """At twice the size two images do agree, but that is no near-duplicate."""
    halves = zoom(thumbnails, 0.5)
    assert (align(halves, thumbnails, scale=0.5).detail == 0).all()


def test_the_initial_scale_helps_where_the_change_is_large(thumbnails: np.ndarray) -> None:
    cropped = zoom(thumbnails, 0.7)
    far, near = (align(cropped, thumbnails, scale) for scale in (1.0, 0.7))
    assert (near.detail > 0.95).sum() > (far.detail > 0.95).sum()


def test_pairs_are_independent_of_one_another(thumbnails: np.ndarray) -> None:
    copies = zoom(thumbnails, 0.95)
    together = align(copies, thumbnails)
    for row in (0, N - 1):
        alone = align(copies[row : row + 1], thumbnails[row : row + 1])
        assert alone.detail[0] == pytest.approx(together.detail[row], abs=1e-4)


def test_zoom_enlarges_the_centre() -> None:
    ramp = np.tile(np.arange(48, dtype=np.uint8), (1, 48, 1))  # brightness is x
    zoomed = zoom(ramp, 0.5)
    assert zoomed.shape == (1, 48, 48)
    np.testing.assert_allclose(zoomed[0, 0], 23.5 + (np.arange(48) - 23.5) / 2, atol=1e-4)
    np.testing.assert_allclose(zoom(ramp, 1.0), ramp, atol=1e-4)
