"""What the terminal shows: a live display for a person, plain lines for a file or a pipe."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from search.console.formatting import describe
from search.reporting.terminal import show_result
from search.runs.run_folder import RunFolder

_LINE_EVERY_SECONDS = 10.0
_LONGEST_BAR, _SHORTEST_BAR = 40, 6  # characters
_LINES_BESIDE_TRIALS = 5  # of the display's height


class Progress:
    """Shows the stage, how far it is, the trials, and the best so far."""

    def __init__(
        self, quiet: bool = False, console: Console | None = None, verbose: bool = False
    ) -> None:
        """Begin.

        Args:
            quiet: Show the result alone; warnings go to the error output.
            console: Where to show it; None is the standard output.
            verbose: Tell each epoch of each trial as well.
        """
        self.console = console or Console(highlight=False)
        self._quiet, self._verbose = quiet, verbose
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
        console = Console(stderr=True, highlight=False) if self._quiet else self.console
        console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)

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
        """See `search.tuning.tune.TrialCallback`."""
        self._running[number] = (params, 0, float("nan"))
        if self._verbose:
            self.say(f"trial {number} begins: {describe(params)}")

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        """See `search.tuning.tune.TrialCallback`."""
        params = self._running[number][0] if number in self._running else {}
        self._running[number] = (params, result["epoch"], result["best_val_accuracy"])
        if self._verbose:
            self.say(
                f"trial {number} epoch {result['epoch']}/{self._epochs}:"
                f" loss {result['train_loss']:.4f}, validation {result['val_accuracy']:.4f},"
                f" lr {result['lr']:.2g}, {result['images_per_second']:,.0f} images/s"
            )

    def trial_ended(self, number: int, state: str, result: dict[str, Any]) -> None:
        """See `search.tuning.tune.TrialCallback`."""
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
        if self._live:
            self._live.stop()
        show_result(folder, self.console)

    def __rich__(self) -> RenderableType:
        """Draw the live display."""
        lines = [self._header()]
        if self._stage == "trials":
            lines.append(self._trial_counts())
            lines += self._running_trials(self.console.height - _LINES_BESIDE_TRIALS)
        if self._best:
            accuracy, number, params = self._best
            best = f"best {accuracy:.4f}  trial {number}: {describe(params)}"
            lines.append(Text(best, style="green"))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)

    def _header(self) -> Text:
        """Return the stage, a bar that takes the room there is, and the time."""
        counts = f" {self._done}/{self._total} {self._unit}".rstrip() if self._total else ""
        time_left = f"  {self._time_left()}"
        width = self.console.width - len(f"{self._stage:<10}") - len(counts) - len(time_left)
        width = min(_LONGEST_BAR, width - 1)
        line = Text(f"{self._stage or 'starting':<10}", style="bold cyan")
        if width >= _SHORTEST_BAR:
            n_full = width * self._done // self._total if self._total else 0
            line.append("━" * n_full, style="cyan").append("━" * (width - n_full), style="dim")
        return line.append(counts, style="default").append(time_left, style="dim")

    def _trial_counts(self) -> Text:
        ended = self._ended
        return Text(
            f"  {ended['complete']} done · {len(self._running)} running ·"
            f" {ended['pruned']} stopped early · {ended['failed']} failed"
        )

    def _running_trials(self, most: int) -> list[Text]:
        """Return a line for each running trial, as many as there is room for."""
        lines = []
        for number, (params, epoch, accuracy) in sorted(self._running.items()):
            value = f"{accuracy:.4f}" if epoch else "…"
            line = f"  trial {number}  epoch {epoch}/{self._epochs}  {value}  {describe(params)}"
            lines.append(Text(line, style="dim"))
        if len(lines) > most > 0:
            lines[most - 1 :] = [Text(f"  and {len(lines) - most + 1} more", style="dim")]
        return lines

    def _time_left(self) -> str:
        elapsed = monotonic() - self._stage_started
        done_now = self._done - self._done_before
        if done_now <= 0 or self._done >= self._total:
            return _clock(elapsed)
        left = elapsed / done_now * (self._total - self._done)
        return f"{_clock(elapsed)}, about {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
