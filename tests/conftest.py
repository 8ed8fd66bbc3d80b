import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import search.session  # noqa: F401 - sets the environment that Ray reads

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray sets it for a trial; before torch is there

_SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real pictures that lie beside the repository."""
    if not _SHARED_DATA.is_dir():
        pytest.skip(f"no real pictures at {_SHARED_DATA}")
    return _SHARED_DATA


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of two CPUs for all tests."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
