"""Ray's own processes, and what is said of lost workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import psutil
import pytest
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from search.cluster.session import configure_ray
from search.cluster.watch import (
    describe_loss,
    end_marked_processes,
    marking_processes,
    watching_services,
)

LIMITS = (
    "RAY_min_memory_free_bytes",
    "RAY_task_oom_retries",
    "RAY_worker_killing_policy_by_group",
)


@pytest.fixture
def raylet(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A child of this process that is called as Ray's raylet is."""
    program = Path(shutil.copy("/bin/sleep", tmp_path / "raylet"))
    return subprocess.Popen([program, "60"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_service_that_ends_is_named_once(raylet: subprocess.Popen[bytes]) -> None:
    lost: list[str] = []
    called = Event()

    def on_lost(what: str) -> None:
        lost.append(what)
        called.set()

    with watching_services(on_lost):
        os.kill(raylet.pid, signal.SIGKILL)
        assert called.wait(10)
    raylet.wait()
    assert lost == [f"the raylet, which runs Ray's workers (process {raylet.pid})"]


def test_nothing_is_said_when_the_block_ends_first(raylet: subprocess.Popen[bytes]) -> None:
    lost: list[str] = []
    with watching_services(lost.append):
        pass
    raylet.kill()
    raylet.wait()
    assert lost == []


def start_two() -> tuple[subprocess.Popen[str], int]:
    """Start a process that starts another, which goes on without it; return both."""
    starts = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_processes_of_the_own_session_end_and_no_others() -> None:
    with marking_processes():
        ours, our_child = start_two()
    assert "CLASSIFIER_SEARCH_SESSION" not in os.environ
    other, other_child = start_two()
    with ours, other:
        ours.kill()  # its child is nobody's now
        child = psutil.Process(our_child)
        end_marked_processes()
        assert psutil.wait_procs([child], 10)[0] == [child]
        assert other.poll() is None
        assert psutil.Process(other_child).is_running()
        other.kill()
        os.kill(other_child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemoryError("a task was killed"), "memory is full"),
        (WorkerCrashedError(), "a system without memory left"),
        (RayActorError(), "a system without memory left"),
        (RayTaskError("train", "trace", WorkerCrashedError()), "a system without memory left"),
        (NodeDiedError("gone"), "session has ended"),
    ],
)
def test_why_work_was_lost_is_one_line(error: Exception, words: str) -> None:
    text = describe_loss(error)
    assert text is not None
    assert words in text
    assert "\n" not in text


def test_an_error_of_our_own_is_none_of_rays() -> None:
    assert describe_loss(ValueError("no")) is None
    assert describe_loss(RayTaskError("train", "trace", ValueError("no"))) is None


def test_ray_kills_one_worker_at_a_time_and_not_for_ever() -> None:
    configure_ray()
    limits = {name: os.environ.get(name, "") for name in LIMITS}
    assert limits["RAY_worker_killing_policy_by_group"] == "1"
    assert 0 < int(limits["RAY_task_oom_retries"]) < 10
    assert 0 < int(limits["RAY_min_memory_free_bytes"]) < 10**9
