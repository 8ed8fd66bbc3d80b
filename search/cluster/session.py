"""A Ray session: this machine's own, or a running cluster's."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WORKER_BYTES = 10**9
"""What a worker that trains takes of its own, beside what it reads in the object store."""


def store_proportion() -> float:
    """Return the share of the memory that Ray's object store may grow to: 0.3, Ray's own, to 0.5.

    View banks are what a search saves its time with, so they get what the workers leave. The
    memory is taken only as it is filled.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = 1 - ((os.cpu_count() or 1) + 1) * _WORKER_BYTES / memory
    return min(0.5, max(0.3, left))


# Ray reads these when it is imported and when it starts. What it would print is shown by
# `search.console.progress`, kept by the study, or written by `search.reporting.tensorboard`.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_THRESHOLD_S": "3600",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1e9",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # the limit on trials at a time is ours
    "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": f"{store_proportion():.3f}",
}
for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.exceptions import AuthenticationError  # noqa: E402

import search  # noqa: E402
import spaces  # noqa: E402
import trainables  # noqa: E402

# Tune starts its actors in this environment. Where all workers have it, those that decoded
# images and built banks go on as trials, instead of new ones importing PyTorch again.
_WORKER_VARIABLES = {"PL_DISABLE_FORK": "1"}

_OUR_PACKAGES = (search, trainables, spaces)


class SessionError(ValueError):
    """The cluster that was asked for cannot be joined."""


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; leave it in the end.

    Call it in the main thread: Ray's processes end with the thread that started them.

    Args:
        address: As `ray.init` takes it; None starts Ray here.

    Raises:
        SessionError: there is no cluster at the address, or it does not let us in.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address and address.startswith("ray://"):
        raise SessionError(
            f"the search runs on a machine of the cluster, but --address is {address!r}: give"
            " --address auto there, or send the command with `ray job submit`"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=worker_environment(on_cluster=address is not None),
            )
        # To who has another token, Ray says no more than that it could not connect.
        except (AuthenticationError, ConnectionError, RuntimeError) as error:
            if address is None:
                raise
            raise SessionError(
                f"no Ray cluster answers at {address!r}, or it refuses this machine: {error};"
                " start one with `ray up` or `ray start --head`, and see that ~/.ray/auth_token"
                " here is the head's and that RAY_AUTH_MODE is token; or leave --address out"
            ) from None
    try:
        yield
    finally:
        ray.shutdown()


def worker_environment(on_cluster: bool) -> dict[str, Any]:
    """Return Ray's runtime environment of all workers; on a cluster our code goes with it."""
    environment: dict[str, Any] = {"env_vars": _WORKER_VARIABLES}
    if on_cluster:
        environment |= {
            "py_modules": [package.__path__[0] for package in _OUR_PACKAGES],
            "excludes": ["__pycache__"],
        }
    return environment
