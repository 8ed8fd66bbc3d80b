import numpy as np
import pytest

from search.pipeline.retraining.ensemble_selection import (
    MIN_WEIGHT,
    cross_fit,
    mix,
    select_weights,
)
from spaces.rules import Metric

N = 400


def predicted(seed: int, noise: float, labels: np.ndarray) -> np.ndarray:
    """Return calibrated-looking probabilities with independent mistakes: [n, 3]."""
    rng = np.random.default_rng(seed)
    logits = 2.0 * np.eye(3)[labels] + noise * rng.normal(size=(len(labels), 3))
    exponentials = np.exp(logits)
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(3, size=N)


FOLD_OF = np.arange(N) % 5


def test_two_models_of_independent_mistakes_are_better_than_either(labels: np.ndarray) -> None:
    both = np.stack([predicted(1, 1.0, labels), predicted(2, 1.0, labels)])
    found = cross_fit(both, labels, FOLD_OF, 0, "accuracy")
    assert found.enabled
    assert found.log_loss < found.log_loss_baseline - 3 * found.log_loss_gain_se
    assert found.score > found.score_baseline
    assert found.weights == pytest.approx([0.5, 0.5], abs=0.2)
    assert found.weights.sum() == pytest.approx(1)


def test_a_copy_and_a_worse_model_gain_nothing(labels: np.ndarray) -> None:
    best = predicted(1, 0.5, labels)
    guess = np.full_like(best, 1 / 3)
    found = cross_fit(np.stack([best, best, guess]), labels, FOLD_OF, 0, "accuracy")
    assert found.weights.tolist() == [1, 0, 0]
    assert not found.enabled
    assert found.log_loss == found.log_loss_baseline


def test_selected_weights_have_a_lower_loss_than_any_one_model(labels: np.ndarray) -> None:
    models = np.stack([predicted(seed, noise, labels) for seed, noise in enumerate((0.8, 1, 1.2))])
    weights = select_weights(models, labels)
    rows = np.arange(N)
    losses = [-np.log(one[rows, labels]).mean() for one in (mix(models, weights), *models)]
    assert min(losses) == losses[0]
    assert weights[0] == weights.max(), "the best model weighs most"
    assert weights.sum() == pytest.approx(1)


def test_the_weights_of_a_fold_do_not_see_its_images(labels: np.ndarray) -> None:
    """A model that is better only on fold 0 is selected by no other fold."""
    usual = predicted(1, 0.5, labels)
    only = usual.copy()
    only[FOLD_OF == 0] = np.eye(3)[labels[FOLD_OF == 0]] * 0.98 + 0.01
    seen = select_weights(np.stack([usual, only]), labels)
    assert seen.tolist() == [0, 1]
    found = cross_fit(np.stack([usual, only]), labels, FOLD_OF, 0, "accuracy")
    assert found.weights.tolist() == [0, 1]
    assert found.log_loss == pytest.approx(found.log_loss_baseline)
    assert not found.enabled


def test_near_duplicates_widen_the_standard_error(labels: np.ndarray) -> None:
    both = np.stack([predicted(1, 1.0, labels), predicted(2, 1.0, labels)])
    twice = both.repeat(2, axis=1)
    single = cross_fit(both, labels, FOLD_OF, 0, "accuracy")
    doubled = cross_fit(
        twice, labels.repeat(2), FOLD_OF.repeat(2), 0, "accuracy", np.arange(N).repeat(2)
    )
    assert doubled.log_loss_gain_se == pytest.approx(single.log_loss_gain_se, rel=1e-6)


@pytest.mark.parametrize(("metric", "n_lost"), [("accuracy", 1), ("accuracy", 40), ("macro_f1", 1)])
def test_an_ensemble_that_is_clearly_worse_by_the_metric_is_not_kept(
    metric: Metric, n_lost: int, labels: np.ndarray
) -> None:
    """The best by score is sure of its mistakes; the other has a few more, and is not sure."""
    best = 0.98 * np.eye(3)[labels] + 0.02 / 3
    best[:20] = 0.999 * np.eye(3)[(labels[:20] + 1) % 3] + 0.001 / 3
    other = 0.6 * np.eye(3)[labels] + 0.4 / 3
    other[: 20 + n_lost] = 0.2 * np.eye(3)[(labels[: 20 + n_lost] + 1) % 3] + 0.8 / 3
    found = cross_fit(np.stack([best, other]), labels, FOLD_OF, 0, metric)
    assert found.log_loss < found.log_loss_baseline - 2 * found.log_loss_gain_se
    lost = found.score_baseline - found.score
    assert found.enabled == (lost <= found.score_gain_se)
    if metric == "accuracy":
        assert found.enabled == (lost < 0.01)


def test_a_model_of_little_weight_is_left_out(labels: np.ndarray) -> None:
    models = np.stack([predicted(seed, noise, labels) for seed, noise in enumerate((0.9, 1, 6))])
    weights = select_weights(models, labels)
    assert weights[2] == 0
    assert weights.sum() == pytest.approx(1)
    assert min(weights[:2]) >= MIN_WEIGHT
    many = np.stack([models[0]] * 40)
    assert select_weights(many, labels).sum() == pytest.approx(1)
