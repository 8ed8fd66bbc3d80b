"""Draw the learning curves of all trials in one figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from search.console.formatting import percent
from search.reporting.run_record import Record, TrialRecord, describe_trial
from search.reporting.style import (
    ACCENT,
    MUTED,
    WARM,
    Chart,
    add_legend,
    create_axes,
    set_titles,
    use_integer_ticks,
    use_percent_ticks,
)

_MAX_CURVES = 200  # the best ones; more would hide one another


def chart_trial_curves(record: Record) -> Iterator[Chart]:
    """Yield the validation accuracy of every trial by epoch."""
    curves = [trial for trial in record.trials if trial.curve]
    if len(curves) < 2:
        return
    shown = sorted(curves, key=lambda trial: trial.accuracy or 0.0)[-_MAX_CURVES:]
    best = record.best_trial
    number = None if best is None else best.number
    n_pruned = sum(trial.state == "pruned" for trial in shown)
    left_out = f" The best {len(shown)} of {len(curves)}." if len(shown) < len(curves) else ""
    bold = f" The bold curve is trial {number}." if number is not None else ""
    yield Chart(
        "trial_curves",
        draw_trial_curves(shown, number),
        f"Validation accuracy by epoch of {len(shown)} trials, {n_pruned} of them pruned; the"
        f" highest is {percent(max(trial.accuracy or 0.0 for trial in shown))}.",
        f"A curve is a trial; gray ones were pruned or did not finish; the"
        f" pointer shows which trial.{bold}{left_out}",
    )


def draw_trial_curves(trials: Sequence[TrialRecord], best: int | None) -> Figure:
    """Draw validation accuracy by epoch.

    Args:
        trials: Each with a curve; later ones are drawn above earlier ones.
        best: Number of the trial that is drawn bold; None for none.
    """
    figure, axes = create_axes("Validation accuracy of all trials", "epoch", "accuracy")
    labelled = set()
    for trial in sorted(trials, key=lambda trial: trial.number == best):
        kind, colour, width = "pruned or unfinished", MUTED, 0.8
        if trial.number == best:
            kind, colour, width = f"trial {best}", WARM, 2.6
        elif trial.state == "complete":
            kind, colour, width = "complete", ACCENT, 1.2
        (line,) = axes.plot(
            [epoch.epoch for epoch in trial.curve],
            [epoch.val_accuracy for epoch in trial.curve],
            marker="o" if len(trial.curve) == 1 else "",
            markersize=3,
            color=colour,
            linewidth=width,
            alpha=1.0 if trial.number == best else 0.7,
            label=None if kind in labelled else kind,
        )
        set_titles(line, [describe_trial(trial)])
        labelled.add(kind)
    use_integer_ticks(axes)
    use_percent_ticks(axes.yaxis)
    add_legend(figure)
    return figure
