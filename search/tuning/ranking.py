"""One number to rank trainings by: accuracy, and among equals the lower loss.

A few hundred validation images tell many configurations apart by nothing but their loss.
"""

from __future__ import annotations

BEST_LOSS = "best_val_loss"  # what the study keeps beside a trial: the loss of its best epoch
_LOSS_FRACTION = 1e-9  # of a nat: below any difference between two accuracies
_MAX_LOSS = 1e3


def score(accuracy: float, loss: float) -> float:
    """Return a validation accuracy, less a trifle for its loss.

    Args:
        accuracy: In [0, 1].
        loss: In nats; one that is not known counts as the largest.
    """
    return accuracy - _LOSS_FRACTION * min(loss, _MAX_LOSS)
