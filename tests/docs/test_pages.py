"""The pages fit each other and the programs: links, options, defaults, snippets."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pandas as pd
import pytest

from search.console.commands import COMMANDS
from spaces.base import Space, TrialConfig, load_space, shipped_spaces
from spaces.rules import RULES

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {page.name: page.read_text(encoding="utf-8") for page in DOCS if page.name != "README.md"}
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTENTS = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_BY = {
    **dict.fromkeys(("api.md", "tutorial.md"), "test_api"),
    "backbones.md": "test_own_networks",
    "deploy.md": "test_commands",
    "data.md": "here",
    "writing-a-space.md": "here",
}
"""By page, the test that runs its Python."""


def options_of(command: str) -> set[str]:
    """Return a command's long options, as its help has them."""
    module = importlib.import_module(
        "search.console.run_options" if command == "run" else f"search.{command}"
    )
    if not hasattr(module, "create_parser"):
        return {"--version"}
    actions = module.create_parser()._actions  # argparse has no public list of them
    return {name for action in actions for name in action.option_strings if name[:2] == "--"}


def documented(option: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){option}(?![\w-])", text) is not None


@pytest.mark.parametrize("page", [*PAGES, "notebook.ipynb"])
def test_every_page_is_linked(page: str) -> None:
    assert f"]({page})" in CONTENTS
    assert f"](docs/{page})" in README or page == "package.md"


def test_the_first_result_is_within_a_screenful() -> None:
    start = README.splitlines()
    assert start.index("make demo") < 30
    first = next(number for number, line in enumerate(start) if "search.predict" in line)
    assert first < 45


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_a_page(command: str) -> None:
    pages = "\n".join(PAGES.values())
    missing = {name for name in options_of(command) if not documented(name, pages)}
    assert missing <= {"--help"}


def test_options_in_text_exist() -> None:
    """Those in sentences; test_commands lets the programs read fenced commands."""
    known = set().union(*map(options_of, COMMANDS))
    known |= {
        "--constraint",
        "--editable",
        "--build-arg",
        "--time",
        "--shm-size",
        "--working-dir",
        "--id",
    }  # of pip, Docker, Ray, Weights & Biases
    known.add("--trails")  # the page of errors has it as a mistake
    wrong = []
    for name, text in {"README.md": README, **PAGES}.items():
        if name in ("benchmarks.md", "studies.md"):  # options of the benchmarks
            continue
        sentences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`]+)`", sentences):
            if "benchmarks." in code or "clusters/" in code:
                continue
            wrong += [
                f"{name}: {option}"
                for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code)
                if option not in known
            ]
    assert not wrong, wrong


def test_anchors_have_headings() -> None:
    for name, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([\w.-]*\.md)?#([\w-]+)\)", text):
            headings = re.findall(r"^#+ (.*)$", PAGES[target or name], re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor in slugs, f"{name} links to {target}#{anchor}"


def test_every_snippet_is_run() -> None:
    assert {name for name, text in PAGES.items() if SNIPPET.search(text)} == set(RUN_BY)


def test_the_space_of_the_page_loads(tmp_path: Path) -> None:
    snippet = SNIPPET.findall(PAGES["writing-a-space.md"])[0]
    path = tmp_path / "mine.py"
    path.write_text(snippet, encoding="utf-8")
    assert load_space(path).trials == 24


def test_the_tables_of_the_page_on_data_are_sources(tmp_path: Path) -> None:
    (snippet,) = SNIPPET.findall(PAGES["data.md"])
    names = {"frame": pd.DataFrame({"file": ["1.jpg", "2.jpg"], "kind": ["cat", "dog"]})}
    exec(snippet, names)
    assert "source" in names


def test_the_page_on_spaces_has_all_names_and_their_defaults() -> None:
    page = PAGES["writing-a-space.md"]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    defaults = {field.name: field.default for field in dataclasses.fields(Space)}
    for name in {*defaults, *RULES}:
        assert re.search(rf"\b{name}\b", page), name
    for name in ("image_size", "epochs", "trials", "folds", "views", "keep_checkpoints"):
        assert rows[name] == str(defaults[name]), name
    parameters = {field.name: field.default for field in dataclasses.fields(TrialConfig)}
    columns = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", page, re.MULTILINE)
    shown = {name: text.strip("` ") for name, text in columns if name in RULES}
    assert shown.pop("backbone") == "required"
    assert shown.keys() == RULES.keys() - {"backbone"}
    for name, text in shown.items():
        default = parameters[name]
        assert text == (f"{default:g}" if type(default) is float else str(default)), name
    assert set(shipped_spaces()) <= set(rows)
