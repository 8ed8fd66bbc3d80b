import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from trainables.grouped_kfold import grouped_folds
from trainables.models import linear_probe
from trainables.models.classifier import Weights
from trainables.models.linear_probe import fit_head, fit_probe


def clouds(
    counts: tuple[int, ...], spread: float = 1.0, n_features: int = 12, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw a cloud of features a class, each feature on a scale and around a mean of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(len(counts), n_features, generator=generator)
    noise = torch.randn(len(labels), n_features, generator=generator) * spread
    scale = torch.logspace(-1, 1, n_features)
    return (centres[labels] + noise) * scale + 5 * scale.flip(0), labels


def fitted(features: Tensor, labels: Tensor) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=200))
    return model.fit(features.numpy(), labels.numpy())


def probabilities(head: Weights, features: Tensor) -> np.ndarray:
    logits = features @ head["weight"].T + head["bias"]
    return torch.softmax(logits.double(), 1).numpy()


@pytest.mark.parametrize("counts", [(40, 30), (30, 20, 25), (20, 20, 20, 20)])
def test_the_head_equals_the_standardised_regression(counts):
    features, labels = clouds(counts)
    head = fit_probe(features, labels, len(counts), seed=0).head
    assert head["weight"].shape == (len(counts), 12)
    assert head["bias"].shape == (len(counts),)
    assert head["weight"].dtype == head["bias"].dtype == torch.float32
    expected = fitted(features, labels).predict_proba(features.numpy())
    np.testing.assert_allclose(probabilities(head, features), expected, atol=1e-4)


def test_fit_head_equals_the_head_of_fit_probe():
    features, labels = clouds((20, 30, 25))
    head, other = fit_head(features, labels, 3), fit_probe(features, labels, 3, seed=4).head
    assert torch.equal(head["weight"], other["weight"])
    assert torch.equal(head["bias"], other["bias"])


def test_accuracy_is_cross_validated():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 120, generator=generator)
    labels = torch.arange(60) % 3
    seen = fitted(noise, labels).score(noise.numpy(), labels.numpy())
    assert seen > 0.9, "the test needs a probe that fits noise"
    assert fit_probe(noise, labels, 3, seed=0).accuracy < 0.6
    separate, labels = clouds((30, 30, 30), spread=0.1)
    assert fit_probe(separate, labels, 3, seed=0).accuracy == 1.0


def test_folds_depend_on_the_seed():
    features, labels = clouds((40, 40, 40), spread=2.5)
    accuracies = [fit_probe(features, labels, 3, seed).accuracy for seed in (0, 0, 1, 2, 3)]
    assert accuracies[0] == accuracies[1]
    assert len(set(accuracies)) > 1


def test_fit_probe_accepts_bfloat16_features():
    features, labels = clouds((20, 20))
    half = features.to(torch.bfloat16)
    made = fit_probe(half, labels, 2, seed=0)
    np.testing.assert_allclose(
        probabilities(made.head, half.float()),
        fitted(half.float(), labels).predict_proba(half.float().numpy()),
        atol=1e-4,
    )


@pytest.mark.parametrize("present", [(0, 2), (1, 2, 4)])
def test_a_class_without_images_is_never_predicted(present):
    features, labels = clouds((15,) * len(present))
    features = (features - features.mean(0)) / features.std(0)
    labels = torch.tensor(present)[labels]
    head = fit_head(features, labels, 5)
    predicted = probabilities(head, features)
    absent = [c for c in range(5) if c not in present]
    assert predicted.shape == (len(features), 5)
    assert predicted[:, absent].max() < 1e-3
    assert np.isfinite(predicted).all()
    assert (head["weight"][absent] == 0).all()
    expected = fitted(features, labels).predict_proba(features.numpy())
    kept = predicted[:, list(present)]
    np.testing.assert_allclose(kept / kept.sum(1, keepdims=True), expected, atol=1e-4)


def test_a_class_of_two_images_is_cross_validated_in_two_folds():
    features, labels = clouds((20, 2), spread=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of folds that lack a class
        accuracy = fit_probe(features, labels, 2, seed=0).accuracy
    assert 0.9 <= accuracy <= 1.0


def test_accuracy_is_nan_for_a_class_of_one_image():
    made = fit_probe(*clouds((20, 1)), 2, seed=0)
    assert math.isnan(made.accuracy)
    assert made.head["weight"].isfinite().all()


def test_a_constant_feature_has_no_weight():
    features, labels = clouds((20, 20))
    features[:, 3] = 7.0
    made = fit_probe(features, labels, 2, seed=0)
    assert made.head["weight"].isfinite().all()
    assert made.head["weight"][:, 3].abs().max() < 1e-6


def test_a_regression_that_has_not_converged_does_not_warn(monkeypatch):
    features, labels = clouds((30, 30, 30), spread=2.0)

    class Impatient(LogisticRegression):
        def __init__(self, C: float = 1.0, max_iter: int = 1) -> None:  # noqa: N803
            super().__init__(C=C, max_iter=1)

    with pytest.warns(ConvergenceWarning):
        Impatient().fit(features.numpy(), labels.numpy())
    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Impatient)
    fit_probe(features, labels, 3, seed=0)
    fit_head(features, labels, 3)


def test_a_stratified_subset_of_many_images_is_used(monkeypatch):
    """A rare class must not vanish, or the accuracy would be NaN."""
    sizes = []

    def watched(y: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> list[np.ndarray]:
        sizes.append(np.bincount(y).tolist())
        return grouped_folds(y, groups, n_folds, seed)

    monkeypatch.setattr(linear_probe, "grouped_folds", watched)
    features, labels = clouds((800, 395, 5), spread=0.3)
    first, again = (fit_probe(features, labels, 3, seed=1, max_images=120) for _ in range(2))
    assert sizes[0] == sizes[1]
    n_first, n_second, n_rare = sizes[0]
    assert n_first == pytest.approx(80, abs=6)
    assert n_second == pytest.approx(40, abs=6)
    assert n_rare == 5
    assert torch.equal(first.head["weight"], again.head["weight"])


def test_the_head_is_of_the_training_images_and_the_accuracy_of_all() -> None:
    features, labels = clouds((40, 40, 40), spread=1.5)
    is_train = np.arange(120) % 4 != 0
    made = fit_probe(features, labels, 3, seed=0, is_train=is_train)
    alone = fit_head(features[is_train], labels[is_train], 3)
    assert torch.equal(made.head["weight"], alone["weight"])
    predicted = (features @ alone["weight"].T + alone["bias"]).argmax(1)
    expected = float((predicted == labels)[~is_train].float().mean())
    assert made.val_accuracy == pytest.approx(expected)
    assert made.accuracy == fit_probe(features, labels, 3, seed=0).accuracy
    assert made.logits.shape == (120, 3)
    assert (made.logits.argmax(1) == labels.numpy()).mean() == made.accuracy
    assert 0.5 < made.accuracy < 1.0, "images that are all predicted alike would show nothing"


def test_without_validation_images_their_accuracy_is_unknown() -> None:
    assert math.isnan(fit_probe(*clouds((20, 20)), 2, seed=0).val_accuracy)


def test_each_images_logits_are_of_the_fold_that_left_it_out() -> None:
    features, labels = clouds((30, 30, 30), spread=1.5)
    made = fit_probe(features, labels, 3, seed=2)
    part = grouped_folds(labels.numpy(), np.arange(90), 5, 2)[0]
    others = np.setdiff1d(np.arange(90), part)
    head = fit_head(features[others], labels[others], 3)
    expected = features[part] @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(made.logits[part], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_subset_with_rare_classes_is_larger_and_all_of_it_is_probed():
    """A ranking pairs the logits of all backbones with the labels of the subset."""
    counts = (400, *[6] * 20)
    features, labels = clouds(counts, spread=0.3)
    chosen = linear_probe.stratified_subset(labels.numpy(), 100, seed=0)
    assert len(chosen) == round(100 / 520 * 400) + 5 * 20
    made = fit_probe(features[chosen], labels[chosen], len(counts), seed=0)
    assert len(made.logits) == len(chosen)
    assert made.accuracy == np.mean(made.logits.argmax(1) == labels[chosen].numpy())
    smaller = fit_probe(features[chosen], labels[chosen], len(counts), seed=0, max_images=100)
    assert len(smaller.logits) < len(chosen)
