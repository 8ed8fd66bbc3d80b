"""List the spaces that ship with the package."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

from spaces.base import load_space, shipped_spaces
from spaces.rules import SpaceError

_WIDTH = 100


def list_spaces() -> str:
    """Return, for each space, its name, what it is for, its image size and its backbones."""
    found = shipped_spaces()
    indent = max(map(len, found)) + 2
    lines = ["spaces, for --space NAME:", ""]
    for name, path in found.items():
        lines += [f"{name:<{indent}}{_first_line(path)}", *_details(path, indent), ""]
    lines.append(f"They are files in {next(iter(found.values())).parent}: copy one and change it.")
    return "\n".join(lines)


def _first_line(path: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    except (SyntaxError, ValueError):  # `_details` says what is wrong
        return ""
    return text.split("\n")[0]


def _details(path: Path, indent: int) -> list[str]:
    try:
        space = load_space(path)
    except SpaceError as error:  # of a file that a user has added
        return [" " * indent + f"cannot be used: {'; '.join(error.problems)}"]
    text = f"{space.image_size} px: {', '.join(space.backbones)}"
    margin = " " * indent
    return textwrap.wrap(text, _WIDTH, initial_indent=margin, subsequent_indent=margin)
