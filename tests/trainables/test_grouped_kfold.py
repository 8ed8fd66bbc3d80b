import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from trainables.grouped_kfold import grouped_folds

LABELS = np.repeat([0, 1, 2], [40, 25, 11])


def stratified(n_folds: int, seed: int) -> list[np.ndarray]:
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    return [positions for _, positions in splitter.split(LABELS, LABELS)]


@pytest.mark.parametrize("groups", [None, np.arange(len(LABELS))])
@pytest.mark.parametrize("n_folds", [2, 5])
def test_folds_without_groups_equal_scikit_learns(groups: np.ndarray | None, n_folds: int) -> None:
    for seed in range(5):
        folds = grouped_folds(LABELS, groups, n_folds, seed)
        for fold, expected in zip(folds, stratified(n_folds, seed), strict=True):
            np.testing.assert_array_equal(fold, expected)


def test_a_pair_of_near_duplicates_moves_at_most_two_images_per_fold() -> None:
    for seed in range(20):
        one, other = np.random.default_rng(seed).choice(40, 2, replace=False)
        groups = np.arange(len(LABELS))
        groups[one] = groups[other]
        folds = grouped_folds(LABELS, groups, 5, seed)
        assert sum({one, other} <= set(fold.tolist()) for fold in folds) == 1
        np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(len(LABELS)))
        counts = np.array([np.bincount(LABELS[fold], minlength=3) for fold in folds])
        assert (np.ptp(counts, axis=0) <= 1).all()
        for fold, without_groups in zip(folds, stratified(5, seed), strict=True):
            assert len(np.setdiff1d(fold, without_groups)) <= 2
