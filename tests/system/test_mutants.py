"""Mutants still fit the code, and the command reports which are killed and which are not."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from tests.system.mutant_catalogue import MUTANTS, Mutant
from tests.system.mutants import (
    ROOT,
    MutantError,
    apply_to,
    check_unmutated,
    main,
    run_mutant,
    run_mutants,
)


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies_and_compiles(mutant: Mutant) -> None:
    content = (ROOT / mutant.path).read_text(encoding="utf-8")
    changed = apply_to(content, mutant)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(content))


def test_every_named_test_exists() -> None:
    missing = []
    for test in sorted({test for mutant in MUTANTS for test in mutant.tests}):
        path, _, function = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if function not in functions:
            missing.append(test)
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    ("old", "n_found"), [("return a - b", 0), ("a", 2)], ids=["missing", "twice"]
)
def test_a_text_that_is_not_there_once_is_an_error(old: str, n_found: int) -> None:
    mutant = Mutant("m", "adding.py", old, "", ())
    with pytest.raises(MutantError, match=rf"m: .* adding\.py once, but is there {n_found} times"):
        apply_to("ab ac", mutant)


def test_the_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [mutant.name for mutant in MUTANTS]


ADD = Mutant(
    "subtracts", "adding.py", "return a + b", "return a - b", ("tests/test_adding.py::test_sum",)
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of one function with three tests."""
    (tmp_path / "adding.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_adding.py").write_text(
        "import pytest\nfrom adding import add\n\n"
        "def test_sum():\n    assert add(2, 2) == 4\n\n"
        "def test_zero():\n    assert add(0, 0) == 0\n\n"
        "@pytest.mark.skip(reason='no GPU')\ndef test_skipped():\n    assert add(2, 2) == 4\n"
    )
    return tmp_path


def test_a_mutant_is_killed_by_a_test_that_fails(tree: Path) -> None:
    weak = replace(ADD, name="weak", tests=("tests/test_adding.py::test_zero",))
    gone = replace(ADD, name="gone", tests=("tests/test_adding.py::test_gone",))
    outcomes = list(run_mutants([tree], [ADD, weak, gone]))
    assert [(one.result, one.test) for one in outcomes] == [
        ("killed", "tests/test_adding.py::test_sum"),
        ("SURVIVED", ""),
        ("NOT RUN", ""),
    ]
    assert "return a + b" in (tree / "adding.py").read_text(), "it is restored"


def test_a_mutant_without_its_text_is_not_run(tree: Path) -> None:
    outcome = run_mutant(tree, replace(ADD, old="return a * b"))
    assert outcome.result == "NOT RUN"
    assert "adapt tests/system/mutant_catalogue.py" in outcome.output


def test_tests_must_pass_without_a_mutant(tree: Path) -> None:
    skipped = replace(ADD, tests=("tests/test_adding.py::test_skipped",))
    with pytest.raises(MutantError, match=r"skipped here.*\n.*no GPU"):
        check_unmutated(tree, [ADD, skipped])
    (tree / "adding.py").write_text("def add(a, b):\n    return a - b\n")
    with pytest.raises(MutantError, match="the tests fail without a mutant"):
        check_unmutated(tree, [ADD])
