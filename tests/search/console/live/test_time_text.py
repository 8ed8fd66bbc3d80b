import pytest

from search.console.live.time_text import clock, describe_time_left


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"trials": 540.0, "cross-validation": 181.0, "report": 12.0},
         "about 12 min left (trials 9, cross-validation 3)"),
        ({"trials": 20.0, "cross-validation": 31.0, "report": 2.0},
         "about 55 s left (trials 20, cross-validation 30)"),
        ({"feature_cache": 42.0}, "about 40 s left"),
        ({"trials": 9000.0, "cross-validation": 1800.0},
         "about 3.0 h left (trials 2.5, cross-validation 0.5)"),
        ({"trials": 0.0}, "a few seconds left"),
    ],
)  # fmt: skip
def test_time_left_is_no_more_exact_than_it_is_known(parts: dict[str, float], text: str) -> None:
    assert describe_time_left(parts) == text


def test_the_clock() -> None:
    assert [clock(seconds) for seconds in (0, 65.9, 3723)] == ["00:00", "01:05", "1:02:03"]
