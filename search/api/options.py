"""Translate the options of `python -m search.run` between Python and words of the command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

import numpy as np

from search.console.arguments import Parser
from search.console.run_options import create_parser
from search.pipeline.request import RequestError, parse_request
from search.runs.environment import Request
from spaces.sources import did_you_mean

Option: TypeAlias = (
    "str | int | float | bool | os.PathLike[str] | timedelta"
    " | Sequence[str | int | os.PathLike[str]] | Mapping[str, Any] | None"
)
"""The value of an option: None leaves it out; a sequence is "A,B", a mapping is "name=value"s."""


def request_of(arguments: Sequence[str]) -> Request:
    """Parse words of the command line that stand for options in Python.

    Raises:
        RequestError: one is malformed; the message names the option as in Python.
    """
    try:
        return parse_request(arguments, exits=False)
    except RequestError as error:
        named = re.match(r"argument (?:-\w/)?--([\w-]+)(?:/\S+)?: ", str(error))
        if named is None:
            raise
        option = named[1].replace("-", "_")
        raise RequestError(f"{option}: {str(error)[named.end() :]}") from None


def as_arguments(options: Mapping[str, Option]) -> list[str]:
    """Return the words of the command line that options stand for.

    Args:
        options: By name, with `_` for `-`, such as `{"time_budget": "30m", "quiet": True}`.

    Raises:
        RequestError: there is no such option, or its value has no form on a command line.
    """
    actions = _actions(create_parser())
    unknown = [name for name in options if name not in actions]
    if unknown:
        hints = "; ".join(f"{name!r}{did_you_mean(name, actions)}" for name in unknown)
        raise RequestError(f"there is no option {hints} (there are: {', '.join(sorted(actions))})")
    return [word for name, value in options.items() for word in _words(name, actions[name], value)]


def _actions(parser: Parser) -> dict[str, argparse.Action]:
    """Return the options that a parser knows, by their names in Python.

    argparse has no public list of them; a test compares these with `--help`.
    """
    actions = {}
    for action in parser._actions:
        if argparse.SUPPRESS in (action.dest, action.default):  # --help and --version
            continue
        for option in action.option_strings:
            if option.startswith("--"):
                actions[option[2:].replace("-", "_")] = action
        if action.option_strings and action.nargs == 0:  # such as probe=False for --no-probe
            actions.setdefault(action.dest, action)
    return actions


def _words(name: str, action: argparse.Action, value: Option) -> Iterator[str]:
    option = f"--{name.replace('_', '-')}"
    if value is None:
        return
    if action.nargs == 0:
        yield from _switch(name, action, value)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield f"{option}={key}={one if isinstance(one, bool) else _text(name, one)}"
    elif isinstance(value, list | tuple):
        texts = [_text(name, one) for one in value]
        if divided := [text for text in texts if "," in text]:
            raise RequestError(
                f"{name} cannot hold a name with a comma, which divides names, but got"
                f" {divided[0]!r}: rename it, or list the names in a space file"
            )
        yield f"{option}={','.join(texts)}"
    else:
        yield f"{option}={_text(name, value)}"


def _switch(name: str, action: argparse.Action, value: object) -> Iterator[str]:
    """Yield the word of an option without a value, unless it stays as it is by default."""
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be True or False, but got {value!r}")
    option = f"--{name.replace('_', '-')}"
    opposite = option.replace("--", "--no-", 1)
    if option in action.option_strings:
        if value:
            yield option
        elif opposite in action.option_strings:
            yield opposite
    elif value != action.default:
        yield action.option_strings[-1]


def _text(name: str, value: object) -> str:
    if isinstance(value, timedelta):
        return f"{value.total_seconds():f}s"  # without an exponent, however long
    if isinstance(value, np.integer):
        return str(int(value))
    if isinstance(value, str | int | float | os.PathLike) and not isinstance(value, bool):
        return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    way_out = ": save it with to_csv, and give the file" if hasattr(value, "to_csv") else ""
    raise RequestError(
        f"{name} must be a text, a number or a path, but is of type {type(value).__name__}{way_out}"
    )
