"""Fold batch normalisation into the convolutions before it, for faster inference.

In eval mode batch normalisation is a fixed scale and shift per channel, which the weights and the
bias of a convolution can include. The features stay the same to within rounding and take up to a
third less time (MobileNetV2, 224 px, bfloat16).
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trainables.models.backbones import Backbone
from trainables.models.module_chain import on_meta


def fold_batchnorm(backbone: Backbone) -> Backbone:
    """Return a copy of a backbone for inference, its batch normalisation folded.

    A BatchNorm is folded if it takes a convolution's output and is registered right after that
    convolution, in the same parent module. A BatchNorm elsewhere (DenseNet has some that come
    before their convolution) stays as it is.
    """
    folded = copy.deepcopy(backbone).eval()
    modules = dict(folded.named_modules())
    for path, norm_path in _adjacent(folded) & _consecutive(backbone):
        conv, norm = modules[path], modules[norm_path]
        folded.set_submodule(path, fuse_conv_bn_eval(conv, norm))
        # timm's BatchNorm contains the activation after it.
        folded.set_submodule(norm_path, nn.Sequential(*norm.children()))
    return folded


def _adjacent(network: nn.Module) -> set[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms registered right after them."""
    return {
        (f"{parent}.{name}".removeprefix("."), f"{parent}.{next_name}".removeprefix("."))
        for parent, module in network.named_modules()
        for (name, conv), (next_name, norm) in itertools.pairwise(list(module.named_children()))
        if _has_plain_weight(conv) and isinstance(norm, nn.BatchNorm2d)
    }


def _has_plain_weight(module: nn.Module) -> bool:
    """Return whether a module convolves with its weight as it is, not with a standardised one.

    `Conv2dSame` is timm's, and differs in its padding alone.
    """
    return type(module) is nn.Conv2d or type(module).__name__ == "Conv2dSame"


def _consecutive(backbone: Backbone) -> set[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms that take their output.

    The network is run once without data.
    """
    network = on_meta(backbone).eval()
    outputs: dict[int, tuple[str, Tensor]] = {}
    pairs: set[tuple[str, str]] = set()
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def keep(_: nn.Module, __: object, output: Tensor, path: str = path) -> None:
                outputs[id(output)] = path, output

            module.register_forward_hook(keep)
        elif isinstance(module, nn.BatchNorm2d):

            def pair(_: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                if found := outputs.get(id(args[0])):
                    pairs.add((found[0], path))

            module.register_forward_pre_hook(pair)
    size = backbone.image_size
    with torch.no_grad():
        network(torch.empty(1, 3, size, size, device="meta"))
    return pairs
