"""Faults of a run's surroundings: its files, other commands, its images, Ray's own processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from search.console.signals import FAILED
from search.runs.run_folder import STUDY
from search.tuning.study import load_study
from tests.system.faults.experiment import FINISH_SECONDS, Experiment, Outcome
from tests.system.faults.processes import Process

REFUSED = 2
REFUSE_SECONDS = 120.0


def name_taken_in_storage(folder: Path) -> Outcome:
    """Begin a run of the same name and storage elsewhere: its files must not be taken up."""
    storage = folder / "storage"
    storage.mkdir(parents=True)
    experiment = Experiment("a name taken in storage", folder, "--storage", str(storage))
    experiment.session(lambda process: kill_in_the_search(experiment, process))
    other = Experiment("", folder / "other", "--storage", str(storage))
    check_refused(other.start(), "give another --name")
    return experiment.finish()


def study_missing(folder: Path) -> Outcome:
    """Delete the study, and empty it, while the search is down: no new one may be begun."""
    experiment = Experiment("a study that is gone", folder)
    for damage in (Path.unlink, lambda path: path.write_bytes(b"")):
        experiment.session(lambda process: kill_in_the_search(experiment, process))
        study = experiment.run / STUDY
        whole = study.read_bytes()
        damage(study)
        check_refused(experiment.start(), str(study))
        study.write_bytes(whole)
    return experiment.finish()


def resumed_twice(folder: Path) -> Outcome:
    """Resume a run twice while its search goes on."""
    experiment = Experiment("two commands on one run", folder, n_trials=60)

    def inject(process: Process) -> None:
        experiment.in_the_search(process)
        for second in [experiment.start() for _ in range(2)]:
            check_refused(second, "is in use by process")
        finish(process)

    experiment.session(inject)
    return experiment.finish()


def study_damaged_while_running(folder: Path) -> Outcome:
    """Delete, cut and overwrite the study while the search goes on."""
    experiment = Experiment("a study damaged while it is written", folder, n_trials=12)

    def inject(process: Process) -> None:
        for damage in DAMAGES:
            experiment.in_the_search(process)
            study = experiment.run / STUDY
            damage(study)
            process.wait_until(lambda study=study: load_study(study.parent) is not None)  # type: ignore[misc]
        experiment.outcome.injected += len(DAMAGES) - 1  # `session` counts one
        finish(process)

    experiment.session(inject)
    return experiment.finish()


DAMAGES: tuple[Callable[[Path], object], ...] = (
    Path.unlink,
    lambda path: os.truncate(path, path.stat().st_size // 2),
    lambda path: path.write_bytes(b"SQLite format 3\0" * 64),
)


def films_among_images(folder: Path) -> Outcome:
    """Have films, pipes and devices among the images of a run."""
    outcome = Outcome("films, pipes and devices as images", injected=4)
    images = folder / "images"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (images / name).mkdir(parents=True)
        for index in range(24):
            pixels = generator.integers(0, 90, (40, 40, 3), np.uint8)
            pixels[:, :, channel] += 110
            Image.fromarray(pixels).save(images / name / f"{index}.png")
    for name, gib in (("film.jpg", 1), ("long film.jpg", 8)):
        with (images / "red" / name).open("wb") as file:
            file.write(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
            file.truncate(gib * 2**30)
    os.mkfifo(images / "red" / "pipe.jpg")
    (images / "green" / "endless.png").symlink_to("/dev/zero")
    command = [sys.executable, "-m", "search.run", "--data", str(images), "--space"]
    command += ["spaces/digits.py", "--trials", "2", "--epochs", "2", "--folds", "2"]
    process = Process([*command, "--out", str(folder / "out")], folder / "session.log", {})
    finish(process)
    if "4 files are not used: " not in process.shown():
        outcome.problems.append(f"the files are not named:\n{process.shown()}")
    outcome.processes, outcome.segments = process.left_over(), process.left_segments()
    return outcome


def ray_killed(folder: Path) -> Outcome:
    """Kill Ray's raylet, and its control store, in the search and in the cross-validation."""
    experiment = Experiment("Ray's raylet or control store killed", folder)

    def inject(process: Process, name: str, stage: str) -> None:
        if stage == "search":
            experiment.in_the_search(process)
        else:
            experiment.in_stage(process, stage)
        number = process.named(f"/{name} ")
        assert number is not None, f"there is no {name}"
        os.kill(number, signal.SIGKILL)
        code, shown = process.wait(REFUSE_SECONDS), process.shown()
        if code != FAILED or "has ended, killed" not in shown or "Traceback" in shown:
            raise AssertionError(f"it ended with {code}:\n{shown}")
        if f"resume: python -m search.run --resume {experiment.run}" not in shown:
            raise AssertionError(f"the command that resumes is missing:\n{shown}")

    for name in ("raylet", "gcs_server"):
        for stage in ("search", "cross_validation"):
            experiment.session(
                lambda process, name=name, stage=stage: inject(process, name, stage)  # type: ignore[misc]
            )
            experiment.n_trials += 2
    return experiment.finish()


SURROUNDINGS = (
    name_taken_in_storage,
    study_missing,
    resumed_twice,
    study_damaged_while_running,
    films_among_images,
    ray_killed,
)


def kill_in_the_search(experiment: Experiment, process: Process) -> None:
    """Kill a search as soon as a trial has a checkpoint."""
    experiment.in_the_search(process)
    process.kill()


def check_refused(process: Process, message: str) -> None:
    """Check that a command is refused in words, and soon."""
    try:
        code, shown = process.wait(REFUSE_SECONDS), process.shown()
    finally:
        process.kill()
    if code != REFUSED or message not in shown or "Traceback" in shown:
        raise AssertionError(f"it ended with {code}:\n{shown}")


def finish(process: Process) -> None:
    """Wait for a search that must finish."""
    if process.wait(FINISH_SECONDS) != 0:
        raise AssertionError(f"it ended with {process.popen.returncode}:\n{process.shown()}")
