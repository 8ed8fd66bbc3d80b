"""Draw the score of the trials against each of their hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from search.console.formatting import METRIC_NAMES, describe_score
from search.reporting.charts.parameter_axis import Axis, focus, parameter_axes
from search.reporting.run_record import Record, TrialRecord, describe_trial
from search.reporting.style import ACCENT, MUTED, SMALL, WARM, WIDTH, Chart, set_titles
from spaces.rules import Metric

_MAX_PANELS = 4  # in a row
_MAX_TRIALS = 400  # the best ones; more would hide one another
_MAX_TICKS = 4  # of a number that is not whole: its labels are long
_PANEL_HEIGHT = 2.3  # inches


def chart_slices(record: Record) -> Iterator[Chart]:
    """Yield the validation score of the trials against each searched parameter."""
    scored = [trial for trial in record.trials if trial.score is not None]
    if len(scored) < 2 or not record.distributions:
        return
    shown = sorted(scored, key=lambda trial: trial.score or 0.0)[-_MAX_TRIALS:]
    metric = record.summary.metric
    axes = parameter_axes(record.distributions, [trial.params for trial in shown])
    best = None if record.best_trial is None else record.best_trial.number
    name = METRIC_NAMES[metric]
    left_out = f" The best {len(shown)} of {len(scored)}." if len(shown) < len(scored) else ""
    yield Chart(
        "slices",
        draw_slices(axes, shown, best, metric),
        f"Validation {name} of {len(shown)} trials against each of "
        + ", ".join(axis.name for axis in axes)
        + ". The table of trials has the same numbers.",
        f"A point is a trial at its best epoch: filled if complete, else pruned or unfinished"
        f"{'' if best is None else f'; trial {best} is ringed'}. Poor trials lie at the lower edge."
        f"{left_out}",
    )


def draw_slices(
    axes: Sequence[Axis], trials: Sequence[TrialRecord], best: int | None, metric: Metric
) -> Figure:
    """Draw a panel for each parameter.

    Args:
        axes: One for each parameter, with the values of the trials.
        trials: Each with a score.
        best: Number of the trial that is ringed; None for none.
        metric: The metric of the scores.
    """
    n_columns = min(_MAX_PANELS, len(axes))
    n_rows = math.ceil(len(axes) / n_columns)
    figure = Figure(figsize=(2 * WIDTH, 0.5 + _PANEL_HEIGHT * n_rows), layout="constrained")
    figure.suptitle(
        f"Validation {METRIC_NAMES[metric]} by parameter", x=0.01, ha="left", weight="bold"
    )
    panels = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    scores = [trial.score for trial in trials if trial.score is not None]
    low, high = focus(scores), max(scores)
    # Trials of the same choice shall not hide one another.
    jitter = np.random.default_rng(0).uniform(-0.04, 0.04, len(trials))
    for panel, axis in zip(panels.flat, axes, strict=False):
        x = [axis.position(value) for value in axis.values]
        if axis.choices:
            x = [place + shift for place, shift in zip(x, jitter.tolist(), strict=True)]
        for is_complete, face in ((False, "none"), (True, ACCENT)):
            chosen = [i for i, t in enumerate(trials) if (t.state == "complete") == is_complete]
            if chosen:
                (points,) = panel.plot(
                    [x[i] for i in chosen],
                    [max(low, scores[i]) for i in chosen],
                    "o",
                    color=ACCENT if is_complete else MUTED,
                    markerfacecolor=face,
                    markersize=4.5,
                    alpha=0.8,
                )
                set_titles(points, [describe_trial(trials[i]) for i in chosen])
        for place, trial in zip(x, trials, strict=True):
            if trial.number == best and trial.score is not None:
                ring = {"color": WARM, "markerfacecolor": "none", "markersize": 10}
                (points,) = panel.plot([place], [max(low, trial.score)], "o", **ring)
                set_titles(points, [describe_trial(trial)])
        ticks = axis.ticks()
        if not axis.choices and not axis.integer and len(ticks) > _MAX_TICKS:
            middle = len(ticks) // 2
            ticks = [ticks[0], ticks[middle], ticks[-1]]
        places, texts = zip(*ticks, strict=True)
        panel.set_xticks(places, texts, fontsize=SMALL)
        if axis.choices:
            panel.set_xticks(places, texts, rotation=20, ha="right", rotation_mode="anchor")
        panel.set_xlabel(axis.name)
        pad = 0.08 * (high - low) or 0.01
        panel.set_ylim(low - pad, high + pad)
        panel.set_xlim(-0.2 if None in axis.values else -0.08, 1.08)
        panel.yaxis.set_major_locator(MaxNLocator(nbins=5))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: describe_score(metric, y)))
    for panel in panels.flat[len(axes) :]:
        panel.set_visible(False)
    return figure
