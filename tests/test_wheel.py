"""The wheel has every file that a run needs, and runs without the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search", "trainables", "spaces")
pytestmark = pytest.mark.slow


def call(
    *words: object, cwd: Path, timeout: float = 300, variables: Mapping[str, str] | None = None
) -> str:
    done = subprocess.run(
        [*map(str, words)],
        cwd=cwd,
        env=os.environ | dict(variables or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked_files(*folders: str) -> list[str]:
    listed = call("git", "ls-files", "--", *folders, cwd=ROOT).splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked_files("pyproject.toml", "docs/package.md", "LICENSE", *PACKAGES):
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    call(sys.executable, "-m", "pip", "wheel", folder / "source", *options, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_it_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == set(tracked_files(*PACKAGES))
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert "trainables/weights/tinynet.pth" in held
    assert any(name.endswith(".html") for name in held)


def test_an_index_can_show_its_page(wheel: Path) -> None:
    """No image and no link leads to a file of the repository, which an index does not have."""
    content = zipfile.ZipFile(wheel)
    (name,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(content.read(name))
    page = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert page.startswith("# classifier-search")
    assert re.findall(r"\]\((?!https://)|<img|^\[.+\]: (?!https://)", page, re.MULTILINE) == []
    assert "Project-URL" not in metadata


def test_commands_and_spaces_are_found_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    version = wheel.name.split("-")[1]

    def run(*words: str) -> str:
        variables = {"PYTHONPATH": str(tmp_path / "unpacked")}
        return call(sys.executable, *words, cwd=tmp_path, variables=variables)

    assert version in run("-m", "search", "--version")
    assert "python -m search.predict" in run("-m", "search")
    names = re.findall(r"^(\w+) +\S", run("-m", "search.run", "--list-spaces"), re.MULTILINE)
    assert {"digits", "photos", "products"} <= {*names}
    find = "from spaces.base import find_space, load_space; path = find_space('products')"
    found = run("-c", f"{find}; load_space(path); print(path)")
    assert Path(found.strip()) == tmp_path / "unpacked" / "spaces" / "products.py"


@pytest.mark.long
def test_it_runs_a_search_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """In a new environment; the dependencies are those of this one."""
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    print_path = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(call(python, "-c", print_path, cwd=tmp_path).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    origin = call(python, "-c", "import search; print(search.__file__)", cwd=tmp_path)
    assert origin.startswith(str(tmp_path))
    options = ("--limit", 300, "--trials", 1, "--epochs", 1, "--folds", 2, "--name", "demo")
    command = python.with_name("classifier-search")
    call(command, "run", *options, cwd=tmp_path)
    run = tmp_path / "results" / "demo"
    assert (run / "report.html").is_file()
    assert call(command, "report", run, cwd=tmp_path) == f"{run / 'report.html'}\n"
    assert call(command, "report", "--help", cwd=tmp_path).startswith(
        "usage: classifier-search report"
    )
