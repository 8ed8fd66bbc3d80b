"""The flow, from checked images to a report. What a stage makes is on disk before the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic

import optuna
import torch
from torch import Tensor

from search.cluster.nodes import wait_for_gpu
from search.cluster.resources import CPUS_PER_TRIAL, TrialSlots, measure_gpu_fractions
from search.console.formatting import describe, duration
from search.console.progress import Progress
from search.console.signals import FAILED, GracefulShutdown
from search.pipeline.ablation import expected_seconds, run_ablation
from search.pipeline.evaluate import evaluate
from search.pipeline.finalists import Candidate, choose_finalists
from search.pipeline.predictions_tmp import predict_out_of_fold
from search.pipeline.preflight import RunPlan
from search.pipeline.prepare import PreparedData, pack_images
from search.pipeline.probe import build_feature_cache, open_feature_cache, probe_backbones
from search.pipeline.request import Request, RequestError
from search.pipeline.retraining.retrain import retrain_finalists, save_best_trial
from search.reporting.tensorboard.run_board import Overview
from search.reporting.tensorboard.trial_boards import TrialBoards
from search.reporting.terminal import show_result
from search.runs.run_folder import RunFolder
from search.tuning.checkpoints import start_checkpoint_store
from search.tuning.study import (
    BASELINE_TRIAL,
    best_value,
    count_states,
    count_unfinished,
    kept_scores,
    open_study,
    outcomes,
    ranked_trials,
    storage_url,
    write_trials,
)
from search.tuning.throughput import measure_throughput
from search.tuning.time_budget import TimeBudget, fold_growth
from search.tuning.tune import SearchPlan, TrialCallback, run_trials
from spaces.base import Space
from trainables.models.backbones import create_backbone
from trainables.models.weights import WeightsError, load_weights


def run(run_plan: RunPlan, progress: Progress, shutdown: GracefulShutdown) -> int:
    """Run every stage; return the exit code. Ray must be running.

    Raises:
        DataError, WeightsError, RequestError: what only a closer look at the images and the
            weights could find.
    """
    request, folder = run_plan.request, run_plan.folder
    weights = read_weights(run_plan)
    # 1. Images are decoded once, and features of frozen stages are computed once.
    with stage("images", folder):
        prepared = pack_images(run_plan, weights, progress)
    folder.note("settings", settings(run_plan))
    overview = Overview(folder, run_plan.space.trials)
    overview.describe()
    with stage("probe", folder):
        progress.begin("probe")
        wait_for_gpu(progress.say)
        prepared = open_feature_cache(prepared)
        if request.probe:
            prepared = probe_backbones(prepared, folder, progress)
    with stage("feature_cache", folder):
        build_feature_cache(prepared, progress)
    overview.show_augmentation(prepared)
    # 2. Trials are judged on the validation split; the folds use both, and choose a winner.
    with stage("search", folder):
        study, time = search(run_plan, prepared, progress, shutdown)
    with stage("folds", folder):
        candidates = choose_finalists(
            study,
            prepared.space,
            request.finalists or 1,
            folder,
            with_first=time is None or not time.leaves_first_out(),
            without=time.too_slow() if time is not None else (),
        )
        if time is not None:
            tell_left_out(study, time, candidates, progress)
        if not candidates:
            progress.warn(f"no trial ended an epoch; see {folder.path / 'trials.csv'}")
            report(folder, progress)
            return FAILED
        made = retrain_finalists(prepared, candidates, request.probe, folder, progress)
    # 3. Everything is chosen: the test split is opened.
    with stage("evaluation", folder):
        progress.begin("evaluation")
        held_out, external = evaluate(prepared, made.ensemble, folder, made.baseline)
    with stage("boards", folder):
        temperature = made.ensemble.card.temperature
        out_of_fold = predict_out_of_fold(prepared, made.winner.folds, temperature)
        overview.show_model(
            prepared.manifest.classes, made.ensemble, held_out, out_of_fold, external
        )
    # 4. What takes no part in the answer comes last.
    if prepared.space.ablation:
        run_ablation_in_time(request, prepared, folder, progress)
    report(folder, progress)
    show_result(folder.summary, folder.path, progress.console)
    return 0


def search(
    run_plan: RunPlan, prepared: PreparedData, progress: Progress, shutdown: GracefulShutdown
) -> tuple[optuna.Study, TimeBudget | None]:
    """Run trials until the study holds as many as are asked for, or the time is up.

    Returns:
        The study, and what watched over the time.

    Raises:
        KeyboardInterrupt: the user asked to stop; all that was finished is kept.
    """
    request, space, folder = run_plan.request, run_plan.space, run_plan.folder
    started = monotonic()
    study = open_study(storage_url(folder.path), space)
    shares = measure_gpu_fractions(space, prepared.context, prepared.rows("train"))
    if any(shares.values()):
        progress.say("share of a GPU a trial takes: " + describe(shares))
    folder.note("gpu_fraction", shares)
    budget = time_budget(run_plan, prepared, shares, study, progress)
    plan = SearchPlan(
        n_trials=space.trials,
        sampler=request.sampler,
        scheduler=request.scheduler,
        interrupted=shutdown.requested,
        time_is_up=lambda: budget is not None and budget.is_up(),
        min_freeze_depth=budget.min_freeze_depth if budget is not None else None,
        concurrent=request.concurrent,
        gpu_fraction=shares,
    )
    # What an earlier session found out about its winner says nothing of the next one.
    folder.forget(
        "kfold", "label_issues", "calibration", "test", "comparison", "external", "samples"
    )
    trials = folder.path / "trials"
    shared = request.shared and request.shared.within("trials")
    checkpoints = start_checkpoint_store(trials.absolute(), space.keep_checkpoints, kept_scores(study), shared)
    boards = TrialBoards(folder.path / "tensorboard", space)
    boards.catch_up(outcomes(study))
    n_ended = sum(count_states(study).values())
    ranked = ranked_trials(study)
    best = (best_value(ranked[0]), ranked[0].number, ranked[0].params) if ranked else None
    progress.begin_trials(space.trials, n_ended, space.epochs, best)
    rows = {part: prepared.rows(part) for part in ("train", "val")}
    try:
        with shutdown.deferring():
            callbacks: list[TrialCallback] = [boards, progress]
            if budget is not None:
                callbacks.append(budget)
            run_trials(plan, study, space, prepared.context, rows, checkpoints, trials, callbacks)
    finally:
        boards.close()
        checkpoints.download_best(trials)
        _note_trials(study, space, folder, monotonic() - started)
        save_best_trial(prepared, study, folder)  # until the folds have made a better model
        if shutdown.requested():
            report(folder, progress)
    return study, budget


def time_budget(
    run_plan: RunPlan,
    prepared: PreparedData,
    shares: Mapping[str, float],
    study: optuna.Study,
    progress: Progress,
) -> TimeBudget | None:
    """Return what watches over the time, if it is limited."""
    seconds, space = run_plan.request.time_budget_seconds, run_plan.space
    if seconds is None:
        return None
    rows = prepared.rows("train")
    slots_by_backbone = {
        name: TrialSlots(CPUS_PER_TRIAL, [share]) for name, share in shares.items()
    }
    budget = TimeBudget(
        seconds,
        lambda: progress.elapsed_seconds,
        space,
        run_plan.request.finalists or 1,
        lambda backbone: slots_by_backbone[backbone](),
        fold_growth(len(rows), len(prepared.rows("val")), space.folds),
        measure_throughput(prepared.context, rows, shares),
        len(rows),
        has_probe=bool(run_plan.folder.summary.get("probe")),
    )
    budget.catch_up(study)
    return budget


def tell_left_out(
    study: optuna.Study, time: TimeBudget, candidates: Sequence[Candidate], progress: Progress
) -> None:
    """Say which trials are no finalists for want of time."""
    retrained = {candidate.number for candidate in candidates}
    ranked = ranked_trials(study)
    if ranked and ranked[0].number in time.too_slow() - retrained:
        progress.warn(
            f"trial {ranked[0].number}, {best_value(ranked[0]):.4f} in the search, is no finalist:"
            " its folds would take too much of the time budget"
        )
    elif time.leaves_first_out() and BASELINE_TRIAL not in retrained:
        progress.warn("the first trial is not compared with: its folds would take too long")


def run_ablation_in_time(
    request: Request, prepared: PreparedData, folder: RunFolder, progress: Progress
) -> None:
    """Climb the ladder, unless there is not enough time left."""
    if request.time_budget_seconds is not None:
        left = request.time_budget_seconds - progress.elapsed_seconds
        needed = expected_seconds(prepared, folder.summary["gpu_fraction"])
        if needed > left:
            progress.warn(
                f"the ladder is left out: it would take about {duration(needed)}, and"
                f" {duration(max(left, 0))} of the time budget are left"
            )
            return
    with stage("ablation", folder):
        run_ablation(prepared, folder, progress)


def report(folder: RunFolder, progress: Progress) -> None:
    """Write the report, of an unfinished run too."""
    from search.reporting.page import write_report  # Matplotlib takes a while, and is needed last.

    progress.begin("report")
    with stage("report", folder):
        write_report(folder)


def _note_trials(study: optuna.Study, space: Space, folder: RunFolder, seconds: float) -> None:
    write_trials(folder.path / "trials.csv", study, space)
    states = count_states(study)
    folder.note(
        "search",
        {
            "trials": sum(states.values()),
            "complete": states["complete"],
            "pruned": states["pruned"],
            "failed": states["failed"],
            "unfinished": count_unfinished(study),
            "seconds": seconds,
        },
    )


def settings(run_plan: RunPlan) -> dict[str, object]:
    """Return what applied to the run, the command line's changes to the space included."""
    request, space = run_plan.request, run_plan.space
    scope = ("trials", "epochs", "folds", "patience", "views", "keep_checkpoints")
    images = ("image_size", "resize_mode", "cache_size", "weights", "center_crop")
    return {
        **{name: getattr(space, name) for name in (*scope, *images)},
        "searched": {name: str(value) for name, value in space.distributions.items()},
        "constants": space.constants,
        "finalists": request.finalists or 1,
        "sampler": request.sampler,
        "scheduler": request.scheduler,
        "probe": request.probe,
        "seed": request.seed,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def read_weights(run_plan: RunPlan) -> dict[str, dict[str, Tensor]]:
    """Read all pretrained weights, and try that they, and the images' size, fit.

    Raises:
        WeightsError: weights cannot be read or do not fit.
        RequestError: a backbone cannot see images of the space's size.
    """
    weights = {name: load_weights(path) for name, path in run_plan.weights.items()}
    for name in run_plan.space.backbones:
        try:
            backbone = create_backbone(name, weights.get(name))
            backbone.stage_output_shapes(run_plan.space.image_size)
        except WeightsError as error:
            raise WeightsError(f"{run_plan.weights[name]}: {error}") from None
        except ValueError as error:
            raise RequestError(f"{name}: {error}") from None
    return weights


@contextmanager
def stage(name: str, folder: RunFolder) -> Iterator[None]:
    """Note how many seconds a stage took."""
    started = monotonic()
    yield
    folder.add_stage_seconds(name, monotonic() - started)
