"""Find where to cut a network into five stages, from how it calls its modules.

A network is cut where it halves its resolution, a transformer into even groups of blocks, as
torchvision's are. Nothing here knows a network by its name: it is cut where one module's output is
the next one's input (`trainables.models.module_chain`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import nn

from trainables.models.module_chain import Call, Trace, chain_to, n_elements, trace

N_STAGES = 5
_MAX_FRONT = 0.5
"""Largest fraction of the parameters before the first place to cut; a trunk if there are more."""
_MAX_POOLING = 0.3
"""A downsampling module with a smaller fraction of its stage's parameters ends the stage before:
its output takes less memory in the feature cache."""


@dataclass(frozen=True)
class Cut:
    """Where a network is cut.

    Attributes:
        front: Modules that are called before the first place to cut, if any.
        groups: The modules of each stage, in order; empty for a trunk.
        head: Modules that `forward_head` calls.
        has_more: Modules that get other arguments than one tensor.
        feature_size: Number of pooled features.
    """

    front: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]
    has_more: frozenset[str]
    feature_size: int


def find_cut(net: nn.Module, image_size: int) -> Cut:
    """Find where to cut a network of timm's interface.

    Args:
        net: The network; it is not changed.
        image_size: Side in pixels of images that it takes.
    """
    recorded = trace(net, image_size)
    feature_size = recorded.output.shape[1]
    units = chain_to(
        recorded.features.result, recorded.features.result_version, recorded.features.calls
    )
    front = recorded.features.calls[: len(recorded.features.calls) - len(units)]
    if not front and units and units[0].given is not recorded.features.given:
        front, units = units, []
    groups = _five_groups(units) if _can_be_cut(recorded, units) else []
    return Cut(
        front=tuple(call.path for call in front) if groups else (),
        groups=tuple(tuple(call.path for call in group) for group in groups),
        head=tuple(dict.fromkeys(call.path for call in recorded.head)),
        has_more=frozenset(call.path for group in groups for call in group if call.has_more),
        feature_size=feature_size,
    )


def _can_be_cut(recorded: Trace, units: list[Call]) -> bool:
    """Return whether the chain has most parameters, and calls no module twice."""
    paths = [call.path for call in recorded.features.calls]
    if len(set(paths)) < len(paths):
        return False
    total = sum(call.n_parameters for call in recorded.features.calls)
    return sum(call.n_parameters for call in units) >= (1 - _MAX_FRONT) * total > 0


def _five_groups(units: list[Call]) -> list[list[Call]]:
    """Group the modules of a chain into five stages; empty if that is not possible.

    Containers are opened, the largest first: while that brings other resolutions to light, and then
    until there are enough places to cut.
    """
    while len(_by_resolution(units)) < N_STAGES:
        opened = [index for index in _by_size(units) if _hides_resolutions(units, index)]
        if not opened:
            break
        units = _opened(units, opened[0])
    while not (groups := _groups(units)):
        if not (by_size := _by_size(units)):
            return []
        units = _opened(units, by_size[0])
    return _without_changed_inputs(_with_pooling_last(groups))


def _by_size(units: list[Call]) -> list[int]:
    """Return the indices of the modules that can be opened, the largest first."""
    can_open = [index for index, call in enumerate(units) if len(call.expanded()) > 1]
    return sorted(can_open, key=lambda index: -units[index].n_parameters)


def _opened(units: list[Call], index: int) -> list[Call]:
    return [*units[:index], *units[index].expanded(), *units[index + 1 :]]


def _hides_resolutions(units: list[Call], index: int) -> bool:
    """Return whether a chain has more resolutions with one module opened, down to the last part."""
    flat = [*units[:index], *_flattened(units[index]), *units[index + 1 :]]
    return len(_by_resolution(flat)) > len(_by_resolution(units))


def _flattened(call: Call) -> list[Call]:
    parts = call.expanded()
    return [leaf for part in parts for leaf in _flattened(part)] if parts else [call]


def _groups(units: list[Call]) -> list[list[Call]]:
    """Group modules by the resolution of their output, into five groups; empty if too few."""
    groups = _by_resolution(units)
    if len(groups) == 1:
        return _evenly(units)
    if len(groups) < N_STAGES:
        groups = [*_split_stem(groups[0]), *groups[1:]]
    while len(groups) < N_STAGES:
        largest = max(range(len(groups)), key=lambda index: _n_parameters(groups[index]))
        halves = _halves(groups[largest])
        if len(halves) < 2:
            return []
        groups[largest : largest + 1] = halves
    while len(groups) > N_STAGES:
        groups[:2] = [groups[0] + groups[1]]
    return groups


def _by_resolution(units: list[Call]) -> list[list[Call]]:
    groups: list[list[Call]] = []
    positions = 0
    for call in units:
        # A class token more is no other resolution, and what is pooled is no stage of its own.
        if groups and (call.n_positions > 0.6 * positions or call.n_positions == 1):
            groups[-1].append(call)
        else:
            groups.append([call])
            positions = call.n_positions
    return groups


def _evenly(units: list[Call]) -> list[list[Call]]:
    """Cut a chain of one resolution into five groups of about equally many parameters."""
    total, before = _n_parameters(units), 0
    groups: list[list[Call]] = [[] for _ in range(N_STAGES)]
    for call in units:
        middle = before + call.n_parameters / 2
        groups[min(N_STAGES - 1, int(N_STAGES * middle / max(1, total)))].append(call)
        before += call.n_parameters
    return groups if all(map(_n_parameters, groups)) else []


def _split_stem(group: list[Call]) -> list[list[Call]]:
    """Split the modules before the first block of a group from the others."""
    for index, call in enumerate(group):
        if index and call.keeps_positions and call.calls and call.n_parameters:
            return [group[:index], group[index:]]
    return [group]


def _halves(group: list[Call]) -> list[list[Call]]:
    """Split a group where both parts have about equally many parameters."""
    cuts = [
        i for i in range(1, len(group)) if _n_parameters(group[:i]) and _n_parameters(group[i:])
    ]
    if not cuts:
        return [group]
    best = min(cuts, key=lambda i: abs(_n_parameters(group[:i]) - _n_parameters(group[i:])))
    return [group[:best], group[best:]]


def _with_pooling_last(groups: list[list[Call]]) -> list[list[Call]]:
    """Move small downsampling modules from the beginning of a stage to the one before."""
    for before, group in itertools.pairwise(groups):
        first = group[0]
        is_small = first.n_parameters <= _MAX_POOLING * _n_parameters(group[1:])
        if is_small and 2 * n_elements(first.result) < n_elements(first.given):
            before.append(group.pop(0))
    return groups


def _without_changed_inputs(groups: list[list[Call]]) -> list[list[Call]]:
    """Move modules that change their input in place away from the beginning of a stage.

    The output of the stage before may be cached, or shared by several members.
    """
    for before, group in itertools.pairwise(groups):
        while group and group[0].changes_input:
            before.append(group.pop(0))
    return groups if all(groups) else []


def _n_parameters(calls: list[Call]) -> int:
    return sum(call.n_parameters for call in calls)
