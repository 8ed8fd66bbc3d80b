"""Write to the terminal whatever it is: of any encoding, full, closed, or read by `head`.

Names of files and classes are other people's text. Their control characters are shown escaped, as
an ANSI escape could hide or forge what a terminal shows.
"""

from __future__ import annotations

import codecs
import csv
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from tempfile import gettempdir
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from search.console.commands import as_called
from search.console.formatting import is_printable, printable
from search.console.signals import FAILED
from trainables.disk_full import fullest, is_disk_full

_PLAIN = {
    **{"…": "...", "–": "-", "—": "-", "±": "+/-", "×": "x", "·": "*", "→": "->", "−": "-"},
    **{"’": "'", "‘": "'", "“": '"', "”": '"'},
}
"""What stands for a character in an encoding that lacks it."""

_ERRORS = "classifier-search.plain"


class OutputError(OSError):
    """The standard output cannot be written to."""


def print_error(message: object) -> None:
    """Print an error on the error output, as all commands do."""
    print(as_called(f"error: {printable(str(message))}"), file=sys.stderr)


def csv_output() -> Callable[[Iterable[str]], None]:
    """Return a writer of lines of CSV to the standard output.

    They are UTF-8 as all our tables, whatever the terminal's encoding is, and the bytes of a file's
    name that are no UTF-8 stay as they are.
    """
    with suppress(AttributeError):  # a notebook's stream
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sparing = csv.writer(sys.stdout, lineterminator="\n")
    # Most readers end a line at a carriage return, which the module `csv` leaves unquoted.
    quoting = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(cells: Iterable[str]) -> None:
        row = list(cells)
        (quoting if any("\r" in cell for cell in row) else sparing).writerow(row)

    return write


class SafeConsole(Console):
    """A rich console that escapes control characters of the texts that it prints."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render an object; every text that is printed comes through here."""
        for segment in super().render(renderable, options):
            if segment.control or is_printable(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def table_console(width_of_a_file: int = 1000) -> SafeConsole:
    """Return a console for a command's table, which folds no line in a file or a pipe.

    Args:
        width_of_a_file: Columns of a table that is not shown on a terminal.
    """
    console = SafeConsole(highlight=False)
    if not console.is_terminal:
        console.width = width_of_a_file
    return console


_UNWRITABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG)
}
"""Errors of files that only the user can do something about."""

_Main = TypeVar("_Main", bound=Callable[..., int])


def command(*, continues: bool = False) -> Callable[[_Main], _Main]:
    """Decorate a command's `main`, so that its output never ends in a traceback.

    A reader of the standard output that has ended, as `head` does, ends the command quietly. One
    that cannot be written to for another reason, such as a full disk, is an error, and so are other
    files on a full disk, or without permission, that `main` has no words for.

    Args:
        continues: Whether the command's work is more than what it prints, so that it continues.
    """

    def decorate(main: _Main) -> _Main:
        @wraps(main)
        def run(*arguments: Any) -> int:
            with safe_streams(continues=continues) as output:
                try:
                    exit_code = main(*arguments)
                    output.flush()
                except OutputError:
                    exit_code = 0
                except OSError as error:
                    if error.errno not in _UNWRITABLE:
                        raise
                    print_error(_describe(error))
                    exit_code = 2 if error.errno == errno.ENAMETOOLONG else FAILED
            if output.failure is None or isinstance(output.failure, BrokenPipeError):
                return exit_code
            reason = output.failure.strerror or output.failure
            print_error(f"the standard output cannot be written to: {reason}")
            return exit_code if continues else exit_code or FAILED

        return cast(_Main, run)

    return decorate


def _describe(error: OSError) -> str:
    where = "a file" if error.filename is None else error.filename
    if error.errno == errno.ENAMETOOLONG:
        return f"the path {where!r} is too long for a file system"
    if is_disk_full(error):
        if error.filename is None:
            where = fullest((Path(), Path(gettempdir()))).absolute()
        return f"no space is left for {where}; make room on its disk"
    return f"{where} cannot be read or written: {error.strerror}"


class _SafeStream:
    """A text stream that fails once, or never, and drops what is written after it."""

    def __init__(self, stream: TextIO, raises: bool) -> None:
        self._stream = stream
        self._raises = raises
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, write: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            write()
        except OSError as error:
            self.failure = error
            # What is in its buffer is written when Python ends: that must not fail again.
            with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
            if self._raises:
                raise OutputError(*error.args) from error


@contextmanager
def safe_streams(*, continues: bool = True) -> Iterator[_SafeStream]:
    """Make `sys.stdout` and `sys.stderr` take every character, and not fail in a traceback.

    Args:
        continues: Whether the standard output drops what it cannot write; else it raises
            `OutputError`, once. The error output always drops it.

    Yields:
        The standard output; its `failure` is why it could not be written to.
    """
    was_closed = sys.stdout is None
    _open_closed_streams()
    before = sys.stdout, sys.stderr
    encodings = [(getattr(s, "encoding", None), getattr(s, "errors", None)) for s in before]
    _reconfigure(before, [(None, _ERRORS)] * 2)
    output, errors = _SafeStream(sys.stdout, not continues), _SafeStream(sys.stderr, False)
    if was_closed and not continues:
        output.failure = OSError(errno.EBADF, "it is closed")
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    try:
        yield output
    finally:
        for stream in (output, errors):
            with suppress(OutputError):
                stream.flush()
        sys.stdout, sys.stderr = before
        _reconfigure(before, encodings)


def _reconfigure(
    streams: Iterable[TextIO], encodings: Iterable[tuple[str | None, str | None]]
) -> None:
    """Set the encodings and error handlers of streams, where they have any."""
    for stream, (encoding, errors) in zip(streams, encodings, strict=True):
        with suppress(AttributeError, OSError):  # a notebook's stream has none
            stream.reconfigure(encoding=encoding, errors=errors)  # type: ignore[attr-defined]


def _open_closed_streams() -> None:
    """Open what the command began without (`>&-`): a file opened later would take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    r"""Replace characters that an encoding lacks: by plainer ones, or as `\xe4`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    plain = (
        _PLAIN.get(c) or printable(c).encode("ascii", "backslashreplace").decode() for c in part
    )
    return "".join(plain), error.end


codecs.register_error(_ERRORS, _replace_unencodable)
