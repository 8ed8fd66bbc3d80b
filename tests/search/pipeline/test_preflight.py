"""Checks of a request before anything costly starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from search.data.scan import find_images
from search.pipeline.preflight import check_fit
from search.pipeline.request import RequestError, load_requested_space, parse_request

OWN_SPACE = """
from spaces.base import Space
from spaces.sources import folder

SPACE = Space(source=folder(), params={"backbone": "cnn"}, image_size=48)
"""


def fit(tmp_path: Path, size: int, *arguments: str, mode: str = "RGB") -> tuple[str, ...]:
    """Check the fit of a space to ten images of one size; return the warnings."""
    for index in range(10):
        path = tmp_path / "photos" / f"class {index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (2 * size, size)).save(path)
    (tmp_path / "photos" / "class 0" / "0.png").write_bytes(b"no image")
    (tmp_path / "mine.py").write_text(OWN_SPACE)
    request = parse_request(["--data", str(tmp_path / "photos"), *arguments])
    space = load_requested_space(request)
    manifest = find_images(space.source, request.data, tmp_path)
    return check_fit(request, space, manifest)


def test_a_small_space_of_the_package_refuses_photos(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        fit(tmp_path, 400, "--space", "digits")
    assert str(caught.value) == (
        f"the space digits shows 32 × 32 pixels to a network, but the images in {tmp_path}/photos"
        " are much larger (typically 400 pixels on the shorter side), and little of them would be"
        " left: omit --space, or use --space photos, or give --image-size, such as 224"
    )
    with pytest.raises(RequestError, match="the space fashion_mnist shows 28 × 28 pixels"):
        fit(tmp_path, 57, "--space", "fashion_mnist", mode="L")


@pytest.mark.parametrize(
    ("size", "mode", "words"),
    [
        (400, "RGB", ""),
        (4000, "RGB", "--space tools"),
        (64, "L", "--space digits"),
        (400, "L", "--space digits --image-size 64"),
        (28, "RGB", "--space fashion_mnist"),
        (400, "RGB", "--space digits --image-size 224 --backbones resnet18"),
        (400, "RGB", "--backbones cnn"),
        (90, "RGB", "--space mine.py"),
        (400, "RGB", "--space mine.py --image-size 32"),
    ],
)
def test_other_spaces_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, mode: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, size, *words.split(), mode=mode) == ()


def test_what_a_user_decided_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (warning,) = fit(tmp_path, 100, "--space", "mine.py")
    assert warning.startswith("the space mine.py shows 48 × 48 pixels to a network, but")
    assert warning.endswith("; give --image-size, or change image_size in the space")
    for words in ("--space digits --image-size 224", "--space spaces/digits.py --image-size 32"):
        (warning,) = fit(tmp_path, 100, *words.split())
        assert warning.startswith("the space digits has networks for small grayscale images only")


def test_a_space_with_images_of_its_own_fits_them(tmp_path: Path) -> None:
    request = parse_request([])
    space = load_requested_space(request)
    manifest = find_images(space.source, None, tmp_path)
    assert check_fit(request, space, manifest) == ()
