"""Figures of the documents equal the results of the benchmarks that they name.

A figure is marked by a link, `[1.05][makespan]`, to its JSON file, with its place in it as the
title: `[makespan]: results/scale.json "ratios > makespan over the ideal, 64 workers"`. A place ends
with "* 100" where the document has percent.

A table is marked by `<!-- results: calibration.json -->` in the line above it. The first column
names its rows. Of the other numbers with a decimal point those of one cell are in one row of the
file, and those of one column in the same columns of the file, in the same order. A column that is
computed from the file is named by how its title begins, `<!-- results: ood.json, computed: lowest
-->`, and has a test of its own.

A line `Measured: calibration.json, 2026-11-22, commit 282b0e1, load 4.9` has the file's date,
commit and load.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
]

_FIGURE = re.compile(r"\[([^\]]+)\]\[([\w-]+)\]")
_PLACE = re.compile(r'^\[([\w-]+)\]: (\S*/)?([\w-]+\.json) "([^"]+)"$', re.MULTILINE)
_TABLE = re.compile(r"<!-- results: ([\w-]+\.json)(?:, computed: ([^>]+))? -->\n((?:\|.*\n)+)")
_MEASURED = re.compile(r"Measured: ([\w-]+\.json), ([\d-]+), commit (\w+\+?), load ([\d.]+)")
_NUMBER = re.compile(r"(?<![\w.])[−-]?\d[\d,]*(?:\.\d+)?")


def read(file: str) -> dict[str, Any]:
    """Read the result of a benchmark."""
    result: dict[str, Any] = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    return result


def documents() -> Iterator[tuple[str, str]]:
    """Yield each document's name and text."""
    for path in DOCUMENTS:
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def figures() -> list[tuple[str, str, str, str]]:
    """List each marked figure: document, text, file, place."""
    found = []
    for document, content in documents():
        places = {name: (file, place) for name, _, file, place in _PLACE.findall(content)}
        used = _FIGURE.findall(content)
        assert {name for _, name in used} == set(places), f"{document}: links without places"
        found += [(document, re.sub(r"\s+", " ", text), *places[name]) for text, name in used]
    return found


def look_up(content: Any, place: str) -> float:
    """Return the number at a place, such as "tables > by set > set=tools > accuracy"."""
    place, _, factor = place.partition(" * ")
    for key in place.split(" > "):
        content = _choose(content, key) if isinstance(content, list) else content[key]
    if isinstance(content, dict):
        content = content["value"]
    value = parse(_NUMBER.findall(content)[0]) if isinstance(content, str) else float(content)
    return value * float(factor or 1)  # of "0.96 ± 0.02" the first


def _choose(rows: list[dict[str, Any]], key: str) -> Any:
    """Return a row by its number, by its name, or by `column=value;column=value`."""
    if key.isdigit():
        return rows[int(key)]
    wanted = dict(part.split("=", 1) for part in key.split(";")) if "=" in key else {"name": key}
    (found,) = (row for row in rows if all(str(row.get(k)) == v for k, v in wanted.items()))
    return found


def agrees(text: str, value: float) -> bool:
    """Tell whether a text is a value, rounded to the digits that the text has."""
    number = _NUMBER.search(text)
    assert number, f"{text!r} is no number"
    places = len(number[0].partition(".")[2])
    return math.isclose(parse(number[0]), value, abs_tol=0.5 * 10**-places + 1e-6, rel_tol=0)


def parse(number: str) -> float:
    """Return the value of a number with a typographic minus and thousands separators."""
    return float(number.replace("−", "-").replace(",", ""))


Row = dict[str, float]


def rows_of(result: dict[str, Any]) -> list[Row]:
    """List the rows of a result's tables, its ratios and its notes: a number for each column.

    A text such as "0.96 ± 0.02" has a column for each of its numbers.
    """
    rows = [row for table in result["tables"].values() for row in table]
    rows += [*result["ratios"], *({"note": note} for note in result["notes"])]
    return [
        {
            f"{column}, {place} from the end": number
            for column, value in row.items()
            for place, number in enumerate(reversed(numbers(value)))
        }
        for row in rows
    ]


def numbers(value: Any) -> list[float]:
    """List the numbers of a value: itself, or those inside of a text."""
    if isinstance(value, str):
        return [parse(number) for number in _NUMBER.findall(value)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [float(value)] if is_number else []


def columns_of(cell: list[str], rows: list[Row]) -> set[tuple[str, ...]]:
    """Return the columns of which one row has the numbers of a cell, a column for each number."""
    found = set()
    for row in rows:
        found |= set(
            itertools.product(
                *([column for column in row if agrees(number, row[column])] for number in cell)
            )
        )
    return found


def columns(table: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each column but the first: its title, and the decimal numbers of its cells."""
    titles, _, *rows = (line.strip("|").split("|") for line in table.splitlines())
    for title, *cells in list(zip(titles, *rows, strict=True))[1:]:
        decimals = [[n for n in _NUMBER.findall(cell) if "." in n] for cell in cells]
        yield title.strip(" *"), [cell for cell in decimals if cell]


def is_column(cells: list[list[str]], rows: list[Row]) -> bool:
    """Tell whether the same columns of a result have the numbers of all these cells."""
    return not cells or bool(set.intersection(*(columns_of(cell, rows) for cell in cells)))


@pytest.mark.parametrize(("document", "text", "file", "place"), figures())
def test_a_marked_figure_equals_its_result(document: str, text: str, file: str, place: str) -> None:
    value = look_up(read(file), place)
    assert agrees(text, value), f"{document} says {text}, {file} has {value} at {place}"


def test_the_columns_of_marked_tables_are_those_of_their_files() -> None:
    wrong = []
    for document, content in documents():
        for file, computed, table in _TABLE.findall(content):
            rows = rows_of(read(file))
            for title, cells in columns(table):
                if not (computed and title.startswith(computed)) and not is_column(cells, rows):
                    wrong.append(f"{document}: {file} has no such column as {title!r}: {cells}")
    assert not wrong, "\n".join(wrong)


def test_the_lowest_areas_of_the_ood_scores_are_those_of_their_sets() -> None:
    document = dict(documents())["docs/benchmarks.md"]
    (table,) = (table for _, computed, table in _TABLE.findall(document) if computed)
    titles = {title: cells for title, cells in columns(table) if title.startswith("lowest")}
    (rows,) = (rows for name, rows in read("ood.json")["tables"].items() if "area" in name)
    scores = list(dict.fromkeys(row["score"] for row in rows))
    chose_nothing = ("flowers", "grocery")
    for (title, cells), is_blind in zip(titles.items(), (False, True), strict=True):
        for score, (number,) in zip(scores, cells, strict=True):
            lowest = min(
                area
                for row in rows
                if row["score"] == score and (row["known"] in chose_nothing) is is_blind
                for other, area in row.items()
                if other not in ("known", "score", "caltech external")
            )
            assert agrees(number, lowest), (title, score, lowest)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([["0.96", "0.02"], ["0.91", "0.03"]], True),
        ([["0.96", "0.03"], ["0.91", "0.03"]], False),  # of two rows
        ([["0.96"], ["0.03"]], False),  # of two columns
        ([["0.02", "0.96"], ["0.91", "0.03"]], False),
        ([["0.96"], ["0.92"]], False),
    ],
)
def test_a_columns_numbers_are_of_one_column_and_a_cells_of_one_row(
    cells: list[list[str]], expected: bool
) -> None:
    rows = [{"accuracy": 0.96, "sd": 0.02}, {"accuracy": 0.91, "sd": 0.03}]
    result = {"tables": {"by set": rows}, "ratios": [], "notes": []}
    assert is_column(cells, rows_of(result)) is expected
    texts = [{"accuracy": "0.96 ± 0.02"}, {"accuracy": "0.91 ± 0.03"}]
    assert is_column(cells, rows_of({**result, "tables": {"by set": texts}})) is expected


def test_dates_commits_and_loads_are_those_of_the_files() -> None:
    wrong = []
    for document, content in documents():
        content = re.sub(r"\s+", " ", content)
        measured = _MEASURED.findall(content)
        assert len(measured) == content.count("Measured:"), f"{document}: not as {_MEASURED}"
        for file, date, commit, load in measured:
            result = read(file)
            if (date, commit) != (result["date"], result["commit"]) or not agrees(
                load, result["load_at_end"]
            ):
                wrong.append(f"{document}: {file} is of {result['date']}, {result['commit']}")
    assert not wrong, "\n".join(wrong)


def test_the_list_of_benchmarks_has_the_dates_of_their_last_runs() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    files = {name: file for name, _, file, _ in _PLACE.findall(text)}
    rows = [line for line in text.splitlines() if line.startswith("| `python -m")]
    for row in rows:
        for _, name in _FIGURE.findall(row):
            date = read(files[name])["date"]
            assert f"| {date} |" in row, f"{files[name]} is of {date}: {row}"
    without = [row for row in rows if not _FIGURE.search(row)]
    assert all("| never |" in row or "| to be run again |" in row for row in without), without


def test_every_result_is_named_in_a_document() -> None:
    text = "".join(content for _, content in documents())
    assert [path.name for path in sorted(RESULTS.glob("*.json")) if path.name not in text] == []


def test_the_documents_have_marked_figures() -> None:
    marked = figures()
    assert {document for document, *_ in marked} >= {"docs/benchmarks.md", "benchmarks/README.md"}
    assert len(marked) >= 40


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("1.05", 1.0461, True),
        ("1.05", 1.0561, False),
        ("−0.2 points", -0.16, True),
        ("1,968 s", 1968.2, True),
        ("98.3%", 98.36, False),
    ],
)
def test_rounding(text: str, value: float, expected: bool) -> None:
    assert agrees(text, value) is expected
