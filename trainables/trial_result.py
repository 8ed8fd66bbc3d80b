"""Results that a training reports: `EpochResult` of an epoch, `TrialResult` of a trial so far.

Plain data, without PyTorch and Ray, so that every part of the search can import it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class EpochResult:
    """Metrics of one epoch. Losses are mean cross-entropies in nats; times are in seconds."""

    epoch: int = 0
    """Counted from 1; 0 before the first has ended."""
    train_loss: float = math.nan
    train_accuracy: float = math.nan
    train_macro_f1: float = math.nan
    val_loss: float = math.nan
    val_accuracy: float = math.nan
    val_macro_f1: float = math.nan
    val_score: float = math.nan
    """Of the space's metric, on the validation images: higher is better, see `metrics`."""
    lr: float = math.nan
    """Learning rate at the end of the epoch."""
    seconds: float = 0.0
    images_per_second: float = math.nan
    """Training images per second, without validation."""
    gpu_memory_mb: float = 0.0
    """Peak since the trial began; 0 without a GPU."""

    @property
    def score(self) -> tuple[float, float]:
        """The validation score, then the negative validation loss: higher is better."""
        return self.val_score, -self.val_loss


@dataclass(frozen=True)
class TrialResult(EpochResult):
    """Metrics of a trial's last epoch and of its best one so far, and why it failed if it did.

    Attributes:
        best_val_score, best_val_accuracy, best_val_loss, best_epoch: Those of the best epoch so
            far.
        trained_seconds: Sum over all epochs, those of earlier sessions included.
        node: IP address of the machine that trained the epoch.
        finished: Whether the trial reached its full length.
        failure: Why the trial failed, in one line; None where it did not.
        traceback: The traceback of the failure.
        disk_full: Why the trial cannot continue, though it did not fail: there is no space for its
            checkpoint.
    """

    best_val_score: float = math.nan
    best_val_accuracy: float = math.nan
    best_val_loss: float = math.nan
    best_epoch: int = 0
    trained_seconds: float = 0.0
    node: str = ""
    finished: bool = False
    failure: str | None = None
    traceback: str | None = None
    disk_full: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as Ray Tune takes a result, with `done` where the trial has ended."""
        return {**asdict(self), "done": self.finished or self.failure is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialResult:
        """Read the fields back; keys that are none, such as those that Tune adds, are ignored."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})
