"""Format numbers, parameters and names for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def percent(fraction: float, digits: int = 1) -> str:
    """Format a fraction in [0, 1] as a percentage: "99.2%"."""
    return f"{100 * fraction:.{digits}f}%"


def interval(bounds: tuple[float, float], digits: int = 1) -> str:
    """Format an interval of fractions as percentages: "97.6–99.7%"."""
    return f"{100 * bounds[0]:.{digits}f}–{percent(bounds[1], digits)}"


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
    """Format a parameter's value, a float with three significant digits: "0.00312", "6.51e-05"."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe(params: Mapping[str, object]) -> str:
    """Format parameters as one line: "lr 0.00312, freeze_depth 2"."""
    return ", ".join(f"{name} {compact(value)}" for name, value in params.items())


def count(n: int, thing: str) -> str:
    """Format a number of things: "1 trial", "1,200 trials"."""
    return f"{n:,} {thing}" + ("" if n == 1 else "s")


def readable(name: str) -> str:
    """Replace the bytes of a file name that are not UTF-8, as in tables that are read back."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def some(words: Iterable[str], most: int = 12) -> str:
    """Join words by commas; those after the first `most` are counted."""
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
