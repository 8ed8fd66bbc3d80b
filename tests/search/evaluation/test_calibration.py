import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from search.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    measure_calibration,
    reliability_bins,
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
