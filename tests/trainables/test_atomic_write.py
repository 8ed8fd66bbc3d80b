from pathlib import Path

import pytest

from trainables.atomic_write import write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "page.html"
    for text in ("old", "new"):
        with write_atomically(path) as partial:
            partial.write_text(text)
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_an_error_leaves_the_old_content(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")

    def write_half() -> None:
        with write_atomically(path) as partial:
            partial.write_text("ne")
            assert path.read_text() == "old"
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_the_temporary_name_keeps_a_suffix(tmp_path):
    with write_atomically(tmp_path / "model.onnx", partial=".partial.onnx") as partial:
        assert partial.name.endswith(".partial.onnx")
        partial.touch()
    assert (tmp_path / "model.onnx").is_file()


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    path = tmp_path / "summary.json"
    with write_atomically(path) as first:
        first.write_text("first")
        with write_atomically(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    def write_too_much() -> None:
        with write_atomically(tmp_path / "page.html"), Path("/dev/full").open("w") as full:
            full.write("no space")

    with pytest.raises(OSError, match="No space left") as caught:
        write_too_much()
    assert caught.value.filename == str(tmp_path / "page.html")
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught, write_atomically(tmp_path / "page.html"):  # noqa: PT011
        (tmp_path / "file" / "x").touch()
    assert caught.value.filename == str(tmp_path / "file" / "x"), "that of another file stays"
