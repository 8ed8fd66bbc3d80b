"""Storage that all nodes reach, in a folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from search.runs.storage import Files, LocalFiles, SharedFiles, StorageError


@pytest.fixture(params=["local", "shared", "url"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    base = tmp_path / "with space"
    if request.param == "local":
        return LocalFiles(base)
    url = base.as_uri() if request.param == "url" else str(base)
    return SharedFiles(url, "run").within("trials")


def test_what_is_written_is_read(files: Files) -> None:
    assert files.read("0/best.pt") is None
    assert not files.has("0/best.pt")
    files.write("0/best.pt", b"one")
    files.write("0/best.pt", b"two")
    files.write("empty", b"")
    assert files.read("0/best.pt") == b"two"
    assert files.read("empty") == b""
    assert files.has("0/best.pt")
    files.remove("0/best.pt")
    files.remove("0/best.pt")
    assert files.read("0/best.pt") is None


def test_files_are_pickled_for_other_nodes(tmp_path: Path) -> None:
    files = SharedFiles(str(tmp_path), "run")
    files.write("a/b.csv", b"1")  # opens the file system
    there = pickle.loads(pickle.dumps(files))
    assert there.read("a/b.csv") == b"1"
    assert there.names() == ["a/b.csv"]
    assert there.within("elsewhere").names() == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b.csv", "run"], "nothing is left"


def test_trying_storage_out_leaves_nothing_in_it(tmp_path: Path) -> None:
    SharedFiles(str(tmp_path / "new"), "run").try_out()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_is_empty_until_something_is_in_it(tmp_path: Path) -> None:
    files = SharedFiles(str(tmp_path), "run")
    assert files.is_empty()
    (tmp_path / "run").mkdir()
    assert files.is_empty()
    (tmp_path / "run" / "a folder").mkdir()
    assert not files.is_empty()


def test_a_folder_is_deleted(tmp_path: Path) -> None:
    for name in ("mine", "yours"):
        SharedFiles(str(tmp_path), name).write("trials/0/best.pt", b"1")
    SharedFiles(str(tmp_path), "mine").delete()
    SharedFiles(str(tmp_path), "mine").delete()
    assert [path.name for path in tmp_path.iterdir()] == ["yours"]
    assert SharedFiles(str(tmp_path), "yours").names() == ["trials/0/best.pt"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("results", r"absolute path of a folder that all nodes reach, but got 'results'"),
        ("./results", r"absolute path"),
        ("ftp://host/folder", r"--storage ftp://host/folder cannot be written to"),
        ("/proc/nowhere", r"--storage /proc/nowhere cannot be written to.*check the address"),
    ],
)
def test_storage_that_cannot_be_used_is_one_clear_error(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as raised:
        SharedFiles(url).try_out()
    assert "\n" not in str(raised.value)
