"""The files that install the project: pins, extras, the container, conda, and make."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path
from threading import Thread

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DOCKERFILE = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): Version(version) for name, version in pairs}


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    for text in [*PROJECT["dependencies"], *chain.from_iterable(EXTRAS.values())]:
        requirement = Requirement(text)
        version = pinned[canonical(requirement.name)]
        assert version in requirement.specifier, f"{text}, but constraints.txt has {version}"


def test_the_pages_name_every_extra_and_what_every_dependency_is_for() -> None:
    for page in ("docs/install.md", "docs/package.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        wanted = EXTRAS.keys() - ({"dev", "fuzz"} if page == "docs/package.md" else set())
        assert {name for name in wanted if f"`{name}`" not in text} == set(), page
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("## Dependencies") :]
    for extra in (PROJECT["dependencies"], *EXTRAS.values()):
        names = [re.match(r"[\w-]+(\[\w+\])?", line)[0] for line in extra]
        assert {name for name in names if name not in table} == set()


def test_pins_allow_builds_for_cpus_only() -> None:
    """PyTorch's index names them 2.x+cpu."""
    assert Version(f"{pins()['torch']}+cpu") in SpecifierSet(f"=={pins()['torch']}")


def test_the_supported_pythons_are_one_list() -> None:
    named = [text.rsplit(" ", 1)[1] for text in PROJECT["classifiers"] if ":: 3." in text]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert named == [f"3.{minor}" for minor in range(20) if f"3.{minor}.1" in supported]
    first, last = named[0], named[-1]
    for page in ("README.md", "docs/install.md", "docs/package.md"):
        assert f"Python {first} to {last}" in (ROOT / page).read_text(encoding="utf-8"), page


def test_conda_installs_what_pyproject_names() -> None:
    asked = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = asked["dependencies"]
    assert asked["name"] == PROJECT["name"]
    assert pip == "pip"
    assert Version(python.removeprefix("python=")) in SpecifierSet(PROJECT["requires-python"])
    constraint, project = packages["pip"]
    assert (ROOT / constraint.removeprefix("--constraint ")).is_file()
    assert set(re.fullmatch(r"\.\[(.+)\]", project)[1].split(",")) <= EXTRAS.keys()


def test_the_demo_needs_no_fuzzer() -> None:
    def installs(target: str) -> list[str]:
        command = ["make", "--dry-run", "--always-make", target]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return [line for line in done.stdout.splitlines() if "pip install" in line]

    (demo,) = installs("demo")
    assert demo.endswith("--constraint constraints.txt --editable .")
    everything = installs("check")[-1]
    assert set(re.search(r"\.\[(.+)\]", everything)[1].split(",")) == EXTRAS.keys() - {"cluster"}
    fuzzers = {"atheris", "schemathesis"}
    assert {Requirement(text).name for text in EXTRAS["fuzz"]} == fuzzers
    assert not fuzzers & {Requirement(text).name for text in EXTRAS["dev"]}


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "needs the extra: dev"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_copies_what_its_context_has() -> None:
    """.dockerignore excludes all but the files that the image is built from."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    included = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = set()
    for words in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        copied |= {
            f"docs/{Path(word).name}" if "docs" in word else word for word in words.split()[:-1]
        }
    copied |= set(re.findall(r"type=bind,source=([^,]+)", DOCKERFILE))
    assert copied == included
    assert all((ROOT / name).exists() for name in included)
    assert {"search", "spaces", "trainables", PROJECT["readme"]} <= included


def test_the_dockerfiles_requirements_are_pyprojects() -> None:
    """The line that lists them runs here as it does there."""
    line = re.search(r"python -c \"(import tomllib.+)\" > requirements.txt", DOCKERFILE)
    done = subprocess.run(
        [sys.executable, "-c", line[1]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [*PROJECT["dependencies"], *EXTRAS["export"], *EXTRAS["serve"], *EXTRAS["heif"]]
    assert done.stdout.splitlines() == expected


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()


def test_a_container_that_serves_is_healthy_while_it_answers(port: int, tmp_path: Path) -> None:
    shell, option, check = json.loads(re.search(r"HEALTHCHECK .+ CMD (\[.+\])", DOCKERFILE)[1])
    first_process = tmp_path / "cmdline"

    def healthy(*words: str, at: int) -> bool:
        first_process.write_bytes(b"".join(word.encode() + b"\0" for word in words))
        moved = check.replace("/proc/1/cmdline", str(first_process)).replace(":8000/", f":{at}/")
        moved = moved.replace("python -c", f"{sys.executable} -c")
        done = subprocess.run([shell, option, moved], capture_output=True, check=False)
        return done.returncode == 0

    assert healthy("classifier-search", "serve", "results/RUN", at=port)
    assert not healthy("classifier-search", "serve", "results/RUN", at=1)
    assert healthy("classifier-search", "run", "--name", "server", at=1)


@pytest.mark.parametrize("module", ["search.run", "search.predict"])
def test_windows_gets_one_line(module: str) -> None:
    code = f"import sys; sys.platform = 'win32'; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: classifier-search runs on Linux and macOS; on Windows run it within WSL2"
        " (docs/install.md)"
    ]
