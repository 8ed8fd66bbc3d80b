"""A backbone: a network in five stages, of which any number of leading ones can be frozen.

So a freeze depth means the same for every backbone, and hyperparameters carry over.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from spaces.rules import backbone_problem, is_own_network
from spaces.timm_names import PREFIX
from trainables.models.network_cut import N_STAGES
from trainables.models.normalisation import Normalise
from trainables.models.own_networks import OwnNetwork, create_own
from trainables.models.small_networks import SMALL_NETWORKS
from trainables.models.timm_networks import create_timm
from trainables.models.torchvision_stages import STAGE_PLANS, build_network, cut_into_stages
from trainables.pretrained.weights import copy_weights

DEFAULT_IMAGE_SIZE = 224

_BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


class Backbone(nn.Module):
    """A network of five stages that turns images into features.

    Its input are pixels [N, 3, H, W] in [0, 1], which it normalises as its network was trained, and
    the output of stage 5 are pooled features [N, feature_size]. No stage changes its input in
    place, so outputs can be cached.

    Attributes:
        name: See `spaces.rules.backbone_problem`.
        normalise: Is applied to the pixels before the first stage.
        stages: The five stages.
        feature_size: Number of pooled features.
        image_size: Side in pixels of the images that it was built for; most networks take others,
            too.
        is_trunk: Whether the network could not be cut. Then the first stage is all of it, so the
            freeze depths 1 to 5 are one.
        freeze_depth: Number of leading stages that are frozen.
        freezes_statistics: Whether the BatchNorm statistics of the other stages are frozen, too.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[nn.Module],
        feature_size: int,
        image_size: int = DEFAULT_IMAGE_SIZE,
        is_trunk: bool = False,
        normalise: Normalise | None = None,
    ) -> None:
        super().__init__()
        if len(stages) != N_STAGES:
            raise ValueError(f"a backbone must have {N_STAGES} stages, but got {len(stages)}")
        self.name = name
        self.normalise = Normalise() if normalise is None else normalise
        self.stages = nn.ModuleList(stages)
        self.feature_size = feature_size
        self.image_size = image_size
        self.is_trunk = is_trunk
        self.freeze_depth = 0
        self.freezes_statistics = False

    def forward(self, x: Tensor, start: int = 0, stop: int = N_STAGES) -> Tensor:
        """Run stages[start:stop], and before the first one the normalisation.

        Args:
            x: Output of the first `start` stages; for 0, pixels in [0, 1].
            start: In [0, 5].
            stop: In [start, 5].

        Returns:
            Output of the first `stop` stages; for 5, pooled features [N, feature_size].
        """
        if start == 0 < stop:
            x = self.normalise(x)
        for stage in itertools.islice(self.stages, start, stop):
            x = stage(x)
        return x

    def freeze(self, depth: int, freezes_statistics: bool = False) -> None:
        """Freeze the first `depth` stages and make the others trainable.

        A frozen stage has no gradients and stays in eval mode: its BatchNorm statistics do not
        change, and its dropout and stochastic depth are off.

        Args:
            depth: In [0, 5].
            freezes_statistics: Whether BatchNorm layers of the trainable stages normalise by their
                pretrained mean and variance instead of those of each batch, and keep them. Their
                scales and biases are trained all the same.

        Raises:
            ValueError: the depth is out of range.
        """
        if not 0 <= depth <= N_STAGES:
            raise ValueError(f"0 <= freeze_depth <= {N_STAGES} must hold, but got {depth}")
        self.freeze_depth, self.freezes_statistics = depth, freezes_statistics
        for index, stage in enumerate(self.stages):
            stage.requires_grad_(index >= depth)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; frozen stages and frozen statistics stay in eval mode."""
        super().train(mode)
        for module in self.stages.modules() if self.freezes_statistics else ():
            if isinstance(module, _BATCH_NORMS):
                module.eval()
        for stage in itertools.islice(self.stages, self.freeze_depth):
            stage.eval()
        return self

    @torch.no_grad()
    def stage_output_shapes(self, image_size: int) -> tuple[tuple[int, ...], ...]:
        """Compute the shape of each stage's output for one image, without running the network.

        Args:
            image_size: Side of the images in pixels.

        Returns:
            Five shapes without the batch: [C, H, W] for most networks ([H, W, C] for swin_t,
            [tokens, C] for vit_b_16), and [feature_size] for the last.

        Raises:
            ValueError: the network cannot take images of this size.
        """
        # Tensors on the meta device have shapes and no data, so nothing is copied or computed.
        tensors = itertools.chain(self.parameters(), self.buffers())
        network = copy.deepcopy(self, memo={id(t): t.to("meta") for t in tensors}).eval()
        x = torch.empty(1, 3, image_size, image_size, device="meta")
        shapes = []
        try:
            for stage in network.stages:
                x = stage(x)
                shapes.append(tuple(x.shape[1:]))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.name} cannot take images of {image_size} × {image_size} pixels: {error}"
            ) from error
        return tuple(shapes)


def create_backbone(
    name: str,
    state_dict: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    image_size: int = DEFAULT_IMAGE_SIZE,
) -> Backbone:
    """Build an unfrozen backbone on the CPU, with given or random weights.

    Args:
        name: See `spaces.rules.backbone_problem`.
        state_dict: Weights under torchvision's or timm's keys; for `tinynet`, `cnn` and networks
            of the user's own, under those of their stages ("0.…" to "4.…"). They are copied. The
            classifier's are ignored. None initialises the weights at random.
        seed: Seed of the random weights; the global random state does not change.
        image_size: Side in pixels of the images that it will take. Networks of timm that take
            images of one size are built for it.

    Raises:
        ValueError: there is no such backbone, or its function fails (`OwnNetworkError`).
        WeightsError: the weights do not fit; the message names the keys.
    """
    if problem := backbone_problem(name):
        raise ValueError(problem)
    if name.startswith(PREFIX) or is_own_network(name):
        with _seeded(seed):
            network = (
                _create_own(name, image_size, state_dict)
                if is_own_network(name)
                else create_timm(name, image_size, state_dict)
            )
        return Backbone(
            name,
            network.stages,
            network.feature_size,
            image_size,
            is_trunk=network.is_trunk,
            normalise=Normalise(network.mean, network.std),
        )
    if state_dict is None:
        with _seeded(seed):
            net, feature_size = _build(name)
    else:
        # The meta device saves the time of random weights. RegNet's constructor computes its
        # widths with tensors, which is not possible there.
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            net, feature_size = _build(name)
        plan = STAGE_PLANS.get(name)
        copy_weights(net, state_dict, name, plan.classifier if plan else None)
    return Backbone(name, _stages(net, name), feature_size, image_size)


def _create_own(name: str, image_size: int, state_dict: Mapping[str, Tensor] | None) -> OwnNetwork:
    network = create_own(name, image_size)
    if state_dict is not None:
        copy_weights(nn.ModuleList(network.stages), state_dict, name, None)
    return network


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random state within a block."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs.
        torch.default_generator.manual_seed(seed)
        yield


def _build(name: str) -> tuple[nn.Module, int]:
    """Build a network with the keys of its state dict; return it and its feature size."""
    if name in SMALL_NETWORKS:
        stages, feature_size = SMALL_NETWORKS[name]()
        return nn.ModuleList(stages), feature_size
    return build_network(name)


def _stages(net: nn.Module, name: str) -> list[nn.Module]:
    return list(net.children()) if name in SMALL_NETWORKS else cut_into_stages(net, name)
