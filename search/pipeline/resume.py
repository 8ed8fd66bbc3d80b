"""Check that an earlier run can be resumed, or its name used again, before anything costly starts.

A run that is refused stays as it was: nothing here writes into its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from search.console.formatting import quote_path
from search.data.exclusion import Exclusion, read_exclusion
from search.pipeline.request import RequestError, merge_with_saved
from search.runs.environment import Request
from search.runs.run_folder import ENVIRONMENT, RunFolder, digest
from search.runs.sync import fetch, is_abandoned
from search.runs.validation import FolderError
from search.tuning.study import check_readable
from spaces.base import Space, load_space

EXCLUDED_FILE = "excluded.csv"
"""In the run's folder: the names of the images that were excluded by request."""


def check_free(request: Request, hold: Callable[[Path], bool]) -> bool:
    """Check that the name of a new run is free, in the folder of all runs and in storage.

    Returns:
        Whether the folder is there, of a run that was killed before its first result: it can be
        cleared, and is locked.

    Raises:
        FolderError: the name is taken, or no run can be created.
    """
    RunFolder.check_name(request.name)
    used_again, folder = False, RunFolder(request.folder)
    if request.names_run and folder.ended_without_result:
        try:
            # Before it had the lock, another command may have made a result.
            used_again = hold(request.folder) and folder.ended_without_result
        except FolderError as error:
            raise FolderError(f"{error}, or give another --name") from None
        except OSError:
            pass  # it cannot be written to
    if not used_again and (request.names_run or not request.folder.exists()):
        RunFolder.check_free(request.out, request.name)
    check_storage(request)
    return used_again


def check_storage(request: Request) -> None:
    """Check that the name of a new run is free in storage, or can be cleared.

    Raises:
        FolderError: it is taken.
    """
    shared = request.shared
    if shared is None or shared.is_empty() or is_abandoned(shared, request.folder):
        return
    if shared.has(ENVIRONMENT):
        raise FolderError(
            f"there is a run called {request.name!r} in {request.storage}: give another --name, or"
            f" resume it with --resume {quote_path(request.folder)}"
            f" --storage {quote_path(str(request.storage))}"
        )
    # A run that is refused later is deleted there with its folder.
    raise FolderError(
        f"the folder {request.name!r} in {request.storage} must be empty or new, but it has"
        " files that are of no run: give another --name or --storage"
    )


@contextmanager
def fetched(request: Request) -> Iterator[None]:
    """Fetch the run to resume from storage if it is not here; one that is refused is removed."""
    path = request.resume
    if path is None or request.shared is None or path.exists():
        yield
        return
    try:
        fetch(request.shared, path)
        yield
    except BaseException:
        RunFolder(path).delete()
        raise


def open_run(request: Request, path: Path) -> tuple[RunFolder, Request, Exclusion | None]:
    """Open the run to resume; return it, its request with the changes, and its exclusion."""
    folder = RunFolder.open(path, resumes=True)
    folder.check_study()
    check_readable(path)
    if request.exclude is not None:
        raise RequestError(
            "a resumed run keeps its images, but --exclude would change them: omit the option, or"
            " begin a new run"
        )
    check_same_space(request.space if request.names_space else None, folder)
    excluded = path / EXCLUDED_FILE
    exclusion = read_exclusion(excluded, must_exist=False) if excluded.is_file() else None
    _check_excluded(excluded, exclusion, folder)
    request = merge_with_saved(_without_more_trials(request, folder), folder.environment.request)
    if request.shared is not None:
        request.shared.try_out()
    return folder, request, exclusion


def _without_more_trials(request: Request, folder: RunFolder) -> Request:
    """Return a request that adds no trials to a finished run, unless it asks for more time."""
    summary, saved = folder.summary, folder.environment.request
    has_time_alone = saved.trials is None and saved.time_budget_seconds is not None
    asks = request.trials is not None or request.time_budget_seconds is not None
    if asks or not has_time_alone or summary.search is None or summary.test is None:
        return request
    return replace(request, trials=summary.search.trials)


def _check_excluded(path: Path, exclusion: Exclusion | None, folder: RunFolder) -> None:
    """Check that a run to resume still has the list of its excluded images.

    Raises:
        FolderError: it has lost names, and would take up these images.
    """
    data = folder.summary.data
    n_names = 0 if exclusion is None else len(exclusion.names)
    if data is not None and n_names != data.excluded_by_request:
        raise FolderError(
            f"{path} is damaged: it names {n_names} of the {data.excluded_by_request} images that"
            " were excluded; put a copy of it back, or begin a new run"
        )


def check_same_space(space_file: Path | None, folder: RunFolder) -> None:
    """Check that a run is resumed with the space that it began with.

    Args:
        space_file: The file that `--space` names. None checks the file that the run's own is a copy
            of: whoever changed it expects the changes to have an effect.
        folder: The run's folder.

    Raises:
        RequestError: a space differs; the message names the fields.
    """
    own = folder.path / "space.py"
    environment = folder.environment
    if environment.space_digest != digest(own):
        raise RequestError(
            f"{own} was changed since the run began, and its trials are of the space it was: undo"
            " the change, or begin a new run"
        )
    other = space_file or environment.request.space
    if space_file is None and not other.is_file():
        return
    before, now = load_space(own), load_space(other)
    changes = [
        f"{name} was {_shorten(getattr(before, name))} and is {_shorten(getattr(now, name))}"
        for name in (field.name for field in fields(Space))
        if getattr(before, name) != getattr(now, name)
    ]
    if changes:
        raise RequestError(
            f"{other} is not the space that {folder.path} began with: {'; '.join(changes)}. Undo"
            " the change, begin a new run, or resume with the space as it was: --space"
            f" {quote_path(own)}"
        )


def _shorten(value: Any) -> str:
    """Return a space's field as one short text."""
    text = str(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 300 else f"{text[:300]}…"
