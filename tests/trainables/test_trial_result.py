import math
from dataclasses import asdict, fields, replace

import pytest

from trainables.trial_result import EpochResult, TrialResult


def test_a_result_survives_its_way_to_the_driver():
    result = TrialResult(epoch=3, val_accuracy=0.9, best_epoch=2, node="10.0.0.7", train_loss=0.1)
    values = {**result.as_dict(), "pid": 7, "trial_id": "a"}  # Tune adds its own
    again = TrialResult.from_dict(values)
    assert (again.epoch, again.val_accuracy, again.best_epoch) == (3, 0.9, 2)
    assert str(asdict(again)) == str(asdict(result)), "NaN included"


@pytest.mark.parametrize(
    ("result", "done"),
    [
        (TrialResult(epoch=1), False),
        (TrialResult(epoch=8, finished=True), True),
        (TrialResult(failure="out of memory"), True),
        (TrialResult(disk_full="no space left for checkpoints"), False),
    ],
)
def test_tune_ends_a_trial_that_finished_or_failed(result: TrialResult, done: bool):
    assert result.as_dict()["done"] is done


def test_it_has_all_of_an_epochs_fields():
    assert {f.name for f in fields(EpochResult)} < {f.name for f in fields(TrialResult)}
    assert math.isnan(TrialResult.from_dict({}).val_accuracy)


def test_the_score_is_followed_by_the_loss():
    low = EpochResult(val_score=0.8, val_accuracy=0.95, val_loss=0.5)
    assert replace(low, val_loss=0.4).score > low.score
    assert not replace(low, val_loss=0.6).score > low.score
    assert not replace(low).score > low.score
    assert replace(low, val_score=0.9, val_accuracy=0.9, val_loss=0.9).score > low.score
