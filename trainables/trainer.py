"""Train one configuration in plain PyTorch, epoch by epoch.

This module knows no tuner and no cluster. It is long because one class is the whole training: its
steps, validation, and what is saved between epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.base import TrialConfig
from spaces.rules import Metric
from trainables.batches import Batches, CachedBatches, ImageBatches, ImageSet
from trainables.compute import mixed_precision, training_precision
from trainables.feature_cache import FeatureCache
from trainables.metrics import compute_score, macro_f1
from trainables.models.backbones import Backbone
from trainables.models.classifier import Classifier, Weights, create_head
from trainables.optimization import LearningRateSchedule, create_optimizer
from trainables.trial_result import EpochResult

_GATHER_BYTES = 64 * 2**20  # cached inputs are gathered in chunks of this size, for fewer copies
_EVALUATION_BATCH_SIZE = 64


class TrainingError(RuntimeError):
    """A training failed because of its configuration."""


class Trainer:
    """Trains one configuration, epoch by epoch, and can be saved between epochs.

    Attributes:
        config: What is trained.
        model: The network.
        epochs: The full length.
        epoch: Number of completed epochs.
        best: Result of the epoch with the highest validation score so far.
    """

    def __init__(
        self,
        config: TrialConfig,
        backbone: Backbone,
        images: ImageSet,
        train_rows: Tensor,
        val_rows: Tensor,
        epochs: int,
        seed: int,
        cache: FeatureCache | None = None,
        initial_head: Weights | None = None,
        patience: int | None = None,
        epoch_lrs: Sequence[float] | None = None,
        metric: Metric = "accuracy",
    ) -> None:
        """Set up a training.

        Args:
            config: What to train.
            backbone: On the device to train on, in channels_last. It is frozen to the config's
                depth, and trained in place.
            images: All images, of which the rows below are used.
            train_rows: int64 [n], at least one.
            val_rows: int64 [m]; if empty, the validation metrics are NaN.
            epochs: The full length.
            seed: Seed of the head, the order, the augmentation, dropout and mixup.
            cache: Cached output of the frozen stages; None computes it for each batch.
            initial_head: Initial weights of a linear head (arXiv 2202.10054).
            patience: Epochs without a better validation score after which the training ends.
            epoch_lrs: A learning rate for each epoch, instead of a plateau schedule.
            metric: What the validation score is of; see `trainables.metrics`.
        """
        self.config = config
        self.epochs = epochs
        self.epoch = 0
        self.best: EpochResult | None = None
        self._device = next(backbone.parameters()).device
        self._images = images
        self._labels = images.labels
        self._train_rows, self._val_rows = train_rows, val_rows
        self._patience, self._metric = patience, metric
        self._generator = torch.Generator().manual_seed(seed)
        self._seed = seed
        backbone.freeze(config.freeze_depth, config.batch_norm == "frozen")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = create_head(
                backbone.feature_size, images.n_classes, config.hidden_units, config.dropout
            )
        if initial_head is not None and config.hidden_units == 0:
            head[-1].load_state_dict(initial_head)  # type: ignore[index]
        self.model = Classifier(backbone, head.to(self._device))
        self._batches: Batches = (
            CachedBatches(cache, config.augment)
            if cache is not None
            else ImageBatches(images, backbone, config.augment)
        )
        self._class_weights: Tensor | None = None
        if config.class_weights:
            weights = balanced_class_weights(self._labels[train_rows].cpu(), images.n_classes)
            self._class_weights = weights.to(self._device)
        self._optimizer = create_optimizer(
            config, ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        )
        self._schedule = LearningRateSchedule(config, epochs, self.steps_per_epoch, epoch_lrs)
        self._scaler = torch.amp.GradScaler(
            "cuda",
            enabled=self._device.type == "cuda" and not torch.cuda.is_bf16_supported(),
        )
        self._micro_batch = math.ceil(len(train_rows) / self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch; each has two images or more, unless one is asked for.

        BatchNorm cannot train on one image whose features have a single pixel.
        """
        n = len(self._train_rows)
        n_steps = math.ceil(n / self.config.batch_size)
        return n_steps if self.config.batch_size == 1 else max(1, min(n_steps, n // 2))

    @property
    def finished(self) -> bool:
        """Whether the training has reached its full length, or its patience has ended it.

        Patience ends no cosine schedule, whose best epochs are the last ones.
        """
        if self.epoch >= self.epochs:
            return True
        if self._patience is None or self.best is None or self.config.scheduler == "cosine":
            return False
        return self.epoch - self.best.epoch >= self._patience

    def run_epoch(self) -> EpochResult:
        """Train for one epoch and validate.

        Raises:
            TrainingError: the loss is infinite or NaN.
        """
        started = perf_counter()
        self.model.train()
        with torch.random.fork_rng():
            # For dropout and stochastic depth. PyTorch accepts seeds of 64 bits.
            torch.manual_seed((self._seed * 100_003 + self.epoch) % 2**63)
            loss_sum, labels, predicted = self._train_pass()
        train_seconds = perf_counter() - started
        n = len(self._train_rows)
        train_loss = loss_sum / n
        self.epoch += 1
        self._check_finite("training", train_loss)
        val_loss, val_accuracy, val_macro_f1, val_score = self._validate()
        if len(self._val_rows):
            self._check_finite("validation", val_loss)
        result = EpochResult(
            epoch=self.epoch,
            train_loss=train_loss,
            train_accuracy=float((predicted == labels).float().mean()),
            train_macro_f1=macro_f1(labels.numpy(), predicted.numpy()),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            val_macro_f1=val_macro_f1,
            val_score=val_score,
            lr=self._optimizer.param_groups[0]["lr"],
            seconds=perf_counter() - started,
            images_per_second=n / train_seconds,
            gpu_memory_mb=(
                torch.cuda.max_memory_allocated(self._device) / 2**20
                if self._device.type == "cuda"
                else 0.0
            ),
        )
        if self.best is None or result.score > self.best.score:
            self.best = result
        self._schedule.end_epoch(val_loss)
        return result

    def predict_logits(self, rows: Tensor) -> Tensor:
        """Return the logits of images without augmentation: float32 [n, classes] on the CPU."""
        return self.predict(rows)[1]

    def predict(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features and logits of images without augmentation.

        Returns:
            float32 [n, feature_size] and [n, classes], on the CPU.
        """
        self.model.eval()
        depth = self.config.freeze_depth
        features = [torch.empty(0, self.model.backbone.feature_size)]
        logits = [torch.empty(0, self._images.n_classes)]
        with torch.no_grad():
            for batch in rows.split(_EVALUATION_BATCH_SIZE):
                x = self._batches.clean(batch).to(self._device, non_blocking=True)
                with mixed_precision(self._device):
                    output = self.model.features_and_logits(x, depth)
                features.append(output[0].float().cpu())
                logits.append(output[1].float().cpu())
        return torch.cat(features), torch.cat(logits)

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which `load_state_dict` resumes exactly."""
        return {
            "epoch": self.epoch,
            "best": None if self.best is None else vars(self.best),
            "member": self.model.member_weights(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self._generator.get_state(),
            "schedule": self._schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state of the same configuration."""
        self.epoch = state["epoch"]
        self.best = None if state["best"] is None else EpochResult(**state["best"])
        self.model.load_member_weights(state["member"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._generator.set_state(state["generator"])
        self._schedule.load_state_dict(state["schedule"])

    def _check_finite(self, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the {what} loss is {loss} in epoch {self.epoch}"
                f" (lr {self.config.lr:g}, {self.config.optimizer})"
            )

    def _train_pass(self) -> tuple[float, Tensor, Tensor]:
        """Train on every image once; return the summed loss, the labels and the predictions."""
        loss_sum = torch.zeros((), device=self._device)
        labels, predicted = [], []
        for step, (x, y) in enumerate(self._epoch_batches()):
            lr = self._schedule.lr(self.epoch, step)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            loss, logits = self._step(x, y)
            loss_sum += loss * len(y)
            labels.append(y)
            predicted.append(logits.argmax(1))
        return float(loss_sum), torch.cat(labels).cpu(), torch.cat(predicted).cpu()

    def _epoch_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._train_rows), generator=self._generator)
        # Batches of nearly equal size: BatchNorm cannot train on a last batch of one image.
        batches = self._train_rows[order].tensor_split(self.steps_per_epoch)
        n_gathered = self._gathered_batches()
        for first in range(0, len(batches), n_gathered):
            sizes = [len(batch) for batch in batches[first : first + n_gathered]]
            chunk = torch.cat(batches[first : first + n_gathered])
            inputs = self._batches.train(chunk, self._generator)
            inputs = inputs.to(self._device, non_blocking=True)
            labels = self._labels[chunk].to(self._device, non_blocking=True)
            yield from zip(inputs.split(sizes), labels.split(sizes), strict=True)

    def _gathered_batches(self) -> int:
        """Return how many batches of inputs are gathered at once; one if they are computed."""
        if isinstance(self._batches, ImageBatches):
            return 1
        example = self._batches.clean(self._train_rows[:1])
        batch_bytes = example.numel() * example.element_size() * self.config.batch_size
        return max(1, _GATHER_BYTES // batch_bytes)

    def _step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return the mean loss and the logits, detached.

        If the GPU runs out of memory, this and later batches are split into micro-batches, whose
        gradients are accumulated.

        Raises:
            TrainingError: a single image does not fit into the memory.
        """
        while True:
            try:
                return self._accumulated_step(x, y)
            except torch.OutOfMemoryError:
                if self._micro_batch == 1:
                    raise TrainingError(
                        f"{self.config.backbone} at depth {self.config.freeze_depth} does not fit"
                        " the GPU's memory with a single image"
                    ) from None
                self._micro_batch = max(1, min(self._micro_batch, len(y)) // 2)
                self._optimizer.zero_grad(set_to_none=True)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()

    def _accumulated_step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        targets = [(y, 1.0)]
        if self.config.mixup:
            x, partner, fraction = self._mix(x)
            targets = [(y, fraction), (y[partner], 1 - fraction)]
        self._optimizer.zero_grad(set_to_none=True)
        losses, parts = [], []
        for start in range(0, len(y), self._micro_batch):
            part = slice(start, start + self._micro_batch)
            with training_precision(self._device):
                logits = self.model(x[part], self.config.freeze_depth)
            loss = sum(
                (w * self._summed_loss(logits, t[part]) / self._weight_of(t) for t, w in targets),
                torch.zeros((), device=self._device),
            )
            self._scaler.scale(loss).backward()
            losses.append(loss.detach())
            parts.append(logits.detach())
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return torch.stack(losses).sum(), torch.cat(parts)

    def _mix(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Blend each input with another of its batch (mixup, arXiv 1710.09412).

        Applied to features, this is manifold mixup (arXiv 1806.05236).
        """
        partner = torch.randperm(len(x), generator=self._generator).to(x.device)
        # NumPy's, because torch.distributions takes no generator.
        seed = int(torch.randint(2**62, (1,), generator=self._generator))
        fraction = float(np.random.default_rng(seed).beta(self.config.mixup, self.config.mixup))
        return fraction * x + (1 - fraction) * x[partner], partner, fraction

    def _summed_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits,
            labels,
            weight=self._class_weights,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )

    def _weight_of(self, labels: Tensor) -> Tensor | int:
        """Return the sum of the class weights of a batch; without weights, its size."""
        return len(labels) if self._class_weights is None else self._class_weights[labels].sum()

    def _validate(self) -> tuple[float, float, float, float]:
        """Return loss, accuracy, macro F1 and score on the validation rows; NaN without any."""
        if len(self._val_rows) == 0:
            return math.nan, math.nan, math.nan, math.nan
        logits = self.predict_logits(self._val_rows)
        labels = self._labels[self._val_rows].cpu()
        loss = float(F.cross_entropy(logits, labels))
        metrics: tuple[Metric, ...] = ("accuracy", "macro_f1", self._metric)
        accuracy, f1, score = (compute_score(m, logits.numpy(), labels.numpy()) for m in metrics)
        return loss, accuracy, f1, score


def balanced_class_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Return n / (classes · count) of each class, scikit-learn's "balanced": float32 [classes]."""
    counts = torch.bincount(labels, minlength=n_classes)
    return (len(labels) / (n_classes * counts.clamp_min(1))).float()
