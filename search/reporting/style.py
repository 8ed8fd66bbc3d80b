"""Style figures, and save them as PNG, as SVG, and as part of the report.

Colours are few and named, so that the report can replace them by its own, for light and dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from markupsafe import escape
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from search.console.formatting import printable_name
from trainables.atomic_write import write_atomically

INK, MUTED, LINE = "#1a2230", "#5a6576", "#d4dae3"
ACCENT, WARM, BAD, ON_ACCENT = "#1d5fc4", "#b4480e", "#b3261d", "#fefefe"
_TOKENS = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    ACCENT: "accent",
    WARM: "warm",
    BAD: "bad",
    ON_ACCENT: "on-accent",
}
"""Name of each colour in the report's style sheet."""

_STYLE: Any = {
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$x$"
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, sharp, and in the page's own font
    "svg.hashsalt": "classifier-search",  # the same numbers make the same file
}

WIDTH, HEIGHT = 5.6, 3.5
"""Size of a figure, in inches. A phone shows it at about 0.8 of that."""


class Chart(NamedTuple):
    """A figure of the report.

    Attributes:
        name: Name of its files in `figures/`.
        figure: The figure.
        alt: Its text alternative.
        caption: How to read it.
    """

    name: str
    figure: Figure
    alt: str
    caption: str


HALO = "halo"
"""Group id of a text that lines may cross: the report draws it with an outline."""

_TITLES = "titles:"
"""Begin of the group id of marks that have titles, which follow it."""

_ROUNDING = 1e-9
_PNG_DPI = 160
SMALL = 11
"""Font size of numbers beside marks, in points."""

_MAX_NAME = 16  # characters

# Up to the next group that matplotlib names: the groups within a mark have no id.
_TITLED_GROUP = re.compile(
    r'<g class="titled" data-titles="([^"]*)">(.*?)(?=<g id=|<g class=|<g>|</svg>)', re.DOTALL
)


@contextmanager
def style() -> Iterator[None]:
    """Apply the style within: to be active both when figures are drawn and when they are saved."""
    with rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib's font lacks many scripts; the report shows them in the browser's fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def create_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Create a figure of the usual size with one pair of axes."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def use_integer_ticks(axes: Axes) -> None:
    """Place the ticks of the x axis at whole numbers, as trials and epochs are."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def use_percent_ticks(axis: Axis) -> None:
    """Label the ticks of an axis of fractions as percentages, and none outside [0, 1]."""

    def label(fraction: float, _: int | None) -> str:
        return f"{100 * fraction:.4g}%" if -_ROUNDING <= fraction <= 1 + _ROUNDING else ""

    axis.set_major_formatter(FuncFormatter(label))


def add_legend(figure: Figure) -> None:
    """Add a legend below the axes, where it hides nothing."""
    figure.legend(loc="outside lower center", ncols=3, fontsize=SMALL, handlelength=1.4)


def set_titles(artist: Artist, titles: Sequence[str]) -> None:
    """Give marks titles: what a browser shows where the pointer rests on one.

    Args:
        artist: A line, or points drawn by `Axes.plot`.
        titles: One of the line, or one of each point in their order.
    """
    artist.set_gid(_TITLES + quote("\n".join(printable_name(title) for title in titles), safe=""))


def shorten(name: str) -> str:
    """Shorten a name that is too long for an axis, and escape its control characters."""
    name = printable_name(name)
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def shorten_apart(names: Sequence[str]) -> list[str]:
    """Shorten names so that no two of them look the same, by their ends where their starts agree.

    Args:
        names: All different.
    """
    short = [shorten(name) for name in names]
    if len(set(short)) == len(short):
        return short
    whole = [printable_name(name) for name in names]
    ends = [name if len(name) <= _MAX_NAME else "…" + name[1 - _MAX_NAME :] for name in whole]
    apart = [end if short.count(s) > 1 else s for s, end in zip(short, ends, strict=True)]
    return apart if len(set(apart)) == len(apart) else whole


def embed(figure: Figure, name: str) -> str:
    """Return a figure's SVG for a page in which no other has this name."""
    return _write_titles(_embeddable(_draw(figure), name))


def save(figure: Figure, folder: Path, name: str) -> str:
    """Save a figure as `<name>.png` and `<name>.svg`; return its SVG for the report."""
    svg = _draw(figure)
    with write_atomically(folder / f"{name}.svg") as partial:
        partial.write_text(_write_titles(svg), encoding="utf-8")
    figure.set_layout_engine("none")  # it is laid out by now, and that is slow
    with write_atomically(folder / f"{name}.png") as partial:
        figure.savefig(partial, format="png", dpi=_PNG_DPI, facecolor="white")
    return _write_titles(_embeddable(svg, name))


def _draw(figure: Figure) -> str:
    """Return a figure's SVG, in which the titles of marks are not elements yet."""
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    # No id, as ids are renamed in the page.
    return buffer.getvalue().replace(f'<g id="{_TITLES}', '<g class="titled" data-titles="')


def _write_titles(svg: str) -> str:
    """Give marks that have titles an SVG `<title>` each: a group one, or each of its points."""

    def write(group: re.Match[str]) -> str:
        titles = [f"<title>{escape(title)}</title>" for title in unquote(group[1]).split("\n")]
        if len(titles) == 1:
            return f'<g class="titled">{titles[0]}{group[2]}'
        use = r"<use ([^>]*)/>"
        if len(re.findall(use, group[2])) != len(titles):  # a point outside the figure is not drawn
            return f'<g class="titled">{group[2]}'
        left = iter(titles)
        points = re.sub(use, lambda one: f"<use {one[1]}>{next(left)}</use>", group[2])
        return f'<g class="titled">{points}'

    return _TITLED_GROUP.sub(write, svg)


def _embeddable(svg: str, name: str) -> str:
    """Make an SVG part of a page: with the page's colours, and ids that are unique in it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", svg)
    svg = svg.replace(f'<g id="{HALO}"', f'<g class="{HALO}"')
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # only what is referred to needs an id
    svg = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, token in _TOKENS.items():
        svg = svg.replace(colour, f"var(--{token})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
