"""Find the best image classifier for a folder of images.

```
python -m search.run --space spaces/caltech.py
```

This file checks the request and starts Ray; the flow itself is in `search.pipeline.flow`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from threading import Thread

from search.cluster.session import SessionError, configure_ray, ray_session
from search.console.formatting import describe
from search.console.progress import Progress
from search.console.run_log import start_run_log
from search.console.signals import FAILED, GracefulShutdown
from search.data.class_folders import DataError
from search.pipeline.preflight import RunPlan, check
from search.pipeline.request import RequestError, parse_request
from search.runs.run_folder import FolderError
from search.runs.storage import StorageError
from search.runs.sync import synced
from spaces.base import SpaceError
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
"""What the user can get wrong: exit code 2 and one message."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    configure_ray()
    request = parse_request(arguments)
    run_plan: RunPlan | None = None
    shutdown = GracefulShutdown(lambda: show_best_so_far(run_plan))
    try:
        run_plan = check(request)
        # The flow imports PyTorch, which takes seconds: Ray starts meanwhile.
        Thread(target=import_module, args=("search.pipeline.flow",), daemon=True).start()
        with (
            shutdown.watching(),
            Progress(request.quiet) as progress,
            synced(run_plan.folder.path, run_plan.request.shared, progress.warn),
            start_run_log(run_plan.folder.path / "run.log", request.verbose),
            ray_session(request.address),
        ):
            shutdown.watch()
            from search.pipeline import flow

            return flow.run(run_plan, progress, shutdown)
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        if run_plan is not None and request.resume is None:
            if run_plan.folder.has_trials:
                show_best_so_far(run_plan)
            else:
                run_plan.folder.discard()  # nothing is in it yet, and its name is free again
        return 2
    except KeyboardInterrupt:
        show_best_so_far(run_plan)
        return shutdown.exit_code
    except Exception as error:
        if not is_disk_full(error):
            raise
        where = request.folder if run_plan is None else run_plan.folder.path
        print(f"error: no space is left for {where}; make room on its disk", file=sys.stderr)
        show_best_so_far(run_plan)
        return FAILED


def show_best_so_far(run_plan: RunPlan | None) -> None:
    """Print what a run that was cut short has, and the command that carries it on."""
    print("interrupted; what was finished is kept", file=sys.stderr)
    if run_plan is None:
        return
    folder = run_plan.folder
    best = folder.summary.get("best")
    if best:
        print(f"best so far: {best['val_accuracy']:.4f} in validation: {describe(best['config'])}")
    if (folder.path / "model.pt").is_file():
        print(f"usable already: python -m search.predict {folder.path} IMAGE…")
    print(f"carry on: python -m search.run --resume {folder.path}")


if __name__ == "__main__":
    sys.exit(main())
