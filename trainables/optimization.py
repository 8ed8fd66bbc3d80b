"""Optimizers and learning-rate schedules of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from spaces.base import TrialConfig

PLATEAU_PATIENCE = 2  # epochs without a lower validation loss before the learning rate is reduced
PLATEAU_FACTOR = 0.1
WARMUP_FRACTION = 0.1  # of all steps of a cosine schedule
MOMENTUM = 0.9


_NOT_DECAYED = ("token", "tokens", "pos_embed", "pos_embedding", "bias_table")
"""Ends of the names that timm and torchvision give to tokens and to tables of positions."""


def create_optimizer(
    config: TrialConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """Build the optimizer of a config, with weight decay of kernels and matrices alone.

    Biases, the scales of normalisation and of layers, class tokens and positions are not decayed.

    Args:
        config: Its `optimizer`, `lr` and `weight_decay`.
        named_parameters: What is trained, as `nn.Module.named_parameters` returns it.
    """
    named_parameters = list(named_parameters)
    decayed = [p for name, p in named_parameters if _is_decayed(name, p)]
    plain = [p for name, p in named_parameters if not _is_decayed(name, p)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, nesterov=True, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, fused=True)


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter has two dimensions and more, and is no token and no position."""
    n_dims = sum(size > 1 for size in parameter.shape)
    return n_dims > 1 and not name.endswith(_NOT_DECAYED)


class LearningRateSchedule:
    """Computes the learning rate of each step: constant, cosine with warm-up, or on a plateau."""

    def __init__(
        self,
        config: TrialConfig,
        epochs: int,
        steps_per_epoch: int,
        epoch_lrs: Sequence[float] | None = None,
    ) -> None:
        """Set up the schedule of a config.

        Args:
            config: Its `lr` and `scheduler`.
            epochs: The full length of the training.
            steps_per_epoch: Optimizer steps per epoch.
            epoch_lrs: A learning rate for each epoch, which replaces a constant or plateau
                schedule.
        """
        self._config = config
        self._n_steps = epochs * steps_per_epoch
        self._steps_per_epoch = steps_per_epoch
        self._epoch_lrs = epoch_lrs
        self._factor = 1.0
        self._lowest_val_loss, self._epochs_above_lowest = math.inf, 0

    def lr(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step of an epoch, both counted from 0."""
        if self._config.scheduler == "cosine":
            done = epoch * self._steps_per_epoch + step
            return self._config.lr * cosine_with_warmup(done, self._n_steps)
        if self._epoch_lrs is not None:
            return self._epoch_lrs[epoch]
        return self._config.lr * self._factor

    def end_epoch(self, val_loss: float) -> None:
        """Reduce the learning rate if the validation loss has reached a plateau."""
        if self._config.scheduler != "plateau" or self._epoch_lrs is not None:
            return
        if val_loss < self._lowest_val_loss:
            self._lowest_val_loss, self._epochs_above_lowest = val_loss, 0
            return
        self._epochs_above_lowest += 1
        if self._epochs_above_lowest > PLATEAU_PATIENCE:
            self._factor *= PLATEAU_FACTOR
            self._epochs_above_lowest = 0

    def state_dict(self) -> tuple[float, float, int]:
        """Return the state of the plateau schedule."""
        return self._factor, self._lowest_val_loss, self._epochs_above_lowest

    def load_state_dict(self, state: tuple[float, float, int]) -> None:
        """Restore what `state_dict` returned."""
        self._factor, self._lowest_val_loss, self._epochs_above_lowest = state


def cosine_with_warmup(step: int, n_steps: int) -> float:
    """Return the factor of a linear warm-up and a cosine decay to 0 (arXiv 1608.03983)."""
    n_warmup = max(1, round(WARMUP_FRACTION * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))
