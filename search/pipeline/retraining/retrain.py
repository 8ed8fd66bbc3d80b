"""The cross-validation stage: retrain finalists by k-fold, and make the best one the model.

It is long because each step of the stage needs all that the steps before it made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from search.cluster.resources import CPUS_PER_TRIAL
from search.console.formatting import METRIC_NAMES, count, describe_score, percent
from search.console.progress import Progress
from search.evaluation.mcnemar import detectable_difference
from search.evaluation.selection import Candidate
from search.pipeline.finalists import Finalist
from search.pipeline.model_file import build_ensemble
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.center_crop import CenterCropProbes
from search.pipeline.retraining.cross_validation import (
    CrossValidation,
    choose_winner,
    possible_parts,
)
from search.pipeline.retraining.ensemble_selection import select_finalists
from search.pipeline.retraining.fold_scores import write_scores, write_selection
from search.pipeline.retraining.kfold import (
    Fold,
    FoldError,
    FoldStore,
    retrain,
)
from search.pipeline.retraining.out_of_fold import (
    OutOfFold,
    average_out_of_fold,
    expected_discordance,
    fit_ood,
    predict_out_of_fold,
    score_images,
    write_out_of_fold,
)
from search.reporting.sentences import describe_ensemble, describe_power
from search.runs.run_folder import MODEL, RunFolder
from search.tuning.study import BASELINE_TRIAL
from search.tuning.time_budget import TimeBudget
from trainables.models.ensemble import Ensemble
from trainables.models.latency import measure_latency
from trainables.models.model import Model, join, save_model
from trainables.models.ood import OODScorer
from trainables.worker import TrainingContext, training_device

_log = logging.getLogger(__name__)

_FOLD_STATE = Path("folds") / "state"
"""What a resumed run reuses, in the run's folder."""


@dataclass(frozen=True)
class Retrained:
    """The model and what it is compared with.

    Attributes:
        winner: The finalist that was chosen: see `choose_winner`; or where the ensemble selection
            takes one other alone, and that is clearly better, this one.
        model: Its folds, or where that is clearly better an ensemble of several finalists' folds.
        out_of_fold: The model's out-of-fold predictions.
        baseline: Trial 0, retrained on the same folds; None where that is the model, or was not
            retrained.
        expected_discordance: Fraction of images that only the model or only the baseline predicts
            correctly out of fold; None without a baseline.
    """

    winner: CrossValidation
    model: Model
    out_of_fold: OutOfFold
    baseline: Ensemble | None
    expected_discordance: float | None


def retrain_finalists(
    prepared: PreparedData,
    context: TrainingContext,
    finalists: Sequence[Finalist],
    use_probe: bool,
    gpu_fraction: Mapping[str, float],
    folder: RunFolder,
    progress: Progress,
    next_best: Sequence[Finalist] = (),
    budget: TimeBudget | None = None,
    max_latency_ms: float | None = None,
) -> Retrained:
    """Retrain the finalists by k-fold; the folds of the best one, or of several, are the model.

    One of which a fold cannot be trained is dropped, and the next best trial takes its place.
    Where a time budget leaves no time for all folds of the best trial, it is retrained on the first
    of them, and finalists are compared on those; other trials are left out.

    Writes `folds/`, `model.pt`, and the summary's sections `best`, `kfold`, `weighted_ensemble`,
    `label_issues` and `calibration`.

    Args:
        prepared: The images.
        context: What all trainings have in common.
        finalists: At least one.
        use_probe: Whether linear heads are initialised by probes.
        gpu_fraction: By backbone, the fraction of a GPU that a training takes.
        folder: The run's folder.
        progress: Shows each fold.
        next_best: Trials that take the place of finalists that are dropped, and that are retrained
            as well while a time budget lasts.
        budget: The time budget; None without one.
        max_latency_ms: Milliseconds that an ensemble of finalists may take for one image; None is
            any number.

    Raises:
        FoldError: all were dropped.
    """
    n_folds = prepared.space.folds
    progress.begin("cross_validation", n_folds * len(finalists), "folds")
    probes = CenterCropProbes(prepared, context, gpu_fraction, folder.path / _FOLD_STATE)
    labels, metric = context.labels, prepared.space.metric
    results: list[CrossValidation] = []
    dropped: dict[str, str] = {}
    for finalist in (*finalists, *(one for one in next_best if one not in finalists)):
        if budget is None and len(results) == len(finalists):
            break
        if not _has_time(finalist, finalists, results, budget):
            if finalist in finalists:
                progress.warn(f"{finalist.name} is not retrained: its folds would take too long")
            continue
        backbone = finalist.retrain_config.config.backbone
        try:
            folds = _retrain(
                prepared,
                context,
                finalist,
                use_probe,
                gpu_fraction[backbone],
                folder,
                progress,
                n_folds * len(results),
                partial(_has_time_for_fold, finalist, budget),
            )
        except FoldError as error:
            dropped[finalist.name] = str(error)
            _log.warning("%s is dropped", finalist.name, exc_info=error)
            progress.warn(f"{finalist.name} is dropped: {error}")
            continue
        if len(folds) < n_folds:
            progress.warn(
                f"the time budget ends the retraining of {finalist.name} after"
                f" {len(folds)} of {n_folds} folds"
            )
        crop = probes.evaluate(backbone, folds) if probes.applies_to(backbone) else None
        candidate = Candidate(score_images(folds, labels)) if crop is None else crop.candidate
        result = CrossValidation(finalist, folds, candidate, crop)
        results.append(result)
        with_crop = ", with centre crop" if result.enabled_center_crop is not None else ""
        if metric != "accuracy":
            value = describe_score(metric, result.score(metric), 2)
            with_crop += f"; {METRIC_NAMES[metric]} {value}"
        progress.say(
            f"{finalist.name}: cross-validation, mean of {count(len(folds), 'fold')}"
            f" {percent(result.mean, 2)} ± {percent(result.std, 2)}{with_crop}"
        )
    if not results:
        raise FoldError("no finalist could be retrained; the model is not cross-validated")
    n_common = min(len(result.members) for result in results)
    compared = [result.on_first_folds(n_common, labels) for result in results]
    rows = np.sort(np.concatenate([fold.rows for fold in compared[0].members]))
    groups = None if context.groups is None else context.groups[rows]
    winner = results[compared.index(choose_winner(compared, groups, metric))]
    predicted = [predict_out_of_fold(prepared, result.folds) for result in results]
    temperatures = [one.scaling.temperature for one in predicted]
    parts = possible_parts(results, winner)
    selection = select_finalists(
        [results[i].folds for i in parts],
        [temperatures[i] for i in parts],
        [results[i] is winner for i in parts].index(True),
        metric,
        labels,
        context.groups,
    )
    if selection is not None and selection.enabled and np.count_nonzero(selection.weights) == 1:
        winner, selection = results[parts[int(selection.weights.argmax())]], None
        progress.say(f"{winner.finalist.name} is the model: alone, it has the lowest log loss")
    write_scores(results, compared, winner, groups, metric, labels, dropped, folder)
    write_selection(selection, [results[i] for i in parts], folder, progress)
    weights = np.array([float(result is winner) for result in results])
    if selection is not None and selection.enabled:
        weights[parts] = selection.weights
    model, chosen = _join(prepared, results, weights, probes, temperatures)
    size, bound = prepared.space.image_size, max_latency_ms
    if len(chosen) > 1 and bound and _is_too_slow(model, bound, size, folder, progress):
        weights = np.array([float(result is winner) for result in results])
        model, chosen = _join(prepared, results, weights, probes, temperatures)
    save_model(model, folder.path / MODEL)
    names = ", ".join(results[i].finalist.name for i in chosen)
    _log.info("%s: the folds of %s", folder.path / MODEL, names)
    out_of_fold = average_out_of_fold([predicted[i] for i in chosen], [weights[i] for i in chosen])
    write_out_of_fold(out_of_fold.predictions, prepared.space.image_size, folder)
    calibration = out_of_fold.scaling.scores()
    folder.write_summary(replace(folder.summary, calibration=calibration))
    of_baseline = [i for i, one in enumerate(results) if one.finalist.trial == BASELINE_TRIAL]
    if not of_baseline or of_baseline == chosen:
        return Retrained(winner, model, out_of_fold, None, None)
    (place,) = of_baseline
    discordance = expected_discordance(out_of_fold.predictions, predicted[place].predictions)
    n_test = len(prepared.rows("test"))
    progress.say(describe_power(n_test, detectable_difference(n_test, discordance)))
    return Retrained(
        winner,
        model,
        out_of_fold,
        _as_ensemble(prepared, results[place], probes, temperatures[place]),
        discordance,
    )


def _join(
    prepared: PreparedData,
    results: Sequence[CrossValidation],
    weights: np.ndarray,
    probes: CenterCropProbes,
    temperatures: Sequence[float],
) -> tuple[Model, list[int]]:
    """Return the model of these finalists, and which have a weight, the highest first."""
    chosen = [int(i) for i in np.argsort(-weights, kind="stable") if weights[i]]
    ensembles = [
        _as_ensemble(prepared, results[i], probes, temperatures[i], fit_ood(results[i].folds))
        for i in chosen
    ]
    return join(ensembles, [float(weights[i]) for i in chosen]), chosen


def _is_too_slow(
    model: Model, max_latency_ms: float, image_size: int, folder: RunFolder, progress: Progress
) -> bool:
    """Return whether an ensemble of finalists takes longer than it may, and record it."""
    section = folder.summary.weighted_ensemble
    if section is None:
        return False
    latency = measure_latency(model, image_size, training_device())
    is_slow = latency > max_latency_ms
    section = replace(
        section, enabled=not is_slow, latency_ms=latency, max_latency_ms=max_latency_ms
    )
    folder.write_summary(replace(folder.summary, weighted_ensemble=section))
    if is_slow:
        progress.say(describe_ensemble(folder.summary))
    return is_slow


def _has_time(
    finalist: Finalist,
    finalists: Sequence[Finalist],
    results: Sequence[CrossValidation],
    budget: TimeBudget | None,
) -> bool:
    """Return whether there is time to retrain a finalist.

    Some folds of a finalist will do, but not of one that is retrained only to be compared with, or
    for the time that is left. The first of all is retrained in any case.
    """
    if budget is None or not results:
        return True
    has_trial = any(result.finalist.trial is not None for result in results)
    is_for_comparison = finalist.trial == BASELINE_TRIAL and has_trial
    needs_all = is_for_comparison or finalist not in finalists
    return budget.has_time_for_folds(finalist.trial, all_folds=needs_all)


def _has_time_for_fold(
    finalist: Finalist, budget: TimeBudget | None, seconds: float, n_folds: int
) -> bool:
    """Return whether there is time for one more fold, which would make them so many.

    Those of a linear probe take next to none.
    """
    return budget is None or finalist.trial is None or seconds <= budget.seconds_left(n_folds)


def _retrain(
    prepared: PreparedData,
    context: TrainingContext,
    finalist: Finalist,
    use_probe: bool,
    gpu_fraction: float,
    folder: RunFolder,
    progress: Progress,
    n_folds_before: int,
    has_time: Callable[[float, int], bool],
) -> list[Fold]:
    """Train the folds of a finalist that an earlier session did not."""
    n_folds, retrain_config = prepared.space.folds, finalist.retrain_config
    store = FoldStore(folder.path / _FOLD_STATE, finalist.name, retrain_config)
    before = store.load(n_folds)
    n_done = n_folds_before + len(before)
    progress.advance(n_done)

    def on_fold(index: int, fold: Fold) -> None:
        nonlocal n_done
        n_done += 1
        store.save(index, fold)
        progress.advance(n_done)
        accuracy = percent(fold.accuracy, 2)
        progress.say(f"{finalist.name}, fold {index + 1} of {n_folds}: accuracy {accuracy}")

    return retrain(
        context,
        retrain_config,
        prepared.rows("train", "val"),
        n_folds,
        use_probe,
        {"num_cpus": CPUS_PER_TRIAL, "num_gpus": gpu_fraction},
        on_fold,
        before,
        has_time,
    )


def _as_ensemble(
    prepared: PreparedData,
    result: CrossValidation,
    probes: CenterCropProbes,
    temperature: float,
    ood_scorer: OODScorer | None = None,
) -> Ensemble:
    config, crop = result.finalist.retrain_config.config, None
    if result.enabled_center_crop is not None:
        heads = result.enabled_center_crop.heads
        crop = probes.weights(config.backbone, config.freeze_depth, heads)
    members = [fold.weights for fold in result.folds]
    return build_ensemble(prepared, config, members, temperature, crop, ood_scorer)
