"""Cut networks of timm into five stages, which are made of their own modules.

What comes before the first place to cut (patches, position embeddings) and the pooling after the
last are left to timm's code: copies of the network with the other modules taken out. A network that
cannot be cut is one trunk: its first stage is all of it, and the others do nothing. `_pytree` is
private: see `trainables.models.module_chain`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trainables.models.network_cut import N_STAGES, Cut


def cut_network(net: nn.Module, cut: Cut, image_size: int) -> list[nn.Module]:
    """Return the five stages of a network, which are made of its own modules.

    Args:
        net: The network that `find_cut` has seen, in eval mode.
        cut: What it returned.
        image_size: Side in pixels of the images that the stages will take.
    """
    if not cut.groups:
        return [Trunk(net), *(nn.Identity() for _ in range(N_STAGES - 1))]
    units = {path: net.get_submodule(path) for group in cut.groups for path in group}
    if cut.has_more:
        units |= _with_arguments(net, cut, image_size)
    stages = [[units[path] for path in group] for group in cut.groups]
    if cut.front:
        stages[0].insert(0, Features(_front(net, cut)))
    stages[-1].append(Head(_head(net, cut)))
    return [nn.Sequential(*modules) for modules in stages]


def _with_arguments(net: nn.Module, cut: Cut, image_size: int) -> dict[str, nn.Module]:
    """Return the modules that get other arguments than a tensor, together with those.

    The arguments depend on the size of the images alone (`Call.is_pure`), as rotary position
    embeddings do. They are recorded while the network runs without the modules of its stages.
    """
    front = _front(net, cut)
    recorders = {path: _Recorder() for path in cut.has_more}
    for path, recorder in recorders.items():
        front.set_submodule(path, recorder)
    device = next(net.parameters()).device
    with torch.no_grad():
        front.forward_features(torch.zeros(1, 3, image_size, image_size, device=device))  # type: ignore[operator]
    return {
        path: _WithArguments(net.get_submodule(path), *recorder.more)
        for path, recorder in recorders.items()
    }


def _front(net: nn.Module, cut: Cut) -> nn.Module:
    """Return a copy of a network without the modules of its stages and its head."""
    taken = {path for group in cut.groups for path in group} | set(cut.head)
    return _copied(net, {module: _Pass() for path, module in net.named_modules() if path in taken})


def _head(net: nn.Module, cut: Cut) -> nn.Module:
    """Return a copy of a network with nothing but the modules of its head."""
    replaced: dict[nn.Module, nn.Module] = {}
    for path, module in net.named_modules():
        if path in cut.head:
            replaced[module] = module
        elif path and not any(one.startswith(f"{path}.") for one in cut.head):
            replaced[module] = _Pass()
    head = _copied(net, replaced)
    own = (*net.named_parameters(recurse=False), *net.named_buffers(recurse=False))
    for name, _ in own:
        delattr(head, name)
    return head


def _copied(net: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a network with some modules replaced, and its tensors not copied."""
    # What `deepcopy` finds in its memo it takes instead of a copy.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    memo |= {id(module): other for module, other in replaced.items()}
    return copy.deepcopy(net, memo)


class _Pass(nn.Module):
    """Stands in for a module that was taken out: returns its first argument."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


class _Recorder(nn.Module):
    """Stands in for a module and keeps its arguments after the first."""

    more: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.more = (args, kwargs)
        return x


class _WithArguments(nn.Module):
    """Calls a module with further arguments, whose tensors are buffers that are not saved."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        leaves, self._structure = pytree.tree_flatten((args, kwargs))
        self._constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"argument_{index}", leaf, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        leaves = [
            getattr(self, f"argument_{index}", constant)
            for index, constant in enumerate(self._constants)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        result: Tensor = self.module(x, *args, **kwargs)
        return result


class Features(nn.Module):
    """The part of a network before the first place to cut."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Run `forward_features`."""
        features: Tensor = self.net.forward_features(x)  # type: ignore[operator]
        return features


class Head(nn.Module):
    """The part of a network that pools its features.

    Attributes:
        n_prefix_tokens: Number of class tokens and the like before the tokens of the patches.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.n_prefix_tokens = _n_prefix_tokens(net)

    def forward(self, x: Tensor) -> Tensor:
        """Run `forward_head` without the classifier."""
        features: Tensor = self.net.forward_head(x, pre_logits=True)  # type: ignore[operator]
        return features


class Trunk(nn.Module):
    """A network that cannot be cut.

    Attributes:
        features: Returns the features before they are pooled.
        n_prefix_tokens: See `Head`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.features = nn.Identity()
        self.n_prefix_tokens = _n_prefix_tokens(net)

    def forward(self, x: Tensor) -> Tensor:
        """Run all of the network but its classifier."""
        features = self.features(self.net.forward_features(x))  # type: ignore[operator]
        pooled: Tensor = self.net.forward_head(features, pre_logits=True)  # type: ignore[operator]
        return pooled


def _n_prefix_tokens(net: nn.Module) -> int:
    return int(getattr(net, "num_prefix_tokens", 0))
