"""Draw every figure of the report that a run has the numbers for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from search.console.formatting import first_line
from search.console.run_log import is_logged_to_file
from search.reporting import style
from search.reporting.charts.class_balance import chart_class_balance
from search.reporting.charts.confusion import chart_confusions
from search.reporting.charts.coverage import chart_coverage
from search.reporting.charts.latency import chart_latency
from search.reporting.charts.one_vs_rest import chart_one_vs_rest
from search.reporting.charts.slices import chart_slices
from search.reporting.charts.trial_curves import chart_trial_curves
from search.reporting.model_figures import (
    chart_ablation,
    chart_accuracies,
    chart_curves,
    chart_reliability,
)
from search.reporting.run_record import Record
from search.reporting.search_figures import (
    chart_history,
    chart_importances,
    chart_parameters,
    chart_stages,
)
from trainables.disk_full import is_disk_full

_log = logging.getLogger(__name__)

CHARTS: dict[str, Callable[[Record], Iterator[style.Chart]]] = {
    "history of the trials": chart_history,
    "curves of the trials": chart_trial_curves,
    "parallel coordinates": chart_parameters,
    "slices": chart_slices,
    "hyperparameter importance": chart_importances,
    "time of the stages": chart_stages,
    "learning curves": chart_curves,
    "accuracies": chart_accuracies,
    "confusion matrices": chart_confusions,
    "reliability diagram": chart_reliability,
    "ROC and precision-recall curves": chart_one_vs_rest,
    "accuracy against coverage": chart_coverage,
    "accuracy against latency": chart_latency,
    "class balance": chart_class_balance,
    "ablation": chart_ablation,
}
"""What draws the figures, by their names in a notice of those that are missing."""


@dataclass(frozen=True)
class Figure:
    """A figure as the page shows it.

    Attributes:
        svg: The drawing.
        alt: Its text alternative.
        caption: How to read it.
        wide: Whether it takes the page's whole width.
    """

    svg: Markup
    alt: str
    caption: str
    wide: bool


def draw_figures(record: Record, folder: Path) -> tuple[dict[str, Figure], list[str]]:
    """Draw every figure that the record has the numbers for, and save each in a folder.

    Returns:
        The figures by name, and in words which are missing because of an error.
    """
    figures: dict[str, Figure] = {}
    gaps = []
    with style.style():
        for title, chart in CHARTS.items():
            try:
                for name, figure, alt, caption in chart(record):
                    svg = Markup(style.save(figure, folder, name))  # noqa: S704 - matplotlib escapes
                    wide = figure.get_figwidth() > 1.3 * style.WIDTH
                    figures[name] = Figure(svg, alt, caption, wide)
            except Exception as error:
                if is_disk_full(error):
                    raise
                gaps.append(describe_gap(f"figure of the {title}", error))
    return figures, gaps


def describe_gap(what: str, error: Exception) -> str:
    """Log the error for which a part of the report is missing, and return a sentence about it.

    Outside of a run no log has the traceback, and who writes a report again should not see one.
    """
    _log.info("the report lacks the %s", what, exc_info=error)
    details = "; run.log has the details" if is_logged_to_file() else ""
    return f"the {what} is missing: {first_line(error)}{details}"
