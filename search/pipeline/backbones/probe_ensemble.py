"""Choose the backbones whose linear probes are finalists, as parts of an ensemble.

Networks of different kinds err on different images. So an ensemble of their probes is often clearly
better than the best of them, and costs little: their features are cached, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from search.pipeline.backbones.selection import RankedProbe
from search.pipeline.retraining.ensemble_selection import cross_fit
from spaces.rules import Metric

_N_FOLDS = 5


def choose_probes(
    ranked: Sequence[RankedProbe],
    best: str,
    metric: Metric,
    labels: np.ndarray,
    groups: np.ndarray,
    seed: int,
) -> set[str]:
    """Return the backbones of an ensemble of linear probes that is clearly better than the best.

    Args:
        ranked: Probes of the same images.
        best: Backbone of the best one.
        metric: What they are compared by.
        labels: int64 [n].
        groups: int64 [n]; images of equal numbers are near-duplicates.
        seed: Seed of the folds by which the gain is measured.

    Returns:
        At least two, or none where no ensemble is clearly better: see
        `search.pipeline.retraining.ensemble_selection`.
    """
    probes = [one for one in ranked if len(one.logits)]
    names = [one.name for one in probes]
    if len(probes) < 2 or best not in names:
        return set()
    unique, of_image = np.unique(groups, return_inverse=True)
    fold_of = np.random.default_rng(seed).permutation(len(unique))[of_image] % _N_FOLDS
    probabilities = np.stack([softmax(one.logits, axis=1) for one in probes])
    selection = cross_fit(probabilities, labels, fold_of, names.index(best), metric, groups)
    pairs = zip(names, selection.weights, strict=True)
    chosen = {name for name, weight in pairs if weight > 0}
    return chosen if selection.enabled and len(chosen) > 1 else set()
