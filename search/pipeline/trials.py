"""The search stage: run trials until the study has as many as were requested, or time is up.

The module is long because one function brings together all that follows the trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

import numpy as np
import optuna
from optuna.trial import TrialState

from search.cluster.resources import CPUS_PER_TRIAL, TrialSlots, measure_gpu_fractions
from search.console.formatting import count, describe
from search.console.progress import Progress
from search.console.signals import GracefulShutdown
from search.evaluation.mcnemar import ALPHA, p_value
from search.pipeline.backbones.candidates import Candidate
from search.pipeline.finalists import finalist_probes
from search.pipeline.model_file import save_best_trial
from search.pipeline.preflight import RunPlan
from search.pipeline.prepare import PreparedData
from search.reporting.tensorboard.trial_boards import TrialBoards
from search.reporting.trackers.base import TrackedSearch
from search.reporting.trackers.worker import Trackers
from search.runs.environment import Request
from search.runs.run_folder import RunFolder
from search.runs.summary import ProbeScore, SearchCounts
from search.tuning.checkpoints import start_checkpoint_store
from search.tuning.study import (
    best_epoch,
    count_states,
    count_unfinished,
    ended_trials,
    kept_scores,
    name_metric,
    open_storage,
    open_study,
    ranked_trials,
    write_trials,
)
from search.tuning.throughput import measure_throughput
from search.tuning.time_budget import TimeBudget
from search.tuning.timing.after_trials import AfterTrials, fold_growth
from search.tuning.timing.time_left import Budget, TimeLeft
from search.tuning.trial_events import TolerantCallback, TrialCallback
from spaces.base import Space
from trainables.worker import TrainingContext


@dataclass(frozen=True)
class SearchResult:
    """What the search leaves to the later stages.

    Attributes:
        study: All trials.
        gpu_fraction: By backbone, the fraction of a GPU that a training takes.
        budget: The time budget; None without `--time-budget`.
        time_left: Estimates how long the rest of the run takes.
    """

    study: optuna.Study
    gpu_fraction: Mapping[str, float]
    budget: TimeBudget | None
    time_left: TimeLeft


def run_search(
    run_plan: RunPlan,
    prepared: PreparedData,
    context: TrainingContext,
    candidates: Mapping[str, Candidate],
    progress: Progress,
    shutdown: GracefulShutdown,
    trackers: Trackers,
) -> SearchResult:
    """Run the trials of the study that have not ended, and new ones.

    Writes `trials/`, `trials.csv`, `model.pt` of the best trial, TensorBoard's files of the trials,
    and the summary's sections `gpu_fraction`, `search` and `best`.

    Raises:
        KeyboardInterrupt: the user stopped the search; all that was finished is saved.
    """
    from search.tuning.tune import SearchPlan, run_trials  # Ray Tune takes half a second

    request, space, folder = run_plan.request, prepared.space, run_plan.folder
    started = monotonic()
    context = replace(context, run_id=folder.environment.run_id)
    rows = {name: prepared.rows(name) for name in ("train", "val")}
    storage = open_storage(folder.path, progress.warn)
    study = open_study(storage, folder.path.name)
    name_metric(study, space.metric)
    gpu_fraction = measure_gpu_fractions(space, context, rows["train"])
    if any(gpu_fraction.values()):
        progress.say("fraction of a GPU for each trial: " + describe(gpu_fraction))
    folder.write_summary(
        replace(
            folder.summary,
            gpu_fraction=gpu_fraction,
            # The model of an earlier session is not that of this one. `evaluation`, how often the
            # test set was evaluated, stays, and so do `samples`, the test images that were saved.
            kfold=None,
            label_issues=None,
            calibration=None,
            test=None,
            comparison=None,
            external=None,
        )
    )
    budget, recorded = None, folder.summary.linear_probe or {}
    probed = {name: score for name, score in recorded.items() if name in context.heads}
    probes = finalist_probes(probed)
    has_budget = request.time_budget_seconds is not None
    after_trials = AfterTrials(
        space,
        len(rows["train"]),
        fold_growth(len(rows["train"]), len(rows["val"]), space.folds),
        _slots_by_backbone(gpu_fraction),
        {name: candidates[name].batch_latency_ms / 1000 for name in run_plan.backbones},
        prepared.count_evaluated(),
        _throughput(context, space, rows, gpu_fraction) if has_budget else None,
        bool(probes),
    )
    if request.time_budget_seconds is not None:
        budget = TimeBudget(
            request.time_budget_seconds,
            lambda: progress.elapsed_seconds,
            space,
            request.n_finalists,
            after_trials,
            len(rows["train"]),
            probes,
        )
        budget.catch_up(study)
    last_trial = _last_trial(run_plan, prepared, progress)
    plan = SearchPlan(
        n_trials=None if request.has_open_end else space.trials,
        sampler=request.sampler,
        scheduler=request.scheduler,
        interrupted=shutdown.requested,
        time_is_up=lambda: budget is not None and budget.is_up(),
        max_concurrent=request.max_concurrent,
        gpu_fraction=gpu_fraction,
        lengths=budget.lengths if budget is not None else None,
        may_begin=partial(_may_begin, study, last_trial if request.has_open_end else None),
        patience_trials=request.patience_trials,
    )
    trials = folder.path / "trials"
    checkpoints = start_checkpoint_store(
        trials.absolute(),
        space.keep_checkpoints,
        kept_scores(study),
        request.shared and request.shared.within("trials"),
        context.run_id,
    )
    checkpoints.delete_left_over(trials, [number for number, *_ in ended_trials(study)])
    n_ended = sum(count_states(study).values())
    time_left = TimeLeft(
        space,
        None if last_trial is None else max(0, last_trial - n_ended),
        TrialSlots(CPUS_PER_TRIAL, list(gpu_fraction.values())),
        after_trials,
        request.n_finalists,
        probes if budget is None else budget.probes,
        None if budget is None else _as_budget(budget, request, progress),
    )
    boards = TrialBoards(folder.path / "tensorboard", space)
    tolerating_boards = partial(progress.tolerating, "a trial in TensorBoard")
    with tolerating_boards():
        boards.catch_up(ended_trials(study))
    callbacks: list[TrialCallback] = [
        TolerantCallback(boards, tolerating_boards),
        TolerantCallback(progress, partial(progress.tolerating, "a line of progress")),
        *([budget] if budget is not None else []),
        TolerantCallback(time_left, partial(progress.tolerating, "the time left")),
        trackers,
    ]
    trackers.begin(TrackedSearch.of(folder, study, space))
    best = None
    if ranked := ranked_trials(study):
        best = best_epoch(ranked[0]).val_score, ranked[0].number, ranked[0].params
    progress.begin_trials(
        plan.n_trials or 0,
        n_ended,
        space.epochs if budget is None else 0,
        best,
        space.metric,
        space.distributions,
    )
    progress.expect(time_left.parts)
    try:
        with shutdown.deferring():
            out_of_patience = run_trials(
                plan,
                storage,
                space,
                context,
                rows,
                checkpoints,
                trials,
                callbacks,
                run_plan.callbacks,
                progress.tolerating,
            )
        if out_of_patience:
            n_trials = count(request.patience_trials or 0, "trial")
            progress.say(f"the search ends: no better trial in {n_trials}")
    finally:
        with tolerating_boards():
            boards.close()
        checkpoints.download_best(trials)
        _write_results(study, space, folder, monotonic() - started)
        save_best_trial(prepared, study, folder)  # until k-fold retraining has made a better model
    return SearchResult(study, gpu_fraction, budget, time_left)


def _as_budget(budget: TimeBudget, request: Request, progress: Progress) -> Budget:
    seconds = request.time_budget_seconds or 0.0
    return Budget(lambda: seconds - progress.elapsed_seconds, budget.reserved_seconds)


def _last_trial(run_plan: RunPlan, prepared: PreparedData, progress: Progress) -> int | None:
    """Return how many trials may begin at most; None where only the time bounds them."""
    space, scores = prepared.space, run_plan.folder.summary.linear_probe or {}
    if not run_plan.request.has_open_end:
        return space.trials
    best = next(iter(scores.values()), ProbeScore())
    n_images = len(prepared.rows("train", "val"))
    if space.metric != "accuracy" or not nothing_to_gain(best.accuracy, n_images):
        return None
    n_first = max(1, len(space.first_trials))
    n_wrong = round((1 - best.accuracy) * n_images)
    progress.say(
        f"the linear probe is wrong on {n_wrong} of {n_images} images, too few for a better model"
        f" to be distinguished from chance: the search ends after {count(n_first, 'trial')}"
    )
    return n_first


def _may_begin(study: optuna.Study, last_trial: int | None) -> bool:
    """Return whether another trial may begin, where there is a last one."""
    if last_trial is None:
        return True
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state != TrialState.WAITING for trial in trials) < last_trial


def nothing_to_gain(accuracy: float, n_images: int) -> bool:
    """Return whether no model can be shown to be better: one that is right everywhere is not.

    Args:
        accuracy: Of the linear probe, cross-validated; NaN where it is unknown.
        n_images: Images of the cross-validation.
    """
    if not math.isfinite(accuracy):
        return False
    return p_value(0, round((1 - accuracy) * n_images)) >= ALPHA


def _slots_by_backbone(gpu_fraction: Mapping[str, float]) -> Callable[[str], int]:
    """Return what tells how many trainings of a backbone run in parallel."""
    slots = {
        name: TrialSlots(CPUS_PER_TRIAL, [fraction]) for name, fraction in gpu_fraction.items()
    }
    return lambda backbone: slots[backbone]()


def _throughput(
    context: TrainingContext,
    space: Space,
    rows: Mapping[str, np.ndarray],
    gpu_fraction: Mapping[str, float],
) -> Mapping[str, Sequence[float]]:
    """Measure the speed of each backbone's training."""
    fractions = {name: gpu_fraction[name] for name in space.backbones}
    return measure_throughput(context, rows["train"], fractions)


def _write_results(study: optuna.Study, space: Space, folder: RunFolder, seconds: float) -> None:
    write_trials(folder.path / "trials.csv", study, space)
    states = count_states(study)
    counts = SearchCounts(
        trials=sum(states.values()),
        complete=states["complete"],
        pruned=states["pruned"],
        failed=states["failed"],
        unfinished=count_unfinished(study),
        seconds=seconds,
    )
    folder.write_summary(replace(folder.summary, search=counts))
