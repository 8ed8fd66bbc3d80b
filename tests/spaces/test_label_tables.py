from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spaces.label_tables import LabelTable, cell_text, label_table
from spaces.sources import SourceError, folder, from_csv, from_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, ""), (float("nan"), ""), (pd.NA, ""), (pd.NaT, "")),
        *((7, "7"), (7.0, "7"), (0.5, "0.5"), (np.int64(3), "3"), (True, "True"), ("007", "007")),
    ],
)
def test_cells_as_text(value: object, text: str) -> None:
    assert cell_text(value) == text


def test_what_is_no_table() -> None:
    with pytest.raises(SourceError, match="DataFrame or the path of a file, but is of type list"):
        label_table([("a.jpg", "cat")])  # type: ignore[arg-type]


def test_the_command_line_goes_before_the_space() -> None:
    source = from_csv("a.csv", image="x", label="y", classes=("b", "a"), group_by="z")
    changed = source.with_labels(None, label="q")
    assert changed.table is not None
    assert (str(changed.table), changed.table.image, changed.table.label) == ("a.csv", "x", "q")
    assert (changed.classes, changed.group_by) == (("b", "a"), "z")
    frame = pd.DataFrame({"a": ["1"], "b": ["2"]})
    assert from_table(frame).with_labels(None) == from_table(frame)
    assert isinstance(folder().with_labels(None, group_by="x").group_by, str)
    with pytest.raises(SourceError, match="--group-column names a column of a table, but there is"):
        folder().with_labels(None, group="patient")
    with pytest.raises(SourceError, match=r"must be a regular expression, but '\(' is none"):
        folder().with_labels(None, group_by="(")
    with pytest.raises(SourceError, match="must be a regular expression, but it is empty"):
        folder(group_by="x").with_labels(None, group_by="")
    changed = source.with_labels(None, group="")
    assert changed.table is not None
    assert changed.table.group == ""  # a column that the table has not, and not the usual one


def test_a_described_table() -> None:
    assert str(LabelTable()) == "the table"
    assert str(LabelTable(Path("a/b.csv"))) == "a/b.csv"
