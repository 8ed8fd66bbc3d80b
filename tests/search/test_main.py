import sys

import pytest

from search.__main__ import main
from search.console.commands import COMMANDS


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_it_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, what in COMMANDS.items():
        (line,) = (line for line in lines if line.endswith(f"  {what}"))
        assert line.startswith(f"  python -m search.{name} ")
        assert len(line) <= 100


def test_the_installed_script_has_its_own_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/venv/bin/classifier-search", "run", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    shown = capsys.readouterr().out
    assert shown.startswith("usage: classifier-search run ")
    assert "\n  classifier-search run --resume " in shown
    assert "python -m" not in shown


def test_it_shows_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("classifier-search 0.1.0")


def test_it_runs_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "--version"])
    assert stopped.value.code == 0
    assert main(["predict", "results/none", "nowhere.jpg"]) == 2
    assert "there is no image nowhere.jpg" in capsys.readouterr().err


def test_an_unknown_command_has_the_most_similar_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predictt"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: there is no command 'predictt'; did you mean 'predict'? (there are: run, "
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_prints_an_ansi_escape(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([name, "a\x1b[31m", "b", "--nonsense\x1b[31m"])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert r"\x1b[31m" in err


def test_a_mistaken_command_prints_no_ansi_escape(capsys):
    assert main(["a\x1b[31m"]) == 2
    assert capsys.readouterr().err.startswith(r"error: there is no command 'a\x1b[31m'")
