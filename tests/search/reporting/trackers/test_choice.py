"""The options `--log` and `--study`, and what is checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.api.options import as_arguments, request_of
from search.pipeline.request import RequestError
from search.reporting.trackers import choice
from search.reporting.trackers.choice import TrackerError, check_trackers
from search.run import main


def test_trackers_are_named_once_or_repeatedly_and_in_python() -> None:
    expected = ("mlflow=http://host:5000", "wandb=offline")
    words = ["--log", "mlflow=http://host:5000", "--log", "wandb=offline", "--log=wandb=offline"]
    assert request_of(words).log == expected
    assert request_of(as_arguments({"log": list(expected)})).log == expected
    assert request_of(as_arguments({"log": "mlflow"})).log == ("mlflow",)
    assert request_of([]).log is None


@pytest.mark.parametrize("name", ["tensorboard", "mlflow=", "wandb=away", ","])
def test_an_unknown_tracker_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="log: must"):
        request_of(["--log", name])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_an_error_before_anything_starts(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda package: None)
    assert main(["--log", name, "--out", str(tmp_path / "results")]) == 2
    assert f"pip install '.[{name}]'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_wandb_without_a_key_is_refused_as_it_would_ask_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda package: package)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TrackerError, match="or give --log wandb=offline"):
        check_trackers(request_of(["--log", "wandb"]))
    check_trackers(request_of(["--log", "wandb=offline"]))
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password 0123\n", encoding="utf-8")
    netrc.chmod(0o600)
    check_trackers(request_of(["--log", "wandb"]))
