import numpy as np

from search.evaluation.comparison import compare
from search.reporting.evidence import (
    describe_calibration,
    describe_center_crop,
    describe_gain,
    describe_issues,
    evidence_rows,
)

SUMMARY = {
    "best": {"trial": 5},
    "comparison": compare(
        np.zeros(100, np.int64), np.repeat([0, 1], [94, 6]), np.repeat([0, 1], [84, 16])
    ).as_json(),
    "calibration": {
        "temperature": 1.5,
        "test": {"n": 100, "before": {"ece": 0.05}, "after": {"ece": 0.0123}},
    },
    "label_issues": {"n": 1, "share": 0.01, "pairs": []},
}


def test_a_gain_is_told_with_its_interval() -> None:
    assert describe_gain(SUMMARY) == (
        "+10.0 points (95 % +4.5 to +16.5, 10 images won, 0 lost, p = 0.002): better beyond chance"
    )


def test_a_search_whose_first_trial_won_gained_nothing() -> None:
    assert describe_gain({"best": {"trial": 0}}) == "none: the first trial's recipe won the folds"


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert describe_gain({}) is None
    assert describe_gain({"best": {"trial": None}}) is None
    assert describe_calibration({}) is None
    assert describe_calibration({"calibration": {"temperature": 1.2}}) is None
    assert describe_issues({}) is None
    assert describe_center_crop({}) is None
    assert describe_center_crop({"kfold": {"center_crop": None}}) is None
    assert evidence_rows({}, "file") == []


def test_the_closing_lines() -> None:
    rows = dict(evidence_rows(SUMMARY, "folds/label_issues.csv"))
    assert list(rows) == ["over trial 0", "calibration", "labels"]
    assert rows["calibration"] == (
        "probabilities are off by 0.0123 on average (0.0500 before the temperature 1.50)"
    )
    assert rows["labels"] == "1 label looks wrong: see folds/label_issues.csv"
    second = {
        "kept": True,
        "log_loss": 0.04,
        "log_loss_baseline": 0.05,
        "accuracy_mean": 0.99,
        "accuracy_mean_without": 0.98,
    }
    rows = dict(evidence_rows({"kfold": {"center_crop": second}}, "file"))
    assert rows == {
        "looks twice": "yes: folds 0.9900 instead of 0.9800, log loss 0.040 instead of 0.050"
    }
    rows = dict(evidence_rows({"kfold": {"center_crop": {**second, "kept": False}}}, "file"))
    assert rows["looks twice"].startswith("no: folds would be 0.9900")
    none_found = {"label_issues": {"n": 0, "share": 0.0, "pairs": []}}
    assert evidence_rows(none_found, "file") == [("labels", "no label looks wrong")]
