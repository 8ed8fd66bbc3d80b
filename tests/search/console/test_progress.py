import errno
import io
import os
import re

import pytest
from rich.console import Console

from search.console import progress
from search.console.progress import Progress
from trainables.trial_result import TrialResult

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PARAMS = {"backbone": "cnn", "lr": 0.00123456, "freeze_depth": 2}


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def result_of(epoch: int, accuracy: float) -> TrialResult:
    return TrialResult(
        epoch=epoch,
        best_val_score=accuracy,
        train_loss=0.5,
        val_accuracy=0.75,
        lr=0.001,
        images_per_second=1234.5,
        node="10.0.0.2",
    )


def person(width: int = 100) -> Console:
    """A terminal that a person looks at."""
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)


def drawn(shown: Progress) -> str:
    """Return what the live display shows."""
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run_trials(shown: Progress) -> None:
    """Go through a search of three trials: the best, one pruned, one that failed."""
    shown.begin_trials(3, 0, 8, None)
    for number, params in enumerate((PARAMS, {**PARAMS, "lr": 0.5}, PARAMS)):
        shown.trial_started(number, params)
    shown.trial_epoch(0, result_of(1, 0.91))
    shown.trial_epoch(1, result_of(1, 0.42))
    shown.trial_epoch(0, result_of(8, 0.95))
    shown.trial_ended(0, "complete", TrialResult())
    shown.trial_ended(1, "pruned", TrialResult())
    shown.trial_ended(2, "failed", TrialResult(failure="the training loss is nan in epoch 1"))


def test_a_pipe_gets_plain_lines(capsys, clock):
    with Progress() as shown:
        shown.begin("data", 20, "images")
        clock.now += 65
        shown.say("20 images of 2 classes")
        run_trials(shown)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "01:05  data              20 images of 2 classes",
        "01:05  search            1/3  trial 0 complete: 95.00%  (best so far)"
        "  backbone cnn, lr 0.00123, freeze_depth 2",
        "01:05  search            2/3  trial 1 pruned at epoch 1: 42.00%"
        "  backbone cnn, lr 0.5, freeze_depth 2",
        "warning: trial 2 failed: the training loss is nan in epoch 1",
    ]
    assert err == ""
    assert not ANSI.search(out)


def test_a_line_is_never_folded_in_a_pipe(capsys, clock):
    text = "a long line " * 30
    shown = Progress()
    shown.say(text)
    shown.warn(text)
    assert capsys.readouterr().out.splitlines() == [f"00:00  {text}", f"warning: {text}"]


def test_square_brackets_are_no_markup(capsys, clock):
    shown = Progress()
    shown.say("photos [old]/[/x] :smile:")
    shown.warn("excluded: [red].jpg")
    assert capsys.readouterr().out.splitlines() == [
        "00:00  photos [old]/[/x] :smile:",
        "warning: excluded: [red].jpg",
    ]


def test_a_quiet_one_shows_warnings_alone(capsys, clock):
    with Progress(quiet=True) as shown:
        shown.begin("data", 20, "images")
        clock.now += 100
        shown.advance(3, 20)
        shown.say("20 images")
        run_trials(shown)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "warning: trial 2 failed: the training loss is nan in epoch 1\n"


def test_a_quiet_one_draws_nothing_for_a_person_either(clock):
    console = person()
    with Progress(quiet=True, console=console) as shown:
        shown.begin_trials(3, 0, 8, None)
        shown.trial_started(0, PARAMS)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_a_long_stage_prints_how_far_it_is_now_and_then(capsys, clock):
    shown = Progress()
    shown.begin("data", 100, "images")
    for done, seconds in ((1, 5), (20, 6), (30, 6), (50, 6), (100, 20)):
        clock.now += seconds
        shown.advance(done, 100)
    assert capsys.readouterr().out.splitlines() == [
        "00:11  data              20 of 100 images",
        "00:23  data              50 of 100 images",
    ]


def test_a_person_gets_a_display_that_goes_when_it_ends():
    console = person()
    with Progress(console=console) as shown:
        shown.begin_trials(3, 0, 8, None)
        shown.trial_started(0, PARAMS)
        shown.say("this line stays")
    assert isinstance(console.file, io.StringIO)
    out = console.file.getvalue()
    assert ANSI.search(out)
    assert "this line stays" in out
    assert "\x1b[?25l" in out, "the cursor is hidden while the display is drawn"
    assert out.count("\x1b[?25h") >= out.count("\x1b[?25l"), "and is there again in the end"


def test_the_display_shows_stage_trials_and_the_best(clock):
    shown = Progress(console=person())
    run_trials(shown)
    shown.trial_started(3, {"backbone": "tinynet"})
    shown.trial_started(4, {"backbone": "resnet18"})
    shown.trial_epoch(4, result_of(2, 0.8765))
    text = drawn(shown)
    for part in (
        "search",
        "3 of 3 trials",
        "1 complete · 2 running · 1 pruned · 1 failed",
        "trial 3  epoch 0/8  …  backbone tinynet",
        "trial 4  epoch 2/8  87.65%  backbone resnet18",
        "best 95.00%  trial 0: backbone cnn, lr 0.00123, freeze_depth 2",
    ):
        assert part in text
    shown.begin("cross_validation", 5, "folds")
    text = drawn(shown)
    assert "0 of 5 folds" in text
    assert "running" not in text
    assert "best 95.00%" in text, "the best stays in sight"


def test_a_pruned_trial_is_never_the_best(clock, capsys):
    shown = Progress()
    shown.begin_trials(2, 0, 8, None)
    for number, (accuracy, state) in enumerate(((0.99, "pruned"), (0.5, "complete"))):
        shown.trial_started(number, PARAMS)
        shown.trial_epoch(number, result_of(2, accuracy))
        shown.trial_ended(number, state, TrialResult())
    first, second = capsys.readouterr().out.splitlines()
    assert "best so far" not in first
    assert "50.00%  (best so far)" in second
    assert "best 50.00%  trial 1" in drawn(shown)


def test_the_best_of_an_earlier_session_stays_the_best(clock, capsys):
    shown = Progress()
    shown.begin_trials(12, 10, 8, (0.97, 4, PARAMS))
    assert "best 97.00%  trial 4: backbone cnn" in drawn(shown)
    for number, accuracy in ((10, 0.96), (11, 0.98)):
        shown.trial_started(number, PARAMS)
        shown.trial_epoch(number, result_of(8, accuracy))
        shown.trial_ended(number, "complete", TrialResult())
    worse, better = capsys.readouterr().out.splitlines()
    assert "11/12  trial 10 complete: 96.00%  backbone" in worse
    assert "12/12  trial 11 complete: 98.00%  (best so far)" in better


def test_time_left_is_what_the_rest_takes_at_this_pace(clock):
    shown = Progress(console=person())
    shown.begin("cross_validation", 4, "folds")
    clock.now += 30
    assert "0:00:30 -:--:-- left" in drawn(shown)
    shown.advance(1, 4)
    assert "0:00:30 0:01:30 left" in drawn(shown)
    clock.now += 3570
    shown.advance(3, 4)
    assert "1:00:00 0:20:00 left" in drawn(shown)
    shown.advance(4, 4)
    assert "1:00:00 0:00:00 left" in drawn(shown)


def test_time_left_does_not_count_what_an_earlier_session_did(clock):
    shown = Progress(console=person())
    shown.begin_trials(12, 10, 8, None)
    clock.now += 5
    assert "0:00:05 -:--:-- left" in drawn(shown)
    shown.trial_started(10, PARAMS)
    shown.trial_ended(10, "pruned", TrialResult())
    assert "0:00:05 0:00:05 left" in drawn(shown)


def test_a_stage_without_a_total_shows_the_time_it_took(clock):
    shown = Progress(console=person())
    shown.begin("evaluation")
    clock.now += 65
    assert "evaluation" in drawn(shown)
    assert "0:01:05" in drawn(shown)
    assert "left" not in drawn(shown)


@pytest.mark.parametrize("width", [20, 60, 160])
def test_the_display_has_no_line_wider_than_the_terminal(clock, width):
    console = person(width)
    shown = Progress(console=console)
    shown.begin_trials(100, 0, 8, (0.98, 3, PARAMS))
    for number in range(40):
        shown.trial_started(number, {**PARAMS, "dropout": 0.25, "augment": 0.5})
    with console.capture() as drawn_lines:
        console.print(shown)
    lines = ANSI.sub("", drawn_lines.get()).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < console.height
    assert any("more" in line for line in lines), "trials without room are counted"
    assert ("━" in lines[0]) == (width >= 60)


def test_each_epoch_goes_to_the_log_with_its_node(capsys, clock, caplog):
    shown = Progress()
    with caplog.at_level("DEBUG", "search.console.progress"):
        shown.begin_trials(1, 0, 8, None)
        shown.trial_started(0, PARAMS)
        shown.trial_epoch(0, result_of(1, 0.8))
    assert caplog.messages == [
        "stage search begins",
        "trial 0 begins: backbone cnn, lr 0.00123, freeze_depth 2",
        "trial 0 epoch 1/8: loss 0.5000, validation accuracy 0.7500, lr 0.001, 1234 images/s",
    ]
    assert caplog.records[-1].node == "10.0.0.2"
    assert capsys.readouterr().out == ""


def test_no_color_leaves_no_colour(monkeypatch, clock):
    monkeypatch.setenv("NO_COLOR", "1")
    console = person()
    with Progress(console=console) as shown:
        run_trials(shown)
    assert isinstance(console.file, io.StringIO)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])m", console.file.getvalue())


def test_what_only_shows_results_ends_nothing(capsys, clock, caplog):
    progress = Progress(console=Console(width=200))
    for number in range(2):
        with progress.tolerating("the chart"):
            raise ValueError(f"no data {number}\nat all")
    assert capsys.readouterr().out == "warning: the chart is missing: no data 0; see run.log\n"
    assert [record.exc_info[0] for record in caplog.records] == [ValueError, ValueError]
    with pytest.raises(OSError, match="No space left"), progress.tolerating("the chart"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(KeyboardInterrupt), progress.tolerating("the chart"):
        raise KeyboardInterrupt
