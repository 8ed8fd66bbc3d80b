"""Ray's configuration, and what is checked and sent when a cluster is joined."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError
from ray.tune.execution import experiment_state
from ray.tune.execution.class_cache import DEFAULT_ENV_VARS

from search.cluster import session
from search.cluster.session import (
    WORKER_VARIABLES,
    SessionError,
    check_working_directory,
    configure_ray,
    ends_with_session,
    ray_session,
    worker_environment,
)


@pytest.mark.parametrize("module", ["search.cluster.session", "search.run", "search.serve"])
def test_commands_configure_ray_before_it_is_imported(module: str) -> None:
    code = f"""
import os, sys
before = dict(os.environ)
from {module} import configure_ray
assert dict(os.environ) == before, "importing sets nothing"
configure_ray()
assert os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] == "1"
assert 0.3 <= float(os.environ["RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION"]) <= 0.5
assert "ray" not in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_variables_that_are_set_already_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_PRINT_ALL_TRIAL_ERRORS", "1")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    configure_ray()
    assert os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_workers_have_the_environment_of_tunes_actors() -> None:
    """Ray starts a trial in an idle worker only if both environments are equal."""
    assert WORKER_VARIABLES == DEFAULT_ENV_VARS
    assert worker_environment(on_cluster=False)["env_vars"] == DEFAULT_ENV_VARS


def test_tunes_copy_of_its_own_state_prints_no_traceback() -> None:
    levels = session._LOG_LEVELS
    before = session._set_log_levels(levels)
    try:
        assert not experiment_state.logger.isEnabledFor(logging.ERROR)
        assert logging.getLogger("ray.tune").isEnabledFor(logging.ERROR)
    finally:
        assert session._set_log_levels(before) == levels
    assert experiment_state.logger.isEnabledFor(logging.ERROR)


def test_a_search_is_no_ray_client() -> None:
    with (
        pytest.raises(SessionError, match=r"--address is 'ray://10.0.0.1:10001': give --address"),
        ray_session("ray://10.0.0.1:10001"),
    ):
        raise AssertionError


@pytest.mark.parametrize("name", ["search.py", "spaces/__init__.py"])
def test_workers_import_what_the_driver_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers look into the working directory first."""
    check_working_directory()  # of the checkout, whose packages these are
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search").mkdir()  # a folder without __init__.py comes after every package
    check_working_directory()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(SessionError, match=rf"workers would import {tmp_path / name} instead of"):
        check_working_directory()


def test_only_our_packages_are_sent_to_the_nodes_of_a_cluster() -> None:
    assert "py_modules" not in worker_environment(on_cluster=False)
    packages = worker_environment(on_cluster=True)["py_modules"]
    assert [Path(path).name for path in packages] == ["search", "trainables", "spaces"]
    sizes = [file.stat().st_size for path in packages for file in Path(path).rglob("*.p[yt]*")]
    assert sum(sizes) < 4 * 2**20


@pytest.mark.usefixtures("ray_session")
def test_the_programs_own_session_stays_and_our_actors_end() -> None:
    class Pong:
        def ping(self) -> str:
            return "pong"

    level = logging.getLogger("ray").level
    with ray_session(None):
        actor = ends_with_session(ray.remote(num_cpus=0)(Pong).remote())

        def ping_until_killed() -> None:
            """`ray.kill` returns before the actor has ended."""
            until = time.monotonic() + 30
            while time.monotonic() < until:
                ray.get(actor.ping.remote())

        assert ray.get(actor.ping.remote()) == "pong"
    assert ray.is_initialized()
    assert logging.getLogger("ray").level == level
    with pytest.raises(RayActorError):
        ping_until_killed()
    with (
        pytest.raises(SessionError, match=r"Ray was started already, so that --address 'auto'"),
        ray_session("auto"),
    ):
        raise AssertionError


FAILURES = {
    "no space is left": OSError(errno.ENOSPC, "No space left on device"),
    "raise `ulimit -u`": BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    "can't start new thread; this user": RuntimeError("can't start new thread"),
    "The current node timed out during startup.; see that": Exception(
        "The current node timed out during startup.\nThis could happen"
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_why_ray_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    def refuse(**_: object) -> None:
        raise FAILURES[failure]

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(SessionError) as caught, ray_session(None):
        pass
    message = str(caught.value)
    assert message.startswith("Ray cannot start")
    assert "\n" not in message
    assert failure in message


def test_a_long_folder_of_temporary_files_is_not_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch systems give each job one; a socket's path has 107 bytes at most."""
    long = Path("/tmp") / ("job" * 15)
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(session, "gettempdir", lambda: str(long))
    configure_ray()
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    configure_ray()
    assert os.environ["RAY_TMPDIR"] == str(long)
    assert "must have at most 40 bytes" in session._why_not_started(OSError("AF_UNIX path length"))
