"""Validate what a run's JSON files hold when they are read back."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from spaces.errors import SearchError

_T = TypeVar("_T")


class FolderError(SearchError):
    """A run folder cannot be created, or cannot be read."""


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
