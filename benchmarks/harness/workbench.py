"""Load images, backbones and feature caches for benchmarks that train without Ray."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.harness.reporting import DEFAULT_DATA, stop
from spaces.rules import ResizeMode
from trainables.batches import ImageSet
from trainables.feature_cache import FeatureCache, as_features, build_view, view_magnitude
from trainables.image_formats import IMAGE_SUFFIXES
from trainables.images import as_tensor, read_image, to_square
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.classifier import Weights
from trainables.pretrained.weight_files import find_local_weights
from trainables.pretrained.weights import PACKAGED, load_weights

CALTECH_SIX = ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
_CALTECH_FOLDER = Path("caltech101") / "101_ObjectCategories"
_GENERATED_SIZE = (300, 223)  # as most of Caltech-101's
_BLOCK_IMAGES = 128


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels; `origin` names the set."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    origin: str

    def take(self, indices: np.ndarray) -> ImageFiles:
        """Select images by their int64 indices."""
        paths = tuple(self.paths[i] for i in indices)
        return ImageFiles(paths, self.labels[indices], self.classes, self.origin)


def find_data(arguments: argparse.Namespace) -> Path | None:
    """Return the folder of the photo sets; None where there is none and --data is not given."""
    data: Path = arguments.data or DEFAULT_DATA
    if (data / _CALTECH_FOLDER).is_dir():
        return data
    if arguments.data is not None:
        stop(f"{data} holds no {_CALTECH_FOLDER}/; give the folder that does with --data")
    return None


def need_data(arguments: argparse.Namespace) -> Path:
    """Return the folder of the photo sets, or exit with a clear message."""
    data = find_data(arguments)
    if data is None:
        stop(
            f"this benchmark needs real images, and {DEFAULT_DATA} holds no {_CALTECH_FOLDER}/;"
            " give the folder that does with --data"
        )
    return data


def find_weights_folder(arguments: argparse.Namespace, data: Path | None) -> Path | None:
    """Return the folder of <backbone>.pth files; None without one and without --weights."""
    if arguments.weights is not None:
        if not arguments.weights.is_dir():
            stop(f"there is no folder {arguments.weights}; give <backbone>.pth files by --weights")
        return Path(arguments.weights)
    folder = None if data is None else data / "weights"
    return folder if folder is not None and folder.is_dir() else None


def caltech_six(data: Path) -> ImageFiles:
    """List all images of the six Caltech-101 classes of the study, by class and name."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(CALTECH_SIX):
        found = sorted((data / _CALTECH_FOLDER / name).glob("*.jpg"))
        if not found:
            stop(f"{data / _CALTECH_FOLDER} has no images of {name!r}")
        paths += found
        labels += [label] * len(found)
    return ImageFiles(tuple(paths), np.array(labels), CALTECH_SIX, "Caltech-101, six classes")


def image_sets(data: Path) -> dict[str, ImageFiles]:
    """List the photo sets in a folder, each by class and name; of given splits the training part.

    Flowers and grocery chose no default but the ways of fine-tuning in spaces/photos.py: every
    other choice was made on the others.
    """
    sets = {"caltech": caltech_six(data)}
    folders = {
        "cats_dogs": data / "cats_dogs" / "train",
        "products": data / "products",
        "tools": data / "tools",
        "flowers": data / "flowers" / "train",
        "grocery": data / "grocery" / "train",
    }
    for name, folder in folders.items():
        if folder.is_dir():
            sets[name] = class_folders(folder, name)
    return sets


def background(data: Path) -> ImageFiles:
    """List the images of BACKGROUND_Google, which belong to no class."""
    paths = tuple(sorted((data / _CALTECH_FOLDER / "BACKGROUND_Google").glob("*.jpg")))
    if not paths:
        stop(f"{data / _CALTECH_FOLDER} has no BACKGROUND_Google")
    return ImageFiles(paths, np.full(len(paths), -1), (), "BACKGROUND_Google")


def class_folders(folder: Path, origin: str) -> ImageFiles:
    """List the images of a folder per class, by class and name."""
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted((folder / name).iterdir())
        found = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
        paths += found
        labels += [label] * len(found)
    return ImageFiles(tuple(paths), np.array(labels), classes, origin)


def generate_images(folder: Path, n_images: int, n_classes: int = 3) -> ImageFiles:
    """Write JPEG images, a folder per class: noise around a colour and a stripe of the class."""
    rng = np.random.default_rng(0)
    width, height = _GENERATED_SIZE
    paths, labels = [], np.arange(n_images) % n_classes
    for index, label in enumerate(labels):
        pixels = rng.normal(110, 40, (height, width, 3))
        pixels[:, :, label % 3] += 40
        pixels[20 * (label + 1) : 20 * (label + 2)] += 60
        path = folder / f"class{label}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    classes = tuple(f"class{label}" for label in range(n_classes))
    return ImageFiles(tuple(paths), labels, classes, "generated images")


def choose_stratified(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw n images, stratified by class, at least one of each: int64 indices, shuffled."""
    rng = np.random.default_rng(seed)
    n = min(n, len(labels))
    order = rng.permutation(len(labels))
    # An image's place within its class, as a fraction of the class: the lowest are taken.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = np.arange(len(members)) / len(members)
    chosen = order[np.argsort(place[order], kind="stable")[:n]]
    return rng.permutation(chosen)


def choose_per_class(labels: np.ndarray, n_per_class: int, seed: int) -> np.ndarray:
    """Draw the same number of images of every class: int64 indices."""
    order = np.random.default_rng(seed).permutation(len(labels))
    members = [order[labels[order] == label][:n_per_class] for label in np.unique(labels)]
    return np.concatenate(members)


def decode_images(images: ImageFiles, image_size: int, resize_mode: ResizeMode = "pad") -> ImageSet:
    """Decode images into the table that trainings read: uint8 [n, side, side, 3]."""
    sizes = round(image_size / 0.875), image_size
    table = np.stack([to_square(read_image(path), *sizes, resize_mode) for path in images.paths])
    labels = torch.from_numpy(images.labels.astype(np.int64))
    return ImageSet(torch.from_numpy(table), labels, len(images.classes), image_size, flip=True)


def read_state(backbone: str, weights: Path | None) -> Weights | None:
    """Load pretrained weights from a folder or, of tinynet, the package; None where there are none.

    The files are called as the backbone or, of timm's, as timm publishes them.
    """
    if weights is None:
        path = PACKAGED.get(backbone)
    else:
        path = find_local_weights(backbone, weights, cache=weights)
    return None if path is None else load_weights(path)


def new_backbone(name: str, state: Weights | None, device: str = "cpu") -> Backbone:
    """Create a backbone on its device, in channels_last."""
    backbone = create_backbone(name, state)
    return backbone.to(device).to(memory_format=torch.channels_last)


def pooled_features(
    images: ImageFiles, backbone: Backbone, image_size: int, resize_mode: ResizeMode = "pad"
) -> torch.Tensor:
    """Compute pooled features of a frozen backbone: float32 [n, feature_size]."""
    decoded = decode_images(images, image_size, resize_mode)
    rows = torch.arange(len(images.paths))
    return build_cache(backbone, decoded, rows, stage_output=5, n_views=1).clean(rows).float()


def build_cache(
    backbone: Backbone,
    images: ImageSet,
    rows: torch.Tensor,
    stage_output: int,
    n_views: int,
    magnitudes: Sequence[float] | None = None,
    seed: int = 0,
) -> FeatureCache:
    """Build a feature cache of one stage output, in this process; see `build_caches`."""
    built = build_caches(backbone, images, rows, (stage_output,), n_views, magnitudes, seed)
    return built[stage_output]


def build_caches(
    backbone: Backbone,
    images: ImageSet,
    rows: torch.Tensor,
    stage_outputs: Sequence[int],
    n_views: int,
    magnitudes: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[int, FeatureCache]:
    """Build feature caches of several stage outputs in one pass, in this process.

    Args:
        backbone: The network whose frozen stages compute the features.
        images: All images.
        rows: int64 [n], the images to cache.
        stage_outputs: Ascending, each in 1 to 5.
        n_views: V, which sets the magnitudes.
        magnitudes: Other magnitudes of the views, ascending from 0; None has those of V.
        seed: Seed of the augmentation.

    Returns:
        The caches by stage output.
    """
    device = next(backbone.parameters()).device
    backbone.eval()
    views: dict[int, list[tuple[torch.Tensor, ...]]] = {output: [] for output in stage_outputs}
    if magnitudes is None:
        magnitudes = [view_magnitude(view, n_views) for view in range(n_views)]
    for view, magnitude in enumerate(magnitudes):
        blocks = [
            build_view(
                backbone,
                images.table[part],
                images.image_size,
                magnitude,
                images.flip,
                stage_outputs,
                (seed * 1009 + view) * 1_000_003 + place,
                device,
            )
            for place, part in enumerate(rows.split(_BLOCK_IMAGES))
        ]
        for output in stage_outputs:
            views[output].append(tuple(as_features(block[output]) for block in blocks))
    row_of = np.full(len(images.table), -1, np.int64)
    row_of[rows.numpy()] = np.arange(len(rows))
    return {
        output: FeatureCache(tuple(built), n_views, as_tensor(row_of), _BLOCK_IMAGES)
        for output, built in views.items()
    }
