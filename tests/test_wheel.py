"""The wheel has every file that a run needs, and runs without the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search", "trainables", "spaces")
pytestmark = pytest.mark.long


def call(*words: object, cwd: Path, timeout: float = 300) -> str:
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=timeout
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
    for name in tracked_files("pyproject.toml", "README.md", "LICENSE", *PACKAGES):
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
    call(python, "-m", "search.run", *options, cwd=tmp_path)
    run = tmp_path / "results" / "demo"
    assert (run / "report.html").is_file()
    call(python, "-m", "search.report", run, cwd=tmp_path)
