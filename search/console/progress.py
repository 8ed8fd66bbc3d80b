"""Show progress on the terminal: a live display for a person, plain lines for a file or a pipe.

All of it goes to the log as well, and each epoch of each trial to the log alone. The module is long
because the display and the lines that stay show one state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from textwrap import wrap
from time import monotonic
from types import TracebackType

from optuna.distributions import BaseDistribution
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from search.console.formatting import describe, describe_score, first_line
from search.console.live.time_text import clock, describe_time_left
from search.console.live.trial_table import TrialRow, TrialTable
from search.console.output import SafeConsole
from search.console.run_log import SHOWN
from spaces.rules import Metric, Value
from trainables.disk_full import is_disk_full
from trainables.trial_result import TrialResult

_log = logging.getLogger(__name__)

SEARCH = "search"
"""The stage in which trials run."""

_LINE_EVERY_SECONDS = 10.0
_LINES_BESIDE_TRIALS = 8  # of the display's height
_TABLE_INDENT = 7  # of the time stamp
_MAX_BAR_WIDTH = 40
_MIN_WIDTH_FOR_BAR = 60
_MIN_DONE = 0.02  # of a stage, before it tells how long the rest takes: workers start meanwhile


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
        self._started = self._last_line = self._stage_began = monotonic()
        self._spinner = Spinner("dots" if self.console.encoding.startswith("utf") else "line")
        self._stage, self._unit = "", ""
        self._done = self._done_before = 0
        self._total: int | None = None
        self._time_left: Callable[[int], Mapping[str, float]] | None = None
        self._running: dict[int, TrialRow] = {}
        self._ended = {"complete": 0, "pruned": 0, "failed": 0}
        self._table = TrialTable("accuracy")
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

    def begin(self, stage: str, total: int = 0, unit: str = "", done: int = 0) -> None:
        """Begin a stage of `total` units, of which some were done in an earlier session."""
        self._stage, self._unit, self._total = stage, unit, total or None
        self._done = self._done_before = done
        self._last_line = self._stage_began = monotonic()
        _log.info("stage %s begins", stage)

    def advance(self, done: int, total: int | None = None) -> None:
        """Show how much of the stage is done; None leaves the total as it was."""
        self._done, self._total = done, self._total if total is None else total
        now = monotonic()
        if not self._live and now - self._last_line > _LINE_EVERY_SECONDS and self._is_unfinished:
            self._last_line = now
            left = self._describe_time_left()
            self.say(self._counts() + (f", {left}" if left else ""))

    def expect(self, time_left: Callable[[int], Mapping[str, float]] | None) -> None:
        """Show the time left of the whole run, from now on.

        Args:
            time_left: Returns, for how much of the stage is done, the seconds left by what they are
                for; nothing where that is not known yet. None shows that of the stage alone.
        """
        self._time_left = time_left

    def say(self, text: str, node: str | None = None) -> None:
        """Print and log one line that stays; `node` is where it happened, if not here."""
        about = {"node": node} if node else {}
        _log.info(text, extra={SHOWN: not self._quiet, **about})
        if self._quiet:
            return
        stamp = f"{clock(self.elapsed_seconds)}  "
        stage = f"{self._stage:<16}  " if self._stage else ""
        self._print_line(stamp, stage, self._fold(text, len(stamp + stage)))

    def _print_line(self, stamp: str, stage: str, text: str, style: str = "default") -> None:
        line = Text.assemble((stamp, "dim"), (stage, "cyan"), (text, style))
        self.console.print(line, soft_wrap=True)

    def _fold(self, text: str, used: int) -> str:
        """Fold a text between words at the terminal's width; paths stay whole, to be copied."""
        width = self.console.width
        if not self.console.is_terminal or width < 2 * _TABLE_INDENT:
            return text
        filled = wrap(
            "." * used + text,
            width,
            subsequent_indent=" " * _TABLE_INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return "\n".join(filled)[used:]

    def warn(self, text: str) -> None:
        """Print and log a warning that stays."""
        _log.warning(text, extra={SHOWN: True})
        self._print_warning(text)

    def _print_warning(self, text: str) -> None:
        console = SafeConsole(stderr=True, highlight=False) if self._quiet else self.console
        line = text if self._quiet else self._fold(text, len("warning: "))
        console.print(Text(f"warning: {line}", style="yellow"), soft_wrap=True)

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
        distributions: Mapping[str, BaseDistribution] | None = None,
    ) -> None:
        """Begin the search.

        Args:
            n_trials: Number of trials in all; 0 is as many as there is time for.
            n_ended: Trials that ended in an earlier session.
            epochs: Full length of one; 0 where each has its own.
            best: Score, number and parameters of the best of those.
            metric: What trials are compared by.
            distributions: The searched parameters.
        """
        width = self.console.width - _TABLE_INDENT
        self._best = best
        self._table = TrialTable(metric, distributions or {}, n_trials, epochs, width)
        self.begin(SEARCH, n_trials, "trials", n_ended)
        if self._live:
            self._print_line(" " * _TABLE_INDENT, "", self._table.heading(), "bold")

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self._running[number] = TrialRow(number, params, self._table.epochs, state="running")
        _log.info("trial %d begins: %s", number, describe(params))

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        row = self._running.get(number) or TrialRow(number, {}, self._table.epochs)
        row = self._running[number] = replace(row, result=result)
        _log.debug(
            "trial %d epoch %s: loss %.4f, validation accuracy %.4f, lr %.2g, %.0f images/s",
            *(number, row.progress, result.train_loss, result.val_accuracy),
            *(result.lr, result.images_per_second),
            extra={"node": result.node},
        )

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        row = self._running.pop(number, None) or TrialRow(number, {}, self._table.epochs)
        score = row.result.best_val_score if row.result else math.nan
        self._ended[state] += 1
        self._done += 1
        if state == "failed":
            # `search.tuning.tune` logs it with its traceback.
            self._print_warning(f"trial {number} failed: {result.failure}")
            return
        is_best = state == "complete" and (self._best is None or score > self._best[0])
        if is_best:
            self._best = score, number, row.params
        if self._live:
            shown = replace(row, state="best" if is_best else state * (state == "pruned"))
            stamp = f"{clock(self.elapsed_seconds):<{_TABLE_INDENT}}"
            self._print_line(stamp, "", self._table.line(shown), "green" if is_best else "default")
        epoch = row.result.epoch if row.result else 0
        ended = state if state == "complete" else f"pruned at epoch {epoch}"
        self._log_line(
            f"{self._n_of_total()}trial {number} {ended}:"
            f" {describe_score(self._table.metric, score, 2)}{'  (best so far)' * is_best}"
            f"  {describe(row.params)}",
            result.node,
        )

    def _log_line(self, text: str, node: str) -> None:
        """Log a line, and print it where there is no table that has it."""
        if self._live:
            _log.info(text, extra={SHOWN: True, "node": node})
        else:
            self.say(text, node)

    def __rich__(self) -> RenderableType:
        """Draw the live display."""
        best = self._best_trial()
        lines = [Text(f"  {left}")] if (left := self._describe_time_left()) else []
        if self._stage == SEARCH:
            lines.append(self._trial_counts())
            room = self.console.height - _LINES_BESIDE_TRIALS - best.plain.count("\n")
            lines += self._running_trials(room)
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(self._bar(), *lines, *([best] if best else []))

    def _best_trial(self) -> Text:
        """Return the best complete trial, with the parameters that vary; "" before there is one."""
        if self._best is None:
            return Text()
        score, number, params = self._best
        ranges = self._table.distributions
        shown = {n: one for n, one in params.items() if n not in ranges or not ranges[n].single()}
        text = f"best complete trial {number}: {describe_score(self._table.metric, score, 2)}"
        return Text(f"  {self._fold(f'{text}  {describe(shown)}', 2)}", style="green")

    def _bar(self) -> Table:
        """Draw the stage, a bar, the counts, and the time so far."""
        total, done = float(self._total or 0), float(self._done)
        if parts := self._parts():  # the whole run's
            done = self.elapsed_seconds
            total = done + sum(parts.values())
        bar = Table.grid(padding=(0, 1))
        for _ in range(5):
            bar.add_column(no_wrap=True)
        width = min(_MAX_BAR_WIDTH, self.console.width // 3)
        shown = ProgressBar(total or None, done, width=width, animation_time=monotonic())
        elapsed = clock(self.elapsed_seconds)
        stage = Text(self._stage or "starting Ray, importing PyTorch", style="bold cyan")
        cells: list[RenderableType] = [self._spinner, stage]
        cells += [shown] if self.console.width >= _MIN_WIDTH_FOR_BAR else []
        bar.add_row(*cells, Text(self._counts()), Text(elapsed))
        return bar

    def _describe_time_left(self) -> str:
        """Describe the time left: of the run where that is known, else of the stage at its pace."""
        if parts := self._parts():
            return describe_time_left(parts)
        done = self._done - self._done_before
        if self._total is None or done <= _MIN_DONE * self._total:
            return ""
        pace = (monotonic() - self._stage_began) / done
        return describe_time_left({self._stage: pace * (self._total - self._done)})

    def _parts(self) -> Mapping[str, float]:
        return self._time_left(self._done) if self._time_left is not None else {}

    def _counts(self) -> str:
        return f"{self._done} of {self._total} {self._unit}".rstrip() if self._total else ""

    def _n_of_total(self) -> str:
        """Return how many trials of how many have ended, such as "3/40  "; "" without a total."""
        return f"{self._done}/{self._total}  " if self._total else ""

    @property
    def _is_unfinished(self) -> bool:
        return self._total is not None and self._done < self._total

    def _trial_counts(self) -> Text:
        ended = self._ended
        return Text(
            f"  {ended['complete']} complete · {len(self._running)} running ·"
            f" {ended['pruned']} pruned · {ended['failed']} failed"
        )

    def _running_trials(self, most: int) -> list[Text]:
        """Return a row for each running trial, as many as there is room for."""
        indent = " " * _TABLE_INDENT
        lines = [Text(indent + self._table.line(row)) for _, row in sorted(self._running.items())]
        if len(lines) > most > 0:
            lines[most - 1 :] = [Text(f"{indent}and {len(lines) - most + 1} more", style="dim")]
        return [Text(indent + self._table.heading(), style="bold"), *lines] if lines else []
