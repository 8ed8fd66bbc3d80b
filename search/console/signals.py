"""Ctrl-C and SIGTERM: once ends a stage in good order, twice ends the program at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType
from typing import Any

FAILED = 1
"""Exit code of a run that came to nothing, through no fault of the request."""

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended: 128 and the signal's number, as shells have it."""

TERMINATED = 143
"""Exit code of a run that SIGTERM ended: `docker stop`, Slurm, `timeout`."""

_PUT_OFF_SECONDS = 0.01

PATIENCE_SECONDS = 8.0
"""What a stop by SIGTERM may take; `docker stop` kills after 10 s."""


class GracefulShutdown:
    """Watches for SIGINT and SIGTERM.

    The first one raises KeyboardInterrupt, or, in a stage that can end in good order, is kept for
    that stage to see. The second one ends the program where it is: all that was finished is on
    disk, and Ray's processes end with it. So does time after a SIGTERM: whoever sends it may have
    sent it to Ray's processes as well, which nobody should wait for, and nobody is there to send it
    twice.
    """

    def __init__(self, on_timeout: Callable[[], None] = lambda: None) -> None:
        """Watch from `watching` on; `on_timeout` are said before a stop that takes too long."""
        self.exit_code = INTERRUPTED
        self._last_words = on_timeout
        self._asked = False
        self._in_good_order = False
        self._timer: Timer | None = None

    @contextmanager
    def watching(self) -> Iterator[GracefulShutdown]:
        """Handle the signals within; call it in the main thread."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        before = {number: signal.getsignal(number) for number in numbers}
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
                signal.signal(number, handler)

    def watch(self) -> None:
        """Take the signals; once more after Ray has started, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Let a stage look at `asked` and end by itself; raises KeyboardInterrupt after it."""
        self._in_good_order = True
        try:
            yield
        finally:
            self._in_good_order = False
        if self._asked:
            raise KeyboardInterrupt

    def asked(self) -> bool:
        """Say whether the user has asked to stop."""
        return self._asked

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            os._exit(self.exit_code)
        self._asked = True
        if number == signal.SIGTERM:
            self.exit_code = TERMINATED
            self._timer = Timer(PATIENCE_SECONDS, self._end_at_once)
            self._timer.daemon = True
            self._timer.start()
        if self._in_good_order:
            print("stopping in good order; once more stops at once", file=sys.stderr)
        else:
            raise KeyboardInterrupt

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._in_good_order:
            raise KeyboardInterrupt

    def _on_ignored(self, ignored: Any, hook: Callable[[Any], object]) -> None:
        """Raise again, a moment later, what came where exceptions are ignored.

        A signal is handled by whatever Python code runs next: during a fork that is a hook of
        `logging`, at other times the callback of a weak reference.
        """
        if ignored.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, _PUT_OFF_SECONDS)
        else:
            hook(ignored)

    def _end_at_once(self) -> None:
        try:
            self._last_words()
            sys.stdout.flush()
        finally:
            os._exit(self.exit_code)
