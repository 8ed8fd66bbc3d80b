from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from search.console.output import OutputError, SafeConsole, command, print_error, safe_streams

ROOT = Path(__file__).parents[3]
ESCAPE = "a\x1b[31mred\x9b0m\udcff"
ESCAPED = r"a\x1b[31mred\x9b0m\xff"
EVERY = "± … – é 日 ⠋ " + ESCAPE


def run_python(code: str, stdout: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code that defines a command, with the shell's redirection of its standard output."""
    script = f"""
import sys
from search.console.output import command
{code}
sys.exit(main())
"""
    return subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$0" {stdout}; exit ${{PIPESTATUS[0]}}', script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )


PRINTS = """
@command({})
def main():
    for i in range(30_000):
        print(i)
    print("end", file=sys.stderr)
    return 0
"""
ENDS, CONTINUES = PRINTS.format(""), PRINTS.format("continues=True")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_character_can_be_printed(encoding):
    code = f"""
@command()
def main():
    print({EVERY!r})
    print({EVERY!r}, file=sys.stderr)
    return 0
"""
    done = run_python(code, PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    out = done.stdout if encoding != "latin-1" else os.fsencode(done.stdout).decode("latin-1")
    plain = {
        "ascii": r"+/- ... - \xe9 \u65e5 \u280b",
        "latin-1": r"± ... - é \u65e5 \u280b",
        "utf-8": "± … – é 日 ⠋",
    }[encoding]
    assert out.startswith(plain)
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_ended():
    done = run_python(ENDS, "| head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    done = run_python(CONTINUES, "| head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "end\n")


@pytest.mark.parametrize(
    ("stdout", "reason"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
def test_an_output_that_cannot_be_written_to(stdout, reason):
    done = run_python(ENDS, stdout)
    message = f"error: the standard output cannot be written to: {reason}\n"
    assert (done.returncode, done.stderr.removeprefix("end\n")) == (1, message)


def test_work_continues_without_an_output():
    done = run_python(CONTINUES, ">/dev/full")
    assert done.returncode == 0
    assert done.stderr.startswith("end\nerror: the standard output cannot be written to: No space")
    assert run_python(CONTINUES, ">&-").stderr == "end\n"


def test_a_closed_error_output_is_no_error():
    assert run_python(ENDS, ">/dev/null 2>&-").returncode == 0
    assert run_python(ENDS, ">/dev/null 2>/dev/full").returncode == 0


def test_a_file_that_is_opened_does_not_become_the_output():
    code = """
@command(continues=True)
def main():
    with open("/dev/zero", "rb") as file:
        return file.fileno()
"""
    assert run_python(code, "<&- >&- 2>&-").returncode > 2


def test_the_exit_code_stays():
    @command()
    def main(words: list[str]) -> int:
        return len(words)

    assert main(["a", "b"]) == 2


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_it_fails_once(monkeypatch):
    monkeypatch.setattr("sys.stdout", _Broken())
    with safe_streams(continues=False) as output:
        with pytest.raises(OutputError):
            print("a")
        print("b", flush=True)
    assert isinstance(output.failure, BrokenPipeError)
    assert isinstance(sys.stdout, _Broken), "the stream is as it was"


def test_errors_are_printed_without_escapes(capsys):
    print_error(f"there is no {ESCAPE}\nas said")
    assert capsys.readouterr().err == f"error: there is no {ESCAPED}\nas said\n"


def test_a_console_escapes_what_it_prints():
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, color_system="standard", width=60)
    table = Table("a column as wide as the name", box=None)
    table.add_row(Text(ESCAPE, style="red"))
    console.print(ESCAPE, Text(ESCAPE), table, markup=False, highlight=False)
    out = file.getvalue()
    assert out.count(ESCAPED) == 3
    assert f"\x1b[31m{ESCAPED}" in out, "the console's own colours stay"
    assert "\x9b" not in out


def test_all_consoles_are_safe():
    """A console of rich itself would print a name's ANSI escapes."""
    users = [
        path.name
        for path in (ROOT / "search").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if " Console(" in line or "=Console(" in line
    ]
    assert users == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "a b"), "a b cannot be read or written: Perm"),
        (OSError(28, "No space", "x"), "no space is left for x; make room on its disk"),
        (OSError(30, "Read-only file system"), "a file cannot be read or written: Read-only"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(error, message, capsys):
    @command()
    def main() -> int:
        raise error

    assert main() == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_other_errors_are_not_hidden():
    @command()
    def main() -> int:
        raise ConnectionResetError(104, "reset")

    with pytest.raises(ConnectionResetError):
        main()
