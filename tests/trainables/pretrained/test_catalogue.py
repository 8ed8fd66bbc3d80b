from pathlib import Path

import pytest
import timm

from spaces.portfolio import PORTFOLIO
from spaces.rules import BACKBONES
from trainables.pretrained import catalogue
from trainables.pretrained.catalogue import describe_backbones, find_names, similar_names
from trainables.pretrained.licences import Licence


def test_without_a_pattern_ours_and_the_portfolio_are_listed():
    assert find_names(None) == list(dict.fromkeys((*BACKBONES, *PORTFOLIO)))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("mobilenet_v2", ["mobilenet_v2"]),
        ("mobilenet_v*", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"]),
        ("timm/tf_efficientnet_lite0", ["timm/tf_efficientnet_lite0"]),
        ("timm/tf_efficientnet_lite0.in1k", ["timm/tf_efficientnet_lite0.in1k"]),
        ("timm/tf_efficientnet_lite[01]*", [f"timm/tf_efficientnet_lite{i}.in1k" for i in (0, 1)]),
        ("timm/convnext_atto_rms*", ["timm/convnext_atto_rms"]),  # without published weights
        ("*squeezenet1_0", ["squeezenet1_0"]),
        ("resnet19", []),
        ("timm/resnet19", []),
        ("timm/resnet50.no_such_tag", []),
    ],
)
def test_names_that_a_pattern_matches(pattern, names):
    assert find_names(pattern) == names


def test_a_pattern_of_both_kinds():
    names = find_names("*dino*")
    assert "timm/vit_small_patch14_dinov2.lvd142m" in names
    assert all("dino" in name for name in names)
    assert (
        len(find_names("timm/*"))
        == len(set(find_names("timm/*")))
        == len(timm.list_models(pretrained=True))
    )


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("mobilnet_v2", "mobilenet_v2"),
        ("timm/convnxt_tiny", "timm/convnext_tiny"),
        ("tf_efficientnet_lite0", "timm/tf_efficientnet_lite0"),
        ("timm/resnet50.a9_in1k", "timm/resnet50.a3_in1k"),
        ("timm/vit_smal_patch14_dinov2*", "timm/vit_small_patch14_dinov2"),
    ],
)
def test_names_that_are_similar_to_a_mistake(pattern, first):
    near = similar_names(pattern)
    assert first in near
    assert 1 <= len(near) <= 3


def test_what_is_known_of_a_backbone(tmp_path):
    (tmp_path / "mobilenet_v2.pth").touch()
    names = ["mobilenet_v2", "timm/convnextv2_atto", "cnn"]
    ours, restricted, scratch = describe_backbones(names, 96, tmp_path, tmp_path / "cache")
    assert ours.weights == tmp_path / "mobilenet_v2.pth"
    assert (ours.in_portfolio, ours.is_published, ours.image_size) == (True, True, 96)
    assert ours.latency_ms is None
    assert restricted.licence == Licence("cc-by-nc-4.0", "non-commercial")
    assert restricted.imagenet_top1 == pytest.approx(0.76644)
    assert (restricted.weights, restricted.is_published) == (None, True)
    assert (scratch.weights, scratch.is_published, scratch.imagenet_top1) == (None, False, None)


def test_counting_ends_when_its_time_is_up(monkeypatch):
    monkeypatch.setattr(catalogue, "COUNTING_SECONDS", 0.0)
    (info,) = describe_backbones(["mobilenet_v2"], 64, None, Path("nowhere"))
    assert (info.parameters, info.gflops) == (None, None)


def test_time_is_measured_where_it_is_asked_for():
    (info,) = describe_backbones(["tinynet"], 32, None, Path("nowhere"), measure=True)
    assert 0 < info.latency_ms < 1000
