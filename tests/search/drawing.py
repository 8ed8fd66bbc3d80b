"""Pictures for tests: each different, none like another, as photos are."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from search.sketch import Sketches


def draw(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Draw soft blobs of colour and some hard shapes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    for _ in range(6):
        x, y = rng.integers(0, width - 30), rng.integers(0, height - 30)
        w, h = rng.integers(8, 30, 2)
        pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda image: as_jpeg(image, 50),
    "resized": lambda image: image.resize((96, 72), Image.Resampling.BICUBIC),
    "cropped": lambda image: image.crop((7, 3, 157, 114)),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darkened": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "turned": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "bordered": lambda image: ImageOps.expand(image, 6, "white"),
    "grey": lambda image: image.convert("L").convert("RGB"),
}
"""What a near-duplicate may have gone through."""


def sketched(images: list[Image.Image]) -> Sketches:
    sketches = Sketches.empty(len(images))
    for row, image in enumerate(images):
        sketches.draw(row, image)
    return sketches


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
