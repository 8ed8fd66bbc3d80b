import io
import logging
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from search.console.progress import Progress
from search.console.run_log import start_run_log

LOG = logging.getLogger("search.tuning.tune")
EVENT = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (?P<level>[A-Z]+) (?P<node>\S+) (?P<logger>\S+) (?P<text>.*)"
)


def events(path: Path) -> list[tuple[str, str, str]]:
    """Return the level, logger and text of each event but the arguments."""
    found = [EVENT.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    parts = [one.group("level", "logger", "text") for one in found if one]
    return [part for part in parts if not part[2].startswith("arguments: ")]


def test_an_event_is_one_line_with_time_level_node_and_logger(tmp_path):
    with start_run_log(tmp_path / "run.log"):
        LOG.info("trial %d begins", 3, extra={"node": "10.0.0.2"})
        LOG.debug("epoch 1")
    (line,) = [x for x in (tmp_path / "run.log").read_text().splitlines() if "begins" in x]
    assert EVENT.fullmatch(line)["node"] == "10.0.0.2"  # type: ignore[index]
    assert events(tmp_path / "run.log") == [
        ("INFO", "search.tuning.tune", "trial 3 begins"),
        ("DEBUG", "search.tuning.tune", "epoch 1"),
    ]


def test_a_resumed_run_appends(tmp_path):
    for text in ("first", "second"):
        with start_run_log(tmp_path / "run.log"):
            LOG.info(text)
    assert [text for _, _, text in events(tmp_path / "run.log")] == ["first", "second"]


def test_a_line_torn_by_a_killed_session_is_ended(tmp_path):
    (tmp_path / "run.log").write_text("2026-01-31T12:0")
    with start_run_log(tmp_path / "run.log"):
        pass
    torn, first = (tmp_path / "run.log").read_text().splitlines()
    assert torn == "2026-01-31T12:0"
    assert "arguments:" in first


def test_the_lines_of_a_traceback_are_indented(tmp_path):
    with start_run_log(tmp_path / "run.log"):
        LOG.error("trial 3 failed\n%s", 'Traceback (most recent call last):\n  File "x.py", line 1')
    assert events(tmp_path / "run.log") == [("ERROR", "search.tuning.tune", "trial 3 failed")]
    assert "\n    Traceback (most" in (tmp_path / "run.log").read_text()


def test_an_exception_that_ends_a_run_is_logged_with_its_traceback(tmp_path):
    with pytest.raises(ValueError, match="no such file"), start_run_log(tmp_path / "run.log"):
        raise ValueError("no such file")
    assert events(tmp_path / "run.log") == [("ERROR", "search.console.run_log", "the run failed")]
    assert "\n    ValueError: no such file" in (tmp_path / "run.log").read_text()


def test_libraries_are_logged_from_warnings_up_and_nothing_after_the_end(tmp_path):
    with start_run_log(tmp_path / "run.log"):
        logging.getLogger("urllib3").info("connected")
        logging.getLogger("urllib3").warning("retrying")
    LOG.warning("too late")
    assert [text for _, _, text in events(tmp_path / "run.log")] == ["retrying"]


def test_a_full_disk_does_not_end_the_run(tmp_path, capsys):
    with start_run_log(Path("/dev/full")):
        LOG.info("lost")
    assert capsys.readouterr().err == ""


def test_what_progress_shows_is_logged_quiet_or_not(tmp_path, capsys):
    for quiet in (False, True):
        shown = Progress(quiet=quiet)
        with start_run_log(tmp_path / f"{quiet}.log", verbose=not quiet):
            shown.begin("data")
            shown.say("20 images")
            shown.warn("an image is unreadable")
        assert [event[::2] for event in events(tmp_path / f"{quiet}.log")] == [
            ("INFO", "stage data begins"),
            ("INFO", "20 images"),
            ("WARNING", "an image is unreadable"),
        ]


def test_verbose_shows_the_log_without_what_is_shown_already(tmp_path, capsys):
    with start_run_log(tmp_path / "run.log", verbose=True):
        Progress().say("20 images")
        LOG.debug("trial 0 epoch 1/8")
    out, err = capsys.readouterr()
    assert "20 images" in out
    assert "20 images" not in err
    assert err.splitlines()[-1].endswith("search.tuning.tune trial 0 epoch 1/8")


def test_verbose_prints_above_the_live_display(tmp_path, monkeypatch):
    """The display takes the error output's place while it is drawn."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress(console=console), start_run_log(tmp_path / "run.log", verbose=True):
        LOG.info("trial 0 begins")
    assert isinstance(console.file, io.StringIO)
    assert "trial 0 begins" in console.file.getvalue()
    assert isinstance(sys.stderr, io.StringIO)
    assert sys.stderr.getvalue() == ""
