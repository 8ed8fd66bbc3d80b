"""Log a run to `results/<run>/run.log` with standard `logging`, one line per event.

    2026-01-31T12:00:00Z INFO node-1 search.console.progress trial 3 complete: 0.9731

Modules log through `logging.getLogger(__name__)`. An event of another machine carries its name:
`extra={"node": node}`. The lines of a traceback are indented, so that every line that begins with a
digit is an event.
"""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from search.console.formatting import printable

_log = logging.getLogger(__name__)

SHOWN = "shown"
"""Attribute of a record that is True where the terminal has shown its text already."""

_FORMAT = "%(asctime)s %(levelname)s %(node)s %(name)s %(message)s"
_OUR_PACKAGES = ("search", "trainables")


@contextmanager
def start_run_log(
    path: Path, verbose: bool = False, arguments: Sequence[str] | None = None
) -> Iterator[None]:
    """Log what happens within to a file, and an exception that ends it, with its traceback.

    Everything that the project logs is kept, and what libraries log from WARNING up.

    Args:
        path: The log file; appended to where a run is resumed.
        verbose: Show the log on the terminal as well.
        arguments: The words of the command line, which are logged first; None: this program's.
    """
    _end_last_line(path)
    handlers: list[logging.Handler] = [_RunLogFile(path, encoding="utf-8", errors="replace")]
    if verbose:
        handlers.append(TerminalHandler())
    levels = {name: logging.getLogger(name).level for name in _OUR_PACKAGES}
    for handler in handlers:
        handler.setFormatter(_OneLine())
        logging.getLogger().addHandler(handler)
    for name in _OUR_PACKAGES:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        _log.info("arguments: %s", shlex.join(sys.argv[1:] if arguments is None else arguments))
        yield
    except KeyboardInterrupt:
        _log.warning("interrupted")
        raise
    except Exception:
        _log.exception("the run failed")
        raise
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
            with suppress(OSError):  # see `_RunLogFile`
                handler.close()


def is_logged_to_file() -> bool:
    """Return whether what is logged now goes to the log of a run."""
    return any(isinstance(one, _RunLogFile) for one in logging.getLogger().handlers)


def _end_last_line(path: Path) -> None:
    """End the line that a killed session did not, so that the next event begins a line."""
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        with suppress(OSError), path.open("ab") as file:
            file.write(b"\n")


class _OneLine(logging.Formatter):
    """Formats an event with its UTC time and node; further lines are indented."""

    def __init__(self) -> None:
        super().__init__(_FORMAT, "%Y-%m-%dT%H:%M:%SZ", defaults={"node": platform.node()})
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\n    ")


class _RunLogFile(logging.FileHandler):
    """Appends to a file; a full disk ends no run here, but where results are written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class TerminalHandler(logging.Handler):
    """Shows what the terminal has not shown yet, with control characters escaped.

    It writes to the error output of the moment, which a live display replaces by one that prints
    above it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless it is marked as shown."""
        if not getattr(record, SHOWN, False):
            print(printable(self.format(record)), file=sys.stderr)
