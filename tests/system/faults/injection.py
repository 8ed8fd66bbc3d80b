"""Start searches, break them in every known way, resume them, and count what was lost.

```
make faults
python -m tests.system.faults.injection disk clock    # those whose name has one of these words
```

prints a line per fault: how often it was injected; trials lost and doubled; epochs trained again,
and those beyond one per trial and interruption; processes and segments of shared memory left
behind. The exit code is 1 if anything but the epochs trained again is not zero. Only a damaged
checkpoint makes a trial train its epochs again from the first. `--out` writes the table as JSON.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.reporting import describe_setting, write_result
from tests.system.faults.catalogue import FAULTS, MissingRightsError
from tests.system.faults.experiment import Outcome
from tests.system.faults.served import server_terminated
from tests.system.faults.surroundings import SURROUNDINGS

_HEAD = ("injected", "lost", "doubled", "again", "beyond", "processes", "segments")
_LINE = "{:<46}" + "{:>10}" * len(_HEAD) + "  {}"


def main() -> int:
    """Inject the faults, one after the other, and print the table as it grows."""
    parser = argparse.ArgumentParser(description="Break searches and resume them.")
    parser.add_argument("words", nargs="*", help="of the names of the faults; none is all")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the table there")
    arguments = parser.parse_args()
    words = arguments.words
    # A shell lets its background jobs ignore Ctrl-C, and they would hand that on to searches.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    print(_LINE.format("fault", *_HEAD, ""), flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for fault in (*FAULTS, *SURROUNDINGS, server_terminated):
            name = fault.__name__
            if not words or any(word in name for word in words):
                rows += _inject(fault, Path(scratch) / name)
    seconds = time.monotonic() - started
    n_harmful = sum(row["verdict"] != "ok" for row in rows)
    print(f"{n_harmful} of the faults did harm; {seconds / 60:.0f} minutes")
    if arguments.out is not None:
        setting = describe_setting("faults", "full" if not words else "quick", round(seconds, 1))
        write_result(arguments.out, {**setting, "tables": {"faults": rows}})
    return int(n_harmful > 0)


def _inject(fault: Callable[[Path], Outcome], folder: Path) -> list[dict[str, Any]]:
    """Inject one fault, print its line, and return its row; none where it was skipped."""
    started = time.monotonic()
    try:
        outcome = fault(folder)
    except MissingRightsError as reason:
        print(f"{fault.__name__}: skipped: {reason}", flush=True)
        return []
    except AssertionError as error:
        outcome = Outcome(fault.__name__, problems=[str(error)])
    counts = (outcome.injected, outcome.lost, outcome.doubled, outcome.again, outcome.beyond)
    left = (outcome.processes, outcome.segments)
    verdict = "ok" if outcome.is_clean else "HARM"
    seconds = f"{verdict}, {time.monotonic() - started:.0f} s"
    print(_LINE.format(outcome.fault, *counts, *left, seconds), flush=True)
    for problem in outcome.problems:
        print(f"    {problem}", flush=True)
    figures = dict(zip(_HEAD, (*counts, *left), strict=True))
    return [{"fault": outcome.fault, **figures, "verdict": verdict}]


if __name__ == "__main__":
    sys.exit(main())
