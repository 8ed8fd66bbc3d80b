"""Keep what a model predicted for the test set, so that a resumed run does not open it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainables.atomic_write import write_atomically

_DIGESTS = ("model", "baseline")


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model and its baseline predicted for the n images of the test set.

    Attributes:
        model: The model's digest.
        probabilities: float32 [n, classes], at the model's temperature.
        uncalibrated: float32 [n, classes], before it.
        ood_score: float32 [n]; None where the model cannot tell.
        baseline: The baseline's digest; None where there was none.
        baseline_classes: int64 [n], the classes that it predicted.
    """

    model: str
    probabilities: np.ndarray
    uncalibrated: np.ndarray
    ood_score: np.ndarray | None = None
    baseline: str | None = None
    baseline_classes: np.ndarray | None = None

    def are_of(self, model: str, baseline: str | None) -> bool:
        """Return whether these are all outputs of a model and, if there is one, a baseline."""
        return self.model == model and baseline in (None, self.baseline)

    def save(self, path: Path) -> None:
        """Write a file that `load_outputs` reads, atomically."""
        content = {name: value for name, value in vars(self).items() if value is not None}
        with write_atomically(path) as partial, partial.open("wb") as file:
            np.savez(file, **content)


def load_outputs(path: Path, n_images: int) -> Outputs | None:
    """Read the outputs of an earlier session.

    Args:
        path: The file; it may be missing or damaged.
        n_images: Images in the test set.

    Returns:
        None where there is no whole file of as many images.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            content: dict[str, Any] = {name: file[name] for name in file}
        arrays = {name: array for name, array in content.items() if name not in _DIGESTS}
        content |= {name: str(content[name]) for name in _DIGESTS if name in content}
        whole = all(len(array) == n_images for array in arrays.values())
        outputs = Outputs(**content)
        is_table = outputs.probabilities.ndim == 2
        same = is_table and outputs.probabilities.shape == outputs.uncalibrated.shape
        return outputs if whole and same else None
    except Exception:  # NumPy and zipfile raise nearly anything on damaged bytes
        return None
