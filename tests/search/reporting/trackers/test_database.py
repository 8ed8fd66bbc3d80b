"""The studies of several runs in one database."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search.api.options import request_of
from search.pipeline.request import RequestError
from search.reporting.trackers.database import (
    DatabaseError,
    StudyCopy,
    check_database,
    check_study_name,
)
from tests.fixtures.tracked_search import HandDrivenSearch, four_trials


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


def begin(search: HandDrivenSearch, url: str) -> StudyCopy:
    copy = StudyCopy(url)
    copy.begin(search.tracked)
    return copy


def update(copy: StudyCopy, search: HandDrivenSearch) -> None:
    for trial in search.tracked.begun_trials():
        copy.update(search.tracked.trial(trial.number))


def assert_equal(url: str, search: HandDrivenSearch) -> None:
    copied = optuna.load_study(study_name=search.path.name, storage=url)
    assert copied.metric_names == ["validation accuracy"]
    assert [trial.number for trial in copied.trials] == [t.number for t in search.study.trials]
    for one, other in zip(copied.trials, search.study.trials, strict=True):
        assert (one.state, one.values, one.params) == (other.state, other.values, other.params)
        assert one.intermediate_values == other.intermediate_values
        assert one.user_attrs == other.user_attrs


def test_a_copy_follows_the_study_live_and_when_it_is_resumed(tmp_path: Path, url: str) -> None:
    search = HandDrivenSearch(tmp_path / "run")
    copy = begin(search, url)
    number = search.begin()
    update(copy, search)
    search.epoch(number, 1)
    update(copy, search)
    assert_equal(url, search)
    four_trials(search)
    copy.update(search.tracked.trial(4))
    assert_equal(url, search)
    resumed = HandDrivenSearch(tmp_path / "run")
    again = begin(resumed, url)
    resumed.epoch(4, 3)
    resumed.end(4, "pruned")
    resumed.end(0, "complete", 0.9)
    update(again, resumed)
    update(again, resumed)
    assert_equal(url, resumed)
    assert {trial.state for trial in resumed.study.trials} == {
        *(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    }


def test_runs_are_side_by_side_and_a_name_is_one_runs(tmp_path: Path, url: str) -> None:
    check_study_name(url, "one", "run 1")
    for name in ("one", "two"):
        search = HandDrivenSearch(tmp_path / name, run_id=f"run {name}")
        update(begin(search, url), search)
    assert sorted(optuna.get_all_study_names(url)) == ["one", "two"]
    check_study_name(url, "one", "run one")
    with pytest.raises(DatabaseError, match="has a study called 'one' that is another run's: give"):
        check_study_name(url, "one", "run 3")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/studies.db", "unable to open database file; check the URL"),
        ("oracle://user:secret@host/name", "needs a driver of that database: pip install"),
        ("nosuch://host/name", "cannot be used: .*nosuch"),
        ("studies", "must be the URL of a database, such as sqlite:///studies.db, but got 'st"),
        ("postgresql://host:x/name", "must be the URL of a database, such as sqlite:///stud"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_error(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as refused:
        check_database(url)
    assert "secret" not in str(refused.value)


def test_the_url_of_a_file_is_absolute_and_a_malformed_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert request_of(["--study", "sqlite:///s.db"]).study == f"sqlite:///{tmp_path}/s.db"
    server = "postgresql://me:secret@host/optuna"
    assert request_of(["--study", server]).study == server
    with pytest.raises(RequestError, match=r"study: must be the URL of a database, such as sqlite"):
        request_of(["--study", "studies.db"])
    with pytest.raises(RequestError, match=r"study: must be the URL of .* but got 'mysql://h:x/n'"):
        request_of(["--study", "mysql://h:x/n"])
