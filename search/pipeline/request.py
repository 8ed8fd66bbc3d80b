"""Parse and check the command line of `python -m search.run`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from search.console.run_options import create_parser
from search.runs.environment import Request
from spaces.base import Space, find_space, load_space
from spaces.errors import SearchError
from spaces.portfolio import AUTO, portfolio_backbones
from spaces.rules import Value, is_own_network

DEFAULT_SPACE, DEMO_SPACE = "photos", "digits"
"""The spaces of a run without `--space`: with `--data`, and without."""

_KEPT = (
    *("data", "labels", "external", "exclude", "weights", "backbones", "limit"),
    *("classes", "image_size", "constants", "max_latency_ms", "max_megapixels", "metric"),
    *("image_column", "label_column", "group_column", "group_by", "warm_start"),
    *("trials", "epochs", "folds", "finalists", "patience_trials"),
    *("time_budget_seconds", "max_concurrent", "storage", "log", "study"),
)
"""Options that a run keeps when it is resumed, unless the command line gives them again."""
_SAME = (
    *("backbones", "limit", "classes", "image_size", "constants"),
    *("max_latency_ms", "max_megapixels", "metric"),
    *("image_column", "label_column", "group_column", "group_by", "warm_start"),
)
"""Those of them that cannot change: trials would be of another space, of other images, or compared
by another metric."""
_FIXED = ("seed", "sampler", "scheduler", "probe")
"""Options with a default that a run keeps."""


_JOB_FOLDERS = "runtime_resources"
"""Part of the path of every folder that Ray makes for a job."""


class RequestError(SearchError):
    """The command line requests something impossible."""


def parse_request(arguments: Sequence[str] | None = None, exits: bool = True) -> Request:
    """Parse the command line; exits with code 2 and one message if it is malformed.

    Args:
        arguments: Its words; None: this program's.
        exits: Whether it exits; else it raises.

    Raises:
        RequestError: the command line is malformed, where this does not exit.
    """
    parser = create_parser()
    parser.raises = None if exits else RequestError
    options = {name: _expanded(one) for name, one in vars(parser.parse_args(arguments)).items()}
    options["constants"] = _constants(options.pop("settings"), options["backbones"], parser)
    options["log"] = options["log"] and tuple(dict.fromkeys(options["log"]))
    options["names_space"] = options["space"] is not None
    own = options["resume"] and options["resume"] / "space.py"
    if options["labels"] is not None and options["data"] is None and options["resume"] is None:
        options["data"] = options["labels"].parent
    default = DEMO_SPACE if options["data"] is None else DEFAULT_SPACE
    space: Path = options["space"] or own or find_space(default)
    options["space"] = space
    options["names_run"] = options["name"] is not None
    if options["name"] is None:
        options["name"] = f"{space.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return Request(**options)


def _expanded(value: Any) -> Any:
    """Expand a path's ~, which a shell leaves in quotes and Python leaves anywhere."""
    # Path.expanduser raises an error where there is no such user.
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value  # noqa: PTH111


def _constants(
    settings: Sequence[tuple[str, Value]] | None,
    backbones: tuple[str, ...] | None,
    parser: argparse.ArgumentParser,
) -> dict[str, Value] | None:
    """Return the hyperparameters that --set and --batch-size fix; None where there are none."""
    constants: dict[str, Value] = {}
    for name, value in settings or ():
        if constants.setdefault(name, value) != value:
            parser.error(f"{name} is set to both {constants[name]} and {value}: give one of them")
    if "backbone" in constants and backbones is not None:
        parser.error("--set backbone=NAME and --backbones exclude each other: give one of them")
    return constants or None


def load_requested_space(request: Request) -> Space:
    """Load the space and apply the command line's changes.

    Raises:
        SpaceError: the space breaks a rule, as it is or with the changes.
        SourceError: the options of labels and groups do not fit together.
    """
    space = load_space(request.space)
    space = replace(
        space,
        source=request.with_labels(space.source),
        trials=request.trials or space.trials,
        epochs=request.epochs or space.epochs,
        folds=request.folds or space.folds,
        metric=request.metric or space.metric,
    )
    if request.classes is not None:
        space = replace(space, source=replace(space.source, classes=request.classes))
    if request.image_size is not None:
        space = space.with_image_size(request.image_size)
    if request.backbones is not None:
        is_auto = request.backbones == (AUTO,)
        names = portfolio_backbones(request.weights) if is_auto else request.backbones
        space = space.with_backbones(names)
    if request.constants is not None:
        space = space.with_constants(request.constants)
    return space


def with_table(request: Request) -> Request:
    """Return a request whose table of labels may lie in the data folder."""
    if request.labels is None or request.data is None or request.labels.is_file():
        return request
    inside = request.data / request.labels
    return replace(request, labels=inside) if inside.is_file() else request


def find_own_modules(request: Request, space: Space) -> dict[str, str]:
    """Find and check the networks of the user's own, beside the space file or here.

    Returns:
        By name, the source texts of their modules.

    Raises:
        OwnNetworkError: one cannot be a backbone.
    """
    if not any(map(is_own_network, space.backbones)):
        return {}
    from trainables.models.own_networks import find_modules  # imports PyTorch

    return find_modules(space.backbones, (request.space.parent, Path.cwd()), space.image_size)


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
    constants = before["constants"] or {}
    if given.get("constants", {}).items() <= constants.items():
        given.pop("constants", None)  # some of those that the run has, or none
    for name in _SAME:
        if name in given and given[name] != before[name]:
            option = (
                "--set"
                if name == "constants"
                else f"--{name.removesuffix('_ms').replace('_', '-')}"
            )
            began = "without it" if before[name] is None else f"with {_written(before[name])}"
            raise RequestError(
                f"{option} of a run cannot change: it began {began}, but got"
                f" {_written(given[name])}; omit the option, or begin a new run"
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


def check_paths(request: Request) -> None:
    """Check that `environment.json` can hold the request's paths.

    Raises:
        RequestError: the bytes of one are not UTF-8.
    """
    for name, path in vars(request.with_absolute_paths()).items():
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise RequestError(
                f"--{name} must be UTF-8, but got {str(path)!a}: rename the folder"
            ) from None


def check_output_path(request: Request) -> None:
    """Check that the run's folder is neither in a Ray job's temporary folder, nor its own copy.

    Raises:
        RequestError: it would be removed with the job's folder, or overwritten by its copy.
    """
    if request.shared is not None and request.shared.is_folder(request.folder):
        raise RequestError(
            f"--storage must be another folder than --out, as it gets a copy of the run, but got"
            f" {request.storage}"
        )
    if not request.folder.is_absolute() and _JOB_FOLDERS in Path.cwd().parts:
        option = "--resume" if request.resume else "--out"
        raise RequestError(
            f"{option} must be an absolute path in a Ray job, whose own folder is removed after it,"
            f" but got {request.resume or request.out}; give {option} such as"
            f" {Path.home() / 'results'}"
        )


def _written(value: Any) -> str:
    """Return an option's value as it is written on the command line."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={setting}" for name, setting in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)
