"""What TensorBoard's projector shows: a model's features of images, as a cloud of thumbnails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image
from sklearn.decomposition import PCA
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from search.reporting.tensorboard.image_grid import resize

MAX_POINTS = 1000
"""Of the cloud; more are slow to turn in a browser."""

_MAX_DIMENSIONS = 64  # of what the projector projects; the principal ones
_THUMBNAIL = 40  # pixels; a sprite of `MAX_POINTS` stays far below the 8192 that browsers take


def write_projection(
    folder: Path,
    name: str,
    features: np.ndarray,
    images: np.ndarray,
    columns: Mapping[str, Sequence[str]],
) -> None:
    """Write a cloud, in place of one that an earlier session wrote.

    Args:
        folder: Of a TensorBoard run.
        name: What the cloud is called.
        features: float32 [n, size], n >= 1.
        images: uint8 [n, S, S, 3].
        columns: What is known of each point, by the column's title; it is coloured by any of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_dimensions = min(_MAX_DIMENSIONS, *features.shape)
    if n_dimensions < features.shape[1]:
        features = PCA(n_dimensions, random_state=0).fit_transform(features)
    np.savetxt(folder / "features.tsv", features, fmt="%.4g", delimiter="\t")
    cells = [_categories(title, values) for title, values in columns.items()]
    rows = [tuple(columns), *zip(*cells, strict=True)]
    table = "".join("\t".join(_cell(value) for value in row) + "\n" for row in rows)
    (folder / "points.tsv").write_text(table, encoding="utf-8", errors="replace")
    _draw_sprite(images).save(folder / "thumbnails.png", optimize=True)
    config = ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name=name, tensor_path="features.tsv", metadata_path="points.tsv"
    )
    embedding.sprite.image_path = "thumbnails.png"
    embedding.sprite.single_image_dim.extend([_THUMBNAIL, _THUMBNAIL])
    (folder / "projector_config.pbtxt").write_text(
        text_format.MessageToString(config), encoding="utf-8"
    )


def _draw_sprite(images: np.ndarray) -> Image.Image:
    """Draw all thumbnails into one square image, row by row, as the projector expects them."""
    n_columns = math.ceil(math.sqrt(len(images)))
    sprite = Image.new("RGB", (n_columns * _THUMBNAIL, n_columns * _THUMBNAIL))
    for place, image in enumerate(images):
        row, column = divmod(place, n_columns)
        sprite.paste(resize(image, _THUMBNAIL), (column * _THUMBNAIL, row * _THUMBNAIL))
    return sprite


def _categories(title: str, values: Sequence[str]) -> Sequence[str]:
    """Return values that are coloured as categories: numbers alone would be a scale."""
    if all(value.replace(".", "", 1).isdigit() for value in values):
        return [f"{title} {value}" for value in values]
    return values


def _cell(value: str) -> str:
    return " ".join(value.split()) or "-"
