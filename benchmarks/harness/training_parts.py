"""Parts of a fine-tuning that a benchmark compares, and the trainer that has all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spaces.base import TrialConfig
from trainables.batches import ImageSet
from trainables.feature_cache import FeatureCache
from trainables.models.backbones import Backbone
from trainables.models.classifier import Weights
from trainables.optimization import create_optimizer
from trainables.trainer import Trainer

_BASE_CONFIG: Mapping[str, Any] = {
    "lr": 3e-4,
    "freeze_depth": 3,
    "dropout": 0.2,
    "augment": 0.3,
    "weight_decay": 1e-4,
    "scheduler": "cosine",
}
_MAX_GRADIENT_NORM = 1.0
_HEAD_LR_FACTOR = 0.1
_AVERAGED_FRACTION = 0.08
"""Time constant of the average of weights, as a fraction of all steps."""


@dataclass(frozen=True)
class Part:
    """How a part's trainings differ from the base's.

    Attributes:
        changes: Hyperparameters.
        epochs: Length of a training; 0 leaves the linear probe as it is.
        from_probe: Whether the head starts as the linear probe's, not at random.
        averages: Whether the weights are averaged exponentially over the last steps.
        clips: Whether the norm of the gradients is clipped to 1.
        slow_head: Whether the head has a tenth of the learning rate.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 8
    from_probe: bool = True
    averages: bool = False
    clips: bool = False
    slow_head: bool = False

    def config(self, backbone: str) -> TrialConfig:
        """Return the hyperparameters of a training."""
        return TrialConfig(backbone, **{**_BASE_CONFIG, **self.changes})


BASE = "base"
PARTS = {
    BASE: Part(),
    "linear-probe": Part(epochs=0),
    "frozen": Part({"batch_norm": "frozen"}),
    "mixup": Part({"mixup": 0.4}),
    "frozen+mixup": Part({"batch_norm": "frozen", "mixup": 0.4}),
    "smoothing": Part({"label_smoothing": 0.1}),
    "lr-1e-3": Part({"lr": 1e-3}),
    "frozen+lr-1e-3": Part({"batch_norm": "frozen", "lr": 1e-3}),
    "random-head": Part(from_probe=False),
    "averaged": Part(averages=True),
    "clipped": Part(clips=True),
    "slow-head": Part(slow_head=True),
    "4-epochs": Part(epochs=4),
    "16-epochs": Part(epochs=16),
    "depth-0": Part({"freeze_depth": 0}),
}


class PartTrainer(Trainer):
    """Trains a part to full length, also what the product's trainings do not have."""

    def __init__(
        self,
        part: Part,
        backbone: Backbone,
        images: ImageSet,
        train_rows: Tensor,
        seed: int,
        cache: FeatureCache | None,
        probe_head: Weights,
    ) -> None:
        """Set up a training; see `Trainer`.

        Args:
            part: What to train.
            backbone: Is trained in place.
            images: All images.
            train_rows: int64 [n], those to train on.
            seed: Of the training.
            cache: Cached output of the frozen stages; None computes it for each batch.
            probe_head: Weights of the linear probe's head.
        """
        super().__init__(
            part.config(backbone.name),
            backbone,
            images,
            train_rows,
            train_rows[:0],
            epochs=part.epochs,
            seed=seed,
            cache=cache,
            initial_head=probe_head if part.from_probe else None,
        )
        self._averaged: AveragedModel | None = None
        if part.slow_head:
            self._slow_the_head()
        if part.clips:
            self._optimizer.register_step_pre_hook(self._clip)
        if part.averages:
            decay = 1 - 1 / max(2, _AVERAGED_FRACTION * self.epochs * self.steps_per_epoch)
            average = get_ema_multi_avg_fn(decay)
            self._averaged = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
            self._optimizer.register_step_post_hook(self._average)

    def run(self) -> None:
        """Train to full length; the model then has the averaged weights, if they are averaged."""
        for _ in range(self.epochs):
            self.run_epoch()
        if self._averaged is not None:
            self.model.load_state_dict(self._averaged.module.state_dict())

    def _slow_the_head(self) -> None:
        trained = [(n, p) for n, p in self.model.backbone.named_parameters() if p.requires_grad]
        self._optimizer = create_optimizer(self.config, trained)
        head = create_optimizer(self.config, self.model.head.named_parameters()).param_groups
        for group in head:
            self._optimizer.add_param_group({**group, "is_head": True})
        self._optimizer.register_step_pre_hook(_slow_head)

    def _clip(self, *_: object) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRADIENT_NORM)

    def _average(self, *_: object) -> None:
        if self._averaged is not None:
            self._averaged.update_parameters(self.model)


def _slow_head(optimizer: Optimizer, *_: object) -> None:
    """Reduce the learning rate of the head, which the trainer sets before each step."""
    for group in optimizer.param_groups:
        if group.get("is_head"):
            group["lr"] *= _HEAD_LR_FACTOR
