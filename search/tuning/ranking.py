"""Rank trials by validation score, and trials of equal score by validation loss.

The score is of the space's metric (`trainables.metrics`), by default the accuracy: on a few hundred
validation images many configurations reach the same one, and only their loss tells them apart.
"""

from __future__ import annotations

_LOSS_WEIGHT = 1e-9  # per nat: below the difference of any two accuracies
_MAX_LOSS = 1e3


def ranking_value(score: float, loss: float) -> float:
    """Return the validation score minus 1e-9 times the validation loss.

    Args:
        score: Validation score; higher is better.
        loss: Mean validation cross-entropy in nats.
    """
    return score - _LOSS_WEIGHT * min(loss, _MAX_LOSS)
