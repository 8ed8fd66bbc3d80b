"""Replay finished runs, and compare the time left that they announced with what was left.

```
python -m benchmarks.tuning.time_left results/RUN …
```

A run's folder has when each trial began and ended, the seconds of each epoch and of each fold, and
those of each stage. The events are given to `search.tuning.timing.time_left` in their order, and it
is asked at 40 moments from the first fifth of the run, or the end of the first epoch, to 95% of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.harness.reporting import Ratio, Report, command_line
from search.pipeline.trials import nothing_to_gain
from search.reporting.run_record import Record, TrialRecord, read_record
from search.runs.run_folder import RunFolder
from search.runs.summary import ProbeScore, RunSummary
from search.runs.tables import read_rows
from search.tuning.timing.after_trials import AfterTrials, fold_growth
from search.tuning.timing.time_left import Budget, TimeLeft
from spaces.base import Space, load_space
from trainables.trial_result import TrialResult

TARGET = 0.25
_MOMENTS = 40
_BEFORE = ("startup", "data", "linear_probe", "feature_cache")
_AFTER = ("evaluation", "tensorboard", "report")


@dataclass(frozen=True)
class Event:
    """Something that a run tells its estimate, with its time in seconds since the run began."""

    time: float
    tell: Callable[[TimeLeft], object]


class Clock:
    """The time of the replay, in seconds since the run began."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@dataclass(frozen=True)
class Replay:
    """A finished run as its estimate sees it.

    Attributes:
        time_left: The estimate.
        clock: What it takes for the time.
        events: What it receives, by time.
        seconds: Seconds of the whole run.
        folds: When each fold ended.
    """

    time_left: TimeLeft
    clock: Clock
    events: list[Event]
    seconds: float
    folds: list[float]

    def errors(self) -> Iterator[float]:
        """Yield the relative error of the time left at each moment that has an estimate."""
        waiting = sorted(self.events, key=lambda event: event.time)
        for moment in np.linspace(0.2, 0.95, _MOMENTS) * self.seconds:
            while waiting and waiting[0].time <= moment:
                event = waiting.pop(0)
                self.clock.now = event.time
                event.tell(self.time_left)
            self.clock.now = moment
            parts = self.time_left.parts(sum(end <= moment for end in self.folds))
            if parts:
                left = self.seconds - moment
                yield abs(sum(parts.values()) - left) / left


def read_replay(path: Path) -> Replay:
    """Read a finished run's folder."""
    record = read_record(RunFolder.open(path))
    summary = record.summary
    if summary.stages is None or summary.kfold is None or summary.data is None:
        raise SystemExit(f"{path} is not a finished run")
    settings, stages = summary.settings, summary.stages
    assert settings is not None
    space = replace(load_space(path / "space.py"), epochs=settings.epochs, folds=settings.folds)
    space = replace(space, params={**space.params, **settings.constants})
    times = _trial_times(record, stages["search"])
    slots = _most_at_once(list(times.values()))
    search_begins = sum(stages.get(name, 0.0) for name in _BEFORE)
    folds_begin = search_begins + stages["search"]
    folds_end = folds_begin + stages["cross_validation"]
    clock = Clock()
    last_trial = _last_trial(record, space)
    replay = Replay(
        TimeLeft(
            space,
            last_trial,
            lambda: slots,
            _after_trials(summary, space, slots),
            record.environment.request.n_finalists,
            [
                str(one.name).removeprefix("linear probe of ")
                for one in summary.kfold.finalists
                if one.trial is None
            ],
            _budget(record, clock, folds_begin, last_trial is None),
            clock,
        ),
        clock,
        list(_trial_events(record.trials, times, search_begins)),
        folds_end + sum(stages.get(name, 0.0) for name in _AFTER),
        _fold_ends(path, folds_begin, folds_end, slots),
    )
    finalists = [
        (one.trial, int(found[1]) if (found := re.search(r"(\d+) epochs?", one.name)) else 0)
        for one in summary.kfold.finalists
    ]
    replay.events.append(Event(folds_begin, lambda left: left.begin_folds(finalists)))
    replay.events.append(Event(folds_end, lambda left: left.begin_closing()))
    return replay


def _last_trial(record: Record, space: Space) -> int | None:
    """Return how many trials the run was to have; None where only the time bounded them."""
    summary = record.summary
    if not record.environment.request.has_open_end:
        return len(record.trials)
    assert summary.data is not None
    best = next(iter((summary.linear_probe or {}).values()), ProbeScore())
    n_images = summary.data.train + summary.data.val
    if summary.metric == "accuracy" and nothing_to_gain(best.accuracy, n_images):
        return max(1, len(space.first_trials))
    return None


def _after_trials(summary: RunSummary, space: Space, slots: int) -> AfterTrials:
    """Return the estimates of what followed the trials.

    A run records each backbone's milliseconds of one image, and those of a batch of its model
    alone: backbones are taken to gain as much by a batch as the model does.
    """
    data, cost, external = summary.data, summary.model_cost, summary.external
    assert data is not None
    by_batch = 1.0 if cost is None else cost.latency_ms_batch_32 / cost.latency_ms
    probes = summary.linear_probe or {}
    return AfterTrials(
        space,
        data.train,
        fold_growth(data.train, data.val, space.folds),
        lambda _: slots,
        {name: one.latency_ms / 1000 * by_batch for name, one in probes.items()},
        data.test + (0 if external is None else external.n),
        has_probe=bool(probes),
    )


def _budget(record: Record, clock: Clock, folds_begin: float, is_open: bool) -> Budget | None:
    """Return the run's time budget; what it reserved is what was left when its trials ended."""
    seconds = record.environment.request.time_budget_seconds
    if seconds is None:
        return None
    reserved = seconds - folds_begin if is_open else 0.0
    return Budget(lambda: seconds - clock.now, lambda: reserved)


def _trial_times(record: Record, search_seconds: float) -> dict[int, tuple[float, float]]:
    """Return when each trial began and ended, in seconds since the first began.

    One that did not end is taken to have ended with the search.
    """
    assert record.study is not None
    begun = {
        one.number: (one.datetime_start.timestamp(), one.datetime_complete)
        for one in record.study.get_trials(deepcopy=False)
        if one.datetime_start is not None
    }
    first = min((begins for begins, _ in begun.values()), default=0.0)
    return {
        number: (begins - first, search_seconds if ends is None else ends.timestamp() - first)
        for number, (begins, ends) in begun.items()
    }


def _trial_events(
    trials: Sequence[TrialRecord], times: dict[int, tuple[float, float]], offset: float
) -> Iterator[Event]:
    for trial in trials:
        if trial.number not in times:
            continue
        begins, ends = (offset + time for time in times[trial.number])
        number, params, state = trial.number, trial.params, trial.state
        yield Event(begins, lambda left, n=number, p=params: left.trial_started(n, p))  # type: ignore[misc]
        trained, best = 0.0, 0.0
        whole = trial.seconds or 1.0
        for epoch in trial.curve:
            trained += whole / len(trial.curve)
            best = max(best, epoch.val_accuracy)
            result = TrialResult(epoch=epoch.epoch, best_val_score=best, trained_seconds=trained)
            time = begins + (ends - begins) * epoch.epoch / len(trial.curve)
            yield Event(time, lambda left, n=number, r=result: left.trial_epoch(n, r))  # type: ignore[misc]
        yield Event(
            ends,
            lambda left, n=number, s=state: left.trial_ended(n, s, TrialResult()),  # type: ignore[misc]
        )


def _most_at_once(times: Sequence[tuple[float, float]]) -> int:
    """Return how many trials ran in parallel at most."""
    return max(sum(a <= begins < b for a, b in times) for begins, _ in times)


def _fold_ends(path: Path, begins: float, ends: float, slots: int) -> list[float]:
    """Return when each fold ended: as many in parallel as trials, a finalist after another."""
    free, found = [0.0] * slots, []
    before = None
    for row in read_rows(path / "folds" / "folds.csv"):
        if row["trial"] != before:
            before, free = row["trial"], [max(free)] * slots
        slot = free.index(min(free))
        free[slot] += float(row["seconds"])
        found.append(free[slot])
    return [begins + (ends - begins) * end / max(free) for end in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay runs; return the exit code."""
    parser = command_line(str(__doc__))
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    options = parser.parse_args(arguments)
    rows = []
    for path in options.runs:
        replay = read_replay(path)
        errors = list(replay.errors())
        rows.append(
            {
                "run": path.name,
                "minutes": round(replay.seconds / 60, 1),
                "moments": len(errors),
                "median error": round(median(errors), 3),
            }
        )
    error = median(float(row["median error"]) for row in rows)
    Report(
        "time_left",
        "The time left that runs announced, against what was left, after the first fifth of a run",
        tables={"Replayed runs": rows},
        ratios=[Ratio("median error, median of the runs", error, TARGET, at_least=False)],
    ).publish(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
