"""Start searches, break them in every known way, resume them, and count what was lost.

```
make faults
python -m tests.system.faults.injection disk clock    # those whose name has one of these words
```

prints a line per fault: how often it was injected; trials lost and doubled; epochs trained again,
and those beyond one per trial and interruption; processes and segments of shared memory left
behind. The exit code is 1 if anything but the epochs trained again is not zero, or a fault cannot
be injected; what takes rights that are missing is skipped, with the reason. Only a damaged
checkpoint makes a trial train its epochs again from the first. `--out` writes the table as JSON,
after each line.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
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
            if words and not any(word in name for word in words):
                continue
            rows.append(inject(fault, Path(scratch) / name))
            if arguments.out is not None:
                seconds = round(time.monotonic() - started, 1)
                setting = describe_setting("faults", "full" if not words else "quick", seconds)
                write_result(arguments.out, {**setting, "tables": {"faults": rows}})
    n_harmful = sum(row["verdict"] not in ("ok", "skipped") for row in rows)
    minutes = (time.monotonic() - started) / 60
    print(f"{n_harmful} of the faults did harm; {minutes:.0f} minutes")
    return int(n_harmful > 0)


def inject(fault: Callable[[Path], Outcome], folder: Path) -> dict[str, Any]:
    """Inject one fault, print its line, and return its row.

    Whatever goes wrong in one is a problem of its row: the other faults are injected all the same.
    """
    started = time.monotonic()
    try:
        outcome = fault(folder)
    except MissingRightsError as reason:
        print(f"{fault.__name__}: skipped: {reason}", flush=True)
        none = dict.fromkeys(_HEAD, 0)
        return {"fault": fault.__name__, **none, "verdict": "skipped", "reason": str(reason)}
    except AssertionError as error:
        outcome = Outcome(fault.__name__, problems=[str(error)])
    except Exception:
        outcome = Outcome(fault.__name__, problems=[traceback.format_exc()])
    counts = (outcome.injected, outcome.lost, outcome.doubled, outcome.again, outcome.beyond)
    left = (outcome.processes, outcome.segments)
    verdict = "ok" if outcome.is_clean else "HARM"
    seconds = f"{verdict}, {time.monotonic() - started:.0f} s"
    print(_LINE.format(outcome.fault, *counts, *left, seconds), flush=True)
    for problem in outcome.problems:
        print(f"    {problem}", flush=True)
    figures = dict(zip(_HEAD, (*counts, *left), strict=True))
    return {"fault": outcome.fault, **figures, "verdict": verdict}


if __name__ == "__main__":
    sys.exit(main())
