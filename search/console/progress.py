"""Show progress on the terminal: a live display for a person, plain lines for a file or a pipe.

All of it goes to the log as well, and each epoch of each trial to the log alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from time import monotonic
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar
from rich.table import Column
from rich.text import Text

from search.console.formatting import describe, describe_score, first_line
from search.console.output import SafeConsole
from search.console.run_log import SHOWN
from spaces.rules import Metric, Value
from trainables.disk_full import is_disk_full
from trainables.trial_result import TrialResult

_log = logging.getLogger(__name__)

SEARCH = "search"
"""The stage in which trials run."""

_LINE_EVERY_SECONDS = 10.0
_LINES_BESIDE_TRIALS = 5  # of the display's height


class Progress:
    """Shows the stage, how far it is, the trials, and the best so far."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        """Begin.

        Args:
            quiet: Show warnings alone, on the error output.
            console: Where to show it; None is the standard output.
        """
        self.console = console or SafeConsole(highlight=False)
        self._quiet = quiet
        self._live = (
            Live(self, console=self.console, refresh_per_second=4, transient=True)
            if self.console.is_terminal and not quiet
            else None
        )
        self._started = self._last_line = monotonic()
        self._bar = _create_bar(self.console)
        self._task_id: TaskID = self._bar.add_task("starting", total=None, unit="")
        self._stage = ""
        self._running: dict[int, tuple[Mapping[str, Value], int, float]] = {}
        self._ended = {"complete": 0, "pruned": 0, "failed": 0}
        self._epochs = 0
        self._metric: Metric = "accuracy"
        self._missing: set[str] = set()
        self._best: tuple[float, int, Mapping[str, Value]] | None = None

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
    def _task(self) -> Task:
        return self._bar.tasks[0]

    def begin(self, stage: str, total: int = 0, unit: str = "", done: int = 0) -> None:
        """Begin a stage of `total` units, of which some were done in an earlier session."""
        task_id = self._bar.add_task(stage, total=total or None, completed=done, unit=unit)
        self._bar.advance(task_id, 0)  # the pace is measured from here
        self._bar.remove_task(self._task_id)  # not earlier: another thread draws the first task
        self._task_id, self._stage = task_id, stage
        self._last_line = monotonic()
        _log.info("stage %s begins", stage)

    def advance(self, done: int, total: int | None = None) -> None:
        """Show how much of the stage is done; None leaves the total as it was."""
        self._bar.update(self._task_id, completed=done, total=total)
        now = monotonic()
        if not self._live and now - self._last_line > _LINE_EVERY_SECONDS and self._is_unfinished:
            self._last_line = now
            self.say(_counts(self._task))

    def say(self, text: str, node: str | None = None) -> None:
        """Print and log one line that stays; `node` is where it happened, if not here."""
        about = {"node": node} if node else {}
        _log.info(text, extra={SHOWN: not self._quiet, **about})
        if self._quiet:
            return
        line = Text(f"{_clock(self.elapsed_seconds)}  ", style="dim")
        line.append(f"{self._stage:<16}  " if self._stage else "", style="cyan")
        line.append(text, style="default")
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def warn(self, text: str) -> None:
        """Print and log a warning that stays."""
        _log.warning(text, extra={SHOWN: True})
        self._print_warning(text)

    def _print_warning(self, text: str) -> None:
        console = SafeConsole(stderr=True, highlight=False) if self._quiet else self.console
        console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)

    @contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Warn of an error, and log its traceback, instead of raising it: the run continues.

        For all that shows results and makes none. A full disk is raised: nothing can be saved.

        Args:
            what: What is missing after an error, such as "the report". Of several errors of one
                thing the first alone is printed.
        """
        try:
            yield
        except Exception as error:
            if is_disk_full(error):
                raise
            _log.exception("%s is missing", what, extra={SHOWN: True})
            if what not in self._missing:
                self._print_warning(f"{what} is missing: {first_line(error)}; see run.log")
            self._missing.add(what)

    def begin_trials(
        self,
        n_trials: int,
        n_ended: int,
        epochs: int,
        best: tuple[float, int, Mapping[str, Value]] | None,
        metric: Metric = "accuracy",
    ) -> None:
        """Begin the search.

        Args:
            n_trials: Number of trials in all; 0 is as many as there is time for.
            n_ended: Trials that ended in an earlier session.
            epochs: Full length of one.
            best: Score, number and parameters of the best of those.
            metric: What trials are compared by.
        """
        self._best, self._epochs, self._metric = best, epochs, metric
        self.begin(SEARCH, n_trials, "trials", n_ended)

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self._running[number] = (params, 0, float("nan"))
        _log.info("trial %d begins: %s", number, describe(params))

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        params = self._running[number][0] if number in self._running else {}
        self._running[number] = (params, result.epoch, result.best_val_score)
        _log.debug(
            "trial %d epoch %d/%d: loss %.4f, validation accuracy %.4f, lr %.2g, %.0f images/s",
            *(number, result.epoch, self._epochs, result.train_loss, result.val_accuracy),
            *(result.lr, result.images_per_second),
            extra={"node": result.node},
        )

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        params, epoch, score = self._running.pop(number, ({}, 0, float("nan")))
        self._ended[state] += 1
        self._bar.advance(self._task_id)
        if state == "failed":
            # `search.tuning.tune` logs it with its traceback.
            self._print_warning(f"trial {number} failed: {result.failure}")
            return
        mark = ""
        if state == "complete" and (self._best is None or score > self._best[0]):
            self._best = (score, number, params)
            mark = "  (best so far)"
        ended = state if state == "complete" else f"pruned at epoch {epoch}"
        self.say(
            f"{self._n_of_total()}trial {number} {ended}:"
            f" {describe_score(self._metric, score, 2)}{mark}  {describe(params)}",
            result.node,
        )

    def __rich__(self) -> RenderableType:
        """Draw the live display."""
        lines = []
        if self._stage == SEARCH:
            lines.append(self._trial_counts())
            lines += self._running_trials(self.console.height - _LINES_BESIDE_TRIALS)
        if self._best:
            score, number, params = self._best
            best = (
                f"best {describe_score(self._metric, score, 2)}  trial {number}: {describe(params)}"
            )
            lines.append(Text(best, style="green"))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(self._bar, *lines)

    def _n_of_total(self) -> str:
        """Return how many trials of how many have ended, such as "3/40  "; "" without a total."""
        total = self._task.total
        return "" if total is None else f"{self._task.completed:.0f}/{total:.0f}  "

    @property
    def _is_unfinished(self) -> bool:
        return self._task.total is not None and self._task.completed < self._task.total

    def _trial_counts(self) -> Text:
        ended = self._ended
        return Text(
            f"  {ended['complete']} complete · {len(self._running)} running ·"
            f" {ended['pruned']} pruned · {ended['failed']} failed"
        )

    def _running_trials(self, most: int) -> list[Text]:
        """Return a line for each running trial, as many as there is room for."""
        lines = []
        for number, (params, epoch, score) in sorted(self._running.items()):
            value = describe_score(self._metric, score, 2) if epoch else "…"
            line = f"  trial {number}  epoch {epoch}/{self._epochs}  {value}  {describe(params)}"
            lines.append(Text(line, style="dim"))
        if len(lines) > most > 0:
            lines[most - 1 :] = [Text(f"  and {len(lines) - most + 1} more", style="dim")]
        return lines


class _CountsColumn(TextColumn):
    """Shows how many of a stage's units are done."""

    def render(self, task: Task) -> Text:
        return Text(_counts(task))


class _TimeLeftColumn(TimeRemainingColumn):
    """Shows the time left, where the stage's total is known."""

    def render(self, task: Task) -> Text:
        text = super().render(task)
        return text.append(" left") if text else text


def _create_bar(console: Console) -> ProgressBar:
    """Return a display of the stage, a bar, the counts, the time so far and the time left."""
    rigid = Column(no_wrap=True)
    return ProgressBar(
        SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
        TextColumn("[bold cyan]{task.description}"),
        BarColumn(),
        _CountsColumn("", table_column=rigid),
        TimeElapsedColumn(table_column=rigid),
        _TimeLeftColumn(table_column=rigid),
        console=console,
        get_time=monotonic,
        speed_estimate_period=inf,  # a trial may take longer than the usual 30 s
    )


def _counts(task: Task) -> str:
    if task.total is None:
        return ""
    return f"{task.completed:.0f} of {task.total:.0f} {task.fields['unit']}".rstrip()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
