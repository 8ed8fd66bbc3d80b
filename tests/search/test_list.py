"""`python -m search.list`: the runs of a folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from search.list import main
from search.runs.listing import list_runs
from tests.fixtures.handmade_run import make_run


@pytest.fixture
def results(colour_run: Path, tmp_path: Path) -> Path:
    """Three runs: a finished one, one that was not, a damaged one; and a folder that is none."""
    folder = tmp_path / "results"
    make_run(folder / "finished")
    (folder / "finished" / "run.log").write_text("2026-01-31T12:00:00Z INFO node search begins\n")
    shutil.copytree(colour_run, folder / "begun")
    shutil.copytree(colour_run, folder / "damaged")
    (folder / "damaged" / "summary.json").write_text('{"search": {"trials": "many"}}')
    (folder / "notes").mkdir()
    return folder


def test_a_table_of_runs(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results)]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) == 4
    finished = next(line for line in lines if "finished  2026-01-31 12:00" in line)
    assert "space digits" in finished
    assert "accuracy 95.0%, 83.5–98.6%, n = 40" in finished
    assert re.search(r"4 +200 ", finished)
    assert finished.endswith("1 h 1 min")
    assert sum("not finished" in line for line in lines) == 1
    assert any(line.endswith("damaged") for line in map(str.rstrip, lines))
    assert "summary.json is damaged: search.trials" in shown.err


def test_runs_as_json(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results), "--json"]) == 0
    runs = {Path(run["run"]).name: run for run in json.loads(capsys.readouterr().out)}
    assert sorted(runs) == ["begun", "damaged", "finished"]
    assert runs["finished"]["test"] == pytest.approx(0.95)
    assert runs["finished"]["test_ci95"] == pytest.approx([0.835, 0.986], abs=1e-3)
    assert runs["finished"]["metric"] == "accuracy"
    assert runs["finished"]["minutes"] == pytest.approx(61.89, abs=0.01)
    assert runs["finished"]["is_complete"]
    assert not runs["begun"]["is_complete"]
    assert runs["begun"]["test"] is None
    assert runs["begun"]["data"].endswith("images")
    assert runs["damaged"]["problem"]


def test_the_latest_run_is_last(results: Path) -> None:
    (results / "begun" / "run.log").write_text("2027-01-01T00:00:00Z INFO node begins\n")
    names = [Path(run.run).name for run in list_runs(results)]
    assert names.index("finished") < names.index("begun")


def test_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"no runs in {tmp_path}\n"
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"error: there is no folder {tmp_path / 'nowhere'}")
