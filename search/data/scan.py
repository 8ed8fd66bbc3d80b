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
from search.data.image_files import LINK_UP, NOT_AN_IMAGE, DataError, find_image_files
from search.data.layouts import class_folders
from search.data.layouts.class_folders import (
    ClassFolder,
    check_has,
    check_known,
    check_names,
    find_class_folders,
)
from search.data.layouts.groups import groups_by_pattern
from search.data.layouts.labelled_images import UNLISTED, find_labelled_files
from search.data.layouts.metadata import find_metadata
from search.data.layouts.split_folders import class_folders_of, nfc, official_splits
from search.data.manifest import Issue, Manifest, check_counts, sample
from spaces.label_tables import LabelTable
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
    indices = np.arange(len(manifest.names))
    check_counts(manifest, indices, folds, manifest.group_numbers(indices))
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
        check_names(source.name, classes)
        manifest = _list_arrays(found, classes)
    elif tables := _tables(source.table, found):
        manifest = _list_labelled(found, tables, source.classes)
    else:
        manifest = _list_class_folders(found, source)
    if source.group_by is not None:
        if manifest.groups:
            raise DataError(
                f"groups come from a column or from --group-by, but {manifest.notes[0]}, and"
                f" --group-by is {source.group_by!r}: omit the option, or rename the column"
            )
        groups = groups_by_pattern(manifest.names, source.group_by)
        manifest = replace(manifest, groups=groups)
    return _exclude(manifest, exclusion)


def scan_external(
    found: Path | Arrays,
    classes: Sequence[str],
    exclusion: Exclusion | None = None,
    table: LabelTable | None = None,
    ignores_others: bool = False,
) -> Manifest:
    """Find external test images: a flat folder (unlabelled), or a folder per class.

    Args:
        found: a folder, or arrays.
        classes: the classes of the search. The external images need not have all of them.
        exclusion: images to exclude.
        table: a table of the images and their labels.
        ignores_others: whether images of other classes are left out, not refused: so where
            `--classes` chose some of those that there are.

    Raises:
        DataError: there is no such folder, it holds no images, a folder in it is not named after
            a class, or the exclusion names a file that does not exist.
    """
    manifest = _find_external(found, tuple(classes), table, ignores_others)
    return _exclude(manifest, exclusion, external=True)


def _tables(table: LabelTable | None, root: Path) -> list[tuple[str | None, LabelTable]]:
    """Return the table of a source, or those that lie in its folder as metadata."""
    return find_metadata(root) if table is None else [(None, table)]


def _exclude(manifest: Manifest, exclusion: Exclusion | None, external: bool = False) -> Manifest:
    if exclusion is None:
        return manifest
    skipped = [issue.image for issue in manifest.skipped]
    return manifest.take(exclusion.remaining(manifest.names, skipped, external))


def _find_external(
    found: Path | Arrays, classes: tuple[str, ...], table: LabelTable | None, ignores_others: bool
) -> Manifest:
    if isinstance(found, Arrays):
        known = [name for name in found.classes if name in classes]
        check_known("the external set", (ignores_others and known) or found.classes, classes)
        return _list_arrays(found, classes)
    if not found.is_dir():
        raise DataError(f"--external must name a folder, but {found} is none")
    if tables := _tables(table, found):
        return _list_labelled(found, tables, classes, True, ignores_others)
    inside = {n: p for n, p in class_folders_of(found).items() if find_image_files(p).images}
    if ignores_others and any(name in classes for name in inside):
        inside = {name: path for name, path in inside.items() if name in classes}
    check_known(str(found), inside, classes)
    labelled = [ClassFolder(path, classes.index(name), None) for name, path in inside.items()]
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


def _list_class_folders(root: Path, source: Source) -> Manifest:
    classes, labelled = find_class_folders(root, source.classes, source.ignored)
    manifest = _list_files(root, classes, labelled)
    manifest = _with_unused_files(manifest, root, official_splits(root, source.classes))
    if not manifest.names:
        raise DataError(
            f"{root} has class folders ({some(classes)}), but no images in them"
            f"{_unreadable(manifest)}"
        )
    return manifest


def _list_labelled(
    root: Path,
    tables: Sequence[tuple[str | None, LabelTable]],
    wanted: tuple[str, ...] | None,
    external: bool = False,
    ignores_others: bool = False,
) -> Manifest:
    """List the images that tables name; those of labels that are not wanted are not used."""
    labels, found, unused, notes = find_labelled_files(root, tables)
    table = str(tables[0][1])
    classes = tuple(map(nfc, wanted)) if wanted else labels
    unknown = [label for label in labels if label not in classes]
    if external and unknown and not (ignores_others and len(unknown) < len(labels)):
        raise DataError(
            f"every label of {table} must be a class ({some(classes)}), but it has"
            f" {some(map(repr, unknown))}: remove these rows"
        )
    if not external:
        check_has(table, labels, classes)
        check_names(table, classes)
    if len(classes) < 2:
        raise DataError(
            f"there must be two classes or more, but {table} has {some(map(repr, labels)) or 0}"
        )
    files = sorted(file for file in found if file.label in classes)
    return Manifest(
        classes=classes,
        names=tuple(file.name for file in files),
        labels=np.array([classes.index(file.label) for file in files], dtype=np.int64),
        splits=tuple(file.split for file in files),
        paths=tuple(file.path for file in files),
        images=None,
        skipped=tuple(
            Issue(path.relative_to(root).as_posix(), _kind(reason), reason)
            for path, reason in unused
        ),
        groups=tuple(file.group for file in files) if any(file.group for file in files) else (),
        notes=notes,
    )


def _kind(reason: str) -> str:
    """Return the issue of a file that is not used for a reason."""
    if reason in (UNLISTED, LINK_UP):
        return "not used"
    return "not an image" if reason == NOT_AN_IMAGE else "unreadable"


def _list_files(root: Path, classes: tuple[str, ...], folders: Iterable[ClassFolder]) -> Manifest:
    found: list[tuple[str, int, str | None, Path]] = []
    skipped: list[Issue] = []
    for folder in folders:
        images, others = find_image_files(folder.path)
        for path in images:
            name = path.relative_to(root).as_posix()
            found.append((name, folder.label, folder.split, path))
        for path, reason in others:
            skipped.append(Issue(path.relative_to(root).as_posix(), _kind(reason), reason))
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
