import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

from search.console import commands
from search.console.commands import COMMANDS, as_called, version


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_module_with_a_main(name: str) -> None:
    assert callable(import_module(f"search.{name}").main)


def test_every_module_of_a_command_is_listed() -> None:
    modules = {path.stem for path in Path(commands.__file__).parents[1].glob("*.py")}
    assert {name for name in modules if not name.startswith("__")} == set(COMMANDS)


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("/opt/venv/bin/classifier-search", "classifier-search predict latest"),
        ("/opt/lib/search/predict.py", "python -m search.predict latest"),
    ],
)
def test_commands_are_shown_as_the_user_called_this_one(
    started: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started, "run"])
    assert as_called("python -m search.predict latest") == shown


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module that tells the version, three folders below a checkout's root."""
    module = tmp_path / "search" / "console" / "commands.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(commands, "__file__", str(module))
    return tmp_path


def test_a_checkout_has_its_commit_and_whether_files_have_changed(checkout: Path) -> None:
    number = metadata.version("classifier-search")
    assert version() == f"classifier-search {number}", "no checkout yet"
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    git(checkout, "tag", "-a", "v7", "-m", "a tag")
    commit = git(checkout, "rev-parse", "--short=7", "HEAD")
    assert version() == f"classifier-search {number} (commit {commit})"
    Path(commands.__file__).write_text("changed")
    assert version() == f"classifier-search {number} (commit {commit}, changed)"


def test_an_installed_package_has_the_commit_that_pip_installed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = checkout / "classifier_search-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: classifier-search\nVersion: 1.2\n")
    (info / "direct_url.json").write_text(
        '{"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}'
    )
    monkeypatch.setattr("sys.path", [str(checkout)])
    assert version() == "classifier-search 1.2 (commit 0123456)"


def test_a_copy_that_was_never_installed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    assert version() == "classifier-search (not installed)"
