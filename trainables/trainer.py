"""One training run: plain PyTorch, one epoch at a time. Knows no tuner and no cluster."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.base import TrialConfig
from trainables.batches import Batches, CachedBatches, ImageBatches, ImageSet
from trainables.compute import mixed_precision
from trainables.feature_cache import FeatureCache
from trainables.models.backbones import Backbone
from trainables.models.classifier import Classifier, Weights, create_head
from trainables.trial_result import EpochResult

PLATEAU_PATIENCE = 2  # epochs without a lower validation loss before the learning rate falls
PLATEAU_FACTOR = 0.1
WARMUP_FRACTION = 0.1  # of all steps of a cosine schedule
MOMENTUM = 0.9
_CHUNK_BYTES = 64 * 2**20  # inputs are gathered this much at a time: few copies, little memory
_EVALUATION_BATCH = 64


class TrainingError(RuntimeError):
    """A training cannot go on, for a reason that lies in its configuration."""


class Trainer:
    """Trains one configuration, epoch by epoch, and can be saved between epochs."""

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
    ) -> None:
        """Set a training up.

        Args:
            config: What to train.
            backbone: On the device to train on, in channels_last; it is frozen to the config's
                depth here and changed by the training.
            images: All images; rows below say which are used.
            train_rows: int64 [n], at least one.
            val_rows: int64 [m]; empty where nothing is to be validated (its figures are then NaN).
            epochs: The full length.
            seed: Of the head, the order, the augmentation, dropout and mixup.
            cache: Features at the config's boundary; None computes them as they are needed.
            initial_head: Weights of a linear head to begin with (arXiv 2202.10054).
            patience: Epochs without a better validation accuracy that end the training.
            epoch_lrs: A learning rate an epoch, instead of what a plateau would decide.
        """
        self.config = config
        self.epochs = epochs
        self.epoch = 0
        self.best: EpochResult | None = None
        self._device = next(backbone.parameters()).device
        self._images = images
        self._labels = images.labels
        self._train_rows, self._val_rows = train_rows, val_rows
        self._patience = patience
        self._epoch_lrs = epoch_lrs
        self._generator = torch.Generator().manual_seed(seed)
        self._seed = seed
        backbone.freeze(config.freeze_depth)
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
        self._class_weights = self._weigh_classes() if config.class_weights else None
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = _create_optimizer(config, self._parameters)
        self._scaler = torch.amp.GradScaler(
            "cuda",
            enabled=self._device.type == "cuda" and not torch.cuda.is_bf16_supported(),
        )
        self._micro_batch = config.batch_size
        self._lr_factor = 1.0
        self._lowest_val_loss, self._epochs_above_lowest = math.inf, 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self._train_rows) / self.config.batch_size)

    @property
    def finished(self) -> bool:
        """Whether the full length is reached, or patience has run out."""
        if self.epoch >= self.epochs:
            return True
        if self._patience is None or self.best is None:
            return False
        return self.epoch - self.best.epoch >= self._patience

    def run_epoch(self) -> EpochResult:
        """Train for one epoch and validate.

        Raises:
            TrainingError: the loss is no longer a finite number.
        """
        started = perf_counter()
        self.model.train()
        with torch.random.fork_rng():
            # Of dropout and stochastic depth; torch takes no seed beyond 64 bits.
            torch.manual_seed((self._seed * 100_003 + self.epoch) % 2**63)
            loss_sum, labels, predicted = self._train_pass()
        train_seconds = perf_counter() - started
        n = len(self._train_rows)
        train_loss = loss_sum / n
        self.epoch += 1
        self._check_finite("training", train_loss)
        val_loss, val_accuracy, val_macro_f1 = self._validate()
        if len(self._val_rows):
            self._check_finite("validation", val_loss)
        result = EpochResult(
            epoch=self.epoch,
            train_loss=train_loss,
            train_accuracy=float((predicted == labels).float().mean()),
            train_macro_f1=_macro_f1(labels, predicted, self._images.n_classes),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            val_macro_f1=val_macro_f1,
            lr=self._optimizer.param_groups[0]["lr"],
            seconds=perf_counter() - started,
            images_per_second=n / train_seconds,
            gpu_memory_mb=(
                torch.cuda.max_memory_allocated(self._device) / 2**20
                if self._device.type == "cuda"
                else 0.0
            ),
        )
        if self.best is None or _better(result, self.best):
            self.best = result
        self._watch_plateau(val_loss)
        return result

    def predict_logits(self, rows: Tensor) -> Tensor:
        """Return logits of unaugmented images: float32 [n, classes] on the CPU."""
        return self.predict(rows)[1]

    def predict(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features and logits of unaugmented images.

        Returns:
            float32 [n, feature_size] and [n, classes], on the CPU.
        """
        self.model.eval()
        depth = self.config.freeze_depth
        features = [torch.empty(0, self.model.backbone.feature_size)]
        logits = [torch.empty(0, self._images.n_classes)]
        with torch.no_grad():
            for batch in rows.split(_EVALUATION_BATCH):
                x = self._batches.clean(batch).to(self._device, non_blocking=True)
                with mixed_precision(self._device):
                    made = self.model.features_and_logits(x, depth)
                features.append(made[0].float().cpu())
                logits.append(made[1].float().cpu())
        return torch.cat(features), torch.cat(logits)

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "epoch": self.epoch,
            "best": None if self.best is None else vars(self.best),
            "member": self.model.member_weights(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self._generator.get_state(),
            "plateau": (self._lr_factor, self._lowest_val_loss, self._epochs_above_lowest),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved moment of the same configuration."""
        self.epoch = state["epoch"]
        self.best = None if state["best"] is None else EpochResult(**state["best"])
        self.model.load_member_weights(state["member"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._generator.set_state(state["generator"])
        self._lr_factor, self._lowest_val_loss, self._epochs_above_lowest = state["plateau"]

    def _check_finite(self, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the {what} loss is {loss} in epoch {self.epoch}"
                f" (lr {self.config.lr:g}, {self.config.optimizer})"
            )

    def _train_pass(self) -> tuple[float, Tensor, Tensor]:
        """Visit every training image once; return summed loss, labels and what was predicted."""
        loss_sum = torch.zeros((), device=self._device)
        labels, predicted = [], []
        for step, (x, y) in enumerate(self._epoch_batches()):
            self._set_lr(step)
            loss, logits = self._step(x, y)
            loss_sum += loss * len(y)
            labels.append(y)
            predicted.append(logits.argmax(1))
        return float(loss_sum), torch.cat(labels).cpu(), torch.cat(predicted).cpu()

    def _epoch_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._train_rows), generator=self._generator)
        # Even batches: batch normalisation could not train on a single image left at the end.
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
        """How many batches are taken from the inputs at a time: one where they are computed."""
        if isinstance(self._batches, ImageBatches):
            return 1
        one = self._batches.clean(self._train_rows[:1])
        batch_bytes = one.numel() * one.element_size() * self.config.batch_size
        return max(1, _CHUNK_BYTES // batch_bytes)

    def _step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimiser step; return the mean loss and the logits, detached.

        A GPU that runs out of memory gets the batch in halves from then on: the gradients add up
        to those of the whole batch.

        Raises:
            TrainingError: not even one image at a time fits.
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
            x, partner, share = self._mix(x)
            targets = [(y, share), (y[partner], 1 - share)]
        self._optimizer.zero_grad(set_to_none=True)
        losses, parts = [], []
        for start in range(0, len(y), self._micro_batch):
            part = slice(start, start + self._micro_batch)
            with mixed_precision(self._device):
                logits = self.model(x[part], self.config.freeze_depth)
            loss = sum(
                (s * self._summed_loss(logits, t[part]) / self._mass(t) for t, s in targets),
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

        On features it is manifold mixup (arXiv 1806.05236).
        """
        partner = torch.randperm(len(x), generator=self._generator).to(x.device)
        # Beta(a, a) from two Gamma(a) draws, so that it follows this training's own generator.
        alphas = torch.full((2,), self.config.mixup)
        gammas = torch._standard_gamma(alphas, generator=self._generator)
        share = float(gammas[0] / gammas.sum().clamp_min(1e-12))
        return share * x + (1 - share) * x[partner], partner, share

    def _summed_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits,
            labels,
            weight=self._class_weights,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )

    def _mass(self, labels: Tensor) -> Tensor | int:
        """Return what a batch's summed loss is divided by: its images, or their weights."""
        return len(labels) if self._class_weights is None else self._class_weights[labels].sum()

    def _validate(self) -> tuple[float, float, float]:
        """Return loss, accuracy and macro F1 on the validation rows; NaN where there are none."""
        if len(self._val_rows) == 0:
            return math.nan, math.nan, math.nan
        logits = self.predict_logits(self._val_rows)
        labels = self._labels[self._val_rows].cpu()
        predicted = logits.argmax(1)
        loss = float(F.cross_entropy(logits, labels))
        accuracy = float((predicted == labels).float().mean())
        return loss, accuracy, _macro_f1(labels, predicted, self._images.n_classes)

    def _set_lr(self, step: int) -> None:
        """Set the learning rate of the coming step."""
        lr = self.config.lr * self._lr_factor
        if self.config.scheduler == "cosine":
            lr *= _cosine_with_warmup(
                self.epoch * self.steps_per_epoch + step, self.epochs * self.steps_per_epoch
            )
        elif self._epoch_lrs is not None:
            lr = self._epoch_lrs[self.epoch]
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def _watch_plateau(self, val_loss: float) -> None:
        if self.config.scheduler != "plateau" or self._epoch_lrs is not None:
            return
        if val_loss < self._lowest_val_loss:
            self._lowest_val_loss, self._epochs_above_lowest = val_loss, 0
            return
        self._epochs_above_lowest += 1
        if self._epochs_above_lowest > PLATEAU_PATIENCE:
            self._lr_factor *= PLATEAU_FACTOR
            self._epochs_above_lowest = 0

    def _weigh_classes(self) -> Tensor:
        """Weigh each class by n / (classes · its count), as scikit-learn's "balanced" does."""
        counts = torch.bincount(
            self._labels[self._train_rows].cpu(), minlength=self._images.n_classes
        )
        weights = len(self._train_rows) / (self._images.n_classes * counts.clamp_min(1))
        return weights.float().to(self._device)


def _create_optimizer(config: TrialConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser; biases and normalisation scales are not decayed."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, nesterov=True, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, fused=True)


def _better(new: EpochResult, old: EpochResult) -> bool:
    """Higher accuracy, and the lower loss among equals."""
    return (new.val_accuracy, -new.val_loss) > (old.val_accuracy, -old.val_loss)


def _cosine_with_warmup(step: int, n_steps: int) -> float:
    """Return the factor of a linear warm-up and a cosine down to 0 (arXiv 1608.03983)."""
    n_warm = max(1, round(WARMUP_FRACTION * n_steps))
    if step < n_warm:
        return (step + 1) / n_warm
    return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))


def _macro_f1(labels: Tensor, predicted: Tensor, n_classes: int) -> float:
    """Return the unweighted mean over the classes of F1 = 2·hits / (predicted + actual)."""
    hits = torch.bincount(labels[labels == predicted], minlength=n_classes).double()
    shown = torch.bincount(labels, minlength=n_classes) + torch.bincount(
        predicted, minlength=n_classes
    )
    present = shown > 0
    return float((2 * hits[present] / shown[present]).mean())
