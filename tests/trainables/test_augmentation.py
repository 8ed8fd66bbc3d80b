import math

import pytest
import torch
from torch import Tensor

from trainables import augmentation
from trainables.augmentation import augment_pixels, draw_magnitudes
from trainables.images import MEAN, crop_pixels

IMAGE_SIZE = 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 8, side: int = 36, seed: int = 0) -> Tensor:
    """Soft, colourful images: uint8 [n, side, side, 3]."""
    coarse = torch.rand(n, 3, 5, 5, generator=generator(seed)) * 255
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 255)
    return smooth.permute(0, 2, 3, 1).to(torch.uint8)


def augmented(
    decoded: Tensor, magnitude: float, seed: int = 0, flip: bool = True, size: int = IMAGE_SIZE
) -> Tensor:
    magnitudes = torch.full((len(decoded),), magnitude)
    return augment_pixels(decoded, size, magnitudes, flip, generator(seed))


def only_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "MAX_COLOUR_CHANGE", 0.0)
    monkeypatch.setattr(augmentation, "MAX_HUE_TURN", 0.0)
    monkeypatch.setattr(augmentation, "ERASE_PROBABILITY", 0.0)


def only_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    only_geometry(monkeypatch)
    monkeypatch.setattr(augmentation, "MIN_CROP_AREA", 1.0)
    for name in ("LOG_ASPECT", "SHIFT", "LOG_ZOOM", "ROTATION", "SHEAR"):
        monkeypatch.setattr(augmentation, f"MAX_{name}", 0.0)


@pytest.mark.parametrize("side", [32, 36, 37])
def test_magnitude_0_equals_crop_pixels(side):
    decoded = images(side=side)
    out = augmented(decoded, 0.0)
    assert torch.equal(out, crop_pixels(decoded, IMAGE_SIZE))


@pytest.mark.parametrize("magnitude", [0.0, 0.5])
def test_augment_returns_channels_last_and_changes_no_input(magnitude):
    decoded = images(n=3, side=37)
    before = decoded.clone()
    out = augmented(decoded, magnitude)
    assert out.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(decoded, before), "the shared table was written to"


def test_a_tiny_magnitude_changes_almost_nothing():
    decoded = images()
    difference = augmented(decoded, 1e-4, flip=False) - crop_pixels(decoded, IMAGE_SIZE)
    assert 0 < difference.abs().max() < 0.05


def test_augmentation_depends_on_the_generator_alone():
    decoded = images()
    state = torch.get_rng_state()
    first = augmented(decoded, 0.7, seed=3)
    assert torch.equal(first, augmented(decoded, 0.7, seed=3))
    assert not torch.equal(first, augmented(decoded, 0.7, seed=4))
    assert torch.equal(torch.get_rng_state(), state), "the global random state was used"


def test_images_of_a_batch_are_augmented_independently():
    out = augmented(images(n=1).expand(4, -1, -1, -1), 0.7)
    assert all(not torch.equal(out[0], other) for other in out[1:])


def test_the_change_increases_with_the_magnitude():
    decoded = images(n=64)
    clean = crop_pixels(decoded, IMAGE_SIZE)
    changes = [
        float((augmented(decoded, m, flip=False) - clean).abs().mean())
        for m in (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
    ]
    assert changes == sorted(changes)
    assert changes[-1] > 5 * changes[0]


def test_magnitudes_apply_per_image():
    decoded = images()
    magnitudes = torch.tensor([1e-6, 1.0] * 4)
    out = augment_pixels(decoded, IMAGE_SIZE, magnitudes, False, generator())
    change = (out - crop_pixels(decoded, IMAGE_SIZE)).abs().mean(dim=(1, 2, 3))
    assert (change[0::2] < 1e-3).all()
    assert (change[1::2] > 0.05).all()


def test_pixels_stay_in_their_range():
    decoded = torch.randint(0, 256, (64, 36, 36, 3), generator=generator(1), dtype=torch.uint8)
    decoded[0], decoded[1] = 0, 255
    out = augmented(decoded, 1.0)
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1


def mirrored(out: Tensor) -> Tensor:
    """Return which images of `bright_on_the_right` are mirrored."""
    half = IMAGE_SIZE // 2
    return out[..., :half].mean(dim=(1, 2, 3)) > out[..., half:].mean(dim=(1, 2, 3))


def bright_on_the_right(n: int) -> Tensor:
    decoded = torch.zeros(n, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    decoded[:, :, IMAGE_SIZE // 2 :] = 255
    return decoded


@pytest.mark.parametrize("magnitude", [0.1, 0.5])
def test_no_image_is_mirrored_without_flip(magnitude):
    out = augmented(bright_on_the_right(512), magnitude, flip=False)
    assert not mirrored(out).any()


@pytest.mark.parametrize(("magnitude", "fraction"), [(0.1, 0.2), (0.25, 0.5), (1.0, 0.5)])
def test_images_are_mirrored_with_the_documented_probability(monkeypatch, magnitude, fraction):
    only_flips(monkeypatch)
    decoded = bright_on_the_right(2048)
    out = augmented(decoded, magnitude)
    assert float(mirrored(out).float().mean()) == pytest.approx(fraction, abs=0.04)
    clean = crop_pixels(decoded, IMAGE_SIZE)
    expected = torch.where(mirrored(out)[:, None, None, None], clean.flip(3), clean)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_geometric_operations_keep_a_uniform_colour(monkeypatch):
    only_geometry(monkeypatch)
    decoded = torch.tensor([200, 90, 30], dtype=torch.uint8).expand(16, 36, 36, 3)
    out = augmented(decoded, 1.0)
    torch.testing.assert_close(out, crop_pixels(decoded, IMAGE_SIZE), atol=1e-4, rtol=0)


@pytest.mark.parametrize("degrees", [-36.0, 0.0, 20.0, 120.0])
def test_hue_rotations_are_around_the_gray_axis(degrees):
    (matrix,) = augmentation.hue_rotations(torch.tensor([math.radians(degrees)]))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), atol=1e-6, rtol=0)
    assert float(torch.linalg.det(matrix)) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(matrix @ torch.ones(3), torch.ones(3), atol=1e-6, rtol=0)
    assert float(matrix.trace()) == pytest.approx(1 + 2 * math.cos(math.radians(degrees)), abs=1e-5)


def test_a_third_of_a_turn_maps_red_to_green():
    (matrix,) = augmentation.hue_rotations(torch.tensor([2 * math.pi / 3]))
    green = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(matrix @ torch.tensor([1.0, 0.0, 0.0]), green, atol=1e-6, rtol=0)


def recoloured(
    colour: Tensor,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    turn: float = 0.0,
) -> Tensor:
    """Change the colours of an image whose upper half has one colour and whose lower is black.

    Args:
        colour: float [3] in [0, 255].

    Returns:
        [3, 2, 2] in [0, 255].
    """
    image = torch.zeros(1, 3, 2, 2)
    image[0, :, 0] = colour[:, None]
    changes = (torch.tensor([change]) for change in (brightness, contrast, saturation, turn))
    out = augmentation.change_colours(image, *changes)
    return out[0] * 255


def test_colour_changes():
    colour = torch.tensor([200.0, 100.0, 40.0])
    luma = float(colour @ torch.tensor(augmentation.LUMA))
    assert sum(augmentation.LUMA) == pytest.approx(1.0)
    unchanged = recoloured(colour)
    torch.testing.assert_close(unchanged[:, 0, 0], colour, atol=1e-3, rtol=0)
    darker = recoloured(colour, brightness=0.5)
    torch.testing.assert_close(darker[:, 0, 0], colour / 2, atol=1e-3, rtol=0)
    flat = recoloured(colour, contrast=0.0)
    torch.testing.assert_close(flat, torch.full((3, 2, 2), luma / 2), atol=1e-3, rtol=0)
    gray = recoloured(colour, saturation=0.0)
    torch.testing.assert_close(gray[:, 0, 0], torch.full((3,), luma), atol=1e-3, rtol=0)
    turned = recoloured(colour, turn=2 * math.pi / 3)
    torch.testing.assert_close(turned[:, 0, 0], colour.roll(1), atol=1e-3, rtol=0)
    both = recoloured(colour, brightness=0.5, contrast=0.0)
    torch.testing.assert_close(both, torch.full((3, 2, 2), luma / 4), atol=1e-3, rtol=0)
    for out in (unchanged, darker, gray, turned):
        torch.testing.assert_close(out[:, 1], torch.zeros(3, 2), atol=1e-3, rtol=0)
    too_bright = recoloured(colour, brightness=1.5)
    torch.testing.assert_close(
        too_bright[:, 0, 0], torch.tensor([255.0, 150.0, 60.0]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("magnitude", [0.5, 1.0])
def test_erase_has_the_documented_probability_and_area(magnitude):
    pixels = augmentation.erase(
        torch.ones(1024, 3, 64, 64), torch.full((1024,), magnitude), generator()
    )
    is_mean = pixels == torch.tensor(MEAN).view(3, 1, 1)
    assert ((pixels == 1) | is_mean).all()
    assert (is_mean == is_mean[:, :1]).all(), "a hole goes through all channels"
    hidden = is_mean[:, 0].float().mean(dim=(1, 2))
    fraction = float((hidden > 0).float().mean())
    assert fraction == pytest.approx(augmentation.ERASE_PROBABILITY * magnitude, abs=0.05)
    largest = augmentation.MAX_ERASED_AREA * magnitude
    assert 0.8 * largest < float(hidden.max()) <= largest + 0.02
    untouched = augmentation.erase(torch.ones(64, 3, 32, 32), torch.zeros(64), generator())
    assert (untouched == 1).all()


def test_draw_magnitudes_is_uniform():
    drawn = draw_magnitudes(20_000, 0.6, generator())
    assert 0 <= float(drawn.min()) < 0.001
    assert 0.599 < float(drawn.max()) < 0.6
    counts = torch.histc(drawn, bins=10, min=0, max=0.6)
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 27.9, "9 degrees of freedom: exceeded once in a thousand"
    assert torch.equal(drawn, draw_magnitudes(20_000, 0.6, generator()))
    assert not draw_magnitudes(10, 0.0, generator()).any()
