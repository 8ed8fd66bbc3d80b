import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.pipeline.request import parse_request
from search.runs.run_folder import RunFolder, digest
from search.runs.summary import RunSummary, SearchCounts
from search.runs.validation import FolderError
from search.runs.warm_start import read_warm_start, write_warm_start
from trainables import atomic_write

SEARCH = SearchCounts(trials=4, complete=2, pruned=1, failed=1, unfinished=0, seconds=7.5)


def begun(tmp_path: Path, *options: str) -> RunFolder:
    tmp_path.mkdir(exist_ok=True)
    space_file = tmp_path / "mine.py"
    space_file.write_text("SPACE = 1  # Käfer\n", encoding="utf-8")
    folder = RunFolder.create(tmp_path / "results", "run-1")
    folder.write_origin(parse_request(["--space", str(space_file), *options]))
    return folder


def summary_of(folder: RunFolder) -> Any:
    return json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["digits-20250131-120000", "Käfer_1.2", "a"])
def test_create_makes_the_folder_and_its_parents(tmp_path, name):
    folder = RunFolder.create(tmp_path / "not" / "there", name)
    assert folder.path == tmp_path / "not" / "there" / name
    assert folder.path.is_dir()
    assert folder.summary == RunSummary()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "a b", "a\n", "a:b"])
def test_a_name_that_cannot_be_a_folder(tmp_path, name):
    with pytest.raises(FolderError) as caught:
        RunFolder.create(tmp_path, name)
    assert str(caught.value) == (
        f"a run's name is made of at most 60 letters, digits, '.', '_' and '-', but got {name!r}"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken(tmp_path):
    RunFolder.create(tmp_path, "mine")
    with pytest.raises(FolderError) as caught:
        RunFolder.create(tmp_path, "mine")
    assert str(caught.value) == (
        f"there is a run called 'mine' in {tmp_path}: give another --name, or resume it with"
        f" --resume {tmp_path}/mine"
    )


def test_out_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(FolderError) as caught:
            RunFolder.create(out, "mine")
        assert str(caught.value) == f"--out must be a folder, but {tmp_path}/file is a file"


def test_out_that_cannot_be_written_to(tmp_path, monkeypatch):
    out = tmp_path / "results"
    refused = f"--out {out} cannot be written to"
    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(FolderError, match=f"^{refused}; give another --out$"):
            RunFolder.check_free(out, "mine")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(
        FolderError, match=f"^{refused}: No space left on device; give another --out$"
    ):
        RunFolder.create(out, "mine")


def test_a_check_creates_nothing(tmp_path):
    RunFolder.check_free(tmp_path / "results", "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["environment.json", "space.py"])
def test_a_folder_that_is_no_run(tmp_path, missing):
    folder = begun(tmp_path)
    (folder.path / missing).unlink()
    for path in (folder.path, tmp_path / "nowhere"):
        with pytest.raises(FolderError) as caught:
            RunFolder.open(path)
        assert str(caught.value) == (
            f"{path} is no run: a run's folder holds environment.json and space.py"
        )


def test_a_run_is_opened_with_its_summary(tmp_path):
    folder = begun(tmp_path, "--seed", "3", "--backbones", "cnn")
    folder.write_summary(replace(folder.summary, search=SEARCH))
    again = RunFolder.open(folder.path)
    assert again.summary == RunSummary(search=SEARCH)
    assert again.environment == folder.environment
    assert again.environment.request.backbones == ("cnn",)
    again.write_summary(replace(again.summary, gpu_fraction={"cnn": 0.5}))
    assert summary_of(folder) == {
        "gpu_fraction": {"cnn": 0.5},
        "search": {
            "trials": 4, "complete": 2, "pruned": 1, "failed": 1, "unfinished": 0, "seconds": 7.5
        },
    }  # fmt: skip


def test_a_section_is_removed(tmp_path):
    folder = begun(tmp_path)
    folder.write_summary(RunSummary(search=SEARCH, gpu_fraction={"cnn": 0.5}))
    folder.write_summary(replace(folder.summary, search=None))
    assert folder.summary == RunFolder.open(folder.path).summary
    assert folder.summary == RunSummary(gpu_fraction={"cnn": 0.5})


@pytest.mark.parametrize("content", ["", '{"data": {"n"', "\0\0\0"])
def test_a_summary_that_is_no_json_is_begun_again_where_the_run_is_resumed(tmp_path, content):
    folder = begun(tmp_path)
    path = folder.path / "summary.json"
    path.write_text(content, encoding="utf-8")
    assert RunFolder.open(folder.path, resumes=True).summary == RunSummary()
    with pytest.raises(FolderError, match=f"^{path} is damaged: it is not JSON; put a copy"):
        RunFolder.open(folder.path)


def test_a_summary_with_a_wrong_key(tmp_path):
    folder = begun(tmp_path)
    (folder.path / "summary.json").write_text('{"search": {"trials": 4}}', encoding="utf-8")
    with pytest.raises(FolderError) as caught:
        RunFolder.open(folder.path)
    assert str(caught.value) == (
        f"{folder.path / 'summary.json'} is damaged: search.complete: Field required; put a copy"
        " of it back, or remove it and resume the run"
    )


def test_a_request_is_replaced(tmp_path):
    folder = begun(tmp_path, "--trials", "4")
    before = folder.environment
    request = replace(before.request, trials=9)
    RunFolder.open(folder.path).save_request(request)
    assert RunFolder.open(folder.path).environment == replace(before, request=request)


def test_a_run_is_deleted(tmp_path):
    folder = begun(tmp_path)
    folder.delete()
    folder.delete()
    assert not folder.path.exists()


def test_a_run_begins_with_its_space_and_environment(tmp_path):
    folder = begun(tmp_path, "--seed", "3")
    assert (folder.path / "space.py").read_bytes() == (tmp_path / "mine.py").read_bytes()
    assert folder.environment.space_digest == digest(folder.path / "space.py")
    assert folder.environment.request.seed == 3
    assert RunFolder(folder.path).environment == folder.environment


def test_every_run_has_its_own_id(tmp_path):
    first = begun(tmp_path / "1").environment.run_id
    assert first == RunFolder.open(tmp_path / "1" / "results" / "run-1").environment.run_id
    assert len(first) == 32
    assert first != begun(tmp_path / "2").environment.run_id


@pytest.mark.parametrize("content", [None, b"", b'{"op_code": 0'])
def test_a_study_that_is_gone_is_no_new_study(tmp_path, content):
    folder = begun(tmp_path)
    folder.check_study()  # no trial has begun
    (folder.path / "trials" / "0").mkdir(parents=True)
    (folder.path / "trials" / "11").mkdir()
    (folder.path / "trials" / "kept.json").touch()
    if content is not None:
        (folder.path / "study.journal").write_bytes(content)
    with pytest.raises(FolderError) as caught:
        folder.check_study()
    assert str(caught.value) == (
        f"{folder.path}/study.journal is {'missing' if content is None else 'empty'}, but 2 trials"
        " have begun: put a copy of it back, or begin a new run"
    )
    (folder.path / "study.journal").write_bytes(b'{"op_code": 0}\n')
    folder.check_study()


def test_a_summary_of_trials_needs_their_study(tmp_path):
    folder = begun(tmp_path)
    folder.write_summary(replace(folder.summary, search=SEARCH))
    with pytest.raises(FolderError, match="is missing, but 4 trials have begun"):
        folder.check_study()


def test_nan_and_infinities_become_null(tmp_path):
    folder = RunFolder.create(tmp_path, "mine")
    folder.write_json(
        "numbers.json",
        {
            "nan": float("nan"),
            "list": [1.5, -float("inf"), (float("inf"), "ü")],
            "numpy": np.float64("nan"),
            3: {"deep": float("nan")},
            "whole": 7,
            "none": None,
        },
    )
    text = (folder.path / "numbers.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert '"ü"' in text
    assert json.loads(text) == {
        "nan": None,
        "list": [1.5, None, [None, "ü"]],
        "numpy": None,
        "3": {"deep": None},
        "whole": 7,
        "none": None,
    }


def test_a_row_of_numbers_is_one_line(tmp_path):
    """The confusion matrix of 1,000 classes would have a million."""
    folder = RunFolder.create(tmp_path, "mine")
    content = {"confusion": [[3, 0], [1, 2]], "ci95": (0.5, float("nan")), "classes": ["a", "b"]}
    folder.write_json("numbers.json", {**content, "nothing": [], "none": {}})
    assert (
        (folder.path / "numbers.json").read_text(encoding="utf-8")
        == """{
  "confusion": [
    [3, 0],
    [1, 2]
  ],
  "ci95": [0.5, null],
  "classes": [
    "a",
    "b"
  ],
  "nothing": [],
  "none": {}
}
"""
    )


def test_seconds_of_a_stage_add_up_over_sessions(tmp_path):
    folder = begun(tmp_path)
    folder.add_stage_seconds("search", 1.25)
    folder.add_stage_seconds("report", 3.0)
    RunFolder.open(folder.path).add_stage_seconds("search", 2.0004)
    assert summary_of(folder)["stages"] == {"search": 3.25, "report": 3.0}


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, "mine")
    folder.write_text("deep/page.html", "old")
    write = Path.write_text

    def crash(self: Path, text: str, **options: Any) -> int:
        write(self, text[:2], **options)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", crash)
        with pytest.raises(OSError, match="No space left"):
            folder.write_text("deep/page.html", "brand new")
    page = folder.path / "deep" / "page.html"
    assert page.read_text(encoding="utf-8") == "old"
    folder.write_text("deep/page.html", "brand new")
    assert page.read_text(encoding="utf-8") == "brand new"
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_a_summary_that_another_program_holds_is_waited_for(tmp_path, monkeypatch, caplog):
    folder, n_held = begun(tmp_path), [2]
    fsync = os.fsync

    def held(file: int) -> None:
        if n_held[0]:
            n_held[0] -= 1
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        fsync(file)

    monkeypatch.setattr(atomic_write, "_TRY_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(os, "fsync", held)
    folder.write_summary(RunSummary(search=SEARCH))
    assert RunFolder.open(folder.path).summary == RunSummary(search=SEARCH)
    path = folder.path / "summary.json"
    assert caplog.messages[-1] == f"{path} can be written again"
    assert not list(folder.path.glob("*.partial"))


def test_runs_that_begin_in_one_second_get_numbers(tmp_path):
    names = [RunFolder.create(tmp_path, "digits-1", renames=True).path.name for _ in range(3)]
    assert names == ["digits-1", "digits-1-2", "digits-1-3"]
    with pytest.raises(FolderError, match="there is a run called 'digits-1'"):
        RunFolder.create(tmp_path, "digits-1")


def test_the_summary_for_the_terminal_is_what_the_file_holds(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_summary(RunSummary(stages={"données": float("nan"), "search": 1.5}))
    shown = folder.summary_json()
    assert shown.isascii()
    assert json.loads(shown) == json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [as_folder, as_link_to_itself, as_pipe])
@pytest.mark.parametrize("name", ["summary.json", "environment.json", "warm_start.json"])
@pytest.mark.parametrize("resumes", [True, False])
def test_what_is_no_file_is_named(tmp_path, damage, name, resumes):
    """A pipe in the place of a file would be waited for without end."""
    folder = begun(tmp_path)
    folder.write_summary(RunSummary(search=SEARCH))
    write_warm_start(folder.path, [{"lr": 0.1}])
    damage(folder.path / name)
    with pytest.raises(FolderError, match=f"^{folder.path}"):
        read_warm_start(RunFolder.open(folder.path, resumes=resumes).path)


def test_a_file_that_is_gone_meanwhile_stops_no_clearing(tmp_path, monkeypatch):
    """A heartbeat is written beside the lock, and takes its place."""
    folder = begun(tmp_path)
    files = [folder.path / "run.lock.0a.partial", *folder.path.iterdir()]
    monkeypatch.setattr(type(tmp_path), "iterdir", lambda path: iter(files))
    folder.clear()
    assert not any(path.exists() for path in files)


def test_a_folder_that_cannot_be_read_is_no_run_without_result(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError

    folder = begun(tmp_path)
    assert folder.ended_without_result
    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    assert not folder.ended_without_result
