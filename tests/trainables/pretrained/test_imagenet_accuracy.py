import pytest
import timm
from torchvision.models import ResNet50_Weights

from spaces.portfolio import PORTFOLIO
from spaces.rules import BACKBONES
from trainables.pretrained.imagenet_accuracy import _TIMM_PERCENT, published_accuracy


def test_torchvisions_is_that_of_its_default_weights():
    assert published_accuracy("resnet50") == pytest.approx(
        0.80858
    )  # version 2; version 1 has 0.76130
    assert ResNet50_Weights.DEFAULT is ResNet50_Weights.IMAGENET1K_V2
    unknown = {name for name in BACKBONES if published_accuracy(name) is None}
    assert unknown == {"tinynet", "cnn"}


def test_timms_is_that_of_the_tag():
    assert published_accuracy("timm/tf_efficientnet_lite0.in1k") == 0.74846
    assert published_accuracy("timm/tf_efficientnet_lite0") == 0.74846
    assert published_accuracy("timm/resnet50.ram_in1k") is None
    assert published_accuracy("timm/vit_small_patch14_dinov2") is None
    assert published_accuracy("timm/convnext_atto_rms") is None
    assert published_accuracy("mynets:build") is None


def test_the_table_names_weights_that_timm_publishes():
    known = set(timm.list_models(pretrained=True))
    assert set(_TIMM_PERCENT) <= known
    assert all(50 < percent < 95 for percent in _TIMM_PERCENT.values())


def test_that_of_the_portfolio_is_known():
    unknown = [name for name in PORTFOLIO if published_accuracy(name) is None]
    assert unknown == ["timm/vit_small_patch14_dinov2.lvd142m"]  # it has no classifier
