"""Say all that is wrong with a space file that raises an error, not the first mistake alone.

The parts of its `SPACE = Space(...)` are evaluated one by one, so that every one that raises an
error is named, and the others are checked as those of any space.
"""

from __future__ import annotations

import ast
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spaces.errors import SearchError

Names = dict[str, Any]
"""What a file has defined, by name."""


def file_problems(
    path: Path, error: BaseException, check: Callable[[Mapping[str, Any]], Iterable[str]]
) -> list[str]:
    """Return what is wrong with a space file.

    Args:
        path: The file.
        error: What running it raised.
        check: Yields what is wrong with the fields of a space.
    """
    names: Names = {"__name__": "space", "__file__": str(path)}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    first = f"{f'line {frames[-1].lineno}: ' if frames else ''}{_in_words(error)}"
    with suppress(Exception, SystemExit):
        body = ast.parse(path.read_bytes()).body
        position, call = _find_space(body)
        before = ast.Module(body[:position], type_ignores=[])
        exec(compile(before, str(path), "exec"), names)  # noqa: S102 - it has been run already
        parts = _Parts(names)
        given = {str(keyword.arg): parts.evaluate(keyword.value) for keyword in call.keywords}
        if parts.problems:
            failed = [*parts.failed, *(name for name in given if given[name] is _FAILED)]
            complete = {name: value for name, value in given.items() if value is not _FAILED}
            others = [one for one in check(complete) if not _is_about(one, failed)]
            return [*parts.problems, *others]
    return [first]


_FAILED = object()
"""Stands for a value whose expression raises an error."""


def _find_space(body: list[ast.stmt]) -> tuple[int, ast.Call]:
    """Return the position of the file's `SPACE = Space(...)`, and the call.

    Raises:
        ValueError: there is none, or not all of its arguments have names.
    """
    for position, statement in enumerate(body):
        match statement:
            case ast.Assign(
                targets=[ast.Name(id="SPACE")],
                value=ast.Call(func=ast.Name(id="Space"), args=[]) as call,
            ) if all(keyword.arg for keyword in call.keywords):
                return position, call
    raise ValueError("there is no SPACE = Space(...)")


def _is_about(problem: str, failed: list[str]) -> bool:
    """Return whether a problem is that something which has failed is missing."""
    return any(problem.startswith(f"{name} is missing") for name in failed) or any(
        f"{name!r} is not a parameter" in problem or f"must name a {name!r}" in problem
        for name in failed
    )


class _Parts:
    """The parts of a call, evaluated one by one.

    Attributes:
        problems: What each part that raised an error raised, in the order of the lines.
        failed: Keys of dicts whose value is such a part.
    """

    def __init__(self, names: Names) -> None:
        self.problems: list[str] = []
        self.failed: list[str] = []
        self._names = names

    def evaluate(self, node: ast.expr) -> Any:
        """Evaluate an expression, the values of a dict one by one; `_FAILED` if it fails."""
        if isinstance(node, ast.Dict):
            return self._evaluate_dict(node)
        try:
            return _value(node, self._names)
        except Exception as error:
            signature = _signature(node, self._names) if isinstance(error, TypeError) else ""
            self.problems.append(f"line {node.lineno}: {_in_words(error)}{signature}")
            return _FAILED

    def _evaluate_dict(self, node: ast.Dict) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.evaluate(value_node)
            if key_node is None:  # **other
                values |= {} if value is _FAILED else dict(value)
                continue
            key = self.evaluate(key_node)
            if value is _FAILED:
                self.failed.append(str(key))
            elif key is not _FAILED:
                values[key] = value
        return values


def _value(node: ast.expr, names: Names) -> Any:
    return eval(compile(ast.Expression(node), "space", "eval"), names)  # noqa: S307


def _in_words(error: BaseException) -> str:
    """Return an error's message; the name of its class says more where it is a rare one."""
    if isinstance(error, TypeError | ValueError | SearchError | NameError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _signature(node: ast.expr, names: Names) -> str:
    """Return the arguments that a called function takes, as the end of a message."""
    if not isinstance(node, ast.Call):
        return ""
    try:
        parameters = inspect.signature(_value(node.func, names)).parameters
    except Exception:
        return ""
    return f" (it takes: {', '.join(parameters) or 'nothing'})"
