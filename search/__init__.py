"""Search for the best image classifier: the Python API, the commands, and what is behind them.

```python
from search import run_search

run = run_search("photos", time_budget="30m")
run.predict("photo.jpg")
```

docs/api.md describes it. Names are imported when they are first used, as PyTorch and Ray take
seconds.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if sys.platform == "win32":  # no fcntl, no SIGALRM, and no Ray cluster
    print(
        "error: classifier-search runs on Linux and macOS; on Windows run it within WSL2"
        " (docs/install.md)",
        file=sys.stderr,
    )
    raise SystemExit(2)

if TYPE_CHECKING:
    from search.api.evaluation import Evaluation
    from search.api.launch import NoModelError
    from search.api.run import Report, Run, load_run, run_search
    from search.cluster.session import SessionError
    from search.data.image_files import DataError
    from search.pipeline.request import RequestError
    from search.runs.storage import StorageError
    from search.runs.validation import FolderError
    from spaces.base import Space, load_space
    from spaces.errors import SearchError
    from spaces.rules import SpaceError
    from spaces.sources import SourceError
    from trainables.images import ImageError
    from trainables.models.model_card import ModelError
    from trainables.pretrained.weights import WeightsError

__all__ = [
    "DataError",
    "Evaluation",
    "FolderError",
    "ImageError",
    "ModelError",
    "NoModelError",
    "Report",
    "RequestError",
    "Run",
    "SearchError",
    "SessionError",
    "SourceError",
    "Space",
    "SpaceError",
    "StorageError",
    "WeightsError",
    "load_run",
    "load_space",
    "run_search",
]

_MODULES = {
    "DataError": "search.data.image_files",
    "Evaluation": "search.api.evaluation",
    "FolderError": "search.runs.validation",
    "ImageError": "trainables.images",
    "ModelError": "trainables.models.model_card",
    "NoModelError": "search.api.launch",
    "Report": "search.api.run",
    "RequestError": "search.pipeline.request",
    "Run": "search.api.run",
    "SearchError": "spaces.errors",
    "SessionError": "search.cluster.session",
    "SourceError": "spaces.sources",
    "Space": "spaces.base",
    "SpaceError": "spaces.rules",
    "StorageError": "search.runs.storage",
    "WeightsError": "trainables.pretrained.weights",
    "load_run": "search.api.run",
    "load_space": "spaces.base",
    "run_search": "search.api.run",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'search' has no attribute {name!r}")
    with warnings.catch_warnings():
        # In a notebook, Optuna's bars, which are never shown here, would ask for ipywidgets.
        warnings.filterwarnings("ignore", "IProgress not found")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted({*globals(), *__all__})
