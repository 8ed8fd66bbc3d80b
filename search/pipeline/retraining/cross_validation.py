"""The cross-validation of one finalist, and the choice among several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.evaluation.comparison import compare_models
from search.evaluation.selection import Candidate, choose_candidate
from search.pipeline.finalists import Finalist
from search.pipeline.retraining.center_crop import CenterCropResult
from search.pipeline.retraining.kfold import Fold, mean_accuracy
from search.pipeline.retraining.out_of_fold import score_images
from search.runs.summary import Comparison
from spaces.rules import Metric
from trainables.models.network_cut import N_STAGES


@dataclass(frozen=True)
class CrossValidation:
    """The k-fold cross-validation of one finalist.

    Attributes:
        finalist: What was retrained.
        members: Its folds, without the centre crop; where time was short, the first of them.
        candidate: Its out-of-fold scores, by which the winner is chosen.
        center_crop: The same with it; None where it was not tried.
    """

    finalist: Finalist
    members: list[Fold]
    candidate: Candidate
    center_crop: CenterCropResult | None = None

    @property
    def enabled_center_crop(self) -> CenterCropResult | None:
        """The centre crop if it is part of the model."""
        crop = self.center_crop
        return crop if crop is not None and crop.enabled else None

    @property
    def folds(self) -> list[Fold]:
        """Folds, with centre-crop logits where the branch is enabled."""
        crop = self.enabled_center_crop
        return self.members if crop is None else crop.folds

    @property
    def mean(self) -> float:
        """Mean accuracy of the folds, weighted by their images."""
        return mean_accuracy(self.folds)

    @property
    def std(self) -> float:
        """Standard deviation (n - 1) of the folds' accuracies; 0 for a single fold."""
        accuracies = [fold.accuracy for fold in self.folds]
        return float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0

    def on_first_folds(self, n: int, labels: np.ndarray) -> CrossValidation:
        """Return the same of the first n folds alone.

        Args:
            n: Number of folds.
            labels: int64 [N], of the whole table.
        """
        if n == len(self.members):
            return self
        crop, members = self.center_crop, self.members[:n]
        if crop is None:
            return replace(
                self, members=members, candidate=Candidate(score_images(members, labels))
            )
        folds = crop.folds[:n]
        candidate = Candidate(score_images(members, labels), score_images(folds, labels))
        crop = replace(crop, folds=folds, baseline_folds=members, candidate=candidate)
        return replace(self, members=members, candidate=candidate, center_crop=crop)

    def score(self, metric: Metric) -> float:
        """Return the score of all out-of-fold predictions, calibrated."""
        crop = self.candidate.with_crop if self.enabled_center_crop is not None else None
        return (crop or self.candidate.without_crop).score(metric)

    @property
    def optimism(self) -> float:
        """Best validation accuracy minus the mean of the folds, both without the centre crop."""
        return self.finalist.val_accuracy - mean_accuracy(self.members)


def choose_winner(
    results: Sequence[CrossValidation],
    groups: np.ndarray | None = None,
    metric: Metric = "accuracy",
) -> CrossValidation:
    """Return the finalist with the highest score out of fold: by default, most correct images.

    Equals go to the lower calibrated log loss, then to the one without the centre crop, with
    fewer trainable stages, the linear probe, the lower trial number.

    Args:
        results: At least one; all of the same images.
        groups: int64 [n], near-duplicates among them, by ascending table rows.
        metric: What they are compared by.
    """
    ranked = by_cost(results)
    return ranked[choose_candidate([result.candidate for result in ranked], groups, metric)]


def compare_with_probe(
    compared: Sequence[CrossValidation],
    groups: np.ndarray | None,
    metric: Metric,
    labels: np.ndarray,
) -> Comparison | None:
    """Compare the best trial with the linear probe on the same out-of-fold images."""
    trials = [result for result in compared if result.finalist.trial is not None]
    probes = [result for result in compared if result.finalist.trial is None]
    if not trials or not probes:
        return None
    best = choose_winner(trials, groups, metric)
    model, probe = (
        np.concatenate([fold.logits.argmax(1) for fold in one.folds]) for one in (best, probes[0])
    )
    return compare_models(labels[np.concatenate([fold.rows for fold in best.folds])], model, probe)


def possible_parts(results: Sequence[CrossValidation], winner: CrossValidation) -> list[int]:
    """Return which finalists an ensemble may consist of, the winner among them.

    Heads on the same frozen backbone differ little, and each would take as long as the first: the
    best of them alone is one, the winner before all others. One of a single fold, where time was
    short, is none, since what it would gain cannot be measured.
    """
    best_heads: dict[str, CrossValidation] = {}
    for result in sorted(results, key=lambda one: (one is not winner, -one.score("log_loss"))):
        if _is_head(result):
            best_heads.setdefault(result.finalist.retrain_config.config.backbone, result)

    def may_be_part(result: CrossValidation) -> bool:
        if result is winner:
            return True
        is_another = _is_head(result) and all(result is not one for one in best_heads.values())
        return len(result.members) > 1 and not is_another

    return [index for index, result in enumerate(results) if may_be_part(result)]


def _is_head(result: CrossValidation) -> bool:
    return result.finalist.retrain_config.config.freeze_depth == N_STAGES


def by_cost(results: Sequence[CrossValidation]) -> list[CrossValidation]:
    """Return finalists, the cheapest first."""
    return sorted(results, key=lambda result: result.finalist.cost)
