from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.deep_images import deep_png, tiff
from trainables.image_inputs import decode_input
from trainables.images import measure_image, read_image
from trainables.levels import DEFAULT_LEVELS, Extremes, Levels, set_levels

RAMP = np.tile(np.linspace(0, 1, 33), (3, 1))


def read(content: bytes, levels: Levels = DEFAULT_LEVELS) -> np.ndarray:
    return np.asarray(read_image(BytesIO(content), levels))


def levels_of(content: bytes) -> Levels:
    """Black and white of a set of one image."""
    extremes = measure_image(BytesIO(content))[1]
    assert extremes is not None
    return set_levels([extremes])


def colours(values: np.ndarray, n: int) -> np.ndarray:
    """Channels of one image, each different; the fourth is as white as it gets."""
    bands = [
        values,
        values[:, ::-1],
        values[:, ::2].repeat(2, 1)[:, :33],
        values * 0 + values.max(),
    ]
    return np.stack(bands[:n], 2)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("write", ["png", "tiff", "libtiff"])
@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_images_of_every_depth_are_as_bright_as_with_8_bits(
    bits: int, write: str, n_channels: int
) -> None:
    values = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    array = values if n_channels == 1 else colours(values, n_channels)
    content = deep_png(array) if write == "png" else tiff(array, compressed=write == "libtiff")
    plain = np.rint(RAMP * 255).astype(np.uint8)
    expected = colours(plain, 3) if n_channels > 1 else np.repeat(plain[:, :, None], 3, 2)
    levels = levels_of(content)
    assert levels.integers == (0, 2**bits - 1)
    assert np.abs(read(content, levels).astype(int) - expected).max() <= 1


def test_gray_with_alpha_of_12_bits_is_blended_with_white() -> None:
    values = np.rint(RAMP * 4095).astype(np.uint16)
    content = deep_png(np.stack([values, values * 0], 2))
    assert (read(content, levels_of(content)) == 255).all()
    content = deep_png(np.stack([values, values * 0 + 4095], 2))
    assert np.abs(read(content, levels_of(content))[:, :, 0] - RAMP * 255).max() <= 1


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ((RAMP * (2**32 - 1)).astype(np.uint32), {}, RAMP),
        ((RAMP * 4095).astype(np.uint16), {"white_is_zero": True}, 1 - RAMP),
        ((RAMP * 65535).astype(np.uint16), {"white_is_zero": True}, 1 - RAMP),
        ((RAMP * 4095 - 1000).astype(np.int16), {}, RAMP),
        (RAMP.astype(np.float32), {}, RAMP),
        ((RAMP * 255).astype(np.float32), {}, RAMP),
        ((RAMP * 3000).astype(np.float32), {}, RAMP),
        ((RAMP * 0.01).astype(np.float32), {}, RAMP),
        ((RAMP * 40 - 20).astype(np.float32), {}, RAMP),
        ((RAMP * 30 + 280).astype(np.float32), {}, RAMP),
    ],
)
def test_levels_mean_what_their_type_says(
    values: np.ndarray, options: dict[str, bool], expected: np.ndarray, compressed: bool
) -> None:
    content = tiff(values, compressed=compressed, **options)
    gray = read(content, levels_of(content))[:, :, 0]
    assert np.abs(gray - expected * 255).max() <= 1.01


@pytest.mark.parametrize("missing", [-9999, -32768, np.nan, np.inf, -3.4e38, 12345])
def test_missing_values_are_black_and_no_levels(missing: float) -> None:
    values = (0.25 + 0.5 * RAMP).astype(np.float32)
    values[0] = missing
    content = tiff(values, no_data="12345")
    assert levels_of(content).floats == (0, 1)
    gray = read(content, levels_of(content))[:, :, 0]
    assert (gray[0] == 0).all()
    assert gray[1, -1] == round(0.75 * 255)
    assert read(tiff(np.full((2, 2), -9999, np.float32))).max() == 0


@pytest.mark.parametrize(
    ("extra_samples", "is_alpha"), [(None, False), (0, False), (1, True), (2, True)]
)
def test_a_fourth_band_is_alpha_where_the_file_says_so(
    extra_samples: int | None, is_alpha: bool
) -> None:
    """As near infrared of a satellite, its low values are no transparency."""
    values = np.full((2, 2, 4), 8, np.uint8)
    pixel = read(tiff(values, extra_samples=extra_samples))[0, 0]
    assert (pixel > 240).all() if is_alpha else (pixel == 8).all()
    deep = read(tiff(values.astype(np.uint16) * 257, extra_samples=extra_samples))[0, 0]
    assert (deep == pixel).all()


def test_white_is_the_one_of_the_whole_set() -> None:
    dark, light = Extremes(3, 200, False), Extremes(0, 3500, False)
    assert set_levels([dark]).integers == (0, 255)
    assert set_levels([dark, light]).integers == set_levels([light]).integers == (0, 4095)
    assert set_levels([Extremes(7000, 9000, False)]).integers == (0, 16383)
    assert set_levels([Extremes(9000, 12000, False)]).integers == (9000, 16383)
    mixed = set_levels([light, Extremes(0, 0.9, True)])
    assert mixed == Levels((0, 4095), (0, 1))
    assert set_levels([]) == DEFAULT_LEVELS


def test_an_image_that_is_loaded_already_keeps_what_there_is() -> None:
    values = np.rint(RAMP * 4095).astype(np.uint16)
    image = Image.open(BytesIO(deep_png(colours(values, 3))))
    image.load()
    assert np.asarray(image).max() == 15
    unloaded = Image.open(BytesIO(deep_png(colours(values, 3))))
    levels = Levels(integers=(0, 4095))
    assert np.asarray(decode_input(unloaded, levels=levels)).max() == 255
    assert np.asarray(decode_input(image, levels=levels)).max() == 15
