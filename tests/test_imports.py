import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_STUDIES = (
    *("base", "rules", "fields", "diagnosis", "errors"),
    *("portfolio", "sources", "downloads", "glyphs", "timm_names"),
    *("archives", "label_tables", "conditions", "parameters", "first_trials"),
)
COMMANDS = (
    "__main__",
    "run",
    "predict",
    "export",
    "serve",
    "audit",
    "report",
    "list",
    "compare",
    "backbones",
)
LAYERS = (
    ("spaces",),
    ("trainables",),
    ("search.runs", "search.console"),
    ("search.cluster",),
    ("search.tuning", "search.data", "search.evaluation"),
    ("search.reporting", "search.deployment"),
    ("search.pipeline",),
    ("search.api",),
    tuple(f"search.{command}" for command in COMMANDS),
)
"""The packages, one layer per line, the lowest first: a package imports itself and lower layers."""
MAX_MODULES = 10
MAX_LINES = 300
QUICK_PACKAGES = ("search.data", "search.evaluation", "search.runs", "search.console")
"""Packages that import neither Ray nor torch, so that a user's mistake is shown at once."""
KNOW_RAY_TUNE = {
    *("search.tuning.tune", "search.tuning.searcher", "search.tuning.asha", "trainables.trial")
}


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


def top_level(module: str) -> str:
    return module.split(".", 1)[0]


def package(module: str) -> str | None:
    """Return the package that a module is in; None for modules of other projects."""
    packages = [name for names in LAYERS for name in names]
    return next((name for name in packages if f"{module}.".startswith(f"{name}.")), None)


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def runs_up(here: str | None, there: str | None) -> bool:
    return None not in (here, there) and there != here and layer(str(there)) >= layer(str(here))


def imported_at_once(source: str) -> Iterator[str]:
    """Yield what importing a file imports: not what stands in functions or is for types alone."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports_of(ast.unparse(node))


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    """Every file of the packages, by its module's dotted path."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for name in ("spaces", "trainables", "search")
        for path in sorted((ROOT / name).rglob("*.py"))
    }


@pytest.fixture(scope="module")
def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """What each module imports."""
    modules = frozenset({*files, "ray.tune"})  # also where `from ray import tune` stands
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
    for module in ("spaces.base", "trainables.models.ood", "search.data.audit", "search.run"):
        assert module in files


def test_every_module_is_in_a_package(files):
    outside = {m for m in files if package(m) is None} - {"search"}
    assert outside == set()


def test_imports_run_down(graph):
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in graph.items()
        for imported in sorted(all_imported)
        if top_level(imported) in ("tests", "benchmarks", "scripts")
        or runs_up(package(module), package(imported))
    ]
    assert wrong == []


def test_the_pipeline_is_only_run(graph):
    """By the command and from Python; the other commands work on what a run has left."""
    users = {
        module
        for module, imported in graph.items()
        if any(package(name) == "search.pipeline" for name in imported)
    }
    above = {module for module in users if package(module) not in ("search.pipeline", "search.api")}
    assert above == {"search", "search.run"}


def test_there_is_no_import_cycle(graph):
    assert cycle_in(graph) is None


def test_a_study_is_data(graph):
    allowed = {"spaces.base", "spaces.conditions", "spaces.portfolio", "spaces.sources"}
    allowed.add("optuna.distributions")
    studies = {
        module: imported
        for module, imported in graph.items()
        if top_level(module) == "spaces"
        and module != "spaces"
        and module.split(".")[1] not in NOT_STUDIES
    }
    assert len(studies) >= 6
    assert {module: imported - allowed for module, imported in studies.items()} == {
        module: set() for module in studies
    }


def test_who_knows_ray(graph):
    know_ray = {m for m, imported in graph.items() if "ray" in map(top_level, imported)}
    assert {m for m in know_ray if top_level(m) != "search"} == {"trainables.trial"}
    know_tune = {
        module
        for module, imported in graph.items()
        if any(f"{name}.".startswith("ray.tune.") for name in imported)
    }
    assert know_tune == KNOW_RAY_TUNE


def test_quick_packages_import_neither_ray_nor_torch(files):
    slow = {
        (module, name)
        for module, path in files.items()
        if package(module) in QUICK_PACKAGES
        for name in imported_at_once(path.read_text(encoding="utf-8"))
        if top_level(name) in ("ray", "torch", "torchvision")
    }
    assert slow == set()


def test_packages_are_small(files):
    sizes: dict[Path, int] = {}
    for path in files.values():
        if path.name != "__init__.py":
            sizes[path.parent] = sizes.get(path.parent, 0) + 1
    assert {
        str(folder.relative_to(ROOT)): n
        for folder, n in sizes.items()
        if n > MAX_MODULES and "search" in folder.parts
    } == {}


def test_long_files_say_why(files):
    long = []
    for module, path in files.items():
        source = path.read_text(encoding="utf-8")
        if source.count("\n") > MAX_LINES:
            text = ast.get_docstring(ast.parse(source)) or ""
            if "long" not in text.lower():
                long.append(module)
    assert long == []


def test_no_file_is_for_everything(files):
    assert not {"utils", "util", "helpers", "common", "misc"} & {p.stem for p in files.values()}


def test_every_file_says_what_it_is(files):
    silent = [
        module
        for module, path in files.items()
        if (tree := ast.parse(path.read_text(encoding="utf-8"))).body
        and not ast.get_docstring(tree)
    ]
    assert silent == []
