"""Build and read the feature cache, from the driver and from workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError

from search.cluster.feature_cache_actor import (
    BuiltBlock,
    RestartableFeatureCacheActor,
    ViewReferences,
)
from search.cluster.feature_cache_plan import FeatureCachePlan
from search.cluster.nodes import on_driver_node
from search.cluster.session import ends_with_session

if TYPE_CHECKING:
    from trainables.feature_cache import FeatureCache

_log = logging.getLogger(__name__)

VIEWS_TIMEOUT_SECONDS = 30.0
"""How long a worker waits for views before it asks the actor whether they were lost."""

_MAX_LOSSES = 3
"""How often a worker tries to get views that were lost together with the actor."""


@dataclass(frozen=True)
class FeatureCacheClient:
    """Access to the cache, for the driver and for workers; a `trainables.worker.FeatureSource`.

    Attributes:
        actor: Handle of `FeatureCacheActor`.
        n_views: V, which sets the magnitudes of the views.
    """

    actor: Any
    n_views: int

    def start_build(self, backbone: str, stage_outputs: Sequence[int], n_views: int) -> list[Any]:
        """Start building views; see `FeatureCacheActor.build`."""
        reports: list[Any] = ray.get(self.actor.build.remote(backbone, stage_outputs, n_views))
        return reports

    def build(
        self,
        stage_outputs: Mapping[str, Sequence[int]],
        n_views: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        """Build views of several backbones before the first trial, and wait for them.

        Args:
            stage_outputs: By backbone, the stage outputs to cache, ascending.
            n_views: Number of views; those that exist already are not built again.
            on_progress: Called with the number of blocks that are built, and that of all.
        """
        pending = [
            reference
            for backbone, outputs in stage_outputs.items()
            if outputs
            for reference in self.start_build(backbone, outputs, n_views)
        ]
        n_blocks = len(pending)
        on_progress(0, n_blocks)
        built: list[BuiltBlock] = []
        while pending:
            (ready,), pending = ray.wait(pending)
            try:
                built.append(ray.get(ready))
            except RayError:  # trials that need this block fail, or it is built again for them
                _log.warning("a block of features could not be built", exc_info=True)
            on_progress(n_blocks - len(pending), n_blocks)
        ray.get(self.actor.end_initial_build.remote())
        for backbone, outputs in stage_outputs.items():
            blocks = [block for block in built if block.backbone == backbone]
            if blocks:
                _log.info(
                    "built %d views of %s at stage outputs %s: %.1f MB in %.1f s of tasks on %s",
                    n_views,
                    backbone,
                    list(outputs),
                    sum(block.n_bytes for block in blocks) / 2**20,
                    sum(block.seconds for block in blocks),
                    ", ".join(sorted({block.node for block in blocks})),
                )

    def view_references(
        self, backbone: str, stage_output: int, n_views: int
    ) -> ViewReferences | None:
        """Return references to the first views; see `FeatureCacheActor.get_views`."""
        references: ViewReferences | None = ray.get(
            self.actor.get_views.remote(backbone, stage_output, n_views)
        )
        return references

    def get_views(self, backbone: str, stage_output: int, augment: float) -> FeatureCache | None:
        """Return the views that a training may draw; see `trainables.worker.FeatureSource`.

        Views that were lost with a node are waited for until they have been built again.

        Raises:
            ObjectLostError: the actor was lost time and again.
        """
        from trainables.feature_cache import FeatureCache, as_features, count_views
        from trainables.images import as_tensor

        n_losses = 0
        while True:
            references = self.view_references(
                backbone, stage_output, count_views(augment, self.n_views)
            )
            if references is None:
                return None
            try:
                views = [
                    ray.get(blocks, timeout=VIEWS_TIMEOUT_SECONDS) for blocks in references.views
                ]
                row_of = as_tensor(ray.get(references.row_of))
            except GetTimeoutError:  # perhaps lost with a node: the actor checks, and rebuilds them
                continue
            except ObjectLostError:  # with the actor, which Ray has restarted since
                n_losses += 1
                if n_losses == _MAX_LOSSES:
                    raise
                continue
            tensors = tuple(tuple(as_features(block) for block in blocks) for blocks in views)
            return FeatureCache(tensors, self.n_views, row_of, references.block_size)

    def sizes_bytes(self) -> dict[str, int]:
        """Return the bytes that the views of each `backbone/stage_output` take."""
        sizes: dict[str, int] = ray.get(self.actor.sizes_bytes.remote())
        return sizes

    def log_lost_blocks(self) -> None:
        """Log how many blocks were lost with a node and built again, if there were any."""
        n_lost = ray.get(self.actor.n_lost_blocks.remote())
        if n_lost:
            _log.warning("%d blocks of cached features were lost with a node, and rebuilt", n_lost)


def start_feature_cache(plan: FeatureCachePlan) -> FeatureCacheClient:
    """Start the actor on the driver's node, so that only losing the driver loses the cache."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(
        RestartableFeatureCacheActor
    )
    pickled_reference = cloudpickle.dumps(ray.put(plan))
    handle = actor.options(scheduling_strategy=on_driver_node()).remote(pickled_reference)
    return FeatureCacheClient(ends_with_session(handle), plan.n_views)
