import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("spaces", "trainables", "search")
"""The packages; one may import itself and those before it."""
NOT_STUDIES = ("base", "sources", "glyphs")


def imports_of(source: str, modules: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield what a file imports, wherever in it: modules of the project by their full name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides its layer"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else str(node.module)


def cycle_in(graph: Mapping[str, set[str]]) -> list[str] | None:
    """Return the modules of one import cycle, or None when there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return None
        for imported in sorted(graph.get(module, ())):
            if found := visit(imported, [*path, module]):
                return found
        done.add(module)
        return None

    return next((found for module in sorted(graph) if (found := visit(module, []))), None)


def layer(module: str) -> str:
    return module.split(".", 1)[0]


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    """Every file of the packages, by module name."""
    return {
        f"{package}.{path.stem}": path
        for package in LAYERS
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@pytest.fixture(scope="module")
def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """What each module imports."""
    modules = frozenset(files)
    return {
        name: set(imports_of(path.read_text(encoding="utf-8"), modules))
        for name, path in files.items()
    }


def test_the_reader_sees_every_kind_of_import():
    source = """
import os, ray.tune as t
from ray import tune
from spaces import base
from spaces.base import Space
if TYPE_CHECKING:
    from torch import Tensor
def late():
    import search.run
"""
    assert list(imports_of(source, frozenset({"spaces.base"}))) == [
        *("os", "ray.tune", "ray", "spaces.base", "spaces.base", "torch", "search.run")
    ]
    with pytest.raises(AssertionError, match="line 1: a relative import"):
        list(imports_of("from . import base"))


def test_a_cycle_would_be_found():
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}}) == ["b", "c"]


def test_all_packages_are_read(files):
    for module in ("spaces.base", "spaces.digits", "trainables.trainer", "search.run"):
        assert module in files


def test_imports_run_one_way(graph):
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in graph.items()
        for imported in sorted(all_imported)
        if layer(imported) in LAYERS[LAYERS.index(layer(module)) + 1 :]
        or layer(imported) in ("tests", "benchmarks", "scripts")
    ]
    assert wrong == []


def test_there_is_no_import_cycle(graph):
    assert cycle_in(graph) is None


def test_a_study_is_data(graph):
    allowed = {"spaces.base", "spaces.sources", "optuna.distributions"}
    studies = {
        module: imported
        for module, imported in graph.items()
        if layer(module) == "spaces" and module.split(".")[1] not in NOT_STUDIES
    }
    assert len(studies) >= 6
    assert {module: imported - allowed for module, imported in studies.items()} == {
        module: set() for module in studies
    }


def test_only_the_controller_and_the_trial_know_ray(graph):
    know_ray = {m for m, imported in graph.items() if "ray" in map(layer, imported)}
    assert {m for m in know_ray if layer(m) != "search"} == {"trainables.trial"}


def test_no_file_is_a_drawer_for_everything(files):
    assert not {"utils", "util", "helpers", "common", "misc"} & {p.stem for p in files.values()}


def test_every_file_says_what_it_is(files):
    silent = [
        module
        for module, path in files.items()
        if (tree := ast.parse(path.read_text(encoding="utf-8"))).body
        and not ast.get_docstring(tree)
    ]
    assert silent == []
