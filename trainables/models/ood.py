"""How unlike its training images an image is, from what a network makes of it.

Two signs are added, as in virtual-logit matching (Wang et al., arXiv 2203.10807): the share of an
image's features that lies outside the directions in which the training images differ, and the
energy of its logits. The first sees images from elsewhere, the second those of no class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

N_COMPONENTS = 32
"""Directions kept of each member's features; fewer where the features or images are few."""

MAX_IMAGES = 500
"""Training images that they are found from."""

KEPT_FRACTION = 0.95
"""Of out-of-fold images, those whose doubt is at most 1."""

Subspace = dict[str, Tensor]
"""`mean` [features] and `components` [n, features], orthonormal: float32."""


def fit_subspace(features: Tensor) -> Subspace:
    """Find the directions in which images differ most.

    Args:
        features: [n, features] of training images, n >= 2.
    """
    doubles = features.double()
    mean = doubles.mean(dim=0)
    n_kept = max(1, min(N_COMPONENTS, len(features) // 2, features.shape[1] // 2))
    _, _, directions = torch.linalg.svd(doubles - mean, full_matrices=False)
    return {"mean": mean.float(), "components": directions[:n_kept].float().contiguous()}


def residual(features: Tensor, subspace: Mapping[str, Tensor]) -> Tensor:
    """Return the share of centred features that lies outside a subspace: [n], in [0, 1]."""
    centred = features.float() - subspace["mean"].float()
    length = centred.norm(dim=1)
    inside = (centred @ subspace["components"].float().T).norm(dim=1)
    # Pythagoras: the part outside needs no matrix of its own.
    outside = (length**2 - inside**2).clamp_min(0).sqrt()
    share: Tensor = outside / length.clamp_min(1e-12)
    return share.clamp_max(1.0)


def energy(logits: Tensor) -> Tensor:
    """Return -log Σ exp of logits [n, classes] (Liu et al., arXiv 2010.03759): [n]."""
    return -torch.logsumexp(logits.float(), dim=1)


@dataclass(frozen=True, eq=False)
class OODScorer:
    """Tells how unlike the training images of an ensemble's members an image is.

    Attributes:
        means: [members, features].
        components: [members, n, features].
        scale: What the residual and the energy are multiplied by, and what is added: [3]. By it 0
            is the median of out-of-fold images, and 1 what `KEPT_FRACTION` of them do not exceed.
    """

    means: Tensor
    components: Tensor
    scale: Tensor

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the members' mean doubt.

        Args:
            features: [members, N, features].
            logits: [members, N, classes].

        Returns:
            float32 [N]; above 1 an image is not like the training images.
        """
        of_residual, of_energy, offset = self.scale.unbind()  # no numbers: it is exported too
        total = torch.zeros(features.shape[1])
        for index, (x, z) in enumerate(zip(features, logits, strict=True)):
            subspace = {"mean": self.means[index], "components": self.components[index]}
            total = total + of_residual * residual(x, subspace) + of_energy * energy(z) + offset
        return total / len(features)

    def for_member(self, index: int) -> OODScorer:
        """Return the doubt by one member alone; the scale is one member's already."""
        kept = slice(index, index + 1)
        return OODScorer(self.means[kept], self.components[kept], self.scale)

    def state(self) -> dict[str, Tensor]:
        """Return what a file keeps: half precision will do for all but the scale."""
        halves = {"means": self.means.half(), "components": self.components.half()}
        return {**halves, "scale": self.scale.double()}


def fit_ood_scorer(
    subspaces: Sequence[Mapping[str, Tensor]], residuals: Tensor, energies: Tensor
) -> OODScorer:
    """Put both signs on one scale, by images that the members did not see.

    Args:
        subspaces: Each member's.
        residuals: [n] of out-of-fold images, each in the subspace of the member that had not seen
            it.
        energies: [n] of the same, by the same member.
    """
    signs = [residuals.double(), energies.double()]
    weights = [1 / _spread(sign) for sign in signs]
    both = sum((w * s for w, s in zip(weights, signs, strict=True)), torch.zeros(1).double())
    middle = both.median()
    # The quantile of which KEPT_FRACTION of new images fall short, and not only of these.
    rank = min(len(both), int(torch.tensor(KEPT_FRACTION * (len(both) + 1)).ceil()))
    reach = (both.sort().values[rank - 1] - middle).clamp_min(1e-6)
    n_shared = min(len(one["components"]) for one in subspaces)
    return OODScorer(
        torch.stack([one["mean"] for one in subspaces]),
        torch.stack([one["components"][:n_shared] for one in subspaces]),
        torch.stack([weights[0] / reach, weights[1] / reach, -middle / reach]),
    )


def load_ood_scorer(state: Mapping[str, Tensor], n_members: int, feature_size: int) -> OODScorer:
    """Read what `OODScorer.state` returned.

    Raises:
        ValueError: it is not that, or of another model.
    """
    ood_score = OODScorer(
        state["means"].float(), state["components"].float(), state["scale"].double()
    )
    whole = (
        ood_score.means.shape == (n_members, feature_size)
        and ood_score.components.dim() == 3
        and ood_score.components.shape[::2] == ood_score.means.shape
        and ood_score.scale.shape == (3,)
        and bool(torch.isfinite(ood_score.scale).all())
    )
    if not whole:
        raise ValueError(
            f"its doubt is not of {n_members} members with {feature_size} features each"
        )
    return ood_score


def _spread(values: Tensor) -> Tensor:
    """Return the median distance from the median, and never quite 0."""
    return (values - values.median()).abs().median().clamp_min(1e-6)
