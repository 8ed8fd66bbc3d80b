"""Find out in which order a network calls its modules, and where a single tensor leads on.

A network is run once on the meta device, without data. Every call of a module is recorded with the
tensor that it got and the one that it returned. Where one module's output is the next one's input,
the same object and unchanged, nothing happens between them, so the network can be cut there.

Two names of PyTorch here are private, since there are no public ones: `torch.utils._pytree`, by
which torch.export takes arguments apart, and `Tensor._version`, by which autograd notices changes
in place. `tests/trainables/models/test_module_chain.py` fails where they change.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        path: The module's name in the network.
        module: The module, on the meta device.
        given: Its first argument; None if that is no tensor.
        given_version: How often that tensor had been changed in place before the call.
        has_more: Whether it got other arguments.
        is_pure: Whether the other arguments depend neither on the images nor on weights.
        result: What it returned; None if that is no tensor.
        result_version: How often that had been changed in place at the end of the call.
        changes_input: Whether it changed its input in place.
        calls: The calls that it made itself, in order.
    """

    path: str
    module: nn.Module
    given: Tensor | None
    given_version: int = 0
    has_more: bool = False
    is_pure: bool = True
    result: Tensor | None = None
    result_version: int = 0
    changes_input: bool = False
    calls: list[Call] = field(default_factory=list)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the module."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def n_positions(self) -> int:
        """Number of positions of the output: of pixels or tokens; 1 for a vector."""
        return count_positions(self.result)

    @property
    def keeps_positions(self) -> bool:
        """Whether input and output have equally many positions."""
        return count_positions(self.given) == self.n_positions

    def expanded(self) -> list[Call]:
        """Return the calls that together are this one; empty if it does more than they do."""
        calls = chain_to(self.result, self.result_version, self.calls)
        starts = bool(calls) and len(calls) == len(self.calls) and _follows(calls[0], self)
        return calls if starts and not self.has_more else []


@dataclass(frozen=True, eq=False)
class Trace:
    """The calls of a network, in order.

    Attributes:
        features: A pseudo-call of `forward_features`, with its calls.
        head: The calls of `forward_head`.
        output: The pooled features.
    """

    features: Call
    head: list[Call]
    output: Tensor


def count_positions(tensor: Tensor | None) -> int:
    """Count the positions of a feature map [N, C, H, W] or [N, H, W, C], or of tokens [N, n, C]."""
    shape = () if tensor is None else tuple(tensor.shape[1:])
    if len(shape) == 3:
        # Images are square, so two equal sides tell where the channels are.
        return shape[1] * shape[2] if shape[1] == shape[2] else shape[0] * shape[1]
    return shape[0] if len(shape) == 2 else 1


def chain_to(result: Tensor | None, version: int, calls: list[Call]) -> list[Call]:
    """Return the longest row of last calls, each of which takes the one before it's output.

    Args:
        result: What the last one has to return.
        version: How often that has been changed in place.
        calls: All calls, in order.
    """
    found: list[Call] = []
    for call in reversed(calls):
        if call.result is None or call.result is not result or call.result_version != version:
            break
        if call.given is None or not call.is_pure:
            break
        found.insert(0, call)
        result, version = call.given, call.given_version
    return found


def trace(net: nn.Module, image_size: int) -> Trace:
    """Run a network of timm's interface on the meta device and record its calls.

    Args:
        net: Has `forward_features` and `forward_head`; it is not changed.
        image_size: Side of the images in pixels.
    """
    net = on_meta(net).eval()
    images = torch.empty(2, 3, image_size, image_size, device="meta", requires_grad=True)
    root = Call("", net, images)
    with torch.enable_grad(), _recording(net, root):
        root.result = net.forward_features(images)  # type: ignore[operator]
        root.result_version = root.result._version if isinstance(root.result, Tensor) else 0
        n_calls = len(root.calls)
        output = net.forward_head(root.result, pre_logits=True)  # type: ignore[operator]
    head = root.calls[n_calls:]
    root.calls = root.calls[:n_calls]
    return Trace(root, head, output)


def on_meta(net: nn.Module) -> nn.Module:
    """Return a copy of a network without data, whose parameters require gradients."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        memo[id(tensor)] = tensor.detach().to("meta")
    for parameter in net.parameters():
        # A tensor that depends on weights then requires gradients, and a constant does not.
        memo[id(parameter)].requires_grad_(parameter.is_floating_point())
    return copy.deepcopy(net, memo)


@contextmanager
def _recording(net: nn.Module, root: Call) -> Iterator[None]:
    """Record calls of a network's modules as calls of `root`."""
    stack = [root]

    def before(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        more = (args[1:], kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves(more) if isinstance(leaf, Tensor)]
        call = Call(
            path,
            module,
            given,
            given_version=0 if given is None else given._version,
            has_more=bool(args[1:] or kwargs),
            is_pure=not any(tensor.requires_grad for tensor in tensors),
        )
        stack[-1].calls.append(call)
        stack.append(call)

    def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        call = stack.pop()
        if isinstance(result, Tensor):
            call.result, call.result_version = result, result._version
        changed = call.given is not None and call.given._version != call.given_version
        call.changes_input = changed

    handles = []
    for path, module in net.named_modules():
        if module is net:
            continue

        def before_it(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            before(path, module, args, kwargs)

        handles.append(module.register_forward_pre_hook(before_it, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _follows(first: Call, whole: Call) -> bool:
    """Return whether a call gets the input of the one that makes it, unchanged."""
    return first.given is whole.given and first.given_version == whole.given_version


def n_elements(tensor: Tensor | None) -> int:
    """Count the elements of one image's tensor."""
    return 0 if tensor is None else math.prod(tensor.shape[1:])
