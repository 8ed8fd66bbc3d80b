"""Split images into stratified folds that keep groups of near-duplicates together."""

from __future__ import annotations

import numpy as np


def grouped_folds(
    labels: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int
) -> list[np.ndarray]:
    """Split images into stratified folds, keeping groups together.

    Without groups these are the folds of scikit-learn's `StratifiedKFold`; with groups they differ
    from those as little as possible, where `StratifiedGroupKFold` would make entirely other folds
    for a single pair of near-duplicates.

    Args:
        labels: int64 [n].
        groups: int64 [n]; images of equal numbers stay together. None puts each image in a group
            of its own.
        n_folds: Number of folds.
        seed: Seed of the shuffle.

    Returns:
        The positions in each fold, ascending; every position is in one fold. A class is in every
        fold if it has at least K groups without another class.
    """
    from sklearn.model_selection import StratifiedKFold  # takes a second

    shuffled = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(labels), np.int64)
    for fold, (_, positions) in enumerate(shuffled.split(labels, labels)):
        fold_of[positions] = fold
    if groups is not None:
        _keep_groups_together(fold_of, labels, groups, n_folds)
    return [np.flatnonzero(fold_of == fold) for fold in range(n_folds)]


def _keep_groups_together(
    fold_of: np.ndarray, labels: np.ndarray, groups: np.ndarray, n_folds: int
) -> None:
    """Move each group to one fold, then balance the classes by moving single images."""
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    classes, label_of = np.unique(labels, return_inverse=True)
    large = np.flatnonzero(sizes > 1)
    if not len(large):
        return
    # 1. Move groups, the largest first, to the fold where their class has fewest grouped images.
    ends = np.cumsum(sizes)
    by_group = np.argsort(group_of, kind="stable")
    members_of = {group: by_group[ends[group] - sizes[group] : ends[group]] for group in large}
    counts = np.zeros((len(classes), n_folds), np.int64)
    for group in sorted(large, key=lambda group: (-sizes[group], members_of[group][0])):
        members = members_of[group]
        per_class = np.bincount(label_of[members], minlength=len(classes))
        grouped = counts[per_class > 0]
        moves = np.arange(n_folds) != fold_of[members[0]]
        fold = np.lexsort((moves, grouped.sum(0), (grouped > 0).sum(0)))[0]
        fold_of[members] = fold
        counts[:, fold] += per_class
    # 2. Move single images of each class from its largest fold to its smallest.
    is_single = sizes[group_of] == 1
    for label in range(len(classes)):
        movable = np.flatnonzero(is_single & (label_of == label))
        singles = [list(movable[fold_of[movable] == fold]) for fold in range(n_folds)]
        n_in_fold = counts[label] + [len(positions) for positions in singles]
        while True:
            has_singles = np.array([len(positions) > 0 for positions in singles])
            source = int(np.argmax(np.where(has_singles, n_in_fold, -1)))
            target = int(np.argmin(n_in_fold))
            if not has_singles.any() or n_in_fold[source] - n_in_fold[target] <= 1:
                break
            moved = singles[source].pop()
            singles[target].insert(0, moved)
            fold_of[moved] = target
            n_in_fold[source] -= 1
            n_in_fold[target] += 1
