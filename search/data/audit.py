"""What the audit finds: copies and where they lie, classes out of balance, odd images."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from search.cluster.parallel import Spread, one_by_one
from search.console.formatting import count
from search.data.exclusion import EXTERNAL
from search.data.manifest import Manifest, Problem
from search.data.near_duplicates import NearDuplicates, find_near_duplicates, groups_of
from search.data.splits import leaks_into_holdout
from search.data.thumbnails import Thumbnails

KINDS = {
    "conflict": "near-duplicates with different labels",
    "left out": "near-duplicates of test or validation images, taken out of training",
    "external twin": "external images that are near-duplicates of the set's, not judged",
    "exact duplicate": "the same file again",
    "near-duplicate": "copies that were changed a little",
    "unreadable": "files that hold no image that can be read",
    "not an image": "files that their names show to be no image",
    "not used": "files that belong to no class",
    "blank": "images of one colour",
    "odd size": "images far smaller than the others",
    "odd shape": "images far longer than the others",
    "grey": "grey images among coloured ones",
    "grey class": "classes that their lack of colour gives away",
    "imbalance": "classes far larger than others",
}
"""What is looked for, the gravest first."""
UNUSED = ("unreadable", "not an image", "not used")
"""Kinds of files that a run cannot use."""
COPIES = ("conflict", "left out", "external twin", "exact duplicate", "near-duplicate")
"""Kinds whose images have a twin."""

_SMALL = 0.25  # of the median shorter side
_LONG = 2.5  # times the median ratio of the longer to the shorter side
_IMBALANCE = 5.0
_RARELY_GREY, _MOSTLY_GREY = 0.2, 0.5  # shares


@dataclass(frozen=True, eq=False)
class Images:
    """Images that were looked at.

    Attributes:
        manifest: What was found.
        kept: int64 [n], the index in the listing of each image that could be read.
        thumbnails: Of these.
        problems: The files that could not be used.
    """

    manifest: Manifest
    kept: np.ndarray
    thumbnails: Thumbnails
    problems: tuple[Problem, ...]


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found.

    Attributes:
        problems: The gravest kind first, then by name.
        groups: int64 [n], by image that could be read; near-duplicates have equal numbers.
        external_near_duplicates: bool [m], which external images are near-duplicates of the set's.
    """

    problems: tuple[Problem, ...]
    groups: np.ndarray
    external_near_duplicates: np.ndarray

    def count(self, *kinds: str) -> int:
        """Return how many problems are of some kinds."""
        return sum(problem.kind in kinds for problem in self.problems)

    @property
    def n_groups(self) -> int:
        """How many groups of near-duplicates there are."""
        return int((np.bincount(self.groups) > 1).sum()) if len(self.groups) else 0

    def as_json(self) -> dict[str, object]:
        """Return the counts: of groups, of external near-duplicates, and of each kind found."""
        return {
            "groups": self.n_groups,
            "in_groups": int((np.bincount(self.groups)[self.groups] > 1).sum()),
            "external_near_duplicates": int(self.external_near_duplicates.sum()),
            "problems": {kind: n for kind in KINDS if (n := self.count(kind))},
        }


def sum_up(audit: Audit) -> str:
    """Return what was found in a line."""
    words = {
        "conflict": "images whose near-duplicates are labelled otherwise",
        "left out": "taken out of training",
        "external twin": "external images not judged",
        "unreadable": "unreadable",
        "blank": "blank",
        "odd size": "of odd size",
        "odd shape": "of odd shape",
        "grey": "grey among coloured",
    }
    parts = [f"{count(audit.n_groups, 'group')} of near-duplicates kept together"]
    parts += [f"{n:,} {said}" for kind, said in words.items() if (n := audit.count(kind))]
    parts += [problem.detail for problem in audit.problems if not problem.name]
    return ", ".join(parts)


def examine(
    images: Images, external: Images | None, flip: bool, spread: Spread = one_by_one
) -> Audit:
    """Look for everything that could mislead a training or its judgement.

    Args:
        images: The set.
        external: The external images, if there are any.
        flip: Whether a mirror image counts as a copy.
        spread: Who compares them.
    """
    n = len(images.kept)
    both = [images] if external is None else [images, external]
    near_duplicates = find_near_duplicates(
        Thumbnails.join([part.thumbnails for part in both]), flip, spread
    )
    links = _Links(both, near_duplicates)
    groups = groups_of(n, links.pairs[(links.pairs < n).all(1)])
    problems = [*images.problems, *_copies(links, images.manifest, images.kept, groups)]
    problems += _odd_ones(images, near_duplicates.blank[:n])
    problems += _imbalance(images)
    external_near_duplicates = np.zeros(0, np.bool_)
    if external is not None:
        problems += [replace(p, name=EXTERNAL + p.name) for p in external.problems]
        problems += _external_copies(links, n)
        external_near_duplicates = np.array(
            [any(other < n for other in links.of(row)) for row in range(n, len(links.names))],
            dtype=np.bool_,
        )
    order = list(KINDS)
    problems.sort(key=lambda problem: (order.index(problem.kind), problem.name))
    return Audit(tuple(problems), groups, external_near_duplicates)


def write_audit_csv(path: Path, problems: Iterable[Problem]) -> None:
    """Write what the audit found, a line a finding."""
    # A file's name may hold bytes that are no UTF-8; they are written as they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "problem", "detail", "duplicate_of", "similarity"))
        for problem in problems:
            similarity = "" if problem.similarity is None else f"{problem.similarity:.3f}"
            writer.writerow(
                (problem.name, problem.kind, problem.detail, problem.duplicate_of, similarity)
            )


class _Links:
    """Which images are near-duplicates of which; external ones come after the set's."""

    def __init__(self, parts: list[Images], near_duplicates: NearDuplicates) -> None:
        self.names = [part.manifest.names[i] for part in parts for i in part.kept]
        first = len(parts[0].kept)
        self.names[first:] = [EXTERNAL + name for name in self.names[first:]]
        self._parts = parts
        equal = np.flatnonzero((near_duplicates.similarity == 1) & ~near_duplicates.synced)
        doubtful = {int(row) for row in near_duplicates.pairs[equal].ravel()}
        doubtful |= {int(row) for row in np.flatnonzero(near_duplicates.blank)}
        self._digests = {row: self._digest(row) for row in sorted(doubtful)}
        seen: dict[bytes, int] = {}
        blank = [
            (first_one, row)
            for row in np.flatnonzero(near_duplicates.blank).tolist()
            if (first_one := seen.setdefault(self._digests[row], row)) != row
        ]
        self.pairs = np.concatenate(
            [near_duplicates.pairs, np.array(blank, np.int64).reshape(-1, 2)]
        )
        similarity = np.concatenate([near_duplicates.similarity, np.ones(len(blank), np.float32)])
        synced = np.concatenate([near_duplicates.synced, np.zeros(len(blank), np.bool_)])
        self._of: dict[int, dict[int, tuple[float, bool]]] = {}
        for (one, two), value, is_mirrored in zip(
            self.pairs.tolist(), similarity.tolist(), synced.tolist(), strict=True
        ):
            self._of.setdefault(one, {})[two] = (value, is_mirrored)
            self._of.setdefault(two, {})[one] = (value, is_mirrored)

    def of(self, row: int) -> dict[int, tuple[float, bool]]:
        """Return an image's near-duplicates, each with its similarity and if it is mirrored."""
        return self._of.get(row, {})

    def most_similar(self, row: int, among: Iterable[int]) -> int:
        """Return which of some of an image's near-duplicates is most like it."""
        return max(among, key=lambda other: (self.of(row)[other][0], -other))

    def problem(self, row: int, kind: str, duplicate_of: int, note: str = "") -> Problem:
        """Return a finding about an image and one of its near-duplicates."""
        similarity, is_mirrored = self.of(row)[duplicate_of]
        is_same = row in self._digests and self._digests[row] == self._digests.get(duplicate_of)
        if kind == "near-duplicate" and is_same:
            kind = "exact duplicate"
        how = "the same file" if is_same else "a mirrored copy" if is_mirrored else "a changed copy"
        return Problem(self.names[row], kind, how + note, self.names[duplicate_of], similarity)

    def _digest(self, row: int) -> bytes:
        n = len(self._parts[0].kept)
        part, place = (self._parts[0], row) if row < n else (self._parts[1], row - n)
        manifest, index = part.manifest, part.kept[place]
        if manifest.paths is not None:
            content = manifest.paths[index].read_bytes()
        elif manifest.images is not None:
            content = manifest.images[index].tobytes()
        else:
            raise ValueError("a listing has files or arrays")
        return blake2b(content, digest_size=16).digest()


def _copies(
    links: _Links, manifest: Manifest, kept: np.ndarray, groups: np.ndarray
) -> Iterator[Problem]:
    """Yield the set's own copies: of each group all but the first, and all that contradict."""
    labels = manifest.labels[kept]
    out = leaks_into_holdout(manifest, kept, groups)
    classes_of: dict[int, set[int]] = {}
    for group, label in zip(groups.tolist(), labels.tolist(), strict=True):
        classes_of.setdefault(group, set()).add(label)
    for row in range(len(kept)):
        others = [other for other in links.of(row) if other < len(kept)]
        if not others:
            continue
        if out[row]:
            duplicate_of = links.most_similar(
                row, [other for other in others if not out[other]] or others
            )
            note = f" of one in the {manifest.splits[kept[duplicate_of]]} split"
            yield links.problem(row, "left out", duplicate_of, note)
        elif len(classes_of[groups[row]]) > 1:
            contrary = [other for other in others if labels[other] != labels[row]]
            duplicate_of = links.most_similar(row, contrary or others)
            here, there = (manifest.classes[labels[one]] for one in (row, duplicate_of))
            note = f", but labelled {here!r} and not {there!r}" if contrary else ""
            yield links.problem(row, "conflict", duplicate_of, note)
        elif groups[row] != row:
            yield links.problem(row, "near-duplicate", links.most_similar(row, others))


def _external_copies(links: _Links, n: int) -> Iterator[Problem]:
    for row in range(n, len(links.names)):
        others = links.of(row)
        if inside := [other for other in others if other < n]:
            yield links.problem(row, "external twin", links.most_similar(row, inside))
        elif earlier := [other for other in others if other < row]:
            yield links.problem(row, "near-duplicate", links.most_similar(row, earlier))


def _odd_ones(images: Images, blank: np.ndarray) -> Iterator[Problem]:
    names = [images.manifest.names[i] for i in images.kept]
    sizes = images.thumbnails.sizes
    if not len(names):
        return
    short, long = sizes.min(1), sizes.max(1)
    usual, usual_ratio = float(np.median(short)), float(np.median(long / short))
    for row in np.flatnonzero(blank):
        yield Problem(names[row], "blank", "it shows one colour")
    for row in np.flatnonzero(short < _SMALL * usual):
        width, height = sizes[row]
        detail = f"{width} × {height} pixels; the shorter side of most is about {usual:.0f}"
        yield Problem(names[row], "odd size", detail)
    for row in np.flatnonzero(long / short > _LONG * usual_ratio):
        width, height = sizes[row]
        yield Problem(names[row], "odd shape", f"{width} × {height} pixels")
    yield from _grey_ones(images, names)


def _grey_ones(images: Images, names: list[str]) -> Iterator[Problem]:
    grey, labels = images.thumbnails.grey, images.manifest.labels[images.kept]
    if grey.mean() <= _RARELY_GREY:
        for row in np.flatnonzero(grey):
            yield Problem(names[row], "grey", "it has no colour, as most others do")
    for label, name in enumerate(images.manifest.classes):
        mine, others = grey[labels == label], grey[labels != label]
        if len(mine) and len(others) and mine.mean() >= _MOSTLY_GREY > _RARELY_GREY > others.mean():
            share = f"{100 * mine.mean():.0f} % of {name!r} are grey"
            yield Problem("", "grey class", f"{share}, {100 * others.mean():.0f} % of the others")


def _imbalance(images: Images) -> Iterator[Problem]:
    counts = Counter(images.manifest.labels[images.kept].tolist())
    if len(counts) < 2:
        return
    (most, n_most), *_, (least, n_least) = counts.most_common()
    if n_most >= _IMBALANCE * n_least:
        one, two = (images.manifest.classes[label] for label in (most, least))
        detail = f"{one!r} has {n_most} images, {two!r} {n_least}: {n_most / n_least:.1f} times"
        yield Problem("", "imbalance", detail + " as many")
