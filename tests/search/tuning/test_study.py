"""The study on disk, and what is read from it."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage

from search.runs.run_folder import STUDY
from search.runs.validation import FolderError
from search.tuning.searcher import StudySearcher
from search.tuning.study import (
    append_epoch,
    best_epoch,
    count_states,
    ended_trials,
    kept_scores,
    load_study,
    name_metric,
    open_storage,
    open_study,
    ranked_trials,
    trial_params,
    trial_table,
    write_trials,
)
from spaces.base import Space
from spaces.conditions import ByValue, When
from spaces.sources import folder
from tests.fixtures.trial_results import epoch_result, failure_result
from trainables.trial_result import TrialResult

SPACE = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(["tinynet", "cnn"]),
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "scheduler": "cosine",
    },
)


def searching(storage: BaseStorage, space: Space = SPACE) -> StudySearcher:
    return StudySearcher(storage, space, 99, "random", seed=0)


# On disk


def test_the_study_is_kept_in_the_run_folder(tmp_path: Path):
    study = open_study(open_storage(tmp_path))
    study.tell(study.ask(SPACE.distributions), 0.5)
    assert (tmp_path / "study.journal").is_file()
    again = open_study(open_storage(tmp_path))
    assert [trial.value for trial in again.trials] == [0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"], "no lock stays"


@pytest.mark.parametrize("torn", [b'{"op_code"', b"{}", b"\0" * 100, b'{"op_code\n', b"\0\0\n"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes):
    study = open_study(open_storage(tmp_path))
    study.tell(study.ask(SPACE.distributions), 0.5)
    path = tmp_path / STUDY
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    reader = load_study(tmp_path)
    assert reader is not None, "the report reads what is whole"
    assert [trial.value for trial in reader.trials] == [0.5]
    assert path.read_bytes() == whole + torn, "and changes nothing"
    storage = open_storage(tmp_path)
    assert path.read_bytes() == whole
    again = open_study(storage)
    again.tell(again.ask(SPACE.distributions), 0.6)
    assert [trial.value for trial in open_study(open_storage(tmp_path)).trials] == [0.5, 0.6]


KILLED = """
import os, sys
from pathlib import Path
from search.tuning.study import open_storage, open_study
from tests.search.tuning.test_study import SPACE

write = os.fsync
def killed(file):
    write(file)
    if os.path.getsize(Path(sys.argv[1]) / "study.journal") > 1500:
        os.kill(os.getpid(), 9)
os.fsync = killed
study = open_study(open_storage(Path(sys.argv[1])))
while True:
    study.tell(study.ask(SPACE.distributions), 0.5)
"""


@pytest.mark.filterwarnings("error")
def test_the_metric_has_a_name_in_the_dashboard(tmp_path: Path):
    storage = open_storage(tmp_path)
    study = open_study(storage)
    for _ in range(2):  # a resumed run names it again
        name_metric(study, "macro_f1")
    assert open_study(storage).metric_names == ["validation macro_f1"]
    losses = open_study(InMemoryStorage())
    name_metric(losses, "log_loss")
    assert losses.metric_names == ["negative validation log_loss"]


def test_a_process_killed_in_a_write_blocks_none_after_it(tmp_path: Path):
    """Optuna's own locks would make the next process wait for half a minute."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], timeout=60, check=False)
    assert done.returncode == -9
    study = open_study(open_storage(tmp_path))
    n_before = len(study.trials)
    assert n_before > 1
    study.ask(SPACE.distributions)
    assert len(study.trials) == n_before + 1


def test_a_reader_sees_what_another_process_has_written(tmp_path: Path):
    assert load_study(tmp_path) is None
    (tmp_path / STUDY).touch()
    assert load_study(tmp_path) is None, "killed before the study was created"
    writer = open_study(open_storage(tmp_path))
    reader = load_study(tmp_path)
    assert reader is not None
    writer.tell(writer.ask(SPACE.distributions), 0.5)
    assert [trial.value for trial in reader.trials] == [0.5]


def test_a_damaged_journal_is_an_error_that_names_it(tmp_path: Path):
    study = open_study(open_storage(tmp_path))
    study.tell(study.ask(SPACE.distributions), 0.5)
    path = tmp_path / STUDY
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, b"not JSON\n", *rest]))
    assert load_study(tmp_path) is None
    with pytest.raises(FolderError) as caught:
        open_storage(tmp_path)
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert "put a copy of it back" in str(caught.value)


# Learning curves


def epochs(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def test_each_epoch_is_appended_once(tmp_path: Path):
    path = tmp_path / "3" / "progress.csv"
    assert append_epoch(path, TrialResult(epoch=1))
    assert append_epoch(path, TrialResult(epoch=2, lr=1e-7, val_accuracy=1 / 3))
    assert not append_epoch(path, TrialResult(epoch=2))
    assert append_epoch(path, TrialResult(epoch=10))
    assert not append_epoch(path, TrialResult(epoch=1))
    assert epochs(path) == ["1", "2", "10"]
    with path.open(newline="", encoding="utf-8") as file:
        _, second, _ = csv.DictReader(file)
    assert (float(second["lr"]), float(second["val_accuracy"])) == (1e-7, 1 / 3)
    assert "node" not in second


def test_an_epoch_that_was_not_written_whole_is_written_again(tmp_path: Path):
    path = tmp_path / "progress.csv"
    results = [TrialResult(epoch=1, train_loss=0.5), TrialResult(epoch=2, train_loss=0.25)]
    for result in results:
        append_epoch(path, result)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for result in results:
            append_epoch(path, result)
        assert path.read_bytes() == whole


# Ranking and tables


Ended = Callable[..., int]


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


@pytest.fixture
def study(storage: BaseStorage) -> optuna.Study:
    return open_study(storage)


@pytest.fixture
def end(storage: BaseStorage) -> Ended:
    """End a trial at its second epoch; return its number."""
    searcher = searching(storage)

    def end(best: float, loss: float = 0.5, finished: bool = True, failed: bool = False) -> int:
        number: int = searcher.suggest("x")["number"]
        result = epoch_result(2, best, finished=finished, best_val_loss=loss, val_loss=loss)
        searcher.on_trial_result("x", result)
        searcher.on_trial_complete("x", failure_result("lost") if failed else result)
        return number

    return end


def test_complete_trials_are_ranked_by_accuracy_then_loss_then_age(study: optuna.Study, end: Ended):
    low, late, early = end(0.8, 0.1), end(0.9, 0.4), end(0.9, 0.3)
    same = end(0.9, 0.3)
    end(0.99, finished=False)
    end(1.0, failed=True)
    assert [t.number for t in ranked_trials(study)] == [early, same, late, low]


def test_pruned_trials_are_ranked_where_none_is_complete(study: optuna.Study, end: Ended):
    worse, better = end(0.5, finished=False), end(0.6, finished=False)
    assert [t.number for t in ranked_trials(study)] == [better, worse]
    assert trial_params(ranked_trials(study)[0], SPACE)["scheduler"] == "cosine"


def test_an_interrupted_trial_is_ranked_among_the_pruned(
    study: optuna.Study, storage: BaseStorage, end: Ended
):
    pruned = end(0.5, finished=False)
    searcher = searching(storage)
    number = searcher.suggest("a")["number"]
    for result in (
        epoch_result(1, 0.9),
        epoch_result(2, 0.9, best_epoch=1),
        epoch_result(3, 0.7, best=0.9, best_epoch=1),
    ):
        searcher.on_trial_result("a", result)
    first, second = ranked_trials(study)
    assert (first.number, second.number) == (number, pruned)
    assert (best_epoch(first).val_accuracy, best_epoch(first).epoch) == (0.9, 1)


def test_nothing_is_ranked_where_no_epoch_ended(study: optuna.Study, storage: BaseStorage):
    assert ranked_trials(study) == []
    searcher = searching(storage)
    searcher.suggest("a")
    searcher.on_trial_complete("a", failure_result("lost"))
    assert ranked_trials(study) == []


def test_scores_are_those_of_complete_trials(study: optuna.Study, end: Ended):
    first, second = end(0.8, 0.3), end(0.9, 0.2)
    end(0.99, finished=False)
    assert kept_scores(study) == {first: (0.8, -0.3), second: (0.9, -0.2)}


def test_ended_trials_have_their_results(study: optuna.Study, storage: BaseStorage, end: Ended):
    end(0.8)
    end(0.7, finished=False)
    end(0.9, failed=True)
    searching(storage).suggest("a")
    assert count_states(study) == {"complete": 1, "pruned": 1, "failed": 1}
    complete, pruned, failed = ended_trials(study)
    assert (complete[0], complete[2]) == (0, "complete")
    assert complete[1] == study.trials[0].params
    assert (complete[3].epoch, complete[3].best_val_accuracy) == (2, 0.8)
    assert (complete[3].trained_seconds, complete[3].failure) == (3.0, None)
    assert (pruned[2], pruned[3].best_val_accuracy, pruned[3].best_epoch) == ("pruned", 0.7, 2)
    assert (failed[2], failed[3].epoch, failed[3].failure) == ("failed", 2, "lost")


def test_trials_are_written_a_line_each(
    study: optuna.Study, storage: BaseStorage, end: Ended, tmp_path: Path
):
    end(0.8)
    end(0.7, finished=False)
    searcher = searching(storage)
    searcher.suggest("a")
    searcher.on_trial_complete("a", failure_result('too "large", by far'))
    searcher.suggest("b")
    searcher.on_trial_result("b", epoch_result(1, 0.6))
    write_trials(tmp_path / "trials.csv", study, SPACE)
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as file:
        full, stopped, failed, cut_off = csv.DictReader(file)
    expected = {
        "number": "0",
        "state": "complete",
        "best_val_accuracy": "0.8",
        "best_epoch": "2",
        "epochs": "1",
        "seconds": "3.0",
        "node": "10.0.0.7",
        "scheduler": "cosine",
        "reason": "",
    }
    assert full.items() >= expected.items()
    assert full["lr"] == str(study.trials[0].params["lr"])
    assert (stopped["state"], stopped["best_val_accuracy"]) == ("pruned", "0.7")
    assert (failed["state"], failed["reason"]) == ("failed", 'too "large", by far')
    assert (failed["best_val_accuracy"], failed["epochs"]) == ("", "0")
    assert (cut_off["state"], cut_off["best_val_accuracy"]) == ("unfinished", "0.6")


def test_a_parameter_that_a_trial_does_not_have_is_blank(storage: BaseStorage):
    params = {
        "backbone": CategoricalDistribution(["cnn", "resnet18"]),
        "hidden_units": When({"backbone": "cnn"}, CategoricalDistribution([8, 16])),
        "lr": ByValue("backbone", {"cnn": 0.1}, default=FloatDistribution(0.2, 0.3)),
    }
    cnn, resnet = {"backbone": "cnn", "hidden_units": 8}, {"backbone": "resnet18", "lr": 0.25}
    space = Space(source=folder(), params=params, first_trials=(cnn, resnet))
    searcher = searching(storage, space)
    for name in ("a", "b"):
        searcher.suggest(name)
    columns, rows = trial_table(open_study(storage), space)
    assert columns[-4:-1] == ("backbone", "hidden_units", "lr")
    assert [row[-4:-1] for row in rows] == [["cnn", 8, 0.1], ["resnet18", None, 0.25]]


def test_a_reason_is_no_formula_to_a_spreadsheet(
    study: optuna.Study, storage: BaseStorage, tmp_path: Path
):
    searcher = searching(storage)
    searcher.suggest("a")
    searcher.on_trial_complete("a", failure_result("=HYPERLINK(0)"))
    write_trials(tmp_path / "trials.csv", study, SPACE)
    assert (tmp_path / "trials.csv").read_text().endswith(",'=HYPERLINK(0)\n")
