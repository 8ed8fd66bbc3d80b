import errno
import io
import os
import re

import pytest
from optuna.distributions import CategoricalDistribution
from rich.console import Console

from search.console import progress
from search.console.progress import Progress
from trainables.trial_result import TrialResult

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PARAMS = {"backbone": "cnn", "lr": 0.00123456, "freeze_depth": 2}
BACKBONES = {"backbone": CategoricalDistribution(["tinynet", "resnet18"])}


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
        val_loss=0.625,
        trained_seconds=21.4,
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
        "00:11  data              20 of 100 images, about 45 s left",
        "00:23  data              50 of 100 images, about 25 s left",
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
    shown.begin_trials(3, 3, 8, (0.95, 0, PARAMS), "accuracy", BACKBONES)
    shown.trial_started(3, {"backbone": "tinynet"})
    shown.trial_started(4, {"backbone": "resnet18"})
    shown.trial_epoch(4, result_of(2, 0.8765))
    text = drawn(shown)
    for part in (
        "search",
        "3 of 3 trials",
        "1 complete · 2 running · 1 pruned · 1 failed",
        "#  epoch  val accuracy   loss  backbone     s",
        "3    0/8                        tinynet        running",
        "4    2/8        87.65%  0.625  resnet18    21  running",
        "best complete trial 0: 95.00%  backbone cnn, lr 0.00123, freeze_depth 2",
    ):
        assert part in text
    shown.begin("cross_validation", 5, "folds")
    text = drawn(shown)
    assert "0 of 5 folds" in text
    assert "running" not in text
    assert "best complete trial 0: 95.00%" in text, "the best stays in sight"


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
    assert "best complete trial 1: 50.00%" in drawn(shown)


def test_the_best_of_an_earlier_session_stays_the_best(clock, capsys):
    shown = Progress()
    shown.begin_trials(12, 10, 8, (0.97, 4, PARAMS))
    assert "best complete trial 4: 97.00%  backbone cnn" in drawn(shown)
    for number, accuracy in ((10, 0.96), (11, 0.98)):
        shown.trial_started(number, PARAMS)
        shown.trial_epoch(number, result_of(8, accuracy))
        shown.trial_ended(number, "complete", TrialResult())
    worse, better = capsys.readouterr().out.splitlines()
    assert "11/12  trial 10 complete: 96.00%  backbone" in worse
    assert "12/12  trial 11 complete: 98.00%  (best so far)" in better


def test_time_left_of_a_stage_is_what_the_rest_takes_at_this_pace(clock):
    shown = Progress(console=person())
    shown.begin("feature_cache", 4, "blocks")
    clock.now += 30
    assert "left" not in drawn(shown)
    shown.advance(1, 4)
    assert "about 90 s left" in drawn(shown).replace("about 2 min", "about 90 s")
    clock.now += 3570
    shown.advance(3, 4)
    assert "about 20 min left" in drawn(shown)
    assert "1:00:00" in drawn(shown)
    shown.advance(4, 4)
    assert "a few seconds left" in drawn(shown)
    shown.begin("feature_cache", 112, "blocks")
    for done, is_known in ((2, False), (3, True)):
        clock.now += 10
        shown.advance(done)
        assert ("left" in drawn(shown)) == is_known


def test_time_left_of_the_whole_run_takes_its_place(clock):
    shown = Progress(console=person())
    done = []

    def parts(n_done):
        done.append(n_done)
        return {"trials": 540.0, "cross-validation": 181.0} if n_done else {}

    shown.begin("search", 4, "trials")
    shown.expect(parts)
    clock.now += 721
    assert "left" not in drawn(shown), "nothing is known yet"
    shown.advance(2, 4)
    assert "about 12 min left (trials 9, cross-validation 3)" in drawn(shown)
    bar = drawn(shown).splitlines()[0]
    assert bar.count("━") == 16, "one bar of 33 columns, half full, as the whole run is"
    assert done[-1] == 2


def test_time_left_does_not_count_what_an_earlier_session_did(clock):
    shown = Progress(console=person())
    shown.begin_trials(12, 10, 8, None)
    clock.now += 40
    assert "left" not in drawn(shown)
    shown.trial_started(10, PARAMS)
    shown.trial_ended(10, "pruned", TrialResult())
    assert "about 40 s left" in drawn(shown)


def test_a_stage_without_a_total_shows_the_time_it_took(clock):
    shown = Progress(console=person())
    shown.begin("evaluation")
    clock.now += 65
    assert "evaluation" in drawn(shown)
    assert "01:05" in drawn(shown)
    assert "left" not in drawn(shown)


def test_a_person_reads_ended_trials_in_the_columns_of_the_running_ones(clock):
    console = person(80)
    with Progress(console=console) as shown:
        shown.begin_trials(3, 0, 8, None, "accuracy", BACKBONES)
        for number, state in enumerate(("complete", "pruned")):
            shown.trial_started(number, {"backbone": "resnet18"})
            shown.trial_epoch(number, result_of(8, 0.9))
            shown.trial_ended(number, state, TrialResult())
    assert isinstance(console.file, io.StringIO)
    lines = [ANSI.sub("", line).strip() for line in console.file.getvalue().split("\n")]
    assert "#  epoch  val accuracy   loss  backbone     s" in lines
    for line in (
        "00:00   0    8/8        90.00%  0.625  resnet18    21  best",
        "00:00   1    8/8        90.00%  0.625  resnet18    21  pruned",
    ):
        assert any(one.endswith(line) for one in lines), lines


def test_only_the_time_stamp_is_dim(clock):
    console = person()
    shown = Progress(console=console)
    shown.say("20 images")
    assert isinstance(console.file, io.StringIO)
    assert re.fullmatch(
        r"\x1b\[2m00:00  \x1b\[0m(\x1b\[39m)?20 images(\x1b\[0m)?\n", console.file.getvalue()
    )


def test_a_line_is_folded_for_a_person_but_a_path_stays_whole(clock):
    console = person(40)
    shown = Progress(console=console)
    shown.say("a long line " * 6)
    shown.say(f"saved: {'/a/long/path' * 6}")
    assert isinstance(console.file, io.StringIO)
    lines = ANSI.sub("", console.file.getvalue()).splitlines()
    assert max(map(len, lines[:-1])) <= 40
    assert lines[1].startswith("       a long") or lines[1].startswith("       line")
    assert lines[-1].endswith("/a/long/path" * 6)


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
