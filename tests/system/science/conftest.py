import fcntl
import os

import pytest

from tests.system.science.noise_run import NoiseRun, run_on_noise


@pytest.fixture(scope="session")
def noise_run(tmp_path_factory: pytest.TempPathFactory) -> NoiseRun:
    """A finished run on noise; all processes of pytest-xdist share it, so no test may change it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    run = NoiseRun(shared / "noise")
    with (shared / "noise.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run.path.exists():
            run_on_noise(run.path)
    assert (run.folder / "report.html").is_file(), "the run failed in another process"
    return run
