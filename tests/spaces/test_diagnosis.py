from pathlib import Path

import pytest

from spaces.base import load_space
from spaces.rules import SpaceError

HEADER = """from optuna.distributions import CategoricalDistribution, FloatDistribution
from spaces.base import Space
from spaces.sources import folder
"""


def problems_of(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "mine.py"
    path.write_text(HEADER + body)
    with pytest.raises(SpaceError) as caught:
        load_space(path)
    assert str(caught.value).startswith(f"Space file {path} cannot be used:\n  - ")
    return list(caught.value.problems)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    body = """
LOWEST = 1
SPACE = Space(
    sorce=folder(),
    params={
        "backbone": CategoricalDistribution(["resnet81"]),
        "lr": FloatDistribution(LOWEST, 0),
        "augment": FloatDistribution(lo=0, high=1),
        **{"dropout": 2},
    },
    external=folder(classes="cat"),
    first_trials=({"lr": 0.1, "dropout": 0.5},),
    epochs="3",
)
"""
    found = problems_of(tmp_path, body)
    # Python 3.13 adds a hint of its own.
    assert [line.replace(". Did you mean 'low'?", "") for line in found[:3]] == [
        "line 10: `low <= high` must hold, but got (low=1, high=0).",
        "line 11: FloatDistribution.__init__() got an unexpected keyword argument 'lo' (it takes:"
        " low, high, log, step)",
        "line 14: classes must be a tuple of two or more names, but got 'cat'",
    ]
    assert found[3] == "unknown field 'sorce'; did you mean 'source'?"
    assert found[4].startswith("backbone must be one of ")
    assert found[5:] == [
        "0 <= dropout <= 0.95 must hold, but got 2",
        "first_trials[0]: dropout = 0.5, but the space fixes it at 2",
        "1 <= epochs <= 10000 must hold, but got '3'",
    ], "what failed counts neither as missing nor as unknown"


def test_what_failed_is_not_missing(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        "SPACE = Space(source=fodler(), params={'backbone': CategoricalDistribution([])})",
    )
    assert found == [
        "line 4: name 'fodler' is not defined",
        "line 4: The `choices` must contain one or more elements.",
    ]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("1 / 0\nSPACE = Space()", "line 4: ZeroDivisionError: division by zero"),
        ("SPACE = Space(**{'source': folder(clas=3)})", "line 4: folder() got an unexpected key"),
        (
            "SPACE = Space(**{'source': folder(group_by=5)})",
            "line 4: --group-by must be a regular expression, but 5 is none",
        ),
        ("SPACE = Space(**{'epochs': 1 / 0})", "line 4: ZeroDivisionError: division by zero"),
        ("SPACE = None.x", "line 4: AttributeError: 'NoneType' object has no attribute 'x'"),
        ("SPACE = Space(source=[][1], params={})", "line 4: IndexError: list index out of range"),
    ],
)
def test_a_file_of_another_form_has_one_mistake(tmp_path: Path, body: str, problem: str) -> None:
    found = problems_of(tmp_path, body)
    assert found[0].startswith(problem)
    assert len(found) == (1 if "params" not in body else 2)
