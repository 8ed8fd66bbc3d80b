"""Write a run's report again.

```
python -m search.report results/<run>
```
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from search.console.arguments import Parser
from search.console.formatting import printable, printable_name
from search.console.output import command, print_error
from search.reporting.page import write_report
from search.runs.listing import find_run
from search.runs.run_folder import RunFolder
from search.runs.validation import FolderError


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = Parser(prog="python -m search.report", description="Write a run's report again.")
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN_DIR",
        help="a run's folder, or latest: the newest finished run in results/ (DIR/latest: in DIR)",
    )
    named: Path = parser.parse_args(arguments).run
    try:
        path = find_run(named)
        folder = RunFolder.open(path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise FolderError(
                f"{path} cannot be written to: copy the run to a folder of yours, and give that"
            )
        problems = write_report(folder)
    except FolderError as error:
        print_error(error)
        return 2
    for problem in problems:
        print(f"warning: {printable(problem)}", file=sys.stderr)
    print(printable_name(path / "report.html"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
