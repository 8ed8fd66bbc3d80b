"""All figures that a run's record gives: drawn, saved, and ready for the page."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from markupsafe import Markup

from search.reporting import style
from search.reporting.model_charts import chart_ablation, chart_evaluation, chart_winner
from search.reporting.run_record import Record
from search.reporting.search_charts import chart_search


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        name: Of its files under `figures/`.
        svg: What the page shows.
        alt: What it says, for who cannot see it.
        caption: How to read it.
        wide: Whether it needs the page's whole width.
    """

    name: str
    svg: Markup
    alt: str
    caption: str
    wide: bool


def draw_charts(record: Record, folder: Path) -> dict[str, Chart]:
    """Draw every figure that the record has the numbers for, and save each in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, Chart] = {}
    with style.style():
        drawings = (
            chart_search(record),
            chart_winner(record),
            chart_evaluation(record),
            chart_ablation(record),
        )
        for drawn in chain.from_iterable(drawings):
            name, figure, alt, caption = drawn
            svg = Markup(style.save(figure, folder, name))  # noqa: S704 - matplotlib escapes texts
            wide = figure.get_figwidth() > 1.3 * style.WIDTH
            charts[name] = Chart(name, svg, alt, caption, wide)
    return charts
