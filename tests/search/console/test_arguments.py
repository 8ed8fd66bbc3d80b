from pathlib import Path

import pytest

from search.console.arguments import Parser, add_run, model_path, whole_number


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        Parser(prog="python -m search.run").parse_args(["--trails", "3"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == ("error: unrecognized arguments: --trails 3 (see --help)\n")


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


def test_a_run_is_named_by_its_folder_or_by_its_model(tmp_path: Path) -> None:
    parser = Parser()
    add_run(parser)
    file = tmp_path / "copied.pt"
    assert model_path(parser.parse_args([str(tmp_path)]).run) == tmp_path / "model.pt"
    assert model_path(parser.parse_args([str(file)]).run) == file
