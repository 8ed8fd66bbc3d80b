import os
import subprocess

import pytest

from search.console.formatting import (
    compact,
    count,
    describe,
    duration,
    interval,
    is_printable,
    percent,
    printable,
    printable_name,
    quote_path,
    readable,
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_fractions_are_percentages() -> None:
    assert percent(0.9916) == "99.2%"
    assert percent(0.9916, 2) == "99.16%"
    assert interval((0.9757, 1.0)) == "97.6–100.0%"


def test_only_floats_are_rounded() -> None:
    assert [compact(v) for v in (0.00312256, 6.51e-05, 64, "cosine", False)] == [
        *("0.00312", "6.51e-05", "64", "cosine", "False")
    ]


def test_large_numbers_have_no_exponent() -> None:
    assert [compact(v) for v in (999.4, 1800.0, 12345.6, float("nan"))] == [
        *("999", "1800", "12346", "nan"),
    ]


def test_a_count_of_one_is_singular() -> None:
    assert [count(n, "trial") for n in (0, 1, 1200)] == ["0 trials", "1 trial", "1,200 trials"]


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    assert readable(os.fsdecode(b"caf\xe9.jpg")) == "caf\ufffd.jpg"
    assert readable("café 日本.jpg") == "café 日本.jpg"


def test_parameters_as_one_line() -> None:
    params = {"lr": 1.23456e-05, "batch_size": 32, "class_weights": True, "dropout": 0.5}
    assert describe(params) == "lr 1.23e-05, batch_size 32, class_weights True, dropout 0.5"
    assert describe({}) == ""


def test_control_characters_are_escaped():
    assert printable("a\x1b[1m\x9b\x7f\r\u202eb\u2028\udcff日\n\t") == (
        "a\\x1b[1m\\x9b\\x7f\\x0d\\u202eb\\u2028\\xff日\n\t"
    )
    assert printable_name("a\nb\tc\x1b") == r"a\nb\tc\x1b"
    assert is_printable("日本 é\n")
    assert not is_printable("\x1b")


@pytest.mark.parametrize(
    "name", ["results/a", "my runs/it's", "a\nb\x1b[31m\\'", "tab\t'", "b\udcffc", "$(x)`y`", ""]
)
def test_a_quoted_path_is_the_same_path_in_a_shell(name):
    quoted = quote_path(name)
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True, env={"LC_ALL": "C"}
    )
    assert os.fsdecode(done.stdout) == name
    assert is_printable(quoted)
    assert "\n" not in quoted
