"""A trial's curve: an epoch is written once, whatever a crash left."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from search.tuning.curve import append_epoch


def result(epoch: int) -> dict[str, Any]:
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1", "lr")
    return {"epoch": epoch, **dict.fromkeys(names, 0.5), "seconds": 1.0, "node": "left out"}


def epochs(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def test_each_epoch_once(tmp_path: Path) -> None:
    path = tmp_path / "3" / "progress.csv"
    assert append_epoch(path, result(1))
    assert append_epoch(path, result(2))
    assert not append_epoch(path, result(2))
    assert append_epoch(path, result(10))
    assert not append_epoch(path, result(1))
    assert epochs(path) == ["1", "2", "10"]


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    for number in (1, 2):
        append_epoch(path, result(number))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for number in (1, 2):
            append_epoch(path, result(number))
        assert path.read_bytes() == whole
