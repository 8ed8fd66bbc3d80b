"""Ctrl-C: once ends a stage in good order, twice ends the program at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code of a run that was interrupted."""


class Interruption:
    """Watches for SIGINT and SIGTERM.

    The first one raises KeyboardInterrupt, or, in a stage that can end in good order, is kept for
    that stage to see. The second one ends the program where it is: all that was finished is on
    disk, and Ray's processes end with it.
    """

    def __init__(self) -> None:
        self._asked = False
        self._in_good_order = False

    @contextmanager
    def watching(self) -> Iterator[Interruption]:
        """Handle the signals within; call it in the main thread."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def in_good_order(self) -> Iterator[None]:
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
            os._exit(INTERRUPTED)
        self._asked = True
        if not self._in_good_order:
            raise KeyboardInterrupt
        print("stopping in good order; once more stops at once", file=sys.stderr)
