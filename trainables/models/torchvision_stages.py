"""Cut torchvision's networks into five stages.

A convolutional network is cut where it halves its resolution, which most do five times;
transformers are cut into five even groups of blocks.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import get_model, vgg
from torchvision.models.vision_transformer import interpolate_embeddings


@dataclass(frozen=True)
class Plan:
    """How a network is cut into five stages.

    Attributes:
        feature_size: Channels of the pooled features.
        classifier: Name of the module that turns features into classes, which no stage has.
        stages: The layers of each stage: names of modules in the network, where "features.2-3"
            are the children 2 and 3 of `features`, and a + marks what torchvision's `forward` does
            without a module. A pooling layer is the last of its stage, not the first of the next,
            because its output takes a quarter of the memory in the feature cache.
    """

    feature_size: int
    classifier: str
    stages: tuple[str, ...]


_POOL = " +pool +flatten"
_RESNET = ("conv1 bn1 relu maxpool", "layer1", "layer2", "layer3", "layer4" + _POOL)
_SHUFFLENET = ("conv1 maxpool", "stage2", "stage3", "stage4", "conv5" + _POOL)


def _features(*children: str, end: str = _POOL) -> tuple[str, ...]:
    """Return the layers of five stages that are children of `features`."""
    stages = [f"features.{numbers}" for numbers in children]
    return (*stages[:-1], stages[-1] + end)


_EFFICIENTNET = _features("0-1", "2", "3", "4-5", "6-8")

STAGE_PLANS: dict[str, Plan] = {
    "resnet18": Plan(512, "fc", _RESNET),
    "resnet34": Plan(512, "fc", _RESNET),
    "resnet50": Plan(2048, "fc", _RESNET),
    "resnet101": Plan(2048, "fc", _RESNET),
    "resnext50_32x4d": Plan(2048, "fc", _RESNET),
    "wide_resnet50_2": Plan(2048, "fc", _RESNET),
    "mobilenet_v2": Plan(1280, "classifier", _features("0-1", "2-3", "4-6", "7-13", "14-18")),
    "mobilenet_v3_small": Plan(576, "classifier", _features("0", "1", "2-3", "4-8", "9-12")),
    "mobilenet_v3_large": Plan(960, "classifier", _features("0-1", "2-3", "4-6", "7-12", "13-16")),
    "efficientnet_b0": Plan(1280, "classifier", _EFFICIENTNET),
    "efficientnet_b1": Plan(1280, "classifier", _EFFICIENTNET),
    "efficientnet_b2": Plan(1408, "classifier", _EFFICIENTNET),
    "efficientnet_b3": Plan(1536, "classifier", _EFFICIENTNET),
    "efficientnet_v2_s": Plan(1280, "classifier", _features("0-1", "2", "3", "4-5", "6-7")),
    # The first layer of ConvNeXt's classifier normalises the pooled features, so it is part of the
    # last stage. The stem here and in Swin has stride 4, so stages 1 and 2 have one resolution.
    "convnext_tiny": Plan(
        768,
        "classifier.2",
        _features("0", "1", "2-3", "4-5", "6-7", end=" +pool classifier.0 +flatten"),
    ),
    # SqueezeNets halve only four times; the blocks after the third are cut into two stages.
    "squeezenet1_0": Plan(512, "classifier", _features("0-2", "3-6", "7-8", "9-11", "12")),
    "squeezenet1_1": Plan(512, "classifier", _features("0-2", "3-5", "6-8", "9-10", "11-12")),
    "shufflenet_v2_x0_5": Plan(1024, "fc", _SHUFFLENET),
    "shufflenet_v2_x1_0": Plan(1024, "fc", _SHUFFLENET),
    "densenet121": Plan(
        1024, "classifier", _features("0-3", "4-5", "6-7", "8-9", "10-11", end=" +relu" + _POOL)
    ),
    # Pooled to 1 × 1, not to the 7 × 7 that the classifier takes.
    "vgg16_bn": Plan(512, "classifier", _features("0-6", "7-13", "14-23", "24-33", "34-43")),
    "regnet_y_400mf": Plan(
        440,
        "fc",
        ("stem", *(f"trunk_output.block{i}" for i in (1, 2, 3)), "trunk_output.block4" + _POOL),
    ),
    "vit_b_16": Plan(
        768,
        "heads",
        (
            "+tokens encoder.layers.0-1",
            "encoder.layers.2-3",
            "encoder.layers.4-5",
            "encoder.layers.6-8",
            "encoder.layers.9-11 +class_token encoder.ln",
        ),
    ),
    "swin_t": Plan(
        768, "head", _features("0", "1", "2-3", "4-5", "6-7", end=" norm permute" + _POOL)
    ),
}


def build_network(name: str) -> tuple[nn.Module, int]:
    """Build one of torchvision's networks with random weights; return it and its feature size."""
    if name == "vgg16_bn":
        features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
        with torch.device("meta"):  # without allocating the classifier's 119 million weights
            return vgg.VGG(features), STAGE_PLANS[name].feature_size
    return get_model(name, weights=None, num_classes=1), STAGE_PLANS[name].feature_size


def cut_into_stages(net: nn.Module, name: str) -> list[nn.Module]:
    """Return the five stages of a network, which are made of its own modules."""
    return [
        nn.Sequential(*(layer for word in stage.split() for layer in _layers(net, word)))
        for stage in STAGE_PLANS[name].stages
    ]


def _layers(net: nn.Module, word: str) -> Iterator[nn.Module]:
    """Yield the layers that one word of a plan stands for."""
    children = re.fullmatch(r"(.+)\.(\d+)-(\d+)", word)
    if children:
        parent, first, last = children.groups()
        yield from itertools.islice(net.get_submodule(parent).children(), int(first), int(last) + 1)
    elif word == "+tokens":
        yield _Tokens(net)
    elif word.startswith("+"):
        yield _WITHOUT_MODULE[word]()
    else:
        yield net.get_submodule(word)


class _Tokens(nn.Module):
    """Turns pixels into ViT's tokens: patches, class token and position embedding."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.patches = vit.get_submodule("conv_proj")
        self.class_token = vit.get_parameter("class_token")
        self.positions = vit.get_parameter("encoder.pos_embedding")

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height != width or height % 16:
            raise ValueError(
                f"vit_b_16 takes squares with a side that is a multiple of 16 pixels, but got"
                f" {height} × {width}"
            )
        # At 224 pixels, for which they were trained, this changes nothing.
        key = "encoder.pos_embedding"
        positions = interpolate_embeddings(height, 16, OrderedDict({key: self.positions}))[key]
        patches: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        encoded: Tensor = tokens + positions
        return encoded


class _ClassToken(nn.Module):
    """Selects the class token: [N, tokens, C] → [N, C]."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


_WITHOUT_MODULE: dict[str, Callable[[], nn.Module]] = {
    "+relu": partial(nn.ReLU, inplace=True),
    "+pool": partial(nn.AdaptiveAvgPool2d, 1),
    "+flatten": partial(nn.Flatten, 1),
    "+class_token": _ClassToken,
}
