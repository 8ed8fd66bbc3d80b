"""Write a space file for a `Space` that was made in Python, so that its run can be resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space, load_space
from spaces.rules import SpaceError

_WAY_OUT = "define the space in a file, and give its path"
_INDENT = "    "


def write_space(path: Path, space: Space) -> None:
    """Write a space file that defines an equal space.

    Raises:
        SpaceError: the space holds a value that a file cannot rebuild, such as a table in memory or
            an object of a class that only this program has.
    """
    writer = _Writer()
    body = writer.call(space, one_per_line=True)
    lines = ['"""A space that was made in Python."""', "", *writer.import_lines(), ""]
    path.write_text("\n".join([*lines, f"SPACE = {body}", ""]), encoding="utf-8")
    if load_space(path) != space:
        raise SpaceError("The space", [f"as a file it would not be the same: {_WAY_OUT}"])


class _Writer:
    """Writes values as Python expressions, and remembers what these have to import."""

    def __init__(self) -> None:
        self._imports: set[tuple[str, str]] = set()

    def import_lines(self) -> list[str]:
        """Return the imports of what was written, sorted."""
        modules: dict[str, list[str]] = {}
        for module, name in sorted(self._imports):
            modules.setdefault(module, []).append(name)
        return [f"from {module} import {', '.join(names)}" for module, names in modules.items()]

    def call(self, value: Any, one_per_line: bool = False) -> str:
        """Return the call that makes a dataclass equal to `value`; defaults are left out."""
        changed = [
            f"{field.name}={self.expression(one, one_per_line)}"
            for field in fields(value)
            if field.init and not _is_default(field, one := getattr(value, field.name))
        ]
        name = self._imported(type(value))
        if not one_per_line:
            return f"{name}({', '.join(changed)})"
        return "\n".join([f"{name}(", *(f"{_INDENT}{one}," for one in changed), ")"])

    def expression(self, value: Any, one_per_line: bool = False) -> str:
        """Return an expression for a value; the entries of a dict may have a line each."""
        if value is None or isinstance(value, bool | str | bytes):
            return repr(value)
        if isinstance(value, int):
            return repr(int(value))
        if isinstance(value, float):
            number = float(value)  # NumPy's floats are such, with another repr
            return repr(number) if math.isfinite(number) else f'float("{number}")'
        if isinstance(value, CategoricalDistribution):
            return f"{self._imported(type(value))}({self.expression(list(value.choices))})"
        if isinstance(value, FloatDistribution | IntDistribution):
            return self._range(value)
        if isinstance(value, Path):
            self._imports.add(("pathlib", "Path"))
            return f"Path({str(value)!r})"
        if isinstance(value, tuple):
            return f"({''.join(f'{self.expression(one)}, ' for one in value).rstrip(' ')})"
        if isinstance(value, list):
            return f"[{', '.join(map(self.expression, value))}]"
        if isinstance(value, Mapping):
            pairs = [f"{self.expression(k)}: {self.expression(v)}" for k, v in value.items()]
            if not one_per_line:
                return f"{{{', '.join(pairs)}}}"
            return "\n".join(["{", *(f"{_INDENT * 2}{pair}," for pair in pairs), f"{_INDENT}}}"])
        if is_dataclass(value) and not isinstance(value, type):
            return self.call(value)
        raise SpaceError(
            "The space", [f"a {type(value).__name__} cannot be written to a file: {_WAY_OUT}"]
        )

    def _range(self, value: FloatDistribution | IntDistribution) -> str:
        words = [self.expression(value.low), self.expression(value.high)]
        if value.log:
            words.append("log=True")
        elif value.step not in (None, 1) or (isinstance(value, FloatDistribution) and value.step):
            words.append(f"step={self.expression(value.step)}")
        return f"{self._imported(type(value))}({', '.join(words)})"

    def _imported(self, kind: type) -> str:
        """Return the name of a class, which the file imports."""
        module, name = kind.__module__, kind.__qualname__
        if module == "__main__" or getattr(import_module(module), name, None) is not kind:
            raise SpaceError("The space", [f"the class {name} is only in this program: {_WAY_OUT}"])
        self._imports.add((module, name))
        return name


def _is_default(field: Field[Any], value: Any) -> bool:
    if field.default is not MISSING:
        return type(value) is type(field.default) and bool(value == field.default)
    if field.default_factory is not MISSING:
        return bool(value == field.default_factory())
    return False
