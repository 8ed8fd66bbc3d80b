"""Ctrl-C and SIGTERM, in a process of its own that a signal may end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from search.console.signals import GracefulShutdown

ROOT = Path(__file__).parents[3]

STAGE = """
import sys, time
from search.console import signals
signals.MAX_STOP_SECONDS = 0.3
shutdown = signals.GracefulShutdown(lambda: print("resume: that way"))
try:
    with shutdown.watching():
        shutdown.watch()
        {body}
except KeyboardInterrupt:
    print("requested" if shutdown.requested() else "")
    sys.exit(shutdown.exit_code)
"""
AT_ONCE = "print('ready', flush=True); time.sleep(30)"
GRACEFUL = """
        with shutdown.deferring():
            print("ready", flush=True)
            while not shutdown.requested():
                time.sleep(0.01)
"""
HANGS = """
        with shutdown.deferring():
            print("ready", flush=True)
            for _ in range(3000):
                time.sleep(0.01)
"""

IGNORED = {
    "a hook of a fork": """
        import os, signal
        os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
        if os.fork() == 0:
            os._exit(0)
""",
    "the callback of a weak reference": """
        import signal, weakref
        class Thing:
            pass
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
""",
}


def stopped(body: str, *signals: signal.Signals) -> tuple[int, str]:
    """Send signals to a stage; return the exit code and what was shown."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE.format(body=body)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process, process.stdout:
        process.stdout.readline()
        for index, number in enumerate(signals):
            if index:
                assert "once more" in process.stdout.readline()
            process.send_signal(number)
        shown = process.stdout.read()
        return process.wait(timeout=20), shown


@pytest.mark.parametrize("body", [AT_ONCE, GRACEFUL])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_stops_gracefully(body: str, number: signal.Signals, code: int) -> None:
    exit_code, shown = stopped(body, number)
    assert exit_code == code, shown
    assert "requested" in shown
    assert "Traceback" not in shown


def test_the_second_signal_stops_at_once() -> None:
    exit_code, shown = stopped(HANGS, signal.SIGINT, signal.SIGINT)
    assert exit_code == 130
    assert "Traceback" not in shown


def test_a_stop_by_sigterm_takes_no_longer_than_its_limit() -> None:
    exit_code, shown = stopped(HANGS, signal.SIGTERM)
    assert exit_code == 143
    assert "resume: that way" in shown


@pytest.mark.parametrize("where", IGNORED)
def test_a_signal_that_comes_where_exceptions_are_ignored_is_not_lost(where: str) -> None:
    code, shown = stopped(
        "print('ready', flush=True)" + IGNORED[where] + " " * 8 + "time.sleep(30)"
    )
    assert code == 130
    assert "Exception ignored" not in shown
    assert "requested" in shown


def test_within_another_program_no_signal_ends_it() -> None:
    """The second SIGINT is an exception as the first, and SIGTERM is the program's own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    shutdown = GracefulShutdown(ends_program=False)
    with shutdown.watching():
        signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does when it starts
        shutdown.watch()
        assert signal.getsignal(signal.SIGTERM) == before[1]
        with pytest.raises(KeyboardInterrupt), shutdown.deferring():  # noqa: PT012
            signal.raise_signal(signal.SIGINT)
            assert shutdown.requested()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before


def test_another_thread_than_the_main_one_handles_no_signals() -> None:
    def watch() -> None:
        with shutdown.watching(), shutdown.deferring():
            shutdown.watch()
            handlers.append(signal.getsignal(signal.SIGINT))

    shutdown, handlers = GracefulShutdown(ends_program=False), []
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
