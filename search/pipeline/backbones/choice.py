"""Choose the backbones that are searched, and say of each other one why it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from search.console.formatting import count
from search.console.progress import Progress
from search.pipeline.backbones.candidates import (
    Candidate,
    find_slow,
    pretrained_backbones,
    share_weights,
)
from search.pipeline.backbones.probe import ProbeResult
from search.pipeline.backbones.ranking import is_worth_ranking, rank_backbones
from search.pipeline.backbones.selection import narrow_space, taking_part
from search.pipeline.preflight import RunPlan
from search.pipeline.prepare import PreparedData
from search.runs.summary import ProbeScore
from spaces.base import Space
from spaces.first_trials import Config, keep_known


def exclude_unsuitable(
    run_plan: RunPlan, candidates: Mapping[str, Candidate], progress: Progress
) -> tuple[RunPlan, dict[str, ProbeScore]]:
    """Exclude what needs no image to be excluded: backbones without weights, and slow ones.

    A resumed run has done so, and does not measure again.

    Args:
        run_plan: The run.
        candidates: By backbone that has weights, what it costs.
        progress: Shows each that is excluded.

    Returns:
        The run without them, and their scores.

    Raises:
        RequestError: all are slower than `--max-latency`.
    """
    if run_plan.folder.summary.linear_probe is not None:
        return run_plan, {}
    missing = {
        name: ProbeScore(excluded=f"no weights: {reason()}")
        for name, reason in run_plan.available.unavailable.items()
    }
    if missing:
        reason = next(iter(run_plan.available.unavailable.values()))()
        progress.warn(
            f"no weights of {', '.join(missing)}, such as: {reason}; the search goes on with"
            f" {', '.join(run_plan.space.backbones)}"
        )
    slow = find_slow(candidates, run_plan.request.max_latency_ms)
    for name, score in slow.items():
        progress.say(f"{name} leaves the search: {score.excluded}")
    space = run_plan.space.without_backbones(slow)
    for name in space.backbones:
        if candidates[name].is_trunk:
            progress.say(f"{name} is one trunk: freeze depths 1 to 5 freeze all of it, 0 nothing")
    return replace(run_plan, space=space), {**slow, **missing}


def choose_backbones(
    run_plan: RunPlan,
    prepared: PreparedData,
    candidates: Mapping[str, Candidate],
    unsuitable: Mapping[str, ProbeScore],
    model_path: Path | None,
    progress: Progress,
) -> tuple[RunPlan, PreparedData, ProbeResult]:
    """Rank the backbones, unless an earlier session did or workers do better; keep the good ones.

    Args:
        run_plan: The run.
        prepared: Its images.
        candidates: By backbone, what it costs.
        unsuitable: The scores of those that were excluded before.
        model_path: Where the best probe so far is saved as a model; None saves none.
        progress: Shows each probe, and each backbone that leaves.

    Returns:
        The run and its data with the backbones that are searched and their weights; and what is
        known of all backbones.
    """
    request = run_plan.request
    recorded = run_plan.folder.summary.linear_probe
    ranked = ProbeResult(recorded or {}, {})
    probed = pretrained_backbones(run_plan.space, run_plan.weights)
    if recorded is None and request.probe and is_worth_ranking(prepared, candidates, probed):
        seconds = request.time_budget_seconds if len(probed) > 1 else None
        ranked = rank_backbones(
            prepared, candidates, run_plan.weights, seconds, model_path, progress
        )
        for name, score in ranked.scores.items():
            if score.excluded is not None:
                but = "; but its linear probe is a finalist" if score.in_ensemble else ""
                progress.say(f"{name} leaves the search: {score.excluded}{but}")
    elif recorded is None and not request.probe and len(candidates) + len(unsuitable) > 1:
        # Which are searched is recorded all the same: a resumed run may find fewer weights.
        ranked = ProbeResult(
            {
                name: ProbeScore(latency_ms=candidates[name].latency_ms)
                for name in run_plan.space.backbones
            },
            {},
        )
    scores = {**ranked.scores, **unsuitable}
    space = run_plan.space
    if recorded is None:
        # As a resumed run does, from the space that was asked for, so that both search the same.
        space = narrow_space(run_plan.available.requested, scores)
    space = _with_first_trials(space, scores, run_plan.warm_start, progress)
    if recorded is None:
        _report_baseline(run_plan.available.requested, space, progress)
    prepared = share_weights(prepared, run_plan.weights, taking_part(space, scores))
    return (
        replace(run_plan, space=space),
        replace(prepared, space=space),
        replace(ranked, scores=scores),
    )


def _with_first_trials(
    space: Space,
    scores: Mapping[str, ProbeScore],
    warm_start: Sequence[Config],
    progress: Progress,
) -> Space:
    """Return the space with all first trials: its own, of each backbone, and of earlier runs."""
    order = [name for name in scores if name in space.backbones]
    ranking = [*order, *(name for name in space.backbones if name not in scores)]
    known = [keep_known(config, space.params) for config in warm_start]
    if warm_start:
        dropped = sorted(
            {
                name
                for config, own in zip(warm_start, known, strict=True)
                for name in config.keys() - own.keys()
                if config[name] != space.constants.get(name)
            }
        )
        outside = f"; dropped as unknown or out of range: {', '.join(dropped)}" if dropped else ""
        progress.say(f"{count(len(known), 'configuration')} of earlier runs are tried{outside}")
    return space.with_first_trials(ranking, [one for one in known if one])


def _report_baseline(requested: Space, searched: Space, progress: Progress) -> None:
    """Say where the baseline is of another backbone than the space's."""
    before, after = (
        str(space.first_trials[0].get("backbone", "")) if space.first_trials else ""
        for space in (requested, searched)
    )
    if before != after and "*" not in before:
        progress.say(f"the baseline, trial 0, is of {after} instead of {before}")
