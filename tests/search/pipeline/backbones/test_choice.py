"""What leaves the search before an image is decoded, and what a resumed run does."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console

from search.console.progress import Progress
from search.data.manifest import Manifest
from search.pipeline.backbones.available import Available
from search.pipeline.backbones.choice import choose_backbones, exclude_unsuitable
from search.pipeline.preflight import RunPlan
from search.pipeline.request import parse_request
from search.runs.run_folder import RunFolder
from search.runs.summary import ProbeScore
from spaces.base import Space
from spaces.first_trials import Config
from spaces.sources import folder
from tests.fixtures.channel_noise import FILES, candidates, prepare

REQUESTED = Space(
    folder(),
    {"backbone": "resnet18", "freeze_depth": 5},
    image_size=32,
    resize_size=32,
    first_trials=({"backbone": "resnet18"},),
).with_backbones(["resnet18", "tinynet", "cnn"])
CANDIDATES = candidates(tinynet=5.0, cnn=50.0)


def plan_of(tmp_path: Path, *words: str) -> RunPlan:
    """Return the plan of a run whose resnet18 has no weights."""
    request = parse_request(["--out", str(tmp_path), "--name", "run", *words])
    run_folder = RunFolder.create(request.out, request.name)
    space = REQUESTED.without_backbones(["resnet18"])
    available = Available(
        REQUESTED, space, FILES, {"resnet18": lambda: "looked for it; no such file"}
    )
    nothing = Manifest((), (), np.empty(0, np.int64), (), None, None)
    return RunPlan(request, space, nothing, None, available, run_folder)


def shown(progress: Progress) -> list[str]:
    assert isinstance(progress.console.file, io.StringIO)
    return progress.console.file.getvalue().splitlines()


def in_memory() -> Progress:
    return Progress(console=Console(file=io.StringIO(), width=200, highlight=False))


def test_missing_and_slow_backbones_leave_with_one_line_each(tmp_path: Path) -> None:
    progress = in_memory()
    plan, scores = exclude_unsuitable(
        plan_of(tmp_path, "--max-latency", "20"), CANDIDATES, progress
    )
    assert plan.space.backbones == ("tinynet",)
    assert {name: score.excluded for name, score in scores.items()} == {
        "cnn": "50.0 ms an image, above --max-latency 20",
        "resnet18": "no weights: looked for it; no such file",
    }
    missing, slow = shown(progress)
    assert missing == (
        "warning: no weights of resnet18, such as: looked for it; no such file; the search goes on"
        " with tinynet, cnn"
    )
    assert slow.endswith("cnn leaves the search: 50.0 ms an image, above --max-latency 20")


def test_a_resumed_run_measures_nothing_again(tmp_path: Path) -> None:
    plan, progress = plan_of(tmp_path, "--max-latency", "1"), in_memory()
    recorded = {"tinynet": ProbeScore(accuracy=0.9)}
    plan.folder.write_summary(replace(plan.folder.summary, linear_probe=recorded))
    assert exclude_unsuitable(plan, CANDIDATES, progress) == (plan, {})
    assert shown(progress) == []


@pytest.mark.usefixtures("ray_session")
def test_the_space_of_a_first_session_is_that_of_a_resumed_one(tmp_path: Path) -> None:
    progress = in_memory()
    first, unsuitable = exclude_unsuitable(plan_of(tmp_path), CANDIDATES, progress)
    chosen, data, known = choose_backbones(
        first, prepare(None), CANDIDATES, unsuitable, None, progress
    )
    assert data.space is chosen.space
    assert chosen.space.backbones == ("tinynet", "cnn")
    assert list(data.features.weights) == ["tinynet"]
    assert shown(progress)[-1].endswith("the baseline, trial 0, is of tinynet instead of resnet18")
    scores = {"tinynet": ProbeScore(accuracy=0.9), **known.scores}
    first.folder.write_summary(replace(first.folder.summary, linear_probe=scores))
    again, _, resumed = choose_backbones(
        replace(first, space=chosen.space), prepare(None), CANDIDATES, {}, None, in_memory()
    )
    assert again.space == chosen.space
    assert resumed.scores == scores


def test_first_trials_are_of_each_backbone_then_of_earlier_runs(tmp_path: Path) -> None:
    """In a resumed run, too, which says nothing again but what is dropped."""
    plan, progress = plan_of(tmp_path), in_memory()
    params = {**plan.space.params, "lr": FloatDistribution(1e-4, 1e-2)}
    first = ({"backbone": "*", "lr": 1e-3}, {"backbone": "cnn", "lr": 2e-3})
    space = replace(plan.space, params=params, first_trials=first)
    earlier: tuple[Config, ...] = (
        {"backbone": "cnn", "lr": 2e-3, "freeze_depth": 5},
        {"backbone": "resnet18", "lr": 3e-3, "dropout": 0.1},
        {"backbone": "tinynet", "lr": 0.1},
    )
    recorded = {"cnn": ProbeScore(accuracy=0.9), "tinynet": ProbeScore(accuracy=0.8)}
    plan.folder.write_summary(replace(plan.folder.summary, linear_probe=recorded))
    plan = replace(plan, space=space, warm_start=earlier)
    chosen, _, _ = choose_backbones(plan, prepare(None), CANDIDATES, {}, None, progress)
    assert chosen.space.first_trials == (
        {"backbone": "cnn", "lr": 1e-3},
        {"backbone": "tinynet", "lr": 1e-3},
        {"backbone": "cnn", "lr": 2e-3},
        {"lr": 3e-3},
        {"backbone": "tinynet"},
    )
    (line,) = shown(progress)
    assert line.endswith(
        "3 configurations of earlier runs are tried; dropped as unknown or out of range: backbone,"
        " dropout, lr"
    )


@pytest.mark.usefixtures("ray_session")
def test_without_probes_a_run_records_what_it_searches(tmp_path: Path) -> None:
    """A resumed run may find fewer weights, and must not search less for that."""
    plan = plan_of(tmp_path, "--no-probe")
    plan = replace(plan, available=replace(plan.available, requested=plan.space, unavailable={}))
    _, _, known = choose_backbones(plan, prepare(None), CANDIDATES, {}, None, in_memory())
    assert {name: score.excluded for name, score in known.scores.items()} == {
        "tinynet": None,
        "cnn": None,
    }
