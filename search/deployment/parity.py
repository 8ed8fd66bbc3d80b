"""Whether an exported model gives what the model itself gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from search.console.formatting import count, percent
from search.deployment.run_images import RunImages
from trainables.models.ensemble import Ensemble, ModelCard
from trainables.models.export_module import ExportModule, central

TOLERANCE = 1e-3
"""How far a probability of an exported model may lie from PyTorch's."""
OOD_TOLERANCE = 0.01
"""How far a doubt may lie from PyTorch's: of 1, or of itself where it is larger."""
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model gives for images.

    Attributes:
        probabilities: [n, classes].
        ood_score: [n]; None where the model cannot tell.
    """

    probabilities: np.ndarray
    ood_score: np.ndarray | None

    @classmethod
    def join(cls, batches: Iterable[Sequence[Any]]) -> Outputs:
        """Put together what a graph gave, batch by batch: probabilities, and doubt where it has it.

        Raises:
            ValueError: there is no batch.
        """
        columns = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        return cls(columns[0], columns[1] if len(columns) > 1 else None)


@dataclass(frozen=True)
class Parity:
    """How an exported model compares with the model that it was made from.

    Attributes:
        images: "held-out", or "generated" where a model comes without its run.
        n: How many.
        n_missing: Held-out images that are not there any more.
        max_difference: Of any probability.
        n_other: Images with another likeliest class, ties (within twice the tolerance) aside.
        ood_difference: Of any doubt, as a share of it where it is above 1; None without doubt.
        n_ood_flips: Images whose doubt lies on the other side of 1, ties aside.
        accuracy: Of the exported model; None on generated images.
        accuracy_pytorch: Of the model itself in float32; None on generated images.
        quantised: Whether it is in 8-bit integers: then the accuracy speaks, not the difference.
    """

    images: str
    n: int
    n_missing: int
    max_difference: float
    n_other: int
    ood_difference: float | None
    n_ood_flips: int
    accuracy: float | None
    accuracy_pytorch: float | None
    quantised: bool

    @property
    def passed(self) -> bool:
        """Whether the export may be used; of a quantised one, its user judges."""
        return self.quantised or (
            self.max_difference <= TOLERANCE
            and self.n_other == 0
            and (self.ood_difference or 0.0) <= OOD_TOLERANCE
        )

    def in_words(self) -> str:
        """Say it in one line."""
        missing = f" ({self.n_missing} more are not there any more)" if self.n_missing else ""
        words = (
            f"{count(self.n, f'{self.images} image')}{missing}: probabilities differ by at most"
            f" {self.max_difference:.2g}"
        )
        words += "" if self.quantised else f" (allowed: {TOLERANCE:g})"
        words += f", another likeliest class for {self.n_other}"
        if self.ood_difference is not None:
            words += f"; doubt differs by at most {self.ood_difference:.2g}"
            words += "" if self.quantised else f" (allowed: {OOD_TOLERANCE:g})"
            words += f", on the other side of 1 for {self.n_ood_flips}"
        if self.accuracy is None or self.accuracy_pytorch is None:
            return words
        return (
            words
            + f"; accuracy {percent(self.accuracy)} (PyTorch: {percent(self.accuracy_pytorch)})"
        )

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {**asdict(self), "passed": self.passed}


def expected_outputs(ensemble: Ensemble, decoded: np.ndarray) -> Outputs:
    """Return what PyTorch gives in float32."""
    deployed = ExportModule(ensemble)
    with torch.no_grad():
        return Outputs.join(
            deployed(torch.from_numpy(central_pixels(ensemble.card, decoded[i : i + _BATCH])))
            for i in range(0, len(decoded), _BATCH)
        )


def central_pixels(card: ModelCard, decoded: np.ndarray) -> np.ndarray:
    """Cut out what an exported model takes: uint8 [n, image_size, image_size, 3]."""
    return central(torch.from_numpy(decoded), card.image_size).numpy()


def compare(
    expected: Outputs,
    found: Outputs,
    images: RunImages,
    checked_on: str,
    quantised: bool,
) -> Parity:
    """Compare what an export gives with what is expected."""
    before = expected.probabilities
    ours, theirs = before.argmax(1), found.probabilities.argmax(1)
    rows = np.arange(len(before))
    no_tie = before[rows, ours] - before[rows, theirs] > 2 * TOLERANCE
    judged = checked_on == "held-out"
    ood_difference, n_ood_flips = _compare_ood(expected.ood_score, found.ood_score)
    return Parity(
        images=checked_on,
        n=len(before),
        n_missing=images.n_missing,
        max_difference=float(np.abs(before - found.probabilities).max()),
        n_other=int(((ours != theirs) & no_tie).sum()),
        ood_difference=ood_difference,
        n_ood_flips=n_ood_flips,
        accuracy=float((theirs == images.labels).mean()) if judged else None,
        accuracy_pytorch=float((ours == images.labels).mean()) if judged else None,
        quantised=quantised,
    )


def _compare_ood(expected: np.ndarray | None, found: np.ndarray | None) -> tuple[float | None, int]:
    """Return the largest difference, and how many lie on the other side of 1, ties aside."""
    if expected is None or found is None:
        return None, 0
    difference = np.abs(expected - found) / np.maximum(1.0, np.abs(expected))
    other_side = ((expected > 1) != (found > 1)) & (np.abs(expected - 1) > OOD_TOLERANCE)
    return float(difference.max()), int(other_side.sum())


def generate_images(card: ModelCard, n: int) -> RunImages:
    """Make images of soft random shapes, for a model that comes without its run."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 8, 8, generator=generator)
    size = (card.cache_size, card.cache_size)
    soft = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    decoded = (soft * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return RunImages(
        tuple(f"generated {i}" for i in range(n)), np.zeros(n, np.int64), decoded, 0, 0
    )
