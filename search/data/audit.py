"""Audit images: near-duplicates and where they lie, imbalanced classes, odd images.

The module is long because every kind of issue is found here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from search.cluster.parallel import ParallelMap, serial_map
from search.console.formatting import count
from search.data.decoding import DecodedImages
from search.data.exclusion import EXTERNAL
from search.data.manifest import Issue
from search.data.near_duplicates import TURNS, NearDuplicates, find_near_duplicates, groups_of
from search.data.splits import join_groups, leaks_into_holdout
from search.data.thumbnails import Thumbnails
from search.runs.summary import AuditCounts
from search.runs.tables import AUDIT_COLUMNS, read_records, write_csv

ISSUES = {
    "conflict": "near-duplicates with different labels",
    "excluded": "near-duplicates of test or validation images, excluded from training",
    "excluded group": "images of a group with test or validation images, excluded from training",
    "external near-duplicate": "external images with a near-duplicate in the data, not evaluated",
    "exact duplicate": "the same file again",
    "near-duplicate": "copies that were changed a little",
    "unreadable": "files that cannot be read as an image",
    "not an image": "files whose names show that they are no images",
    "not used": "files that belong to no class",
    "blank": "images of one colour",
    "odd size": "images far smaller than the others",
    "odd shape": "images far longer than the others",
    "grayscale": "grayscale images among coloured ones",
    "grayscale class": "classes that differ from the others by having no colour",
    "imbalance": "classes far larger than others",
    "bit depth": "images of more than 8 bits, and the levels that are black and white in them",
    "odd levels": "images that are lighter than the white of the others, or nearly black",
}
"""Kinds of issues, most severe first, and what they mean."""
UNUSED = ("unreadable", "not an image", "not used")
"""Issues of files that a run cannot use."""
DUPLICATES = (
    "conflict",
    "excluded",
    "external near-duplicate",
    "exact duplicate",
    "near-duplicate",
)
"""Issues of images that are a duplicate of another."""

NOT_SEEN = (
    "not seen: copies that were turned by other angles than right ones, or of which more than a"
    " tenth of a side is cropped, and other photos of one object; images with a common origin can"
    " be given as groups (--group-by, --group-column)"
)
"""What the comparison of images cannot find."""

_SMALL_FACTOR = 0.25  # of the median shorter side
_LONG_FACTOR = 2.5  # of the median ratio of the longer to the shorter side
_IMBALANCE_FACTOR = 5.0
_DARK_FACTOR = 1 / 16  # of the way from black to white
_MAX_RARE, _MIN_COMMON = 0.2, 0.5
"""Fractions of grayscale images at which they are rare, and common."""


@dataclass(frozen=True, eq=False)
class Audit:
    """Issues found in images, and their groups of near-duplicates.

    Attributes:
        issues: Most severe first, then by name.
        groups: int64 [n], by decoded image; near-duplicates have equal numbers.
        together: int64 [n], these joined with the groups of the manifest: what stays together.
        n_given: Number of groups of the manifest with two decoded images or more.
        external_near_duplicates: bool [m], which external images are near-duplicates of the data.
    """

    issues: tuple[Issue, ...]
    groups: np.ndarray
    together: np.ndarray
    n_given: int
    external_near_duplicates: np.ndarray

    def count(self, *kinds: str) -> int:
        """Count the issues of some kinds."""
        return sum(issue.issue in kinds for issue in self.issues)

    @property
    def n_groups(self) -> int:
        """Number of groups of near-duplicates."""
        return int((np.bincount(self.groups) > 1).sum()) if len(self.groups) else 0

    def counts(self) -> AuditCounts:
        """Count groups, external near-duplicates, and the issues of each kind, for the summary."""
        return AuditCounts(
            groups=self.n_groups,
            in_groups=int((np.bincount(self.groups)[self.groups] > 1).sum()),
            given_groups=self.n_given,
            external_near_duplicates=int(self.external_near_duplicates.sum()),
            issues={kind: n for kind in ISSUES if (n := self.count(kind))},
        )


def summarize(audit: Audit) -> str:
    """Summarize an audit in one line."""
    words = {
        "conflict": "images whose near-duplicates have other labels",
        "excluded": "excluded from training",
        "excluded group": "excluded from training by their groups",
        "external near-duplicate": "external images not evaluated",
        "unreadable": "unreadable",
        "blank": "blank",
        "odd size": "of odd size",
        "odd shape": "of odd shape",
        "grayscale": "grayscale among coloured",
        "odd levels": "of odd levels",
    }
    parts = []
    if audit.n_groups:
        parts.append(f"{count(audit.n_groups, 'group')} of near-duplicates kept together")
    if audit.n_given:
        parts.append(f"{count(audit.n_given, 'given group')} kept together")
    parts += [f"{n:,} {text}" for kind, text in words.items() if (n := audit.count(kind))]
    parts += [issue.detail for issue in audit.issues if not issue.image]
    return ", ".join(parts) or "nothing found"


def audit_images(
    images: DecodedImages,
    external: DecodedImages | None,
    flip: bool,
    parallel_map: ParallelMap = serial_map,
) -> Audit:
    """Find everything in images that could mislead training or evaluation.

    Args:
        images: Images to train and evaluate on.
        external: The external test set, if there is one.
        flip: Whether mirrored and turned copies count as near-duplicates.
        parallel_map: Runs the comparisons.
    """
    n = len(images)
    both = [images] if external is None else [images, external]
    near_duplicates = find_near_duplicates(
        Thumbnails.concatenate([part.thumbnails for part in both]), flip, parallel_map
    )
    links = _Links(both, near_duplicates)
    groups = groups_of(n, links.pairs[(links.pairs < n).all(1)])
    given = images.manifest.group_numbers(images.indices)
    together = join_groups(groups, given)
    issues = [*images.issues, *_duplicates(links, images, groups, together)]
    issues += _odd_images(images, near_duplicates.blank[:n])
    issues += _imbalance(images)
    issues += _bit_depth(images)
    external_near_duplicates = np.zeros(0, np.bool_)
    if external is not None:
        theirs = (*external.issues, *_odd_levels(external))
        issues += [replace(issue, image=EXTERNAL + issue.image) for issue in theirs]
        issues += _external_duplicates(links, n)
        external_near_duplicates = np.array(
            [any(other < n for other in links.of(row)) for row in range(n, len(links.names))],
            dtype=np.bool_,
        )
    severity = list(ISSUES)
    issues.sort(key=lambda issue: (severity.index(issue.issue), issue.image))
    n_given = 0 if given is None else int((np.bincount(given) > 1).sum())
    return Audit(tuple(issues), groups, together, n_given, external_near_duplicates)


def write_audit_csv(path: Path, issues: Iterable[Issue]) -> None:
    """Write a table of issues."""
    write_csv(path, AUDIT_COLUMNS, map(astuple, issues))


def read_audit_csv(path: Path, errors: str = "surrogateescape") -> tuple[Issue, ...]:
    """Read a table of issues; there are none where there is no file.

    Args:
        path: The table.
        errors: How to decode bytes of names that are not UTF-8; see `bytes.decode`.
    """
    return tuple(read_records(path, _read_issue, errors))


def _read_issue(row: dict[str, str]) -> Issue:
    return Issue(
        image=row["image"],
        issue=row["issue"],
        detail=row["detail"],
        duplicate_of=row["duplicate_of"],
        similarity=float(row["similarity"]) if row["similarity"] else None,
    )


class _Links:
    """Near-duplicates of each image; external images are numbered after the others."""

    def __init__(self, parts: list[DecodedImages], near_duplicates: NearDuplicates) -> None:
        self.names = [*parts[0].names, *(EXTERNAL + name for p in parts[1:] for name in p.names)]
        self._digests = [digest for part in parts for digest in part.digests]
        # Blank images are compared by their files alone.
        first_of: dict[str, int] = {}
        blank = [
            (first, row)
            for row in np.flatnonzero(near_duplicates.blank).tolist()
            if (first := first_of.setdefault(self._digests[row], row)) != row
        ]
        self.pairs = np.concatenate(
            [near_duplicates.pairs, np.array(blank, np.int64).reshape(-1, 2)]
        )
        similarity = np.concatenate([near_duplicates.similarity, np.ones(len(blank), np.float32)])
        turns = np.concatenate([near_duplicates.turn, np.zeros(len(blank), np.int64)])
        self._of: dict[int, dict[int, tuple[float, int]]] = {}
        for (one, two), value, turn in zip(
            self.pairs.tolist(), similarity.tolist(), turns.tolist(), strict=True
        ):
            self._of.setdefault(one, {})[two] = (value, turn)
            self._of.setdefault(two, {})[one] = (value, turn)

    def of(self, row: int) -> dict[int, tuple[float, int]]:
        """Return the near-duplicates of an image: similarity, and the turn, by index."""
        return self._of.get(row, {})

    def most_similar(self, row: int, among: Iterable[int]) -> int:
        """Return the most similar of some near-duplicates of an image."""
        return max(among, key=lambda other: (self.of(row)[other][0], -other))

    def issue(self, row: int, kind: str, duplicate_of: int, note: str = "") -> Issue:
        """Make an issue of an image and one of its near-duplicates."""
        similarity, turn = self.of(row)[duplicate_of]
        is_same = self._digests[row] == self._digests[duplicate_of]
        if kind == "near-duplicate" and is_same:
            kind = "exact duplicate"
        how = "the same file" if is_same else TURNS[turn].how
        return Issue(
            self.names[row], kind, how + note, self.names[duplicate_of], round(similarity, 3)
        )


def _duplicates(
    links: _Links, images: DecodedImages, groups: np.ndarray, together: np.ndarray
) -> Iterator[Issue]:
    """Find duplicates: of each group all images but the first, and all with other labels."""
    manifest, labels = images.manifest, images.labels
    excluded = leaks_into_holdout(manifest, images.indices, together)
    by_given_group = excluded & ~leaks_into_holdout(manifest, images.indices, groups)
    classes_of: dict[int, set[int]] = {}
    for group, label in zip(groups.tolist(), labels.tolist(), strict=True):
        classes_of.setdefault(group, set()).add(label)
    for row in range(len(images)):
        others = [other for other in links.of(row) if other < len(images)]
        if by_given_group[row]:
            group = manifest.groups[images.indices[row]]
            what = f"of group {group!r}" if group else "a near-duplicate of one of a group"
            detail = f"{what} that has test or validation images"
            yield Issue(links.names[row], "excluded group", detail)
        if not others:
            continue
        if excluded[row] and not by_given_group[row]:
            duplicate_of = links.most_similar(
                row, [other for other in others if not excluded[other]] or others
            )
            note = f" of one in the {manifest.splits[images.indices[duplicate_of]]} split"
            yield links.issue(row, "excluded", duplicate_of, note)
        elif len(classes_of[groups[row]]) > 1:
            other_label = [other for other in others if labels[other] != labels[row]]
            duplicate_of = links.most_similar(row, other_label or others)
            here, there = (manifest.classes[labels[one]] for one in (row, duplicate_of))
            note = f", but labelled {here!r} and not {there!r}" if other_label else ""
            yield links.issue(row, "conflict", duplicate_of, note)
        elif groups[row] != row:
            yield links.issue(row, "near-duplicate", links.most_similar(row, others))


def _external_duplicates(links: _Links, n: int) -> Iterator[Issue]:
    for row in range(n, len(links.names)):
        others = links.of(row)
        if in_data := [other for other in others if other < n]:
            yield links.issue(row, "external near-duplicate", links.most_similar(row, in_data))
        elif earlier := [other for other in others if other < row]:
            yield links.issue(row, "near-duplicate", links.most_similar(row, earlier))


def _odd_images(images: DecodedImages, blank: np.ndarray) -> Iterator[Issue]:
    if not len(images):
        return
    names, sizes = images.names, images.thumbnails.sizes
    short, long = sizes.min(1), sizes.max(1)
    usual, usual_ratio = float(np.median(short)), float(np.median(long / short))
    for row in np.flatnonzero(blank):
        yield Issue(names[row], "blank", "it shows one colour")
    for row in np.flatnonzero(short < _SMALL_FACTOR * usual):
        width, height = sizes[row]
        detail = f"{width} × {height} pixels; the shorter side of most is about {usual:.0f}"
        yield Issue(names[row], "odd size", detail)
    for row in np.flatnonzero(long / short > _LONG_FACTOR * usual_ratio):
        width, height = sizes[row]
        yield Issue(names[row], "odd shape", f"{width} × {height} pixels")
    yield from _grayscale_images(images)


def _grayscale_images(images: DecodedImages) -> Iterator[Issue]:
    grayscale, labels = images.thumbnails.grayscale, images.labels
    if grayscale.mean() <= _MAX_RARE:
        for row in np.flatnonzero(grayscale):
            yield Issue(images.names[row], "grayscale", "it has no colour, as most others do")
    for label, name in enumerate(images.manifest.classes):
        of_class, others = grayscale[labels == label], grayscale[labels != label]
        if not len(of_class) or not len(others):
            continue
        if of_class.mean() >= _MIN_COMMON and others.mean() < _MAX_RARE:
            detail = (
                f"{100 * of_class.mean():.0f}% of {name!r} are grayscale,"
                f" {100 * others.mean():.0f}% of the others"
            )
            yield Issue("", "grayscale class", detail)


def _imbalance(images: DecodedImages) -> Iterator[Issue]:
    counts = Counter(images.labels.tolist())
    if len(counts) < 2:
        return
    (most, n_most), *_, (least, n_least) = counts.most_common()
    if n_most >= _IMBALANCE_FACTOR * n_least:
        one, two = (images.manifest.classes[label] for label in (most, least))
        detail = f"{one!r} has {n_most} images, {two!r} {n_least}: {n_most / n_least:.1f} times"
        yield Issue("", "imbalance", detail + " as many")


def _bit_depth(images: DecodedImages) -> Iterator[Issue]:
    ranges = {images.levels.of(one) for one in images.extremes.values()}
    if ranges:
        shown = " and ".join(f"{black:g} to {white:g}" for black, white in sorted(ranges))
        detail = f"{count(len(images.extremes), 'image')} of more than 8 bits, from black to white"
        yield Issue("", "bit depth", f"{detail}: {shown}")
    yield from _odd_levels(images)


def _odd_levels(images: DecodedImages) -> Iterator[Issue]:
    for row, extremes in images.extremes.items():
        black, white = images.levels.of(extremes)
        if extremes.high > white:
            detail = f"its levels end at {extremes.high:g}, above the white, {white:g}"
        elif extremes.high - black < _DARK_FACTOR * (white - black):
            detail = f"its levels end at {extremes.high:g}, and {white:g} is white: nearly black"
        else:
            continue
        yield Issue(images.names[row], "odd levels", detail)
