"""Near-duplicates: images that are copies of one another, changed a little.

Two steps. Coarse descriptors of all sketches are compared by matrix products, a block at a time,
with mirrored ones and with the inner part of each too, which finds crops and added borders. The
nearest pairs are then laid over one another (`data.registration`), and kept where their edges and
their texture agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn

from search.cluster.parallel import Spread, one_by_one
from search.data.registration import align, zoom
from search.data.thumbnails import SIDE, Thumbnails

MIN_DETAIL = 0.975
"""Correlation of gradients from which two images are near-duplicates."""
MIN_DETAIL_TINY = 0.995
"""The same for images smaller than a sketch: 28 × 28 pixels of trousers are all alike."""

_BLANK_SPREAD = 2.0  # levels of 255: an image of less shows nothing to compare
_INNER_FRACTION = 0.9  # of the sides: the part that a crop or an added border leaves
_N_WAVES = 9  # of each direction, in a descriptor
_MIN_LIKENESS, _MIN_LIKENESS_TINY = 0.75, 0.995  # of descriptors
_MAX_CANDIDATES = 4  # nearest of each image, and of its mirror image
_MIN_ROWS, _BLOCK_ROWS = 32, 512
_BLOCK_SIMILARITIES = 2**23  # that are worked on at a time: 32 MB, and a few times that meanwhile
_BLOCK_PAIRS = 8192


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of near-duplicates; of many equal sketches, each is paired with the first.

    Attributes:
        pairs: int64 [P, 2], ascending, the first below the second.
        similarity: float32 [P] in (0, 1], correlation of gradients where they overlap.
        synced: bool [P], whether one is the other's mirror image.
        blank: bool [n], images of one colour, which are compared with none.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    synced: np.ndarray
    blank: np.ndarray


def find_near_duplicates(
    thumbnails: Thumbnails, flip: bool, spread: Spread = one_by_one
) -> NearDuplicates:
    """Find the near-duplicates among images.

    Args:
        thumbnails: Of n images.
        flip: Whether a mirror image counts as well.
        spread: Who compares.
    """
    pixels = thumbnails.pixels
    blank = pixels.std((1, 2), dtype=np.float32) < _BLANK_SPREAD
    shown = np.flatnonzero(~blank)
    # Copies of equal sketches need no search, and would crowd out other candidates.
    _, first, copy_of = np.unique(
        pixels[shown].reshape(-1, SIDE * SIDE).view(f"V{SIDE * SIDE}")[:, 0],
        return_index=True,
        return_inverse=True,
    )
    equal = np.stack([shown[first[copy_of]], shown], 1)
    equal = equal[equal[:, 0] != equal[:, 1]]
    rows = shown[np.sort(first)]
    tiny = thumbnails.sizes.min(1) < SIDE
    candidates = _nearest(pixels[rows], tiny[rows], flip, spread)
    one, two = rows[candidates.one], rows[candidates.two]
    pairs = [
        (one[part], two[part], candidates.synced[part], candidates.scale[part])
        for part in _parts(len(one), _BLOCK_PAIRS)
    ]
    detail = np.concatenate([np.zeros(0, np.float32), *spread(_details, pixels, pairs)])
    same = detail >= np.where(tiny[one] | tiny[two], MIN_DETAIL_TINY, MIN_DETAIL)
    found = np.concatenate([equal, np.stack([one, two], 1)[same]])
    similarity = np.concatenate([np.ones(len(equal), np.float32), detail[same]])
    synced = np.concatenate([np.zeros(len(equal), np.bool_), candidates.synced[same]])
    # A symmetrical image is like another and like its mirror image: the better one counts.
    order = np.lexsort((synced, -similarity, found[:, 1], found[:, 0]))
    found, similarity, synced = found[order], similarity[order], synced[order]
    new = np.ones(len(found), np.bool_)
    new[1:] = (found[1:] != found[:-1]).any(1)
    return NearDuplicates(found[new], np.minimum(similarity[new], 1), synced[new], blank)


def describe(pixels: np.ndarray) -> np.ndarray:
    """Describe sketches by their low frequencies.

    Args:
        pixels: uint8 or float32 [n, S, S].

    Returns:
        float32 [n, d], rows of length 1, in which brightness and contrast play no part.
    """
    half = SIDE // 2
    small = pixels.reshape(len(pixels), half, 2, half, 2).mean((2, 4), dtype=np.float32)
    waves = dctn(small, axes=(1, 2), norm="ortho")[:, :_N_WAVES, :_N_WAVES].reshape(len(pixels), -1)
    # Photographs fall off as 1 / frequency; without this a few low waves would decide.
    waves = (waves * np.hypot(*_frequencies()))[:, _used()].astype(np.float32)
    return np.asarray(waves / np.maximum(np.linalg.norm(waves, axis=1, keepdims=True), 1e-6))


def groups_of(n: int, pairs: np.ndarray) -> np.ndarray:
    """Return int64 [n], for each image the lowest number of those that pairs link it to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, component = connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    return np.asarray(first[component], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Pairs worth a closer look: which is mirrored, and how much larger it is in the second."""

    one: np.ndarray
    two: np.ndarray
    synced: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, eq=False)
class _Described:
    """Descriptors of n images, whole and of their inner part, and how near others must be."""

    whole: np.ndarray
    inner: np.ndarray
    least: np.ndarray


def _nearest(pixels: np.ndarray, tiny: np.ndarray, flip: bool, spread: Spread) -> _Candidates:
    """Find each image's nearest by their descriptors; every pair once, the first below."""
    n = len(pixels)
    nothing = np.zeros((0, len(_used())), np.float32)
    both = [_describe_both(pixels[part]) for part in _parts(n, _BLOCK_ROWS)]
    described = _Described(
        np.concatenate([nothing, *(whole for whole, _ in both)]),
        np.concatenate([nothing, *(inner for _, inner in both)]),
        np.where(tiny, _MIN_LIKENESS_TINY, _MIN_LIKENESS).astype(np.float32),
    )
    n_rows = min(_BLOCK_ROWS, max(_MIN_ROWS, _BLOCK_SIMILARITIES // max(n, 1)))
    blocks = [(m, b) for m in ((False, True) if flip else (False,)) for b in _parts(n, n_rows)]
    found = [np.zeros((0, 5)), *spread(_nearest_of, described, blocks)]
    pairs = np.concatenate(found)
    swapped = pairs[:, 0] > pairs[:, 1]
    pairs[swapped, :2] = pairs[swapped, 1::-1]
    pairs[swapped, 3] = 1 / pairs[swapped, 3]
    pairs = pairs[np.lexsort((-pairs[:, 4], pairs[:, 2], pairs[:, 1], pairs[:, 0]))]
    new = np.ones(len(pairs), np.bool_)
    new[1:] = (pairs[1:, :3] != pairs[:-1, :3]).any(1)
    one, two, mirrored_too, scale, _ = pairs[new].T
    return _Candidates(
        one.astype(np.int64),
        two.astype(np.int64),
        mirrored_too.astype(np.bool_),
        scale.astype(np.float32),
    )


def _parts(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _describe_both(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return describe(pixels), describe(zoom(pixels, _INNER_FRACTION))


def _nearest_of(described: _Described, block: tuple[bool, slice]) -> np.ndarray:
    """Find the nearest of some images: float64 [k, 5], both numbers, mirrored, scale, value."""
    synced, rows = block
    whole, least = described.whole, described.least
    # The cosine transform of a mirrored row is that of the row with odd waves negated.
    signs = (1 - 2 * (_frequencies()[1][_used()] % 2) if synced else 1) * np.float32(1)
    uncropped = (whole[rows] * signs) @ whole.T
    likeness = (described.inner[rows] * signs) @ whole.T
    np.maximum(likeness, uncropped, out=likeness)
    own = np.arange(len(likeness))
    likeness[own, own + rows.start] = -1
    # What costs time is how often all pairs are looked at.
    i, j = np.nonzero(likeness >= least.min())
    near = likeness[i, j] >= np.maximum(least[rows][i], least[j])
    i, j = i[near], j[near]
    value = likeness[i, j]
    scale = np.where(value > uncropped[i, j], 1 / _INNER_FRACTION, 1)
    order = np.lexsort((-value, i))
    place = np.arange(len(order)) - np.searchsorted(i[order], i[order])
    kept = order[place < _MAX_CANDIDATES]
    columns = (i + rows.start, j, np.full(len(i), synced), scale, value)
    return np.stack([column[kept] for column in columns], 1)


def _details(
    pixels: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Align some pairs: both numbers, whether the first is mirrored, and the scale; see `align`."""
    one, two, synced, scale = pairs
    left = pixels[one]
    left[synced] = left[synced, :, ::-1]
    return align(left, pixels[two], scale).detail


def _frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Return each wave's number along y and along x."""
    y, x = np.divmod(np.arange(_N_WAVES**2), _N_WAVES)
    return y, x


def _used() -> np.ndarray:
    """Return which waves a descriptor is made of: not the mean, and not both ways fine."""
    y, x = _frequencies()
    return np.flatnonzero((y + x > 0) & (y + x <= _N_WAVES))
