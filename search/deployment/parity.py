"""Compare the outputs of an exported model with those of the model itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from search.console.formatting import count, percent
from search.deployment.run_images import RunImages
from trainables.images import evaluation_crop
from trainables.models.export_module import ExportModule
from trainables.models.model import Model
from trainables.models.model_card import ModelCard

TOLERANCE = 1e-3
"""Largest difference of a probability from PyTorch's."""
OOD_TOLERANCE = 0.01
"""Largest difference of an OOD score from PyTorch's; relative where the score is above 1."""
_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of a model for n images.

    Attributes:
        probabilities: float [n, classes].
        ood_score: float [n]; None where the model has no OOD scorer.
    """

    probabilities: np.ndarray
    ood_score: np.ndarray | None

    @classmethod
    def join(cls, batches: Iterable[Sequence[Any]]) -> Outputs:
        """Concatenate a graph's outputs, batch by batch: probabilities, and OOD scores if any.

        Raises:
            ValueError: there is no batch.
        """
        columns = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        return cls(columns[0], columns[1] if len(columns) > 1 else None)


@dataclass(frozen=True)
class Parity:
    """Comparison of an exported model with the model that it was made from.

    Attributes:
        images: "test", or "generated" for a `model.pt` without its run.
        n: Images compared.
        n_missing: Images of the test set that are missing by now.
        max_difference: Largest difference of a probability.
        n_label_flips: Images whose predicted class differs, except for ties (probabilities within
            twice the tolerance).
        ood_difference: Largest difference of an OOD score, relative where the score is above 1;
            None without OOD scores.
        n_ood_flips: Images whose OOD score lies on the other side of 1, except for ties.
        accuracy: Accuracy of the exported model; None on generated images.
        accuracy_pytorch: Accuracy of the model itself in float32; None on generated images.
        quantised: Whether the export computes in 8-bit integers.
    """

    images: str
    n: int
    n_missing: int
    max_difference: float
    n_label_flips: int
    ood_difference: float | None
    n_ood_flips: int
    accuracy: float | None
    accuracy_pytorch: float | None
    quantised: bool

    @property
    def passed(self) -> bool:
        """Whether all differences are within tolerance; always so for a quantised export.

        Quantisation changes the outputs by nature: the user decides by the accuracy.
        """
        return self.quantised or (
            self.max_difference <= TOLERANCE
            and self.n_label_flips == 0
            and (self.ood_difference or 0.0) <= OOD_TOLERANCE
        )

    def in_words(self) -> str:
        """Return the comparison in one line."""

        def limit(tolerance: float) -> str:
            return "" if self.quantised else f" (allowed: {tolerance:g})"

        missing = f" ({self.n_missing} more are missing)" if self.n_missing else ""
        words = (
            f"{count(self.n, f'{self.images} image')}{missing}: probabilities differ by at most"
            f" {self.max_difference:.2g}{limit(TOLERANCE)}, predicted classes for"
            f" {self.n_label_flips}"
        )
        if self.ood_difference is not None:
            words += (
                f"; OOD scores differ by at most {self.ood_difference:.2g}{limit(OOD_TOLERANCE)},"
                f" is_ood for {self.n_ood_flips}"
            )
        if self.accuracy is not None and self.accuracy_pytorch is not None:
            words += f"; accuracy {percent(self.accuracy)}"
            words += f" (PyTorch: {percent(self.accuracy_pytorch)})"
        return words

    def as_json(self) -> dict[str, Any]:
        """Return the fields, and whether the comparison passed."""
        return {**asdict(self), "passed": self.passed}


def expected_outputs(model: Model, decoded: np.ndarray) -> Outputs:
    """Compute the outputs with PyTorch in float32."""
    module = ExportModule(model)
    with torch.no_grad():
        return Outputs.join(
            module(torch.from_numpy(central_pixels(model.card, decoded[i : i + _BATCH_SIZE])))
            for i in range(0, len(decoded), _BATCH_SIZE)
        )


def central_pixels(card: ModelCard, decoded: np.ndarray) -> np.ndarray:
    """Crop decoded images to an exported model's input: uint8 [n, image_size, image_size, 3]."""
    return evaluation_crop(torch.from_numpy(decoded), card.image_size).contiguous().numpy()


def compare_outputs(
    expected: Outputs, exported: Outputs, images: RunImages, *, generated: bool, quantised: bool
) -> Parity:
    """Compare the outputs of an export with the expected ones.

    Args:
        expected: Outputs of PyTorch.
        exported: Outputs of the export, for the same images.
        images: The images.
        generated: Whether the images are generated, so that their labels mean nothing.
        quantised: Whether the export computes in 8-bit integers.
    """
    probabilities = expected.probabilities
    before, after = probabilities.argmax(1), exported.probabilities.argmax(1)
    rows = np.arange(len(probabilities))
    no_tie = probabilities[rows, before] - probabilities[rows, after] > 2 * TOLERANCE
    ood_difference, n_ood_flips = _compare_ood(expected.ood_score, exported.ood_score)
    return Parity(
        images="generated" if generated else "test",
        n=len(probabilities),
        n_missing=images.n_missing,
        max_difference=float(np.abs(probabilities - exported.probabilities).max()),
        n_label_flips=int(((before != after) & no_tie).sum()),
        ood_difference=ood_difference,
        n_ood_flips=n_ood_flips,
        accuracy=None if generated else float((after == images.labels).mean()),
        accuracy_pytorch=None if generated else float((before == images.labels).mean()),
        quantised=quantised,
    )


def _compare_ood(
    expected: np.ndarray | None, exported: np.ndarray | None
) -> tuple[float | None, int]:
    """Return the largest difference, and the number of flips of `is_ood` except for ties."""
    if expected is None or exported is None:
        return None, 0
    difference = np.abs(expected - exported) / np.maximum(1.0, np.abs(expected))
    flipped = ((expected > 1) != (exported > 1)) & (np.abs(expected - 1) > OOD_TOLERANCE)
    return float(difference.max()), int(flipped.sum())


def generate_images(card: ModelCard, n: int) -> RunImages:
    """Generate images of smooth random colours, for a model without its run."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 8, 8, generator=generator)
    size = (card.cache_size, card.cache_size)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    decoded = (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    names = tuple(f"generated {i}" for i in range(n))
    return RunImages(names, np.zeros(n, np.int64), decoded, n_missing=0, n_changed=0)
