"""Keep the backbones that a worker used last, up to a size."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable

from trainables.models.backbones import Backbone

MAX_BYTES = 512 * 2**20
"""Weights that a worker keeps at most, unless those of one backbone are more."""


class RecentBackbones:
    """Backbones by a key; those that were not used for longest are dropped first.

    A ranking of many backbones would fill each worker's memory otherwise.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Backbone] = OrderedDict()

    def get(self, key: Hashable, create: Callable[[], Backbone]) -> Backbone:
        """Return the backbone of a key, which is created where it is not kept."""
        if key not in self._kept:
            self._kept[key] = create()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(map(_count_bytes, self._kept.values())) > MAX_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]


def _count_bytes(backbone: Backbone) -> int:
    return sum(t.nbytes for t in itertools.chain(backbone.parameters(), backbone.buffers()))
