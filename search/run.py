"""Find the best image classifier for a folder of pictures.

```
python -m search.run --space spaces/caltech.py
```

This file checks the request and starts Ray; the flow itself is in `search.flow`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from threading import Thread

from search.checks import check
from search.folder import FolderError, RunFolder
from search.interruption import INTERRUPTED, Interruption
from search.layout import DataError
from search.progress import Progress, describe
from search.request import RequestError, parse_request
from search.session import SessionError, ray_session
from spaces.base import SpaceError
from spaces.sources import SourceError
from trainables.weights import WeightsError

MISTAKES = (
    SpaceError,
    SourceError,
    DataError,
    WeightsError,
    FolderError,
    RequestError,
    SessionError,
)
"""What the user can get wrong: exit code 2 and one message."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    request = parse_request(arguments)
    checked = None
    try:
        checked = check(request)
        # The flow imports PyTorch, which takes seconds: Ray starts meanwhile.
        Thread(target=import_module, args=("search.flow",), daemon=True).start()
        with (
            Interruption().watching() as interruption,
            Progress(quiet=request.quiet) as progress,
            ray_session(request.address),
        ):
            from search import flow

            return flow.run(checked, progress, interruption)
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        if checked is not None:
            show_best_so_far(checked.folder)
        return INTERRUPTED


def show_best_so_far(folder: RunFolder) -> None:
    """Print what an interrupted run has, and the command that carries it on."""
    best = folder.summary.get("best")
    if best:
        print(f"best so far: {best['val_accuracy']:.4f} in validation: {describe(best['config'])}")
    if (folder.path / "model.pt").is_file():
        print(f"usable already: python -m search.predict {folder.path} PICTURE…")
    print(f"carry on: python -m search.run --resume {folder.path}")


if __name__ == "__main__":
    sys.exit(main())
