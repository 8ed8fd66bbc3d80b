"""A whole search whose weights come from a hub, and one without the hub, from its cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save

from tests.fixtures.hub_server import hub_server

BACKBONE = REPO = "timm/mobilenetv3_small_050.lamb_in1k"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(16):
            pixels = np.clip(rng.normal(colour, 40, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{index}.png")
    return tmp_path / "images"


def search(images: Path, name: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    place = images.parent
    return subprocess.run(
        [
            *(sys.executable, "-m", "search.run", "--data", str(images), "--backbones", BACKBONE),
            *("--trials", "1", "--epochs", "1", "--folds", "2", "--image-size", "32"),
            *("--out", str(place / "results"), "--name", name),
        ],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(place / "cache")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.long
def test_a_search_fetches_weights_once_and_then_needs_no_hub(images: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    with hub_server() as server:
        server.files[f"{REPO}/model.safetensors"] = save(state)
        done = search(images, "first", server.endpoint)
        assert done.returncode == 0, done.stdout + done.stderr
        assert any(asked.startswith("GET") for asked in server.asked)
        n_asked = len(server.asked)
        again = search(images, "second", server.endpoint)
        assert again.returncode == 0, again.stdout + again.stderr
        assert len(server.asked) == n_asked, "the cache has them"
        missing = search(images, "third", server.endpoint + "/nowhere")
        assert missing.returncode == 0, "with the hub away, too"
    summaries = [
        json.loads((images.parent / "results" / name / "summary.json").read_text())
        for name in ("first", "second")
    ]
    assert summaries[0]["backbone_weights"][BACKBONE]["source"]
    assert summaries[0]["test"]["accuracy"] == summaries[1]["test"]["accuracy"]
