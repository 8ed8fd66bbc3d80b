from pathlib import Path

import pytest

from search.data.image_files import DataError
from search.data.layouts.labelled_images import find_labelled_files
from search.data.layouts.metadata import find_metadata


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_metadata_of_image_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/1.jpg", "test/1.jpg")
    for split, label in (("train", "a"), ("test", "b")):
        content = f"file_name,label\n1.jpg,{label}\n"
        (tmp_path / split / "metadata.csv").write_text(content)
    tables = find_metadata(tmp_path)
    assert [(split, str(table)) for split, table in tables] == [
        ("test", f"{tmp_path}/test/metadata.csv"),
        ("train", f"{tmp_path}/train/metadata.csv"),
    ]
    files = find_labelled_files(tmp_path, tables).files
    assert {(file.name, file.label, file.split) for file in files} == {
        ("train/1.jpg", "a", "train"),
        ("test/1.jpg", "b", "test"),
    }
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/1.jpg", "class": "a"}')
    assert [split for split, _ in find_metadata(tmp_path)] == [None]


def test_an_image_of_two_splits_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg")
    for split, rows in (("train", "1.jpg,a\n2.jpg,b\n"), ("test", "3.jpg,a\n2.jpg,b\n")):
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    with pytest.raises(DataError, match=r"but 'train/2.jpg' is in row 3 of .* in another table"):
        find_labelled_files(tmp_path, find_metadata(tmp_path))


def test_metadata_without_labels_is_none(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,caption,width\na/1.jpg,a cat,3\n")
    assert find_metadata(tmp_path) == []
    # A caption is no label, even where it is the only other column.
    (tmp_path / "metadata.csv").write_text("file_name,caption\na/1.jpg,a cat\n")
    assert find_metadata(tmp_path) == []
    (tmp_path / "metadata.csv").write_bytes(b"name,label\na/1.jpg,caf\xe9\n")
    assert find_metadata(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file_name,label\na/1.jpg,x,y\n", "line 2, has 3 cells, but the header 2"),
        ("file_name,label,category\na/1.jpg,x,y\n", "'label', 'category' may be it"),
        ("file_name,label\n", "must have a row per image"),
    ],
)
def test_metadata_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, text: str, reason: str
) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        find_metadata(tmp_path)


def test_all_splits_have_metadata_or_none(tmp_path: Path) -> None:
    make(tmp_path, "train/1.jpg", "test/1.jpg")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n1.jpg,a\n")
    with pytest.raises(DataError, match=r"but .*/test has images and no such table: add one"):
        find_metadata(tmp_path)
    (tmp_path / "test" / "1.jpg").unlink()
    assert [split for split, _ in find_metadata(tmp_path)] == ["train"]
