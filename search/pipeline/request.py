"""Parse and check the command line of `python -m search.run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import spaces
from search.console.run_options import create_parser
from search.runs.environment import Request
from spaces.base import Space, load_space
from spaces.errors import SearchError

DEFAULT_SPACE = "spaces/digits.py"

_KEPT = (
    *("data", "external", "exclude", "weights", "backbones", "limit"),
    *("trials", "epochs", "folds", "finalists"),
    *("time_budget_seconds", "max_concurrent", "storage"),
)
"""Options that a run keeps when it is resumed, unless the command line gives them again."""
_FIXED = ("seed", "sampler", "scheduler", "probe")
"""Options with a default that a run keeps."""


class RequestError(SearchError):
    """The command line requests something impossible."""


def parse_request(arguments: Sequence[str] | None = None) -> Request:
    """Parse the command line; exits with code 2 and one message if it is malformed."""
    options = vars(create_parser().parse_args(arguments))
    options["names_space"] = options["space"] is not None
    own = options["resume"] and options["resume"] / "space.py"
    space: Path = options["space"] or own or _default_space()
    options["space"] = space
    options["name"] = options["name"] or f"{space.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return Request(**options)


def load_requested_space(request: Request) -> Space:
    """Load the space and apply the command line's changes.

    Raises:
        SpaceError: the space breaks a rule, as it is or with the changes.
    """
    space = load_space(request.space)
    space = replace(
        space,
        trials=request.trials or space.trials,
        epochs=request.epochs or space.epochs,
        folds=request.folds or space.folds,
    )
    return space.with_backbones(request.backbones) if request.backbones else space


def merge_with_saved(request: Request, saved: Request) -> Request:
    """Return the request of a run that is resumed, with this command line's changes.

    Args:
        request: The command line with `--resume`.
        saved: What the run saved.

    Raises:
        RequestError: an option that cannot change was given again with another value.
    """
    before = {name: getattr(saved, name) for name in _KEPT}
    given = {name: v for name in _KEPT if (v := getattr(request, name)) is not None}
    for name in ("backbones", "limit"):
        if name in given and given[name] != before[name]:
            began = "without it" if before[name] is None else f"with {before[name]}"
            raise RequestError(
                f"--{name} of a run cannot change: it began {began}; begin a new run"
            )
    fixed = {name: getattr(saved, name) for name in _FIXED}
    for name, began in fixed.items():
        value = getattr(request, name)
        if value not in (began, create_parser().get_default(name)):
            raise RequestError(
                f"--{name} of a run cannot change: it began with {began}, but got {value};"
                " begin a new run"
            )
    return replace(request, space=request.folder / "space.py", **{**before, **given, **fixed})


def _default_space() -> Path:
    """Return the default space: the checkout's, or the installed package's."""
    here = Path(DEFAULT_SPACE)
    return here if here.is_file() else Path(spaces.__path__[0]) / here.name
