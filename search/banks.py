"""Where view banks live: built by Ray tasks, owned by one actor, evicted by use.

The tasks' results belong to the actor, so they outlive trials and workers, and Ray computes them
again from their lineage when a node that held them is lost. Neither this file nor its imports load
PyTorch: the actor is there in a moment, and only the tasks need it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

# A view is built in blocks: as many machines as there are blocks can work on it. Their number
# follows from that of the pictures alone, so a bank does not depend on who built it.
_SMALLEST_BLOCK_PICTURES = 64
_MOST_BLOCKS = 16


BlockSpec = tuple[Any, str, np.ndarray, int, int, Sequence[int], int]


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

    def first_boundaries(self, depths: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Choose what is built before the first trial: smallest first, while the budget lasts.

        Args:
            depths: Boundaries that trials may ask for.

        Returns:
            By backbone, its boundaries, ascending.
        """
        left = self.budget_bytes
        chosen: dict[str, list[int]] = {name: [] for name in self.sizes}
        by_size = sorted((self.sizes[name][d - 1], name, d) for name in self.sizes for d in depths)
        for size, name, depth in by_size:
            if size <= left:
                left -= size
                chosen[name].append(depth)
        return {name: tuple(sorted(kept)) for name, kept in chosen.items()}

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
        self._asked: Counter[tuple[str, int]] = Counter()
        self._last_rebuilt: Any = None
        row_of = np.full(int(plan.rows.max()) + 1, -1, np.int64)
        row_of[plan.rows] = np.arange(len(plan.rows))
        self._row_of = ray.put(row_of)

    def build(self, backbone: str, boundaries: Sequence[int], n_views: int) -> list[Any]:
        """Start building views 0 … n_views - 1 at some boundaries, in one pass a view.

        For before the first trial: the tasks ask for CPUs, and GPUs, of their own.

        Args:
            backbone: Whose frozen stages.
            boundaries: Ascending, in 1 to 5; at least one.
            n_views: How many views; those that are there already are not built again.

        Returns:
            For each block that is on its way, a reference to one of its boundaries.
        """
        task: Any = _build_block.options(
            num_returns=len(boundaries) + 1, num_cpus=1, num_gpus=self._plan.gpus_per_task
        )
        built = min(len(self._views.get((backbone, boundary), [])) for boundary in boundaries)
        started = []
        for view in range(built, n_views):
            blocks = [
                task.remote(*self._block(backbone, boundaries, view, start), None)
                for start in self._block_starts()
            ]
            for place, boundary in enumerate(boundaries):
                kept = self._views.setdefault((backbone, boundary), [])
                if len(kept) == view:
                    kept.append([block[place] for block in blocks])
            started += [block[0] for block in blocks]
        return started

    def lend(
        self, backbone: str, boundary: int, n_views: int
    ) -> tuple[list[list[Any]], Any, int] | None:
        """Hand out the first views of a bank.

        A bank that is not there is built when it is asked for the second time (the first trial
        might have been the only one, and stopped after an epoch), and the least recently used make
        room for it.

        Returns:
            By view, references to its blocks; a reference to each table row's place in a view;
            and the block size. None where the trial is to compute its features as it goes.
        """
        key = (backbone, boundary)
        size = self._plan.sizes[backbone][boundary - 1]
        if key not in self._views:
            self._asked[key] += 1
            if size > self._plan.budget_bytes // 2 or self._asked[key] < 2:
                return None
            self._make_room(size)
            self._views[key] = []
        while len(self._views[key]) < n_views:
            self._views[key].append(self._rebuild(backbone, boundary, len(self._views[key])))
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

    def _rebuild(self, backbone: str, boundary: int, view: int) -> list[Any]:
        """Start building a view while trials hold the machine.

        A task that asked for a CPU could wait for the very trial that waits for it; so these ask
        for none, and run one after the other.
        """
        task: Any = _build_block.options(num_returns=2, num_cpus=0)
        blocks = []
        for start in self._block_starts():
            made = task.remote(*self._block(backbone, (boundary,), view, start), self._last_rebuilt)
            blocks.append(made[0])
            self._last_rebuilt = made[1]
        return blocks

    def _block_starts(self) -> range:
        return range(0, len(self._plan.rows), self._plan.block_size)

    def _block(self, backbone: str, boundaries: Sequence[int], view: int, start: int) -> BlockSpec:
        plan = self._plan
        rows = plan.rows[start : start + plan.block_size]
        seed = (plan.seed * 1009 + view) * 1_000_003 + start
        return plan.bench, backbone, rows, view, plan.n_views, boundaries, seed


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
    after: None,
) -> list[np.ndarray | None]:
    """Compute one view of some pictures at some boundaries.

    Returns:
        By boundary, the features' bits; and a last None for another task to wait for (`after`).
    """
    from trainables.trial import build_block

    return [*build_block(bench, backbone, rows, view, n_views, boundaries, seed), None]
