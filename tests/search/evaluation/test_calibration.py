import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from search.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    measure_calibration,
    reliability_bins,
    scale_temperature,
)
from search.runs.summary import ReliabilityBin


def drawn(n: int, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels from the probabilities of some logits; return the logits times a factor."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, 4))
    probabilities = softmax(logits, axis=1)
    labels = np.array([rng.choice(4, p=row) for row in probabilities])
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_the_temperature_undoes_a_factor_of_the_logits(scale: float) -> None:
    logits, labels = drawn(4000, scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.08)


def test_no_other_temperature_has_a_lower_log_loss() -> None:
    logits, labels = drawn(500, 2.0)
    fitted = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        return float(-log_softmax(logits / temperature, axis=1)[np.arange(500), labels].mean())

    assert loss(fitted) < loss(1.0)
    assert loss(fitted) == pytest.approx(min(loss(t) for t in np.geomspace(0.2, 10, 200)), abs=1e-3)


def test_perfect_accuracy_gives_no_certainty() -> None:
    """After 98 correct predictions the next may be wrong: about one in a hundred."""
    labels = np.arange(98) % 2
    temperature = fit_temperature(5.0 * np.eye(2)[labels], labels)
    confidence = softmax(5.0 * np.eye(2)[0] / temperature)[0]
    assert confidence == pytest.approx(0.99, abs=1e-3)


def test_calibration_error_is_the_mean_gap_weighted_by_bin() -> None:
    # Three of four in the bin from 0.9 are correct, where 0.95 would be; one in the bin from 0.5.
    confidences = [0.95, 0.95, 0.95, 0.95, 0.5]
    correct = [True, True, True, False, True]
    expected = 0.8 * abs(0.95 - 0.75) + 0.2 * abs(0.5 - 1.0)
    assert expected_calibration_error(confidences, correct) == pytest.approx(expected)
    assert reliability_bins(confidences, correct) == [
        ReliabilityBin(confidence=0.5, accuracy=1.0, n=1),
        ReliabilityBin(confidence=pytest.approx(0.95), accuracy=0.75, n=4),
    ]


def test_a_confident_and_correct_model_has_no_calibration_error() -> None:
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0


def test_dividing_by_the_temperature_calibrates() -> None:
    fit_on, check_on = drawn(2000, 4.0), drawn(2000, 4.0, seed=1)
    temperature = fit_temperature(*fit_on)
    logits, labels = check_on
    before = measure_calibration(labels, softmax(logits, axis=1))
    after = measure_calibration(labels, softmax(logits / temperature, axis=1))
    assert before.ece > 0.1
    assert after.ece < 0.03
    assert after.log_loss < before.log_loss
    assert sum(one.n for one in after.bins) == 2000


def by_fold(n: int, scale: float, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    logits, labels = drawn(n, scale, seed)
    return np.array_split(logits, 5), np.array_split(labels, 5)


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_a_temperature_that_helps_other_folds_is_applied(scale: float) -> None:
    scaling = scale_temperature(*by_fold(400, scale))
    assert scaling.applied
    assert scaling.temperature == scaling.fitted_temperature == pytest.approx(scale, rel=0.2)
    assert scaling.change.after.log_loss < scaling.change.before.log_loss
    assert scaling.scores().applied


def test_calibrated_predictions_are_left_as_they_are() -> None:
    scalings = [scale_temperature(*by_fold(400, 1.0, seed)) for seed in range(20)]
    unscaled = [one for one in scalings if not one.applied]
    assert len(unscaled) >= 17
    assert all(one.temperature == 1.0 for one in unscaled)
    assert all(one.fitted_temperature != 1.0 for one in unscaled)


def test_few_images_are_not_scaled() -> None:
    assert scale_temperature(*by_fold(30, 8.0)).applied
    tiny = scale_temperature(*by_fold(29, 8.0))
    assert not tiny.applied
    assert tiny.temperature == 1.0


def test_near_duplicates_count_as_one_image() -> None:
    logits, labels = by_fold(400, 4.0)
    copies = [np.repeat(one, 3, axis=0) for one in logits], [np.repeat(one, 3) for one in labels]
    groups = np.array_split(np.repeat(np.arange(400), 3), 5)
    once, in_groups = scale_temperature(logits, labels), scale_temperature(*copies, groups)
    assert in_groups.log_loss_gain_se == pytest.approx(once.log_loss_gain_se, rel=0.02)
    alone = scale_temperature(*copies)
    assert alone.log_loss_gain_se == pytest.approx(once.log_loss_gain_se / 3**0.5, rel=0.02)


def test_the_change_is_measured_by_temperatures_of_the_other_folds() -> None:
    """A fold whose logits need another temperature than all others gets theirs."""
    logits, labels = by_fold(1000, 1.0)
    logits[0] = logits[0] * 5
    scaling = scale_temperature(logits, labels)
    of_others = fit_temperature(np.concatenate(logits[1:]), np.concatenate(labels[1:]))
    losses = [
        -log_softmax(logits[fold] / t, axis=1)[np.arange(200), labels[fold]]
        for fold, t in enumerate(
            [
                of_others,
                *(
                    fit_temperature(
                        np.concatenate(logits[:fold] + logits[fold + 1 :]),
                        np.concatenate(labels[:fold] + labels[fold + 1 :]),
                    )
                    for fold in range(1, 5)
                ),
            ]
        )
    ]
    after = np.concatenate(losses)
    before = -log_softmax(np.concatenate(logits), axis=1)[np.arange(1000), np.concatenate(labels)]
    assert scaling.change.after.log_loss == pytest.approx(after.mean())
    assert scaling.change.before.log_loss == pytest.approx(before.mean())
    assert scaling.log_loss_gain_se == pytest.approx((before - after).std(ddof=1) / 1000**0.5)


def test_a_single_fold_is_cross_fitted_by_halves() -> None:
    logits, labels = drawn(2000, 4.0)
    groups = np.arange(2000) // 2
    scaling = scale_temperature([logits], [labels], [groups])
    assert scaling.applied
    assert scaling.temperature == pytest.approx(4.0, rel=0.1)
