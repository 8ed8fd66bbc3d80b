"""Bound the time of the feature cache by fewer views of each image, where time is short.

Views at all magnitudes cost one pass each through the frozen stages, which a slow machine has no
time for in a short run. Fewer views augment in coarser steps, and cost in proportion less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from search.console.formatting import count, duration
from search.console.progress import Progress
from search.pipeline.backbones.feature_cache import count_drawn_views, frozen_depths
from search.pipeline.backbones.ranking import compute_features
from search.pipeline.backbones.selection import is_decided
from search.pipeline.preflight import RunPlan
from search.pipeline.prepare import PreparedData
from spaces.base import Space

MAX_VIEW_FRACTION = 0.12
"""Fraction of a time budget that views may take. In a short run a trial has few epochs, which draw
few views, and the time is worth more to trials."""
_N_MEASURED = 128


def measure_view(prepared: PreparedData, name: str) -> float:
    """Return a backbone's seconds of one view of an image, by all nodes together.

    They are of an augmented view at all stage outputs that may be cached.
    A ranking's are less: it augments no image, and keeps pooled features alone.
    """
    rows, space = prepared.rows("train", "val")[:_N_MEASURED], prepared.space
    seconds = 0.0
    for _ in range(2):  # workers start in the first pass
        _, seconds = compute_features(prepared, name, rows, space.views - 1, frozen_depths(space))
    return seconds


def limit_views(
    run_plan: RunPlan,
    prepared: PreparedData,
    progress: Progress,
    measure: Callable[[PreparedData, str], float] = measure_view,
) -> tuple[RunPlan, PreparedData]:
    """Reduce the views of each image to what `MAX_VIEW_FRACTION` of the time budget suffices for.

    A run without a time budget keeps them all, and one that is resumed those it began with.

    Args:
        run_plan: The run.
        prepared: Its images, and the backbones that are searched with their weights.
        progress: Shows where there is not time for all.
        measure: Returns the seconds of one view of an image of a backbone.
    """
    budget, space = run_plan.request.time_budget_seconds, prepared.space
    if budget is None or not frozen_depths(space) or is_decided(run_plan.folder.summary):
        return run_plan, prepared
    image_seconds = sum(measure(prepared, name) for name in space.backbones)
    view_seconds = image_seconds * len(prepared.rows("train", "val"))
    limit = MAX_VIEW_FRACTION * budget
    n_views = affordable_views(space, limit / view_seconds)
    if n_views == space.views:
        return run_plan, prepared
    needed = count_drawn_views(space) * view_seconds
    progress.say(
        f"the feature cache has {count(n_views, 'view')} of each image instead of {space.views},"
        f" which would take {duration(needed)} of the time budget, and may take {duration(limit)}"
    )
    space = replace(space, views=n_views)
    return replace(run_plan, space=space), replace(prepared, space=space)


def affordable_views(space: Space, n_passes: float) -> int:
    """Return the largest number of views, at most the space's, of which so many can be drawn.

    Args:
        space: The space.
        n_passes: Views of all images that there is time to compute; below 1 it counts as 1, since
            the linear probe needs one.
    """
    views = range(space.views, 1, -1)
    affordable = (n for n in views if count_drawn_views(replace(space, views=n)) <= n_passes)
    return next(affordable, 1)
