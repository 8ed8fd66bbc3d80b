from pathlib import Path

import pytest

from search.data.image_files import DataError
from search.data.layouts.labelled_images import LabelledFiles, find_labelled_files
from spaces.label_tables import LabelTable


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table_of(*rows: tuple[str, ...], header: tuple[str, ...] = ("image", "label")) -> LabelTable:
    return LabelTable(None, header, rows)


def found(root: Path, table: LabelTable) -> LabelledFiles:
    return find_labelled_files(root, [(None, table)])


def message(root: Path, table: LabelTable) -> str:
    with pytest.raises(DataError) as caught:
        found(root, table)
    return str(caught.value).replace(str(root), "DIR")


@pytest.mark.parametrize(
    "text",
    [
        *("x/1.JPG", "./x/1.JPG", "1.JPG", "1", "x/1", "x\\1.jpg", "X/1.jpg"),
        "{root}/x/1.JPG",
    ],
)
def test_ways_to_name_an_image(tmp_path: Path, text: str) -> None:
    make(tmp_path, "x/1.JPG", "x/11.jpg", "y/z/2.jpg")
    rows = (text.format(root=tmp_path), "cat"), ("z/2", "dog")
    files = found(tmp_path, table_of(*rows)).files
    assert [(file.name, file.label, file.path) for file in files] == [
        ("x/1.JPG", "cat", tmp_path / "x" / "1.JPG"),
        ("y/z/2.jpg", "dog", tmp_path / "y" / "z" / "2.jpg"),
    ]


def test_the_table_may_lie_beside_the_images_and_not_the_data(tmp_path: Path) -> None:
    make(tmp_path, "data/1.jpg", "own/1.jpg", "own/2.jpg")
    (tmp_path / "own" / "t.csv").write_text("image,label\n1.jpg,a\n2.jpg,b\n")
    files = found(tmp_path / "data", LabelTable(tmp_path / "own" / "t.csv")).files
    assert [file.name for file in files] == ["1.jpg", (tmp_path / "own" / "2.jpg").as_posix()]


def test_labels_are_ordered_and_composed(tmp_path: Path) -> None:
    make(tmp_path, *(f"{i}.jpg" for i in range(3)))
    numbers = table_of(("0", "10"), ("1", "2"), ("2", "1"))
    assert found(tmp_path, numbers).labels == ("1", "2", "10")
    names = table_of(("0", "cafe\u0301"), ("1", "caf\u00e9"), ("2", "b"))
    assert found(tmp_path, names).labels == ("b", "caf\u00e9")


def test_splits_and_groups(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    header = ("image", "label", "split", "group")
    table = table_of(("1", "a", "Training", "p"), ("2", "b", "valid", ""), header=header)
    result = found(tmp_path, table)
    assert [(file.split, file.group) for file in result.files] == [("train", "p"), ("val", "")]
    assert result.notes == (
        "the table: images in column 'image', labels in 'label', splits in 'split', groups in"
        " 'group'",
    )
    empty = table_of(("1", "a", "", "p"), ("2", "b", "", ""), header=header)
    assert [file.split for file in found(tmp_path, empty).files] == [None, None]
    wrong = table_of(("1", "a", "train", ""), ("2", "b", "7", ""), header=header)
    assert message(tmp_path, wrong).startswith(
        "the column 'split' of the table must be train, val or test in every row, but is '7' in"
        " row 2"
    )


def test_splits_of_folders(tmp_path: Path) -> None:
    make(tmp_path, "Train/1.jpg", "test/2.jpg", "more/3.jpg")
    table = table_of(("1", "a"), ("2", "b"))
    result = found(tmp_path, table)
    assert [file.split for file in result.files] == ["train", "test"]
    assert result.notes[0].endswith("splits by folder")
    with_more = table_of(("1", "a"), ("2", "b"), ("3", "b"))
    assert [file.split for file in found(tmp_path, with_more).files] == [None] * 3


def test_files_without_a_row_or_that_are_no_images(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.dcm", "3.jpg", "notes.txt")
    result = found(tmp_path, table_of(("1", "a"), ("2.dcm", "b")))
    assert [file.name for file in result.files] == ["1.jpg"]
    unused = {path.name: reason for path, reason in result.unused}
    assert unused["3.jpg"] == "has no row in the table"
    assert unused["2.dcm"].startswith("is a DICOM file")
    assert len(unused) == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [("1", "a"), ("5", "b"), ("6", "b"), ("7", "b"), ("8", "b")],
            "the images of the table must lie below DIR, but 4 of 5 do not: '5' (row 2), '6' (row"
            " 3), '7' (row 4) and 1 more; ",
        ),
        (
            [("1", "a"), ("same", "b")],
            "every row of the table must name one file, but 1 fit several: 'same' (row 2) fits"
            " 'x/same.jpg', 'y/same.png'; give paths below DIR",
        ),
        ([("1", "a"), ("1.jpg", "a")], "'1.jpg' has two, 1 and 2: remove one"),
        ([("1", "a"), ("1.jpg", "b")], "rows 1 and 2 call '1.jpg' 'a' and 'b': remove one"),
        ([("1", "a"), ("2", "")], "must have a label, but the cell is empty in row 2: "),
        ([("", "a"), ("2", "b")], "must have an image, but the cell is empty in row 1: "),
    ],
)
def test_rows_that_are_wrong(tmp_path: Path, rows: list[tuple[str, ...]], words: str) -> None:
    make(tmp_path, "1.jpg", "2.jpg", "x/same.jpg", "y/same.png")
    assert words in message(tmp_path, table_of(*rows))


def test_groups_are_composed(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    header = ("image", "label", "group")
    table = table_of(("1", "a", "Jose\u0301"), ("2", "b", "Jos\u00e9"), header=header)
    assert {file.group for file in found(tmp_path, table).files} == {"Jos\u00e9"}
