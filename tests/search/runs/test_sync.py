"""Copies of a run in storage."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from search.runs.run_folder import CHECKPOINT, ENVIRONMENT, LOCK, STUDY
from search.runs.storage import SharedFiles
from search.runs.sync import fetch, is_abandoned, synced


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in ("summary.json", "trials/0/progress.csv", f"trials/0/{CHECKPOINT}", "cache/x.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def never(text: str) -> None:
    raise AssertionError(text)


def test_a_run_is_copied_and_fetched(run: Path, tmp_path: Path) -> None:
    shared = SharedFiles(str(tmp_path / "storage"), "run")
    (run / STUDY).write_bytes(b'{"trial": 1}\n')
    with synced(run, shared, never, every_seconds=0.05):
        while not shared.has(STUDY):
            time.sleep(0.05)
        (run / STUDY).write_bytes(b'{"trial": 1}\n{"trial": 2}\n{"tri')
        (run / "summary.json").write_text("new")
    assert shared.names() == [STUDY, "summary.json", "trials/0/progress.csv"]
    fetch(shared, tmp_path / "again")
    assert (tmp_path / "again" / "summary.json").read_text() == "new"
    journal = (tmp_path / "again" / STUDY).read_bytes()
    assert journal == b'{"trial": 1}\n{"trial": 2}\n', "a line that is being written is not copied"


def test_a_run_that_failed_is_copied_too(run: Path, tmp_path: Path) -> None:
    shared = SharedFiles(str(tmp_path / "storage"), "run")
    with pytest.raises(KeyboardInterrupt), synced(run, shared, never):
        raise KeyboardInterrupt
    assert shared.has("summary.json")


def test_a_run_continues_when_storage_fails(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    warnings: list[str] = []
    shared = SharedFiles(str(tmp_path / "file"), "run")
    with synced(run, shared, warnings.append, every_seconds=0.02):
        time.sleep(0.2)
    assert len(warnings) == 1, "warned once"
    assert "the run's files cannot be copied to" in warnings[0]


def test_without_storage_nothing_is_done(run: Path) -> None:
    with synced(run, None, never):
        pass


@pytest.mark.parametrize("names", [[ENVIRONMENT], [ENVIRONMENT, LOCK]])
def test_a_copy_without_a_heartbeat_is_not_abandoned(tmp_path: Path, names: list[str]) -> None:
    """Where the file system of a run cannot lock, the run may go on in silence."""
    copy = tmp_path / "storage" / "mine"
    copy.mkdir(parents=True)
    for name in names:
        (copy / name).touch()
        os.utime(copy / name, (1e9, 1e9))
    shared = SharedFiles(str(tmp_path / "storage"), "mine")
    assert is_abandoned(shared, tmp_path / "elsewhere") == (LOCK in names)
