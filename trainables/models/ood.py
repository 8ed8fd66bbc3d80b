"""Score how far an image is from the training images (out-of-distribution detection).

Two measures are added up, as in virtual-logit matching (Wang et al., arXiv 2203.10807): the
fraction of an image's features that lies outside the principal subspace of the training features,
and the energy of its logits. The first detects images of another origin, the second images of no
known class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

N_COMPONENTS = 32
"""Principal components kept for each member; fewer if there are few features or images."""

MAX_SUBSPACE_IMAGES = 500
"""Number of training images that the subspace is fitted on."""

KEPT_FRACTION = 0.95
"""Fraction of out-of-fold images that score at most 1."""

Subspace = dict[str, Tensor]
"""`mean` [features] and orthonormal `components` [n, features], float32."""


def fit_subspace(features: Tensor) -> Subspace:
    """Fit the principal components of features.

    Args:
        features: [n, features] of training images, n >= 2.
    """
    doubles = features.double()
    mean = doubles.mean(dim=0)
    n_kept = max(1, min(N_COMPONENTS, len(features) // 2, features.shape[1] // 2))
    _, _, directions = torch.linalg.svd(doubles - mean, full_matrices=False)
    return {"mean": mean.float(), "components": directions[:n_kept].float().contiguous()}


def residual(features: Tensor, subspace: Mapping[str, Tensor]) -> Tensor:
    """Return the fraction of centred features that lies outside a subspace: [n], in [0, 1]."""
    centred = features.float() - subspace["mean"].float()
    length = centred.norm(dim=1)
    inside = (centred @ subspace["components"].float().T).norm(dim=1)
    # By Pythagoras, the part outside needs no projection of its own.
    outside = (length**2 - inside**2).clamp_min(0).sqrt()
    fraction: Tensor = outside / length.clamp_min(1e-12)
    return fraction.clamp_max(1.0)


def energy(logits: Tensor) -> Tensor:
    """Return the energy -log Σ exp of logits [n, classes] (Liu et al., arXiv 2010.03759): [n]."""
    return -torch.logsumexp(logits.float(), dim=1)


@dataclass(frozen=True, eq=False)
class OODScorer:
    """Scores how far images are from the training images of an ensemble's members.

    Attributes:
        means: [members, features].
        components: [members, n, features].
        scale: [3], the factors of the residual and of the energy, and the offset. They are such
            that out-of-fold images have a median of 0, and `KEPT_FRACTION` of them at most 1.
    """

    means: Tensor
    components: Tensor
    scale: Tensor

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the mean of the members' OOD scores.

        Args:
            features: [members, N, features].
            logits: [members, N, classes].

        Returns:
            float32 [N]; an image above 1 is out of distribution.
        """
        # Tensors, not numbers, because this is exported too.
        residual_factor, energy_factor, offset = self.scale.unbind()
        total = torch.zeros(features.shape[1])
        for index, (x, z) in enumerate(zip(features, logits, strict=True)):
            subspace = {"mean": self.means[index], "components": self.components[index]}
            total = total + residual_factor * residual(x, subspace)
            total = total + energy_factor * energy(z) + offset
        return total / len(features)

    def for_member(self, index: int) -> OODScorer:
        """Return the scorer of one member alone."""
        member = slice(index, index + 1)
        return OODScorer(self.means[member], self.components[member], self.scale)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save; half precision is enough for all but the scale."""
        halves = {"means": self.means.half(), "components": self.components.half()}
        return {**halves, "scale": self.scale.double()}


def fit_ood_scorer(
    subspaces: Sequence[Mapping[str, Tensor]], residuals: Tensor, energies: Tensor
) -> OODScorer:
    """Fit the scale of the scores on out-of-fold images.

    Args:
        subspaces: Each member's.
        residuals: [n] of out-of-fold images, each by the member that was not trained on it.
        energies: [n] of the same images, by the same members.
    """
    measures = [residuals.double(), energies.double()]
    weights = [1 / _median_deviation(measure) for measure in measures]
    total = sum((w * m for w, m in zip(weights, measures, strict=True)), torch.zeros(1).double())
    median = total.median()
    # The conformal rank, so that KEPT_FRACTION holds for new images and not only for these.
    rank = min(len(total), int(torch.tensor(KEPT_FRACTION * (len(total) + 1)).ceil()))
    width = (total.sort().values[rank - 1] - median).clamp_min(1e-6)
    n_components = min(len(subspace["components"]) for subspace in subspaces)
    return OODScorer(
        torch.stack([subspace["mean"] for subspace in subspaces]),
        torch.stack([subspace["components"][:n_components] for subspace in subspaces]),
        torch.stack([weights[0] / width, weights[1] / width, -median / width]),
    )


def load_ood_scorer(state: Mapping[str, Tensor]) -> OODScorer:
    """Build a scorer from what `OODScorer.state_dict` returned.

    Raises:
        ValueError: it is something else.
    """
    scorer = OODScorer(state["means"].float(), state["components"].float(), state["scale"].double())
    fits = (
        scorer.means.dim() == 2
        and scorer.components.dim() == 3
        and scorer.components.shape[::2] == scorer.means.shape
        and scorer.scale.shape == (3,)
        and bool(torch.isfinite(scorer.scale).all())
    )
    if not fits:
        raise ValueError(
            "its OOD scorer has tensors of wrong shapes, or numbers that are not finite"
        )
    return scorer


def _median_deviation(values: Tensor) -> Tensor:
    """Return the median absolute deviation, at least 1e-6."""
    return (values - values.median()).abs().median().clamp_min(1e-6)
