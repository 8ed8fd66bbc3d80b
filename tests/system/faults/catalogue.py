"""The faults to inject: each function runs a search in a folder and returns what was lost.

The module is long because every fault has its function here.
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from search.console.signals import FAILED, INTERRUPTED, TERMINATED
from search.tuning.searcher import LOST
from search.tuning.study import REASON
from tests.system.faults.experiment import FINISH_SECONDS, Experiment, Outcome
from tests.system.faults.nodes import SECOND_ADDRESS
from tests.system.faults.processes import Process

STOP_SECONDS = 60.0
ADDRESS = re.compile(r"^\d+\.\d+\.\d+\.\d+:\d+$", re.MULTILINE)
DISK_BYTES = 64 * 2**20
EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class MissingRightsError(Exception):
    """A fault cannot be injected without more rights."""


def killed_at_any_moment(folder: Path, times: int = 20, longest_seconds: float = 30.0) -> Outcome:
    """Kill the process group, from the first second on; a search that ended is extended."""
    experiment = Experiment("SIGKILL of the process group, at any moment", folder)
    chance = random.Random(0)
    while experiment.outcome.injected < times:
        if not experiment.session(lambda process: kill_after(process, chance, longest_seconds)):
            experiment.n_trials += 4
    return experiment.finish()


def killed_in_sequence(folder: Path, times: int = 6) -> Outcome:
    """Kill within the search, one trial after the other: it must decide as without the kills."""
    whole = Experiment("", folder / "whole", "--max-concurrent", "1")
    whole.finish()
    pieces = Experiment(
        "SIGKILL, one trial in parallel: same rungs", folder / "pieces", "--max-concurrent", "1"
    )
    chance = random.Random(1)

    def inject(process: Process) -> bool:
        n_before = len(pieces.log("trial"))
        process.wait_until(lambda: len(pieces.log("trial")) > n_before)
        return kill_after(process, chance, 1.5)

    while pieces.outcome.injected < times and pieces.n_ended() < pieces.n_trials:
        pieces.session(inject)
    outcome = pieces.finish()
    trials_of_each = [
        [(t.state, t.params, t.value, t.intermediate_values) for t in experiment.trials()]
        for experiment in (whole, pieces)
    ]
    if trials_of_each[0] != trials_of_each[1]:
        outcome.problems.append(f"decided otherwise: {trials_of_each[0]} and {trials_of_each[1]}")
    return outcome


def interrupted(folder: Path) -> Outcome:
    """Ctrl-C at each stage of one run, which is resumed each time."""
    experiment = Experiment("SIGINT at each stage", folder)
    experiment.session(lambda process: stop_at_start(experiment, process))
    stages = (
        "data",
        "linear_probe",
        "feature_cache",
        "search",
        "cross_validation",
        "evaluation",
        "tensorboard",
        "report",
    )
    for stage in stages:
        experiment.session(
            lambda process, stage=stage: stop(experiment, process, stage, signal.SIGINT)
        )
    return experiment.finish()


def terminated(folder: Path) -> Outcome:
    """SIGTERM in the stages that take long."""
    experiment = Experiment("SIGTERM", folder)
    for stage in ("linear_probe", "search", "cross_validation"):
        experiment.session(
            lambda process, stage=stage: stop(experiment, process, stage, signal.SIGTERM)
        )
    return experiment.finish()


def interrupted_twice(folder: Path) -> Outcome:
    """Ctrl-C, and once more before the first was done."""
    experiment = Experiment("SIGINT twice", folder)

    def inject(process: Process) -> None:
        experiment.in_the_search(process)
        os.killpg(process.popen.pid, signal.SIGINT)
        process.wait_until(lambda: "once more stops at once" in process.shown())
        os.killpg(process.popen.pid, signal.SIGINT)
        started = time.monotonic()
        check_stopped(experiment, process, INTERRUPTED, shows_resume=False)
        if time.monotonic() - started > 2:
            raise AssertionError(f"it took {time.monotonic() - started:.0f} s to stop at once")

    for _ in range(2):
        experiment.session(inject)
    return experiment.finish()


def workers_killed(folder: Path) -> Outcome:
    """Kill the process that has just trained an epoch."""
    experiment = Experiment("a worker killed", folder, n_trials=12)
    return _processes_killed(
        experiment, lambda process: int(experiment.log("epoch")[-1][4]), times=3
    )


def checkpoint_store_killed(folder: Path) -> Outcome:
    """Kill the process that stores checkpoints."""
    experiment = Experiment("the checkpoint store killed", folder)
    return _processes_killed(
        experiment, lambda process: process.named("ray::CheckpointStore"), times=2
    )


def feature_cache_killed(folder: Path) -> Outcome:
    """Kill the process that owns the feature cache."""
    experiment = Experiment("the feature cache killed", folder)
    return _processes_killed(
        experiment, lambda process: process.named("RestartableFeatureCacheActor"), times=2
    )


def node_killed(folder: Path) -> Outcome:
    """Kill the raylet of the second of two nodes while a trial runs there, twice."""
    folder.mkdir()
    environment = {"FAULT_LOG": str(folder / "instrumented.log")}
    nodes = Process(
        [sys.executable, str(Path(__file__).with_name("nodes.py"))],
        folder / "nodes.log",
        environment,
        listens=True,
    )

    def ask(line: str) -> None:
        n_answers = nodes.shown().count("done\n")
        assert nodes.popen.stdin is not None
        nodes.popen.stdin.write(f"{line}\n".encode())
        nodes.popen.stdin.flush()
        nodes.wait_until(lambda: nodes.shown().count("done\n") > n_answers)

    try:
        nodes.wait_until(lambda: ADDRESS.search(nodes.shown()) is not None)
        address = ADDRESS.findall(nodes.shown())[0]
        experiment = Experiment("a node's raylet killed", folder, "--address", address, n_trials=16)

        def epochs_there() -> int:
            return sum(line[3] == SECOND_ADDRESS for line in experiment.log("epoch"))

        def inject(process: Process) -> None:
            for time_ in range(2):
                if time_:
                    ask("add")
                n_before = epochs_there()
                process.wait_until(lambda n=n_before: epochs_there() > n)  # type: ignore[misc]
                ask("kill")
            experiment.outcome.injected += 1
            finish(process)

        experiment.session(inject)
        outcome = experiment.finish()
    finally:
        assert nodes.popen.stdin is not None
        nodes.popen.stdin.close()
        nodes.wait(STOP_SECONDS)
    outcome.processes += nodes.left_over()
    outcome.segments += nodes.left_segments()
    return outcome


def checkpoints_truncated(folder: Path) -> Outcome:
    """Cut a checkpoint in half, and one to nothing, while the search is down."""
    experiment = Experiment("a truncated checkpoint", folder)

    def inject(process: Process) -> None:
        experiment.in_the_search(process)
        process.kill()

    for fraction in (0.5, 0.0):
        experiment.session(inject)
        for path in experiment.checkpoints():
            truncate(path, fraction)
            experiment.damaged.add(int(path.parent.name))
    return experiment.finish()


def summary_truncated(folder: Path) -> Outcome:
    """Cut `summary.json` in half in the search, and to nothing in the cross-validation."""
    experiment = Experiment("a truncated summary.json", folder)

    def inject(process: Process, stage: str) -> None:
        experiment.in_stage(process, stage)
        time.sleep(0.5)
        process.kill()

    for stage, fraction in (("search", 0.5), ("cross_validation", 0.0)):
        experiment.session(lambda process, stage=stage: inject(process, stage))
        truncate(experiment.run / "summary.json", fraction)
    return experiment.finish()


def disk_full(folder: Path) -> Outcome:
    """Fill the disk in the search and in the cross-validation, and make space again."""
    experiment = Experiment("a full disk", folder)
    with small_disk(experiment.run.parent):
        for stage in ("search", "cross_validation"):

            def inject(process: Process, stage: str = stage) -> None:
                if stage == "search":
                    experiment.in_the_search(process)
                else:
                    experiment.in_stage(process, stage)
                filler = experiment.run.parent / "filler"
                fill(filler)
                code = process.wait(STOP_SECONDS)
                filler.unlink()
                shown = process.shown()
                if code != FAILED or "no space is left" not in shown or "Traceback" in shown:
                    raise AssertionError(f"{stage} on a full disk ended with {code}:\n{shown}")
                check_resume_command(experiment, process)

            experiment.session(inject)
        return experiment.finish()


def loss_not_a_number(folder: Path) -> Outcome:
    """Set the weights of three trials to NaN."""
    outcome, reasons = _broken_within(folder, "a NaN loss", "nan", fails=(0, 1, 3))
    if not all("loss is nan" in reason for reason in reasons.values()):
        outcome.problems.append(f"reasons: {reasons}")
    return outcome


def out_of_memory(folder: Path) -> Outcome:
    """Let trials run out of the GPU's and the machine's memory; one of three recovers."""
    outcome, reasons = _broken_within(folder, "out of memory (a stand-in)", "memory", fails=(2, 3))
    if "does not fit the GPU's memory" not in reasons.get(2, "") or reasons.get(3) != LOST:
        outcome.problems.append(f"reasons: {reasons}")
    return outcome


def clock_jumping(folder: Path) -> Outcome:
    """Have the wall clock jump by days, forward and back, every few seconds, in a time budget."""
    environment = {"FAULT_WITHIN": "clock"}
    experiment = Experiment(
        "a clock that jumps by days", folder, "--time-budget", "10m", environment=environment
    )
    experiment.session(finish)
    return experiment.finish()


FAULTS: tuple[Callable[[Path], Outcome], ...] = (
    killed_in_sequence,
    workers_killed,
    checkpoint_store_killed,
    feature_cache_killed,
    node_killed,
    loss_not_a_number,
    out_of_memory,
    clock_jumping,
    disk_full,
    terminated,
    interrupted,
    interrupted_twice,
    checkpoints_truncated,
    summary_truncated,
    killed_at_any_moment,
)


def _processes_killed(
    experiment: Experiment, find: Callable[[Process], int | None], times: int
) -> Outcome:
    """Kill a process of a search several times, by its id; the search must continue."""

    def inject(process: Process) -> None:
        for _ in range(times):
            experiment.in_the_search(process)
            # After an earlier kill the process may still be starting.
            process.wait_until(lambda: find(process) is not None)
            number = find(process)
            assert number is not None
            os.kill(number, signal.SIGKILL)
        experiment.outcome.injected += times - 1  # `session` counts one
        finish(process)

    experiment.session(inject)
    return experiment.finish()


def _broken_within(
    folder: Path, fault: str, kind: str, fails: tuple[int, ...]
) -> tuple[Outcome, dict[int, str]]:
    """Run a search that breaks from within; return also why trials failed, by number."""
    environment = {"FAULT_WITHIN": kind}
    # No trial is pruned before its fault.
    experiment = Experiment(
        fault, folder, "--scheduler", "none", environment=environment, fails=fails
    )
    experiment.session(finish)
    experiment.outcome.injected = 3
    reasons: dict[int, Any] = {
        t.number: t.user_attrs[REASON] for t in experiment.trials() if REASON in t.user_attrs
    }
    return experiment.finish(), reasons


def kill_after(process: Process, chance: random.Random, longest_seconds: float) -> bool:
    """Kill a process group after a random time; return whether it still ran."""
    try:
        process.popen.wait(chance.uniform(0.05, longest_seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        return True
    if process.popen.returncode != 0:
        raise AssertionError(f"it ended with {process.popen.returncode}:\n{process.shown()}")
    return False


def stop_at_start(experiment: Experiment, process: Process) -> None:
    """Send Ctrl-C as soon as there is a run."""
    process.wait_until(lambda: (experiment.run / "environment.json").is_file())
    os.killpg(process.popen.pid, signal.SIGINT)
    check_stopped(experiment, process, INTERRUPTED, has_result=False)


def stop(experiment: Experiment, process: Process, stage: str, number: signal.Signals) -> None:
    """Stop a search in a stage: by Ctrl-C, as in a terminal, or by SIGTERM."""
    experiment.in_stage(process, stage)
    if stage == "search":
        process.wait_until(lambda: experiment.n_ended(TrialState.COMPLETE) > 0)
    has_result = not experiment.is_without_result()
    if number == signal.SIGINT:
        os.killpg(process.popen.pid, number)
    else:
        process.popen.send_signal(number)
    check_stopped(experiment, process, EXIT_CODES[number], has_result=has_result)
    if stage == "search" and "best so far: " not in process.shown():
        raise AssertionError(f"the best so far is not shown:\n{process.shown()}")
    # SIGTERM leaves little time for a report.
    if (
        stage == "search"
        and number == signal.SIGINT
        and not (experiment.run / "report.html").is_file()
    ):
        raise AssertionError(f"there is no report:\n{process.shown()}")


def check_stopped(
    experiment: Experiment,
    process: Process,
    exit_code: int,
    shows_resume: bool = True,
    has_result: bool = True,
) -> None:
    """Check that a search stops gracefully.

    Args:
        experiment: The search.
        process: It, after a signal.
        exit_code: What it has to end with.
        shows_resume: Whether it has the time to say how it goes on.
        has_result: Whether the run had a result when it was stopped. One without may be deleted,
            so that its name is free.
    """
    code = process.wait(STOP_SECONDS)
    if code != exit_code or "Traceback" in process.shown():
        raise AssertionError(f"it ended with {code}:\n{process.shown()}")
    is_deleted = not has_result and not experiment.run.exists()
    if is_deleted and "nothing is kept" not in process.shown():
        raise AssertionError(f"it deleted the run without a word:\n{process.shown()}")
    if shows_resume and not is_deleted:
        check_resume_command(experiment, process)


def check_resume_command(experiment: Experiment, process: Process) -> None:
    """Check that a search printed the command that resumes it."""
    if f"resume: python -m search.run --resume {experiment.run}" not in process.shown():
        raise AssertionError(f"the command that resumes is missing:\n{process.shown()}")


def finish(process: Process) -> None:
    """Wait for a search that must finish."""
    if process.wait(FINISH_SECONDS) != 0:
        raise AssertionError(f"it ended with {process.popen.returncode}:\n{process.shown()}")


def truncate(path: Path, fraction: float) -> None:
    """Keep the first part of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small disk at a folder.

    Raises:
        MissingRightsError: mounting takes root.
    """
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingRightsError(f"no disk could be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
