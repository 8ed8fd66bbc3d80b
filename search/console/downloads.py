"""Show downloads before a run begins: a bar for a person, a line each for a file or a pipe."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from search.console.output import SafeConsole


class DownloadDisplay:
    """Shows on the error output how far each download is."""

    def __init__(self, console: Console | None = None) -> None:
        """Begin.

        Args:
            console: Where to show it; None is the error output.
        """
        self._console = console or SafeConsole(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> DownloadDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, name: str, done: int, total: int) -> None:
        """Show one download.

        Args:
            name: The file's name.
            done: Its bytes that are there.
            total: The bytes that there will be.
        """
        if name not in self._tasks:
            self._bars.start()  # only now: most runs download nothing
            self._tasks[name] = self._bars.add_task(escape(name), total=total, completed=done)
            from_where = f", from {done / 1e6:,.1f} on" if done else ""
            self._console.print(
                f"downloading {escape(name)}: {total / 1e6:,.1f} MB{from_where}", soft_wrap=True
            )
        self._bars.update(self._tasks[name], completed=done)
