"""What happens to the file of a study loses nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.trial import TrialState

from search.runs import journal
from search.runs.journal import Journal, StudyStorage
from trainables import atomic_write

DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "not a journal": lambda path: path.write_bytes(b"SQLite format 3\0" * 500),
    "torn": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 9),
}


@pytest.fixture
def study(tmp_path: Path, warnings: list[str]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(Journal(tmp_path / "study.journal", warnings.append))
    return optuna.create_study(storage=storage, direction="maximize")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(atomic_write, "_TRY_EVERY_SECONDS", 0.01)
    return []


def values(path: Path) -> list[float | None]:
    """Return the values of the trials that a new process reads from a journal."""
    storage = JournalStorage(Journal(path))
    (name,) = optuna.get_all_study_names(storage)
    return [trial.value for trial in optuna.load_study(study_name=name, storage=storage).trials]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_written_again_as_it_was(tmp_path, study, warnings, damage):
    path = tmp_path / "study.journal"
    study.tell(study.ask(), 0.1)
    damage(path)
    study.tell(study.ask(), 0.2)
    assert values(path) == [0.1, 0.2]
    assert len(warnings) == 1
    assert warnings[0].endswith(" by another program; it is written again as it was")


def test_lines_of_another_process_stay(tmp_path, study, warnings):
    other = JournalStorage(Journal(tmp_path / "study.journal"))
    other.set_study_user_attr(0, "note", "a dashboard's")
    study.tell(study.ask(), 0.1)
    assert study.user_attrs == {"note": "a dashboard's"}
    assert values(tmp_path / "study.journal") == [0.1]
    assert warnings == []


def test_what_holds_the_file_is_waited_for(tmp_path, study, warnings, monkeypatch):
    path, n_held = tmp_path / "study.journal", [3]
    fsync = os.fsync

    def held(file: int) -> None:
        """The line is in the file, or a part of it, but the writer cannot know."""
        if n_held[0]:
            n_held[0] -= 1
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        fsync(file)

    monkeypatch.setattr(os, "fsync", held)
    study.tell(study.ask(), 0.1)
    assert values(path) == [0.1]
    assert warnings[0] == (
        f"{path} cannot be written (Device or resource busy): the search waits up to 5 minutes, and"
        " keeps what is to be written"
    )
    assert warnings[-1] == f"{path} can be written again"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_waiting_has_an_end(study, warnings, monkeypatch, number):
    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(atomic_write, "MAX_WAIT_SECONDS", 0.05)
    with pytest.raises(OSError, match=os.strerror(number)):
        study.ask()
    assert len(warnings) == (number == errno.EACCES)


def test_several_logs_wait_for_the_disk_once(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "other.journal")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with journal.synced_once():
        for n in range(3):
            journal.append_logs([{"n": n}])
            # A process that is killed here has lost none.
            assert len((tmp_path / "other.journal").read_bytes().splitlines()) == n + 1
    assert synced == [(tmp_path / "other.journal").stat().st_size]
    with journal.synced_once():
        pass
    assert len(synced) == 1
    journal.append_logs([{"n": 3}])
    assert len(synced) == 2


def test_a_bounded_storage_returns_the_best_and_the_latest_trials_and_those_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_TRIALS_SEEN", 8)
    monkeypatch.setattr(journal, "N_BEST_SEEN", 3)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = StudyStorage(Journal(tmp_path / "study.journal"))
    study = optuna.create_study(storage=storage, direction="maximize")
    trials = [study.ask() for _ in range(20)]
    for trial in trials[:8]:
        study.tell(trial, float(trial.number % 5))
    for trial in trials[9:18]:
        study.tell(trial, state=TrialState.PRUNED)

    def numbers(*states: TrialState) -> list[int]:
        found = storage.get_all_trials(0, deepcopy=False, states=states or None)
        return [trial.number for trial in found]

    everything = list(range(20))
    assert numbers() == everything
    with storage.bounded():
        assert numbers() == [2, 3, 4, 8, 15, 16, 17, 18, 19], "8 and 18 run, too"
        assert numbers(TrialState.COMPLETE) == [2, 3, 4]
        assert numbers(TrialState.COMPLETE, TrialState.PRUNED) == [2, 3, 4, 15, 16, 17]
        with ThreadPoolExecutor(1) as tracker:  # it finds a trial by its place
            assert tracker.submit(numbers).result() == everything
    assert numbers() == everything
