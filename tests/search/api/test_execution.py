"""What ends a run before its first result leaves nothing behind, or what the next run clears."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search import run
from search.api import execution, run_lock
from search.cluster.session import SessionError
from search.pipeline import flow
from search.runs.run_folder import ENVIRONMENT, LOCK, MODEL, STUDY, RunFolder, is_without_result


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(24):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(path)
    return tmp_path / "images"


ERRORS: dict[str, Callable[[], BaseException]] = {
    "Ray does not start": lambda: SessionError("Ray cannot start on this machine"),
    "a full disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "an error of ours": lambda: ZeroDivisionError("a mistake"),
    "Ctrl-C": KeyboardInterrupt,
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("result", [None, STUDY, MODEL])
def test_a_name_is_free_again_unless_there_is_a_result(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: str,
    result: str | None,
) -> None:
    out, storage = tmp_path / "out", tmp_path / "storage"

    def end(*_: object, **__: object) -> None:
        if result is not None:
            (out / "mine" / result).touch()
        raise ERRORS[error]()

    monkeypatch.setattr(execution, "ray_session", end)
    arguments = [f"--data={images}", f"--out={out}", "--name=mine", f"--storage={storage}"]
    arguments += ["--folds=2", "--space=digits", "-q"]
    if error == "an error of ours":
        with pytest.raises(ZeroDivisionError):
            run.main(arguments)
    else:
        assert run.main(arguments) != 0
    assert (out / "mine").exists() == (result is not None)
    assert any((storage / "mine").glob("*")) == (result is not None)
    shown = capsys.readouterr()
    assert ("resume: " in shown.out) == (result is not None and error != "an error of ours")


KILLED = """
import os, sys
from unittest.mock import patch
from search import run

def killed(*arguments, **options):
    os._exit(137)

with patch(sys.argv[1], killed):
    run.main(sys.argv[2:])
"""
STAGES = {
    "before its lock": "search.api.run_lock._acquire",
    "before its first file": "search.runs.run_folder.RunFolder.write_origin",
    "before its request": "search.runs.run_folder.RunFolder.save_environment",
    "before Ray": "search.api.execution.ray_session",
}
"""What a run that is killed calls next."""


def words(images: Path, tmp_path: Path) -> list[str]:
    """Return the options of a run that is called "mine"."""
    where = [f"--out={tmp_path / 'out'}", "--name=mine", f"--storage={tmp_path / 'storage'}"]
    return [f"--data={images}", *where, "--folds=2", "--space=digits", "-q"]


def kill(stage: str, images: Path, tmp_path: Path) -> Path:
    """Kill a run before a stage, as SIGKILL does; return its folder."""
    command = [sys.executable, "-c", KILLED, STAGES[stage], *words(images, tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 137, done.stderr
    return tmp_path / "out" / "mine"


def copy_to_storage(folder: Path, tmp_path: Path) -> Path:
    """Copy the files of a run to storage, as it does every so often."""
    copy = tmp_path / "storage" / "mine"
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """End every run that begins by a mistake, with its folder left as it is then."""

    @contextmanager
    def end(*_: object, **__: object) -> Iterator[None]:
        raise SessionError("the run began")
        yield

    monkeypatch.setattr(execution, "ray_session", end)
    monkeypatch.setattr(execution, "_delete_without_result", lambda plan: None)


@pytest.mark.usefixtures("begins")
@pytest.mark.parametrize("stage", STAGES)
def test_the_name_of_a_run_that_was_killed_is_used_again(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    folder = kill(stage, images, tmp_path)
    before = {path.name for path in folder.iterdir()}
    assert (LOCK in before) == (stage != "before its lock")
    if stage == "before Ray":
        earlier = RunFolder.open(folder).environment.run_id
        copy_to_storage(folder, tmp_path)
        (folder / "cache").mkdir()
        (folder / "cache" / "images.npy").touch()
    assert run.main(words(images, tmp_path)) == 2
    shown = capsys.readouterr().err
    assert f"{folder}, which had no result, is used again" in shown
    assert "the run began" in shown
    new = {path.name for path in folder.iterdir()}
    assert {ENVIRONMENT, "space.py", "run.log"} <= new
    assert "cache" not in new
    if stage == "before Ray":
        assert RunFolder.open(folder).environment.run_id != earlier
        stored = json.loads((tmp_path / "storage" / "mine" / ENVIRONMENT).read_text())
        assert stored["run_id"] == RunFolder.open(folder).environment.run_id


@pytest.mark.usefixtures("begins")
@pytest.mark.parametrize(
    "kept", [STUDY, MODEL, "trials/0/progress.csv", "diary.txt", "report.html"]
)
def test_a_name_stays_taken_where_there_is_a_result(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str
) -> None:
    folder = kill("before Ray", images, tmp_path)
    (folder / kept).parent.mkdir(parents=True, exist_ok=True)
    (folder / kept).touch()
    before = sorted(folder.rglob("*"))
    assert run.main(words(images, tmp_path)) == 2
    assert "there is a run called 'mine'" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("begins")
def test_a_run_that_goes_on_keeps_its_name(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_lock, "MAX_SILENT_SECONDS", 3.0)
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.05)
    folder = kill("before Ray", images, tmp_path)
    (folder / LOCK).unlink()
    with run_lock.locked(folder, print):
        before = sorted(folder.rglob("*"))
        assert run.main(words(images, tmp_path)) == 2
        shown = capsys.readouterr().err
        assert f"{folder} is in use by process {os.getpid()} on" in shown
        assert "or give another --name" in shown
        # The heartbeat of another host.
        lock = json.loads((folder / LOCK).read_text())
        (folder / LOCK).write_text(json.dumps({**lock, "machine": ["other"], "host": "other"}))
        assert run.main(words(images, tmp_path)) == 2
        assert "is in use by process" in capsys.readouterr().err
        assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("begins")
def test_in_storage_alone_a_heartbeat_tells(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run of another host, or another --out, is known by its copy alone."""
    folder = kill("before Ray", images, tmp_path)
    copy = copy_to_storage(folder, tmp_path)
    before = (copy / ENVIRONMENT).read_bytes()
    elsewhere = [*words(images, tmp_path), f"--out={tmp_path / 'elsewhere'}"]
    assert run.main(elsewhere) == 2
    assert f"there is a run called 'mine' in {tmp_path / 'storage'}" in capsys.readouterr().err
    assert (copy / ENVIRONMENT).read_bytes() == before
    for path in copy.iterdir():
        os.utime(path, (1e9, 1e9))
    (copy / "trials").mkdir()
    (copy / "trials" / "kept.json").touch()
    os.utime(copy / "trials" / "kept.json", (1e9, 1e9))
    assert run.main(elsewhere) == 2
    assert "there is a run called 'mine'" in capsys.readouterr().err
    (copy / "trials" / "kept.json").unlink()
    (copy / "trials").rmdir()
    assert run.main(elsewhere) == 2
    assert "the run began" in capsys.readouterr().err
    assert (copy / ENVIRONMENT).read_bytes() != before


@pytest.mark.usefixtures("begins")
@pytest.mark.parametrize("name", [".", ".."])
def test_no_folder_but_that_of_a_run_is_cleared(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty" / "out").mkdir(parents=True)
    arguments = [*words(images, tmp_path), f"--out={tmp_path / 'empty' / 'out'}", f"--name={name}"]
    assert run.main(arguments) == 2
    assert "a run's name is made of" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").symlink_to(tmp_path / "mine")
    assert run.main(words(images, tmp_path)) == 2
    assert "there is a run called 'mine'" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_session")
def test_all_files_before_the_first_result_are_known(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file of an early stage must be known, or the name of a killed run stays taken."""
    names: set[str] = set()

    @contextmanager
    def running(*_: object, **__: object) -> Iterator[None]:
        yield

    def stop(*_: object, **__: object) -> None:
        names.update(path.name for path in (tmp_path / "out" / "mine").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "ray_session", running)
    monkeypatch.setattr(flow, "choose_backbones", stop)
    assert run.main(words(images, tmp_path)) == 130
    assert {"audit.csv", "split.csv", "summary.json", LOCK} <= names
    assert is_without_result(names)


def test_a_run_decodes_within_its_pixel_limit(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    @contextmanager
    def end(*_: object, **__: object) -> Iterator[None]:
        limits.append(Image.MAX_IMAGE_PIXELS)
        raise SessionError("the run began")
        yield

    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(execution, "ray_session", end)
    assert run.main([*words(images, tmp_path), "--max-megapixels=300"]) == 2
    assert limits == [150_000_000], "Pillow refuses twice this number"
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.usefixtures("begins")
def test_a_result_that_is_made_before_the_lock_is_held_is_kept(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command that had the lock may have ended while this one waited for its heartbeat."""
    folder = kill("before Ray", images, tmp_path)
    before = {path.name for path in folder.iterdir()}

    @contextmanager
    def late(*_: object) -> Iterator[bool]:
        (folder / MODEL).touch()
        yield True

    monkeypatch.setattr(execution, "locked", late)
    assert run.main(words(images, tmp_path)) == 2
    assert "there is a run called 'mine'" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {*before, MODEL}


@pytest.mark.usefixtures("begins")
@pytest.mark.parametrize(
    "files",
    [
        {ENVIRONMENT: '{"version": 3}', "main.py": "", "cache/x": ""},
        {"space.py": "SPACE = 1", "other.py": "", LOCK: ""},
        {"cache/x": "", LOCK: ""},
    ],
)
def test_a_folder_of_another_program_is_left_alone(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str]
) -> None:
    folder = tmp_path / "out" / "mine"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    assert run.main(words(images, tmp_path)) == 2
    assert "there is a run called 'mine'" in capsys.readouterr().err
    found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    assert found == files


@pytest.mark.parametrize("options", [[], ["--max-latency=5"]])
def test_no_worker_starts_while_the_latency_that_excludes_is_measured(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    started: list[str] = []

    @contextmanager
    def running(*_: object, **__: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(execution, "ray_session", running)
    monkeypatch.setattr(execution, "start_workers", started.append)
    monkeypatch.setattr(execution, "_probes_here", lambda plan: False)
    monkeypatch.setattr(flow, "run", lambda *_: 0)
    assert run.main([*words(images, tmp_path), *options]) == 0
    assert bool(started) == (not options)
