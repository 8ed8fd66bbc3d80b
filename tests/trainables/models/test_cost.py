import pytest
import torch
from torch import nn
from torchvision.models import get_model_weights

from spaces.rules import BACKBONES
from trainables.models import cost
from trainables.models.backbones import create_backbone
from trainables.models.cost import count_cost


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "regnet_y_400mf", "swin_t", "cnn"])
def test_parameters_are_those_of_the_backbone(name):
    counted = count_cost(name, 224)
    assert counted.parameters == sum(p.numel() for p in create_backbone(name).parameters())


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "vit_b_16", "swin_t", "vgg16_bn"])
def test_operations_are_counted_as_torchvision_does(name):
    published = get_model_weights(name)["DEFAULT"].meta["_ops"]
    # Torchvision counts the classifier, and swin_t's shifts, as well.
    assert count_cost(name, 224).gflops == pytest.approx(published, rel=0.02)


def test_networks_of_one_image_size_are_counted_for_the_size_that_is_asked_for():
    small = count_cost("timm/vit_small_patch14_dinov2.lvd142m", 224)
    own = count_cost("timm/vit_small_patch14_dinov2.lvd142m", 518)
    assert own.parameters > small.parameters  # position embeddings
    assert own.gflops == pytest.approx(46.76, rel=0.02)


def test_a_smaller_image_costs_less():
    small, large = count_cost("mobilenet_v2", 96), count_cost("mobilenet_v2", 192)
    assert large.parameters == small.parameters
    assert large.gflops == pytest.approx(4 * small.gflops, rel=0.01)


@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [
        # GMACs as in timm's tables, which count BatchNorm as well.
        ("timm/tf_efficientnet_lite0.in1k", 3.37, 0.40),
        ("timm/vit_small_patch16_224.augreg_in1k", 21.67, 4.61),
    ],
)
def test_networks_of_timm(name, millions, gflops):
    counted = count_cost(name, 224)
    assert counted.parameters / 1e6 == pytest.approx(millions, rel=0.01)
    assert counted.gflops == pytest.approx(gflops, rel=0.05)
    assert counted == count_cost(name.split(".")[0], 224)


def test_sizes_that_a_network_cannot_take_have_no_cost():
    assert count_cost("vit_b_16", 100) is None
    assert count_cost("timm/crossvit_tiny_240", 224) is None


def test_nothing_is_computed(monkeypatch):
    monkeypatch.setattr(cost, "create_backbone", lambda _: nn.Flatten(1))
    count_cost.cache_clear()
    assert count_cost("resnet18", 100_000) == cost.Cost(0, 0.0, 100_000)  # 120 GB of pixels
    count_cost.cache_clear()
    assert set(BACKBONES) > {"resnet18"}
    assert torch.get_default_device().type == "cpu"
