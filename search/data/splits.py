"""Train, validation and test: drawn class by class, and no group of near-duplicates across them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np

from search.data.class_folders import DataError, some
from search.data.manifest import Manifest, seeded_order
from search.runs.storage import LocalFiles

OUT = "out"
"""What `split.csv` says of an image that is used for nothing: it is a near-duplicate of one that
an official split keeps for judging."""


def split(
    manifest: Manifest,
    kept: np.ndarray,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    folds: int = 2,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Divide images into train, val and test, class by class.

    An official split stays, but for the near-duplicates of its test and validation images, which
    leave training. What is drawn depends on the seed, the images' names and their groups alone:
    the same files give the same split wherever their folder lies, and one more file moves few
    others. A group is drawn whole; one that holds two classes only where nothing else is left: a
    score on contradicting labels says little.

    Args:
        manifest: the images.
        kept: int64 indices of those to divide.
        val_fraction: share for validation, of the images outside the test split.
        test_fraction: share for the test.
        seed: of the draw.
        folds: images of each class, near-duplicates counted once, that the drawn test split
            leaves at least.
        groups: int64 [len(kept)]; images of equal numbers are near-duplicates. None is each on
            its own.

    Returns:
        [len(kept)] of "train", "val", "test" or `OUT`. A class of three or more groups has the
        first three.
    """
    groups = np.arange(len(kept)) if groups is None else groups
    result = np.array([manifest.splits[i] or "train" for i in kept], dtype="<U5")
    result[leaks_into_holdout(manifest, kept, groups)] = OUT
    draws_test, draws_val = (part not in manifest.splits for part in ("test", "val"))
    order = seeded_order([manifest.names[i] for i in kept], seed, "split")
    draw = _Draw(manifest.labels[kept], groups, result, order)
    for label in range(len(manifest.classes)):
        if draws_test:
            leave = 2 if draws_val else 1
            most = max(draw.count_groups(label, "train", "val") - folds, 1)
            draw.take(
                label, round(test_fraction * draw.count(label, "train", "val")), most, leave, "test"
            )
        if draws_val:
            draw.take(label, round(val_fraction * draw.count(label, "train")), len(kept), 1, "val")
    return result


def leaks_into_holdout(manifest: Manifest, kept: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return bool [len(kept)]: which images must leave, so that official splits share no group.

    The test keeps all of its images, that scores compare; validation keeps those with no
    near-duplicate in the test, and training those with none in either.
    """
    rank = {"test": 2, "val": 1}
    ranks = np.array([rank.get(manifest.splits[i] or "", 0) for i in kept], np.int64)
    _, group_of = np.unique(groups, return_inverse=True)
    highest = np.zeros(len(kept), np.int64)
    np.maximum.at(highest, group_of, ranks)
    return np.asarray(ranks < highest[group_of])


class _Draw:
    """Draws whole groups of a class out of training."""

    def __init__(
        self, labels: np.ndarray, groups: np.ndarray, result: np.ndarray, order: np.ndarray
    ) -> None:
        self._groups, self._result = groups, result
        ends = np.cumsum(np.bincount(labels))[:-1]
        self._rows_of = np.split(np.argsort(labels, kind="stable"), ends)
        self._members: dict[int, list[int]] = {}
        self._classes: dict[int, set[int]] = {}
        self._of_class: dict[int, list[int]] = {}
        for row in order[result[order] == "train"].tolist():
            group, label = int(groups[row]), int(labels[row])
            self._members.setdefault(group, []).append(row)
            if label not in self._classes.setdefault(group, set()):
                self._classes[group].add(label)
                self._of_class.setdefault(label, []).append(group)

    def count(self, label: int, *parts: str) -> int:
        """Return how many images of a class lie in some parts."""
        return len(self._rows(label, parts))

    def count_groups(self, label: int, *parts: str) -> int:
        """Return how many groups of a class have images in some parts."""
        return len(np.unique(self._groups[self._rows(label, parts)]))

    def take(self, label: int, n_images: int, most: int, leave: int, part: str) -> None:
        """Move groups of a class from training to a part: in their order, those that fit.

        Args:
            label: the class.
            n_images: the part's fair share of them; one is the least.
            most: groups to move.
            leave: groups that every class of a moved group keeps in training.
            part: where to.
        """
        free = [g for g in self._of_class.get(label, ()) if self._is_in_training(g)]
        pure = [group for group in free if len(self._classes[group]) == 1]
        most = min(most, len(free) - leave)
        room = max(1, n_images) - self.count(label, part)
        if most <= 0 or room <= 0:
            return
        chosen: list[int] = []
        for group in pure:
            if len(chosen) < most and len(self._members[group]) <= room:
                chosen.append(group)
                room -= len(self._members[group])
        if not chosen:  # none is small enough: the smallest, rather than none
            mixed = (g for g in free if len(self._classes[g]) > 1 and self._can_go(g, leave))
            chosen = sorted(pure or mixed, key=lambda group: len(self._members[group]))[:1]
        for group in chosen:
            self._result[self._members[group]] = part

    def _rows(self, label: int, parts: Sequence[str]) -> np.ndarray:
        if label >= len(self._rows_of):  # no image of the last classes could be read
            return np.zeros(0, np.int64)
        mine = self._rows_of[label]
        return np.asarray(mine[np.isin(self._result[mine], parts)])

    def _is_in_training(self, group: int) -> bool:
        return bool(self._result[self._members[group][0]] == "train")

    def _can_go(self, group: int, leave: int) -> bool:
        return all(self.count_groups(c, "train") > leave for c in self._classes[group])


def write_split_csv(
    path: Path,
    manifest: Manifest,
    kept: np.ndarray,
    splits: Sequence[str] | np.ndarray,
    groups: np.ndarray,
    digests: Sequence[str],
) -> None:
    """Write each kept image's name, class, split, group and digest of its content."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "label", "split", "group", "digest"))
    for i, part, group, digest in zip(kept, splits, groups, digests, strict=True):
        name, label = manifest.names[i], manifest.classes[manifest.labels[i]]
        writer.writerow((name, label, str(part), int(group), digest))
    # A file's name may hold bytes that are no UTF-8; they are written as they are. Half a table
    # would be one of other images.
    content = text.getvalue().encode("utf-8", "surrogateescape")
    LocalFiles(path.parent).write(path.name, content)


def read_split_csv(
    path: Path, manifest: Manifest, kept: np.ndarray, digests: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Read the split and the groups that a run began with, of the same images.

    Raises:
        DataError: the images are others by now.
    """
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = {(row["name"], row["label"]): row for row in csv.DictReader(file)}
    now = [(manifest.names[i], manifest.classes[manifest.labels[i]]) for i in kept]
    if changed := sorted(rows.keys() ^ set(now)):
        name, label = changed[0]
        raise DataError(
            f"the images are not those that the run began with: {len(changed)} lines of"
            f" {path} differ, such as {f'{name},{label}'!r}; give back the images, or begin a"
            " new run"
        )
    replaced = [
        key[0]
        for key, digest in zip(now, digests, strict=True)
        if rows[key].get("digest", "") not in ("", digest)  # an earlier version kept none
    ]
    if replaced:
        raise DataError(
            "the images are not those that the run began with: these have other contents under"
            f" the same names: {some(replaced)}; give back the images, or begin a new run"
        )
    splits = np.array([rows[key]["split"] for key in now], dtype="<U5")
    groups = [int(rows[key].get("group") or row) for row, key in enumerate(now)]
    return splits, np.array(groups, dtype=np.int64)
