"""Configure Ray, start it on this machine, or join a running cluster.

Importing this module does not import Ray: `configure_ray` has to come first.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir
from time import monotonic
from typing import Any

from search.cluster.token_file import make_private
from search.cluster.watch import marking_processes, watching_services
from spaces.errors import SearchError
from trainables.disk_full import is_disk_full

_log = logging.getLogger(__name__)

_WORKER_BYTES = 10**9
"""Memory that a training worker takes for itself, beside what it reads from the object store."""

_VARIABLES = {
    # Read while Ray Tune is imported.
    "TUNE_WARN_THRESHOLD_S": "3600",
    # Read by `ray.init` and by the processes that it starts.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",  # served on 0.0.0.0, to everybody
    # Ray ends workers when memory is short: not at 95% of a large machine, whoever uses it, but if
    # little is left; one worker, not all; and tries a task again a few times, not for ever.
    "RAY_min_memory_free_bytes": f"{512 * 2**20}",
    "RAY_worker_killing_policy_by_group": "1",
    "RAY_task_oom_retries": "5",
    # Read by `tune.run`. What it would print is shown by `search.console.progress`, what it would
    # save is in the study, what it would log is written by `search.reporting.tensorboard`.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # the searcher limits how many trials run in parallel
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1e9",
}

_LOG_LEVELS = {
    "ray": logging.ERROR,
    # Tune's copy of its own state, which nothing here reads. Where a search ends within seconds, it
    # copies files that are just being renamed, and would print a traceback. The name is private; a
    # test compares it.
    "ray.tune.execution.experiment_state": logging.CRITICAL,
}

WORKER_VARIABLES = {"PL_DISABLE_FORK": "1"}
"""Environment variables of all workers, equal to those that Ray Tune gives its actors.

Ray starts a trial in an idle worker only if the two environments are equal: then the workers that
decoded images and computed features become trials, instead of new ones that import PyTorch again.
Tune's are private (`DEFAULT_ENV_VARS` in `ray.tune.execution.class_cache`); a test compares them.
"""

_MAX_TEMPORARY = 40
"""Bytes of the path of Ray's temporary files: a socket's has 107, of which Ray's names take 67."""
_TEMPORARY = Path("/tmp")  # noqa: S108 (Ray's own default)

_OUR_PACKAGES = ("search", "trainables", "spaces")

_actors: list[Any] = []
"""Handles of the actors that end with the session."""


class SessionError(SearchError):
    """Ray cannot be started on this machine, or the requested cluster cannot be joined."""


def configure_ray() -> None:
    """Set the environment variables that Ray and Ray Tune read; those that are set already stay.

    Call it before anything imports `ray` or `ray.tune`, which read some of them at import.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    # Read while Ray is imported.
    os.environ.setdefault("RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION", f"{store_proportion():.3f}")
    # Batch systems give a job a long TMPDIR, in which Ray could make no sockets.
    if len(os.fsencode(gettempdir())) > _MAX_TEMPORARY and os.access(_TEMPORARY, os.W_OK | os.X_OK):
        os.environ.setdefault("RAY_TMPDIR", str(_TEMPORARY))


def store_proportion() -> float:
    """Return the fraction of the memory that Ray's object store may grow to, in [0.3, 0.5].

    Cached features are what a search saves its time with, so the store gets what the workers leave;
    Ray's own default is 0.3. The memory is taken only as it is filled.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = 1 - ((os.cpu_count() or 1) + 1) * _WORKER_BYTES / memory
    return min(0.5, max(0.3, left))


@contextmanager
def ray_session(
    address: str | None,
    show_worker_output: bool = False,
    on_lost: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Start Ray on this machine or join a cluster, and disconnect at the end.

    Where this process has started Ray already, its session is used, and stays. Ray's processes end
    with the thread that started them, so that thread must live as long as the session.

    Args:
        address: As `ray.init` takes it; None starts Ray on this machine.
        show_worker_output: Print what workers print and log on their standard outputs.
        on_lost: Called, in another thread, when a process of Ray's own that was started here ends:
            see `search.cluster.watch`.

    Raises:
        SessionError: Ray cannot start; there is no cluster at the address, or it refuses this
            machine; or Ray was started already, as a client, on a cluster, or beside an address.
    """
    import ray
    from ray.exceptions import AuthenticationError

    if address and address.startswith("ray://"):
        raise SessionError(
            f"the search runs on a node of the cluster, but --address is {address!r}: give"
            " --address auto there, or send the command with `ray job submit`"
        )
    if ray.is_initialized():
        _check_session(address)
        _log.info("Ray %s was started already, resources %s", ray.__version__, _resources())
        levels = _set_log_levels(_LOG_LEVELS)
        try:
            yield
        finally:
            _set_log_levels(levels)
            for actor in _actors:
                ray.kill(actor)
            _actors.clear()
        return
    check_working_directory()
    make_private()
    _set_log_levels(_LOG_LEVELS)
    started = monotonic()
    # A cluster that is joined is another one's: none of its processes is ours to end.
    marking = marking_processes() if address is None else nullcontext()
    with warnings.catch_warnings(), marking:
        warnings.simplefilter("ignore")
        try:
            context: Any = ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=show_worker_output,
                logging_level=logging.ERROR,
                runtime_env=worker_environment(on_cluster=address is not None),
            )
        # Ray raises anything where it cannot start, and to a client with another token it only
        # reports that it could not connect.
        except Exception as error:
            if address is None:
                raise SessionError(_why_not_started(error)) from error
            if not isinstance(error, AuthenticationError | ConnectionError | RuntimeError):
                raise
            raise SessionError(
                f"no Ray cluster answers at {address!r}, or it refuses this machine: {error};"
                " start one with `ray up` or `ray start --head`, and see that ~/.ray/auth_token"
                " here is the head's and that RAY_AUTH_MODE is token; or omit --address"
            ) from None
    _log.info(
        "Ray %s %s in %.1f s, resources %s",
        ray.__version__,
        f"joined at {address}" if address else "started",
        monotonic() - started,
        _resources(),
    )
    session_files = "" if address else context.address_info["session_dir"]
    try:
        with nullcontext() if on_lost is None else watching_services(on_lost):
            yield
    finally:
        _actors.clear()
        ray.shutdown()
        if session_files:  # logs and sockets, which Ray leaves
            shutil.rmtree(session_files, ignore_errors=True)
        _log.info("Ray session ended after %.0f s", monotonic() - started)


def _why_not_started(error: Exception) -> str:
    """Describe why Ray did not start on this machine, and the way out."""
    temporary = Path(os.environ.get("RAY_TMPDIR") or gettempdir())
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = f"Ray cannot start on this machine: {lines[0]}"
    if is_disk_full(error):
        return f"Ray cannot start: no space is left for {temporary}; make room there, or set TMPDIR"
    if len(os.fsencode(temporary)) > _MAX_TEMPORARY:
        return (
            "Ray cannot start: the path of its temporary files must have at most"
            f" {_MAX_TEMPORARY} bytes, but is {temporary}: set RAY_TMPDIR to a shorter one"
        )
    if isinstance(error, BlockingIOError) or "start new thread" in reason:
        return f"{reason}; this user may have too few processes and threads: raise `ulimit -u`"
    return (
        f"{reason}; see that {temporary} can be written to, and that the machine has memory and"
        " processors left"
    )


def ends_with_session(actor: Any) -> Any:
    """Return an actor's handle after noting it: `ray_session` ends it, also where Ray goes on.

    Ray by itself would not: what Tune has pickled keeps such handles alive.
    """
    _actors.append(actor)
    return actor


def _set_log_levels(levels: Mapping[str, int]) -> dict[str, int]:
    """Set the levels of loggers by name, and return those before."""
    loggers = {name: logging.getLogger(name) for name in levels}
    before = {name: logger.level for name, logger in loggers.items()}
    for name, logger in loggers.items():
        logger.setLevel(levels[name])
    return before


def _resources() -> object:
    import ray

    return ray.cluster_resources()


def _check_session(address: str | None) -> None:
    """Check that a search can use the Ray session that this process has started.

    Raises:
        SessionError: it is another one's, or its other nodes have neither this code nor the images.
    """
    import ray
    from ray.util.client import ray as client

    way_out = "call ray.shutdown() first"
    if client.is_connected():
        raise SessionError(
            "Ray is connected as a client, but a search runs on a node of the cluster; " + way_out
        )
    if address is not None:
        raise SessionError(
            f"Ray was started already, so that --address {address!r} cannot be joined: {way_out},"
            " or omit --address"
        )
    n_nodes = sum(1 for node in ray.nodes() if node["Alive"])
    if n_nodes > 1:
        raise SessionError(
            f"Ray was started already, on a cluster of {n_nodes} nodes, to which this code and the"
            f" images have to be sent: {way_out}, and give --address auto"
        )


def check_working_directory() -> None:
    """Check that workers import the packages that this process runs.

    Ray puts the working directory before everything else that its workers import from, also where
    the driver does not look there: `classifier-search`, notebooks.

    Raises:
        SessionError: the working directory has a module of the name of one of our packages.
    """
    for name in _OUR_PACKAGES:
        ours = Path(import_module(name).__path__[0], "__init__.py")
        for other in (Path(name, "__init__.py"), Path(f"{name}.py")):
            if other.is_file() and not other.samefile(ours):
                raise SessionError(
                    f"workers would import {other.absolute()} instead of {ours}, which this"
                    " process runs: start it in another folder"
                )


def worker_environment(on_cluster: bool) -> dict[str, Any]:
    """Return Ray's runtime environment of all workers; on a cluster it carries this code."""
    environment: dict[str, Any] = {"env_vars": WORKER_VARIABLES}
    if on_cluster:
        environment |= {
            "py_modules": [import_module(name).__path__[0] for name in _OUR_PACKAGES],
            "excludes": ["__pycache__"],
        }
    return environment
