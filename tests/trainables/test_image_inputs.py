from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.image_inputs import decode_input, is_url, named, refuse_url
from trainables.images import ImageError, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_all_kinds_give_the_pixels_of_the_file(path):
    content = path.read_bytes()
    kinds = [path, str(path), content, BytesIO(content), Image.open(BytesIO(content)), PIXELS]
    kinds += [PIXELS / 255, (PIXELS / 255).astype(">f4"), PIXELS[::-1][::-1]]
    for image in kinds:
        decoded = decode_input(image)
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), PIXELS)


def test_arrays_of_other_channels():
    gray = PIXELS[:, :, 0]
    for array in (gray, gray[:, :, None], gray / 255):
        assert np.array_equal(np.asarray(decode_input(array)), np.repeat(gray[:, :, None], 3, 2))
    clear = np.dstack([PIXELS, np.zeros((5, 7), np.uint8)])
    assert np.asarray(decode_input(clear)).min() == 255, "transparent pixels are white"


def test_a_pillow_image_is_read_as_its_file_is(tmp_path):
    upright = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(upright, exif=exif)
    assert decode_input(Image.open(upright)).size == (5, 7)
    assert np.array_equal(np.asarray(decode_input(Image.open(upright))), read_image(upright))
    palette = Image.fromarray(PIXELS).convert("P")
    assert np.array_equal(np.asarray(decode_input(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS.transpose(2, 0, 1), r"shape is \[3, 5, 7\]: \.transpose\(1, 2, 0\)"),
        (PIXELS[None], r"shape is \[1, 5, 7, 3\]"),
        (PIXELS[0, 0], r"shape is \[3\]"),
        (PIXELS[:0], r"must have pixels, but its shape is \[0, 7, 3\]"),
        (PIXELS * 1.0, r"floats must be in \[0, 1\], but has values from 0 to 248"),
        (PIXELS * np.nan, r"has values from nan to nan"),
        (PIXELS.astype(np.uint16), "uint8 or of floats .* but is of uint16"),
        (PIXELS > 9, "but is of bool"),
        (b"", r"^here: is empty \(zero bytes\)$"),
        (b"no image", "^here: is not an image"),
        (Image.new("RGB", (0, 4)), "must have pixels, but has 0 × 4"),
        (None, "^here: must be a path, .* but is of type NoneType$"),
        (3, "but is of type int"),
        ("nowhere.png", "^here: there is no such file$"),
        ("https://a.b/c.jpg?x=1&y", r"^here: is a URL, .*curl -fLO 'https://a\.b/c\.jpg\?x=1&y'"),
        (Path("https://a.b/c.jpg"), "^here: is a URL"),
        ("data:image/png;base64,aaaa", "^here: is a URL, .* give the bytes"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        decode_input(image, "here")


def test_a_damaged_pillow_image(path):
    image = Image.open(BytesIO(path.read_bytes()[:60]))
    with pytest.raises(ImageError, match=r"^b: cannot be decoded"):
        decode_input(image, "b")


def test_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(map(is_url, ("http://a/b", "HTTPS://a", "s3://b/c", "file:///etc", "data:,x")))
    assert not any(map(is_url, ("a.jpg", "a:b.jpg", "C:/a.jpg", "1:/2", "/http://x", "")))
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "a.jpg").touch()
    assert not is_url("s3://a.jpg"), "a file of that name is there"
    assert refuse_url("http://a/$(b)").endswith("(curl -fLO 'http://a/$(b)')")


def test_names(path):
    with Image.open(path) as image, path.open("rb") as file:
        images = [str(path), path, image, b"", PIXELS]
        assert [name for name, _ in named(images)] == [*[str(path)] * 3, "image 4", "image 5"]
        assert [name for name, _ in named(file)] == [str(path)]


def test_one_image_is_no_sequence(path):
    image = Image.new("RGB", (2, 2))
    for one in (str(path), path, b"ab", PIXELS, PIXELS[0], image, BytesIO(), None):
        assert len(list(named(one))) == 1
    assert len(list(named(np.stack([PIXELS, PIXELS])))) == 2
    assert len(list(named(path for _ in range(3)))) == 3
    assert list(named([])) == []
