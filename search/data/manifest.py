"""What images there are: their names, classes and official splits, before any is decoded.

Names alone are looked at, so a wrong request is told in a moment, without Ray.
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
    DataError,
    check_has,
    check_known,
    find_class_folders,
    official_parts,
    some,
)
from search.data.exclusion import Exclusion
from spaces.sources import Arrays, Source


@dataclass(frozen=True)
class Problem:
    """What the audit found in one file, or, where the name is empty, in the whole set.

    Attributes:
        name: The image's; that of an external image begins with `exclusion.EXTERNAL`.
        kind: Of problem.
        detail: In words.
        duplicate_of: The name of the image that it is a near-duplicate of, or "".
        similarity: Of the two, in (0, 1]; None where there is no twin.
    """

    name: str
    kind: str
    detail: str
    duplicate_of: str = ""
    similarity: float | None = None


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images that were found, before any is decoded."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    """Sorted: each image's path below the data folder, with `/`, or its name in an array."""
    labels: np.ndarray
    """int64 [N], indices into `classes`; -1 is unlabelled, which only external images are."""
    splits: tuple[str | None, ...]
    """Each image's official split: "train", "val", "test", or None."""
    paths: tuple[Path, ...] | None
    """None when the images lie in an array."""
    images: np.ndarray | None
    """uint8 [N, H, W] or [N, H, W, 3]; None when the images lie in files."""
    skipped: tuple[Problem, ...] = ()
    """Files among the images that their names show to be none, or that belong to no class."""

    def take(self, indices: np.ndarray) -> Manifest:
        """Return the listing of some of its images, given by their int64 indices."""
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
    """Find the images of a source, and check that they suffice.

    Args:
        source: where the images come from.
        data: the folder that `--data` names, or None.
        cache: folder that downloads are kept in.
        folds: number of folds that every class must be large enough for.
        limit: most images to list, drawn in proportion from every class and official split;
            None lists all.
        seed: of that draw.
        exclusion: images to leave out before anything is counted.

    Raises:
        SourceError: the set cannot be had.
        DataError: it holds no images, or fewer than two classes, or a class is too small, or its
            splits have different classes, or the limit is too low, or the exclusion names what is
            not there.
    """
    manifest = find_images(source, data, cache, exclusion)
    check_counts(manifest, np.arange(len(manifest.names)), folds)
    if limit is None or limit >= len(manifest.names):
        return manifest
    return manifest.take(_draw(manifest, limit, folds, seed))


def find_images(
    source: Source, data: Path | None, cache: Path, exclusion: Exclusion | None = None
) -> Manifest:
    """Find the images of a source, however few; see `scan`."""
    found = source.open(data, cache)
    if isinstance(found, Arrays):
        classes = source.classes or found.classes
        check_has(source.name, found.classes, classes)
        manifest = _list_arrays(found, classes)
    else:
        classes, folders = find_class_folders(found, source.classes, source.left_out)
        manifest = _list_files(found, classes, folders)
        manifest = _with_unused_files(manifest, found, official_parts(found, source.classes))
        if not manifest.names:
            raise DataError(f"{found} has class folders ({some(classes)}), but no images in them")
    if exclusion is None:
        return manifest
    skipped = [problem.name for problem in manifest.skipped]
    return manifest.take(exclusion.kept(manifest.names, skipped))


def scan_external(
    found: Path | Arrays, classes: Sequence[str], exclusion: Exclusion | None = None
) -> Manifest:
    """Find external images: a flat folder (unlabelled), or a folder per class.

    Args:
        found: a folder, or arrays.
        classes: the classes of the search. The external images need not have all of them.
        exclusion: images to leave out.

    Raises:
        DataError: there is no such folder, it holds no images, a folder in it is no class, or
            the exclusion names what is not there.
    """
    manifest = _find_external(found, tuple(classes))
    if exclusion is None:
        return manifest
    skipped = [problem.name for problem in manifest.skipped]
    return manifest.take(exclusion.kept(manifest.names, skipped, external=True))


def _find_external(found: Path | Arrays, classes: tuple[str, ...]) -> Manifest:
    if isinstance(found, Arrays):
        check_known("the external set", found.classes, classes)
        return _list_arrays(found, classes)
    if not found.is_dir():
        raise DataError(f"--external must name a folder, but {found} is none")
    folders = [path for path in class_folders.folders(found) if any(class_folders.files(path))]
    check_known(str(found), [path.name for path in folders], classes)
    labelled = [ClassFolder(path, classes.index(path.name), None) for path in folders]
    manifest = _list_files(found, classes, labelled or [ClassFolder(found, -1, None)])
    if labelled:
        manifest = _with_unused_files(manifest, found, {None: found})
    if not manifest.names:
        raise DataError(f"--external must hold images, flat or by class, but {found} has none")
    return manifest


def check_counts(
    manifest: Manifest, kept: np.ndarray, folds: int, groups: np.ndarray | None = None
) -> None:
    """Check that every class can fill the folds and the test split.

    Args:
        manifest: the images.
        kept: int64 indices of those that are used.
        folds: number of folds; each needs an image of every class.
        groups: int64 [len(kept)]; images of equal numbers are near-duplicates, and count once.

    Raises:
        DataError: classes are too small; the message names them all.
    """
    splits = np.array([manifest.splits[i] or "" for i in kept], dtype="<U5")
    labels, n_classes = manifest.labels[kept], len(manifest.classes)
    if groups is not None:  # the first image of each group, class and split stands for all
        keys = np.stack([groups, labels, np.unique(splits, return_inverse=True)[1]], 1)
        first = np.unique(keys, axis=0, return_index=True)[1]
        splits, labels = splits[first], labels[first]
    counts = {
        split: np.bincount(labels[splits == split], minlength=n_classes)
        for split in ("", "train", "val", "test")
    }
    outside_test = counts[""] + counts["train"] + counts["val"]
    needed = _needed(manifest, folds)
    what = f"{folds} folds" + (" and 1 for the test" if needed > folds else ", test split aside")
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
                " use fewer --folds, add images, or leave the class out"
            )


def seeded_order(names: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """Return int64 [N], an order of the names as random as a shuffle.

    A name's place comes from a hash of it: the same for the same seed on every machine, and and
    one more name changes the order of no others. Orders for different purposes are independent.
    """
    salt = f"{purpose}/{seed}/".encode()
    keys = [blake2b(salt + name.encode("utf-8", "surrogateescape")).digest() for name in names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _draw(manifest: Manifest, limit: int, folds: int, seed: int) -> np.ndarray:
    """Draw `limit` images, of each class and official split in proportion; sorted indices."""
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
            f" fills {folds} folds and the test, but got {limit}: raise it, or use fewer --folds"
        )
    shares = sizes * (limit / sizes.sum())
    for _ in range(limit - int(quotas.sum())):
        quotas[np.argmax(np.where(quotas < sizes, shares - quotas, -np.inf))] += 1
    drawn = [members[:quota] for members, quota in zip(strata.values(), quotas, strict=True)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _needed(manifest: Manifest, folds: int) -> int:
    """Return how many images a class needs outside the official test split."""
    return folds if "test" in manifest.splits else folds + 1


def _list_arrays(arrays: Arrays, classes: tuple[str, ...]) -> Manifest:
    """List the images of `classes`; others are left out."""
    label_of = np.array([classes.index(c) if c in classes else -1 for c in arrays.classes])
    labels = label_of[arrays.labels].astype(np.int64)
    order = sorted(np.flatnonzero(labels >= 0), key=arrays.names.__getitem__)
    whole = Manifest(classes, arrays.names, labels, arrays.splits, None, arrays.images)
    return whole.take(np.array(order, dtype=np.int64))


def _list_files(root: Path, classes: tuple[str, ...], folders: Iterable[ClassFolder]) -> Manifest:
    found: list[tuple[str, int, str | None, Path]] = []
    skipped: list[Problem] = []
    for folder in folders:
        for path in class_folders.files(folder.path):
            name = path.relative_to(root).as_posix()
            if class_folders.is_side_file(path):
                skipped.append(Problem(name, "not an image", "its name is not an image's"))
            else:
                found.append((name, folder.label, folder.split, path))
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


def _with_unused_files(manifest: Manifest, root: Path, parts: dict[str | None, Path]) -> Manifest:
    unused_files = (
        Problem(path.relative_to(root).as_posix(), "not used", reason)
        for path, reason in class_folders.unused_files(root, parts)
    )
    return replace(manifest, skipped=(*manifest.skipped, *unused_files))
