from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.text.summary_v2 import text_pb

from search.reporting.tensorboard.event_file import append_summary, cut_torn_end


def read(path: Path) -> list[tuple[int, str]]:
    """Return the step and the tag of each event, as TensorBoard reads them."""
    events = [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]
    return [(event.step, event.summary.value[0].tag) for event in events]


def test_events_are_read_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.out.tfevents.x"
    append_summary(path, 0, text_pb("one", "1"))
    append_summary(path, 7, text_pb("two", "2"))
    assert read(path) == [(0, "one"), (7, "two")]


@pytest.mark.parametrize("n_lost", [1, 4, 20, 60])
def test_a_torn_end_hides_nothing_that_comes_after(tmp_path: Path, n_lost: int) -> None:
    path = tmp_path / "events.out.tfevents.x"
    append_summary(path, 0, text_pb("one", "1"))
    append_summary(path, 1, text_pb("torn", "2" * 50))
    path.write_bytes(path.read_bytes()[:-n_lost])
    cut_torn_end(path)
    append_summary(path, 2, text_pb("after", "3"))
    assert read(path) == [(0, "one"), (2, "after")]


def test_a_complete_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.x"
    append_summary(path, 0, text_pb("one", "1"))
    before = path.read_bytes()
    cut_torn_end(path)
    assert path.read_bytes() == before
