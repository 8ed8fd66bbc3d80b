import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.cluster.session import configure_ray, worker_environment

configure_ray()  # before any test imports Ray
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray sets it for a trial; before torch is there

pytest_plugins = ("tests.fixtures.colours",)

_SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images in the folder beside the repository."""
    if not (_SHARED_DATA / "caltech101").is_dir():
        pytest.skip(f"no real images at {_SHARED_DATA}")
    return _SHARED_DATA


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray session with two CPUs for all tests of a process; its workers are reused by trials."""
    import ray

    # "local", so that tests never join a cluster that happens to run on the machine.
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=worker_environment(on_cluster=False),
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run on the embedded digits, with external images.

    All processes of pytest-xdist share it, so no test may change it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    run = shared / "results" / "digits"
    with (shared / "digits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "report.html").is_file():
            _run_digits(run)
    return run


def _run_digits(run: Path) -> None:
    command = ["--limit", "300", "--trials", "4", "--epochs", "3", "--folds", "2", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "search.run", *command, "--out", run.parent, "--name", run.name],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
