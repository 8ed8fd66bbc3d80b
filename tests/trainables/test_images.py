import pickle
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from trainables.image_formats import IMAGE_SUFFIXES
from trainables.images import (
    ImageError,
    as_tensor,
    crop_pixels,
    evaluation_crop,
    measure_image,
    read_image,
    to_square,
)
from trainables.levels import set_levels

ONE_LEVEL = 1.001 / 255


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def smooth(width: int = 40, height: int = 30) -> Image.Image:
    """An image that compression hardly changes, and with no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (255 * x / width, 255 * y / height, 255 * x * y / (width * height))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def ours(image: Image.Image, cache_size: int, image_size: int) -> torch.Tensor:
    decoded = torch.from_numpy(to_square(image, cache_size, image_size).copy())[None]
    return crop_pixels(decoded, image_size)[0]


def torchvisions(image: Image.Image, cache_size: int, image_size: int) -> torch.Tensor:
    pixels: torch.Tensor = transforms.Compose(
        [
            transforms.Resize(cache_size),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
        ]
    )(image)
    return pixels


# --- the evaluation pixels ---------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(256, 224), (255, 224), (37, 32), (33, 32), (36, 31), (32, 32)])
@pytest.mark.parametrize(
    "shape",
    [
        *((300, 223), (223, 300), (256, 256), (257, 256), (255, 258), (500, 333)),
        *((1, 1), (7, 5), (5, 8), (640, 11), (11, 640)),
    ],
)
def test_evaluation_pixels_are_torchvisions(shape: tuple[int, int], sizes: tuple[int, int]) -> None:
    image = noise(*shape)
    torch.testing.assert_close(ours(image, *sizes), torchvisions(image, *sizes), rtol=0, atol=2e-6)


def test_evaluation_pixels_are_torchvisions_at_random_sizes() -> None:
    rng = np.random.default_rng(7)
    for seed in range(300):
        width, height = (int(n) for n in rng.integers(1, 90, 2))
        cache_size = int(rng.integers(1, 60))
        sizes = cache_size, int(rng.integers(1, cache_size + 1))
        image = noise(width, height, seed)
        torch.testing.assert_close(
            ours(image, *sizes),
            torchvisions(image, *sizes),
            rtol=0,
            atol=ONE_LEVEL if max(width, height) > 64 * min(width, height) else 2e-6,
            msg=f"{width} × {height} at {sizes}",
        )


def test_default_crop_is_exact_at_the_default_resize_size() -> None:
    for image_size in range(16, 120):
        cache_size = round(image_size / 0.875)
        image = noise(cache_size + 3, cache_size)
        square = to_square(image, cache_size)
        np.testing.assert_array_equal(square, to_square(image, cache_size, image_size))


@pytest.mark.parametrize("shape", [(1000, 3), (3, 1000)])
def test_extreme_aspect_ratios_differ_by_one_level_at_most(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    torch.testing.assert_close(
        ours(image, 64, 56), torchvisions(image, 64, 56), rtol=0, atol=ONE_LEVEL
    )


def test_one_pixel_by_twenty_thousand_takes_no_gigabytes() -> None:
    # Resized before the crop, this would be an image of 256 × 5,120,000.
    column = np.repeat(np.arange(20_000, dtype=np.uint32)[:, None, None] // 80, 3, axis=2)
    decoded = to_square(Image.fromarray(column.astype(np.uint8)), 256)
    assert decoded.shape == (256, 256, 3)
    assert abs(int(decoded.mean()) - 125) <= 1


def test_evaluation_pixels_of_real_images(shared_data: Path) -> None:
    paths = sorted(p for p in shared_data.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    assert len(paths) > 2000
    for path in paths[::150]:
        image = read_image(path)
        torch.testing.assert_close(
            ours(image, 256, 224), torchvisions(image, 256, 224), rtol=0, atol=2e-6
        )


def test_to_square_returns_a_square_of_uint8() -> None:
    decoded = to_square(noise(50, 40), 32)
    assert decoded.shape == (32, 32, 3)
    assert decoded.dtype == np.uint8


def test_crop_pixels_returns_channels_last() -> None:
    images = torch.randint(0, 256, (4, 37, 37, 3), dtype=torch.uint8)
    x = crop_pixels(images, 32)
    assert x.shape == (4, 3, 32, 32)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal((x * 255).round().permute(0, 2, 3, 1), evaluation_crop(images, 32).float())


def test_crop_pixels_changes_no_image_and_accepts_an_empty_batch() -> None:
    images = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    crop_pixels(images, 8)
    assert (images == 100).all()
    assert crop_pixels(images[:0], 6).shape == (0, 3, 6, 6)


def test_crop_pixels_raises_if_the_crop_is_too_large() -> None:
    with pytest.raises(ValueError, match=r"^1 <= image_size <= 8 must hold, but got 9$"):
        crop_pixels(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), 9)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_as_tensor_shares_read_only_memory_silently(dtype: type) -> None:
    array: np.ndarray = np.arange(6, dtype=dtype).reshape(2, 3)
    array.flags.writeable = False
    tensor = as_tensor(array)  # a warning would be an error here
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.tolist() == array.tolist()


def test_reading_images_needs_no_torch() -> None:
    code = "import sys, trainables.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- reading image files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".jpg", {"quality": 95, "subsampling": 0}),
        (".jpeg", {"quality": 95, "subsampling": 0, "progressive": True}),
        (".png", {}),
        (".bmp", {}),
        (".gif", {}),
        (".webp", {"lossless": True}),
        (".tif", {}),
        (".tiff", {"compression": "tiff_lzw"}),
        (".ppm", {}),
        (".tga", {}),
        (".jp2", {}),
        (".avif", {"quality": 95}),
    ],
)
def test_read_image_reads_every_format(
    tmp_path: Path, suffix: str, options: dict[str, Any]
) -> None:
    path = tmp_path / f"Ein süßes Bild{suffix}"
    smooth().save(path, **options)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == (40, 30)
    tolerance = 30 if suffix == ".gif" else 12  # a GIF has a palette
    assert np.abs(np.asarray(image, int) - np.asarray(smooth(), int)).max() <= tolerance
    assert suffix in IMAGE_SUFFIXES


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    gray = smooth().convert("L")
    for mode in ("L", "1", "P", "CMYK", "YCbCr"):
        suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
        path = tmp_path / f"{mode}{suffix}"
        gray.convert("RGB").convert(mode).save(path)
        image = read_image(path)
        assert image.mode == "RGB"
        assert np.asarray(image).mean() == pytest.approx(np.asarray(gray).mean(), abs=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2] = (0, 0, 0, 255)
    pixels[:, 2:] = (9, 9, 9, 0)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).convert(mode).save(path)
    values = np.asarray(read_image(path))
    assert (values[:, :2] == 0).all()
    assert (values[:, 2:] == 255).all()


def test_half_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "image.png")
    assert np.asarray(read_image(tmp_path / "image.png"))[0, 0].tolist() == [127] * 3


def test_a_transparent_colour_becomes_white(tmp_path: Path) -> None:
    for mode, black in (("RGB", (0, 0, 0)), ("L", 0)):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (2, 2)).save(path, transparency=black)
        assert (np.asarray(read_image(path)) == 255).all()


def test_a_transparent_gif_is_blended_with_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 10, 10, 20, 20, 20])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "image.gif", transparency=0)
    assert np.asarray(read_image(tmp_path / "image.gif"))[0].tolist() == [[255] * 3, [20] * 3]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grayscale_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 256, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"image{suffix}")
    read = np.asarray(read_image(tmp_path / f"image{suffix}"))
    assert read[0].tolist() == [[v] * 3 for v in (0, 1, 1, 128, 255)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([0, 100, 255], np.float32), [0, 100, 255]),
        (np.array([-1, 0, 1], np.float32), [0, 128, 255]),
        (np.array([7, 7, 7], np.float32), [255, 255, 255]),
        (np.array([0, 32768, 65535], np.int32), [0, 128, 255]),
        (np.array([-100, 20, 100], np.int32), [0, 153, 255]),
        (np.array([np.nan, -np.inf, 1], np.float32), [0, 0, 255]),
    ],
)
def test_32_bit_grayscale_is_scaled(
    tmp_path: Path, values: np.ndarray, expected: list[int]
) -> None:
    Image.fromarray(values[None]).save(tmp_path / "image.tif")
    _, extremes = measure_image(tmp_path / "image.tif")
    assert extremes is not None
    read = read_image(tmp_path / "image.tif", set_levels([extremes]))
    assert np.asarray(read)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image{suffix}"
    smooth().save(path, exif=exif)
    with Image.open(path) as plain:
        expected = ImageOps.exif_transpose(plain)
    assert expected.size == ((30, 40) if orientation > 4 else (40, 30))
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(expected))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_invalid_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth().save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").size == (40, 30)


def test_an_image_with_damaged_exif_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    smooth().save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff no such offset")
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        Image.open(path).close()
    # In a process of its own: pytest's filters go before those of `images`.
    code = f"from trainables.images import read_image; print(read_image({str(path)!r}).size)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(40, 30)\n", "")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif", ".png", ".mpo"])
def test_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"image{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    red, green, blue = np.asarray(read_image(path))[4, 4]
    assert red > 240
    assert green < 15
    assert blue < 15


def test_open_files_are_read() -> None:
    file = BytesIO()
    smooth().save(file, "PNG")
    file.seek(0)
    np.testing.assert_array_equal(np.asarray(read_image(file)), np.asarray(smooth()))


def test_strings_are_read(tmp_path: Path) -> None:
    smooth().save(tmp_path / "image.png")
    assert read_image(str(tmp_path / "image.png")).size == (40, 30)


# --- image files that cannot be read ------------------------------------------------------------


def reason_for(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


def test_image_error_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert reason_for(tmp_path / "empty.jpg") == "is empty (zero bytes)"
    (tmp_path / "text.jpg").write_text("no image at all, but some words\n" * 20)
    assert reason_for(tmp_path / "text.jpg") == (
        "is not an image, or of a format that cannot be read"
    )
    assert reason_for(tmp_path / "missing.jpg") == "there is no such file"
    assert reason_for(tmp_path) == "is a folder"
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert reason_for(tmp_path / "loop.jpg") == "cannot be read: Too many levels of symbolic links"
    assert reason_for(tmp_path / "empty.jpg" / "a.jpg") == "cannot be read: Not a directory"
    assert reason_for(tmp_path / ("a" * 300)) == "cannot be read: File name too long"
    assert reason_for(tmp_path / "a\0.jpg") == "is no path of a file"
    with pytest.raises(ImageError, match=r"^the image: is empty \(zero bytes\)$"):
        read_image(BytesIO())


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_raises(tmp_path: Path, progressive: bool) -> None:
    whole = BytesIO()
    noise(64, 48).save(whole, "JPEG", progressive=progressive)
    content = whole.getvalue()
    expected = np.asarray(read_image(BytesIO(content)))
    n_refused = 0
    for length in range(1, len(content), 41):
        path = tmp_path / "cut.jpg"
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(np.asarray(read_image(path)), expected)
        except ImageError:
            n_refused += 1
    assert n_refused >= len(range(1, len(content), 41)) - 1
    path.write_bytes(content[: len(content) // 2])
    assert reason_for(path).startswith("is cut short: image file is truncated")


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp", ".bmp", ".tif", ".mpo"])
def test_other_truncated_images_raise(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    noise(64, 48).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    reason_for(path)


def test_random_damage_raises_image_error_or_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "MPO", "PPM", "TGA", "ICO"):
        file = BytesIO()
        smooth(32, 32).save(file, form)
        for _ in range(25):
            content = np.frombuffer(file.getvalue(), np.uint8).copy()
            places = rng.integers(0, min(200, len(content)), 3)
            content[places] = rng.integers(0, 256, 3)
            path.write_bytes(content.tobytes())
            with suppress(ImageError):  # anything else fails the test
                assert read_image(path).mode == "RGB"


def test_a_decompression_bomb_raises(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert reason_for(path) == (
        "has too many pixels: 10,000,000,000, and 178,956,970 are the most (--max-megapixels)"
    )


def test_image_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "is empty", "a.jpg: is empty")


# --- resize_mode "pad" -------------------------------------------------------------------------


def padded(image: Image.Image, cache_size: int, image_size: int) -> np.ndarray:
    decoded = to_square(image, cache_size, image_size, "pad")
    assert decoded.shape == (cache_size, cache_size, 3)
    start = round((cache_size - image_size) / 2)
    return decoded[start : start + image_size, start : start + image_size]


@pytest.mark.parametrize("sizes", [(256, 224), (37, 32), (33, 32), (32, 32)])
@pytest.mark.parametrize("shape", [(300, 223), (223, 300), (256, 256), (400, 200), (200, 400)])
def test_pad_squeezes_images_up_to_twice_as_long_as_wide(
    shape: tuple[int, int], sizes: tuple[int, int]
) -> None:
    image = noise(*shape)
    resized = image.resize((sizes[1], sizes[1]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(padded(image, *sizes), np.asarray(resized))


@pytest.mark.parametrize(("shape", "n_rows"), [((640, 80), 56), ((900, 100), 50), ((5000, 1), 1)])
def test_pad_repeats_the_edges_of_longer_images(shape: tuple[int, int], n_rows: int) -> None:
    image = noise(*shape)
    for turned in (False, True):
        shown = image.transpose(Image.Transpose.TRANSPOSE) if turned else image
        seen = padded(shown, 256, 224)
        seen = seen.transpose(1, 0, 2) if turned else seen
        first = (224 - n_rows) // 2
        middle = np.asarray(image.resize((224, n_rows), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(seen[first : first + n_rows], middle)
        np.testing.assert_array_equal(seen[:first], np.repeat(middle[:1], first, 0))
        below = seen[first + n_rows :]
        np.testing.assert_array_equal(below, np.repeat(middle[-1:], len(below), 0))


def test_pad_repeats_the_edges_in_the_augmentation_margin() -> None:
    decoded = to_square(noise(300, 200), 256, 224, "pad")
    np.testing.assert_array_equal(decoded[:16], np.repeat(decoded[16:17], 16, 0))
    np.testing.assert_array_equal(decoded[:, 240:], np.repeat(decoded[:, 239:240], 16, 1))
