"""A single command works on a run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search.api import run_lock as lock
from search.api.run_lock import locked
from search.runs.run_folder import LOCK
from search.runs.validation import FolderError


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(lock, "MAX_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.0)
    return []


def change(path: Path, **fields: Any) -> None:
    """Change fields of a lock."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def left_behind(folder: Path, **fields: Any) -> Path:
    """Leave a lock as a killed process does."""
    ends_at_once = f"""
import os
from pathlib import Path
from search.api.run_lock import locked
with locked(Path({str(folder)!r}), print):
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", ends_at_once], check=True, cwd=Path(__file__).parents[3])
    if fields:
        change(folder / LOCK, **fields)
    return folder / LOCK


def test_a_second_command_is_refused(tmp_path, warnings):
    with locked(tmp_path, warnings.append):
        owner = f"process {os.getpid()} on "
        with pytest.raises(
            FolderError, match=f"{tmp_path} is in use by {owner}.*: wait for its end"
        ):
            locked(tmp_path, warnings.append).__enter__()
        assert (tmp_path / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path, warnings.append):
        pass
    assert warnings == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, warnings):
    pid = json.loads(left_behind(tmp_path).read_text())["pid"]
    with locked(tmp_path, warnings.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert len(warnings) == 1
    assert warnings[0].startswith(f"process {pid} on ")
    assert warnings[0].endswith(" ended without releasing the run; its lock is taken over")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replace", [Path.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file_is_named(tmp_path, warnings, replace):
    replace(tmp_path / LOCK)
    with pytest.raises(FolderError) as caught:
        locked(tmp_path, warnings.append).__enter__()
    assert str(caught.value) == (
        f"{tmp_path / LOCK} is damaged: it must be a regular file; remove it"
    )
    assert warnings == []


def test_another_process_that_has_the_id_now_is_not_the_owner(tmp_path, warnings):
    left_behind(tmp_path, pid=os.getpid())
    with locked(tmp_path, warnings.append):
        pass
    assert "is taken over" in warnings[0]


def test_of_another_machine_the_heartbeat_tells(tmp_path, warnings):
    with locked(tmp_path, warnings.append):
        change(tmp_path / LOCK, machine=["other", "", ""], host="other")
        # Its owner writes heartbeats, with its own machine again.
        with pytest.raises(FolderError, match="is in use by process"):
            locked(tmp_path, warnings.append).__enter__()
    left_behind(tmp_path, machine=["other", "", ""], host="other")
    with locked(tmp_path, warnings.append):
        pass
    assert "waiting 0 s for a heartbeat" in warnings[-2]
    assert "on other ended without releasing the run" in warnings[-1]


@pytest.mark.parametrize("content", ["", "[]", "{", "{}"])
def test_a_damaged_lock_is_taken_over(tmp_path, warnings, content):
    (tmp_path / LOCK).write_text(content)
    with locked(tmp_path, warnings.append):
        pass
    assert "process ? on ? ended" in warnings[-1]


def test_a_file_system_without_locks_is_told(tmp_path, warnings, monkeypatch):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(Path, "open", refuse)
    with locked(tmp_path, warnings.append):
        pass
    assert warnings == [
        f"the file system of {tmp_path} cannot lock a run (Operation not supported): see to it that"
        " no other command works on this run"
    ]
