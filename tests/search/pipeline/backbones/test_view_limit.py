"""How many views of each image a run has time for."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from rich.console import Console

from search.console.progress import Progress
from search.data.manifest import Manifest
from search.pipeline.backbones.available import Available
from search.pipeline.backbones.candidates import share_weights
from search.pipeline.backbones.feature_cache import count_drawn_views
from search.pipeline.backbones.selection import with_decided_views
from search.pipeline.backbones.view_limit import affordable_views, limit_views, measure_view
from search.pipeline.preflight import RunPlan
from search.pipeline.prepare import PreparedData
from search.pipeline.request import parse_request
from search.runs.run_folder import RunFolder
from spaces.base import Space
from tests.fixtures.channel_noise import CLASSES, FILES, SPACE, SPLITS, prepare
from tests.fixtures.prepared_data import prepared_data
from tests.search.reporting.test_terminal import SETTINGS

AUGMENTED = replace(SPACE, params={**SPACE.params, "augment": FloatDistribution(0, 1)}, views=8)
N_CACHED = int((SPLITS != "test").sum())


def plan_of(tmp_path: Path, *words: str, space: Space = AUGMENTED) -> RunPlan:
    request = parse_request(["--out", str(tmp_path), "--name", "run", *words])
    nothing = Manifest((), (), np.empty(0, np.int64), (), None, None)
    run_folder = RunFolder.create(request.out, request.name)
    return RunPlan(request, space, nothing, None, Available(space, space), run_folder)


def images(space: Space = AUGMENTED) -> PreparedData:
    """Return images that no worker opens."""
    n = len(SPLITS)
    labels = (np.arange(n) % len(CLASSES)).tolist()
    return prepared_data(space, np.zeros((n, 1, 1, 3), np.uint8), labels, CLASSES, SPLITS.tolist())


def in_memory() -> Progress:
    return Progress(console=Console(file=io.StringIO(), width=200, highlight=False))


def shown(progress: Progress) -> str:
    assert isinstance(progress.console.file, io.StringIO)
    return progress.console.file.getvalue()


@pytest.mark.parametrize(
    ("n_passes", "views"), [(100.0, 8), (8.0, 8), (7.9, 7), (3.0, 3), (1.0, 1), (0.2, 1)]
)
def test_as_many_views_are_computed_as_there_is_time_for(n_passes: float, views: int) -> None:
    assert affordable_views(AUGMENTED, n_passes) == views


def test_views_that_are_never_drawn_cost_nothing() -> None:
    weak = replace(AUGMENTED, params={**SPACE.params, "augment": 0.3})
    assert count_drawn_views(weak) == 5
    assert affordable_views(weak, 5.0) == 8


def test_a_short_run_has_fewer_views(tmp_path: Path) -> None:
    """Of 200 s the cache may take 24: three passes of 78 images at 0.1 s."""
    plan, progress = plan_of(tmp_path, "--time-budget", "200s"), in_memory()
    limited, prepared = limit_views(plan, images(), progress, lambda *_: 0.1)
    assert limited.space.views == prepared.space.views == 3
    assert count_drawn_views(limited.space) * N_CACHED * 0.1 <= 24
    assert (
        "the feature cache has 3 views of each image instead of 8, which would take 1 min 2 s of"
        " the time budget, and may take 24 s" in shown(progress)
    )


@pytest.mark.parametrize(
    ("words", "image_seconds", "depth"),
    [((), 9.0, 5), (("--time-budget", "100s"), 0.01, 5), (("--time-budget", "100s"), 9.0, 0)],
)
def test_all_views_stay_where_there_is_time_or_nothing_is_cached(
    tmp_path: Path, words: tuple[str, ...], image_seconds: float, depth: int
) -> None:
    space = replace(AUGMENTED, params={**AUGMENTED.params, "freeze_depth": depth})
    plan, data, progress = plan_of(tmp_path, *words, space=space), images(space), in_memory()
    assert limit_views(plan, data, progress, lambda *_: image_seconds) == (plan, data)
    assert shown(progress) == ""


def test_a_resumed_run_keeps_the_views_that_it_began_with(tmp_path: Path) -> None:
    plan, progress = plan_of(tmp_path, "--time-budget", "100s"), in_memory()
    begun = replace(plan.folder.summary, settings=replace(SETTINGS, views=3), stages={"data": 1.0})
    assert with_decided_views(AUGMENTED, begun) == AUGMENTED  # killed while backbones were ranked
    decided = replace(begun, stages={"linear_probe": 2.0})
    assert with_decided_views(AUGMENTED, decided).views == 3
    plan.folder.write_summary(decided)
    data = images()
    assert limit_views(plan, data, progress, lambda *_: 9.0) == (plan, data)


@pytest.mark.usefixtures("ray_session")
def test_the_time_of_a_view_is_measured(tmp_path: Path) -> None:
    space = replace(AUGMENTED, params={**AUGMENTED.params, "freeze_depth": IntDistribution(0, 5)})
    prepared = share_weights(prepare(None, space), FILES, ["tinynet"])
    assert 0 < measure_view(prepared, "tinynet") < 1
    plan = plan_of(tmp_path, "--time-budget", "10h", space=space)
    assert limit_views(plan, prepared, in_memory())[0].space.views == 8
    short = replace(plan, request=replace(plan.request, time_budget_seconds=1e-3))
    assert limit_views(short, prepared, in_memory())[0].space.views == 1
