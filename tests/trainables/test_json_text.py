"""JSON that others wrote never ends a command in a traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from search.api import run_lock
from search.api.run_lock import locked
from search.audit import main
from search.reporting.trackers.tracking_state import TrackingState
from search.runs.environment import read_environment
from search.runs.summary import RunSummary, read_summary
from search.runs.warm_start import WARM_START_FILE, read_warm_start
from search.tuning.study import check_readable, load_study, open_storage
from spaces.errors import SearchError
from tests.fixtures.handmade_run import make_run
from trainables.json_text import parse_json
from trainables.models.model_card import read_card

ROOT = Path(__file__).parents[2]
DEEP = "[" * 100_000
WAYS: dict[str, Callable[[Path], object]] = {
    "environment.json": lambda run: read_environment(run / "environment.json"),
    "summary.json": lambda run: read_summary(run / "summary.json"),
    WARM_START_FILE: read_warm_start,
    "study.journal": lambda run: open_storage(run),
}


def test_a_value_is_read() -> None:
    assert parse_json('{"ä": [1, null]}') == parse_json('{"ä": [1, null]}'.encode())
    assert parse_json("[1.5]") == [1.5]


@pytest.mark.parametrize("text", ["", "{", "nul", DEEP, '{"a":' * 100_000, b"\xff", "9" * 5000])
def test_all_else_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting|nested too deeply|decode|digits"):
        parse_json(text)


@pytest.mark.parametrize("name", WAYS)
def test_a_file_of_a_run_that_is_nested_too_deeply_is_damaged(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", n_trials=2)
    path = run / name
    before = path.read_text() if name == "study.journal" else ""
    path.write_text(f"{before}{DEEP}\n{before}")
    with pytest.raises(SearchError, match=re.escape(f"{path} is damaged")):
        WAYS[name](run)
    if name == "study.journal":
        assert load_study(run) is None
        (run / "trials" / "0" / "progress.csv").touch()
        with pytest.raises(SearchError, match="is damaged"):
            check_readable(run)


def test_files_that_can_be_made_again_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "MAX_SILENT_SECONDS", 0.1)
    for name in ("summary.json", "mlflow.json", "run.lock"):
        (tmp_path / name).write_text(DEEP)
    assert read_summary(tmp_path / "summary.json", resumes=True) == RunSummary()
    assert TrackingState.read(tmp_path / "mlflow.json").key == ""
    warnings: list[str] = []
    with locked(tmp_path, warnings.append):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"]


def test_a_table_and_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.jsonl").write_text(DEEP)
    assert main([str(tmp_path), "--labels", str(tmp_path / "labels.jsonl")]) == 2
    assert "labels.jsonl, line 1, must be a JSON object" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nested too deeply"):
        read_card(DEEP)


def test_no_other_module_parses_json() -> None:
    """`json.loads` raises RecursionError, which no reader expects."""
    found = [
        str(path.relative_to(ROOT))
        for package in ("search", "trainables", "spaces")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == ["search/console/commands.py", "trainables/json_text.py"]
