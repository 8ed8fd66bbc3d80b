"""Find the best image classifier for a folder of images.

```
python -m search.run --space spaces/caltech.py
```

This module parses the command line and shows mistakes; `search.api.execution` runs the request,
and the stages of a run are in `search.pipeline.flow`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir

from search.api.execution import execute
from search.cluster.session import configure_ray
from search.cluster.watch import describe_loss
from search.console.commands import as_called
from search.console.formatting import METRIC_NAMES, describe, describe_score, quote_path
from search.console.output import command, print_error
from search.console.signals import FAILED, GracefulShutdown
from search.pipeline.preflight import RunPlan
from search.pipeline.request import parse_request
from search.runs.run_folder import MODEL
from spaces.errors import SearchError
from trainables.disk_full import fullest, is_disk_full


@command(continues=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    configure_ray()
    request = parse_request(arguments)
    run_plan: RunPlan | None = None

    def keep(prepared: RunPlan) -> None:
        nonlocal run_plan
        run_plan = prepared

    shutdown = GracefulShutdown(lambda: show_best_so_far(run_plan))
    try:
        return execute(request, shutdown, keep, arguments)
    except SearchError as error:  # what the user can correct
        print_error(error)
        if run_plan is not None and request.resume is None and run_plan.folder.has_result:
            show_best_so_far(run_plan)
        return 2
    except KeyboardInterrupt:
        show_best_so_far(run_plan)
        return shutdown.exit_code
    except Exception as error:
        where = request.folder if run_plan is None else run_plan.folder.path
        reason = describe_loss(error)
        if is_disk_full(error):
            full = fullest((where, Path(gettempdir())))
            reason = f"no space is left for {full}; make room on its disk"
        if reason is None:
            raise
        print_error(reason)
        show_best_so_far(run_plan)
        return FAILED


def show_best_so_far(run_plan: RunPlan | None) -> None:
    """Print the results of an interrupted run, and the command that resumes it."""
    if run_plan is not None and not run_plan.folder.path.exists():
        print("interrupted before anything was finished; nothing is kept", file=sys.stderr)
        return
    # A script reads the summary of a finished run from the standard output.
    output = sys.stderr if run_plan is not None and run_plan.request.json else sys.stdout
    print("interrupted; all that was finished is saved", file=sys.stderr)
    if run_plan is None:
        return
    folder = run_plan.folder
    best = folder.summary.best
    if best is not None:
        metric = folder.summary.metric
        score = best.val_accuracy if metric == "accuracy" else best.val_score
        value = f"{METRIC_NAMES[metric]} {describe_score(metric, score, 2)}"
        print(f"best so far: validation {value}: {describe(best.config)}", file=output)
    if (folder.path / MODEL).is_file():
        model = as_called(f"python -m search.predict {quote_path(folder.path)} IMAGE…")
        print(f"model saved: {model}", file=output)
    resume = as_called(f"python -m search.run --resume {quote_path(folder.path)}")
    print(f"resume: {resume}", file=output)


if __name__ == "__main__":
    sys.exit(main())
