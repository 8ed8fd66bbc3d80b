"""Ray's token file is its owner's alone, and Ray's services listen to nobody without the token."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from search.cluster.token_file import make_private


@pytest.fixture
def token_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)
    return tmp_path / ".ray" / "auth_token"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_private_and_stays(token_path: Path) -> None:
    make_private()
    token = token_path.read_text()
    assert mode(token_path) == 0o600
    assert len(token) == 64
    make_private()
    assert token_path.read_text() == token


def test_a_token_that_others_can_read_becomes_private(token_path: Path) -> None:
    token_path.parent.mkdir()
    token_path.write_text("as Ray wrote it")
    token_path.chmod(0o644)
    make_private()
    assert mode(token_path) == 0o600
    assert token_path.read_text() == "as Ray wrote it"


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN_PATH", "/elsewhere")]
)
def test_a_token_from_elsewhere_needs_no_file(
    token_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    make_private()
    assert not token_path.exists()


def test_a_session_serves_no_metrics(ray_session: None) -> None:
    """Ray's agent would answer everybody on 0.0.0.0, which no token protects."""
    import ray

    assert ray.nodes()[0]["MetricsExportPort"] <= 0


@pytest.mark.parametrize("home", ["no folder/file", "/proc/none"])
def test_without_a_home_folder_this_process_has_a_token_of_its_own(
    token_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", str(token_path.parents[1] / home))
    (token_path.parents[1] / "no folder").touch()
    make_private()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
