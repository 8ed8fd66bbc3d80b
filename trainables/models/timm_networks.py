"""Build networks of timm, with given or random weights, for images of one size.

timm is imported where it is used: it takes three seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spaces.timm_names import PREFIX, load_timm, timm_problem
from trainables.models.network_cut import find_cut
from trainables.models.timm_stages import cut_network
from trainables.pretrained.weights import WeightsError, copy_weights


@dataclass(frozen=True)
class TimmNetwork:
    """A network of timm in five stages.

    Attributes:
        stages: The five stages; of a network that cannot be cut, the first is all of it.
        feature_size: Number of pooled features.
        is_trunk: Whether it could not be cut.
        mean: Mean of red, green and blue that it was trained with, of values in [0, 1].
        std: Their standard deviation.
    """

    stages: list[nn.Module]
    feature_size: int
    is_trunk: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def create_timm(
    backbone: str, image_size: int, state_dict: Mapping[str, Tensor] | None
) -> TimmNetwork:
    """Build a network of timm in five stages, without its classifier.

    Args:
        backbone: `timm/` and timm's name, with or without a tag.
        image_size: Side in pixels of the images that it will take. Position embeddings of
            pretrained weights are resampled to it, as timm does.
        state_dict: Weights under timm's keys, with or without the classifier's, or under those of
            the stages ("0.…" to "4.…"); None initialises them from the global random state.

    Raises:
        ValueError: timm has no such network, or it cannot take images of this size.
        WeightsError: the weights do not fit; the message names the keys.
    """
    timm = load_timm()
    if problem := timm_problem(backbone):
        raise ValueError(problem)
    name = backbone.removeprefix(PREFIX)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ValueError(f"timm knows no size of images, mean and deviation of {backbone}")
    options: dict[str, Any] = {"img_size": image_size} if config.fixed_input_size else {}
    of_stages = state_dict is not None and all(key.split(".")[0].isdigit() for key in state_dict)
    try:
        if state_dict is None or of_stages:
            net = timm.create_model(name, num_classes=0, **options)
        else:
            net = _pretrained(name, state_dict, config.classifier or (), options)
    except WeightsError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{backbone} cannot take images of {image_size} × {image_size} pixels: {error}"
        ) from error
    net.eval()
    # Where a network is cut must not depend on the size of the images.
    size = image_size if config.fixed_input_size else config.input_size[-1]
    try:
        cut = find_cut(net, size)
    except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{backbone} cannot be a backbone, which turns images into pooled features: {error}"
        ) from error
    stages = cut_network(net, cut, image_size)
    if of_stages and state_dict is not None:
        copy_weights(nn.ModuleList(stages), state_dict, backbone, None)
    mean, std = (tuple(map(float, values)) for values in (config.mean, config.std))
    return TimmNetwork(stages, cut.feature_size, not cut.groups, mean, std)  # type: ignore[arg-type]


def _pretrained(
    name: str,
    state_dict: Mapping[str, Tensor],
    classifiers: str | Sequence[str],
    options: Mapping[str, Any],
) -> nn.Module:
    """Build a network with weights under timm's keys.

    timm itself converts them: it renames keys of older files and of other authors, and resamples
    what depends on the size of the images.
    """
    timm = load_timm()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    ignored = tuple(f"{classifier}." for classifier in classifiers)
    weights = {key: value for key, value in state_dict.items() if not key.startswith(ignored)}
    # With as many classes as the network has, namely none, timm demands that all keys fit.
    overlay = {"state_dict": weights, "num_classes": 0, "label_offset": 0, "custom_load": False}
    try:
        net: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options
        )
    except (RuntimeError, KeyError) as error:
        net = timm.create_model(name, num_classes=0, **options)
        copy_weights(net, weights, PREFIX + name, None)  # names the keys that do not fit
        raise WeightsError(f"the weights do not fit {PREFIX}{name}: {error}") from error
    for attribute in ("pretrained_cfg", "default_cfg"):
        # timm keeps a copy of the weights there.
        setattr(net, attribute, {**getattr(net, attribute), "state_dict": None})
    return net
