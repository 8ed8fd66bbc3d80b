"""The search's command line, logged from within and, where requested, broken from within.

    FAULT_LOG=FILE [FAULT_WITHIN=KIND] python -m tests.system.faults.instrumented ARGUMENTS

The log gets a line per stage begun, trial started (each time), and epoch trained, written before
anything of that epoch is saved. Kinds are the keys of `WITHIN`; "clock" is one for every process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.cluster.session import configure_ray

configure_ray()  # before Ray is imported

import ray  # noqa: E402
import torch  # noqa: E402

from search import run  # noqa: E402
from search.api import execution  # noqa: E402
from search.console.progress import Progress  # noqa: E402
from search.tuning import tune  # noqa: E402
from trainables import trial  # noqa: E402
from trainables.trial import ImageTrial  # noqa: E402
from trainables.worker import create_trainer  # noqa: E402

_JUMPS_SECONDS = (0.0, 86_400.0, -172_800.0)
_JUMP_EVERY_SECONDS = 3.0


def log(*words: object) -> None:
    """Append a line to the log at once, as many processes write to it."""
    line = " ".join(map(str, words)) + "\n"
    log_file = os.open(os.environ["FAULT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log_file, line.encode())
    os.close(log_file)


class InstrumentedTrial(ImageTrial):
    """A trial that writes a log, and may break. Ray pickles it by value for its workers."""

    def setup(self, config: dict[str, Any], **arguments: Any) -> None:
        """Begin the worker's first trial."""
        instrument(config["number"])
        super().setup(config, **arguments)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this worker."""
        instrument(new_config["number"])
        return super().reset_config(new_config)


def instrument(number: int) -> None:
    """Log that a trial begins in this worker, and have its trainer log, and maybe break."""
    if os.environ.get("FAULT_WITHIN") == "clock":
        let_clock_jump()
    log("trial", number)
    break_within = WITHIN.get(os.environ.get("FAULT_WITHIN", ""), lambda *_: None)

    def create(*arguments: Any, **options: Any) -> Any:
        trainer = create_trainer(*arguments, **options)
        train = trainer.run_epoch

        def run_epoch() -> Any:
            break_within(number, trainer)
            result = train()
            log("epoch", number, result.epoch, ray.util.get_node_ip_address(), os.getpid())
            return result

        trainer.run_epoch = run_epoch  # type: ignore[method-assign]
        return trainer

    trial.create_trainer = create  # type: ignore[attr-defined]


def spoil_weights(number: int, trainer: Any) -> None:
    """Make the loss of trials 1 and 3 NaN, and of trial 0 in its second epoch."""
    if number in (1, 3) or (number == 0 and trainer.epoch == 1):
        weights = next(p for p in trainer.model.parameters() if p.requires_grad)
        weights.data.fill_(torch.nan)


def run_out_of_memory(number: int, trainer: Any) -> None:
    """Let trial 1 run out of memory for a batch, 2 for an image, 3 on the whole machine.

    Trial 3 is killed as by the kernel's out-of-memory killer, each time that it is tried.
    """
    forward = trainer.model.forward

    def limited(x: torch.Tensor, start: int) -> Any:
        if trainer.model.training and (number == 2 or len(x) > 16):
            raise torch.OutOfMemoryError("CUDA out of memory (a stand-in)")
        return forward(x, start)

    if number in (1, 2):
        trainer.model.forward = limited
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)


WITHIN: dict[str, Callable[[int, Any], None]] = {
    "nan": spoil_weights,
    "memory": run_out_of_memory,
}


def let_clock_jump() -> None:
    """Have this process's wall clock jump to the next day, back two days, and so on."""
    if getattr(time, "jumps", False):
        return
    true_time, started = time.time, time.monotonic()

    def jumping_time() -> float:
        n_jumps = int((time.monotonic() - started) / _JUMP_EVERY_SECONDS)
        return true_time() + _JUMPS_SECONDS[n_jumps % len(_JUMPS_SECONDS)]

    time.time = jumping_time
    time.jumps = True  # type: ignore[attr-defined]


class InstrumentedProgress(Progress):
    """Progress that logs each stage as it begins."""

    def begin(self, stage: str, *arguments: Any, **options: Any) -> None:
        """Begin a stage."""
        log("stage", stage)
        super().begin(stage, *arguments, **options)


if __name__ == "__main__":
    Path(os.environ["FAULT_LOG"]).touch()
    if os.environ.get("FAULT_WITHIN") == "clock":
        let_clock_jump()
    execution.Progress = InstrumentedProgress  # type: ignore[misc]
    tune.ImageTrial = InstrumentedTrial  # type: ignore[misc]
    sys.exit(run.main())
