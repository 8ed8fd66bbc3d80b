"""Figures of the documents equal the results of the benchmarks that they name.

A figure is marked by a link, `[1.05][makespan]`, to its JSON file, with its place in it as the
title: `[makespan]: results/scale.json "ratios > makespan over the ideal, 64 workers"`. A place ends
with "* 100" where the document has percent. A table is marked by the comment
`<!-- results: calibration.json -->` in the line above it: each of its numbers with a decimal point
is somewhere in that file. A line `Measured: calibration.json, 2026-11-22, commit 282b0e1, load 4.9`
has the file's date, commit and load.
"""

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
_TABLE = re.compile(r"<!-- results: ([\w-]+\.json) -->\n((?:\|.*\n)+)")
_MEASURED = re.compile(r"Measured: ([\w-]+\.json), ([\d-]+), commit (\w+\+?), load ([\d.]+)")
_NUMBER = re.compile(r"(?<![\w.])[−-]?\d[\d,]*(?:\.\d+)?")


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


def numbers(content: Any) -> Iterator[float]:
    """Yield every number of a JSON document, those inside of texts too."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for each in content:
            yield from numbers(each)
    elif isinstance(content, str):
        yield from (
            float(n[0].replace("−", "-").replace(",", "")) for n in _NUMBER.finditer(content)
        )
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield float(content)


@pytest.mark.parametrize(("document", "text", "file", "place"), figures())
def test_a_marked_figure_equals_its_result(document: str, text: str, file: str, place: str) -> None:
    value = look_up(json.loads((RESULTS / file).read_text(encoding="utf-8")), place)
    assert agrees(text, value), f"{document} says {text}, {file} has {value} at {place}"


def test_the_numbers_of_marked_tables_are_in_their_files() -> None:
    missing = []
    for document, content in documents():
        for table in _TABLE.finditer(content):
            known = list(numbers(json.loads((RESULTS / table[1]).read_text(encoding="utf-8"))))
            for number in _NUMBER.finditer(table[2]):
                if "." in number[0] and not any(agrees(number[0], value) for value in known):
                    missing.append(f"{document}: {number[0]} is not in {table[1]}")
    assert not missing, "\n".join(missing)


def test_dates_commits_and_loads_are_those_of_the_files() -> None:
    wrong = []
    for document, content in documents():
        for file, date, commit, load in _MEASURED.findall(re.sub(r"\s+", " ", content)):
            result = json.loads((RESULTS / file).read_text(encoding="utf-8"))
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
            date = json.loads((RESULTS / files[name]).read_text(encoding="utf-8"))["date"]
            assert f"| {date} |" in row, f"{files[name]} is of {date}: {row}"
    without = [row for row in rows if not _FIGURE.search(row)]
    assert all("| never |" in row for row in without), without


def test_every_result_is_named_in_a_document() -> None:
    text = "".join(content for _, content in documents())
    assert [path.name for path in sorted(RESULTS.glob("*.json")) if path.name not in text] == []


def test_the_documents_have_marked_figures() -> None:
    marked = figures()
    assert {document for document, *_ in marked} >= {"README.md", "docs/benchmarks.md"}
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
