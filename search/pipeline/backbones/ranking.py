"""Rank several backbones by linear probes of the same images, and decide which stay in the search.

Their pooled features are computed one backbone after the other, the cheapest first, and dropped
once they are probed. So memory does not grow with their number, and the feature caches, which take
many times as long, are built for those alone that stay. The module is long because what each step
measures decides about the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray

from search.cluster.feature_cache_actor import BuiltBlock, build_block_task
from search.cluster.feature_cache_plan import block_size
from search.cluster.nodes import EVERYWHERE, is_one_cpu_node
from search.cluster.resources import CPUS_PER_TRIAL, TrialSlots
from search.console.formatting import duration
from search.console.progress import Progress
from search.evaluation.calibration import log_losses
from search.pipeline.backbones.candidates import Candidate, pretrained_backbones, share_weights
from search.pipeline.backbones.feature_cache import (
    count_drawn_views,
    frozen_depths,
    gpus_per_task,
)
from search.pipeline.backbones.probe import (
    ProbeResult,
    calibrated_logits,
    describe,
    fit_here,
    save_if_given,
    start_probe,
)
from search.pipeline.backbones.probe_ensemble import choose_probes
from search.pipeline.backbones.selection import (
    CACHE_FRACTION,
    RANKING_FRACTION,
    RankedProbe,
    select_backbones,
)
from search.pipeline.prepare import PreparedData
from search.runs.summary import ProbeScore
from trainables.metrics import compute_score
from trainables.models.classifier import Weights
from trainables.models.linear_probe import MAX_IMAGES, Probe, stratified_subset
from trainables.worker import build_block, training_device

MIN_RANKING_IMAGES = 500
"""Images that backbones are ranked on at least, however short the time, unless there are fewer."""

_MAX_SECONDS_OF_ONE = 10.0
"""Features of a single backbone that take this process longer are left to workers: about the time
that workers take to start."""


def is_worth_ranking(
    prepared: PreparedData, candidates: Mapping[str, Candidate], probed: Sequence[str]
) -> bool:
    """Return whether to rank the backbones before there is a feature cache.

    A single one is probed so too if its features take little time: the run has a first model while
    workers would still start.

    Args:
        prepared: Images.
        candidates: By backbone, what it costs.
        probed: The pretrained backbones.
    """
    if len(probed) != 1 or not is_one_cpu_node():
        return len(probed) > 1
    candidate, n_images = candidates[probed[0]], len(prepared.rows("train", "val"))
    limit_ms = 1000 * _MAX_SECONDS_OF_ONE / n_images
    # Workers were starting when it was estimated, which may have taken a hundred times as long.
    return candidate.estimated_ms < limit_ms or candidate.measure(False) < limit_ms


def rank_backbones(
    prepared: PreparedData,
    candidates: Mapping[str, Candidate],
    files: Mapping[str, Path],
    budget_seconds: float | None,
    model_path: Path | None,
    progress: Progress,
) -> ProbeResult:
    """Probe backbones on the same images, and decide which of them are searched.

    Args:
        prepared: Images.
        candidates: By backbone, what it costs.
        files: By backbone, the file of its pretrained weights.
        budget_seconds: The run's time budget; None without one, or where there is one backbone.
        model_path: Where the best probe so far is saved as a model; None saves none.
        progress: Shows each probe.
    """
    started = perf_counter()
    probed = pretrained_backbones(prepared.space, files)
    estimates = {name: candidates[name].estimated_ms for name in probed}
    seconds = None if budget_seconds is None else RANKING_FRACTION * budget_seconds
    rows = choose_rows(prepared, _image_seconds(candidates, probed, seconds), seconds)
    progress.begin("linear_probe", len(probed), "backbones")
    labels = prepared.images.labels[rows]
    ranking = _Ranking(model_path, progress, started)
    # Nothing else computes until the run's first model is saved, of the fastest backbone. It is
    # not part of the time, since its workers may have to start.
    first = min(estimates, key=estimates.__getitem__)
    fit = _start_fit(prepared, files, candidates[first], first, rows, is_here=is_one_cpu_node())
    ranking.add(fit)
    ranking.collect()
    latencies = {name: candidates[name].latency_ms for name in probed}
    pace = 1.0  # seconds that features take, over those of as many single images; at most
    first_ended = perf_counter()
    skipped: dict[str, ProbeScore] = {}
    for name in sorted(set(probed) - {first}, key=latencies.__getitem__):
        pace = min(pace, fit.image_seconds / (fit.candidate.latency_ms / 1000))
        left = None if seconds is None else max(0.0, seconds - (perf_counter() - first_ended))
        expected = pace * latencies[name] / 1000 * len(rows)
        if left is not None and expected > left:
            excluded = (
                f"its features would take {duration(expected)}, and {duration(left)} are left of"
                f" what the ranking may take of the time budget"
            )
            skipped[name] = ProbeScore(latency_ms=latencies[name], excluded=excluded)
            continue
        fit = _start_fit(prepared, files, candidates[name], name, rows)
        ranking.add(fit)
    ranking.collect()
    n_views = count_drawn_views(prepared.space) if frozen_depths(prepared.space) else 1
    cached = prepared.rows("train", "val")
    scores = select_backbones(
        ranking.probes,
        prepared.space.metric,
        labels,
        prepared.groups[rows],
        n_views * len(cached),
        float("inf") if budget_seconds is None else CACHE_FRACTION * budget_seconds,
    )
    best = next(iter(scores))
    seed, metric = prepared.features.seed, prepared.space.metric
    together = choose_probes(ranking.probes, best, metric, labels, prepared.groups[rows], seed)
    scores = {
        name: replace(score, in_ensemble=name in together and name in files)
        for name, score in scores.items()
    }
    heads = {
        name: ranking.heads[name]
        for name, score in scores.items()
        if score.excluded is None or score.in_ensemble
    }
    # A head of fewer images than it may have is fitted again, from the feature cache.
    is_whole = len(rows) >= min(len(cached), MAX_IMAGES)
    return ProbeResult({**scores, **skipped}, heads if is_whole else {})


def _image_seconds(
    candidates: Mapping[str, Candidate], names: Sequence[str], seconds: float | None
) -> float:
    """Return the seconds that backbones together take for an image.

    Estimates are the CPU's, by which a GPU would rank on too few images in its time.
    """
    is_measured = seconds is not None and training_device().type == "cuda"
    chosen = (candidates[name] for name in names)
    return sum(one.latency_ms if is_measured else one.estimated_ms for one in chosen) / 1000


def choose_rows(prepared: PreparedData, image_seconds: float, seconds: float | None) -> np.ndarray:
    """Return the table rows that backbones are ranked on: a stratified subset of large sets.

    Args:
        prepared: The images; those of the test split are never among the rows.
        image_seconds: Seconds that all backbones together take for an image.
        seconds: What the ranking may take; None is any time.
    """
    rows = prepared.rows("train", "val")
    n = MAX_IMAGES
    if seconds is not None:
        n = int(np.clip(seconds / image_seconds, MIN_RANKING_IMAGES, MAX_IMAGES))
    if len(rows) <= n:
        return rows
    chosen: np.ndarray = rows[
        stratified_subset(prepared.images.labels[rows], n, prepared.features.seed)
    ]
    return chosen


@dataclass(frozen=True)
class _Fit:
    """A probe that is being fitted; the data has its backbone alone."""

    task: Any
    name: str
    prepared: PreparedData
    image_seconds: float
    candidate: Candidate


def _start_fit(
    prepared: PreparedData,
    files: Mapping[str, Path],
    candidate: Candidate,
    name: str,
    rows: np.ndarray,
    is_here: bool = False,
) -> _Fit:
    """Compute a backbone's features of some images, and start fitting its probe.

    It is fitted in this process if `is_here`: it has imported PyTorch, for which workers take
    seconds.
    """
    one = share_weights(prepared, files, [name])
    if is_here:
        arrays, image_seconds = _compute_features_here(one, name, rows)
        return _Fit(ray.put(fit_here(one, rows, arrays)), name, one, image_seconds, candidate)
    blocks, image_seconds = compute_features(one, name, rows)
    # The rows are the subset already, a few more than MAX_IMAGES where classes are rare.
    task = start_probe(prepared, rows, blocks, cross_validate=True, max_images=None)
    return _Fit(task, name, one, image_seconds, candidate)


def _compute_features_here(
    prepared: PreparedData, name: str, rows: np.ndarray
) -> tuple[list[np.ndarray], float]:
    """Compute pooled features of view 0 in this process; see `compute_features`."""
    size = block_size(len(rows))
    blocks, seconds = [], []
    for start in range(0, len(rows), size):
        part, started = rows[start : start + size], perf_counter()
        blocks += build_block(prepared.features, name, part, 0, prepared.space.views, (5,), 0)
        seconds.append((perf_counter() - started) / len(part))
    return blocks, float(np.median(seconds))


class _Ranking:
    """The probes of a ranking: one is fitted while the next backbone's features are computed."""

    def __init__(self, model_path: Path | None, progress: Progress, started: float) -> None:
        self._model_path, self._progress, self._started = model_path, progress, started
        self._pending: _Fit | None = None
        self.probes: list[RankedProbe] = []
        self.heads: dict[str, Weights] = {}

    def add(self, fit: _Fit) -> None:
        """Collect the probe before, and wait for this one later."""
        self.collect()
        self._pending = fit

    def collect(self) -> None:
        """Wait for the probe that is being fitted, and report it."""
        if self._pending is None:
            return
        fit, self._pending = self._pending, None
        probe: Probe = ray.get(fit.task)
        logits, metric = calibrated_logits(probe), fit.prepared.space.metric
        score = compute_score(metric, logits, probe.labels)
        is_best = all(score > other.score for other in self.probes)
        saved = save_if_given(fit.prepared, fit.name, probe, self._model_path) if is_best else ""
        latency = fit.candidate.latency_ms  # measured here, if it is the first one's
        ranked = RankedProbe(
            name=fit.name,
            score=score,
            accuracy=probe.accuracy,
            val_accuracy=probe.val_accuracy,
            logits=logits,
            is_correct=logits.argmax(1) == probe.labels,
            log_losses=log_losses(logits, probe.labels, 1.0),
            seconds=perf_counter() - self._started,
            image_seconds=fit.image_seconds,
            latency_ms=latency,
        )
        self.probes.append(ranked)
        self.heads[fit.name] = probe.head
        self._progress.say(f"{fit.name}: {describe(probe, metric, score)}, {latency:.1f} ms{saved}")
        self._progress.advance(len(self.probes))


def compute_features(
    prepared: PreparedData,
    name: str,
    rows: np.ndarray,
    view: int = 0,
    stage_outputs: Sequence[int] = (5,),
) -> tuple[list[Any], float]:
    """Compute a view of some images on all nodes: as a default, pooled features of view 0.

    Returns:
        References to the blocks of the deepest output, and the seconds that an image took, by all
        nodes together: the median of the blocks, since the first ones of each worker load weights,
        and start a GPU.
    """
    gpus = gpus_per_task()
    task: Any = build_block_task.options(
        num_returns=len(stage_outputs) + 1,
        num_cpus=1,
        num_gpus=gpus,
        scheduling_strategy=EVERYWHERE,
    )
    context, size = ray.put(prepared.features), block_size(len(rows))
    blocks, reports = [], []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        *outputs, report = task.remote(
            context, name, part, view, prepared.space.views, tuple(stage_outputs), 0, None
        )
        blocks.append(outputs[-1])
        reports.append(report)
    built: list[BuiltBlock] = ray.get(reports)
    sizes = [len(rows[start : start + size]) for start in range(0, len(rows), size)]
    seconds = [block.seconds / n for block, n in zip(built, sizes, strict=True)]
    return blocks, float(np.median(seconds)) / TrialSlots(CPUS_PER_TRIAL, [gpus])()
