"""Cache of features in Ray's object store: Ray tasks build it, one actor holds the references.

The tasks' results belong to the actor, so they outlive trials and workers. The least recently used
are evicted, and those that were lost with a node are computed again. Neither this module nor its
imports load PyTorch, so that the actor starts at once; the tasks import it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from search.cluster.feature_cache_plan import FeatureCachePlan
from search.cluster.nodes import EVERYWHERE


@dataclass(frozen=True)
class ViewReferences:
    """References to the first views of one stage output.

    Attributes:
        views: By view, references to its blocks: int16 [n, *shape].
        row_of: Reference to the position of each table row in a view, -1 for rows that are not
            cached: int64 [N].
        block_size: Images in every block but the last.
    """

    views: list[list[Any]]
    row_of: Any
    block_size: int


@dataclass(frozen=True)
class BuiltBlock:
    """Report of a task that has built a block of a view.

    Attributes:
        backbone: Name of the backbone.
        n_bytes: Size of the features, at all stage outputs together.
        seconds: Seconds that the task took.
        node: Address of the node that it ran on.
    """

    backbone: str
    n_bytes: int
    seconds: float
    node: str


class FeatureCacheActor:
    """Holds references to all cached views, and starts the tasks that build them.

    No method waits for a task: references are returned while the features are being computed.
    """

    def __init__(self, plan: FeatureCachePlan) -> None:
        self._plan = plan
        # By backbone and stage output, least recently used first: by view, references to blocks.
        self._views: OrderedDict[tuple[str, int], list[list[Any]]] = OrderedDict()
        self._n_requests: Counter[tuple[str, int]] = Counter()
        self._n_lost_blocks = 0
        self._last_rebuilt: Any = None
        # Backbone, stage output, view and position of each block whose task needed a CPU.
        self._initial_blocks: set[tuple[str, int, int, int]] = set()
        self._initial_build_ended = False
        row_of = np.full(int(plan.rows.max()) + 1, -1, np.int64)
        row_of[plan.rows] = np.arange(len(plan.rows))
        self._row_of = ray.put(row_of)
        # Ray restarts the actor after a crash. Then all views are lost, but known to be in use.
        in_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
        self._restarted = in_actor and ray.get_runtime_context().was_current_actor_reconstructed

    def build(self, backbone: str, stage_outputs: Sequence[int], n_views: int) -> list[Any]:
        """Start building views 0 … n_views - 1 at several stage outputs, in one pass per view.

        To be called before the first trial: the tasks need CPUs, and GPUs, of their own.

        Args:
            backbone: Name of the backbone.
            stage_outputs: Ascending, in 1 to 5; at least one.
            n_views: Number of views; those that exist already are not built again.

        Returns:
            A reference to the `BuiltBlock` of each task that was started.
        """
        task: Any = build_block_task.options(
            num_returns=len(stage_outputs) + 1,
            num_cpus=1,
            num_gpus=self._plan.gpus_per_task,
            scheduling_strategy=EVERYWHERE,
        )
        n_built = min(
            len(self._views.get((backbone, stage_output), [])) for stage_output in stage_outputs
        )
        reports = []
        for view in range(n_built, n_views):
            blocks = [
                task.remote(*self._block_arguments(backbone, stage_outputs, view, start), None)
                for start in self._block_starts()
            ]
            for i, stage_output in enumerate(stage_outputs):
                views = self._views.setdefault((backbone, stage_output), [])
                if len(views) == view:
                    views.append([block[i] for block in blocks])
                    self._initial_blocks |= {
                        (backbone, stage_output, view, position) for position in range(len(blocks))
                    }
            reports += [block[-1] for block in blocks]
        return reports

    def end_initial_build(self) -> None:
        """Record that all tasks of `build` have ended: blocks that are missing now are lost."""
        self._initial_build_ended = True

    def get_views(self, backbone: str, stage_output: int, n_views: int) -> ViewReferences | None:
        """Return the first views of a stage output, and start building those that are missing.

        What is not cached is built at the second request: the first trial might have been the only
        one, and pruned after an epoch. The least recently used views are evicted to make room, but
        none of a deeper stage output, which saves more computation.

        Returns:
            The references; None where the trial is to compute its features itself.
        """
        key = (backbone, stage_output)
        size = self._plan.size(backbone, stage_output)
        if key not in self._views:
            self._n_requests[key] += 1
            is_in_use = self._n_requests[key] > 1 or self._restarted
            is_large = size > self._plan.budget_bytes // 2
            if is_large or not is_in_use or not self._make_room(size, stage_output):
                return None
            self._views[key] = []
        while len(self._views[key]) < n_views:
            self._views[key].append(self._rebuild(backbone, stage_output, len(self._views[key])))
        if self._initial_build_ended:
            self._rebuild_lost(backbone, stage_output, n_views)
        self._views.move_to_end(key)
        return ViewReferences(self._views[key][:n_views], self._row_of, self._plan.block_size)

    def sizes_bytes(self) -> dict[str, int]:
        """Return the bytes that the views of each `backbone/stage_output` take."""
        return {
            f"{name}/{stage_output}": self._plan.view_bytes[name][stage_output - 1] * len(views)
            for (name, stage_output), views in self._views.items()
        }

    def n_lost_blocks(self) -> int:
        """Return how many blocks were lost with a node, and built again."""
        return self._n_lost_blocks

    def _make_room(self, size: int, stage_output: int) -> bool:
        """Evict views at stage outputs no deeper than this until `size` bytes fit.

        Returns:
            Whether they fit; if not, nothing is evicted.
        """
        sizes = {key: self._plan.size(*key) for key in self._views}
        room = self._plan.budget_bytes - sum(sizes.values())
        evicted = []
        for key in self._views:
            if room < size and key[1] <= stage_output:
                room += sizes[key]
                evicted.append(key)
        if room < size:
            return False
        for key in evicted:
            del self._views[key]
            self._initial_blocks = {block for block in self._initial_blocks if block[:2] != key}
        return True

    def _rebuild_lost(self, backbone: str, stage_output: int, n_views: int) -> None:
        """Start building blocks again that were lost with their node.

        Ray would do so itself, but by a task that needs a CPU as the first one did, while trials
        hold all CPUs and wait for the block.
        """
        views = self._views[backbone, stage_output][:n_views]
        initial = {
            (backbone, stage_output, view, position): block
            for view, blocks in enumerate(views)
            for position, block in enumerate(blocks)
            if (backbone, stage_output, view, position) in self._initial_blocks
        }
        if not initial:
            return
        references = list(initial.values())
        _, lost = ray.wait(references, num_returns=len(initial), timeout=5.0, fetch_local=False)
        for key, block in initial.items():
            if block in lost:
                view, position = key[2:]
                start = self._block_starts()[position]
                views[view][position] = self._rebuild_block(backbone, stage_output, view, start)
                self._initial_blocks.discard(key)
                self._n_lost_blocks += 1

    def _rebuild(self, backbone: str, stage_output: int, view: int) -> list[Any]:
        """Start building a view while trials hold all CPUs."""
        starts = self._block_starts()
        return [self._rebuild_block(backbone, stage_output, view, start) for start in starts]

    def _rebuild_block(self, backbone: str, stage_output: int, view: int, start: int) -> Any:
        """Start building a block while trials hold all CPUs.

        A task that needs a CPU could wait for the very trial that waits for its block. So these
        need none, and run one after the other.
        """
        task: Any = build_block_task.options(num_returns=2, num_cpus=0)
        arguments = self._block_arguments(backbone, (stage_output,), view, start)
        block, self._last_rebuilt = task.remote(*arguments, self._last_rebuilt)
        return block

    def _block_starts(self) -> range:
        return range(0, len(self._plan.rows), self._plan.block_size)

    def _block_arguments(
        self, backbone: str, stage_outputs: Sequence[int], view: int, start: int
    ) -> tuple[Any, str, np.ndarray, int, int, Sequence[int], int]:
        plan = self._plan
        rows = plan.rows[start : start + plan.block_size]
        seed = (plan.seed * 1009 + view) * 1_000_003 + start
        return plan.context, backbone, rows, view, plan.n_views, stage_outputs, seed


class RestartableFeatureCacheActor(FeatureCacheActor):
    """Actor that starts from a pickled reference to its plan.

    Ray does not keep references in the arguments of an actor that it restarts, nor arguments so
    large that it replaces them by references, and warns on the terminal. References that we pickle
    stay valid for as long as the driver lives.
    """

    def __init__(self, pickled_reference: bytes) -> None:
        super().__init__(ray.get(cloudpickle.loads(pickled_reference)))


@ray.remote(max_retries=5)
def build_block_task(
    context: Any,
    backbone: str,
    rows: np.ndarray,
    view: int,
    n_views: int,
    stage_outputs: Sequence[int],
    seed: int,
    after: BuiltBlock | None,
) -> list[np.ndarray | BuiltBlock]:
    """Compute one view of some images at several stage outputs.

    Args:
        context: See `trainables.worker.build_block`, as for the next six.
        backbone: Name of the backbone.
        rows: Table rows of the images.
        view: Number of the view.
        n_views: V.
        stage_outputs: Ascending.
        seed: Seed of the augmentation.
        after: Report of the task that has to end before this one begins; None if there is none.

    Returns:
        By stage output, the bits of the features; and the report.
    """
    from search.cluster.resources import assigned_cpus
    from trainables.compute import configure_cpu
    from trainables.worker import build_block

    started = perf_counter()
    configure_cpu(assigned_cpus())
    features = build_block(context, backbone, rows, view, n_views, stage_outputs, seed)
    report = BuiltBlock(
        backbone,
        sum(block.nbytes for block in features),
        perf_counter() - started,
        str(ray.util.get_node_ip_address()),
    )
    return [*features, report]
