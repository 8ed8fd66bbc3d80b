from pathlib import Path

import pytest

from search.console.run_options import create_parser
from search.console.space_list import list_spaces
from spaces import base


def test_it_lists_name_purpose_image_size_and_backbones() -> None:
    lines = list_spaces().splitlines()
    position = next(i for i, line in enumerate(lines) if line.startswith("digits "))
    assert lines[position].split(maxsplit=1)[1].startswith("Handwritten digits")
    assert lines[position + 1].strip() == "32 px: tinynet, cnn"
    names = [line.split()[0] for line in lines[2:-1] if line[:1].strip()]
    assert names == list(base.shipped_spaces())
    assert max(map(len, lines)) <= 100


def test_a_file_that_a_user_added_cannot_break_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text('"""Mine."""\nSPACE = 3\n')
    (tmp_path / "other.py").write_text("SPACE = (")
    monkeypatch.setattr(base, "_FOLDER", tmp_path)
    assert list_spaces().splitlines()[2:-1] == [
        "mine   Mine.",
        "       cannot be used: it must define SPACE = Space(...), but has a int there",
        "",
        "other  ",
        "       cannot be used: line 1 is not Python: '(' was never closed",
        "",
    ]


def test_it_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        create_parser().parse_args(["--list-spaces"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == list_spaces() + "\n"
