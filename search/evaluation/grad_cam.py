"""Where in an image the model found what it says: Grad-CAM (Selvaraju et al., arXiv 1610.02391).

It is the gradient of a class's logit by the last feature map, times that map, summed over its
channels.
All backbones but ViT average that map over its positions, so the gradient is the same at each of
them, and this is Grad-CAM itself. ViT has no such average: the map is what enters its last block,
and the gradient stays that of each position (HiResCAM, arXiv 2011.08891).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from trainables.images import crop_and_normalise
from trainables.models.ensemble import Classifier, Ensemble

_BATCH = 8  # the whole network's activations are kept for the gradient


class AttributionError(ValueError):
    """A model has no map of places."""


def attribute(ensemble: Ensemble, images: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Tell where an ensemble finds a class.

    Args:
        ensemble: Stays as it is.
        images: uint8 [N, S, S, 3] with S the card's `cache_size`, N >= 1.
        classes: For each image, the index of the class to look for.

    Returns:
        float32 [N, h, w] with 1 where most speaks for the class and 0 where nothing does; all of
        an image's are 0 where nothing in it speaks for the class. h and w are those of the last
        feature map, about 1/32 of the image's.

    Raises:
        AttributionError: the backbone ends in no map of places.
    """
    # A copy in plain float32: gradients of half precision are coarse.
    model = copy.deepcopy(ensemble).float().to(memory_format=torch.contiguous_format).eval()
    model.center_crop = None  # it sees the same middle again, and its map would be of that alone
    device = next(model.parameters()).device
    maps = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH].to(device)
        pixels = crop_and_normalise(batch, model.card.image_size).contiguous()
        wanted = torch.tensor(classes[start : start + _BATCH], device=device)
        maps.append(_attribute(model, pixels, wanted).cpu().numpy())
    found = np.maximum(np.concatenate(maps), 0.0)
    highest = found.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(found, highest, out=np.zeros_like(found), where=highest > 0))


def _attribute(model: Ensemble, pixels: Tensor, classes: Tensor) -> Tensor:
    """Return the members' maps, added up: [N, h, w]."""
    from captum.attr import LayerGradientXActivation  # Takes a while, and is needed last.

    # Members that share their last stage share its map too.
    layers = list(dict.fromkeys(_last_map(member) for member in model.classifiers))
    method = LayerGradientXActivation(lambda x: model(x).mean(0), layers)
    with torch.enable_grad():
        products = method.attribute(
            pixels.requires_grad_(), target=classes, attribute_to_layer_input=True
        )
    parts = [products] if isinstance(products, Tensor) else [*_flat(products)]
    return torch.stack([_by_place(part.detach()) for part in parts]).sum(0)


def _last_map(classifier: Classifier) -> nn.Module:
    """Return the layer that takes in the last map of places."""
    last = list(classifier.backbone.stages[-1].children())
    for layer in reversed(last):
        if isinstance(layer, nn.AdaptiveAvgPool2d | EncoderBlock):
            return layer
    raise AttributionError(f"{classifier.backbone.name} ends in no map of places")


def _flat(products: Sequence[Tensor | tuple[Tensor, ...]]) -> Iterator[Tensor]:
    for product in products:
        yield product if isinstance(product, Tensor) else product[0]


def _by_place(product: Tensor) -> Tensor:
    """Sum over channels: [N, C, h, w], or ViT's [N, 1 + h·w, C], becomes [N, h, w]."""
    if product.dim() == 4:
        return product.sum(1)
    places = product[:, 1:].sum(2)  # the class token is no place
    side = math.isqrt(places.shape[1])
    return places.reshape(-1, side, side)
