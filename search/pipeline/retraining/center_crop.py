"""Whether a second look at each image's middle helps a finalist, by what its folds held out.

A linear probe of the enlarged middle is fitted in each fold. Its logits are put on the scale of the
fold's own and added, in equal parts (docs/design.md). Where that lowers the log loss of held-out
images noticeably, the model looks twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray
import torch

from search.cluster.nodes import EVERYWHERE
from search.cluster.resources import CPUS_PER_TRIAL
from search.evaluation.calibration import fit_temperature, log_losses
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.kfold import Fold, out_of_fold
from spaces.base import Space
from trainables.compute import compute_with
from trainables.feature_cache import mixed_precision
from trainables.images import crop_and_normalise
from trainables.models.center_crop import enlarge_center
from trainables.models.ensemble import Weights, stages_from
from trainables.models.linear_probe import MAX_IMAGES, fit_head
from trainables.worker import (
    TrainingContext,
    clone_backbone,
    folded_backbone,
    threads_of_worker,
    training_device,
)

MIN_GAIN = 0.01
"""Share of the log loss that a second look must take away, for what it costs at each prediction."""

_BLOCK = 256
"""Images that one task looks at."""
_BATCH = 32


@dataclass(frozen=True)
class CenterCropResult:
    """What a second look makes of a finalist's folds.

    Attributes:
        folds: Their held-out logits and accuracies are those of both looks.
        heads: What is added to each fold's logits: see `trainables.models.center_crop`.
        log_loss: Of held-out images, calibrated, in nats.
        log_loss_one_view: The same of the first look alone.
    """

    folds: list[Fold]
    heads: Weights
    log_loss: float
    log_loss_one_view: float

    @property
    def helps(self) -> bool:
        """Whether held-out images are predicted better than by the first look alone."""
        return self.log_loss <= (1 - MIN_GAIN) * self.log_loss_one_view


def uses_center_crop(space: Space, n_images: float) -> bool:
    """Say whether a space's models may look twice.

    Up to as many images as a probe takes whole: with more, fine-tuning leaves a probe behind.
    """
    return space.center_crop and n_images <= MAX_IMAGES


class CenterCropProbes:
    """Fits the probes of enlarged middles, once a backbone."""

    def __init__(self, prepared: PreparedData, gpu_fraction: Mapping[str, float]) -> None:
        """Look at the images that the folds divide.

        Args:
            prepared: What the run works on.
            gpu_fraction: By backbone, the share of a GPU that a trial takes.
        """
        self._material = prepared
        self._gpu_shares = gpu_fraction
        self._rows = prepared.rows("train", "val")
        self._probes: dict[str, list[tuple[Weights, np.ndarray]]] = {}

    def applies_to(self, backbone: str) -> bool:
        """Say whether a backbone takes a second look: it was probed, and the space lets it."""
        prepared = self._material
        return backbone in prepared.context.heads and uses_center_crop(
            prepared.space, len(self._rows)
        )

    def look(self, backbone: str, folds: Sequence[Fold]) -> CenterCropResult:
        """Look at the images that the folds held out again."""
        if backbone not in self._probes:
            self._probes[backbone] = self._fit(backbone, [fold.held_out for fold in folds])
        labels = self._material.context.labels
        rows, first = out_of_fold(folds)
        probes = self._probes[backbone]
        as_seen = [
            replace(fold, logits=logits) for fold, (_, logits) in zip(folds, probes, strict=True)
        ]
        _, second = out_of_fold(as_seen)
        once = fit_temperature(first, labels[rows])
        scale = once / fit_temperature(second, labels[rows])
        both = [
            _add(fold, scale * logits, labels)
            for fold, (_, logits) in zip(folds, probes, strict=True)
        ]
        _, twice = out_of_fold(both)
        return CenterCropResult(
            folds=both,
            heads={
                key: torch.stack([scale * head[key] for head, _ in probes])
                for key in ("weight", "bias")
            },
            log_loss=_loss(twice, labels[rows], fit_temperature(twice, labels[rows])),
            log_loss_one_view=_loss(first, labels[rows], once),
        )

    def weights(self, backbone: str, freeze_depth: int, heads: Weights) -> Weights:
        """Return all that a model needs: see `Ensemble.center_crop_weights`."""
        network = clone_backbone(self._material.context, backbone, 5, torch.device("cpu"))
        return stages_from(network, freeze_depth) | heads

    def _fit(self, backbone: str, parts: Sequence[np.ndarray]) -> list[tuple[Weights, np.ndarray]]:
        """Return a head for each fold, and its logits of the images that the fold held out."""
        context, rows = self._material.context, self._rows
        see = _see.options(
            num_cpus=CPUS_PER_TRIAL,
            num_gpus=self._gpu_shares[backbone],
            scheduling_strategy=EVERYWHERE,
        )
        fit = _fit_fold.options(num_cpus=CPUS_PER_TRIAL, scheduling_strategy=EVERYWHERE)
        blocks = [
            see.remote(context, backbone, rows[start : start + _BLOCK])
            for start in range(0, len(rows), _BLOCK)
        ]
        fitted = [
            fit.remote(context.labels[rows], np.isin(rows, part), context.n_classes, *blocks)
            for part in parts
        ]
        made: list[tuple[Weights, np.ndarray]] = ray.get(fitted)
        return [
            # `part` may be in another order than `rows`, which ascend.
            (head, logits[np.searchsorted(np.sort(part), part)])
            for (head, logits), part in zip(made, parts, strict=True)
        ]


def _add(fold: Fold, logits: np.ndarray, labels: np.ndarray) -> Fold:
    both = (fold.logits + logits).astype(np.float32)
    accuracy = float((both.argmax(1) == labels[fold.held_out]).mean())
    return replace(fold, logits=both, accuracy=accuracy)


def _loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(log_losses(logits, labels, temperature).mean())


@ray.remote(max_retries=3)
def _see(context: TrainingContext, backbone: str, rows: np.ndarray) -> np.ndarray:
    """Return the pooled features of enlarged middles, float32 [n, features]."""
    compute_with(threads_of_worker())
    device = training_device()
    network = folded_backbone(context, backbone, device)
    images = context.images(device)
    seen = []
    with torch.no_grad():
        for part in torch.from_numpy(rows.copy()).split(_BATCH):
            pixels = crop_and_normalise(images.take(part, device), context.image_size)
            with mixed_precision(device):
                seen.append(network(enlarge_center(pixels)).float().cpu())
    return torch.cat(seen).numpy()


@ray.remote(max_retries=3)
def _fit_fold(
    labels: np.ndarray, held_out: np.ndarray, n_classes: int, *blocks: np.ndarray
) -> tuple[Weights, np.ndarray]:
    compute_with(threads_of_worker())
    features = torch.from_numpy(np.concatenate(blocks))
    asked = torch.from_numpy(held_out.copy())
    head = fit_head(features[~asked], torch.from_numpy(labels.copy())[~asked], n_classes)
    logits = features[asked] @ head["weight"].T + head["bias"]
    return head, logits.numpy()
