"""Fit a linear probe: a logistic regression on the pretrained features of a backbone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spaces.base import Space
from trainables.grouped_kfold import grouped_folds
from trainables.models.classifier import Weights

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_FOLDS = 5
PROBE_C = 0.03
"""Inverse strength of the regularisation, of standardised features."""

MAX_IMAGES = 10_000
"""Probes are fitted on a stratified subset if there are more: they only rank backbones."""


@dataclass(frozen=True)
class Probe:
    """A cross-validated linear probe.

    Attributes:
        accuracy: Cross-validated on all images; NaN if a class is too small for two folds, or that
            was not asked for.
        head: Weights of the linear head fitted on the training images: `weight` and `bias`.
        val_accuracy: The head's accuracy on the validation images; NaN without any.
        logits: float32 [n, classes], of the fold that left the image out, of the images that the
            probe used; empty where the accuracy is NaN.
        labels: int64 [n], of these images; empty likewise.
    """

    accuracy: float
    head: Weights
    val_accuracy: float
    logits: np.ndarray
    labels: np.ndarray


def uses_center_crop(space: Space, n_images: float) -> bool:
    """Return whether the models of a space may have a centre-crop branch.

    The branch is a linear probe; above `MAX_IMAGES`, fine-tuned members gain nothing from one.

    Args:
        space: The space.
        n_images: Images that a member is trained on.
    """
    return space.center_crop and n_images <= MAX_IMAGES


def fit_probe(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    seed: int,
    groups: np.ndarray | None = None,
    is_train: np.ndarray | None = None,
    cross_validate: bool = True,
    max_images: int | None = None,
) -> Probe:
    """Fit a linear probe on pooled features and cross-validate it.

    Args:
        features: [n, feature_size].
        labels: int64 [n]; each class at least twice.
        n_classes: Labels are in [0, n_classes).
        seed: Seed of the folds.
        groups: int64 [n]; images of equal numbers are near-duplicates and stay in one fold.
        is_train: bool [n], the training images, which alone the head is fitted on; all others are
            validation images. None: all are training images.
        cross_validate: Whether to; without it the accuracy is NaN.
        max_images: If there are more, a stratified subset of about as many takes their place; None
            uses all.
    """
    x, y = features.float().numpy(), labels.numpy()
    groups = np.arange(len(y)) if groups is None else groups
    is_train = np.ones(len(y), bool) if is_train is None else is_train
    if max_images is not None and len(y) > max_images:
        chosen = stratified_subset(y, max_images, seed)
        x, y, groups, is_train = x[chosen], y[chosen], groups[chosen], is_train[chosen]
    n_folds = min(_FOLDS, min(len(np.unique(groups[y == label])) for label in np.unique(y)))
    accuracy, logits = float("nan"), np.empty((0, n_classes), np.float32)
    model = _create_model()
    with _ignoring_convergence():
        if n_folds >= 2 and cross_validate:
            logits = np.empty((len(y), n_classes), np.float32)
            for part in grouped_folds(y, groups, n_folds, seed):
                others = np.setdiff1d(np.arange(len(y)), part)
                head = _as_head(model.fit(x[others], y[others]), x.shape[1], n_classes)
                logits[part] = x[part] @ head["weight"].numpy().T + head["bias"].numpy()
            accuracy = float(np.mean(logits.argmax(1) == y))
        model.fit(x[is_train], y[is_train])
    val_accuracy = (
        float("nan") if is_train.all() else float(model.score(x[~is_train], y[~is_train]))
    )
    head = _as_head(model, x.shape[1], n_classes)
    return Probe(accuracy, head, val_accuracy, logits, y[: len(logits)])


def fit_head(features: Tensor, labels: Tensor, n_classes: int) -> Weights:
    """Fit a probe's head alone: `weight` [classes, feature_size] and `bias` [classes]."""
    model = _create_model()
    with _ignoring_convergence():
        model.fit(features.float().numpy(), labels.numpy())
    return _as_head(model, features.shape[1], n_classes)


@contextmanager
def _ignoring_convergence() -> Iterator[None]:
    """Ignore that a regression has not converged: it is precise enough to rank."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _create_model() -> Pipeline:
    """Return a model to be fitted; scikit-learn takes a second to import."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=200))


def stratified_subset(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Choose about n images: the same fraction of each class, but enough of a rare one to fold.

    Args:
        labels: int64 [N].
        n: At most N.
        seed: Seed of the choice.

    Returns:
        Their positions, ascending.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(_FOLDS, round(n / len(labels) * len(rows)))])
    return np.sort(np.concatenate(chosen))


def _as_head(model: Pipeline, feature_size: int, n_classes: int) -> Weights:
    """Fold the standardisation into the weights, and give absent classes a low logit."""
    scaler, regression = (step for _, step in model.steps)
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if len(regression.classes_) == 2:  # scikit-learn has one row for two classes
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.stack([-bias[0], bias[0]]) / 2
    full_weight = torch.zeros(n_classes, feature_size)
    full_bias = torch.full((n_classes,), float(bias.min()) - 10.0)
    present = torch.from_numpy(regression.classes_)
    full_weight[present] = torch.from_numpy(weight).float()
    full_bias[present] = torch.from_numpy(bias).float()
    return {"weight": full_weight, "bias": full_bias}
