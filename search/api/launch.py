"""Begin or resume a run from Python: options to a request, errors instead of exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from search.api.execution import execute, guest_process
from search.api.options import Option, as_arguments, request_of
from search.api.space_file import write_space
from search.console.formatting import METRIC_NAMES, describe, describe_score
from search.console.signals import GracefulShutdown
from search.pipeline.preflight import RunPlan
from search.pipeline.request import RequestError
from search.runs.run_folder import RunFolder
from spaces.base import Space
from spaces.errors import SearchError

if TYPE_CHECKING:
    from search.tuning.tune import Callback


class NoModelError(SearchError):
    """A run made no model, though nothing was wrong with the request."""


def launch(
    space: Space | str | Path | None,
    callbacks: Sequence[Callback],
    options: Mapping[str, Option],
) -> Path:
    """Run a search and return its folder.

    Args:
        space: A space, or its file; None as for the command.
        callbacks: Callbacks for Ray Tune.
        options: See `search.api.options.as_arguments`.

    Raises:
        SearchError: a mistake of the user.
        NoModelError: no trial ended an epoch.
        KeyboardInterrupt: the user stopped the run; all that was finished is saved.
    """
    run_plan: RunPlan | None = None

    with guest_process(), _space_file(space) as file:
        named = {} if file is None else {"space": file}
        arguments = as_arguments({**named, **options})
        _check_callbacks(callbacks)

        def on_prepared(prepared: RunPlan) -> None:
            nonlocal run_plan
            run_plan = prepared
            _record(prepared, arguments, file if isinstance(space, Space) else None)

        shutdown = GracefulShutdown(ends_program=False)
        try:
            code = execute(request_of(arguments), shutdown, on_prepared, arguments, callbacks)
        except KeyboardInterrupt:
            if run_plan is not None:
                _show_best_so_far(run_plan.folder)
            raise
    assert run_plan is not None  # else there was an error
    if code != 0:
        raise NoModelError(
            f"no trial of {run_plan.folder.path} ended an epoch: its trials.csv and run.log say why"
        )
    return run_plan.folder.path


@contextmanager
def _space_file(space: object) -> Iterator[Path | None]:
    """Give the file of a space; that of a space made in Python is there only within."""
    if not isinstance(space, Space):
        if not isinstance(space, str | PathLike | None):
            kind = space.__name__ if isinstance(space, type) else type(space).__name__
            raise RequestError(f"space must be a Space, its file or its name, but got {kind}")
        yield None if space is None else Path(space)
        return
    with TemporaryDirectory(prefix="search-space-") as folder:
        file = Path(folder) / "space.py"
        write_space(file, space)
        yield file


def _record(run_plan: RunPlan, arguments: Sequence[str], temporary: Path | None) -> None:
    """Save the command that equals a call, with the run's own copy of a temporary space file."""
    if run_plan.request.resume is not None:
        return
    environment, own = run_plan.folder.environment, run_plan.folder.path.absolute() / "space.py"
    words = [f"--space={own}" if word == f"--space={temporary}" else word for word in arguments]
    request = environment.request
    run_plan.folder.save_environment(
        replace(
            environment,
            command=[Path(sys.executable).name, "-m", "search.run", *words],
            request=request if temporary is None else replace(request, space=own),
        )
    )


def _check_callbacks(callbacks: object) -> None:
    if not callbacks:
        return
    from search.tuning.tune import Callback  # whoever made one has imported Ray Tune

    if not isinstance(callbacks, Iterable):
        raise RequestError(f"callbacks must be a list, but got {callbacks!r}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise RequestError(f"callbacks must be of ray.tune.Callback, but got {callback!r}")


def _show_best_so_far(folder: RunFolder) -> None:
    """Print the results of an interrupted run, and what resumes it."""
    print("interrupted; all that was finished is saved")
    if (best := folder.summary.best) is not None:
        metric = folder.summary.metric
        score = best.val_accuracy if metric == "accuracy" else best.val_score
        value = f"{METRIC_NAMES[metric]} {describe_score(metric, score, 2)}"
        print(f"best so far: validation {value}: {describe(best.config)}")
    print(f"resume: load_run({str(folder.path)!r}).resume()")
