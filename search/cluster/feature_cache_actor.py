"""Where view banks live: built by Ray tasks, owned by one actor, evicted by use.

The tasks' results belong to the actor, so they outlive trials and workers. When a machine that held
some is lost, they are computed again. Neither this file nor its imports load
PyTorch: the actor is there in a moment, and only the tasks need it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from search.cluster.nodes import EVERYWHERE, machines, on_driver_node

# A view is built in blocks: as many machines as there are blocks can work on it. Their number
# follows from that of the images alone, so a bank does not depend on who built it.
_MIN_BLOCK_IMAGES = 64
_MAX_BLOCKS = 16


BlockSpec = tuple[Any, str, np.ndarray, int, int, Sequence[int], int]


@dataclass(frozen=True)
class FeatureCachePlan:
    """What a run's banks are made of.

    Attributes:
        context: Reference to the run's `trainables.trial.TrainingContext`.
        seed: Of the run.
        rows: int64 [n], the table rows of the images that trainings may see; never the test's.
        n_views: V.
        sizes: By backbone, bytes of the whole bank at boundaries 1 to 5.
        budget_bytes: What all banks may take together.
        gpus_per_task: Share of a GPU that a task takes while the banks are first built.
    """

    context: Any
    seed: int
    rows: np.ndarray
    n_views: int
    sizes: Mapping[str, tuple[int, ...]]
    budget_bytes: int
    gpus_per_task: float

    def first_stage_outputs(self, depths: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Choose what is built before the first trial, while the budget lasts.

        The deepest boundaries first, which save most, and of those the smallest.

        Args:
            depths: Boundaries that trials may ask for.

        Returns:
            By backbone, its boundaries, ascending.
        """
        left = self.budget_bytes
        chosen: dict[str, list[int]] = {name: [] for name in self.sizes}
        by_worth = sorted(
            (-d, self.sizes[name][d - 1], name) for name in self.sizes for d in depths
        )
        for minus_depth, size, name in by_worth:
            if size <= left:
                left -= size
                chosen[name].append(-minus_depth)
        return {name: tuple(sorted(kept)) for name, kept in chosen.items()}

    @property
    def block_size(self) -> int:
        """Images in each block of a view."""
        return max(_MIN_BLOCK_IMAGES, -(-len(self.rows) // _MAX_BLOCKS))


def store_bytes(share: float) -> int:
    """Return a share of the smallest node's object store."""
    return int(min(machine.store_bytes for machine in machines()) * share)


class FeatureCacheActor:
    """Owns every view that has been built, and builds what is asked for.

    It never waits: it hands out references to results that may still be on their way.
    """

    def __init__(self, plan: FeatureCachePlan) -> None:
        self._plan = plan
        # By backbone and boundary: by view, references to its blocks.
        self._views: OrderedDict[tuple[str, int], list[list[Any]]] = OrderedDict()
        self._asked: Counter[tuple[str, int]] = Counter()
        self._last_rebuilt: Any = None
        # By backbone, boundary, view and place: the blocks of tasks that asked for CPUs.
        self._first: set[tuple[str, int, int, int]] = set()
        self._are_built = False
        row_of = np.full(int(plan.rows.max()) + 1, -1, np.int64)
        row_of[plan.rows] = np.arange(len(plan.rows))
        self._row_of = ray.put(row_of)
        # After a crash Ray starts the actor anew: what was built is gone, and known to be wanted.
        in_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
        self._is_anew = in_actor and ray.get_runtime_context().was_current_actor_reconstructed

    def build(self, backbone: str, stage_outputs: Sequence[int], n_views: int) -> list[Any]:
        """Start building views 0 … n_views - 1 at some boundaries, in one pass a view.

        For before the first trial: the tasks ask for CPUs, and GPUs, of their own.

        Args:
            backbone: Whose frozen stages.
            stage_outputs: Ascending, in 1 to 5; at least one.
            n_views: How many views; those that are there already are not built again.

        Returns:
            For each block that is on its way, a reference to one of its boundaries.
        """
        task: Any = _build_block.options(
            num_returns=len(stage_outputs) + 1,
            num_cpus=1,
            num_gpus=self._plan.gpus_per_task,
            scheduling_strategy=EVERYWHERE,
        )
        built = min(
            len(self._views.get((backbone, stage_output), [])) for stage_output in stage_outputs
        )
        started = []
        for view in range(built, n_views):
            blocks = [
                task.remote(*self._block(backbone, stage_outputs, view, start), None)
                for start in self._block_starts()
            ]
            for place, stage_output in enumerate(stage_outputs):
                kept = self._views.setdefault((backbone, stage_output), [])
                if len(kept) == view:
                    kept.append([block[place] for block in blocks])
                    self._first |= {(backbone, stage_output, view, i) for i in range(len(blocks))}
            started += [block[0] for block in blocks]
        return started

    def built(self) -> None:
        """Note that all that `build` started has ended: what is not there from now on is lost."""
        self._are_built = True

    def get_views(
        self, backbone: str, stage_output: int, n_views: int
    ) -> tuple[list[list[Any]], Any, int] | None:
        """Hand out the first views of a bank.

        A bank that is not there is built when it is asked for the second time (the first trial
        might have been the only one, and stopped after an epoch). The least recently used make room
        for it, but for those at a deeper boundary: they save more.

        Returns:
            By view, references to its blocks; a reference to each table row's place in a view;
            and the block size. None where the trial is to compute its features as it goes.
        """
        key = (backbone, stage_output)
        size = self._plan.sizes[backbone][stage_output - 1]
        if key not in self._views:
            self._asked[key] += 1
            is_wanted = self._asked[key] > 1 or self._is_anew
            is_large = size > self._plan.budget_bytes // 2
            if is_large or not is_wanted or not self._make_room(size, stage_output):
                return None
            self._views[key] = []
        while len(self._views[key]) < n_views:
            self._views[key].append(self._rebuild(backbone, stage_output, len(self._views[key])))
        if self._are_built:
            self._replace_lost(backbone, stage_output, n_views)
        self._views.move_to_end(key)
        return self._views[key][:n_views], self._row_of, self._plan.block_size

    def sizes_bytes(self) -> dict[str, int]:
        """Return the bytes each bank takes, by `backbone/boundary`."""
        plan = self._plan
        return {
            f"{name}/{stage_output}": plan.sizes[name][stage_output - 1]
            * len(views)
            // plan.n_views
            for (name, stage_output), views in self._views.items()
        }

    def _make_room(self, size: int, stage_output: int) -> bool:
        """Forget banks at boundaries no deeper, least recently used first, until `size` bytes fit.

        Returns:
            Whether they fit; if not, none is forgotten.
        """
        taken = {key: self._plan.sizes[key[0]][key[1] - 1] for key in self._views}
        room = self._plan.budget_bytes - sum(taken.values())
        forgotten = []
        for key in self._views:
            if room < size and key[1] <= stage_output:
                room += taken[key]
                forgotten.append(key)
        if room < size:
            return False
        for key in forgotten:
            del self._views[key]
            self._first = {block for block in self._first if block[:2] != key}
        return True

    def _replace_lost(self, backbone: str, stage_output: int, n_views: int) -> None:
        """Start building again what was lost with its machine.

        Ray would do it from the block's lineage, by a task that asks for the CPUs of the first one,
        while trials hold all of them and wait for the block.
        """
        views = self._views[backbone, stage_output][:n_views]
        first = {
            (backbone, stage_output, view, place): block
            for view, blocks in enumerate(views)
            for place, block in enumerate(blocks)
            if (backbone, stage_output, view, place) in self._first
        }
        if not first:
            return
        waited_for = list(first.values())
        _, lost = ray.wait(waited_for, num_returns=len(first), timeout=5.0, fetch_local=False)
        for key, block in first.items():
            if block in lost:
                view, place = key[2:]
                start = self._block_starts()[place]
                views[view][place] = self._rebuild_block(backbone, stage_output, view, start)
                self._first.discard(key)

    def _rebuild(self, backbone: str, stage_output: int, view: int) -> list[Any]:
        """Start building a view while trials hold the machine."""
        starts = self._block_starts()
        return [self._rebuild_block(backbone, stage_output, view, start) for start in starts]

    def _rebuild_block(self, backbone: str, stage_output: int, view: int, start: int) -> Any:
        """Start building a block while trials hold the machine.

        A task that asked for a CPU could wait for the very trial that waits for it; so these ask
        for none, and run one after the other.
        """
        task: Any = _build_block.options(num_returns=2, num_cpus=0)
        spec = self._block(backbone, (stage_output,), view, start)
        block, self._last_rebuilt = task.remote(*spec, self._last_rebuilt)
        return block

    def _block_starts(self) -> range:
        return range(0, len(self._plan.rows), self._plan.block_size)

    def _block(
        self, backbone: str, stage_outputs: Sequence[int], view: int, start: int
    ) -> BlockSpec:
        plan = self._plan
        rows = plan.rows[start : start + plan.block_size]
        seed = (plan.seed * 1009 + view) * 1_000_003 + start
        return plan.context, backbone, rows, view, plan.n_views, stage_outputs, seed


def start_feature_cache(plan: FeatureCachePlan) -> Any:
    """Start the actor that owns a run's banks, beside the driver: the banks are lost with it."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_RestartableFeatureCache)
    pickled_reference = cloudpickle.dumps(ray.put(plan))
    return actor.options(scheduling_strategy=on_driver_node()).remote(pickled_reference)


class _RestartableFeatureCache(FeatureCacheActor):
    """Banks that begin from a pickled reference to their plan.

    Ray does not vouch for references in the arguments of an actor that it starts again, nor for
    arguments so large that it makes references of them, and says so on the terminal. References
    that we pickle stay valid for as long as the driver lives.
    """

    def __init__(self, pickled_reference: bytes) -> None:
        super().__init__(ray.get(cloudpickle.loads(pickled_reference)))


@ray.remote(max_retries=5)
def _build_block(
    context: Any,
    backbone: str,
    rows: np.ndarray,
    view: int,
    n_views: int,
    stage_outputs: Sequence[int],
    seed: int,
    after: None,
) -> list[np.ndarray | None]:
    """Compute one view of some images at some boundaries.

    Returns:
        By boundary, the features' bits; and a last None for another task to wait for (`after`).
    """
    from trainables.worker import build_block

    return [*build_block(context, backbone, rows, view, n_views, stage_outputs, seed), None]
