import numpy as np
import pytest
from PIL import Image

from search.data.thumbnails import SIDE, Thumbnails
from tests.fixtures.drawing import draw, make_thumbnails


@pytest.mark.parametrize(
    ("colour", "luminance"),
    [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((200, 200, 200), 200)],
)
def test_a_thumbnail_is_the_luminance_of_bt_601(colour: tuple[int, int, int], luminance: int):
    thumbnails = make_thumbnails([Image.new("RGB", (130, 70), colour)])
    assert thumbnails.pixels.shape == (1, SIDE, SIDE)
    assert (thumbnails.pixels == luminance).all()
    assert thumbnails.sizes.tolist() == [[130, 70]]
    assert thumbnails.grayscale.tolist() == [len(set(colour)) == 1]


def test_the_whole_image_is_stretched_to_the_square():
    image = Image.new("RGB", (400, 20), "black")
    image.paste("white", (300, 0, 400, 20))
    (pixels,) = make_thumbnails([image]).pixels
    assert pixels[:, : SIDE * 3 // 4 - 1].max() == 0
    assert pixels[:, SIDE * 3 // 4 + 1 :].min() == 255


def test_a_grayscale_image_may_have_noise_and_a_coloured_speck():
    gray = draw(0, 96, 96).convert("L").convert("RGB")
    noisy = np.array(gray)
    noisy[:, :, 0] += np.where(noisy[:, :, 0] < 250, 5, 0).astype(np.uint8)
    specked = gray.copy()
    specked.paste("red", (0, 0, 15, 15))  # 2.4% of the image
    striped = gray.copy()
    striped.paste("red", (0, 0, 96, 10))  # 10%
    thumbnails = make_thumbnails([gray, Image.fromarray(noisy), specked, striped, draw(0)])
    assert thumbnails.grayscale.tolist() == [True, True, True, False, False]


def test_parts_are_put_together_and_taken_out():
    images = [draw(seed, 60 + seed, 50) for seed in range(5)]
    whole = make_thumbnails(images)
    filled = Thumbnails.empty(5)
    filled.put(3, make_thumbnails(images[3:]))
    filled.put(0, make_thumbnails(images[:3]))
    joined = Thumbnails.concatenate([make_thumbnails(images[:1]), make_thumbnails(images[1:])])
    for other in (filled, joined):
        assert len(other) == 5
        for name in ("pixels", "sizes", "grayscale"):
            np.testing.assert_array_equal(getattr(other, name), getattr(whole, name))
    taken = whole.take(np.array([4, 1]))
    assert taken.sizes.tolist() == [[64, 50], [61, 50]]
    np.testing.assert_array_equal(taken.pixels, whole.pixels[[4, 1]])
