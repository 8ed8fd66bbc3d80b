"""`warm_start.json`: configurations of earlier runs, which a run tries after its first trials."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from search.runs.validation import read_json, validate
from spaces.first_trials import Config
from spaces.rules import Value
from trainables.atomic_write import write_atomically

WARM_START_FILE = "warm_start.json"
"""In the run's folder; of a run that was started with `--warm-start`."""


def write_warm_start(run_folder: Path, configs: Sequence[Config]) -> None:
    """Write the configurations as they are in the earlier runs."""
    with write_atomically(run_folder / WARM_START_FILE) as partial:
        partial.write_text(json.dumps(list(map(dict, configs)), indent=2), encoding="utf-8")


def read_warm_start(run_folder: Path) -> tuple[Config, ...]:
    """Read the configurations; none where the run was started without.

    Raises:
        FolderError: the file is damaged.
    """
    path = run_folder / WARM_START_FILE
    way_out = "put a copy of it back, or begin a new run"
    try:
        content = read_json(path, way_out)
    except FileNotFoundError:
        return ()
    return tuple(validate(content, list[dict[str, Value]], path, way_out))
