"""Fit centre-crop branches, and decide by out-of-fold predictions whether a model gets one.

In each fold a linear probe of the enlarged centres of the images is fitted. Its logits are scaled
to those of the fold's member and added to them with equal weight (docs/design.md). Where that
clearly lowers the out-of-fold log loss, or raises the score by another metric than the accuracy
(`search.evaluation.selection`), the model predicts from two views of each image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from search.cluster.nodes import EVERYWHERE
from search.cluster.resources import CPUS_PER_TRIAL, assigned_cpus
from search.evaluation.calibration import fit_temperature
from search.evaluation.selection import MIN_GAIN_SE, Candidate, center_crop_gain
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.kfold import (
    Fold,
    load_state,
    mean_accuracy,
    out_of_fold,
    save_state,
    split_folds,
)
from search.pipeline.retraining.out_of_fold import score_images
from search.runs.summary import CenterCropScores
from spaces.rules import Metric
from trainables.compute import configure_cpu, mixed_precision
from trainables.images import crop_pixels
from trainables.models.center_crop import enlarge_center
from trainables.models.classifier import Weights, weights_from_stage
from trainables.models.linear_probe import fit_head, uses_center_crop
from trainables.worker import (
    TrainingContext,
    clone_backbone,
    folded_backbone,
    training_device,
)

_BLOCK_SIZE = 256
"""Images per task."""
_BATCH_SIZE = 32


@dataclass(frozen=True)
class CenterCropResult:
    """A finalist's folds with the centre-crop branch.

    Attributes:
        folds: The folds with the logits and accuracies of both views.
        baseline_folds: The same folds without the branch.
        heads: What the branch adds to each fold's logits: see `trainables.models.center_crop`.
        candidate: Out-of-fold scores of each image, without the branch and with it.
        gain: What the branch takes off the mean out-of-fold log loss, in nats.
        gain_se: Its standard error: see `search.evaluation.selection.center_crop_gain`.
        metric: What models are compared by.
        score_gain: What the branch adds to its score, and the standard error; None where it is the
            accuracy, so that the log loss decides.
    """

    folds: list[Fold]
    baseline_folds: list[Fold]
    heads: Weights
    candidate: Candidate
    gain: float
    gain_se: float
    metric: Metric = "accuracy"
    score_gain: tuple[float, float] | None = None

    @property
    def enabled(self) -> bool:
        """Whether the branch helps enough to be part of the model."""
        gain, gain_se = self.score_gain or (self.gain, self.gain_se)
        return gain > MIN_GAIN_SE * gain_se

    def scores(self) -> CenterCropScores:
        """Return the summary's section."""
        without, with_crop = self.candidate.without_crop, self.candidate.with_crop
        baseline_log_loss = float(without.log_losses.mean())
        return CenterCropScores(
            enabled=self.enabled,
            log_loss=baseline_log_loss - self.gain,
            log_loss_baseline=baseline_log_loss,
            log_loss_gain_se=self.gain_se,
            accuracy_mean=mean_accuracy(self.folds),
            accuracy_mean_baseline=mean_accuracy(self.baseline_folds),
            score=(with_crop or without).score(self.metric),
            score_baseline=without.score(self.metric),
            score_gain_se=math.nan if self.score_gain is None else self.score_gain[1],
        )


class CenterCropProbes:
    """Fits linear probes of enlarged image centres, once for each backbone."""

    def __init__(
        self,
        prepared: PreparedData,
        context: TrainingContext,
        gpu_fraction: Mapping[str, float],
        folder: Path,
    ) -> None:
        """Fit nothing yet.

        Args:
            prepared: The images.
            context: What all trainings have in common.
            gpu_fraction: By backbone, the fraction of a GPU that a training takes.
            folder: Has the probes of earlier sessions. Fitted again, on another machine, they would
                differ in the last digits, and the model would count as another one.
        """
        self._folder = folder
        self._space = prepared.space
        self._context = context
        self._gpu_fraction = gpu_fraction
        self._rows = prepared.rows("train", "val")
        n_folds, seed = prepared.space.folds, context.seed
        self._fold_rows = split_folds(self._rows, context.labels, n_folds, seed, context.groups)
        self._probes: dict[str, list[tuple[Weights, np.ndarray]]] = {}

    def applies_to(self, backbone: str) -> bool:
        """Return whether a backbone may get a branch: searched, probed, and the space allows it.

        One whose probe alone is a finalist gets none: a part of an ensemble gains little by it.
        """
        probed = backbone in self._context.heads and backbone in self._space.backbones
        return probed and uses_center_crop(self._space, len(self._rows))

    def evaluate(self, backbone: str, folds: Sequence[Fold]) -> CenterCropResult:
        """Add the branch's logits to the out-of-fold logits of a finalist's folds.

        Args:
            backbone: The finalist's.
            folds: All folds, or some of them.
        """
        if backbone not in self._probes:
            probes = self._load(backbone, self._fold_rows)
            if probes is None:
                probes = self._fit(backbone, self._fold_rows)
                self._save(backbone, self._fold_rows, probes)
            self._probes[backbone] = probes
        of_row = {int(rows[0]): index for index, rows in enumerate(self._fold_rows)}
        probes = [self._probes[backbone][of_row[int(fold.rows[0])]] for fold in folds]
        labels = self._context.labels
        rows, logits = out_of_fold(folds)
        _, crop_logits = out_of_fold(
            [replace(fold, logits=crop) for fold, (_, crop) in zip(folds, probes, strict=True)]
        )
        y = labels[rows]
        scale = fit_temperature(logits, y) / fit_temperature(crop_logits, y)
        both = [
            _add(fold, scale * crop, labels) for fold, (_, crop) in zip(folds, probes, strict=True)
        ]
        candidate = Candidate(score_images(folds, labels), score_images(both, labels))
        groups = None if self._context.groups is None else self._context.groups[rows]
        gain, gain_se = center_crop_gain(candidate, groups)
        metric = self._space.metric
        return CenterCropResult(
            folds=both,
            baseline_folds=list(folds),
            heads={
                key: torch.stack([scale * head[key] for head, _ in probes])
                for key in ("weight", "bias")
            },
            candidate=candidate,
            gain=gain,
            gain_se=gain_se,
            metric=metric,
            score_gain=None
            if metric == "accuracy"
            else center_crop_gain(candidate, groups, metric),
        )

    def weights(self, backbone: str, freeze_depth: int, heads: Weights) -> Weights:
        """Return the branch's weights: see `Ensemble.center_crop_weights`."""
        network = clone_backbone(self._context, backbone, 5, torch.device("cpu"))
        return weights_from_stage(network, freeze_depth) | heads

    def _path(self, backbone: str) -> Path:
        return self._folder / f"center-crop-{re.sub('[/:]', '-', backbone)}.pt"

    def _save(
        self,
        backbone: str,
        fold_rows: Sequence[np.ndarray],
        probes: Sequence[tuple[Weights, np.ndarray]],
    ) -> None:
        content = [
            {"rows": torch.tensor(rows), "head": head, "logits": torch.tensor(logits)}
            for rows, (head, logits) in zip(fold_rows, probes, strict=True)
        ]
        save_state(self._path(backbone), content)

    def _load(
        self, backbone: str, fold_rows: Sequence[np.ndarray]
    ) -> list[tuple[Weights, np.ndarray]] | None:
        """Return the probes of an earlier session; None without any of the same folds."""

        def parse(saved: list[dict[str, Any]]) -> list[tuple[Weights, np.ndarray]] | None:
            rows = [one["rows"].numpy() for one in saved]
            probes = [(one["head"], one["logits"].numpy()) for one in saved]
            is_same = len(rows) == len(fold_rows) and all(map(np.array_equal, rows, fold_rows))
            return probes if is_same else None

        return load_state(self._path(backbone), parse)

    def _fit(
        self, backbone: str, fold_rows: Sequence[np.ndarray]
    ) -> list[tuple[Weights, np.ndarray]]:
        """Return a head for each fold, and its logits of the images that the fold left out."""
        context, rows = self._context, self._rows
        compute = _compute_features.options(
            num_cpus=CPUS_PER_TRIAL,
            num_gpus=self._gpu_fraction[backbone],
            scheduling_strategy=EVERYWHERE,
        )
        fit = _fit_fold.options(num_cpus=CPUS_PER_TRIAL, scheduling_strategy=EVERYWHERE)
        blocks = [
            compute.remote(context, backbone, rows[start : start + _BLOCK_SIZE])
            for start in range(0, len(rows), _BLOCK_SIZE)
        ]
        fitted = [
            fit.remote(context.labels[rows], np.isin(rows, fold), context.n_classes, *blocks)
            for fold in fold_rows
        ]
        results: list[tuple[Weights, np.ndarray]] = ray.get(fitted)
        return [
            # `fold` may be in another order than `rows`, which ascend.
            (head, logits[np.searchsorted(np.sort(fold), fold)])
            for (head, logits), fold in zip(results, fold_rows, strict=True)
        ]


def _add(fold: Fold, logits: np.ndarray, labels: np.ndarray) -> Fold:
    both = (fold.logits + logits).astype(np.float32)
    accuracy = float((both.argmax(1) == labels[fold.rows]).mean())
    return replace(fold, logits=both, accuracy=accuracy)


@ray.remote(max_retries=3)
def _compute_features(context: TrainingContext, backbone: str, rows: np.ndarray) -> np.ndarray:
    """Return the pooled features of enlarged centres, float32 [n, features]."""
    configure_cpu(assigned_cpus())
    device = training_device()
    network = folded_backbone(context, backbone, device)
    images = context.images(device)
    features = []
    with torch.no_grad():
        for batch in torch.from_numpy(rows.copy()).split(_BATCH_SIZE):
            pixels = crop_pixels(images.take(batch, device), context.image_size)
            with mixed_precision(device):
                features.append(network(enlarge_center(pixels)).float().cpu())
    return torch.cat(features).numpy()


@ray.remote(max_retries=3)
def _fit_fold(
    labels: np.ndarray, in_fold: np.ndarray, n_classes: int, *blocks: np.ndarray
) -> tuple[Weights, np.ndarray]:
    configure_cpu(assigned_cpus())
    features = torch.from_numpy(np.concatenate(blocks))
    is_in_fold = torch.from_numpy(in_fold.copy())
    y = torch.from_numpy(labels.copy())
    head = fit_head(features[~is_in_fold], y[~is_in_fold], n_classes)
    logits = features[is_in_fold] @ head["weight"].T + head["bias"]
    return head, logits.numpy()
