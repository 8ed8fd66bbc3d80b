from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from trainables import image_formats, images
from trainables.images import ImageError, read_image

COLOUR = (200, 40, 90)


def heic() -> bytes:
    pytest.importorskip("pillow_heif", reason="the extra `heif` is not installed")
    import pillow_heif

    file = BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), COLOUR)).save(file, quality=90)
    return file.getvalue()


def reason_for(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(BytesIO(content))
    return caught.value.reason


def test_heic_is_read(tmp_path: Path) -> None:
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(heic())
    for image in (read_image(path), read_image(BytesIO(heic()))):
        assert (image.mode, image.size) == ("RGB", (64, 48))
        assert np.abs(np.asarray(image, int)[24, 32] - COLOUR).max() < 8


def test_heic_upright(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra `heif` is not installed")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be rotated by 90 degrees
    file = BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48))).save(file, exif=exif.tobytes())
    assert read_image(file).size == (48, 64)


def test_heic_without_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    content = heic()
    monkeypatch.setattr(image_formats, "find_spec", lambda name: None)
    assert reason_for(content) == (
        "is a HEIC photo, which pillow-heif reads: pip install 'classifier-search[heif]', or"
        " convert it to JPEG"
    )


def test_other_images_do_not_load_the_reader_of_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "heic_reason", lambda: pytest.fail("it was loaded"))
    for name in ("AVIF", "JPEG", "TIFF"):
        file = BytesIO()
        Image.new("RGB", (8, 8)).save(file, name)
        assert read_image(file).size == (8, 8)


def raw_tiff() -> bytes:
    """A TIFF whose first image is a thumbnail, as in DNG, NEF and ARW."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    file = BytesIO()
    Image.new("RGB", (16, 12)).save(file, "TIFF", tiffinfo=tags)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\x0a" + bytes(300), "is a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(300), "is a JPEG XL image"),
        (bytes(128) + b"DICM" + bytes(300), "is a DICOM file"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(300), "is a camera's raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom" + bytes(300), "is a camera's raw file"),
        (raw_tiff(), "is a camera's raw file"),
    ],
)
def test_known_formats_that_cannot_be_read_are_named(content: bytes, words: str) -> None:
    assert reason_for(content).startswith(words)
    assert ": " in reason_for(content)  # the way out


def test_a_raw_file_is_known_by_its_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12)).save(tmp_path / "x.tif")
    (tmp_path / "x.tif").rename(tmp_path / "x.NEF")
    with pytest.raises(ImageError, match="raw file"):
        read_image(tmp_path / "x.NEF")


def test_a_plain_tiff_is_no_raw_file() -> None:
    file = BytesIO()
    Image.new("RGB", (16, 12)).save(file, "TIFF")
    assert read_image(file).size == (16, 12)
