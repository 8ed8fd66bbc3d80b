import numpy as np
import pytest

from search.pipeline.retraining.kfold import Fold
from search.pipeline.retraining.out_of_fold import expected_discordance


def folds(rows: list[list[int]], predicted: dict[int, int]) -> list[Fold]:
    """Return folds of the rows, whose logits are highest for the predicted classes."""
    return [
        Fold(
            np.array(fold),
            np.eye(3, dtype=np.float32)[[predicted[row] for row in fold]],
            np.zeros(len(fold)),
            0.0,
            {},
            {},  # type: ignore[arg-type]
            1.0,
            "here",
        )
        for fold in rows
    ]


def test_images_that_one_model_alone_predicts_correctly_are_counted() -> None:
    labels = np.array([0, 9, 1, 2, 0, 1])  # row 1 is in no fold
    one = folds([[4, 0, 3], [5, 2]], {0: 0, 2: 1, 3: 2, 4: 1, 5: 0})
    # Row 2 is only the first's, row 4 only the other's; row 5 both get wrong, in two ways.
    other = folds([[4, 0, 3], [5, 2]], {0: 0, 2: 2, 3: 2, 4: 0, 5: 2})
    assert expected_discordance(one, other, labels) == pytest.approx(2.5 / 6)
    assert expected_discordance(one, one, labels) == pytest.approx(0.5 / 6)
    # The order of the rows is each model's own.
    assert expected_discordance(
        folds([[2, 5], [3, 0, 4]], {0: 0, 2: 2, 3: 2, 4: 0, 5: 2}), one, labels
    ) == pytest.approx(2.5 / 6)
