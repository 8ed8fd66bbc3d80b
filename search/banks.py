"""Where view banks live: built by Ray tasks, owned by one actor, evicted by use.

The tasks' results belong to the actor, so they outlive trials and workers, and Ray computes them
again from their lineage when a node that held them is lost. Neither this file nor its imports load
PyTorch: the actor is there in a moment, and only the tasks need it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

# A view is built in blocks: as many machines as there are blocks can work on it. Their number
# follows from that of the pictures alone, so a bank does not depend on who built it.
_SMALLEST_BLOCK_PICTURES = 64
_MOST_BLOCKS = 16


@dataclass(frozen=True)
class BankPlan:
    """What a run's banks are made of.

    Attributes:
        bench: Reference to the run's `trainables.trial.Bench`.
        seed: Of the run.
        rows: int64 [n], the table rows of the pictures that trainings may see; never the test's.
        n_views: V.
        sizes: By backbone, bytes of the whole bank at boundaries 1 to 5.
        budget_bytes: What all banks may take together.
        gpus_per_task: Share of a GPU that a task takes while the banks are first built.
    """

    bench: Any
    seed: int
    rows: np.ndarray
    n_views: int
    sizes: Mapping[str, tuple[int, ...]]
    budget_bytes: int
    gpus_per_task: float

    @property
    def block_size(self) -> int:
        """Pictures in each block of a view."""
        return max(_SMALLEST_BLOCK_PICTURES, -(-len(self.rows) // _MOST_BLOCKS))


def store_bytes(share: float) -> int:
    """Return a share of the smallest node's object store."""
    stores = [
        int(node["Resources"].get("object_store_memory", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return int(min(stores) * share)


class Banks:
    """Owns every view that has been built, and builds what is asked for.

    It never waits: it hands out references to results that may still be on their way.
    """

    def __init__(self, plan: BankPlan) -> None:
        self._plan = plan
        # By backbone and boundary: by view, references to its blocks.
        self._views: OrderedDict[tuple[str, int], list[list[Any]]] = OrderedDict()
        row_of = np.full(int(plan.rows.max()) + 1, -1, np.int64)
        row_of[plan.rows] = np.arange(len(plan.rows))
        self._row_of = ray.put(row_of)

    def build(
        self, backbone: str, boundaries: Sequence[int], n_views: int, first: bool = True
    ) -> list[Any]:
        """Start building views 0 … n_views - 1 at some boundaries, in one pass a view.

        Args:
            backbone: Whose frozen stages.
            boundaries: Ascending, in 1 to 5.
            n_views: How many views; those that are there already are not built again.
            first: Whether no trial holds resources yet, so that tasks may ask for their own.

        Returns:
            For each block that is on its way, a reference to one of its boundaries.
        """
        if not boundaries:
            return []
        built = min(len(self._views.get((backbone, boundary), [])) for boundary in boundaries)
        started = []
        for view in range(built, n_views):
            made = self._start_view(backbone, boundaries, view, first)
            for boundary, blocks in zip(boundaries, made, strict=True):
                kept = self._views.setdefault((backbone, boundary), [])
                if len(kept) == view:
                    kept.append(blocks)
            started += made[0]
        return started

    def lend(
        self, backbone: str, boundary: int, n_views: int
    ) -> tuple[list[list[Any]], Any, int] | None:
        """Hand out the first views of a bank, building what is missing.

        Returns:
            By view, references to its blocks; a reference to each table row's place in a view;
            and the block size. None where the boundary does not fit the budget, so that the
            trial computes its features as it goes.
        """
        key = (backbone, boundary)
        size = self._plan.sizes[backbone][boundary - 1]
        if size > self._plan.budget_bytes // 2:
            return None
        if key not in self._views:
            self._make_room(size)
        self.build(backbone, (boundary,), n_views, first=False)
        self._views.move_to_end(key)
        return self._views[key][:n_views], self._row_of, self._plan.block_size

    def sizes_bytes(self) -> dict[str, int]:
        """Return the bytes each bank takes, by `backbone/boundary`."""
        plan = self._plan
        return {
            f"{name}/{boundary}": plan.sizes[name][boundary - 1] * len(views) // plan.n_views
            for (name, boundary), views in self._views.items()
        }

    def _make_room(self, size: int) -> None:
        """Forget the banks least recently used until one of `size` bytes fits."""
        taken = {key: self._plan.sizes[key[0]][key[1] - 1] for key in self._views}
        while taken and sum(taken.values()) + size > self._plan.budget_bytes:
            key, _ = self._views.popitem(last=False)
            del taken[key]

    def _start_view(
        self, backbone: str, boundaries: Sequence[int], view: int, first: bool
    ) -> list[list[Any]]:
        """Start the tasks of one view; return, by boundary, references to its blocks."""
        plan = self._plan
        # While trials hold the machine, a task that asked for a CPU of its own could wait for
        # the very trial that waits for it.
        gpus = plan.gpus_per_task if first else 0.0
        task: Any = _build_block.options(
            num_returns=len(boundaries), num_cpus=1 if first else 0, num_gpus=gpus
        )
        blocks: list[list[Any]] = []
        for start in range(0, len(plan.rows), plan.block_size):
            rows = plan.rows[start : start + plan.block_size]
            seed = (plan.seed * 1009 + view) * 1_000_003 + start
            made = task.remote(plan.bench, backbone, rows, view, plan.n_views, boundaries, seed)
            blocks.append(made if len(boundaries) > 1 else [made])
        return [list(parts) for parts in zip(*blocks, strict=True)]


def start_banks(plan: BankPlan) -> Any:
    """Start the actor that owns a run's banks."""
    return ray.remote(num_cpus=0)(Banks).remote(plan)


@ray.remote(max_retries=5)
def _build_block(
    bench: Any,
    backbone: str,
    rows: np.ndarray,
    view: int,
    n_views: int,
    boundaries: Sequence[int],
    seed: int,
) -> Any:
    """Compute one view of some pictures at some boundaries."""
    from trainables.trial import build_block

    parts = build_block(bench, backbone, rows, view, n_views, boundaries, seed)
    return parts[0] if len(parts) == 1 else parts
