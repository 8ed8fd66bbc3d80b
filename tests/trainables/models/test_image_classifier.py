"""The module that other programs take: any image in, probabilities out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spaces.rules import ResizeMode
from tests.trainables.models.test_ensemble import CARD, ensemble
from trainables.images import ImageError, crop_pixels
from trainables.models.ensemble import mean_probabilities
from trainables.models.image_classifier import ImageClassifier, resize_to_square
from trainables.models.model_card import ModelCard


def photo(height: int, width: int) -> np.ndarray:
    """Return a smooth image, uint8 [height, width, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 255 * rows / height, 255 * columns / width
    blue = 127 * (1 + np.sin(rows / 9) * np.cos(columns / 7))
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    return ImageClassifier(ensemble())


def test_probabilities_are_those_of_the_predictor(model: ImageClassifier) -> None:
    images = [photo(50, 80), photo(80, 50), photo(40, 40)]
    whole = ensemble()
    squares = np.stack([CARD.to_square(Image.fromarray(image)) for image in images])
    logits, _ = whole.predict_with_ood(torch.from_numpy(squares))
    expected = mean_probabilities(logits, CARD.temperature)
    with torch.no_grad():
        predicted = torch.cat([model(as_tensor(image)) for image in images])
    torch.testing.assert_close(predicted, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(predicted.sum(1), torch.ones(3))
    assert model.classes == CARD.classes


def test_uint8_and_floats_are_the_same_image(model: ImageClassifier) -> None:
    batch = torch.stack([as_tensor(photo(32, 32)), as_tensor(photo(32, 32)).flip(2)])
    with torch.no_grad():
        whole, fraction = model(batch), model(batch / 255)
    torch.testing.assert_close(whole, fraction)
    assert whole.shape == (2, 3)
    assert whole.dtype == torch.float32


def test_gradients_reach_the_image(model: ImageClassifier) -> None:
    image = (as_tensor(photo(48, 64)) / 255).requires_grad_()
    model(image)[0, 1].backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(60, 40), (33, 100), (100, 21), (32, 32), (7, 9)])
def test_squares_are_those_of_pillow(mode: ResizeMode, height: int, width: int) -> None:
    card = replace(CARD, resize_mode=mode)
    image = photo(height, width)
    if (height, width) == (32, 32):
        card = replace(card, cache_size=32)  # an image of the backbone's size is taken as it is
    square = torch.from_numpy(card.to_square(Image.fromarray(image)).copy())[None]
    expected = crop_pixels(square, card.image_size)
    resized = resize_to_square(as_tensor(image)[None].float(), card)
    got = crop_pixels(resized.permute(0, 2, 3, 1), card.image_size)
    assert got.shape == expected.shape
    # Two levels of 255, in units of the normalised pixels.
    torch.testing.assert_close(got, expected, atol=2 / (255 * 0.22), rtol=0)


def test_a_strip_takes_little_memory() -> None:
    card = ModelCard(**{**vars(CARD), "resize_mode": "crop"})
    assert resize_to_square(torch.zeros(1, 3, 2, 20_000), card).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(32, 32, 3), r"are of \[32, 32, 3\]; permute puts channels first"),
        (torch.zeros(2, 1, 32, 32), r"must be of shape \[N, 3, H, W\] or \[3, H, W\]"),
        (torch.zeros(3, 0, 5), r"are of \[3, 0, 5\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"are of torch.int64"),
        (np.zeros((3, 8, 8)), r"must be a tensor, but are of ndarray"),
    ],
)
def test_other_tensors_are_refused(model: ImageClassifier, images: Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        model(images)
