"""Start searches on the head of a cluster, watch them from outside, and check their results."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.console.signals import INTERRUPTED
from search.tuning.study import NODE, load_study
from spaces.base import load_space
from tests.system.cluster.hosts import BASE, Host

ROOT = Path(__file__).parents[3]
CALTECH = Path("caltech101") / "101_ObjectCategories"
CALTECH_OPTIONS = (
    *("--space", "spaces/caltech.py", "--data", "~/images/caltech101"),
    *("--weights", "~/weights"),
)

SPACE = """
from optuna.distributions import FloatDistribution, IntDistribution
from spaces.base import Space
from spaces.sources import digits

SPACE = Space(
    source=digits(),
    params={
        "backbone": "tinynet",
        "lr": FloatDistribution(1e-3, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 2),
        "augment": FloatDistribution(0.0, 0.4),
        "batch_size": 64,
    },
    image_size=32, resize_size=32, epochs=6, trials=12, folds=4, views=3, flip=False,
)
"""


@dataclass(frozen=True)
class Outcome:
    """Where a finished search ran its trials and folds, and what it lost.

    Attributes:
        trials: By address, the number of trials that ended there.
        folds: By address, the number of folds that were trained there.
        lost: Number of trials that failed, never ended, or reported an epoch twice or not at all;
            of folds that are missing; of images that no fold, or more than one, has predicted.
        seconds: From the command to its end.
        stages: Seconds of each stage.
    """

    trials: Counter[str]
    folds: Counter[str]
    lost: int
    seconds: float
    stages: dict[str, float]


class Run:
    """A search that runs on the head."""

    def __init__(self, head: Host, name: str, *options: str, n_trials: int) -> None:
        """Start it; its data and results are in the head's home folder only."""
        self.head, self.name, self.n_trials = head, name, n_trials
        self.folder = head.home / "results" / name
        self._log = (BASE / f"{name}.log").open("w+")
        self._started = time.monotonic()
        self.process = self._begin(*self._first_options(), *options)

    def resume(self, n_trials: int) -> None:
        """Resume it after `stop`, with another number of trials."""
        self.n_trials = n_trials
        self.process = self._begin("--resume", f"~/results/{self.name}")

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does, and wait for its end."""
        self.head.run(f"kill -INT $(cat ~/{self.name}.pid)")
        code = self.process.wait(300)
        if code != INTERRUPTED:
            raise AssertionError(f"{self.name} ended with {code}:\n{self.log()}")

    def abandon(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.head.run(f"kill -KILL $(cat ~/{self.name}.pid)", check=False)
            self.process.wait(60)

    def _first_options(self) -> tuple[str, ...]:
        """Return the options that name a new run."""
        return ("--out ~/results --name", self.name)

    def _begin(self, *options: str) -> subprocess.Popen[bytes]:
        command = (
            f"cd ~/classifier-search && echo $$ > ~/{self.name}.pid && RAY_AUTH_MODE=token exec"
            f" python -m search.run --address auto {' '.join(options)} --trials {self.n_trials}"
        )
        return subprocess.Popen(
            self.head.ssh(f"bash -ic '{command}'"), stdout=self._log, stderr=subprocess.STDOUT
        )

    def wait_until(self, happened: Callable[[], bool], patience_seconds: float = 900) -> None:
        """Wait for an event that has to happen while the search runs."""
        until = time.monotonic() + patience_seconds
        while not happened():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended before it happened:\n{self.log()}")
            if time.monotonic() > until:
                raise AssertionError(f"it did not happen in {self.name}:\n{self.log()}")
            time.sleep(0.3)

    def epochs(self) -> int:
        """Return the number of epochs that were reported so far."""
        return sum(len(trial.intermediate_values) for trial in self._trials())

    def ended(self) -> int:
        """Return the number of trials that have ended."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return sum(trial.state in ended for trial in self._trials())

    def hosts(self) -> set[str]:
        """Return the addresses where trials have ended so far."""
        return {trial.user_attrs[NODE] for trial in self._trials() if NODE in trial.user_attrs}

    def folds_begun(self) -> bool:
        """Return whether folds are being trained."""
        stages = self._summary().get("stages", {})
        return "search" in stages and "cross_validation" not in stages

    def finish(self, patience_seconds: float = 1800) -> Outcome:
        """Wait for the end, and return the outcome."""
        code = self.process.wait(patience_seconds)
        seconds = time.monotonic() - self._started
        if code:
            raise AssertionError(f"{self.name} ended with {code}:\n{self.log()}")
        trials = read_csv(self.folder / "trials.csv")
        folds = read_csv(self.folder / "folds" / "folds.csv")
        summary = self._summary()
        return Outcome(
            Counter(trial["node"] for trial in trials),
            Counter(fold["node"] for fold in folds),
            self._lost_trials(trials) + self._lost_of_folds(folds, summary),
            seconds,
            summary["stages"],
        )

    def _lost_trials(self, trials: list[dict[str, str]]) -> int:
        lost = abs(self.n_trials - len(trials))
        for trial in trials:
            curve = read_csv(self.folder / "trials" / trial["number"] / "progress.csv")
            epochs = [int(row["epoch"]) for row in curve]
            has_all = epochs == list(range(1, int(trial["epochs"]) + 1))
            lost += trial["state"] not in ("complete", "pruned") or not has_all
        return lost

    def _lost_of_folds(self, folds: list[dict[str, str]], summary: dict[str, Any]) -> int:
        kfold, data = summary["kfold"], summary["data"]
        trained = {(fold["trial"], fold["fold"]) for fold in folds}
        predicted = read_csv(self.folder / "folds" / "oof_predictions.csv")
        names = {line["image"] for line in predicted}
        return (
            abs(len(kfold["finalists"]) * kfold["folds"] - len(trained))
            + (len(folds) - len(trained))
            + abs(data["train"] + data["val"] - len(names))
            + (len(predicted) - len(names))
        )

    def log(self) -> str:
        """Return the output of the search."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def _summary(self) -> dict[str, Any]:
        try:
            summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        except (OSError, ValueError):
            return {}
        return summary

    def _trials(self) -> list[FrozenTrial]:
        study = load_study(self.folder)
        return [] if study is None else study.get_trials(deepcopy=False)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shape(folder: Path) -> dict[str, object]:
    """Return the shape of a run's files: their names, columns and keys.

    What depends on the results is not compared: the figure of importances, which needs enough
    complete trials, and the comparison with the baseline, which may be the best trial itself.
    """
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # Runs differ in the trials that are pruned, the weights that are kept and the images that
        # are shown.
        name = re.sub(r"^(trials|tensorboard|gallery|folds/state)/.*", r"\1/", name)
        if name.startswith("figures/importances."):
            continue
        if path.suffix == ".csv":
            found[name] = path.read_text(encoding="utf-8").split("\n", 1)[0]
        elif path.name == "summary.json":
            summary = json.loads(path.read_text())
            summary.pop("comparison", None)
            found[name] = {k: sorted(v) for k, v in summary.items() if isinstance(v, dict)}
        else:
            found[name] = None
    return found


def give_caltech(head: Host, data: Path, backbone: str) -> None:
    """Copy the images of the Caltech space and a backbone's weights to the head only."""
    for name in load_space(ROOT / "spaces" / "caltech.py").source.classes or ():
        head.put(data / CALTECH / name, f"~/images/{CALTECH}/{name}")
    head.put(data / "weights" / f"{backbone}.pth", f"~/weights/{backbone}.pth")
