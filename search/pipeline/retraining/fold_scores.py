"""Write what cross-validation tells: `folds.csv` and sections of the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from search.console.progress import Progress
from search.evaluation.intervals import wilson_interval
from search.evaluation.selection import CorrectedScore, correct_for_choice
from search.pipeline.retraining.cross_validation import (
    CrossValidation,
    by_cost,
    choose_winner,
    compare_with_probe,
)
from search.pipeline.retraining.ensemble_selection import Selection
from search.reporting.sentences import describe_ensemble
from search.runs.run_folder import RunFolder
from search.runs.summary import (
    EnsemblePart,
    FinalistScores,
    KFoldScores,
    WeightedEnsembleScores,
)
from search.runs.tables import FOLD_COLUMNS, write_csv
from spaces.rules import Metric

_SELECTION_SCORES = (
    *("log_loss", "log_loss_baseline", "log_loss_gain_se"),
    *("score", "score_baseline", "score_gain_se"),
)


def write_selection(
    selection: Selection | None,
    results: Sequence[CrossValidation],
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Write the summary's section `weighted_ensemble`, and say whether it is the model."""
    if selection is None:
        folder.write_summary(replace(folder.summary, weighted_ensemble=None))
        return
    weighted = sorted(zip(selection.weights, results, strict=True), key=lambda pair: -pair[0])
    parts = [
        EnsemblePart(
            name=one.finalist.name,
            weight=float(weight),
            members=len(one.members),
            backbone=one.finalist.retrain_config.config.backbone,
        )
        for weight, one in weighted
        if weight > 0
    ]
    scores = {name: getattr(selection, name) for name in _SELECTION_SCORES}
    section = WeightedEnsembleScores(enabled=selection.enabled, parts=parts, **scores)
    folder.write_summary(replace(folder.summary, weighted_ensemble=section))
    progress.say(describe_ensemble(folder.summary))


def write_scores(
    results: Sequence[CrossValidation],
    compared: Sequence[CrossValidation],
    winner: CrossValidation,
    groups: np.ndarray | None,
    metric: Metric,
    labels: np.ndarray,
    dropped: Mapping[str, str],
    folder: RunFolder,
) -> None:
    """Write `folds.csv` and the summary's sections `best` and `kfold`.

    Args:
        results: All finalists.
        compared: The same, on the folds that all of them have.
        winner: One of the results.
        groups: Near-duplicates among the images of the folds compared.
        metric: What finalists are compared by.
        labels: int64 [N], of the whole table.
        dropped: By name, why a finalist has no folds.
        folder: The run's folder.
    """
    rows = [
        [
            result.finalist.name if result.finalist.trial is None else result.finalist.trial,
            index,
            fold.accuracy,
            len(fold.rows),
            round(fold.seconds, 3),
            fold.node,
        ]
        for result in results
        for index, fold in enumerate(result.folds, start=1)
    ]
    write_csv(folder.path / "folds" / "folds.csv", FOLD_COLUMNS, rows)
    compared_with_probe = compare_with_probe(compared, groups, metric, labels)
    place = next(i for i, result in enumerate(results) if result is winner)
    corrected = _corrected(compared, compared[place], groups, metric)
    kfold = KFoldScores(
        folds=len(winner.folds),
        accuracy_mean=winner.mean,
        accuracy_std=winner.std,
        accuracy_corrected=corrected.accuracy,
        accuracy_corrected_ci95=corrected.accuracy_ci95,
        optimism=winner.optimism,
        center_crop=None if winner.center_crop is None else winner.center_crop.scores(),
        finalists=[
            FinalistScores(
                trial=result.finalist.trial,
                name=result.finalist.name,
                val_accuracy=result.finalist.val_accuracy,
                accuracy_mean=result.mean,
                accuracy_std=result.std,
                center_crop=result.enabled_center_crop is not None,
                score=result.score(metric),
            )
            for result in results
        ],
        score=winner.score(metric),
        score_corrected=corrected.score,
        score_corrected_ci95=corrected.score_ci95,
        dropped=dropped,
        against_probe=compared_with_probe,
    )
    best = winner.finalist.as_best_model()
    folder.write_summary(replace(folder.summary, best=best, kfold=kfold))


def _corrected(
    compared: Sequence[CrossValidation],
    winner: CrossValidation,
    groups: np.ndarray | None,
    metric: Metric,
) -> CorrectedScore:
    """Return the winner's score without the optimism of the choice among all finalists.

    One that was chosen by its log loss is taken to be as optimistic as the one with the highest
    score: what that one has more is taken off as well.
    """
    candidates = [result.candidate for result in by_cost(compared)]
    corrected = correct_for_choice(candidates, groups, metric)
    highest = choose_winner(compared, groups, metric)
    if highest is winner:
        return corrected
    alone, other = (
        correct_for_choice([one.candidate], groups, metric) for one in (winner, highest)
    )
    accuracy = float(np.clip(corrected.accuracy + alone.accuracy - other.accuracy, 0.0, 1.0))
    n = len(winner.candidate.without_crop.correct)
    interval = wilson_interval(accuracy * n, n)
    if metric == "accuracy":
        return CorrectedScore(accuracy, interval, accuracy, interval)
    less, (low, high) = other.score - alone.score, corrected.score_ci95
    return CorrectedScore(corrected.score - less, (low - less, high - less), accuracy, interval)
