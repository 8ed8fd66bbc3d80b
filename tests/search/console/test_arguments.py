import argparse
from pathlib import Path

import pytest

from search.console.arguments import Parser, add_run, model_path, seconds, whole_number


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="python -m search.run")
    parser.add_argument("--data")
    parser.add_argument("--trials", type=int)
    group = parser.add_argument_group("what is shown").add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("--sampler", choices=("tpe", "random"))
    return parser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--trails 3", "unrecognized arguments: --trails 3; did you mean '--trials'?"),
        ("--trails=3", "unrecognized arguments: --trails=3; did you mean '--trials'?"),
        ("--quite", "unrecognized arguments: --quite; did you mean '--quiet'?"),
        (
            "--quite --trails 3",
            "unrecognized arguments: --quite --trails 3; did you mean '--quiet'?; did you mean"
            " '--trials'?",
        ),
        ("--elephant", "unrecognized arguments: --elephant"),
        ("photos", "unrecognized arguments: photos; did you mean --data photos?"),
        ("nowhere", "unrecognized arguments: nowhere"),
        ("--sampler tpee", "argument --sampler: invalid choice: 'tpee' (choose from 'tpe',"),
        ("--trials", "argument --trials: expected one argument"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out_and_exit_code_2(
    parser: Parser,
    words: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words.split())
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith(f"error: {message}")
    end = "; did you mean 'tpe'? (see --help)\n" if "tpee" in words else " (see --help)\n"
    assert shown.err.endswith(end)
    assert ("did you mean" in shown.err) == ("did you mean" in message or "tpee" in words)


def test_a_folder_is_no_data_where_there_is_no_such_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        Parser().parse_args(["photos"])
    assert capsys.readouterr().err == "error: unrecognized arguments: photos (see --help)\n"


def test_the_help_fills_texts_and_keeps_lines_that_can_be_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    example = "example:\n  python -m search.run --data photos --time-budget 30m --trials 20"
    shown = Parser(description="words " * 30, epilog=example).format_help()
    assert example in shown
    assert max(len(line) for line in shown.splitlines() if line.startswith("words")) <= 58


def test_every_parser_shows_the_version(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--version", "--trails"])  # as --help does, before a mistake
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("classifier-search 0.1.0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("90s", 90), ("30m", 1800), ("2h", 7200), ("2d", 172_800), ("1h30m", 5400)),
        *(("1d 2h 3m 4s", 93_784), ("1.5h", 5400), (" 10 m ", 600), ("0h5m", 300)),
    ],
)
def test_a_time_has_units(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["30", "0", "1.5", " 90 "])
def test_a_number_without_a_unit_is_no_time(text: str) -> None:
    number = text.strip()
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        seconds(text)
    assert str(refused.value) == (
        f"must have a unit, such as {number}s, {number}m, {number}h or {number}d,"
        f" but got {number!r}"
    )


@pytest.mark.parametrize("text", ["", "m", "soon", "0m", "0h0m", "30m1h", "1h30", "-5m", "inf"])
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a time such as 90s, 30m, 1h30m"):
        seconds(text)


@pytest.mark.parametrize("text", ["9" * 400 + "s", "999999999d", "3651d"])
def test_a_time_of_more_than_ten_years_is_refused(text: str) -> None:
    """The first would be infinite, which JSON cannot hold."""
    with pytest.raises(argparse.ArgumentTypeError, match="must be a time of at most 3650d"):
        seconds(text)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("8", 8), (" 3 ", 3)])
def test_whole_numbers_within_bounds(text: str, number: int) -> None:
    assert whole_number(1, 8)(text) == number


@pytest.mark.parametrize("text", ["0", "9", "-3", "2.5", "", "two", "1e1"])
def test_other_numbers_are_refused_with_the_bounds(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser()
    parser.add_argument("--jobs", type=whole_number(1, 8))
    with pytest.raises(SystemExit):
        parser.parse_args([f"--jobs={text}"])
    assert capsys.readouterr().err == (
        f"error: argument --jobs: must be a whole number >= 1 and <= 8, but got {text!r}"
        " (see --help)\n"
    )


def test_a_number_without_an_upper_bound(capsys: pytest.CaptureFixture[str]) -> None:
    assert whole_number(0)("1000000") == 1_000_000
    parser = Parser()
    parser.add_argument("--seed", type=whole_number(0))
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed=-1"])
    assert "must be a whole number >= 0, but got '-1'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", "1" + 30 * "0"])
    assert "must be a whole number >= 0 and <= 1000000000, but got" in capsys.readouterr().err


def test_a_run_is_named_by_its_folder_or_by_its_model(tmp_path: Path) -> None:
    parser = Parser()
    add_run(parser)
    file = tmp_path / "copied.pt"
    assert model_path(parser.parse_args([str(tmp_path)]).run) == tmp_path / "model.pt"
    assert model_path(parser.parse_args([str(file)]).run) == file
