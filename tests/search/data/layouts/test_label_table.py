from pathlib import Path

import pandas as pd
import pytest

from search.data.image_files import DataError
from search.data.layouts.label_table import Columns, find_columns, read_rows
from spaces.label_tables import LabelTable, label_table

ROWS = [("a.jpg", "cat"), ("b.jpg", "dog")]


def written(path: Path, content: str, encoding: str = "utf-8") -> LabelTable:
    path.write_text(content, encoding=encoding, newline="")
    return LabelTable(path)


def pairs(table: LabelTable, root: Path) -> list[tuple[str, str]]:
    return [(row.image, row.label) for row in read_rows(table, root)[0]]


def message(table: LabelTable, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(table, root)
    return str(caught.value).replace(str(root), "DIR")


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("t.csv", "image,label\na.jpg,cat\nb.jpg,dog\n", "utf-8"),
        ("t.CSV", "\ufeffimage;label\r\na.jpg;cat\r\n\r\nb.jpg; dog \r\n", "utf-8"),
        ("t.csv", "image\tlabel\na.jpg\tcat\nb.jpg\tdog", "utf-16"),
        ("t.tsv", "image\tlabel\na.jpg\tcat\nb.jpg\tdog\n", "utf-8"),
        ("t.csv", '"image","note","label"\na.jpg,"x, y",cat\n"b.jpg",,dog,\n', "utf-8"),
        (
            "t.jsonl",
            '{"image": "a.jpg", "label": "cat"}\n\n{"label":"dog","image":"b.jpg"}',
            "utf-8",
        ),
    ],
)
def test_files(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    assert pairs(written(tmp_path / name, content, encoding), tmp_path) == ROWS


def test_parquet_and_data_frames(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3], "target": [10.0, 2.0, float("nan")]})
    frame.to_parquet(tmp_path / "t.parquet")
    expected = [("1", "10"), ("2", "2"), ("3", "")]
    assert pairs(LabelTable(tmp_path / "t.parquet"), tmp_path) == expected
    assert pairs(label_table(frame), tmp_path) == expected
    assert label_table(frame) == label_table(frame.copy())  # as a resumed run compares spaces
    (tmp_path / "t.parquet").write_bytes(b"nothing")
    assert message(LabelTable(tmp_path / "t.parquet"), tmp_path).startswith(
        "DIR/t.parquet is no Parquet file: "
    )


def test_rows_know_their_lines(tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", 'image,label,note\n\na.jpg,cat,"two\nlines"\nb.jpg,dog\n')
    assert [row.number for row in read_rows(table, tmp_path)[0]] == [4, 5]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ('a.jpg,"cat\nb.jpg,dog\nc.jpg,dog', "line 4, is no CSV: unexpected end of data (is a"),
        ('a.jpg,"cat\nb.jpg,dog\nc.jpg,"dog"', "line 4, is no CSV: ',' expected after"),
        (
            'a.jpg,"cat\nb.jpg,dog\nc.jpg,cat"',
            "holds 'cat\\nb.jpg,dog\\nc.jpg,cat': is a quote not",
        ),
        ("a.jpg,cat\0\nb.jpg,dog", "holds 'cat\\x00'"),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_rows(
    tmp_path: Path, cells: str, reason: str
) -> None:
    table = written(tmp_path / "t.csv", f"image,label\n{cells}\n")
    assert reason in message(table, tmp_path)


def test_words_of_pandas_are_labels_in_a_file(tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", "image,label\n1,NaT\n2,<NA>\n3,nan\n4,NA\n5,001\n6,1.0\n")
    labels = [row.label for row in read_rows(table, tmp_path)[0]]
    assert labels == ["NaT", "<NA>", "nan", "NA", "001", "1.0"]


def test_a_separator_of_lines_in_json(tmp_path: Path) -> None:
    table = written(tmp_path / "t.jsonl", '{"image": "1", "label": "a\u2028b"}\n')
    assert [row.label for row in read_rows(table, tmp_path)[0]] == ["a\u2028b"]


def test_columns_that_no_option_tells_apart(tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", "image,label,label\n1,a,b\n")
    assert message(table, tmp_path).endswith("'label', 'label' may be it: rename the others")
    table = LabelTable(tmp_path / "t.csv", label="label")
    assert message(table, tmp_path).endswith("has 2 columns 'label': rename all but one")
    table = written(tmp_path / "t.csv", "image,label,split,set\n1,a,train,x\n")
    assert message(table, tmp_path).endswith("'split', 'set' may be it: rename the others")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (("image", "label"), Columns("image", "label", None, None)),
        (
            ("Image ID", "Class", "SPLIT", "group_id"),
            Columns("Image ID", "Class", "SPLIT", "group_id"),
        ),
        (("id", "file_name", "category"), Columns("file_name", "category", None, None)),
        (("id", "breed"), Columns("id", "breed", None, None)),
        (("photo_of", "label"), Columns("photo_of", "label", None, None)),
        (("id", "label", "class_id"), Columns("id", "label", None, None)),
    ],
)
def test_columns_by_their_names(header: tuple[str, ...], expected: Columns) -> None:
    assert find_columns(LabelTable(), header) == expected


def test_given_columns() -> None:
    table = LabelTable(image="Where", label="dx", group="patient")
    header = ("image", "where", "dx", "label", "patient")
    assert find_columns(table, header) == Columns("where", "dx", None, "patient")
    with pytest.raises(DataError, match=r"the table has no column 'dx'; did you mean 'dxx'\?"):
        find_columns(table, ("where", "dxx", "patient"))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (("image", "label", "class"), "one column of labels, but 'label', 'class' may be it"),
        (("path", "file", "label"), "one column of paths of images, but 'path', 'file' may be it"),
        (("image", "x", "y1"), "must have a column of labels, but none of its columns"),
        (("a.jpg", "cat"), "the first line of the file must name the columns"),
        (("image",), "must have a column of labels"),
    ],
)
def test_columns_that_are_missing_or_ambiguous(header: tuple[str, ...], words: str) -> None:
    with pytest.raises(DataError) as caught:
        find_columns(LabelTable(), header)
    assert words in str(caught.value)
    assert "-column" in str(caught.value)


def test_one_column_for_two_things() -> None:
    with pytest.raises(DataError, match="'image' would be used for paths of images and labels"):
        find_columns(LabelTable(label="image"), ("image", "kind"))


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    latin = written(tmp_path / "l.csv", "image,label\na,b\nc,größe\n", "latin-1")
    assert message(latin, tmp_path).startswith("DIR/l.csv must be text in UTF-8, but line 3 is not")
    assert message(written(tmp_path / "e.csv", "\n"), tmp_path) == "DIR/e.csv is empty"
    assert "must have a row per image" in message(
        written(tmp_path / "h.csv", "image,label\n"), tmp_path
    )
    long = written(tmp_path / "c.csv", "image,label\na.jpg,x,y\n")
    assert message(long, tmp_path) == (
        "DIR/c.csv, line 2, has 3 cells, but the header 2: put cells with a ',' in quotes"
    )
    lists = written(tmp_path / "m.jsonl", '{"image": "a.jpg", "label": ["cat", "dog"]}')
    assert "row 1 holds a list" in message(lists, tmp_path)
    damaged = written(tmp_path / "d.jsonl", '{"image": "a.jpg"}\n[1]')
    assert message(damaged, tmp_path) == "DIR/d.jsonl, line 2, must be a JSON object"
    assert "save it as CSV" in message(written(tmp_path / "t.xlsx", ""), tmp_path)


def test_a_table_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    written(tmp_path / "t.csv", "image,label\na.jpg,cat\nb.jpg,dog\n")
    for path in (Path("t.csv"), Path("/elsewhere/t.csv")):
        assert pairs(LabelTable(path), tmp_path) == ROWS
    assert message(LabelTable(Path("u.csv")), tmp_path) == (
        "--labels must name a table, but there is no u.csv, nor DIR/u.csv"
    )
