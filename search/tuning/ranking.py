"""Rank trials by validation accuracy, and trials of equal accuracy by validation loss.

On a few hundred validation images many configurations reach the same accuracy, and only their loss
tells them apart.
"""

from __future__ import annotations

_LOSS_WEIGHT = 1e-9  # per nat: below the difference of any two accuracies
_MAX_LOSS = 1e3


def ranking_value(accuracy: float, loss: float) -> float:
    """Return the validation accuracy minus 1e-9 times the validation loss.

    Args:
        accuracy: Validation accuracy in [0, 1].
        loss: Mean validation cross-entropy in nats.
    """
    return accuracy - _LOSS_WEIGHT * min(loss, _MAX_LOSS)
