"""Searches from Python: what they leave as it was, one after the other, stopped, within a Ray."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray.tune import Callback

from search import RequestError, SearchError, SessionError, SourceError, Space, load_run, run_search
from search.api import execution
from spaces.sources import folder
from tests.search.test_run import make_images

ROOT = Path(__file__).parents[3]
SPACE = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(["tinynet"]),
        "lr": FloatDistribution(1e-3, 1e-2, log=True),
        "batch_size": 16,
    },
    image_size=32,
    epochs=2,
    trials=2,
    folds=2,
    views=2,
    center_crop=False,
)


class Counting(Callback):
    """Counts the trials that have ended, and fails at each."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.append(trial.config["number"])
        raise ConnectionError("no tracker answers")


@contextmanager
def nothing_changes() -> Iterator[None]:
    """Check that environment, signal handlers, log levels and handlers are as they were."""

    def state() -> list[object]:
        loggers = [logging.getLogger(name) for name in ("", "ray", "optuna", "search")]
        return [
            dict(os.environ),
            [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
            [logger.level for logger in loggers],
            list(logging.getLogger().handlers),
            sys.unraisablehook,
        ]

    before = state()
    yield
    assert state() == before


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", {"red": 12, "blue": 12})


def test_mistakes_are_raised_before_anything_starts(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with nothing_changes():
        with pytest.raises(SourceError, match="there is no nowhere"):
            run_search("nowhere", SPACE, out=out)
        with pytest.raises(RequestError, match=r"of ray\.tune\.Callback, but got 3"):
            run_search(images, SPACE, out=out, callbacks=[3])  # type: ignore[list-item]
        with pytest.raises(RequestError, match="callbacks must be a list, but got 3"):
            run_search(images, SPACE, out=out, callbacks=3)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=r"its file or its name, but got dict$"):
            run_search(images, {}, out=out)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=r"its file or its name, but got Space$"):
            run_search(images, Space, out=out)  # type: ignore[arg-type]
        with pytest.raises(SearchError, match="folds: must be a whole number"):
            run_search(images, SPACE, out=out, folds=0)
        with (
            execution.guest_process(),
            pytest.raises(SessionError, match="running in this process"),
        ):
            run_search(images, SPACE, out=out)
    assert not out.exists()


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_search_within_the_programs_own_ray(images: Path, tmp_path: Path) -> None:
    """With a space and a callback of the program, then extended: two searches in one process."""
    counting = Counting()
    with nothing_changes():
        run = run_search(
            images, SPACE, out=tmp_path, name="run", callbacks=[counting], quiet=True, probe=False
        )
    assert ray.is_initialized()
    assert sorted(counting.ended) == [0, 1]
    lost = "what the callback Counting does is missing"
    assert (tmp_path / "run" / "run.log").read_text().count(lost) == 2
    assert run.path == tmp_path / "run"
    assert run.summary.test is not None
    assert run.trials["number"].tolist() == [0, 1]
    assert run.trials["lr"].between(1e-3, 1e-2).all()
    assert run.best_config is not None
    assert run.best_config["backbone"] == "tinynet"

    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["command"][1:3] == ["-m", "search.run"]
    assert f"--space={run.path / 'space.py'}" in environment["command"]
    assert environment["request"]["space"] == str(run.path / "space.py")
    assert "--no-probe" in (run.path / "run.log").read_text().splitlines()[0]

    with nothing_changes():
        more = run.resume(trials=3, quiet=True)
    assert more.trials["number"].tolist() == [0, 1, 2]
    assert load_run(run.path).summary == more.summary
    with pytest.raises(SessionError, match=r"Ray was started already, so that --address 'auto'"):
        run.resume(trials=4, address="auto")


SEQUENCE = """
import signal, sys, threading
from pathlib import Path
from ray.tune import Callback
import ray
from search import DataError, SessionError, load_run, run_search
from tests.search.api.test_launch import SPACE, nothing_changes
from dataclasses import replace

place = Path(sys.argv[1])
options = {"out": place, "quiet": True, "probe": False}
other = replace(SPACE, params={"backbone": "tinynet", "freeze_depth": 3}, image_size=24, trials=1)

class Stop(Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        signal.raise_signal(signal.SIGINT)

with nothing_changes():
    try:
        run_search(place / "damaged", SPACE, name="refused", **options)
    except DataError as error:
        assert "every class needs at least" in str(error), error
    else:
        raise AssertionError
    assert not (place / "refused").exists()
    assert not ray.is_initialized()

    first = run_search(place / "images", other, name="first", **options)
    assert first.summary.test is not None
    try:
        run_search(place / "images", SPACE, name="stopped", callbacks=[Stop()], **options)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError
    stopped = load_run(place / "stopped")
    assert stopped.summary.test is None
    assert "unfinished" in stopped.trials["state"].tolist()
    assert stopped.resume(quiet=True).summary.test is not None

    found = []
    thread = threading.Thread(
        target=lambda: found.append(run_search(place / "images", other, name="aside", **options))
    )
    thread.start()
    while thread.is_alive() and not (place / "aside").is_dir():
        pass
    try:
        run_search(place / "images", other, name="beside", **options)
    except SessionError as error:
        assert "running in this process" in str(error)
    else:
        raise AssertionError
    thread.join()
    assert found[0].summary.test is not None
    assert not ray.is_initialized()
print("all ended well")
"""


@pytest.mark.long
def test_searches_one_after_the_other(images: Path, tmp_path: Path) -> None:
    """In one process: refused late, finished, interrupted, resumed, and in another thread."""
    damaged = tmp_path / "damaged"
    shutil.copytree(images, damaged)
    for path in sorted((damaged / "red").iterdir())[1:]:
        path.write_bytes(b"no image")
    done = subprocess.run(
        [sys.executable, "-c", SEQUENCE, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all ended well" in done.stdout
    assert "resume: load_run(" in done.stdout
