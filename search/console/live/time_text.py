"""Say how much time is left, no more exactly than it is known."""

from __future__ import annotations

from collections.abc import Mapping

_SECONDS_UP_TO = 90


def describe_time_left(parts: Mapping[str, float]) -> str:
    """Describe the time left: "about 12 min left (trials 9, cross-validation 3)".

    Args:
        parts: Seconds of each part of the rest of the run; those that round to nothing are counted
            in the sum alone.
    """
    total = sum(parts.values())
    if _round(total, 1) == "0":
        return "a few seconds left"
    unit, size = ("s", 1) if total < _SECONDS_UP_TO else ("min", 60)
    if total >= 100 * 60:
        unit, size = "h", 3600
    named = {name: _round(seconds, size) for name, seconds in parts.items()}
    listed = [f"{name} {text}" for name, text in named.items() if text not in ("0", "0.0")]
    detail = f" ({', '.join(listed)})" if len(listed) > 1 else ""
    return f"about {_round(total, size)} {unit} left{detail}"


def _round(seconds: float, size: int) -> str:
    if size == 1:
        return str(5 * round(seconds / 5))
    return f"{seconds / size:.1f}" if size == 3600 else str(round(seconds / size))


def clock(seconds: float) -> str:
    """Format the time since the beginning: "01:05", "1:02:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
