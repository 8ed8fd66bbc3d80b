"""Starts searches, breaks them, carries them on, and counts what was lost.

```
make faults
```

prints a table: fault, times injected, lost trials, doubled trials, epochs trained again beyond the
one that was cut off, processes left over.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import psutil
import torch
from optuna.trial import TrialState

from search.keeper import CHECKPOINT
from search.study import STUDY_NAME

ROOT = Path(__file__).parents[2]
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

SPACE = """
from optuna.distributions import FloatDistribution, IntDistribution
from spaces.base import Space
from spaces.sources import digits

SPACE = Space(
    source=digits(),
    params={
        "backbone": "tinynet",
        "lr": FloatDistribution(1e-3, 1e-2, log=True),
        "freeze_depth": IntDistribution(2, 5),
        "augment": FloatDistribution(0.0, 0.4),
        "batch_size": 64,
    },
    image_size=32, resize_size=32, epochs=6, trials=8, folds=2, views=3, flip=False,
)
"""


@dataclass
class Count:
    """What a fault did, over all the times that it was injected."""

    fault: str
    injected: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: int = 0
    left_over: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Search:
    """A search that is broken and carried on until it is done."""

    folder: Path
    n_trials: int = 8
    n_pictures: int = 300

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self) -> Process:
        """Begin the search, or carry it on."""
        (self.folder / "space.py").write_text(SPACE)
        arguments = ["--resume", self.run] if (self.run / "environment.json").is_file() else [
            "--space", self.folder / "space.py", "--out", self.folder, "--name", "run",
            "--trials", self.n_trials, "--limit", self.n_pictures,
        ]  # fmt: skip
        return Process([sys.executable, "-m", "search.run", *map(str, arguments)])

    def ended(self) -> dict[int, tuple[TrialState, float | None]]:
        """Return the trials that are over; the database must be sound."""
        path = self.run / "study.db"
        if not path.is_file():
            return {}
        with sqlite3.connect(path) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        connection.close()
        if verdict != "ok":
            raise AssertionError(f"study.db: {verdict}")
        try:
            study = self.study()
        except KeyError:  # cut off before the study was made
            return {}
        return {t.number: (t.state, t.value) for t in study.trials if t.state in ENDED}

    def study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return optuna.load_study(
            study_name=STUDY_NAME, storage=f"sqlite:///{self.run / 'study.db'}"
        )

    def epochs_behind(self) -> int:
        """Return the most epochs that a running trial's checkpoint lacks of what was told."""
        behind = 0
        for path in self.run.glob(f"trials/*/{CHECKPOINT}"):
            trial = self.study().trials[int(path.parent.name)]
            if trial.state == TrialState.RUNNING:
                kept = torch.load(path, weights_only=True)["told"]["epoch"]
                behind = max(behind, max(trial.intermediate_values, default=0) - kept)
        return behind


class Process:
    """A search's process, with all that it starts."""

    def __init__(self, command: list[str]) -> None:
        self._mark = uuid.uuid4().hex
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "FAULT_MARK": self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def kill(self) -> None:
        """End its whole process group at once."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.communicate()

    def left_over(self, patience_seconds: float = 15.0) -> int:
        """Count its processes that are still there after a while."""
        until = time.monotonic() + patience_seconds
        while (n := sum(map(self._is_ours, psutil.process_iter()))) and time.monotonic() < until:
            time.sleep(0.5)
        return n

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("FAULT_MARK") == self._mark
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            return False


def break_often(
    count: Count, search: Search, times: int, inject: Callable[[Process], None]
) -> None:
    """Carry a search on and break it, `times` times, then let it end; count what was lost."""
    known: dict[int, tuple[TrialState, float | None]] = {}
    for _ in range(times):
        process = search.start()
        inject(process)
        count.injected += 1
        count.left_over += process.left_over()
        now = search.ended()
        count.lost += sum(now.get(number) != before for number, before in known.items())
        count.repeated += search.epochs_behind() if now else 0
        known = now
    process = search.start()
    shown, _ = process.popen.communicate(timeout=300)
    if process.popen.returncode != 0:
        raise AssertionError(shown)
    count.left_over += process.left_over()
    final = search.ended()
    count.lost += sum(final.get(number) != before for number, before in known.items())
    count.lost += max(0, search.n_trials - len(final))
    count.doubled += max(0, len(final) - search.n_trials)
    for number in final:
        curve = search.run / "trials" / str(number) / "progress.csv"
        epochs = [line.split(",")[0] for line in curve.read_text().splitlines()[1:]]
        count.doubled += len(epochs) - len(set(epochs))
    json.loads((search.run / "summary.json").read_text())


def kill_at_random(seed: int, longest_seconds: float) -> Callable[[Process], None]:
    """Return what kills a search's process group after a random while."""
    chance = random.Random(seed)

    def inject(process: Process) -> None:
        try:
            process.popen.wait(chance.uniform(1.0, longest_seconds))
        except subprocess.TimeoutExpired:
            process.kill()

    return inject


def main() -> int:
    """Inject every fault and print the table; exit code 1 where anything was lost."""
    counts = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for seed in range(4):
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            count = Count(f"SIGKILL of the process group, seed {seed}")
            break_often(count, Search(folder), 6, kill_at_random(seed, 45.0))
            counts.append(count)
            print(f"{count}", flush=True)
    head = ("fault", "injected", "lost", "doubled", "repeated", "left over")
    print(("{:<42}" + "{:>10}" * 5).format(*head))
    for c in counts:
        row = (c.fault, c.injected, c.lost, c.doubled, c.repeated, c.left_over)
        print(("{:<42}" + "{:>10}" * 5).format(*row))
    return int(any(c.lost or c.doubled or c.repeated or c.left_over for c in counts))


if __name__ == "__main__":
    sys.exit(main())
