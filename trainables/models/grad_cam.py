"""Grad-CAM heat maps of a model (Selvaraju et al., arXiv 1610.02391).

A heat map is the gradient of a class's logit with respect to the last feature map, times that map,
summed over the channels. Where a backbone averages its last feature map over the positions, the
gradient is the same at each of them and this equals Grad-CAM. A transformer that classifies by a
class token has no such average: its feature map is the input of the last block, and the gradient
keeps a value for each position (HiResCAM, arXiv 2011.08891).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from trainables.images import crop_pixels
from trainables.models.classifier import Classifier
from trainables.models.ensemble import Ensemble
from trainables.models.model import Model
from trainables.models.timm_stages import Head, Trunk

_BATCH_SIZE = 8  # small, because the gradient needs the activations of the whole network


class GradCamError(ValueError):
    """The backbone has no feature map to compute a heat map from."""


def grad_cam(model: Model, images: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Compute a Grad-CAM heat map of one class for each image.

    Args:
        model: The model; it is not changed. Of several parts, the one with the highest weight is
            explained.
        images: uint8 [N, S, S, 3] with S the card's `cache_size`, N >= 1.
        classes: The class index to explain, for each image.

    Returns:
        float32 [N, h, w] in [0, 1], scaled so that each image's highest value is 1; all 0 where
        no position speaks for the class. h and w are the last feature map's, about 1/32 of the
        image's.

    Raises:
        GradCamError: the backbone has no feature map in its last stage.
    """
    # A copy in plain float32: gradients of half precision are coarse.
    ensemble = (
        copy.deepcopy(model.parts[0]).float().to(memory_format=torch.contiguous_format).eval()
    )
    # The centre-crop branch has a feature map of its own, of the centre alone.
    ensemble.center_crop = None
    device = next(ensemble.parameters()).device
    parts = []
    for start in range(0, len(images), _BATCH_SIZE):
        batch = images[start : start + _BATCH_SIZE].to(device)
        pixels = crop_pixels(batch, ensemble.card.image_size).contiguous()
        targets = torch.tensor(classes[start : start + _BATCH_SIZE], device=device)
        parts.append(_gradient_maps(ensemble, pixels, targets).cpu().numpy())
    maps = np.maximum(np.concatenate(parts), 0.0)
    highest = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0))


def _gradient_maps(ensemble: Ensemble, pixels: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the members' gradient × activation maps: [N, h, w]."""
    from captum.attr import LayerGradientXActivation  # slow to import, and rarely needed

    # Members with a common last stage have one map between them.
    layers = list(dict.fromkeys(_pooling_layer(member) for member in ensemble.classifiers))
    method = LayerGradientXActivation(lambda x: ensemble(x).mean(0), layers)
    with torch.enable_grad():
        products = method.attribute(
            pixels.requires_grad_(), target=targets, attribute_to_layer_input=True
        )
    parts = [products] if isinstance(products, Tensor) else [*_flatten(products)]
    n_prefix_tokens = _count_prefix_tokens(ensemble.classifiers[0])
    return torch.stack([_sum_channels(part.detach(), n_prefix_tokens) for part in parts]).sum(0)


def _pooling_layer(classifier: Classifier) -> nn.Module:
    """Return the layer whose input is the last feature map."""
    backbone = classifier.backbone
    if isinstance(backbone.stages[0], Trunk):
        return backbone.stages[0].features
    n_prefix_tokens = 0
    for layer in reversed(list(backbone.stages[-1].children())):
        if isinstance(layer, Head):
            n_prefix_tokens = layer.n_prefix_tokens
        is_block = n_prefix_tokens > 0 and not isinstance(layer, Head) and any(layer.children())
        averages = isinstance(layer, Head) and n_prefix_tokens == 0
        if averages or is_block or isinstance(layer, nn.AdaptiveAvgPool2d | EncoderBlock):
            return layer
    raise GradCamError(f"{backbone.name} has no feature map in its last stage")


def _flatten(products: Sequence[Tensor | tuple[Tensor, ...]]) -> Iterator[Tensor]:
    for product in products:
        yield product if isinstance(product, Tensor) else product[0]


def _sum_channels(product: Tensor, n_prefix_tokens: int) -> Tensor:
    """Sum a feature map [N, C, h, w], [N, h, w, C] or tokens [N, n, C] over C: [N, h, w].

    Raises:
        GradCamError: it is none of these, or its tokens are no square.
    """
    if product.dim() == 4:
        return product.sum(1 if product.shape[2] == product.shape[3] else 3)
    n_tokens = product.shape[1] - n_prefix_tokens if product.dim() == 3 else 0
    side = math.isqrt(max(0, n_tokens))
    if side == 0 or side**2 != n_tokens:
        raise GradCamError(f"features of shape {list(product.shape[1:])} are no map of the image")
    # Class tokens have no position.
    return product[:, n_prefix_tokens:].sum(2).reshape(-1, side, side)


def _count_prefix_tokens(classifier: Classifier) -> int:
    """Count the tokens before those of the patches."""
    for module in classifier.backbone.modules():
        if isinstance(module, Head | Trunk):
            return module.n_prefix_tokens
    return 1 if any(isinstance(m, EncoderBlock) for m in classifier.backbone.modules()) else 0
