"""Check a request and prepare its run, before anything costly starts.

Neither this module nor its imports load PyTorch or start Ray: a mistake is reported within a
second, and with a correct request both start in parallel to what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from search.console.downloads import DownloadDisplay
from search.console.formatting import quote_path
from search.data.exclusion import Exclusion, read_exclusion, write_exclusion
from search.data.manifest import Manifest
from search.data.scan import scan, scan_external
from search.pipeline.request import RequestError, load_requested_space, merge_with_saved
from search.runs.environment import Request
from search.runs.run_folder import ENVIRONMENT, RunFolder, digest
from search.runs.sync import fetch
from search.runs.validation import FolderError
from spaces.base import Space, load_space
from spaces.downloads import cache_folder
from trainables.models.weight_files import find_weights

_EXCLUDED_FILE = "excluded.csv"
"""In the run's folder: the names of the images that were excluded by request."""

_JOB_FOLDERS = "runtime_resources"
"""Part of the path of every folder that Ray makes for a job."""


@dataclass(frozen=True, eq=False)
class RunPlan:
    """A checked request and everything that the run begins with.

    Attributes:
        request: The request; that of a resumed run has the run's saved options filled in.
        space: The space with the command line's changes.
        manifest: The images.
        external: The external test set; None where there is none.
        weights: By backbone, the file of its pretrained weights.
        folder: The run's folder.
        n_excluded: Images that were excluded by request.
    """

    request: Request
    space: Space
    manifest: Manifest
    external: Manifest | None
    weights: dict[str, Path]
    folder: RunFolder
    n_excluded: int = 0


def prepare_run(request: Request) -> RunPlan:
    """Check a request, download what it needs, and create the run's folder.

    Raises:
        SpaceError, SourceError, DataError, WeightsError, FolderError, StorageError, RequestError:
            each with the rule, the value, and the way out.
    """
    check_output_path(request)
    check_paths(request)
    if request.shared is not None:
        request.shared.try_out()
    with _fetched(request):
        return _prepare(request)


def _prepare(request: Request) -> RunPlan:
    if request.resume is not None:
        folder, request, exclusion = _open_run(request, request.resume)
    else:
        folder = None
        _check_free(request)
        exclusion = None if request.exclude is None else read_exclusion(request.exclude)
    space = load_requested_space(request)
    cache = cache_folder()
    manifest = scan(
        space.source, request.data, cache, space.folds, request.limit, request.seed, exclusion
    )
    external = None
    if request.external is not None:
        external = scan_external(request.external, manifest.classes, exclusion)
    elif space.external is not None and request.data is None:
        found = space.external.open(None, cache)
        external = scan_external(found, manifest.classes, exclusion)
    weights = {}
    if space.weights == "pretrained":
        with DownloadDisplay() as display:
            weights = find_weights(space.backbones, request.weights, cache, show=display.show)
    if folder is None:
        folder = _create_run(request, exclusion)
    else:
        saved = folder.environment.request
        fixed = {name: getattr(saved, name) for name in ("space", "out", "name", "resume")}
        folder.save_request(replace(request.with_absolute_paths(), **fixed))
    n_excluded = 0 if exclusion is None else len(exclusion.names)
    return RunPlan(request, space, manifest, external, weights, folder, n_excluded)


@contextmanager
def _fetched(request: Request) -> Iterator[None]:
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


def _check_free(request: Request) -> None:
    """Check that the name of a new run is free, in the folder of all runs and in storage.

    Raises:
        FolderError: it is not, or no run can be created.
    """
    RunFolder.check_free(request.out, request.name)
    if request.shared is not None and request.shared.has(ENVIRONMENT):
        raise FolderError(
            f"there is a run called {request.name!r} in {request.storage}: give another --name, or"
            f" resume it with --resume {quote_path(request.folder)}"
            f" --storage {quote_path(str(request.storage))}"
        )
    # A run that is refused later is deleted there with its folder.
    if request.shared is not None and not request.shared.is_empty():
        raise FolderError(
            f"the folder {request.name!r} in {request.storage} must be empty or new, but it has"
            " files that are of no run: give another --name or --storage"
        )


def _open_run(request: Request, path: Path) -> tuple[RunFolder, Request, Exclusion | None]:
    """Open the run to resume; return it, its request with the changes, and its exclusion."""
    folder = RunFolder.open(path)
    if request.exclude is not None:
        raise RequestError(
            "a resumed run keeps its images, but --exclude would change them: omit the option, or"
            " begin a new run"
        )
    check_same_space(request.space if request.names_space else None, folder)
    excluded = path / _EXCLUDED_FILE
    exclusion = read_exclusion(excluded, must_exist=False) if excluded.is_file() else None
    request = merge_with_saved(request, folder.environment.request)
    if request.shared is not None:
        request.shared.try_out()
    return folder, request, exclusion


def _create_run(request: Request, exclusion: Exclusion | None) -> RunFolder:
    folder = RunFolder.create(request.out, request.name)
    try:
        folder.write_origin(request)
        if exclusion is not None:
            write_exclusion(folder.path / _EXCLUDED_FILE, exclusion)
    except BaseException:
        folder.delete()
        raise
    return folder


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
    """Check that the run's folder is not inside the temporary folder of a Ray job.

    Raises:
        RequestError: it would be removed with the job's folder.
    """
    if not request.folder.is_absolute() and _JOB_FOLDERS in Path.cwd().parts:
        option = "--resume" if request.resume else "--out"
        raise RequestError(
            f"{option} must be an absolute path in a Ray job, whose own folder is removed after it,"
            f" but got {request.resume or request.out}; give {option} such as"
            f" {Path.home() / 'results'}"
        )
