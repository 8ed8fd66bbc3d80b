"""Start searches, break them in every known way, resume them, and count what was lost.

```
make faults
python -m tests.system.faults.injection disk clock    # those whose name has one of these words
```

prints a line per fault: how often it was injected; trials lost and doubled; epochs trained again,
and those beyond one per trial and interruption; processes and segments of shared memory left
behind. The exit code is 1 if anything but the epochs trained again is not zero. Only a damaged
checkpoint makes a trial train its epochs again from the first.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.faults.catalogue import FAULTS, MissingRightsError
from tests.system.faults.experiment import Outcome

_HEAD = ("injected", "lost", "doubled", "again", "beyond", "processes", "segments")
_LINE = "{:<46}" + "{:>10}" * len(_HEAD) + "  {}"


def main() -> int:
    """Inject the faults, one after the other, and print the table as it grows."""
    parser = argparse.ArgumentParser(description="Break searches and resume them.")
    parser.add_argument("words", nargs="*", help="of the names of the faults; none is all")
    words = parser.parse_args().words
    # A shell lets its background jobs ignore Ctrl-C, and they would hand that on to searches.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    print(_LINE.format("fault", *_HEAD, ""), flush=True)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for fault in FAULTS:
            name = fault.__name__
            if not words or any(word in name for word in words):
                failed += not _inject(fault, Path(scratch) / name)
    print(f"{failed} of the faults did harm; {(time.monotonic() - started) / 60:.0f} minutes")
    return int(failed > 0)


def _inject(fault: Callable[[Path], Outcome], folder: Path) -> bool:
    """Inject one fault, print its line, and return whether it did no harm."""
    started = time.monotonic()
    try:
        outcome = fault(folder)
    except MissingRightsError as reason:
        print(f"{fault.__name__}: skipped: {reason}", flush=True)
        return True
    except AssertionError as error:
        outcome = Outcome(fault.__name__, problems=[str(error)])
    counts = (outcome.injected, outcome.lost, outcome.doubled, outcome.again, outcome.beyond)
    left = (outcome.processes, outcome.segments)
    verdict = "ok" if outcome.is_clean else "HARM"
    seconds = f"{verdict}, {time.monotonic() - started:.0f} s"
    print(_LINE.format(outcome.fault, *counts, *left, seconds), flush=True)
    for problem in outcome.problems:
        print(f"    {problem}", flush=True)
    return outcome.is_clean


if __name__ == "__main__":
    sys.exit(main())
