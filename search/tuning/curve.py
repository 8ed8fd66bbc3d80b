"""A trial's curve on disk: `trials/<number>/progress.csv`, one line an epoch."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from trainables.trainer import EpochResult

_COLUMNS = tuple(field.name for field in fields(EpochResult))


def append_epoch(path: Path, result: Mapping[str, Any]) -> bool:
    """Add an epoch, unless it is there already; return whether it was added.

    A last line that a crash cut off is dropped first: its epoch is told again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if str(result["epoch"]) in {line.split(",")[0] for line in whole.splitlines()[1:]}:
        return False
    with path.open("r+" if text else "w", newline="", encoding="utf-8") as file:
        file.seek(len(whole.encode()))
        file.truncate()
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerow(result)
    return True
