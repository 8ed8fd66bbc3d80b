"""Draw how many images each class has in each split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.figure import Figure

from search.console.formatting import count
from search.reporting.run_record import Record
from search.reporting.style import ACCENT, MUTED, WARM, Chart, add_legend, create_axes, shorten

_MAX_CLASSES = 40
_SPLITS = (("train", ACCENT), ("val", MUTED), ("test", WARM))


def chart_class_balance(record: Record) -> Iterator[Chart]:
    """Yield the images of each class by split, the largest class first."""
    sizes = {name: sum(counts.values()) for name, counts in record.class_counts.items()}
    if len(sizes) < 2:
        return
    ordered = sorted(sizes, key=lambda name: -sizes[name])
    shown = ordered[:_MAX_CLASSES]
    largest, smallest = ordered[0], ordered[-1]
    left_out = f" The largest {len(shown)} of {len(ordered)}." if len(shown) < len(ordered) else ""
    yield Chart(
        "class_balance",
        draw_class_balance({name: record.class_counts[name] for name in shown}),
        f"Images by class: {count(sizes[largest], 'image')} of {largest}, the largest class,"
        f" {sizes[smallest]} of {smallest}, the smallest.",
        f"Images of each class by split.{left_out}",
    )


def draw_class_balance(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw a horizontal bar for each class, divided by split."""
    figure, axes = create_axes("Images by class", "images", "")
    figure.set_figheight(1.3 + 0.28 * len(counts))
    rows, left = np.arange(len(counts)), np.zeros(len(counts))
    for split, colour in _SPLITS:
        widths = np.array([one.get(split, 0) for one in counts.values()], float)
        axes.barh(rows, widths, left=left, color=colour, height=0.7, label=split)
        left += widths
    axes.set_yticks(rows, [shorten(name) for name in counts])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    add_legend(figure)
    return figure
