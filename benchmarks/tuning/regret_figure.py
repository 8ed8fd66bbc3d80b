"""Regret curves: their means, their intervals, and a small figure of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.tuning.simulated_search import OURS
from search.reporting import style

_COLOURS = (style.MUTED, style.WARM, style.BAD, style.ACCENT, "#5b8c5a", "#8a5bb0", "#b09a3e")
_DASHES = (":", "--", "-.", "-", ":", "--", "-.")

_RESAMPLES = 4000
_LEVEL = (2.5, 97.5)
_KINDS = ("validation", "test")

Regrets = Mapping[str, np.ndarray]
"""By side, float64 [seeds, budgets] in percentage points."""


def bootstrap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over seeds and its 95% bootstrap interval, for each budget.

    Args:
        values: float64 [seeds, budgets].
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(_RESAMPLES, len(values)))
    counts = np.apply_along_axis(np.bincount, 1, drawn, minlength=len(values))
    low, high = np.percentile(counts @ values / len(values), _LEVEL, axis=0)
    return values.mean(0), low, high


def draw_regrets(path: Path, sets: Mapping[str, tuple[Regrets, Regrets]]) -> None:
    """Draw a column a set, validation above and test images below, with bootstrap intervals.

    Args:
        path: Path of the SVG.
        sets: By name, the regrets on the validation and the test images.
    """
    with style.style():
        figure = Figure(figsize=(1.2 + 3.1 * len(sets), 5.6), layout="constrained")
        grid = figure.subplots(2, len(sets), squeeze=False, sharex=True)
        for column, (name, both) in enumerate(sets.items()):
            for row, (kind, regrets) in enumerate(zip(_KINDS, both, strict=True)):
                axes = grid[row, column]
                for index, (side, values) in enumerate(regrets.items()):
                    mean, low, high = bootstrap(values)
                    budgets = np.arange(1, len(mean) + 1)
                    colour = _COLOURS[index]
                    axes.fill_between(budgets, low, high, color=colour, alpha=0.13, linewidth=0)
                    width = 2.2 if side == OURS else 1.4
                    axes.plot(budgets, mean, _DASHES[index], color=colour, lw=width, label=side)
                axes.set_title(f"{name}, {kind}")
                axes.set_ylim(bottom=0)
                if row == 1:
                    axes.set_xlabel("epochs, in full trainings")
                if column == 0:
                    axes.set_ylabel("regret, percentage points")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=style.SMALL)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
