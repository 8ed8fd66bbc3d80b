"""Append events to TensorBoard's event files, without keeping them open.

A search of any length holds no file open, events are seen at once, and a resumed run appends to the
same file. `torch.utils.tensorboard.SummaryWriter` keeps a file and a thread for each, and begins a
new file each time.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_LENGTH = struct.Struct("<Q")
_CHECKSUM_BYTES = 4


def append_summary(path: Path, step: int, summary: Summary) -> None:
    """Append one event to a file; a new file begins with the format's version."""
    events = [Event(wall_time=time.time(), step=step, summary=summary)]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
    with path.open("ab") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())


def cut_torn_end(path: Path) -> None:
    """Cut off a torn last record, which a crash left: nothing after it would be read."""
    content = path.read_bytes()
    end = 0
    while end + _LENGTH.size <= len(content):
        (n_bytes,) = _LENGTH.unpack_from(content, end)
        after = end + _LENGTH.size + _CHECKSUM_BYTES + n_bytes + _CHECKSUM_BYTES
        if after > len(content):
            break
        end = after
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
