"""Coverage-guided fuzzing of the readers with atheris (`make fuzz`).

python tests/fuzz/readers.py picture -runs=20000
python tests/fuzz/readers.py model -runs=2000
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: F401 - first, or all of it would be instrumented too

with atheris.instrument_imports(include=["PIL", "trainables.images"]):
    from PIL import Image

    from trainables.images import PictureError, read_picture
    from trainables.model import ModelError, load_model

from tests.fuzz.mutations import sound_pictures

warnings.simplefilter("ignore")
Image.MAX_IMAGE_PIXELS = 500_000
_MODEL = Path(tempfile.mkdtemp()) / "model.pt"


def picture(content: bytes) -> None:
    """Read a picture."""
    with suppress(PictureError):
        read_picture(io.BytesIO(content))


def model(content: bytes) -> None:
    """Read a model."""
    _MODEL.write_bytes(content)
    with suppress(ModelError):
        load_model(_MODEL)


if __name__ == "__main__":
    target = {"picture": picture, "model": model}[sys.argv.pop(1)]
    corpus = Path(tempfile.mkdtemp())
    for index, content in enumerate(sound_pictures() if target is picture else [b"\x80\x02}."]):
        (corpus / str(index)).write_bytes(content)
    os.chdir(corpus)  # what it finds is written there
    atheris.Setup([*sys.argv, str(corpus)], target)
    atheris.Fuzz()
