"""Split images into train, validation and test sets, stratified by class.

Groups of near-duplicates stay in one split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from search.console.formatting import some
from search.data.decoding import DecodedImages
from search.data.image_files import DataError
from search.data.manifest import Manifest, seeded_order
from search.runs.tables import SPLIT_COLUMNS, read_rows, write_csv

EXCLUDED = "excluded"
"""Split of an image that is not used: a near-duplicate of an image in an official test or
validation split."""

_SPLIT_DTYPE = f"<U{len(EXCLUDED)}"


def split(
    manifest: Manifest,
    indices: np.ndarray,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    folds: int = 2,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Split images into train, val and test, stratified by class.

    Official splits stay as they are, except that training loses the near-duplicates of their test
    and validation images. A drawn split depends on the seed and on the names and groups of the
    images alone: it is the same wherever the files lie, and one more file moves few others. A group
    is drawn as a whole, and one with two classes only where no other is left: accuracy on
    contradicting labels means little.

    Args:
        manifest: The images.
        indices: int64 [n], those of the images to split.
        val_fraction: Fraction of the images outside the test set.
        test_fraction: Fraction of the images.
        seed: Seed of the draw.
        folds: Images of each class, near-duplicates counted once, that a drawn test set leaves at
            least.
        groups: int64 [n]; images with equal numbers are near-duplicates. None: there are none.

    Returns:
        [n] of "train", "val", "test" or `EXCLUDED`. A class of three groups or more is in each of
        the first three.
    """
    groups = np.arange(len(indices)) if groups is None else groups
    result = np.array([manifest.splits[i] or "train" for i in indices], dtype=_SPLIT_DTYPE)
    result[leaks_into_holdout(manifest, indices, groups)] = EXCLUDED
    draws_test, draws_val = (name not in manifest.splits for name in ("test", "val"))
    order = seeded_order([manifest.names[i] for i in indices], seed, "split")
    draw = _Draw(manifest.labels[indices], groups, result, order)
    for label in range(len(manifest.classes)):
        if draws_test:
            outside = ("train", "val")
            n_images = round(test_fraction * draw.count(label, *outside))
            max_groups = max(draw.count_groups(label, *outside) - folds, 1)
            draw.take(label, "test", n_images, max_groups, min_left=2 if draws_val else 1)
        if draws_val:
            n_images = round(val_fraction * draw.count(label, "train"))
            draw.take(label, "val", n_images, max_groups=len(indices), min_left=1)
    return result


def leaks_into_holdout(manifest: Manifest, indices: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Find the images that leak into an official test or validation split.

    The test set keeps all of its images, so that results stay comparable. Validation keeps those
    without a near-duplicate in the test set, and training those without one in either.

    Returns:
        bool [n], the images to exclude.
    """
    rank = {"test": 2, "val": 1}
    ranks = np.array([rank.get(manifest.splits[i] or "", 0) for i in indices], np.int64)
    _, group_of = np.unique(groups, return_inverse=True)
    highest = np.zeros(len(indices), np.int64)
    np.maximum.at(highest, group_of, ranks)
    return np.asarray(ranks < highest[group_of])


class _Draw:
    """Draws whole groups of near-duplicates from training into the other splits."""

    def __init__(
        self, labels: np.ndarray, groups: np.ndarray, result: np.ndarray, order: np.ndarray
    ) -> None:
        self._groups, self._result = groups, result
        ends = np.cumsum(np.bincount(labels))[:-1]
        self._rows_of_class = np.split(np.argsort(labels, kind="stable"), ends)
        self._members: dict[int, list[int]] = {}
        self._classes: dict[int, set[int]] = {}
        self._groups_of_class: dict[int, list[int]] = {}
        for row in order[result[order] == "train"].tolist():
            group, label = int(groups[row]), int(labels[row])
            self._members.setdefault(group, []).append(row)
            if label not in self._classes.setdefault(group, set()):
                self._classes[group].add(label)
                self._groups_of_class.setdefault(label, []).append(group)

    def count(self, label: int, *splits: str) -> int:
        """Count the images of a class in some splits."""
        return len(self._rows(label, splits))

    def count_groups(self, label: int, *splits: str) -> int:
        """Count the groups of a class that have images in some splits."""
        return len(np.unique(self._groups[self._rows(label, splits)]))

    def take(
        self, label: int, split_name: str, n_images: int, max_groups: int, min_left: int
    ) -> None:
        """Move groups of a class from training to another split: in their order, those that fit.

        Args:
            label: The class.
            split_name: The split that they move to.
            n_images: Images that this split should have of the class; at least one is moved.
            max_groups: Groups to move at most.
            min_left: Groups that training keeps of every class of a moved group.
        """
        free = [g for g in self._groups_of_class.get(label, ()) if self._is_in_training(g)]
        pure = [group for group in free if len(self._classes[group]) == 1]
        max_groups = min(max_groups, len(free) - min_left)
        room = max(1, n_images) - self.count(label, split_name)
        if max_groups <= 0 or room <= 0:
            return
        chosen: list[int] = []
        for group in pure:
            if len(chosen) < max_groups and len(self._members[group]) <= room:
                chosen.append(group)
                room -= len(self._members[group])
        if not chosen:  # none is small enough: the smallest, rather than none
            mixed = (g for g in free if len(self._classes[g]) > 1 and self._may_move(g, min_left))
            chosen = sorted(pure or mixed, key=lambda group: len(self._members[group]))[:1]
        for group in chosen:
            self._result[self._members[group]] = split_name

    def _rows(self, label: int, splits: Sequence[str]) -> np.ndarray:
        if label >= len(self._rows_of_class):  # no image of the last classes could be read
            return np.zeros(0, np.int64)
        rows = self._rows_of_class[label]
        return np.asarray(rows[np.isin(self._result[rows], splits)])

    def _is_in_training(self, group: int) -> bool:
        return bool(self._result[self._members[group][0]] == "train")

    def _may_move(self, group: int, min_left: int) -> bool:
        return all(self.count_groups(c, "train") > min_left for c in self._classes[group])


def write_split_csv(
    path: Path, images: DecodedImages, splits: Sequence[str] | np.ndarray, groups: np.ndarray
) -> None:
    """Write the name, class, split, group and digest of each image."""
    columns = (_keys(images), splits, groups, images.digests)
    rows = ((*key, *cells) for key, *cells in zip(*columns, strict=True))
    write_csv(path, SPLIT_COLUMNS, rows)


def read_split_csv(path: Path, images: DecodedImages) -> tuple[np.ndarray, np.ndarray]:
    """Read the splits and the groups that a run began with; its images must not have changed.

    Returns:
        [n] of splits as `split` returns them, and int64 [n] of groups.

    Raises:
        DataError: images were added, removed or changed.
    """
    rows = {(row["image"], row["label"]): row for row in read_rows(path)}
    keys = _keys(images)
    if changed := sorted(rows.keys() ^ set(keys)):
        name, label = changed[0]
        raise DataError(
            f"the images are not those that the run began with: {len(changed)} lines of"
            f" {path} differ, such as {f'{name},{label}'!r}; restore the images, or begin a"
            " new run"
        )
    changed_files = [
        key[0]
        for key, digest in zip(keys, images.digests, strict=True)
        if rows[key]["digest"] != digest
    ]
    if changed_files:
        raise DataError(
            "the images are not those that the run began with: these have other contents under"
            f" the same names: {some(changed_files)}; restore the images, or begin a new run"
        )
    splits = np.array([rows[key]["split"] for key in keys], dtype=_SPLIT_DTYPE)
    return splits, np.array([int(rows[key]["group"]) for key in keys], dtype=np.int64)


def _keys(images: DecodedImages) -> list[tuple[str, str]]:
    """Return name and class of each image, which identify its row."""
    classes = images.manifest.classes
    return [(name, classes[i]) for name, i in zip(images.names, images.labels, strict=True)]
