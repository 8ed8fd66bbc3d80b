"""Run a checked request from the first image to the report, for the command and for Python."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING

from search.api.run_lock import locked
from search.cluster.parallel import start_workers
from search.cluster.session import SessionError, configure_ray, ray_session
from search.cluster.watch import end_marked_processes
from search.console.formatting import printable
from search.console.output import print_error
from search.console.progress import Progress
from search.console.run_log import start_run_log
from search.console.signals import FAILED, GracefulShutdown
from search.pipeline.preflight import RunPlan, prepare_run
from search.runs.environment import Request
from search.runs.run_folder import ENVIRONMENT, RUN_LOG, RunFolder
from search.runs.sync import synced
from spaces.errors import SearchError
from spaces.timm_names import PREFIX, load_timm
from trainables.images import pixel_limit

if TYPE_CHECKING:
    from search.tuning.tune import Callback

_LIBRARIES = ("ray", "optuna")
"""Libraries whose log levels a run changes."""

_log = logging.getLogger(__name__)

_running = Lock()


def execute(
    request: Request,
    shutdown: GracefulShutdown,
    on_prepared: Callable[[RunPlan], None],
    arguments: Sequence[str] | None = None,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Check a request, start Ray, run every stage, and return the exit code.

    A new run that ends, for whatever reason, before its first result is deleted.

    Args:
        request: The request.
        shutdown: Handles the signals meanwhile.
        on_prepared: Called with the plan of the run when its folder exists.
        arguments: The request as words of the command line, for the run's log; None: this
            program's.
        callbacks: Callbacks for Ray Tune, beside the run's own.

    Raises:
        SearchError: a mistake of the user, or another command works on the run; the kinds are those
            of `prepare_run` and `flow.run`.
        KeyboardInterrupt: the user stopped the run; all that was finished is saved.
    """
    with ExitStack() as lock:
        run = request.resume
        is_here = run is not None and (run / ENVIRONMENT).is_file()

        def hold(folder: Path) -> bool:
            return lock.enter_context(locked(folder, _warn))

        if run is not None and is_here:  # it is read when no other command writes it any more
            hold(run)

        def prepared(run_plan: RunPlan) -> None:
            if run is not None and not is_here:
                hold(run)
            on_prepared(run_plan)

        return _execute(request, shutdown, hold, prepared, arguments, callbacks)


def _warn(text: str) -> None:
    print(f"warning: {printable(text)}", file=sys.stderr)


def _execute(
    request: Request,
    shutdown: GracefulShutdown,
    hold: Callable[[Path], bool],
    on_prepared: Callable[[RunPlan], None],
    arguments: Sequence[str] | None,
    callbacks: Sequence[Callback],
) -> int:
    """Run a request whose run is locked, or will be by `hold` or `on_prepared`."""
    run_plan = None
    try:
        run_plan = replace(prepare_run(request, hold), callbacks=tuple(callbacks))
        on_prepared(run_plan)
        imports = Thread(target=_import_networks, args=(run_plan.backbones,), daemon=True)
        imports.start()
        with (
            shutdown.watching(),
            pixel_limit(run_plan.request.max_megapixels),
            Progress(request.is_quiet) as progress,
            synced(run_plan.folder.path, run_plan.request.shared, progress.warn),
            _unchanged_if_refused(run_plan.folder, is_resumed=request.resume is not None),
            start_run_log(run_plan.folder.path / RUN_LOG, request.verbose, arguments),
        ):
            for line in run_plan.manifest.describe():
                progress.say(line)
            for warning in run_plan.warnings:
                progress.warn(warning)

            def end(what: str) -> None:
                _log.error("%s has ended", what)
                print_error(f"{what} has ended, killed or out of memory")
                _delete_without_result(run_plan)
                shutdown.end_program(FAILED, end_marked_processes)

            with ray_session(request.address, on_lost=end):
                shutdown.watch()
                # With --max-latency, a backbone is measured before anything else computes.
                if run_plan.request.max_latency_ms is None and not _probes_here(run_plan):
                    start_workers("trainables.worker")
                imports.join()  # meanwhile nothing could import Weights & Biases
                from search.pipeline import flow

                return flow.run(run_plan, progress, shutdown)
    except BaseException:
        _delete_without_result(run_plan)
        raise


def _import_networks(backbones: Sequence[str]) -> None:
    """Import what takes seconds, PyTorch with its networks, while Ray starts."""
    import_module("search.pipeline.flow")
    if any(name.startswith(PREFIX) for name in backbones):
        load_timm()


def _probes_here(run_plan: RunPlan) -> bool:
    """Return whether this process will probe the first backbone, so that workers may start later.

    See `search.pipeline.backbones.ranking`.
    """
    from search.cluster.nodes import is_one_cpu_node  # it imports Ray

    is_ranking = len(run_plan.backbones) > 1 and run_plan.folder.summary.linear_probe is None
    return is_ranking and run_plan.request.probe and is_one_cpu_node()


@contextmanager
def _unchanged_if_refused(folder: RunFolder, is_resumed: bool) -> Iterator[None]:
    """Remove what a resumed run that is refused has logged: all its files stay as they were.

    A refusal comes before a resumed run writes anything else.
    """
    log = folder.path / RUN_LOG
    size = log.stat().st_size if log.is_file() else None
    try:
        yield
    except SearchError:
        if is_resumed and not folder.has_saved_request:
            if size is None:
                log.unlink(missing_ok=True)
            else:
                os.truncate(log, size)
        raise


def _delete_without_result(run_plan: RunPlan | None) -> None:
    """Delete a new run that has no result, here and in storage: its name is free again."""
    if run_plan is None or run_plan.request.resume is not None or run_plan.folder.has_result:
        return
    run_plan.folder.delete()
    if run_plan.request.shared is not None:
        with suppress(OSError):  # that its copy cannot be written was a warning
            run_plan.request.shared.delete()


@contextmanager
def guest_process() -> Iterator[None]:
    """Configure Ray within a program that is not ours, and leave the program as it was.

    Environment variables and the log levels of libraries are restored at the end.

    Raises:
        SessionError: a search is running in this process already.
    """
    if not _running.acquire(blocking=False):
        raise SessionError(
            "a search is running in this process already: wait for its end, or begin another"
            " process"
        )
    variables = dict(os.environ)
    try:
        with same_log_levels():
            configure_ray()
            yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        _running.release()


@contextmanager
def same_log_levels() -> Iterator[None]:
    """Restore the log levels of libraries at the end."""
    levels = {name: logging.getLogger(name).level for name in _LIBRARIES}
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
