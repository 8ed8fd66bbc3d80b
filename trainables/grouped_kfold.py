"""Folds of equal class shares that take no group of near-duplicates apart."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import StratifiedKFold


def grouped_folds(
    labels: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int
) -> list[np.ndarray]:
    """Divide images into folds.

    Without groups these are the folds of scikit-learn's `StratifiedKFold`; with groups they differ
    from them as little as it takes.

    Args:
        labels: int64 [n].
        groups: int64 [n]; images of equal numbers stay together. None is each on its own.
        n_folds: K.
        seed: Of the shuffle.

    Returns:
        By fold, the positions that it holds out, ascending; every position once. A class of K
        groups or more that hold no other class is in every fold.
    """
    shuffled = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(labels), np.int64)
    for fold, (_, held_out) in enumerate(shuffled.split(labels, labels)):
        fold_of[held_out] = fold
    if groups is not None:
        _unite(fold_of, labels, groups, n_folds)
    return [np.flatnonzero(fold_of == fold) for fold in range(n_folds)]


def _unite(fold_of: np.ndarray, labels: np.ndarray, groups: np.ndarray, n_folds: int) -> None:
    """Bring each group into one fold, then even out the classes with images on their own."""
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    classes, label_of = np.unique(labels, return_inverse=True)
    united = np.flatnonzero(sizes > 1)
    if not len(united):
        return
    # 1. Groups, the largest first, each where its class has fewest images of other groups.
    ends = np.cumsum(sizes)
    by_group = np.argsort(group_of, kind="stable")
    members_of = {group: by_group[ends[group] - sizes[group] : ends[group]] for group in united}
    counts = np.zeros((len(classes), n_folds), np.int64)
    for group in sorted(united, key=lambda group: (-sizes[group], members_of[group][0])):
        members = members_of[group]
        of_class = np.bincount(label_of[members], minlength=len(classes))
        there = counts[of_class > 0]
        own = np.arange(n_folds) != fold_of[members[0]]
        fold = np.lexsort((own, there.sum(0), (there > 0).sum(0)))[0]
        fold_of[members] = fold
        counts[:, fold] += of_class
    # 2. Images on their own move from the fullest fold to the emptiest, class by class.
    alone = sizes[group_of] == 1
    for label in range(len(classes)):
        free = np.flatnonzero(alone & (label_of == label))
        singles = [list(free[fold_of[free] == fold]) for fold in range(n_folds)]
        full = counts[label] + [len(positions) for positions in singles]
        while True:
            movable = np.array([len(positions) > 0 for positions in singles])
            source = int(np.argmax(np.where(movable, full, -1)))
            target = int(np.argmin(full))
            if not movable.any() or full[source] - full[target] <= 1:
                break
            moved = singles[source].pop()
            singles[target].insert(0, moved)
            fold_of[moved] = target
            full[source] -= 1
            full[target] += 1
