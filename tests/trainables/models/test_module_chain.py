"""What the chain of a network's modules rests on, PyTorch's private names among it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trainables.models.module_chain import chain_to, trace


class Net(nn.Module):
    """Has timm's interface: two layers, of which the second may change its input in place."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.ReLU(inplace=inplace)

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.second(self.first(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        return x.mean((2, 3))


def test_arguments_are_taken_apart_and_put_together() -> None:
    arguments = ((1, [torch.ones(2)]), {"scale": 3.0, "more": (None, "text")})
    leaves, structure = pytree.tree_flatten(arguments)
    assert leaves == pytree.tree_leaves(arguments)
    assert sum(isinstance(leaf, Tensor) for leaf in leaves) == 1
    assert pytree.tree_unflatten(leaves, structure) == arguments


def test_a_change_in_place_counts() -> None:
    x = torch.zeros(2, device="meta")
    before = x._version
    x.add_(1)
    assert x._version > before


def test_calls_are_recorded_in_their_order() -> None:
    features = trace(Net(inplace=False), 8).features
    assert [call.path for call in features.calls] == ["first", "second"]
    assert not any(call.changes_input for call in features.calls)
    chain = chain_to(features.result, features.result_version, features.calls)
    assert [call.path for call in chain] == ["first", "second"]


def test_a_module_that_changes_its_input_is_noticed() -> None:
    calls = trace(Net(inplace=True), 8).features.calls
    assert [call.changes_input for call in calls] == [False, True]
