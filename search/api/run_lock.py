"""Let a single command work on a run: a lock with its owner, host and heartbeat.

The lock is a file that is created exclusively, which network file systems keep to as well, where
locks of the system are often missing. Its owner writes a new heartbeat every few seconds. A lock
whose owner has ended without a word is taken over: on the owner's machine its process tells, on
others a heartbeat that stands still.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

from search.runs.run_folder import LOCK
from search.runs.validation import FolderError
from trainables.atomic_write import write_atomically
from trainables.json_text import parse_json

_log = logging.getLogger(__name__)


HEARTBEAT_SECONDS = 5.0
MAX_SILENT_SECONDS = 30.0
"""After this time without a new heartbeat the owner on another machine counts as gone."""

_SETTLE_SECONDS = 0.5
"""Two commands may take over the same lock: the last one, after this time, has it."""

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system says that cannot create a file exclusively."""


@contextmanager
def locked(folder: Path, warn: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of a run; yields whether the file system can lock.

    Args:
        folder: The run's folder.
        warn: Called with what the user should know: that a lock was taken over or is unavailable.

    Raises:
        FolderError: another command works on the run.
    """
    path, owner = folder / LOCK, _describe_owner()
    if not _acquire(path, owner, warn):
        yield False
        return
    ended = Event()
    thread = Thread(target=_beat, args=(path, owner, ended), daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
        if _read(path).get("token") == owner["token"]:
            path.unlink(missing_ok=True)


def _acquire(path: Path, owner: Mapping[str, Any], warn: Callable[[str], None]) -> bool:
    """Create the lock, or take over a stale one; return whether the file system can lock."""
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(owner, file)
        return True
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warn(
            f"the file system of {path.parent} cannot lock a run ({error.strerror}): see to it that"
            " no other command works on this run"
        )
        return False
    if path.exists() and not path.is_file():
        raise FolderError(f"{path} is damaged: it must be a regular file; remove it")
    before = _read(path)
    who = f"process {before.get('pid', '?')} on {before.get('host', '?')}"
    if _is_alive(path, before, who, warn):
        raise FolderError(
            f"{path.parent} is in use by {who}, since {before.get('since', '?')}: wait for its end,"
            " or stop it"
        )
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(owner), encoding="utf-8")
    sleep(_SETTLE_SECONDS)
    if _read(path).get("token") != owner["token"]:
        raise FolderError(f"{path.parent} is in use by another command that has just begun")
    warn(f"{who} ended without releasing the run; its lock is taken over")
    return True


def _is_alive(path: Path, owner: Mapping[str, Any], who: str, warn: Callable[[str], None]) -> bool:
    """Return whether the owner of a lock still works on the run."""
    if owner.get("machine") == _machine():
        return owner.get("process") == _process(owner.get("pid"))
    warn(f"{path.parent} was locked by {who}; waiting {MAX_SILENT_SECONDS:.0f} s for a heartbeat")
    until = monotonic() + MAX_SILENT_SECONDS
    while monotonic() < until:
        sleep(min(1.0, MAX_SILENT_SECONDS / 10))
        now = _read(path)
        if not now:  # released, or being written
            continue
        if now != owner:
            return True
    return False


def _beat(path: Path, owner: Mapping[str, Any], ended: Event) -> None:
    """Write heartbeats until the end; another command's lock is left as it is."""
    n_beats = 0
    while not ended.wait(HEARTBEAT_SECONDS):
        n_beats += 1
        with suppress(OSError):  # a disk that is full, or away for a moment
            if _read(path).get("token") != owner["token"]:
                _log.warning("the lock of the run, %s, is gone or another command's", path)
                return
            with write_atomically(path) as partial:
                partial.write_text(json.dumps({**owner, "beat": n_beats}), encoding="utf-8")


def _describe_owner() -> dict[str, Any]:
    return {
        "token": uuid4().hex,
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "process": _process(os.getpid()),
    }


def _read(path: Path) -> dict[str, Any]:
    """Read a lock; empty where there is none, or a damaged one."""
    with suppress(OSError, ValueError):
        # A pipe would block.
        content = parse_json(path.read_text(encoding="utf-8") if path.is_file() else "")
        if isinstance(content, dict):
            return content
    return {}


def _machine() -> list[str]:
    """Return what is equal where process ids mean the same: host, boot and namespace."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return [platform.node(), boot, namespace]


def _process(pid: object) -> str:
    """Return what tells a running process from others that had its id; "" where it has ended."""
    if not isinstance(pid, int):
        return ""
    try:
        # Behind the name, which may hold spaces, the 20th field is the time of its start.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        pass
    except (OSError, IndexError):
        return ""
    if Path("/proc/self").exists():
        return ""
    try:  # a system without /proc
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except OSError:
        return ""
    return "running"
