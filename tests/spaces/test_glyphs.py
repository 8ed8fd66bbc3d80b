import numpy as np
import pytest

from spaces.glyphs import (
    CHARACTERS,
    EXTERNAL_FONTS,
    MILD,
    PRETRAINING,
    PRETRAINING_FONTS,
    external_digits,
    render_glyphs,
)


def test_glyphs_depend_on_the_arguments_alone():
    first_images, first_labels = render_glyphs(20, seed=3)
    np.random.default_rng(0).random()
    render_glyphs(5, seed=9)
    images, labels = render_glyphs(20, seed=3)
    np.testing.assert_array_equal(images, first_images)
    np.testing.assert_array_equal(labels, first_labels)


def test_glyphs_differ_between_seeds():
    images, _ = render_glyphs(20, seed=3)
    others, _ = render_glyphs(20, seed=4)
    assert not np.array_equal(images, others)


@pytest.mark.parametrize("image_size", [28, 32])
def test_glyphs_are_grayscale_images_of_the_given_size(image_size):
    images, labels = render_glyphs(300, seed=0, image_size=image_size)
    assert images.shape == (300, image_size, image_size)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.min() >= 0
    assert labels.max() < len(CHARACTERS)
    # Light on black, and something to see in every one.
    assert (images.max(axis=(1, 2)) > 100).all()
    assert (np.median(images, axis=(1, 2)) < 128).mean() > 0.9


def test_labels_index_the_given_characters():
    images, labels = render_glyphs(60, seed=0, characters="O1", variation=MILD)
    widths = (images > 64).any(axis=1).sum(axis=1)
    assert widths[labels == 0].mean() > 1.3 * widths[labels == 1].mean()


def test_glyphs_of_one_character_and_font_differ():
    images, _ = render_glyphs(10, seed=0, characters="7", fonts=["DejaVuSans"])
    assert len(np.unique(images, axis=0)) == 10


def test_external_font_families_are_not_used_in_pretraining():
    assert len(PRETRAINING_FONTS) == 12
    assert not set(EXTERNAL_FONTS) & set(PRETRAINING_FONTS)
    assert all(font.startswith("cm") for font in EXTERNAL_FONTS)
    assert all(font.startswith(("DejaVu", "STIX")) for font in PRETRAINING_FONTS)


@pytest.mark.parametrize("font", [*PRETRAINING_FONTS, *EXTERNAL_FONTS])
def test_every_font_has_every_digit(font):
    # A font that lacks a character draws the same box for all of those.
    images = [
        render_glyphs(1, seed=0, characters=digit, fonts=[font], variation=PRETRAINING)[0]
        for digit in "0123456789"
    ]
    assert len({image.tobytes() for image in images}) == 10


def test_external_digits_contain_each_digit_equally_often_in_each_font():
    images, labels, names = external_digits(seed=0, variants=2)
    assert images.shape == (10 * len(EXTERNAL_FONTS) * 2, 8, 8)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [len(EXTERNAL_FONTS) * 2] * 10
    assert len(set(names)) == len(names) == len(labels)
    assert all(name.startswith(f"{label}-") for name, label in zip(names, labels, strict=True))


def test_external_digits_have_the_levels_and_the_ink_of_scikit_learns_digits():
    from sklearn.datasets import load_digits

    images, _, _ = external_digits()
    levels = np.rint(np.arange(17) * 255 / 16).astype(np.uint8)
    assert set(np.unique(images)) <= set(levels)
    ink = load_digits().images.mean() / 16
    assert images.mean() / 255 == pytest.approx(ink, rel=0.25)


def test_external_digits_depend_on_the_seed():
    np.testing.assert_array_equal(external_digits(1, 1)[0], external_digits(1, 1)[0])
    assert not np.array_equal(external_digits(1, 1)[0], external_digits(2, 1)[0])
