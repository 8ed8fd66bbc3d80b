"""A search on two nodes, which `ray.cluster_utils` starts on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.cluster.runs import SPACE, read_csv
from tests.system.cluster.two_nodes import SECOND_ADDRESS

pytestmark = [pytest.mark.slow, pytest.mark.alone]

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of-these-tests-alone",
    "RAY_raylet_start_wait_time_s": "120",  # a loaded machine takes long
    "RAY_agent_register_timeout_ms": "120000",
}

PRINT_CODE_PATHS = """
import sys
from search.cluster.session import configure_ray, ray_session
configure_ray()
import ray

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def code_paths():
    import search, spaces, trainables
    return [package.__file__ for package in (search, spaces, trainables)]

with ray_session(sys.argv[1]):
    for paths in ray.get([code_paths.remote(), code_paths.remote()]):
        print(*paths)
"""

DRAIN = """
import subprocess, sys
from search.cluster.session import configure_ray, ray_session
configure_ray()
import ray
from search.cluster.nodes import draining_nodes, is_draining, nodes

reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
limit = ["--deadline-remaining-seconds", "60"]

@ray.remote(num_cpus=1)
class Worker:
    def is_draining(self):
        return is_draining()

    def node(self):
        return ray.get_runtime_context().get_node_id()

with ray_session(sys.argv[1]):
    workers = [Worker.options(scheduling_strategy="SPREAD").remote() for _ in range(2)]
    before = ray.get([worker.is_draining.remote() for worker in workers])
    assert len(nodes()) == 2 and not draining_nodes() and before == [False, False]
    (second,) = [n["NodeID"] for n in ray.nodes() if n["NodeManagerAddress"] == sys.argv[2]]
    command = ["ray", "drain-node", "--address", sys.argv[1], "--node-id", second]
    subprocess.run([*command, *reason, *limit], check=True)
    assert draining_nodes() == {second} and len(nodes()) == 1
    assert not is_draining()
    for worker in workers:
        drained = ray.get(worker.node.remote()) == second
        assert ray.get(worker.is_draining.remote()) == drained
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.system.cluster.two_nodes"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, process.communicate()[1]
    yield address
    process.communicate("")  # closes its input, which ends it


def python(
    *arguments: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env={**ENVIRONMENT, **environment},
        check=False,
    )


def test_both_nodes_work_and_storage_has_all_files(address: str, tmp_path: Path) -> None:
    space = tmp_path / "space.py"
    space.write_text(SPACE)
    storage = tmp_path / "storage"
    done = python(
        *("-m", "search.run", "--address", address, "--storage", storage, "--space", space),
        *("--limit", "300", "--trials", "6", "--epochs", "2", "--folds", "2"),
        *("--out", tmp_path / "out", "--name", "run"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "out" / "run"
    trials = read_csv(run / "trials.csv")
    assert len(trials) == 6
    assert all(trial["state"] in ("complete", "pruned") for trial in trials)
    folds = read_csv(run / "folds" / "folds.csv")
    assert SECOND_ADDRESS in {row["node"] for row in (*trials, *folds)}
    assert len({row["node"] for row in (*trials, *folds)}) == 2
    # Storage has a copy of the run, weights included, and no checkpoint remains.
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads((storage / "run" / "summary.json").read_text()) == summary
    assert (storage / "run" / "model.pt").read_bytes() == (run / "model.pt").read_bytes()
    assert list(storage.rglob("best.pt"))
    assert len(list(run.rglob("best.pt"))) == len(list(storage.rglob("best.pt")))
    assert not list(storage.rglob("checkpoint.pt"))
    assert not list(storage.rglob("*.partial"))


def test_code_is_sent_to_the_nodes(address: str, tmp_path: Path) -> None:
    # Not in the project's folder: Ray's workers look for modules in the driver's folder first.
    done = python("-c", PRINT_CODE_PATHS, address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    paths = done.stdout.split()
    assert len(paths) == 6
    assert all("py_modules_files" in path for path in paths)


def test_another_token_is_refused(address: str, tmp_path: Path) -> None:
    arguments = ("-m", "search.run", "--address", address, "--out", tmp_path)
    done = python(*arguments, RAY_AUTH_TOKEN="another")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].endswith("1,797 images"), "the images, and nothing more"
    assert "refuses this machine" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_see_that_their_node_is_drained(address: str) -> None:
    """The last test, since the node is gone after it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = python("-c", DRAIN, address, SECOND_ADDRESS, PATH=path)
    assert done.returncode == 0, done.stderr
