"""The images of a run with their classes and official splits, before any is decoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from search.console.formatting import count, readable, some
from search.data.image_files import DataError


@dataclass(frozen=True)
class Issue:
    """An issue that the audit found in a file, or in the whole set; a line of `audit.csv`.

    Attributes:
        image: Name of the image, after `exclusion.EXTERNAL` where it is an external one; "" where
            the issue is one of the whole set.
        issue: A key of `audit.ISSUES`.
        detail: A description.
        duplicate_of: Name of the image that this one is a near-duplicate of, or "".
        similarity: Similarity of the two, in (0, 1]; None where `duplicate_of` is "".
    """

    image: str
    issue: str
    detail: str
    duplicate_of: str = ""
    similarity: float | None = None


@dataclass(frozen=True, eq=False)
class Manifest:
    """Images with their classes and official splits, before any is decoded.

    Attributes:
        classes: Names of the classes.
        names: Sorted: of each image its path below the data folder, with `/`, or its name among
            the arrays.
        labels: int64 [N], indices into `classes`; -1 is unlabelled, as only external images are.
        splits: Official split of each image: "train", "val", "test", or None.
        paths: Files of the images; None where they are arrays.
        images: uint8 [N, H, W] or [N, H, W, 3]; None where they are files.
        skipped: Files that cannot be images by their names, or that belong to no class.
        groups: Group of each image, such as a patient or a camera; "" is none. Empty where there
            are no groups.
        notes: Lines that say how the images' labels and groups were found.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str | None, ...]
    paths: tuple[Path, ...] | None
    images: np.ndarray | None
    skipped: tuple[Issue, ...] = ()
    groups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def group_numbers(self, indices: np.ndarray) -> np.ndarray | None:
        """Number the groups of some images: int64 [n]; None where there are no groups.

        Equal numbers are of one group; an image without a group has a number of its own.
        """
        if not self.groups:
            return None
        numbers: dict[str, int] = {}
        return np.array(
            [numbers.setdefault(self.groups[i] or f"/{i}", len(numbers)) for i in indices],
            dtype=np.int64,
        )

    def describe(self) -> list[str]:
        """Describe the classes, the splits and the groups, before anything is decoded."""
        splits = {split: self.splits.count(split) for split in ("train", "val", "test")}
        counts = ", ".join(f"{split} {n:,}" for split, n in splits.items() if n)
        lines = [
            f"{len(self.classes)} classes: {some(map(readable, self.classes))}",
            f"{count(len(self.names), 'image')}{f' in given splits: {counts}' if counts else ''}",
        ]
        if self.groups:
            n_groups, n_alone = len(set(self.groups) - {""}), self.groups.count("")
            alone = f"; {count(n_alone, 'image')} in no group" if n_alone else ""
            lines.append(f"{count(n_groups, 'group')} of images, kept together{alone}")
        spellings: dict[str, list[str]] = {}
        for name in self.classes:
            letters = re.sub(r"[\s_\-]", "", name).casefold()
            spellings.setdefault(letters or name, []).append(name)
        lines += [
            f"{some(map(repr, names))} are different classes, though they differ in case, spaces or"
            " hyphens only"
            for names in spellings.values()
            if len(names) > 1
        ]
        return [*lines, *self.notes]

    def take(self, indices: np.ndarray) -> Manifest:
        """Return a manifest of some of the images, given by their int64 indices."""
        return replace(
            self,
            names=tuple(self.names[i] for i in indices),
            labels=self.labels[indices],
            splits=tuple(self.splits[i] for i in indices),
            paths=None if self.paths is None else tuple(self.paths[i] for i in indices),
            images=None if self.images is None else self.images[indices],
            groups=tuple(self.groups[i] for i in indices) if self.groups else (),
        )


def check_counts(
    manifest: Manifest, indices: np.ndarray, folds: int, groups: np.ndarray | None = None
) -> None:
    """Check that every class has an image for each fold and for the test split.

    Args:
        manifest: the images.
        indices: int64 [n], those of the images that are used.
        folds: number of folds; each needs an image of every class.
        groups: int64 [n]; images with equal numbers are near-duplicates, or of one of the
            manifest's groups, and count once.

    Raises:
        DataError: some classes are too small; the message names them all.
    """
    splits = np.array([manifest.splits[i] or "" for i in indices], dtype="<U5")
    labels, n_classes = manifest.labels[indices], len(manifest.classes)
    if groups is not None:  # count the first image of each group, class and split
        keys = np.stack([groups, labels, np.unique(splits, return_inverse=True)[1]], 1)
        first = np.unique(keys, axis=0, return_index=True)[1]
        splits, labels = splits[first], labels[first]
    counts = {
        split: np.bincount(labels[splits == split], minlength=n_classes)
        for split in ("", "train", "val", "test")
    }
    outside_test = counts[""] + counts["train"] + counts["val"]
    needed = _needed(manifest, folds)
    test = " and 1 for the test split" if needed > folds else ", test split aside"
    what = f"{folds} folds{test}"
    thing = "groups of images" if manifest.groups else "images"
    if manifest.groups:
        what += "; images of one group stay together"
    elif groups is not None and len(np.unique(groups)) < len(groups):
        what += ", near-duplicates counted once"
    rules = [(f"at least {needed} {thing} ({what})", outside_test, needed)]
    rules += [
        (f"an image in its official {split} split", counts[split], 1)
        for split in ("train", "val", "test")
        if split in manifest.splits
    ]
    for rule, n_of_class, least in rules:
        small = np.flatnonzero(n_of_class < least)
        if not len(small):
            continue
        named = [f"{manifest.classes[c]!r} has {n_of_class[c]}" for c in small]
        # Two folds are the fewest.
        helps = least > 1 and n_of_class[small].min() >= least - folds + 2
        fewer = "use fewer --folds, " if helps else ""
        more = "make the groups smaller, " if manifest.groups and least > 1 else ""
        raise DataError(
            f"every class needs {rule}, but {some(named)}:"
            f" {fewer}{more}add images, or remove the class"
        )


def seeded_order(names: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """Shuffle names by a hash of each name and the seed.

    The order is the same on every machine, and one more name leaves the order of the others as it
    was. The orders for different purposes are independent.

    Returns:
        int64 [N], indices of the names.
    """
    salt = f"{purpose}/{seed}/".encode()
    keys = [blake2b(salt + name.encode("utf-8", "surrogateescape")).digest() for name in names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def sample(manifest: Manifest, limit: int, folds: int, seed: int) -> np.ndarray:
    """Sample `limit` images in proportion from each class and official split; sorted indices."""
    order = seeded_order(manifest.names, seed, "limit")
    strata: dict[tuple[str, int], list[int]] = {}
    for i in order:
        strata.setdefault((manifest.splits[i] or "", int(manifest.labels[i])), []).append(int(i))
    needed = _needed(manifest, folds)
    sizes = np.array([len(members) for members in strata.values()])
    least = np.array([1 if split == "test" else needed for split, _ in strata])
    quotas = np.minimum(least, sizes)
    if quotas.sum() > limit:
        raise DataError(
            f"--limit >= {quotas.sum()} must hold, so that each of {len(manifest.classes)} classes"
            f" fills {folds} folds and the test split, but got {limit}: raise it, or use fewer"
            " --folds"
        )
    fractions = sizes * (limit / sizes.sum())
    for _ in range(limit - int(quotas.sum())):
        quotas[np.argmax(np.where(quotas < sizes, fractions - quotas, -np.inf))] += 1
    sampled = [members[:quota] for members, quota in zip(strata.values(), quotas, strict=True)]
    return np.sort(np.concatenate(sampled)).astype(np.int64)


def _needed(manifest: Manifest, folds: int) -> int:
    """Return how many images a class needs outside the official test split."""
    return folds if "test" in manifest.splits else folds + 1
