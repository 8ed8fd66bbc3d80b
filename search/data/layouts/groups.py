"""Find groups of images, such as patients or cameras, by patterns in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from search.data.image_files import DataError
from search.data.layouts.split_folders import nfc


def groups_by_pattern(names: Sequence[str], pattern: str) -> tuple[str, ...]:
    """Find the group in each image's name.

    Args:
        names: Paths below the data folder, with `/`.
        pattern: A regular expression; the group is what its first group in parentheses that takes
            part matches, or all that it matches where it has none. One with a slash is searched
            for in the path, any other in the file's name. Composed and decomposed characters are
            equal.

    Returns:
        The groups; "" where the pattern is not found, so that an image is in no group.

    Raises:
        DataError: it is found in no name.
    """
    compiled = re.compile(nfc(pattern))
    names = [nfc(name) for name in names]
    searched = names if "/" in pattern else [name.rpartition("/")[2] for name in names]
    matches = map(compiled.search, searched)
    groups = tuple("" if match is None else _group_of(match) for match in matches)
    if not any(groups):
        where = "paths" if "/" in pattern else "names"
        raise DataError(
            f"--group-by must match the {where} of images, but {pattern!r} matches none of"
            f" {len(names)}, such as {searched[0]!r}: correct the pattern"
        )
    return groups


def _group_of(match: re.Match[str]) -> str:
    if not match.re.groups:
        return match[0]
    return next((group for group in match.groups() if group), "")  # of "a(1)|b(2)" either
