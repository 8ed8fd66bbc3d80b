"""Read a run's JSON files, and validate what they hold."""

from __future__ import annotations

import stat
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from spaces.errors import SearchError
from trainables.json_text import parse_json

_T = TypeVar("_T")


class FolderError(SearchError):
    """A run folder cannot be created, or cannot be read."""


class NoJSONError(FolderError):
    """A file of a run is not JSON."""


def read_json(path: Path, way_out: str) -> Any:
    """Read a JSON file of a run.

    Args:
        path: The file.
        way_out: What to do where it is damaged.

    Raises:
        FileNotFoundError: there is none.
        NoJSONError: it is not JSON.
        FolderError: it is no regular file, or cannot be read.
    """
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
        text = path.read_bytes() if is_file else b""  # a pipe would block
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error.strerror}; {way_out}") from None
    if not is_file:
        raise FolderError(f"{path} is damaged: it is no regular file; {way_out}")
    try:
        return parse_json(text.decode())
    except ValueError:
        raise NoJSONError(f"{path} is damaged: it is not JSON; {way_out}") from None


def validate(content: object, kind: type[_T], path: Path, way_out: str) -> _T:
    """Return a JSON file's content as a dataclass; keys that it does not have are ignored.

    Args:
        content: What the file holds.
        kind: The dataclass.
        path: The file.
        way_out: What to do where it is damaged.

    Raises:
        FolderError: a key is missing or of the wrong type; the message names the first one.
    """
    adapter: TypeAdapter[_T] = _adapter(cast(Hashable, kind))
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise FolderError(f"{path} is damaged: {key}: {first['msg']}; {way_out}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return the adapter of a dataclass, which takes a tenth of a second to make."""
    return TypeAdapter(kind)
