"""The linear probe: what a backbone is worth on these images, before anything is trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from trainables.grouped_kfold import grouped_folds
from trainables.models.ensemble import Weights

_FOLDS = 5
_INVERSE_REGULARISATION = 0.03  # of standardised features; chosen in docs/studies.md
MAX_IMAGES = 10_000
"""A probe of more than these takes a stratified part: it is only a ranking."""


@dataclass(frozen=True)
class Probe:
    """A cross-validated linear probe.

    Attributes:
        accuracy: Share of the images that the folds' models got right, each image once.
        head: Weights of the linear head fitted on all of them: `weight` and `bias`.
    """

    accuracy: float
    head: Weights


def fit_probe(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Probe:
    """Fit a linear probe on pooled features and cross-validate it.

    Args:
        features: [n, feature_size].
        labels: int64 [n]; each class at least twice.
        n_classes: Labels are in [0, n_classes).
        seed: Of the folds.
        groups: int64 [n]; near-duplicates have equal numbers, and stay in one fold.
    """
    x, y = features.float().numpy(), labels.numpy()
    groups = np.arange(len(y)) if groups is None else groups
    if len(y) > MAX_IMAGES:
        chosen = _stratified_part(y, MAX_IMAGES / len(y), np.random.default_rng(seed))
        x, y, groups = x[chosen], y[chosen], groups[chosen]
    n_folds = min(_FOLDS, min(len(np.unique(groups[y == label])) for label in np.unique(y)))
    accuracy = float("nan")
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=200)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a ranking needs no last digit
        if n_folds >= 2:
            held_out = grouped_folds(y, groups, n_folds, seed)
            every = np.arange(len(y))
            folds = [(np.setdiff1d(every, part), part) for part in held_out]
            accuracy = float(np.mean(cross_val_predict(model, x, y, cv=folds) == y))
        return Probe(accuracy, _as_head(model.fit(x, y), x.shape[1], n_classes))


def fit_head(features: Tensor, labels: Tensor, n_classes: int) -> Weights:
    """Fit the linear head of a probe alone: `weight` [classes, feature_size], `bias` [classes]."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=200)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.float().numpy(), labels.numpy())
    return _as_head(model, features.shape[1], n_classes)


def _stratified_part(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose a share of each class's images, and of a rare class enough for every fold."""
    chosen = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(_FOLDS, round(share * len(rows)))])
    return np.sort(np.concatenate(chosen))


def _as_head(model: Pipeline, feature_size: int, n_classes: int) -> Weights:
    """Fold the standardisation into the weights, and give absent classes a low score."""
    scaler, regression = (step for _, step in model.steps)
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if len(regression.classes_) == 2:  # scikit-learn gives one row for two classes
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.stack([-bias[0], bias[0]]) / 2
    full_weight = torch.zeros(n_classes, feature_size)
    full_bias = torch.full((n_classes,), float(bias.min()) - 10.0)
    present = torch.from_numpy(regression.classes_)
    full_weight[present] = torch.from_numpy(weight).float()
    full_bias[present] = torch.from_numpy(bias).float()
    return {"weight": full_weight, "bias": full_bias}
