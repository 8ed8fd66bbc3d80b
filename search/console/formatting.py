"""Format numbers, parameters and names for people.

Names of files and classes are other people's text: an ANSI escape in one could hide or forge what a
terminal shows.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from spaces.rules import Metric
from trainables.metrics import metric_value

METRIC_NAMES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "roc_auc": "ROC AUC",
}
"""What people call the metrics."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but tab and line feed, marks that turn the direction of writing, and lone
surrogates: the bytes of a file's name that are no UTF-8."""


_MAX_DECIMALS = 6

_PLAIN: tuple[Metric, ...] = ("log_loss", "roc_auc")
"""Metrics that are no fraction of images, and so not written as a percentage."""


def percent(fraction: float, digits: int = 1) -> str:
    """Format a fraction in [0, 1] as a percentage: "99.2%"."""
    return f"{100 * fraction:.{digits}f}%"


def interval(bounds: tuple[float, float], digits: int = 1) -> str:
    """Format an interval of fractions as percentages: "97.6–99.7%"."""
    return f"{100 * bounds[0]:.{digits}f}–{percent(bounds[1], digits)}"


def describe_score(metric: Metric, score: float, digits: int = 1) -> str:
    """Format a score, of which higher is better, as its metric: "99.2%", a log loss "0.512"."""
    return metric_text(metric, metric_value(metric, score), digits)


def describe_scores(metric: Metric, scores: tuple[float, float], digits: int = 1) -> str:
    """Format an interval of scores as that of their metric, the lower value first."""
    low, high = sorted(metric_value(metric, score) for score in scores)
    return metric_interval(metric, (low, high), digits)


def metric_text(metric: Metric, value: float, digits: int = 1) -> str:
    """Format a metric: "99.2%", a log loss "0.512"."""
    return f"{value:.{digits + 2}f}" if metric in _PLAIN else percent(value, digits)


def metric_interval(metric: Metric, bounds: tuple[float, float], digits: int = 1) -> str:
    """Format an interval of a metric: "97.6–99.7%", of a log loss "0.498–0.530"."""
    if metric not in _PLAIN:
        return interval(bounds, digits)
    return "–".join(metric_text(metric, bound, digits) for bound in bounds)


def apart(first: float, second: float, digits: int = 3) -> tuple[str, str]:
    """Format two numbers with as many decimals as they differ by: never "0.020 instead of 0.020".

    Args:
        first: A number.
        second: Another, or the same.
        digits: Decimals at least; at most six are shown.
    """
    texts = f"{first:.{digits}f}", f"{second:.{digits}f}"
    if texts[0] == texts[1] and first != second and digits < _MAX_DECIMALS:
        return apart(first, second, digits + 1)
    return texts


def describe_difference(metric: Metric, difference: float, unit: str = " points") -> str:
    """Format a difference of scores: "1.2 points" of a percentage, a log loss "0.012"."""
    return f"{difference:.3f}" if metric in _PLAIN else f"{100 * difference:.1f}{unit}"


def duration(seconds: float) -> str:
    """Format a duration: "0.4 s", "37 s", "4 min 10 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def compact(value: object) -> str:
    """Format a value, a float with three significant digits or more: "6.51e-05", "0.3", "1800"."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def describe(params: Mapping[str, object]) -> str:
    """Format parameters as one line: "lr 0.00312, freeze_depth 2"."""
    return ", ".join(f"{name} {compact(value)}" for name, value in params.items())


def count(n: int, thing: str) -> str:
    """Format a number of things: "1 trial", "1,200 trials"."""
    return f"{n:,} {thing}" + ("" if n == 1 else "s")


def readable(name: str) -> str:
    """Replace the bytes of a file name that are not UTF-8, as in tables that are read back."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def some(words: Iterable[str], most: int = 12) -> str:
    """Join words by commas; those after the first `most` are counted."""
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def is_printable(text: str) -> bool:
    """Return whether a text has no control characters but tabs and line feeds."""
    return _UNPRINTABLE.search(text) is None


def printable(text: str) -> str:
    r"""Escape control characters as in `\x1b`; tabs and line feeds stay."""
    return _UNPRINTABLE.sub(_escape, text)


def printable_name(name: object) -> str:
    r"""Escape control characters of a name that stands in one line, tabs and line feeds too."""
    return printable(str(name)).replace("\n", r"\n").replace("\t", r"\t")


def quote_path(path: str | Path) -> str:
    r"""Quote a path for a command that people copy; one with control characters as `$'\x1b'`."""
    text = str(path)
    if is_printable(text) and "\n" not in text and "\t" not in text:
        return shlex.quote(text)
    quoted = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{printable_name(quoted)}'"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte: see `os.fsdecode`
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
