"""What the terminal shows: a live display for a person, plain lines for a file or a pipe."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.folder import RunFolder

_LINE_EVERY_SECONDS = 10.0


class Progress:
    """Shows the stage, how far it is, the trials, and the best so far."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        """Begin; a quiet one shows warnings and the result alone."""
        self.console = console or Console(highlight=False)
        self._quiet = quiet
        self._live = (
            Live(self, console=self.console, refresh_per_second=4, transient=True)
            if self.console.is_terminal and not quiet
            else None
        )
        self._started = monotonic()
        self._stage, self._stage_started = "", monotonic()
        self._done, self._total, self._unit = 0, 0, ""
        self._done_before = 0  # in an earlier session
        self._last_line = 0.0
        self._running: dict[int, tuple[dict[str, Any], int, float]] = {}
        self._ended = {"complete": 0, "pruned": 0, "failed": 0}
        self._n_trials, self._epochs = 0, 0
        self._best: tuple[float, int, dict[str, Any]] | None = None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the display began."""
        return monotonic() - self._started

    @property
    def stage_started(self) -> float:
        """When the stage began, on the monotonic clock."""
        return self._stage_started

    def begin(self, stage: str, total: int = 0, unit: str = "") -> None:
        """Begin a stage of `total` units."""
        self._stage, self._stage_started = stage, monotonic()
        self._done, self._total, self._unit = 0, total, unit
        self._done_before = 0
        self._last_line = monotonic()

    def advance(self, done: int, total: int | None = None) -> None:
        """Say how much of the stage is done; None leaves the total as it was."""
        total = self._total if total is None else total
        self._done, self._total = done, total
        now = monotonic()
        if not self._live and now - self._last_line > _LINE_EVERY_SECONDS and done < total:
            self._last_line = now
            self.say(f"{done} of {total} {self._unit}".rstrip())

    def say(self, text: str) -> None:
        """Print one line that stays."""
        if self._quiet:
            return
        elapsed = monotonic() - self._started
        line = Text(f"{_clock(elapsed)}  ", style="dim")
        line.append(f"{self._stage:<10}  " if self._stage else "", style="cyan")
        line.append(text, style="default")
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def warn(self, text: str) -> None:
        """Print a warning that stays."""
        self.console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)

    def begin_trials(
        self,
        n_trials: int,
        n_ended: int,
        epochs: int,
        best: tuple[float, int, dict[str, Any]] | None,
    ) -> None:
        """Begin the search.

        Args:
            n_trials: In all.
            n_ended: That are over already.
            epochs: Full length of one.
            best: Accuracy, number and parameters of the best of those.
        """
        self._best = best
        self.begin("trials", n_trials, "trials")
        self._n_trials, self._epochs = n_trials, epochs
        self._done = self._done_before = n_ended

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        """See `search.trials.TrialListener`."""
        self._running[number] = (params, 0, float("nan"))

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        """See `search.trials.TrialListener`."""
        params = self._running[number][0] if number in self._running else {}
        self._running[number] = (params, result["epoch"], result["best_val_accuracy"])

    def trial_ended(self, number: int, state: str, result: dict[str, Any]) -> None:
        """See `search.trials.TrialListener`."""
        params, epoch, accuracy = self._running.pop(number, ({}, 0, float("nan")))
        self._ended[state] += 1
        self._done += 1
        if state == "failed":
            self.warn(f"trial {number} failed: {result['reason']}")
            return
        mark = ""
        if state == "complete" and (self._best is None or accuracy > self._best[0]):
            self._best = (accuracy, number, params)
            mark = "  (best so far)"
        verb = "done" if state == "complete" else f"stopped at epoch {epoch}"
        self.say(
            f"{self._done}/{self._n_trials}  trial {number} {verb}: {accuracy:.4f}{mark}"
            f"  {describe(params)}"
        )

    def show_result(self, folder: RunFolder) -> None:
        """Show what the run came to, where it lies, and what to do next."""
        summary = folder.summary
        test, folds, best = summary["test"], summary["kfold"], summary["best"]
        low, high = test["accuracy_ci95"]
        rows = [
            (
                "held-out accuracy",
                f"{test['accuracy']:.4f}  (95 % {low:.4f} to {high:.4f}, n = {test['n']})",
            ),
            (
                f"{folds['folds']} folds",
                f"{folds['accuracy_mean']:.4f} ± {folds['accuracy_std']:.4f}"
                f"  (the search said {best['val_accuracy']:.4f})",
            ),
        ]
        outside = summary.get("external")
        if outside and outside["accuracy"] is not None:
            rows.append(("external accuracy", f"{outside['accuracy']:.4f}  (n = {outside['n']})"))
        elif outside:
            rows.append(("external pictures", f"{outside['n']} predicted"))
        rows += [
            ("configuration", describe(best["config"])),
            ("report", str(folder.path / "report.html")),
            ("model", str(folder.path / "model.pt")),
        ]
        path, boards = (shlex.quote(str(p)) for p in (folder.path, folder.path / "tensorboard"))
        lines = [f"{label:<17}  {value}" for label, value in rows]
        lines += ["next:", f"  python -m search.predict {path} PICTURE…"]
        lines += [f"  tensorboard --logdir {boards}"]
        for line in lines:  # not in a table, which would cut paths; not as markup, for their [ ]
            self.console.print(Text(line), soft_wrap=True)

    def __rich__(self) -> RenderableType:
        """Draw the live display."""
        header = Table.grid(padding=(0, 1))
        header.add_row(
            Text(f"{self._stage:<10}", style="bold cyan"),
            ProgressBar(total=self._total or 1, completed=self._done, width=28),
            Text(f"{self._done}/{self._total} {self._unit}" if self._total else ""),
            Text(self._time_left(), style="dim"),
        )
        parts: list[RenderableType] = [header]
        if self._stage == "trials":
            parts.append(self._trial_counts())
            for number, (params, epoch, accuracy) in sorted(self._running.items()):
                value = f"{accuracy:.4f}" if epoch else "…"
                line = f"  trial {number}  epoch {epoch}/{self._epochs}  {value}  "
                parts.append(Text(line + describe(params), style="dim", overflow="ellipsis"))
        if self._best:
            accuracy, number, params = self._best
            best = f"best {accuracy:.4f}  trial {number}: {describe(params)}"
            parts.append(Text(best, style="green", overflow="ellipsis"))
        return Group(*parts)

    def _trial_counts(self) -> Text:
        ended = self._ended
        return Text(
            f"  {ended['complete']} done · {len(self._running)} running ·"
            f" {ended['pruned']} stopped early · {ended['failed']} failed"
        )

    def _time_left(self) -> str:
        elapsed = monotonic() - self._stage_started
        done_now = self._done - self._done_before
        if done_now <= 0 or self._done >= self._total:
            return _clock(elapsed)
        left = elapsed / done_now * (self._total - self._done)
        return f"{_clock(elapsed)}, about {_clock(left)} left"


def describe(params: Mapping[str, object]) -> str:
    """Return parameters as one short line."""
    shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in params.items())
    return ", ".join(shown)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
