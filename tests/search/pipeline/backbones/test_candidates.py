"""What is checked of backbones before an image is decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from search.data.manifest import Manifest
from search.pipeline.backbones.available import Available
from search.pipeline.backbones.candidates import (
    _measure_on_gpu,
    check_candidates,
    find_slow,
    pretrained_backbones,
)
from search.pipeline.preflight import RunPlan
from search.pipeline.request import RequestError, parse_request
from search.runs.run_folder import RunFolder
from spaces.base import Space
from spaces.sources import folder
from tests.fixtures.channel_noise import candidate
from trainables.feature_cache import bytes_per_image
from trainables.models.backbones import create_backbone
from trainables.pretrained.weights import PACKAGED, WeightsError


def plan(*names: str, weights: dict[str, Path], image_size: int = 32) -> RunPlan:
    space = Space(folder(), {"backbone": "cnn"}, image_size=image_size).with_backbones(names)
    nothing = Manifest((), (), np.empty(0, np.int64), (), None, None)
    available = Available(space, space, weights)
    return RunPlan(parse_request([]), space, nothing, None, available, RunFolder(Path("no")))


def test_memory_and_latency_of_each_backbone_are_measured() -> None:
    found = check_candidates(plan("tinynet", "cnn", weights={"tinynet": PACKAGED["tinynet"]}))
    assert list(found) == ["tinynet", "cnn"]
    assert found["tinynet"].image_bytes == bytes_per_image(create_backbone("tinynet"), 32)
    for one in found.values():
        assert 0 < one.estimated_ms < 1000
        assert 0 < one.latency_ms < 1000
        assert 0 < one.batch_latency_ms < 1000


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cnn.pth"
    torch.save({"0.weight": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=f"{path}: the weights do not fit cnn"):
        check_candidates(plan("cnn", weights={"cnn": path}))


def test_a_size_that_a_backbone_cannot_take_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"vit_b_16: .* multiple of 16 pixels"):
        check_candidates(plan("vit_b_16", weights={}, image_size=40))


OWN = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.mark.usefixtures("ray_session")
def test_a_worker_measures_a_network_of_the_users_own_from_its_text() -> None:
    """On a GPU latency is measured by a worker, which may not find the module's file."""
    task: Any = _measure_on_gpu.options(num_gpus=0)
    assert ray.get(task.remote("measured_net:build", 32, {"measured_net": OWN}, False)) > 0


CANDIDATES = {name: candidate(ms) for name, ms in (("a", 12.34), ("b", 30.0))}


def test_slower_backbones_than_allowed_leave() -> None:
    assert find_slow(CANDIDATES, None) == {}
    assert find_slow(CANDIDATES, 30.0) == {}
    slow = find_slow(CANDIDATES, 12.5)
    assert list(slow) == ["b"]
    assert slow["b"].latency_ms == 30.0
    assert slow["b"].excluded == "30.0 ms an image, above --max-latency 12.5"


def test_a_latency_that_none_meets_is_refused_with_the_fastest() -> None:
    with pytest.raises(RequestError, match=r"--max-latency 5 .* the fastest, a, takes 12\.3 ms"):
        find_slow(CANDIDATES, 5.0)


def test_networks_of_the_users_own_bring_their_weights() -> None:
    names = ["cnn", "mine:network", "tinynet"]
    space = Space(folder(), {"backbone": "cnn"}).with_backbones(names)
    assert pretrained_backbones(space, PACKAGED) == ["mine:network", "tinynet"]
    assert pretrained_backbones(replace(space, weights="none"), {}) == []
