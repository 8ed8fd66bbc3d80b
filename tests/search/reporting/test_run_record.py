"""What is read back from a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.reporting.run_record import Epoch, Record, read_record
from search.runs.run_folder import RunFolder
from search.runs.summary import BestModel
from search.runs.tables import ABLATION_COLUMNS, CURVE_COLUMNS, FOLD_COLUMNS, write_csv
from tests.fixtures.handmade_run import CLASSES, DISTRIBUTIONS, make_run, remove, set_sections


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", n_trials=6)


def read(run: Path) -> Record:
    return read_record(RunFolder.open(run))


def test_trials_have_their_states_curves_and_reasons(run: Path) -> None:
    trials = read(run).trials
    assert [(trial.number, trial.state, len(trial.curve)) for trial in trials] == [
        (0, "complete", 6),
        (1, "complete", 6),
        (2, "complete", 6),
        (3, "pruned", 2),
        (4, "failed", 0),
        (5, "unfinished", 1),
    ]
    complete, failed = trials[1], trials[4]
    assert complete.curve[1] == Epoch(
        2, train_loss=0.5, train_accuracy=0.9, val_loss=1.0, val_accuracy=pytest.approx(0.94 / 3)
    )
    assert (complete.best_epoch, complete.accuracy) == (6, pytest.approx(0.94))
    assert (complete.seconds, complete.reason) == (3.0, "")
    assert set(complete.params) == set(DISTRIBUTIONS)
    assert (failed.accuracy, failed.best_epoch, failed.seconds) == (None, None, None)
    assert failed.reason == "TrainingError: the loss is <nan>"


def test_trials_that_only_wait_are_left_out_but_tell_their_ranges(run: Path) -> None:
    record = read(run)
    assert record.study is not None
    record.study.enqueue_trial({"lr": 0.1})
    again = read(run)
    assert len(again.trials) == 6
    assert again.distributions == DISTRIBUTIONS


@pytest.mark.parametrize(("number", "expected"), [(2, 2), (None, None), (77, None)])
def test_the_best_trial_is_the_one_the_model_comes_from(
    run: Path, number: int | None, expected: int | None
) -> None:
    best = BestModel(trial=number, name="", config={}, val_accuracy=0.9, epoch=3)
    set_sections(run, best=best)
    found = read(run).best_trial
    assert (None if found is None else found.number) == expected


def test_folds_of_a_linear_probe_have_no_trial(run: Path) -> None:
    rows = [
        (trial, fold, 0.9 + fold / 100, 5, 1.0, "")
        for trial in (3, "linear probe of cnn")
        for fold in (1, 2)
    ]
    write_csv(run / "folds" / "folds.csv", FOLD_COLUMNS, rows)
    assert read(run).folds == {"3": (0.91, 0.92), "linear probe of cnn": (0.91, 0.92)}


def test_images_are_counted_by_class_and_split(run: Path) -> None:
    counts = read(run).class_counts
    assert list(counts) == list(CLASSES)
    # Of images 0, 4, 8 and so on, every third is of one split.
    assert counts["cat"] == {"train": 17, "val": 17, "test": 16}


def test_steps_of_the_ablation_have_their_curves_in_order(run: Path) -> None:
    curve = [(1, 0.5, 0.7, 0.6, 0.8, 0.0), (2, 0.4, 0.8, 0.5, 0.9, 0.0)]
    values = [dict(zip(CURVE_COLUMNS, epoch, strict=True)) for epoch in curve]
    rows = [
        ["plain CNN" if column == "name" else epoch.get(column) for column in ABLATION_COLUMNS]
        for epoch in values
    ]
    write_csv(run / "ablation.csv", ABLATION_COLUMNS, rows)
    assert read(run).ablation == {
        "plain CNN": (Epoch(1, 0.5, 0.7, 0.6, 0.8), Epoch(2, 0.4, 0.8, 0.5, 0.9))
    }


def test_a_run_that_was_killed_at_once_is_a_record_without_results(run: Path) -> None:
    for name in ("study.journal", "trials", "folds", "split.csv", "summary.json", "audit.csv"):
        remove(run, name)
    for name in ("test_predictions.csv", "external_predictions.csv"):
        remove(run, name)
    record = read(run)
    assert record.study is None
    assert (record.trials, record.folds, record.class_counts) == ((), {}, {})
    assert (record.test, record.external, record.audit, record.label_issues) == ((), (), (), ())
    assert (record.distributions, record.best_trial, record.ablation) == ({}, None, {})
    assert record.space_source == "SPACE = '<i>'\n"
