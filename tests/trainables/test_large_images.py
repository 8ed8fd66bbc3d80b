"""Images of extreme shape and depth take memory by their pixels, and no more."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.images import MAX_SIDE, ImageError, pixel_limit, read_image, to_square
from trainables.levels import Levels

ROOT = Path(__file__).parents[2]
SIDE = 4000
MAX_BYTES_PER_PIXEL = 16

MEASURED = """
import resource, sys
from trainables.images import read_image
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
read_image(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.parametrize("mode", ["I;16", "F", "RGBA"])
def test_an_image_takes_few_bytes_a_pixel(tmp_path: Path, mode: str) -> None:
    """With copies in 64 bits a 16-bit one took 26."""
    path = tmp_path / "image.tif"
    Image.new(mode, (SIDE, SIDE), (1, 2, 3, 4) if mode == "RGBA" else 1).save(
        path, compression="tiff_lzw"
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) / SIDE**2 < MAX_BYTES_PER_PIXEL


@pytest.mark.parametrize("size", [(MAX_SIDE, 3), (3, MAX_SIDE), (1, 1)])
@pytest.mark.parametrize("resize_mode", ["pad", "crop"])
def test_the_longest_images_are_read(size: tuple[int, int], resize_mode: str) -> None:
    file = io.BytesIO()
    Image.new("L", size, 200).save(file, "PNG")
    square = to_square(read_image(file), 36, 32, resize_mode)  # type: ignore[arg-type]
    assert square.shape == (36, 36, 3)
    assert np.all(square == 200)


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_longer_images_are_refused(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    with pytest.raises(ImageError, match="has a side of 65,536 pixels, and 65,535 are the most"):
        read_image(file)


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed in blocks of rows equals what is computed at once."""
    generator = np.random.default_rng(0)
    deep = Image.fromarray(generator.integers(0, 4096, (70, 50), np.uint16))
    clear = Image.fromarray(generator.integers(0, 256, (70, 50, 4), np.uint8), "RGBA")
    levels = Levels(integers=(0.0, 4095.0))
    results = []
    for pixels in (2**20, 7 * 50):
        monkeypatch.setattr("trainables.levels._BLOCK_PIXELS", pixels)
        results.append([np.asarray(read_image(encoded(one), levels)) for one in (deep, clear)])
    for whole, joined in zip(*results, strict=True):
        assert np.array_equal(whole, joined)


def encoded(image: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pixel_limit_can_be_raised_and_holds_within_its_block() -> None:
    def read() -> tuple[int, int]:
        return read_image(encoded(Image.new("1", (1500, 1000)))).size

    with pixel_limit(1):
        with pytest.raises(ImageError, match=r"1,500,000, and 1,000,000 are the most \(--max-meg"):
            read()
        with pixel_limit(2), pixel_limit(None):
            assert read() == (1500, 1000)
        with pytest.raises(ImageError, match="has too many pixels"):
            read()
    assert read() == (1500, 1000)
    assert Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3, "Pillow's own, which --help names"
