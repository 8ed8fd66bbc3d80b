"""Which backbones a run searches, by the weights that can be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.pipeline.backbones.available import find_available
from search.pipeline.request import parse_request
from search.runs.summary import ProbeScore
from spaces.base import Space
from spaces.sources import folder
from trainables.pretrained.weights import WeightsError

THREE = Space(folder(), {"backbone": "cnn"}).with_backbones(
    ["mobilenet_v2", "resnet18", "vit_b_16"]
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    for name in ("mobilenet_v2", "resnet18"):
        (tmp_path / f"{name}.pth").touch()
    return tmp_path


def test_of_the_portfolio_what_is_at_hand_is_enough(weights: Path) -> None:
    auto = parse_request(["--backbones", "auto", "--weights", str(weights)])
    found = find_available(THREE, auto, None, weights)
    assert found.requested.backbones == THREE.backbones
    assert found.space.backbones == ("mobilenet_v2", "resnet18")
    assert list(found.unavailable) == ["vit_b_16"]


def test_of_named_backbones_all_have_to_be(weights: Path) -> None:
    named = parse_request(["--weights", str(weights)])
    with pytest.raises(WeightsError, match=r"vit_b_16: looked in .*: no vit_b_16\.pth in it"):
        find_available(THREE, named, None, weights)


def test_a_resumed_run_searches_what_it_began_with(weights: Path) -> None:
    auto = parse_request(["--backbones", "auto", "--weights", str(weights)])
    recorded = {"resnet18": ProbeScore(accuracy=0.9), "mobilenet_v2": ProbeScore(excluded="slow")}
    assert find_available(THREE, auto, recorded, weights).space.backbones == ("resnet18",)


def test_a_resumed_run_has_the_weights_of_probes_that_are_finalists(weights: Path) -> None:
    auto = parse_request(["--backbones", "auto", "--weights", str(weights)])
    recorded = {
        "resnet18": ProbeScore(accuracy=0.9, in_ensemble=True),
        "mobilenet_v2": ProbeScore(excluded="behind", in_ensemble=True),
    }
    found = find_available(THREE, auto, recorded, weights)
    assert found.space.backbones == ("resnet18",)
    assert list(found.weights) == ["resnet18", "mobilenet_v2"]
    (weights / "mobilenet_v2.pth").unlink()
    with pytest.raises(WeightsError, match=r"mobilenet_v2: looked in"):
        find_available(THREE, auto, recorded, weights)


def test_a_resumed_run_misses_a_file_that_is_gone(weights: Path) -> None:
    """The portfolio names the files of the folder as they are now."""
    (weights / "resnet18.pth").unlink()
    auto = parse_request(["--backbones", "auto", "--weights", str(weights)])
    now = THREE.without_backbones(["resnet18", "vit_b_16"])
    recorded = {"resnet18": ProbeScore(accuracy=0.9), "mobilenet_v2": ProbeScore(accuracy=0.9)}
    with pytest.raises(WeightsError, match=r"resnet18: looked in .*: no resnet18\.pth in it"):
        find_available(now, auto, recorded, weights)
