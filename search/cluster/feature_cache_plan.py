"""Plan of the feature cache: which images and views it holds, and how much memory it may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A view is built in blocks, by as many nodes in parallel as there are blocks. Their number depends
# on the number of images alone, so that features do not depend on which nodes there are.
MIN_BLOCK_IMAGES = 64
MAX_BLOCKS = 16


@dataclass(frozen=True)
class FeatureCachePlan:
    """What a run caches, and how much memory that may take.

    Attributes:
        context: Reference to the run's `trainables.worker.FeatureContext`.
        seed: Seed of the run.
        rows: int64 [n], table rows of the training and validation images; never of test images.
        n_views: V, which sets the magnitudes of the views.
        n_drawn: Number of views that trainings can draw, at most V; the others are not built.
        view_bytes: By backbone, bytes of one view at stage outputs 1 to 5.
        budget_bytes: Maximum size of the cache.
        gpus_per_task: Fraction of a GPU for each task that builds features before the first trial.
    """

    context: Any
    seed: int
    rows: np.ndarray
    n_views: int
    n_drawn: int
    view_bytes: Mapping[str, tuple[int, ...]]
    budget_bytes: int
    gpus_per_task: float

    def choose_stage_outputs(
        self, backbones: Sequence[str], depths: Sequence[int]
    ) -> dict[str, tuple[int, ...]]:
        """Choose the stage outputs to build before the first trial, within the budget.

        The deepest come first, since they save most of the computation; of these the smallest.

        Args:
            backbones: The backbones that are searched.
            depths: Freeze depths that trials may have, from 1.

        Returns:
            By backbone, its stage outputs, ascending.
        """
        bytes_left = self.budget_bytes
        chosen: dict[str, list[int]] = {name: [] for name in backbones}
        by_benefit = sorted(
            (-depth, self.size(name, depth), name) for name in backbones for depth in depths
        )
        for minus_depth, size, name in by_benefit:
            if size <= bytes_left:
                bytes_left -= size
                chosen[name].append(-minus_depth)
        return {name: tuple(sorted(stage_outputs)) for name, stage_outputs in chosen.items()}

    def size(self, backbone: str, stage_output: int) -> int:
        """Return the bytes of all views that trainings can draw."""
        return self.view_bytes[backbone][stage_output - 1] * self.n_drawn

    @property
    def block_size(self) -> int:
        """Images in each block of a view."""
        return block_size(len(self.rows))


def block_size(n_images: int) -> int:
    """Return how many images are in each block of a view of this many."""
    return max(MIN_BLOCK_IMAGES, -(-n_images // MAX_BLOCKS))
