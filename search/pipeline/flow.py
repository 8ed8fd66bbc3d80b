"""The stages of a run, top to bottom, from checked images to the report.

What a stage makes is on disk before the next one begins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic

import torch

from search.cluster.feature_cache_client import start_feature_cache
from search.cluster.nodes import wait_for_gpu
from search.console.progress import Progress
from search.console.signals import FAILED, GracefulShutdown
from search.pipeline.ablation import run_ablation
from search.pipeline.backbones.candidates import check_candidates
from search.pipeline.backbones.choice import choose_backbones, exclude_unsuitable
from search.pipeline.backbones.feature_cache import build_feature_cache, plan_feature_cache
from search.pipeline.backbones.probe import ProbeResult, probe_backbones
from search.pipeline.backbones.view_limit import limit_views
from search.pipeline.evaluate import evaluate
from search.pipeline.finalists import Finalist, choose_finalists, next_finalists
from search.pipeline.preflight import RunPlan
from search.pipeline.prepare import prepare_data
from search.pipeline.retraining.kfold import FoldError
from search.pipeline.retraining.retrain import retrain_finalists
from search.pipeline.trials import SearchResult, run_search
from search.reporting.tensorboard.run_board import RunBoard
from search.reporting.terminal import show_result
from search.reporting.trackers.choice import create_trackers
from search.reporting.trackers.worker import Trackers
from search.runs.run_folder import MODEL, RunFolder
from search.runs.summary import BackboneWeights, Settings
from search.tuning.study import BASELINE_TRIAL
from spaces.conditions import in_words
from trainables.compute import keep_freed_memory, release_memory
from trainables.pretrained.licences import Licence, weights_licence
from trainables.pretrained.weight_files import describe_source

_log = logging.getLogger(__name__)


def run(run_plan: RunPlan, progress: Progress, shutdown: GracefulShutdown) -> int:
    """Run every stage and return the exit code. Ray must be running.

    Raises:
        DataError, WeightsError, RequestError: mistakes that only the images and the weights show.
        KeyboardInterrupt: the user stopped the run; all that was finished is saved.
    """
    trackers = Trackers(create_trackers(run_plan.request), progress.tolerating, progress.say)
    with trackers:
        return _run(run_plan, progress, shutdown, trackers)


def _run(
    run_plan: RunPlan, progress: Progress, shutdown: GracefulShutdown, trackers: Trackers
) -> int:
    request, folder = run_plan.request, run_plan.folder
    startup_seconds = progress.elapsed_seconds
    keep_freed_memory()  # networks are measured in this process, and evaluated
    # 1. Images are decoded once, and features of frozen stages are computed once.
    with _stage("data", folder):
        candidates = check_candidates(run_plan)
        run_plan, unsuitable = exclude_unsuitable(run_plan, candidates, progress)
        release_memory()
        prepared = prepare_data(run_plan, progress)
        run_plan.accept()  # before it, nothing is written into a run that is resumed
        _describe_weights(run_plan, progress)
    folder.add_stage_seconds("startup", startup_seconds)
    folder.write_summary(replace(folder.summary, settings=_settings(run_plan)))
    with _stage("linear_probe", folder):
        wait_for_gpu(progress.say)
        # A trial of an earlier session is a better model than a probe.
        model_path = folder.path / MODEL if folder.summary.best is None else None
        run_plan, prepared, probes = choose_backbones(
            run_plan, prepared, candidates, unsuitable, model_path, progress
        )
        run_plan, prepared = limit_views(run_plan, prepared, progress)
        cache_plan = plan_feature_cache(prepared, candidates)
        cache = start_feature_cache(cache_plan)
        if request.probe:
            probes = probe_backbones(
                prepared, cache_plan, cache, candidates, probes, model_path, progress
            )
        settings = _settings(run_plan)
        scores = probes.scores or None
        folder.write_summary(replace(folder.summary, settings=settings, linear_probe=scores))
    space, board = run_plan.space, RunBoard(folder, run_plan.space.trials)
    with progress.tolerating("TensorBoard's description of the run"):
        board.describe(settings, space)
    with _stage("feature_cache", folder):
        build_feature_cache(space, cache_plan, cache, progress)
    context = prepared.training_context(probes.heads, cache)
    train = prepared.rows("train")
    with progress.tolerating("TensorBoard's samples of the augmentation"):
        board.show_augmentation(prepared.image_rows(train), context.labels[train], space)
    # 2. Trials are compared on the validation set, finalists by k-fold on training and validation.
    with _stage("search", folder), _report_if_interrupted(folder, progress):
        searched = run_search(run_plan, prepared, context, candidates, progress, shutdown, trackers)
    cache.log_lost_blocks()
    with _stage("cross_validation", folder):
        finalists = _choose_finalists(run_plan, searched, probes, progress)
        if not finalists:
            progress.warn(f"no trial ended an epoch; see {folder.path / 'trials.csv'}")
            _write_report(folder, progress)
            return FAILED
        searched.time_left.begin_folds(
            [(one.trial, one.retrain_config.epochs) for one in finalists]
        )
        try:
            retrained = retrain_finalists(
                prepared,
                context,
                finalists,
                request.probe,
                searched.gpu_fraction,
                folder,
                progress,
                next_finalists(searched.study, space, finalists),
                searched.budget,
                request.max_latency_ms,
            )
        except FoldError as error:
            progress.warn(str(error))
            _write_report(folder, progress)
            return FAILED
    searched.time_left.begin_closing()
    # 3. Everything is chosen: the test set is evaluated, once for each model.
    with _stage("evaluation", folder):
        progress.begin("evaluation")
        test, external = evaluate(
            prepared,
            retrained.model,
            retrained.baseline,
            retrained.out_of_fold,
            folder,
            progress,
            retrained.expected_discordance,
        )
    progress.begin("tensorboard")
    with _stage("tensorboard", folder), progress.tolerating("TensorBoard's overview of the model"):
        board.show_model(retrained.model, test, retrained.out_of_fold.predictions, external)
    release_memory()
    # 4. What takes no part in the result comes last.
    if space.ablation:
        with _stage("ablation", folder), progress.tolerating("the ablation"):
            seconds_left = None
            if request.time_budget_seconds is not None:
                seconds_left = request.time_budget_seconds - progress.elapsed_seconds
            backbones = [*probes.heads, *prepared.features.weights]
            run_ablation(
                prepared,
                context,
                backbones[0] if backbones else None,
                searched.gpu_fraction,
                seconds_left,
                folder,
                progress,
            )
    _write_report(folder, progress)
    trackers.finish(folder.summary)
    with progress.tolerating("the closing summary"):
        if request.json:
            progress.console.print(folder.summary_json(), markup=False, soft_wrap=True)
        else:
            show_result(folder.summary, folder.path, progress.console, in_one_line=request.quiet)
    return 0


def _describe_weights(run_plan: RunPlan, progress: Progress) -> None:
    """Write the summary's section `backbone_weights`, and warn of licences that restrict uses."""
    request, described = run_plan.request, {}
    for name in run_plan.backbones:
        file = run_plan.weights.get(name)
        licence = weights_licence(name) if file is not None else Licence("")
        described[name] = BackboneWeights(
            source=describe_source(name, file, request.weights),
            licence=licence.name,
            restriction=licence.restriction,
        )
        if warning := licence.warning(name):
            progress.warn(warning)
    folder = run_plan.folder
    folder.write_summary(replace(folder.summary, backbone_weights=described))


def _settings(run_plan: RunPlan) -> Settings:
    """Return the options that apply to the run, the command line's changes included."""
    request, space = run_plan.request, run_plan.space
    return Settings(
        trials=space.trials,
        epochs=space.epochs,
        folds=space.folds,
        metric=space.metric,
        patience=space.patience,
        views=space.views,
        keep_checkpoints=space.keep_checkpoints,
        image_size=space.image_size,
        resize_mode=space.resize_mode,
        cache_size=space.cache_size,
        weights=space.weights,
        center_crop=space.center_crop,
        searched={name: in_words(space.params[name]) for name in space.distributions},
        constants=space.constants,
        finalists=request.n_finalists,
        sampler=request.sampler,
        scheduler=request.scheduler,
        probe=request.probe,
        seed=request.seed,
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    )


def _choose_finalists(
    run_plan: RunPlan, searched: SearchResult, probes: ProbeResult, progress: Progress
) -> list[Finalist]:
    """Choose the finalists, and warn where the time budget excludes the baseline."""
    budget = searched.budget
    with_baseline = budget is None or not budget.skips_baseline()
    finalists = choose_finalists(
        searched.study,
        run_plan.space,
        run_plan.request.n_finalists,
        {
            name: score
            for name, score in probes.scores.items()
            if name in (probes.heads if budget is None else budget.probes)
        },
        with_baseline,
    )
    if not with_baseline and all(one.trial != BASELINE_TRIAL for one in finalists):
        progress.warn("there is no comparison with the baseline: its folds would take too long")
    return finalists


@contextmanager
def _report_if_interrupted(folder: RunFolder, progress: Progress) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _write_report(folder, progress)
        raise


def _write_report(folder: RunFolder, progress: Progress) -> None:
    progress.begin("report")
    with _stage("report", folder), progress.tolerating("the report"):
        from search.reporting.page import write_report  # Matplotlib takes a while

        for problem in write_report(folder):
            progress.warn(problem)


@contextmanager
def _stage(name: str, folder: RunFolder) -> Iterator[None]:
    """Add a stage's seconds to the summary, and log its end."""
    started = monotonic()
    yield
    seconds = monotonic() - started
    folder.add_stage_seconds(name, seconds)
    _log.info("stage %s ended after %.1f s", name, seconds)
