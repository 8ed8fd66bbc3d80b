"""A search in Weights & Biases, offline."""

from __future__ import annotations

import json
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb", reason="W&B is not installed: pip install '.[wandb]'")

from wandb.proto import wandb_internal_pb2

from search.reporting.trackers.wandb_tracker import WandbTracker
from tests.fixtures.tracked_search import SUMMARY, HandDrivenSearch, four_trials

pytestmark = pytest.mark.filterwarnings("ignore")


def follow(search: HandDrivenSearch) -> WandbTracker:
    tracker = WandbTracker(offline=True)
    tracker.begin(search.tracked)
    for trial in search.tracked.begun_trials():
        tracker.update(search.tracked.trial(trial.number))
    return tracker


def records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file of LevelDB's log format, behind W&B's header of 7 bytes."""
    block, header, place, parts = 32_768, 7, 7, b""
    while place + header <= len(content):
        if block - place % block < header:
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the runs in the files that `wandb sync` sends, by name."""
    while not (runs := _read(folder)) or not all("exit" in one for one in runs.values()):
        time.sleep(0.1)  # another process writes the files
    return runs


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        name, history, last = "", [], {}
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            match record.WhichOneof("record_type"):
                case "run":
                    name = record.run.display_name
                    found[name]["id"] = record.run.run_id
                    found[name]["group"] = record.run.run_group
                    found[name]["kind"] = record.run.job_type
                    updates = record.run.config.update
                    config = {one.key: json.loads(one.value_json) for one in updates}
                    found[name]["config"] = config
                case "history":
                    items = record.history.item
                    values = {
                        (one.key or ".".join(one.nested_key)): json.loads(one.value_json)
                        for one in items
                    }
                    history.append((values["_step"], values.get("val_accuracy")))
                case "summary":
                    for one in record.summary.update:
                        last[one.key or ".".join(one.nested_key)] = json.loads(one.value_json)
                case "exit":
                    found[name]["exit"] = record.exit.exit_code
        found[name]["history"] += history
        found[name]["summary"] = last
    return found


def test_the_files_have_every_trial_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    search = HandDrivenSearch(tmp_path / "run")
    four_trials(search)
    follow(search).end(None)
    found = read(tmp_path / "run" / "wandb")
    assert sorted(found) == ["0000", "0001", "0002", "0003", "run"]
    assert found["run"]["kind"] == "search"
    assert found["run"]["config"]["seed"] == "0"
    assert {one["group"] for one in found.values()} == {"run"}
    assert {found[f"{n:04d}"]["kind"] for n in range(4)} == {"trial"}
    assert found["0000"]["config"]["lr"] == search.study.trials[0].params["lr"]
    assert found["0000"]["history"] == [(1, 0.6), (2, 0.7), (3, 0.8)]
    states = [found[f"{n:04d}"]["summary"]["state"] for n in range(4)]
    assert states == ["complete", "pruned", "failed", "unfinished"]
    assert found["0002"]["summary"]["reason"] == "out of memory"
    assert [found[f"{n:04d}"]["exit"] for n in range(4)] == [0, 0, 1, 130]
    resumed = HandDrivenSearch(tmp_path / "run")
    resumed.epoch(3, 3, 0.9)
    resumed.end(3, "complete", 0.9)
    for name in ("report.html", "model.pt"):
        (tmp_path / "run" / name).write_text("content", encoding="utf-8")
    follow(resumed).end(SUMMARY)
    again = read(tmp_path / "run" / "wandb")
    assert sorted(again) == sorted(found)
    assert {n: one["id"] for n, one in again.items()} == {n: one["id"] for n, one in found.items()}
    assert again["0003"]["history"] == [(1, 0.6), (2, 0.7), (3, 0.9)]
    assert again["run"]["summary"]["test_accuracy"] == 0.95
    assert again["run"]["exit"] == 0
