"""Handle Ctrl-C and SIGTERM: the first stops gracefully, the second at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

FAILED = 1
"""Exit code of a run that made no model, though nothing was wrong with the request."""

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended: 128 and the signal's number, as in shells."""

TERMINATED = 143
"""Exit code of a run that SIGTERM ended: `docker stop`, Slurm, `timeout`."""

_RAISE_AGAIN_SECONDS = 0.01

MAX_STOP_SECONDS = 8.0
"""After SIGTERM the program ends within this time; `docker stop` kills after 10 s."""


class GracefulShutdown:
    """Handles SIGINT and SIGTERM.

    The first one raises KeyboardInterrupt, or, in a stage that ends by itself, only sets
    `requested`. The second one ends the program at once: all that was finished is on disk, and
    Ray's processes end with it. So does `MAX_STOP_SECONDS` after a SIGTERM, which may have reached
    Ray's processes as well, so that waiting for them is in vain.

    Within another program, such as a notebook, the second SIGINT only raises KeyboardInterrupt,
    and SIGTERM is left to that program.
    """

    def __init__(
        self,
        on_timeout: Callable[[], None] = lambda: None,
        *,
        ends_program: bool = True,
        stop_seconds: float | None = None,
    ) -> None:
        """Handle nothing yet.

        Args:
            on_timeout: Called before a stop that took too long.
            ends_program: Whether the program is this one's to end.
            stop_seconds: Time from SIGTERM to the end; None is `MAX_STOP_SECONDS`.
        """
        self._stop_seconds = MAX_STOP_SECONDS if stop_seconds is None else stop_seconds
        self.exit_code = INTERRUPTED
        self._on_timeout = on_timeout
        self._ends_program = ends_program
        self._sigterm: Any = None
        self._requested = False
        self._is_deferring = False
        self._timer: threading.Timer | None = None

    @contextmanager
    def watching(self) -> Iterator[GracefulShutdown]:
        """Handle the signals within; none in another thread than the main one, which gets none."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        before = {number: signal.getsignal(number) for number in numbers}
        self._sigterm = before[signal.SIGTERM]
        hook = sys.unraisablehook
        self.watch()
        signal.signal(signal.SIGALRM, self._raise)
        sys.unraisablehook = lambda ignored: self._on_ignored(ignored, hook)
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = hook
            for number, handler in before.items():
                _set_handler(number, handler)

    def watch(self) -> None:
        """Install the handlers; call it again after Ray has started, which replaces SIGTERM's."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGINT, self._on_signal)
        _set_handler(signal.SIGTERM, self._on_signal if self._ends_program else self._sigterm)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Defer KeyboardInterrupt to the end of the block."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
        if self._requested:
            raise KeyboardInterrupt

    def end_program(self, exit_code: int, last: Callable[[], None] = lambda: None) -> None:
        """End the program at once, if it is this one's to end: all that was finished is on disk.

        Args:
            exit_code: The program's.
            last: Called before the end, when everything is printed.
        """
        if self._ends_program:
            self.exit_code = exit_code
            self._end_at_once(last)

    def requested(self) -> bool:
        """Return whether a stop was requested."""
        return self._requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            if self._ends_program:
                os._exit(self.exit_code)
            raise KeyboardInterrupt
        self._requested = True
        if number == signal.SIGTERM:
            self.exit_code = TERMINATED
            self._timer = threading.Timer(self._stop_seconds, self._end_at_once)
            self._timer.daemon = True
            self._timer.start()
        if self._is_deferring:
            print("stopping gracefully; once more stops at once", file=sys.stderr)
        else:
            raise KeyboardInterrupt

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._is_deferring:
            raise KeyboardInterrupt

    def _on_ignored(self, ignored: Any, hook: Callable[[Any], object]) -> None:
        """Raise an interrupt again a moment later, where it came while exceptions are ignored.

        A signal is handled by whatever Python code runs next: during a fork that is a hook of
        `logging`, at other times the callback of a weak reference.
        """
        if ignored.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS)
        else:
            hook(ignored)

    def _end_at_once(self, last: Callable[[], None] = lambda: None) -> None:
        try:
            self._on_timeout()
            sys.stdout.flush()
            last()
        finally:
            os._exit(self.exit_code)


def _set_handler(number: signal.Signals, handler: Any) -> None:
    """Install what `signal.getsignal` returned, which is None for a handler that C installed."""
    if handler is not None:
        signal.signal(number, handler)
