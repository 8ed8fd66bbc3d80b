"""Split images into train, validation and test sets, stratified by class.

Groups of near-duplicates stay in one split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from search.console.formatting import some
from search.data.decoding import DecodedImages
from search.data.image_files import DataError
from search.data.manifest import Manifest, seeded_order
from search.data.near_duplicates import groups_of
from search.runs.tables import SPLIT_COLUMNS, read_split_rows, write_csv

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
    near_duplicates: np.ndarray | None = None,
) -> np.ndarray:
    """Split images into train, val and test, stratified by class.

    Official splits stay as they are, except that training loses the near-duplicates of their test
    and validation images. A drawn split depends on the seed and on the names and groups of the
    images alone: it is the same wherever the files lie, and one more file moves few others. A group
    is drawn as a whole, and one whose near-duplicates have two classes only where no other is left:
    accuracy on contradicting labels means little.

    Args:
        manifest: The images.
        indices: int64 [n], those of the images to split.
        val_fraction: Fraction of the images outside the test set.
        test_fraction: Fraction of the images.
        seed: Seed of the draw.
        folds: Images of each class, near-duplicates counted once, that a drawn test set leaves at
            least.
        groups: int64 [n]; images with equal numbers stay together. None: each is alone.
        near_duplicates: int64 [n]; images with equal numbers are near-duplicates. None: as
            `groups`.

    Returns:
        [n] of "train", "val", "test" or `EXCLUDED`. A class of three groups or more is in each of
        the first three.
    """
    groups = np.arange(len(indices)) if groups is None else groups
    result = np.array([manifest.splits[i] or "train" for i in indices], dtype=_SPLIT_DTYPE)
    result[leaks_into_holdout(manifest, indices, groups)] = EXCLUDED
    draws_test, draws_val = (name not in manifest.splits for name in ("test", "val"))
    order = seeded_order([manifest.names[i] for i in indices], seed, "split")
    labels = manifest.labels[indices]
    contradicting = _with_two_classes(
        groups if near_duplicates is None else near_duplicates, labels
    )
    draw = _Draw(labels, groups, result, order, set(groups[contradicting].tolist()))
    n_classes = len(manifest.classes)
    if draws_test:
        outside = ("train", "val")
        sizes = [round(test_fraction * draw.count(c, *outside)) for c in range(n_classes)]
        for label in range(n_classes):
            max_groups = max(draw.count_groups(label, *outside) - folds, 1)
            draw.take(label, "test", sizes, max_groups, 2 if draws_val else 1, folds)
    if draws_val:
        sizes = [round(val_fraction * draw.count(c, "train")) for c in range(n_classes)]
        for label in range(n_classes):
            draw.take(label, "val", sizes, max_groups=len(indices), min_left=1)
    return result


def _with_two_classes(groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which images are of groups with several classes: bool [n]."""
    _, group_of = np.unique(groups, return_inverse=True)
    low = np.full(len(groups), np.iinfo(np.int64).max)
    high = np.full(len(groups), -1)
    np.minimum.at(low, group_of, labels)
    np.maximum.at(high, group_of, labels)
    return np.asarray((low < high)[group_of])


def join_groups(near_duplicates: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    """Join the groups of near-duplicates with given groups.

    Args:
        near_duplicates: int64 [n], the lowest index in the group of each image.
        given: int64 [n], numbers of other groups; None: there are none.

    Returns:
        int64 [n], the lowest index in the joined group of each image.
    """
    if given is None:
        return near_duplicates
    rows = np.arange(len(given))
    _, first, group_of = np.unique(given, return_index=True, return_inverse=True)
    pairs = [np.stack([near_duplicates, rows], 1), np.stack([first[group_of], rows], 1)]
    return groups_of(len(rows), np.concatenate(pairs))


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
    """Draws whole groups from training into the other splits.

    Args:
        labels: int64 [n].
        groups: int64 [n].
        result: [n], the splits, which are changed.
        order: int64 [n], the images in the order in which they are drawn.
        avoided: Groups that are drawn only where a class has no other.
    """

    def __init__(
        self,
        labels: np.ndarray,
        groups: np.ndarray,
        result: np.ndarray,
        order: np.ndarray,
        avoided: set[int],
    ) -> None:
        self._result, self._avoided = result, avoided
        self._members: dict[int, list[int]] = {}
        self._sizes: dict[int, Counter[int]] = {}
        self._groups_of_class: dict[int, list[int]] = {}
        self._split_of: dict[int, str] = {}
        self._images: Counter[tuple[int, str]] = Counter()
        self._n_groups: Counter[tuple[int, str]] = Counter()
        for row in order[result[order] != EXCLUDED].tolist():
            group, label, part = int(groups[row]), int(labels[row]), str(result[row])
            self._members.setdefault(group, []).append(row)
            self._split_of[group] = part  # all that is not excluded of a group is in one split
            sizes = self._sizes.setdefault(group, Counter())
            if label not in sizes:
                self._groups_of_class.setdefault(label, []).append(group)
                self._n_groups[label, part] += 1
            sizes[label] += 1
            self._images[label, part] += 1

    def count(self, label: int, *splits: str) -> int:
        """Count the images of a class in some splits."""
        return sum(self._images[label, part] for part in splits)

    def count_groups(self, label: int, *splits: str) -> int:
        """Count the groups of a class that have images in some splits."""
        return sum(self._n_groups[label, part] for part in splits)

    def take(
        self,
        label: int,
        split_name: str,
        sizes: Sequence[int],
        max_groups: int,
        min_left: int,
        min_outside: int = 0,
    ) -> None:
        """Move groups of a class from training to another split: in their order, those that fit.

        Args:
            label: The class.
            split_name: The split that they move to.
            sizes: Images that this split should have of each class; at least one is moved.
            max_groups: Groups to move at most.
            min_left: Groups that training keeps of every class of a moved group.
            min_outside: Groups that training and validation keep of the other classes of a moved
                group.
        """
        free = [g for g in self._groups_of_class.get(label, ()) if self._split_of[g] == "train"]
        usual = [group for group in free if group not in self._avoided]
        max_groups = min(max_groups, len(free) - min_left)
        room = max(1, sizes[label]) - self.count(label, split_name)
        if max_groups <= 0 or room <= 0:
            return
        n_chosen = 0
        for group in usual:
            if n_chosen == max_groups or room <= 0:
                break
            n_images = self._sizes[group][label]
            fits = len(self._sizes[group]) == 1 or (
                self._may_move(group, min_left)
                and self._may_leave(group, min_outside)
                and self._has_room(group, split_name, sizes)
            )
            if fits and n_images <= room:
                self._move(group, split_name)
                n_chosen += 1
                room -= n_images
        if not n_chosen and not self.count(label, split_name):  # the smallest, rather than none
            pure = [group for group in usual if len(self._sizes[group]) == 1]
            rest = usual if len(usual) > len(pure) else free
            mixed = (g for g in rest if len(self._sizes[g]) > 1 and self._may_move(g, min_left))

            def rank(group: int) -> tuple[bool, int]:
                return not self._may_leave(group, min_outside), len(self._members[group])

            for group in sorted(pure or mixed, key=rank)[:1]:
                self._move(group, split_name)

    def _move(self, group: int, split_name: str) -> None:
        before = self._split_of[group]
        self._split_of[group] = split_name
        self._result[self._members[group]] = split_name
        for label, n_images in self._sizes[group].items():
            self._images[label, before] -= n_images
            self._images[label, split_name] += n_images
            self._n_groups[label, before] -= 1
            self._n_groups[label, split_name] += 1

    def _has_room(self, group: int, split_name: str, sizes: Sequence[int]) -> bool:
        """Return whether a split would have too many images of none of a group's classes."""
        return all(
            n_images + self.count(label, split_name) <= max(1, sizes[label])
            for label, n_images in self._sizes[group].items()
        )

    def _may_move(self, group: int, min_left: int) -> bool:
        """Return whether training keeps enough groups of a group's classes."""
        return all(self.count_groups(c, "train") > min_left for c in self._sizes[group])

    def _may_leave(self, group: int, min_outside: int) -> bool:
        """Return whether training and validation keep enough groups of a group's classes."""
        return all(self.count_groups(c, "train", "val") > min_outside for c in self._sizes[group])


def write_split_csv(
    path: Path, images: DecodedImages, splits: Sequence[str] | np.ndarray, groups: np.ndarray
) -> None:
    """Write the name, class, split, group and digest of each image."""
    columns = (_keys(images), splits, groups, images.digests)
    rows = ((*key, *cells) for key, *cells in zip(*columns, strict=True))
    write_csv(path, SPLIT_COLUMNS, rows)


def read_split_csv(
    path: Path, images: DecodedImages, n_images: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read the splits and the groups that a run began with; its images must not have changed.

    Returns:
        [n] of splits as `split` returns them, and int64 [n] of groups.

    Raises:
        FolderError: see `search.runs.tables.read_split_rows`; `n_images` is that function's.
        DataError: images were added, removed or changed.
    """
    rows = {(row["image"], row["label"]): row for row in read_split_rows(path, n_images)}
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
