"""Images of pure noise with random labels, some of them near-duplicates, and what chance allows.

Nothing can be learned from them that holds for others. So a network that is right more often than
chance on images that it was not trained on has seen these, or a near-duplicate of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import binom

N_CLASSES = 8
N_PLANTED = 5
"""Near-duplicates of one image, in threes, of each class."""
N_SINGLE = 23
"""Images without a near-duplicate of each class."""
N_EXTERNAL = 10
"""External images of each class that are no near-duplicates."""
COPIES = 3

CLASSES = tuple(f"class {i}" for i in range(N_CLASSES))
CHANCE = 1 / N_CLASSES
ALPHA = 1e-6
"""Probability with which a figure of a correct program is beyond its bounds."""

_SIDE = 56  # pixels; below 48, near-duplicates have to be nearly equal
_CELLS = 6  # of random colours along each side
_MAX_SHIFT = 2  # pixels


def draw_images(folder: Path, seed: int) -> tuple[Path, Path]:
    """Draw the images, and external ones, one folder per class; return both folders.

    Near-duplicates have equal names up to the last underscore. The external images hold one of each
    three, too.
    """
    rng = np.random.default_rng(seed)
    data, external = folder / "data", folder / "external"
    names = [f"planted{i}" for i in range(N_PLANTED)]
    names += [f"single{i}" for i in range(N_SINGLE)] + [f"outside{i}" for i in range(N_EXTERNAL)]
    # All noise is drawn before the classes are dealt: no class differs from another.
    scenes = iter(rng.permutation([_draw_scene(rng) for _ in range(len(names) * N_CLASSES)]))
    for label in CLASSES:
        for parent in (data, external):
            (parent / label).mkdir(parents=True)
        for name in names:
            scene, places = next(scenes), [(data, 0)]
            if name.startswith("planted"):
                places = [(data, copy) for copy in range(COPIES)] + [(external, COPIES)]
            elif name.startswith("outside"):
                places = [(external, 0)]
            for parent, copy in places:
                _photograph(scene, rng).save(parent / label / f"{name}_{copy}.png")
    return data, external


def _draw_scene(rng: np.random.Generator) -> np.ndarray:
    cells = rng.integers(0, 256, (_CELLS, _CELLS, 3), dtype=np.uint8)
    side = _SIDE + _MAX_SHIFT
    return np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC))


def _photograph(scene: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Return a scene moved by at most two pixels, a little darker, with noise of its own."""
    x, y = rng.integers(0, _MAX_SHIFT + 1, 2)
    pixels = scene[y : y + _SIDE, x : x + _SIDE] * rng.uniform(0.85, 1.0)
    pixels += rng.normal(0, 2, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def planted_group(name: str) -> str:
    """Return what the names of near-duplicates have in common: the class and the image."""
    return name.rpartition("_")[0]


@dataclass(frozen=True)
class Chance:
    """How many images are right by chance, if near-duplicates are all right or all wrong.

    Attributes:
        groups: The planted group of each image.
    """

    groups: Sequence[str]

    @classmethod
    def of(cls, names: Sequence[str]) -> Chance:
        """Return the chance of images, given by their names."""
        return cls([planted_group(name) for name in names])

    def bounds(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the accuracies below and above which chance lies with probability `alpha`."""
        n = len(self.groups)
        below = np.cumsum(self._pmf)
        low = int(np.searchsorted(below, alpha))
        high = int(np.searchsorted(below, 1 - alpha))
        return low / n, high / n

    def highest(self, n_looks: int) -> float:
        """Return the accuracy that the best of so many looks exceeds with probability `ALPHA`."""
        return self.bounds(ALPHA / n_looks)[1]

    @property
    def sd(self) -> float:
        """The standard deviation of the accuracy."""
        n = len(self.groups)
        return float(np.sqrt(CHANCE * (1 - CHANCE) * (self._sizes**2).sum()) / n)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.unique(list(self.groups), return_counts=True)[1]

    @cached_property
    def _pmf(self) -> np.ndarray:
        """The distribution of the number of right images: a sum of group size × Bernoulli."""
        total = np.ones(1)
        for size, count in zip(*np.unique(self._sizes, return_counts=True), strict=True):
            pmf = np.zeros(size * count + 1)
            pmf[::size] = binom.pmf(np.arange(count + 1), count, CHANCE)
            total = np.convolve(total, pmf)
        return total
