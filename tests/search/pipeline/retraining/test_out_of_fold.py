from typing import Any

import numpy as np
import pytest
import torch

from search.evaluation.calibration import scale_temperature
from search.evaluation.predictions import Predictions
from search.pipeline.retraining.out_of_fold import (
    OutOfFold,
    average_out_of_fold,
    expected_discordance,
)

LABELS = np.array([0, 9, 1, 2, 0, 1])  # row 1 is in no fold


def predictions(predicted: dict[int, int], sure: float = 1.0) -> Predictions:
    """Return predictions of rows, by the probability `sure`."""
    rows = np.array(sorted(predicted))
    one_hot = np.eye(3)[[predicted[row] for row in rows]]
    return Predictions(
        names=[f"{row}.png" for row in rows],
        table=torch.zeros(6, 1, 1, 3),
        rows=rows,
        labels=LABELS[rows],
        probabilities=sure * one_hot + (1 - sure) / 3,
        classes=("a", "b", "c"),
    )


def test_images_that_one_model_alone_predicts_correctly_are_counted() -> None:
    one = predictions({0: 0, 2: 1, 3: 2, 4: 1, 5: 0})
    # Row 2 is only the first's, row 4 only the other's; row 5 both get wrong, in two ways.
    other = predictions({0: 0, 2: 2, 3: 2, 4: 0, 5: 2})
    assert expected_discordance(one, other) == pytest.approx(2.5 / 6)
    assert expected_discordance(one, one) == pytest.approx(0.5 / 6)
    # Images that one of them lacks do not count.
    assert expected_discordance(predictions({4: 0, 5: 2}), one) == pytest.approx(1.5 / 3)


def test_predictions_are_averaged_of_the_images_that_all_have() -> None:
    logits: Any = [np.eye(3)[[0, 1]], np.eye(3)[[2, 0]]]
    scaling = scale_temperature(logits, [np.array([0, 1]), np.array([2, 0])])
    one = OutOfFold(predictions({0: 0, 2: 1, 3: 2, 4: 1}), scaling)
    other = OutOfFold(predictions({2: 2, 3: 2, 4: 0, 5: 2}, sure=0.4), scaling)
    both = average_out_of_fold([one, other], [0.75, 0.25]).predictions
    assert both.rows.tolist() == [2, 3, 4]
    assert list(both.names) == ["2.png", "3.png", "4.png"]
    assert both.labels.tolist() == [1, 2, 0]
    np.testing.assert_allclose(both.probabilities[0], [0.05, 0.8, 0.15])
    np.testing.assert_allclose(both.probabilities.sum(1), 1)
    alone = average_out_of_fold([one], [1.0]).predictions
    np.testing.assert_array_equal(alone.probabilities, one.predictions.probabilities)
