"""Fuzz the readers of images and models, guided by coverage, with atheris (`make fuzz`).

python -m tests.system.fuzz.readers image -runs=20000
python -m tests.system.fuzz.readers model -runs=5000
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import tempfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import atheris
import torch  # first, so that not all of it is instrumented
import torch._dynamo
import torch._weights_only_unpickler
import torchvision  # noqa: F401

_INSTRUMENTED = [
    "PIL",
    "trainables.images",
    "trainables.levels",
    "trainables.models.ensemble",
    "trainables.models.model_content",
    "torch._weights_only_unpickler",
]
with atheris.instrument_imports(include=_INSTRUMENTED):
    importlib.reload(torch._weights_only_unpickler)
    from PIL import Image

    from trainables.images import ImageError, read_image
    from trainables.models.model import load_model
    from trainables.models.model_card import ModelError

from tests.system.fuzz.mutations import tiny_model, valid_images  # noqa: E402

warnings.simplefilter("ignore")
Image.MAX_IMAGE_PIXELS = 500_000
_MODEL = Path(tempfile.mkdtemp()) / "model.pt"
_PARTS: dict[str, bytes] = {}


def image(content: bytes) -> None:
    """Read an image."""
    with suppress(ImageError):
        read_image(io.BytesIO(content))


def model(content: bytes) -> None:
    """Read a model whose archive is valid, so that the pickle inside is reached."""
    with zipfile.ZipFile(_MODEL, "w") as archive:
        for name, part in _PARTS.items():
            archive.writestr(name, content if name.endswith("/data.pkl") else part)
    with suppress(ModelError):
        load_model(_MODEL)


def main() -> None:
    """Fuzz the reader named on the command line; findings are written to a temporary folder."""
    target = {"image": image, "model": model}[sys.argv.pop(1)]
    starts = valid_images()
    if target is model:
        with zipfile.ZipFile(io.BytesIO(tiny_model())) as archive:
            _PARTS.update({name: archive.read(name) for name in archive.namelist()})
        starts = [part for name, part in _PARTS.items() if name.endswith("/data.pkl")]
    corpus = Path(tempfile.mkdtemp())
    for index, content in enumerate(starts):
        (corpus / str(index)).write_bytes(content)
    os.chdir(corpus)  # findings are written there
    atheris.Setup([*sys.argv, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
