"""A Ray session: this machine's own, or a running cluster's."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Ray reads these when it is imported and when it starts. What it would print is shown by
# `search.progress`, kept by the study, or written by `search.tensorboard`.
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
}
for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

# Tune starts its actors in this environment. Where all workers have it, those that decoded
# pictures and built banks go on as trials, instead of new ones importing PyTorch again.
_WORKER_ENVIRONMENT = {"env_vars": {"PL_DISABLE_FORK": "1"}}


class SessionError(ValueError):
    """The cluster that was asked for cannot be joined."""


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; leave it in the end.

    Call it in the main thread: Ray's processes end with the thread that started them.

    Args:
        address: As `ray.init` takes it; None starts Ray here.

    Raises:
        SessionError: there is no cluster at the address.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=_WORKER_ENVIRONMENT,
            )
        except ConnectionError as error:
            raise SessionError(
                f"no Ray cluster answers at {address!r}: {error}; start one with `ray up"
                " cluster.yaml` or `ray start --head`, or leave --address out"
            ) from None
    try:
        yield
    finally:
        ray.shutdown()
