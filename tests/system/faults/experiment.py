"""A search that is broken and resumed until it is done, and the count of what was lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.runs.run_folder import BEST_WEIGHTS, CHECKPOINT, STUDY, is_without_result
from search.tuning.study import load_study
from tests.system.faults.processes import Process

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
FINISH_SECONDS = 300.0
N_IMAGES = 300
N_KEPT = 2

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
    keep_checkpoints=2,
)
"""


@dataclass
class Outcome:
    """The effects of a fault, over all its injections.

    Attributes:
        fault: Its name.
        injected: How often.
        lost: Trials that ended and were not, or no longer, in the study as they had ended.
        doubled: Trials beyond those requested, and epochs recorded twice.
        again: Epochs that were trained again.
        beyond: Those of `again` beyond one per trial and interruption.
        processes: Processes left behind.
        segments: Segments of shared memory left behind.
        problems: Anything else that is wrong.
    """

    fault: str
    injected: int = 0
    lost: int = 0
    doubled: int = 0
    again: int = 0
    beyond: int = 0
    processes: int = 0
    segments: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost."""
        zeros = (self.lost, self.doubled, self.beyond, self.processes, self.segments)
        return not any(zeros) and not self.problems


class Experiment:
    """One search, over all its sessions."""

    def __init__(
        self,
        fault: str,
        folder: Path,
        *options: str,
        n_trials: int = 8,
        environment: Mapping[str, str] | None = None,
        fails: Sequence[int] = (),
    ) -> None:
        """Set the search up in its own folder.

        Args:
            fault: Name of the fault.
            folder: Created if missing; the run is `out/run` in it.
            options: Options of the command line that starts the run.
            n_trials: May be raised between sessions.
            environment: Environment of its processes.
            fails: The trials that are to fail.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.outcome = Outcome(fault)
        self.folder, self.run = folder, folder / "out" / "run"
        self.n_trials = n_trials
        self.damaged: set[int] = set()
        """Trials whose checkpoint was damaged: those start from the first epoch."""
        self.is_done = False
        self._options, self._fails = options, set(fails)
        self._log = folder / "instrumented.log"
        self._environment = {**(environment or {}), "FAULT_LOG": str(self._log)}
        self._known: dict[int, tuple[TrialState, float | None]] = {}
        self._n_sessions = 0

    def session(self, inject: Callable[[Process], bool | None]) -> bool:
        """Start or resume the search and break it; return whether it was broken before its end.

        Args:
            inject: Breaks it and waits for its end; returns False if it had ended before.
        """
        process = self.start()
        try:
            was_broken = inject(process) is not False
        finally:
            process.kill()
        self.is_done = process.popen.returncode == 0
        self.outcome.injected += was_broken
        self._look(process)
        return was_broken

    def finish(self) -> Outcome:
        """Let the search finish, and count."""
        if not self.is_done:
            self.session(self._end)
            self.outcome.injected -= 1
        self._count_trials()
        self._count_epochs()
        return self.outcome

    def log(self, *words: object) -> list[list[str]]:
        """Return the lines of the log that begin with these words."""
        wanted = [str(word) for word in words]
        lines = self._log.read_text().splitlines() if self._log.is_file() else []
        return [line.split() for line in lines if line.split()[: len(wanted)] == wanted]

    def trials(self) -> list[FrozenTrial]:
        """Return the study's trials; none where it is not there yet."""
        path = self.run / STUDY
        if not path.is_file():
            return []
        for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last may be torn
            json.loads(line)
        study = load_study(self.run)
        return [] if study is None else study.get_trials()

    def n_ended(self, *states: TrialState) -> int:
        """Count the trials that have ended, in these states or any, while the search runs."""
        return sum(trial.state in (states or ENDED) for trial in self.trials())

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints that are there, in the run's folder and in its storage."""
        return sorted(self.folder.glob(f"*/run/trials/*/{CHECKPOINT}"))

    def is_without_result(self) -> bool:
        """Return whether the run, which may be going on, has no result yet."""
        names = [path.name for path in self.run.iterdir()] if self.run.is_dir() else []
        return is_without_result(names)

    def in_the_search(self, process: Process) -> None:
        """Wait until a trial has a checkpoint in this session."""
        n_before = len(self.log("epoch"))
        process.wait_until(lambda: len(self.log("epoch")) > n_before and bool(self.checkpoints()))

    def in_stage(self, process: Process, name: str) -> None:
        """Wait until a stage begins in this session."""
        n_before = len(self.log("stage", name))
        process.wait_until(lambda: len(self.log("stage", name)) > n_before)

    def start(self) -> Process:
        """Start or resume the search."""
        self._n_sessions += 1
        space = self.folder / "space.py"
        if (self.run / "environment.json").is_file():
            arguments: list[Any] = ["--resume", self.run]
        else:
            space.write_text(SPACE)
            arguments = ["--space", space, "--out", self.run.parent, "--name", self.run.name]
            arguments += ["--limit", N_IMAGES]
        arguments += ["--trials", self.n_trials, *self._options]
        instrumented = Path(__file__).with_name("instrumented.py")
        return Process(
            [sys.executable, str(instrumented), *map(str, arguments)],
            self.folder / f"session-{self._n_sessions}.log",
            self._environment,
        )

    def _end(self, process: Process) -> None:
        code = process.wait(FINISH_SECONDS)
        if code != 0:
            raise AssertionError(f"it ended with {code}:\n{process.shown()}")

    def _look(self, process: Process) -> None:
        """Count what a session lost, and what it left behind."""
        self.outcome.processes += process.left_over()
        self.outcome.segments += process.left_segments()
        now = {t.number: (t.state, t.value) for t in self.trials() if t.state in ENDED}
        self.outcome.lost += sum(
            now.get(number) != before for number, before in self._known.items()
        )
        self._known = now

    def _count_trials(self) -> None:
        trials = [trial for trial in self.trials() if trial.state in ENDED]
        self.outcome.lost += max(0, self.n_trials - len(trials))
        self.outcome.doubled += max(0, len(trials) - self.n_trials)
        failed = {trial.number for trial in trials if trial.state == TrialState.FAIL}
        if failed != self._fails:
            self.outcome.problems.append(f"trials {sorted(failed)} failed")
        for trial in trials:
            epochs = sorted(trial.intermediate_values)
            if epochs != list(range(1, len(epochs) + 1)):
                self.outcome.problems.append(f"trial {trial.number} reported the epochs {epochs}")
            curve = self.run / "trials" / str(trial.number) / "progress.csv"
            lines = curve.read_text().splitlines()[1:] if curve.is_file() else []
            kept = [int(line.split(",")[0]) for line in lines]
            self.outcome.doubled += len(kept) - len(set(kept))
            if sorted(set(kept)) != epochs:
                self.outcome.problems.append(f"trial {trial.number} kept the epochs {kept}")
        n_kept = len(list(self.run.glob(f"trials/*/{BEST_WEIGHTS}")))
        if n_kept > N_KEPT:
            self.outcome.problems.append(
                f"the weights of {n_kept} trials are kept, not of {N_KEPT}"
            )
        if self.checkpoints():
            self.outcome.problems.append(f"checkpoints stay: {self.checkpoints()}")

    def _count_epochs(self) -> None:
        """Count the epochs that were trained again; a trial has a life each time that it starts."""
        before: dict[int, set[int]] = {}
        life: dict[int, list[int]] = {}

        def end_life(number: int) -> None:
            again = len(before.setdefault(number, set()).intersection(life.get(number, ())))
            self.outcome.again += again
            self.outcome.beyond += 0 if number in self.damaged else max(0, again - 1)
            before[number].update(life.pop(number, ()))

        for kind, *words in self.log():
            if kind == "trial":
                end_life(int(words[0]))
            elif kind == "epoch":
                life.setdefault(int(words[0]), []).append(int(words[1]))
        for number in list(life):
            end_life(number)
