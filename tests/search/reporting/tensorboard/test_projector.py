from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from search.reporting.tensorboard.projector import write_projection


def test_a_cloud_is_written_as_the_projector_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(10, 3)).astype(np.float32)
    images = np.stack([np.full((16, 16, 3), 20 * i, np.uint8) for i in range(10)])
    columns = {
        "class": ["a\tb"] + ["c"] * 9,
        "digit": [str(i) for i in range(10)],
        "name": [f"{i}.jpg" for i in range(10)],
    }
    write_projection(tmp_path, "cloud", features, images, columns)

    config = text_format.Parse(
        (tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig()
    ).embeddings[0]
    read = np.loadtxt(tmp_path / config.tensor_path, delimiter="\t")
    assert np.allclose(read, features, atol=1e-3)
    lines = (tmp_path / config.metadata_path).read_text().splitlines()
    assert lines[:2] == ["class\tdigit\tname", "a b\tdigit 0\t0.jpg"]
    assert len(lines) == 11
    width, height = config.sprite.single_image_dim
    sprite = Image.open(tmp_path / config.sprite.image_path)
    assert sprite.size == (4 * width, 4 * height)
    assert sprite.getpixel((width + 1, height + 1)) == (100, 100, 100)  # the sixth


def test_many_dimensions_become_the_principal_ones(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(100, 500)).astype(np.float32)
    features[:50, 7] += 100
    write_projection(
        tmp_path, "cloud", features, np.zeros((100, 8, 8, 3), np.uint8), {"c": "x" * 100}
    )
    read = np.loadtxt(tmp_path / "features.tsv", delimiter="\t")
    assert read.shape == (100, 64)
    assert abs(read[:50, 0].mean() - read[50:, 0].mean()) > 90
