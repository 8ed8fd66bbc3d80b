import csv
import subprocess
import sys

import pytest

from search.runs.tables import read_csv, read_rows, spreadsheet_text, write_csv


def test_cells_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    rows = [("a,b", 1, 0.1 + 0.2), ('say "x"\ny', None, True), ("007", "NA", ""), ("x\ry", 3, 4)]
    write_csv(path, ("image", "n", "value"), rows)
    assert read_rows(path) == [
        {"image": "a,b", "n": "1", "value": "0.30000000000000004"},
        {"image": 'say "x"\ny', "n": "", "value": "True"},
        {"image": "007", "n": "NA", "value": ""},
        {"image": "x\ry", "n": "3", "value": "4"},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]
    with path.open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [row[0] for row in rows]


def test_bytes_that_are_no_utf8_stay(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, ("image", "prob_\udcfe"), [("K\u00e4fer\udcff.png", 1)])
    assert path.read_bytes() == b"image,prob_\xfe\nK\xc3\xa4fer\xff.png,1\n"
    assert read_rows(path) == [{"image": "K\u00e4fer\udcff.png", "prob_\udcfe": "1"}]
    assert read_rows(path, errors="replace") == [
        {"image": "K\u00e4fer\ufffd.png", "prob_\ufffd": "1"}
    ]


def test_a_table_without_rows_and_one_that_is_missing(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, ("image", "label"), [])
    assert read_rows(path) == []
    assert list(read_csv(path).columns) == ["image", "label"]
    assert read_rows(tmp_path / "none.csv") == []
    assert len(read_csv(tmp_path / "none.csv").columns) == 0


@pytest.mark.parametrize("torn", [b"3,", b"3,4", b"\0\0\0"])
def test_a_last_line_that_was_cut_off_is_not_read(tmp_path, torn):
    path = tmp_path / "progress.csv"
    path.write_bytes(b"epoch,loss\n1,0.5\n" + torn)
    assert read_rows(path) == [{"epoch": "1", "loss": "0.5"}]


@pytest.mark.parametrize("content", [b"a,b\n1,2,3\n", b'a,b\n"1,2\n'])
def test_what_is_no_table(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="tokenizing"):
        read_csv(path)


def test_pandas_is_imported_when_a_table_is():
    code = "import sys, search.runs.tables; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_text_that_a_spreadsheet_takes_for_a_formula_is_quoted(start):
    assert spreadsheet_text(f"{start}cmd|'/C calc'!A0") == f"'{start}cmd|'/C calc'!A0"
    assert spreadsheet_text(start) == f"'{start}"


@pytest.mark.parametrize("cell", ["", "a=1", "'=1", "-1", "+1.5e-3", "-inf", " =1", "\xe4"])
def test_numbers_and_other_texts_stay_as_they_are(cell):
    assert spreadsheet_text(cell) is cell
