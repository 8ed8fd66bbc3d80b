"""A backbone: a network cut into five stages, any number of which can be frozen.

A convolutional network halves its resolution five times, and is cut there; transformers are cut
into five even groups of blocks. So a freeze depth means the same for every backbone.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torchvision.models import get_model, vgg
from torchvision.models.vision_transformer import interpolate_embeddings

from spaces.base import BACKBONES
from spaces.sources import did_you_mean
from trainables.models.small_networks import cnn_stages, tinynet_stages
from trainables.models.weights import fit_weights

N_STAGES = 5


class Backbone(nn.Module):
    """A network that turns images into features, as five stages.

    Boundary k is what the first k stages make of the images: boundary 0 is the normalised pixels
    [N, 3, H, W], boundary 5 the pooled features [N, feature_size]. No stage changes its input in
    place, so a boundary can be kept and used again.

    Attributes:
        name: One of `spaces.base.BACKBONES`.
        stages: Exactly five.
        feature_size: Number of features of an image.
        freeze_depth: Leading stages that are frozen, as last set by `freeze`.
    """

    def __init__(self, name: str, stages: Sequence[nn.Module], feature_size: int) -> None:
        super().__init__()
        if len(stages) != N_STAGES:
            raise ValueError(f"a backbone must have {N_STAGES} stages, but got {len(stages)}")
        self.name = name
        self.stages = nn.ModuleList(stages)
        self.feature_size = feature_size
        self.freeze_depth = 0

    def forward(self, x: Tensor, first: int = 0, last: int = N_STAGES) -> Tensor:
        """Run stages[first:last].

        Args:
            x: What lies at boundary `first`.
            first: In [0, 5].
            last: In [first, 5].

        Returns:
            What lies at boundary `last`; for 5, features [N, feature_size].
        """
        for stage in itertools.islice(self.stages, first, last):
            x = stage(x)
        return x

    def freeze(self, depth: int) -> None:
        """Freeze the first `depth` stages and make the others trainable.

        A frozen stage has no gradients and stays in eval mode: its BatchNorm statistics stand
        still, its dropout and stochastic depth are off.

        Args:
            depth: In [0, 5]; 5 leaves nothing to train here.

        Raises:
            ValueError: the depth is out of range.
        """
        if not 0 <= depth <= N_STAGES:
            raise ValueError(f"0 <= freeze_depth <= {N_STAGES} must hold, but got {depth}")
        self.freeze_depth = depth
        for index, stage in enumerate(self.stages):
            stage.requires_grad_(index >= depth)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; frozen stages stay in eval mode."""
        super().train(mode)
        for stage in itertools.islice(self.stages, self.freeze_depth):
            stage.eval()
        return self

    @torch.no_grad()
    def stage_output_shapes(self, image_size: int) -> tuple[tuple[int, ...], ...]:
        """Compute what shape one image has at boundaries 1 to 5, without running the network.

        Args:
            image_size: Side of the images in pixels.

        Returns:
            Five shapes without the batch: [C, H, W] for most nets ([H, W, C] for swin_t,
            [tokens, C] for vit_b_16), the last one [feature_size].

        Raises:
            ValueError: the network cannot take images of this size.
        """
        # A shadow on the meta device, which has shapes and no data: nothing is copied or computed.
        tensors = itertools.chain(self.parameters(), self.buffers())
        shadow = copy.deepcopy(self, memo={id(t): t.to("meta") for t in tensors}).eval()
        x = torch.empty(1, 3, image_size, image_size, device="meta")
        shapes = []
        try:
            for stage in shadow.stages:
                x = stage(x)
                shapes.append(tuple(x.shape[1:]))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.name} cannot take images of {image_size} × {image_size} pixels: {error}"
            ) from error
        return tuple(shapes)


def create_backbone(
    name: str, state_dict: Mapping[str, Tensor] | None = None, seed: int = 0
) -> Backbone:
    """Build a backbone on the CPU, unfrozen, with the weights given or random ones.

    Args:
        name: One of `spaces.base.BACKBONES`.
        state_dict: Weights under torchvision's own keys; for `tinynet` and `cnn`, under those of
            their stages ("0.…" to "4.…"). They are copied. The classifier's are ignored. None
            starts from scratch.
        seed: Of the random weights; the global random state stays untouched.

    Raises:
        ValueError: there is no such backbone.
        WeightsError: the weights do not fit; the message names the keys.
    """
    if name not in BACKBONES:
        hint = did_you_mean(name, BACKBONES)
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, but got {name!r}{hint}")
    if state_dict is None:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also seed the GPUs.
            torch.default_generator.manual_seed(seed)
            net, feature_size = _build(name)
    else:
        # On the meta device no time goes into random weights. RegNet's constructor computes its
        # widths with tensors, which cannot be done there.
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            net, feature_size = _build(name)
        fit_weights(net, state_dict, name, _PLANS[name].classifier if name in _PLANS else None)
    return Backbone(name, _cut(net, name), feature_size)


@dataclass(frozen=True)
class _Plan:
    """How one of torchvision's networks becomes five stages.

    Attributes:
        feature_size: Channels of the pooled features.
        classifier: The module that turns features into classes, which is left out.
        stages: What each stage is made of: names of modules in the network, where "features.2-3"
            are the children 2 and 3 of `features`, and a + marks what torchvision's `forward` does
            without a module. A pooling layer ends its stage instead of opening the next: it has no
            weights, and the boundary that the view bank keeps takes a quarter of the memory.
    """

    feature_size: int
    classifier: str
    stages: tuple[str, ...]


_POOL = " +pool +flatten"
_RESNET = ("conv1 bn1 relu maxpool", "layer1", "layer2", "layer3", "layer4" + _POOL)
_SHUFFLENET = ("conv1 maxpool", "stage2", "stage3", "stage4", "conv5" + _POOL)


def _features(*children: str, end: str = _POOL) -> tuple[str, ...]:
    """Make stages of the children of `features`."""
    stages = [f"features.{numbers}" for numbers in children]
    return (*stages[:-1], stages[-1] + end)


_EFFICIENTNET = _features("0-1", "2", "3", "4-5", "6-8")

_PLANS: dict[str, _Plan] = {
    "resnet18": _Plan(512, "fc", _RESNET),
    "resnet34": _Plan(512, "fc", _RESNET),
    "resnet50": _Plan(2048, "fc", _RESNET),
    "resnet101": _Plan(2048, "fc", _RESNET),
    "resnext50_32x4d": _Plan(2048, "fc", _RESNET),
    "wide_resnet50_2": _Plan(2048, "fc", _RESNET),
    "mobilenet_v2": _Plan(1280, "classifier", _features("0-1", "2-3", "4-6", "7-13", "14-18")),
    "mobilenet_v3_small": _Plan(576, "classifier", _features("0", "1", "2-3", "4-8", "9-12")),
    "mobilenet_v3_large": _Plan(960, "classifier", _features("0-1", "2-3", "4-6", "7-12", "13-16")),
    "efficientnet_b0": _Plan(1280, "classifier", _EFFICIENTNET),
    "efficientnet_b1": _Plan(1280, "classifier", _EFFICIENTNET),
    "efficientnet_b2": _Plan(1408, "classifier", _EFFICIENTNET),
    "efficientnet_b3": _Plan(1536, "classifier", _EFFICIENTNET),
    "efficientnet_v2_s": _Plan(1280, "classifier", _features("0-1", "2", "3", "4-5", "6-7")),
    # The first layer of ConvNeXt's classifier normalises the pooled features, so it belongs to
    # them. The stem has stride 4 in one step here and in Swin: stages 1 and 2 share a resolution.
    "convnext_tiny": _Plan(
        768,
        "classifier.2",
        _features("0", "1", "2-3", "4-5", "6-7", end=" +pool classifier.0 +flatten"),
    ),
    # SqueezeNets halve only four times; the blocks between the last two make two stages.
    "squeezenet1_0": _Plan(512, "classifier", _features("0-2", "3-6", "7-8", "9-11", "12")),
    "squeezenet1_1": _Plan(512, "classifier", _features("0-2", "3-5", "6-8", "9-10", "11-12")),
    "shufflenet_v2_x0_5": _Plan(1024, "fc", _SHUFFLENET),
    "shufflenet_v2_x1_0": _Plan(1024, "fc", _SHUFFLENET),
    "densenet121": _Plan(
        1024, "classifier", _features("0-3", "4-5", "6-7", "8-9", "10-11", end=" +relu" + _POOL)
    ),
    # Pooled to 1 × 1, not to the 7 × 7 that the classifier takes.
    "vgg16_bn": _Plan(512, "classifier", _features("0-6", "7-13", "14-23", "24-33", "34-43")),
    "regnet_y_400mf": _Plan(
        440,
        "fc",
        ("stem", *(f"trunk_output.block{i}" for i in (1, 2, 3)), "trunk_output.block4" + _POOL),
    ),
    "vit_b_16": _Plan(
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
    "swin_t": _Plan(
        768, "head", _features("0", "1", "2-3", "4-5", "6-7", end=" norm permute" + _POOL)
    ),
}

_SMALL = {"tinynet": tinynet_stages, "cnn": cnn_stages}


def _build(name: str) -> tuple[nn.Module, int]:
    """Build a network with the keys that its state dict has; return it with its feature size."""
    if name in _SMALL:
        stages, feature_size = _SMALL[name]()
        return nn.ModuleList(stages), feature_size
    if name == "vgg16_bn":
        features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
        with torch.device("meta"):  # The classifier's 119 million weights are never allocated.
            return vgg.VGG(features), _PLANS[name].feature_size
    return get_model(name, weights=None, num_classes=1), _PLANS[name].feature_size


def _cut(net: nn.Module, name: str) -> list[nn.Module]:
    """Cut a network into its five stages, which share its modules."""
    if name in _SMALL:
        return list(net.children())
    return [
        nn.Sequential(*(layer for word in stage.split() for layer in _layers(net, word)))
        for stage in _PLANS[name].stages
    ]


def _layers(net: nn.Module, word: str) -> Iterator[nn.Module]:
    """Find the layers that one word of a plan means."""
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
    """What ViT's `forward` does before its blocks: patches, class token, position embedding."""

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
        # Returned as they are at 224 pixels, for which they were trained.
        key = "encoder.pos_embedding"
        positions = interpolate_embeddings(height, 16, OrderedDict({key: self.positions}))[key]
        patches: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        encoded: Tensor = tokens + positions
        return encoded


class _ClassToken(nn.Module):
    """Picks the class token: [N, tokens, C] → [N, C]."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


_WITHOUT_MODULE: dict[str, Callable[[], nn.Module]] = {
    "+relu": partial(nn.ReLU, inplace=True),
    "+pool": partial(nn.AdaptiveAvgPool2d, 1),
    "+flatten": partial(nn.Flatten, 1),
    "+class_token": _ClassToken,
}
