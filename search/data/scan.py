"""Find the images of a source, with their classes and official splits.

Only names are read here, so that a mistake in a request is reported at once, before Ray starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from search.console.formatting import some
from search.data.exclusion import Exclusion
from search.data.image_files import NOT_AN_IMAGE, DataError, find_image_files, folders
from search.data.layouts import class_folders
from search.data.layouts.class_folders import (
    ClassFolder,
    check_has,
    check_known,
    find_class_folders,
    official_splits,
)
from search.data.manifest import Issue, Manifest, check_counts, sample
from spaces.sources import Arrays, Source


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
    return manifest.take(sample(manifest, limit, folds, seed))


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
