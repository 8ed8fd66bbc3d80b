"""List the images of a source with their classes and official splits, before any is decoded.

Only names are read here, so that a mistake in a request is reported at once, before Ray starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from search.data import class_folders
from search.data.class_folders import (
    ClassFolder,
    check_has,
    check_known,
    find_class_folders,
    official_splits,
    some,
)
from search.data.exclusion import Exclusion
from search.data.image_files import NOT_AN_IMAGE, DataError, find_image_files, folders
from spaces.sources import Arrays, Source


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
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str | None, ...]
    paths: tuple[Path, ...] | None
    images: np.ndarray | None
    skipped: tuple[Issue, ...] = ()

    def take(self, indices: np.ndarray) -> Manifest:
        """Return a manifest of some of the images, given by their int64 indices."""
        return replace(
            self,
            names=tuple(self.names[i] for i in indices),
            labels=self.labels[indices],
            splits=tuple(self.splits[i] for i in indices),
            paths=None if self.paths is None else tuple(self.paths[i] for i in indices),
            images=None if self.images is None else self.images[indices],
        )


def scan(
    source: Source,
    data: Path | None,
    cache: Path,
    folds: int,
    limit: int | None,
    seed: int,
    exclusion: Exclusion | None = None,
) -> Manifest:
    """Find the images of a source, and check that every class has enough of them.

    Args:
        source: where the images come from.
        data: the folder that `--data` names, or None.
        cache: folder of downloads.
        folds: number of folds; every class needs an image for each.
        limit: maximum number of images, sampled in proportion from every class and official
            split; None takes all.
        seed: of that sample.
        exclusion: images to exclude before the classes are counted.

    Raises:
        SourceError: the images are unavailable.
        DataError: there are no images or fewer than two classes, a class is too small, the splits
            have different classes, the limit is too low, or the exclusion names a file that does
            not exist.
    """
    manifest = find_images(source, data, cache, exclusion)
    check_counts(manifest, np.arange(len(manifest.names)), folds)
    if limit is None or limit >= len(manifest.names):
        return manifest
    return manifest.take(_sample(manifest, limit, folds, seed))


def find_images(
    source: Source, data: Path | None, cache: Path, exclusion: Exclusion | None = None
) -> Manifest:
    """Find the images of a source, without the checks of `scan`."""
    found = source.open(data, cache)
    if isinstance(found, Arrays):
        classes = source.classes or found.classes
        check_has(source.name, found.classes, classes)
        manifest = _list_arrays(found, classes)
    else:
        classes, labelled = find_class_folders(found, source.classes, source.ignored)
        manifest = _list_files(found, classes, labelled)
        manifest = _with_unused_files(manifest, found, official_splits(found, source.classes))
        if not manifest.names:
            raise DataError(
                f"{found} has class folders ({some(classes)}), but no images in them"
                f"{_unreadable(manifest)}"
            )
    return _exclude(manifest, exclusion)


def scan_external(
    found: Path | Arrays, classes: Sequence[str], exclusion: Exclusion | None = None
) -> Manifest:
    """Find external test images: a flat folder (unlabelled), or a folder per class.

    Args:
        found: a folder, or arrays.
        classes: the classes of the search. The external images need not have all of them.
        exclusion: images to exclude.

    Raises:
        DataError: there is no such folder, it holds no images, a folder in it is not named after
            a class, or the exclusion names a file that does not exist.
    """
    return _exclude(_find_external(found, tuple(classes)), exclusion, external=True)


def _exclude(manifest: Manifest, exclusion: Exclusion | None, external: bool = False) -> Manifest:
    if exclusion is None:
        return manifest
    skipped = [issue.image for issue in manifest.skipped]
    return manifest.take(exclusion.remaining(manifest.names, skipped, external))


def _find_external(found: Path | Arrays, classes: tuple[str, ...]) -> Manifest:
    if isinstance(found, Arrays):
        check_known("the external set", found.classes, classes)
        return _list_arrays(found, classes)
    if not found.is_dir():
        raise DataError(f"--external must name a folder, but {found} is none")
    inside = [path for path in folders(found) if find_image_files(path).images]
    check_known(str(found), [path.name for path in inside], classes)
    labelled = [ClassFolder(path, classes.index(path.name), None) for path in inside]
    manifest = _list_files(found, classes, labelled or [ClassFolder(found, -1, None)])
    if labelled:
        manifest = _with_unused_files(manifest, found, {None: found})
    if not manifest.names:
        raise DataError(
            f"--external must hold images, flat or by class, but {found} has none"
            f"{_unreadable(manifest)}"
        )
    return manifest


def check_counts(
    manifest: Manifest, indices: np.ndarray, folds: int, groups: np.ndarray | None = None
) -> None:
    """Check that every class has an image for each fold and for the test split.

    Args:
        manifest: the images.
        indices: int64 [n], those of the images that are used.
        folds: number of folds; each needs an image of every class.
        groups: int64 [n]; images with equal numbers are near-duplicates and count once.

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
    if groups is not None and len(np.unique(groups)) < len(groups):
        what += ", near-duplicates counted once"
    rules = [(f"at least {needed} images ({what})", outside_test, needed)]
    rules += [
        (f"an image in its official {split} split", counts[split], 1)
        for split in ("train", "val", "test")
        if split in manifest.splits
    ]
    for rule, count, least in rules:
        small = [f"{manifest.classes[c]!r} has {count[c]}" for c in np.flatnonzero(count < least)]
        if small:
            raise DataError(
                f"every class needs {rule}, but {some(small)}:"
                " use fewer --folds, add images, or remove the class"
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


def _sample(manifest: Manifest, limit: int, folds: int, seed: int) -> np.ndarray:
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


def _list_arrays(arrays: Arrays, classes: tuple[str, ...]) -> Manifest:
    """List the images of `classes`; those of other classes are not used."""
    label_of = np.array([classes.index(c) if c in classes else -1 for c in arrays.classes])
    labels = label_of[arrays.labels].astype(np.int64)
    order = sorted(np.flatnonzero(labels >= 0), key=arrays.names.__getitem__)
    whole = Manifest(classes, arrays.names, labels, arrays.splits, None, arrays.images)
    return whole.take(np.array(order, dtype=np.int64))


def _list_files(root: Path, classes: tuple[str, ...], folders: Iterable[ClassFolder]) -> Manifest:
    found: list[tuple[str, int, str | None, Path]] = []
    skipped: list[Issue] = []
    for folder in folders:
        images, others = find_image_files(folder.path)
        for path in images:
            name = path.relative_to(root).as_posix()
            found.append((name, folder.label, folder.split, path))
        for path, reason in others:
            kind = "not an image" if reason == NOT_AN_IMAGE else "unreadable"
            skipped.append(Issue(path.relative_to(root).as_posix(), kind, reason))
    found.sort()
    return Manifest(
        classes=classes,
        names=tuple(name for name, *_ in found),
        labels=np.array([label for _, label, *_ in found], dtype=np.int64),
        splits=tuple(part for _, _, part, _ in found),
        paths=tuple(path for *_, path in found),
        images=None,
        skipped=tuple(skipped),
    )


def _unreadable(manifest: Manifest) -> str:
    """Return the part of an error about missing images that names one that cannot be read."""
    first = next((issue for issue in manifest.skipped if issue.issue == "unreadable"), None)
    return "" if first is None else f"; {first.image} {first.detail}"


def _with_unused_files(manifest: Manifest, root: Path, parts: dict[str | None, Path]) -> Manifest:
    unused_files = (
        Issue(path.relative_to(root).as_posix(), "not used", reason)
        for path, reason in class_folders.unused_files(root, parts)
    )
    return replace(manifest, skipped=(*manifest.skipped, *unused_files))
