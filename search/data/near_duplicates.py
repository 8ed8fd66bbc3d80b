"""Find near-duplicates: images that are slightly changed copies of one another.

Descriptors of all thumbnails are compared by matrix products, a block of rows at once, also with
mirrored ones and with the centre of each, which finds crops and added borders. Copies that are
turned by right angles or upside down are looked for where the parts of two descriptors that no turn
changes allow it, which is one product for all six. The nearest pairs are then registered
(`data.registration`) and kept where their edges and texture agree.

Written by hand, because the hashes and descriptors that libraries compare cannot tell a copy from
another photo of the same thing: one of ten Caltech images has another above a cosine of 0.88. The
module is long to have the search for candidates in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn

from search.cluster.parallel import ParallelMap, serial_map
from search.data.registration import align, zoom
from search.data.thumbnails import SIDE, Thumbnails

MIN_DETAIL = 0.975
"""Correlation of gradients from which on two images are near-duplicates."""
MIN_DETAIL_TINY = 0.995
"""The same for images smaller than a thumbnail: at 28 × 28 pixels all trousers look alike."""
BLOCK_ROWS = 512
"""Images whose nearest images one task finds at most."""
BLOCK_PAIRS = 8192
"""Pairs that one task registers at most."""

_MIN_CONTRAST = 2.0
"""Standard deviation, in levels of 255, below which an image has nothing to compare."""
_INNER_FRACTION = 0.9
"""Fraction of the sides that a crop or an added border leaves."""
_N_WAVES = 9
"""Frequencies along each axis in a descriptor."""
_MIN_COSINE, _MIN_COSINE_TINY = 0.75, 0.995
"""Cosine similarity of descriptors from which on a pair is registered."""
_MIN_COSINE_TURNED = 0.9
"""The same for turned copies, of which fewer are cropped: one pair of 100 needs a closer look."""
_MAX_CANDIDATES = 4
"""Nearest images that are registered with each image, its mirror image and its other turns."""
_MIN_ROWS = 32
_PAIRS_AT_ONCE = 2**16
_BLOCK_COSINES = 2**23
"""Cosine similarities that are computed at once: 32 MB, and a few times that meanwhile."""


class Turn(NamedTuple):
    """A change that keeps the pixels of a square: x and y swapped, then mirrored along each."""

    swaps: bool
    upside_down: bool
    mirrors: bool
    how: str
    """What a copy is called."""

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Turn images [..., S, S]."""
        turned = images.swapaxes(-1, -2) if self.swaps else images
        return turned[..., :: -1 if self.upside_down else 1, :: -1 if self.mirrors else 1]


TURNS = (
    Turn(False, False, False, "a changed copy"),
    Turn(False, False, True, "a mirrored copy"),
    Turn(False, True, False, "a copy upside down, mirrored"),
    Turn(False, True, True, "a copy upside down"),
    Turn(True, False, False, "a copy turned by 90°, mirrored"),
    Turn(True, False, True, "a copy turned by 90°"),
    Turn(True, True, False, "a copy turned by 90°"),
    Turn(True, True, True, "a copy turned by 90°, mirrored"),
)
"""The eight ways to lay a square on itself; the first leaves it as it is."""
_N_FLAT = 2
"""The first turns are compared one by one, and with the centres of images."""


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of near-duplicates; of many equal thumbnails, each is paired with the first.

    Attributes:
        pairs: int64 [P, 2], ascending, the first below the second.
        similarity: float32 [P] in (0, 1], correlation of gradients where the images overlap.
        turn: int64 [P], index into `TURNS`: how one image is turned in the other.
        blank: bool [n], images of one colour, which are compared with no other.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    turn: np.ndarray
    blank: np.ndarray


def find_near_duplicates(
    thumbnails: Thumbnails, flip: bool, parallel_map: ParallelMap = serial_map
) -> NearDuplicates:
    """Find the near-duplicates among images.

    Args:
        thumbnails: Thumbnails of n images.
        flip: Whether mirrored and turned copies count as well.
        parallel_map: Runs the comparisons.
    """
    pixels = thumbnails.pixels
    blank = pixels.std((1, 2), dtype=np.float32) < _MIN_CONTRAST
    shown = np.flatnonzero(~blank)
    # Equal thumbnails need no search, and would crowd out other candidates.
    _, first, copy_of = np.unique(
        pixels[shown].reshape(-1, SIDE * SIDE).view(f"V{SIDE * SIDE}")[:, 0],
        return_index=True,
        return_inverse=True,
    )
    equal = np.stack([shown[first[copy_of]], shown], 1)
    equal = equal[equal[:, 0] != equal[:, 1]]
    rows = shown[np.sort(first)]
    tiny = thumbnails.sizes.min(1) < SIDE
    candidates = _nearest(pixels[rows], tiny[rows], flip, parallel_map)
    one, two = rows[candidates.one], rows[candidates.two]
    pairs = [
        (one[part], two[part], candidates.turn[part], candidates.scale[part])
        for part in _parts(len(one), BLOCK_PAIRS)
    ]
    detail = np.concatenate([np.zeros(0, np.float32), *parallel_map(_details, pixels, pairs)])
    same = detail >= np.where(tiny[one] | tiny[two], MIN_DETAIL_TINY, MIN_DETAIL)
    found = np.concatenate([equal, np.stack([one, two], 1)[same]])
    similarity = np.concatenate([np.ones(len(equal), np.float32), detail[same]])
    turn = np.concatenate([np.zeros(len(equal), np.int64), candidates.turn[same]])
    # A symmetrical image is a near-duplicate both mirrored and not: the better match counts.
    order = np.lexsort((turn, -similarity, found[:, 1], found[:, 0]))
    found, similarity, turn = found[order], similarity[order], turn[order]
    new = np.ones(len(found), np.bool_)
    new[1:] = (found[1:] != found[:-1]).any(1)
    return NearDuplicates(found[new], np.minimum(similarity[new], 1), turn[new], blank)


def compute_descriptors(pixels: np.ndarray) -> np.ndarray:
    """Compute descriptors of thumbnails: their low frequencies by a cosine transform.

    Args:
        pixels: uint8 or float32 [n, S, S].

    Returns:
        float32 [n, d], rows of length 1, invariant to brightness and contrast.
    """
    half = SIDE // 2
    small = pixels.reshape(len(pixels), half, 2, half, 2).mean((2, 4), dtype=np.float32)
    waves = dctn(small, axes=(1, 2), norm="ortho")[:, :_N_WAVES, :_N_WAVES].reshape(len(pixels), -1)
    # Spectra of photos fall off as 1 / frequency; unweighted, a few low waves would decide.
    waves = (waves * np.hypot(*_frequencies()))[:, _used()].astype(np.float32)
    return np.asarray(waves / np.maximum(np.linalg.norm(waves, axis=1, keepdims=True), 1e-6))


def groups_of(n: int, pairs: np.ndarray) -> np.ndarray:
    """Group linked images: int64 [n], the lowest index in the group of each image."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, component = connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    return np.asarray(first[component], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Pairs to register: how the first is turned, and how much larger it is in the second image."""

    one: np.ndarray
    two: np.ndarray
    turn: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, eq=False)
class _Described:
    """Descriptors of n images, of their centres, and what of them no turn changes.

    The cosine similarity of two images is at most the product of their `invariant`, however one is
    turned (Cauchy–Schwarz); each has a minimum as it is, and turned.
    """

    whole: np.ndarray
    inner: np.ndarray
    invariant: np.ndarray
    min_cosine: np.ndarray
    min_cosine_turned: np.ndarray


def _nearest(
    pixels: np.ndarray, tiny: np.ndarray, flip: bool, parallel_map: ParallelMap
) -> _Candidates:
    """Find the nearest images of each by descriptors; every pair once, the lower index first."""
    n = len(pixels)
    nothing = np.zeros((0, len(_used())), np.float32)
    both = [_describe_both(pixels[part]) for part in _parts(n, BLOCK_ROWS)]
    whole = np.concatenate([nothing, *(whole for whole, _ in both)])
    described = _Described(
        whole,
        np.concatenate([nothing, *(inner for _, inner in both)]),
        np.hypot(whole, whole[:, _swapped()]) / np.sqrt(np.float32(2)),
        np.where(tiny, _MIN_COSINE_TINY, _MIN_COSINE).astype(np.float32),
        np.where(tiny, _MIN_COSINE_TINY, _MIN_COSINE_TURNED).astype(np.float32),
    )
    n_rows = min(BLOCK_ROWS, max(_MIN_ROWS, _BLOCK_COSINES // max(n, 1)))
    n_searches = _N_FLAT + 1 if flip else 1  # one by one, and all others at once
    blocks = [(turn, part) for turn in range(n_searches) for part in _parts(n, n_rows)]
    found = [np.zeros((0, 5)), *parallel_map(_nearest_of, described, blocks)]
    pairs = np.concatenate(found)
    swapped = pairs[:, 0] > pairs[:, 1]  # of those that are not turned, or their own inverse
    pairs[swapped, :2] = pairs[swapped, 1::-1]
    pairs[swapped, 3] = 1 / pairs[swapped, 3]
    pairs = pairs[np.lexsort((-pairs[:, 4], pairs[:, 2], pairs[:, 1], pairs[:, 0]))]
    new = np.ones(len(pairs), np.bool_)
    new[1:] = (pairs[1:, :3] != pairs[:-1, :3]).any(1)
    one, two, turn, scale, _ = pairs[new].T
    return _Candidates(
        one.astype(np.int64),
        two.astype(np.int64),
        turn.astype(np.int64),
        scale.astype(np.float32),
    )


def _parts(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _describe_both(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return compute_descriptors(pixels), compute_descriptors(zoom(pixels, _INNER_FRACTION))


def _nearest_of(described: _Described, block: tuple[int, slice]) -> np.ndarray:
    """Find the nearest images of a block: float64 [k, 5], both indices, turn, scale, cosine."""
    turn, rows = block
    if turn >= _N_FLAT:
        return _nearest_turned(described, rows)
    whole, min_cosine = described.whole, described.min_cosine
    uncropped = _turned(whole[rows], TURNS[turn]) @ whole.T
    cosine = _turned(described.inner[rows], TURNS[turn]) @ whole.T
    np.maximum(cosine, uncropped, out=cosine)
    own = np.arange(len(cosine))
    cosine[own, own + rows.start] = -1
    # One pass over all pairs with the lower threshold first: passes are what costs time.
    i, j = np.nonzero(cosine >= min_cosine.min())
    near = cosine[i, j] >= np.maximum(min_cosine[rows][i], min_cosine[j])
    i, j = i[near], j[near]
    value = cosine[i, j]
    scale = np.where(value > uncropped[i, j], 1 / _INNER_FRACTION, 1)
    return _best(i, j, np.full(len(i), turn), scale, value, rows.start)


def _nearest_turned(described: _Described, rows: slice) -> np.ndarray:
    """Find the nearest images behind each of a block that show it turned: as `_nearest_of`."""
    whole, least = described.whole, described.min_cosine_turned
    behind = slice(rows.start, None)
    bound = described.invariant[rows] @ described.invariant[behind].T
    i, j = np.nonzero(np.triu(bound, 1) >= least.min())
    j += rows.start
    value, turn = np.full(len(i), -1, np.float32), np.zeros(len(i), np.int64)
    for part in _parts(len(i), _PAIRS_AT_ONCE):
        one, two = whole[rows][i[part]], whole[j[part]]
        cosines = [np.einsum("pd,pd->p", _turned(one, t), two) for t in TURNS[_N_FLAT:]]
        value[part], turn[part] = np.max(cosines, 0), np.argmax(cosines, 0) + _N_FLAT
    near = value >= np.maximum(least[rows][i], least[j])
    i, j, turn, value = i[near], j[near], turn[near], value[near]
    return _best(i, j, turn, np.ones(len(i)), value, rows.start)


def _best(
    i: np.ndarray,
    j: np.ndarray,
    turn: np.ndarray,
    scale: np.ndarray,
    value: np.ndarray,
    start: int,
) -> np.ndarray:
    """Keep the nearest images of each row of a block that begins at an index."""
    order = np.lexsort((-value, i))
    rank = np.arange(len(order)) - np.searchsorted(i[order], i[order])
    best = order[rank < _MAX_CANDIDATES]
    return np.stack([column[best] for column in (i + start, j, turn, scale, value)], 1)


def _turned(descriptors: np.ndarray, turn: Turn) -> np.ndarray:
    """Compute the descriptors of turned images: turning swaps waves, or negates the odd ones."""
    y, x = (axis[_used()] % 2 for axis in _frequencies())
    signs = (1 - 2 * turn.upside_down * y) * (1 - 2 * turn.mirrors * x)
    swapped = descriptors[:, _swapped()] if turn.swaps else descriptors
    return np.asarray(swapped * signs.astype(np.float32))


def _details(
    pixels: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Register pairs, given by both indices, how the first is turned, and the scale."""
    one, two, turns, scale = pairs
    left = pixels[one]
    for number in np.unique(turns):
        turned = turns == number
        left[turned] = TURNS[number].apply(left[turned])
    return align(left, pixels[two], scale).detail


def _frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Return the frequency of each wave along y and along x."""
    y, x = np.divmod(np.arange(_N_WAVES**2), _N_WAVES)
    return y, x


def _used() -> np.ndarray:
    """Return the waves of a descriptor: without the mean and the fine diagonal ones."""
    y, x = _frequencies()
    return np.flatnonzero((y + x > 0) & (y + x <= _N_WAVES))


def _swapped() -> np.ndarray:
    """Return where in a descriptor each wave is once x and y are swapped."""
    y, x = (axis[_used()] for axis in _frequencies())
    return np.asarray(np.argsort(_used())[np.searchsorted(_used(), x * _N_WAVES + y)])
