"""Find the best image classifier for a folder of images.

```
python -m search.run --space spaces/caltech.py
```

This module checks the request and starts Ray; the stages of a run are in `search.pipeline.flow`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from threading import Thread

from search.cluster.session import SessionError, configure_ray, ray_session
from search.console.commands import as_called
from search.console.formatting import describe, percent, quote_path
from search.console.output import command, print_error
from search.console.progress import Progress
from search.console.run_log import start_run_log
from search.console.signals import FAILED, GracefulShutdown
from search.data.image_files import DataError
from search.pipeline.preflight import RunPlan, prepare_run
from search.pipeline.request import RequestError, parse_request
from search.runs.run_folder import MODEL, RUN_LOG
from search.runs.storage import StorageError
from search.runs.sync import synced
from search.runs.validation import FolderError
from spaces.rules import SpaceError
from spaces.sources import SourceError
from trainables.disk_full import is_disk_full
from trainables.models.weights import WeightsError

MISTAKES = (
    SpaceError,
    SourceError,
    DataError,
    WeightsError,
    FolderError,
    RequestError,
    SessionError,
    StorageError,
)
"""Errors that the user can correct: exit code 2 and one message."""


@command(continues=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    configure_ray()
    request = parse_request(arguments)
    run_plan: RunPlan | None = None
    shutdown = GracefulShutdown(lambda: show_best_so_far(run_plan))
    try:
        run_plan = prepare_run(request)
        # The flow imports PyTorch, which takes seconds, and Ray starts in parallel.
        Thread(target=import_module, args=("search.pipeline.flow",), daemon=True).start()
        with (
            shutdown.watching(),
            Progress(request.quiet) as progress,
            synced(run_plan.folder.path, run_plan.request.shared, progress.warn),
            start_run_log(run_plan.folder.path / RUN_LOG, request.verbose),
            ray_session(request.address),
        ):
            shutdown.watch()
            for warning in run_plan.warnings:
                progress.warn(warning)
            from search.pipeline import flow

            return flow.run(run_plan, progress, shutdown)
    except MISTAKES as error:
        print_error(error)
        if run_plan is not None and request.resume is None:
            if run_plan.folder.has_trials:
                show_best_so_far(run_plan)
            else:
                _delete(run_plan)
        return 2
    except KeyboardInterrupt:
        show_best_so_far(run_plan)
        return shutdown.exit_code
    except Exception as error:
        if not is_disk_full(error):
            raise
        where = request.folder if run_plan is None else run_plan.folder.path
        print_error(f"no space is left for {where}; make room on its disk")
        show_best_so_far(run_plan)
        return FAILED


def _delete(run_plan: RunPlan) -> None:
    """Delete a run that has no result, here and in storage: its name is free again."""
    run_plan.folder.delete()
    if run_plan.request.shared is not None:
        with suppress(OSError):  # that its copy cannot be written was a warning
            run_plan.request.shared.delete()


def show_best_so_far(run_plan: RunPlan | None) -> None:
    """Print the results of an interrupted run, and the command that resumes it."""
    print("interrupted; all that was finished is saved", file=sys.stderr)
    if run_plan is None:
        return
    folder = run_plan.folder
    best = folder.summary.best
    if best is not None:
        accuracy = percent(best.val_accuracy, 2)
        print(f"best so far: validation accuracy {accuracy}: {describe(best.config)}")
    if (folder.path / MODEL).is_file():
        print(as_called(f"model saved: python -m search.predict {quote_path(folder.path)} IMAGE…"))
    print(as_called(f"resume: python -m search.run --resume {quote_path(folder.path)}"))


if __name__ == "__main__":
    sys.exit(main())
