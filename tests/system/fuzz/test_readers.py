"""Damaged images and models are read, or give one clear error."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.system.fuzz.mutations import FORMATS, mutate, valid_images
from trainables.images import ImageError, read_image, to_square
from trainables.models.model import load_model
from trainables.models.model_card import ModelError

IMAGES = valid_images()
quick = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("index", range(len(FORMATS)), ids=FORMATS)
def test_valid_images_are_read(index):
    assert to_square(read_image(io.BytesIO(IMAGES[index])), 20, 16).shape == (20, 20, 3)


@pytest.mark.filterwarnings("ignore")
@quick
@given(st.sampled_from(IMAGES), st.integers(0, 2**32))
def test_a_damaged_image(content, seed):
    damaged = mutate(random.Random(seed), content)
    reason = "none"
    try:
        image = read_image(io.BytesIO(damaged))
    except ImageError as error:
        reason = error.reason
    else:
        assert image.mode == "RGB"
        assert to_square(image, 20, 16).shape == (20, 20, 3)
    assert reason
    assert "\n" not in reason


@pytest.mark.filterwarnings("ignore")
@quick
@given(st.binary(max_size=300))
@example(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
def test_bytes_that_are_not_an_image(content):
    with pytest.raises(ImageError):
        read_image(io.BytesIO(content))


def test_postscript_starts_no_program(monkeypatch):
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: started.append(a))
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "EPS")
    with pytest.raises(ImageError, match="of a format that cannot be read"):
        read_image(file)
    assert started == []


@pytest.fixture(scope="module")
def parts(colour_run: Path) -> dict[str, bytes]:
    """The entries of a model file: tensors, and the pickle that refers to them."""
    with zipfile.ZipFile(colour_run / "model.pt") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.filterwarnings("ignore")
@settings(quick, max_examples=60)
@given(st.integers(0, 2**32))
def test_a_model_whose_parts_are_damaged(parts, tmp_path, seed):
    """The archive is valid, so that the damage inside is reached."""
    rng = random.Random(seed)
    target = rng.choice([name for name in parts if "/data/" not in name])
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, mutate(rng, content) if name == target else content)
    _read(path)


@pytest.mark.filterwarnings("ignore")
@settings(quick, max_examples=60)
@given(st.integers(0, 2**32))
def test_a_model_file_that_is_damaged(colour_run, tmp_path, seed):
    path = tmp_path / "model.pt"
    path.write_bytes(mutate(random.Random(seed), (colour_run / "model.pt").read_bytes()))
    _read(path)


def _read(path: Path) -> None:
    message = str(path)
    try:
        load_model(path)
    except ModelError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message
