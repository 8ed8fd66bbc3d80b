"""The image sets of `versus`: what is trained on, and the test images that every model predicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness.reporting import stop
from benchmarks.harness.workbench import (
    ImageFiles,
    choose_per_class,
    choose_stratified,
    class_folders,
    generate_images,
)

GIVEN = ("grocery", "flowers", "cats_dogs")
"""Sets that have folders `train/` and `test/`."""

WHOLE = ("products", "tools")
"""Sets without a test folder: TEST_FRACTION of each class is drawn once, for all seeds."""

FASHION, GENERATED = "fashion_mnist", "generated"
SETS = ("grocery", "flowers", "products", "tools", "cats_dogs", FASHION)

TEST_FRACTION = 0.3
N_FASHION = {"train": 2000, "test": 1000}
"""Fashion-MNIST's images that are used, drawn once by class from its own two parts."""

_SPLIT_SEED = 0
_N_GENERATED = 40


@dataclass(frozen=True)
class ImageSet:
    """A set in two parts.

    Attributes:
        train: What competitors may train and validate on.
        test: What only finished models predict.
    """

    train: ImageFiles
    test: ImageFiles

    def take(self, n_per_class: int | None, seed: int) -> ImageSet:
        """Draw training images, as many of each class; None takes all."""
        if n_per_class is None:
            return self
        chosen = choose_per_class(self.train.labels, n_per_class, seed)
        return ImageSet(self.train.take(np.sort(chosen)), self.test)

    def link(self, folder: Path) -> None:
        """Make `train/` and `test/`, a folder per class, of links to the images."""
        for part, images in (("train", self.train), ("test", self.test)):
            for path, label in zip(images.paths, images.labels, strict=True):
                link = folder / part / images.classes[label] / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())


def load_set(name: str, data: Path | None, scratch: Path) -> ImageSet:
    """Find the images of a set.

    Args:
        name: One of SETS or GENERATED.
        data: The folder of the sets; GENERATED needs none.
        scratch: Folder for images that are no files yet.
    """
    if name == GENERATED:
        made = scratch / GENERATED
        images = generate_images(made, _N_GENERATED, 2) if not made.is_dir() else None
        return split_once(images or class_folders(made, name))
    if data is None:
        stop(f"{name} needs real images; give the folder that holds {name}/ with --data")
    if name == FASHION:
        return _fashion(data, scratch / FASHION)
    if name in WHOLE:
        return split_once(class_folders(_existing(data / name), name))
    parts = [class_folders(_existing(data / name / part), name) for part in ("train", "test")]
    if parts[0].classes != parts[1].classes:
        stop(f"the classes of {data / name}/train and /test must be the same")
    return ImageSet(*parts)


def split_once(images: ImageFiles) -> ImageSet:
    """Draw the test images of a set that has none of its own, a fraction of each class."""
    rng = np.random.default_rng(_SPLIT_SEED)
    is_test = np.zeros(len(images.labels), bool)
    for label in np.unique(images.labels):
        rows = rng.permutation(np.flatnonzero(images.labels == label))
        is_test[rows[: max(1, round(TEST_FRACTION * len(rows)))]] = True
    return ImageSet(images.take(np.flatnonzero(~is_test)), images.take(np.flatnonzero(is_test)))


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        stop(f"there is no folder {folder}; give the folder of the image sets with --data")
    return folder


def _fashion(data: Path, folder: Path) -> ImageSet:
    """Write the chosen images of Fashion-MNIST as PNG files, once."""
    from torchvision.datasets import FashionMNIST

    _existing(data / "FashionMNIST")
    for part, n in N_FASHION.items():
        if (folder / part).is_dir():
            continue
        found = FashionMNIST(str(data), train=part == "train", download=False)
        pixels, labels = found.data.numpy(), found.targets.numpy()
        for row in choose_stratified(labels, n, _SPLIT_SEED):
            label = labels[row]
            name = f"{label}-{found.classes[label].replace('/', '-')}"
            path = folder / part / name / f"{row:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(path)
    return ImageSet(*(class_folders(folder / part, FASHION) for part in N_FASHION))
