"""Predict pictures with a finished run's model.

```
python -m search.predict results/caltech-1 photo.jpg folder-of-photos/
```
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainables.images import PICTURE_SUFFIXES, PictureError, fit, read_picture
from trainables.model import Ensemble, ModelError, load_model

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a picture is thought to be.

    Attributes:
        name: The picture's path as it was given.
        classes: The likeliest classes, best first.
        probabilities: Theirs.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class Predictor:
    """A model, ready to look at pictures."""

    def __init__(self, model: Ensemble) -> None:
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, paths: Iterable[str | Path], top: int = 3) -> list[Prediction]:
        """Predict pictures.

        Args:
            paths: Files.
            top: How many classes to name for each.

        Raises:
            PictureError: one cannot be read.
        """
        found: list[Prediction] = []
        for batch in _batches(paths):
            pictures = [read_picture(path) for path in batch]
            found += self._predict_batch([str(path) for path in batch], pictures, top)
        return found

    def _predict_batch(
        self, names: Sequence[str], pictures: Sequence[Image.Image], top: int
    ) -> Iterator[Prediction]:
        card = self.model.card
        packed = np.stack([fit(picture, card.packed_size, card.image_size) for picture in pictures])
        rows = self.model.probabilities(torch.from_numpy(packed))
        for name, row in zip(names, rows, strict=True):
            likeliest = row.topk(min(top, len(card.classes)))
            yield Prediction(
                name,
                tuple(card.classes[i] for i in likeliest.indices),
                tuple(float(p) for p in likeliest.values),
            )


def load(run: str | Path) -> Predictor:
    """Load a run's model: from its folder, or from a `model.pt` alone.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    path = Path(run)
    return Predictor(load_model(path / "model.pt" if path.is_dir() else path))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        predictor = load(options.run)
        paths = list(_expand(options.pictures))
    except (ModelError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    unreadable = 0
    width = max((len(str(path)) for path in paths), default=0)
    for path in paths:
        try:
            (made,) = predictor.predict([path], options.top)
        except PictureError as error:
            print(f"{path!s:<{width}}  cannot be read: {error.reason}", file=sys.stderr)
            unreadable += 1
            continue
        named = "   ".join(
            f"{name} {p:.4f}" for name, p in zip(made.classes, made.probabilities, strict=True)
        )
        print(f"{path!s:<{width}}  {named}")
    return 1 if unreadable else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.predict", description="Name the likeliest classes of pictures."
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's folder, or a model.pt")
    parser.add_argument(
        "pictures", nargs="+", type=Path, metavar="PICTURE", help="files or folders"
    )
    parser.add_argument("--top", type=int, default=3, metavar="K", help="default: %(default)s")
    return parser


def _expand(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files, and the pictures below folders.

    Raises:
        FileNotFoundError: a path names nothing.
    """
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"there are no pictures in {path}")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"there is no picture {path}")


def _batches(paths: Iterable[str | Path]) -> Iterator[list[str | Path]]:
    remaining = iter(paths)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


if __name__ == "__main__":
    sys.exit(main())
