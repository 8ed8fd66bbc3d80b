"""List runs: when they began, on which images, and how good their models are.

```
python -m search.list
python -m search.list results --json
```
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from search.console.arguments import Parser
from search.console.formatting import duration, interval, percent, printable
from search.console.output import command, print_error, table_console
from search.runs.listing import RESULTS, ListedRun, list_runs
from search.runs.validation import FolderError


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = create_parser().parse_args(arguments)
    try:
        runs = list_runs(options.results)
    except FolderError as error:
        print_error(error)
        return 2
    if options.json:
        print(json.dumps([asdict(run) for run in runs], indent=2))
    elif not runs:
        print(f"no runs in {options.results}", file=sys.stderr)
    else:
        _show(runs)
    return 0


def _show(runs: Sequence[ListedRun]) -> None:
    console = table_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "began (UTC)", "data"):
        table.add_column(name, overflow="fold")
    for name in ("classes", "images"):
        table.add_column(name, justify="right")
    table.add_column("test set, 95% CI", overflow="fold")
    table.add_column("took", justify="right")
    for run in runs:
        table.add_row(*_cells(run))
    console.print(table)
    for run in runs:
        if run.problem:
            print(printable(f"{run.run}: {run.problem}"), file=sys.stderr)


def _cells(run: ListedRun) -> list[str]:
    result = "damaged" if run.problem else "" if run.is_complete else "not finished"
    if run.test is not None and run.test_ci95 is not None:
        bounds = interval(run.test_ci95)
        result = f"{run.metric} {percent(run.test)}, {bounds}, n = {run.n_test}" + (
            f" ({result})" if result else ""
        )
    return [
        run.run,
        (run.began or "").replace("T", " ")[:16],
        run.data or "",
        "" if run.n_classes is None else f"{run.n_classes:,}",
        "" if run.n_images is None else f"{run.n_images:,}",
        result,
        "" if run.minutes is None else duration(60 * run.minutes),
    ]


def create_parser() -> Parser:
    """Return the parser of `python -m search.list`."""
    parser = Parser(
        prog="python -m search.list",
        description="List the runs in a folder: when they began, their images, the accuracy on the"
        " test set with its 95% confidence interval, and what they took.",
    )
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        default=RESULTS,
        metavar="RESULTS",
        help="folder of runs (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="write a JSON array")
    return parser


if __name__ == "__main__":
    sys.exit(main())
