from __future__ import annotations

from pathlib import Path

import pytest

from search import compare, export, predict, report, serve
from search.runs.listing import find_run
from search.runs.validation import FolderError
from tests.fixtures.handmade_run import make_run, remove


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of four days; those after "newest" have no result, no model, or a damaged summary."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results"
    for day, name in enumerate(("older", "newest", "begun", "without-model", "damaged"), 1):
        make_run(folder / name, n_trials=2)
        (folder / name / "run.log").write_text(f"2026-01-{day:02}T12:00:00Z INFO begins\n")
    remove(folder / "begun", "summary:test")
    remove(folder / "without-model", "model.pt")
    (folder / "damaged" / "summary.json").write_text('{"search": 3}')
    (folder / "notes").mkdir()
    return folder


def test_the_latest_run(results, tmp_path):
    assert find_run(Path("latest")) == Path("results/newest")
    assert find_run(results / "latest") == results / "newest"
    assert find_run(Path("results/older")) == Path("results/older")
    (results / "latest").mkdir()
    assert find_run(results / "latest") == results / "latest", "one that is called so"


def test_there_is_no_latest_run(results, tmp_path):
    with pytest.raises(FolderError, match=r"^there is no folder .*/none"):
        find_run(tmp_path / "none" / "latest")
    with pytest.raises(FolderError, match=r"newest finished run in .*notes, but none"):
        find_run(results / "notes" / "latest")


@pytest.mark.parametrize(
    ("main", "more"),
    [
        (predict.main, ["photo.jpg"]),
        (export.main, ["--format", "pt2"]),
        (serve.main, ["--port", "58231"]),
        (compare.main, ["latest"]),
    ],
)
def test_commands_take_the_latest_run(results, main, more, capsys):
    Path("photo.jpg").touch()
    assert main(["latest", *more]) == 2
    assert "newest" in capsys.readouterr().err, "its model or table is no real one"


def test_the_latest_report(results, capsys):
    assert report.main(["latest"]) == 0
    assert capsys.readouterr().out == "results/newest/report.html\n"
