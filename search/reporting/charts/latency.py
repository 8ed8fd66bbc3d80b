"""Draw accuracy against latency of all backbones and of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from search.console.formatting import percent
from search.reporting.run_record import Record
from search.reporting.style import (
    ACCENT,
    MUTED,
    SMALL,
    WARM,
    Chart,
    add_legend,
    create_axes,
    shorten_apart,
    use_percent_ticks,
)

Point = tuple[float, float]
"""Milliseconds of one image, and an accuracy."""


def chart_latency(record: Record) -> Iterator[Chart]:
    """Yield the cross-validated accuracy of linear probes and of the model by their latency."""
    summary = record.summary
    probes = {
        name: (score.latency_ms, score.accuracy, score.excluded is None)
        for name, score in (summary.linear_probe or {}).items()
        if math.isfinite(score.latency_ms) and math.isfinite(score.accuracy)
    }
    cost, kfold = summary.model_cost, summary.kfold
    model = None
    if cost is not None and kfold is not None and math.isfinite(cost.latency_ms):
        model = cost.latency_ms, kfold.accuracy_corrected
    if len(probes) + (model is not None) < 2:
        return
    searched = {name: (x, y) for name, (x, y, is_searched) in probes.items() if is_searched}
    others = {name: (x, y) for name, (x, y, is_searched) in probes.items() if not is_searched}
    named = [f"{n} {percent(y)} at {x:.1f} ms" for n, (x, y) in (searched | others).items()]
    named += [f"the model {percent(model[1])} at {model[0]:.1f} ms"] if model else []
    of = "that of its best finalist" if summary.is_ensemble else "its own, corrected"
    yield Chart(
        "latency",
        draw_latency(searched, others, model),
        "Cross-validation accuracy against latency: " + "; ".join(named) + ".",
        "One image on the machine of the run, in a batch of one. Backbones have the accuracy of"
        f" their linear probe{f'; the accuracy of the model is {of}' if model else ''}.",
    )


def draw_latency(
    searched: Mapping[str, Point], others: Mapping[str, Point], model: Point | None
) -> Figure:
    """Draw accuracy by latency.

    Args:
        searched: By name, the backbones that were searched.
        others: Likewise, those that were not.
        model: The model; None where its latency is not known.
    """
    of_model = {} if model is None else {"model": model}
    figure, axes = create_axes("Accuracy against latency", "ms an image", "accuracy")
    points_of_all = {**searched, **others}
    shown = dict(zip(points_of_all, shorten_apart([*points_of_all]), strict=True))
    for points, colour, label in (
        (others, MUTED, "not searched"),
        (searched, ACCENT, "linear probe"),
        (of_model, WARM, "final model"),
    ):
        if points:
            x, y = zip(*points.values(), strict=True)
            axes.plot(x, y, "o", color=colour, markersize=7, label=label)
        for name, place in points.items():
            axes.annotate(
                shown.get(name, name),
                place,
                (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
            )
    milliseconds = [x for points in (searched, others, of_model) for x, _ in points.values()]
    if max(milliseconds) > 10 * min(milliseconds):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.15 * max(milliseconds))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.margins(y=0.2)
    use_percent_ticks(axes.yaxis)
    add_legend(figure)
    return figure
