"""`environment.json`, written and read back."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.pipeline.request import parse_request
from search.runs.environment import (
    RUN_FORMAT,
    Environment,
    describe_environment,
    read_environment,
)
from search.runs.validation import FolderError

OPTIONS = ("--data", "images", "--backbones", "cnn,tinynet", "--time-budget", "2m", "--seed", "3")


@pytest.fixture
def environment() -> Environment:
    return describe_environment(parse_request(OPTIONS), "a digest")


@pytest.fixture
def content(environment: Environment) -> Any:
    return json.loads(json.dumps(environment.as_dict()))


def write(folder: Path, content: object) -> Path:
    path = folder / "environment.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_an_environment_is_read_as_it_was_written(
    tmp_path: Path, environment: Environment, content: Any
) -> None:
    assert read_environment(write(tmp_path, content)) == environment
    assert content["request"]["data"] == str(Path("images").absolute())
    assert content["request"]["backbones"] == ["cnn", "tinynet"]
    assert content["request"]["external"] is None


def test_it_says_how_the_run_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--seed", "3"])
    environment = describe_environment(parse_request(["--seed", "3"]), "a digest")
    assert environment.format == RUN_FORMAT
    assert environment.command[1:] == ["-m", "search.run", "--seed", "3"]
    assert environment.python == platform.python_version()
    assert {"ray", "torch", "optuna"} <= set(environment.packages)
    assert environment.packages["numpy"] == np.__version__
    assert (environment.machine.cores or 0) >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request": {}}, "request.space: Field required"),
        ({"request": None}, "request: Input should be a dictionary or an instance of Request"),
        ({"packages": {"ray": 2}}, "packages.ray: Input should be a valid string"),
        ({"machine": {"system": "Linux"}}, "machine.processor: Field required"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, content: Any, change: Any, message: str) -> None:
    path = write(tmp_path, content | change)
    with pytest.raises(FolderError) as caught:
        read_environment(path)
    assert str(caught.value) == (
        f"{path} is damaged: {message}; put a copy of it back, or begin a new run"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is not JSON"),
        ('{"request": {"se', "it is not JSON"),
        ("{}", "format: Field required"),
        ("[]", "the whole: Input should be a dictionary or an instance of Environment"),
    ],
)
def test_a_file_that_was_cut_off(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(FolderError) as caught:
        read_environment(path)
    assert str(caught.value) == (
        f"{path} is damaged: {message}; put a copy of it back, or begin a new run"
    )


@pytest.mark.parametrize(("change", "found"), [({}, 1), ({"format": 1}, 1), ({"format": 4}, 4)])
def test_another_format(tmp_path: Path, content: Any, change: Any, found: int) -> None:
    del content["format"]
    del content["machine"]  # another version has other keys
    path = write(tmp_path, content | change)
    with pytest.raises(FolderError) as caught:
        read_environment(path)
    assert str(caught.value) == (
        f"{tmp_path} is a run of format {found}, and this version reads format {RUN_FORMAT}:"
        " use the version that wrote it, or begin a new run"
    )
