"""All that can be wrong with a request is found here, before anything costly starts.

Nothing in this file, or behind its imports, loads PyTorch or starts Ray: a mistake is told in a
second, and a sound request goes on while both of them are still starting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from search.data.exclusion import read_exclusion, write_exclusion
from search.data.manifest import Manifest, scan, scan_external
from search.pipeline.request import Request, RequestError, load_requested_space
from search.runs.run_folder import RunFolder, digest
from search.runs.sync import fetch
from spaces.base import Space, load_space
from trainables.models.weights import find_weights

_JOB_FOLDERS = "runtime_resources"
"""Part of the path of every folder that Ray makes for a job."""


@dataclass(frozen=True, eq=False)
class RunPlan:
    """A request that can be carried out.

    Attributes:
        request: As asked; one that carries a run on has that run's own settings filled in.
        space: With what the command line changes in it.
        manifest: The images.
        external: The external images, if there are any.
        weights: By backbone, the file of its pretrained weights.
        folder: Of the run.
        n_excluded: Images left out on request.
    """

    request: Request
    space: Space
    manifest: Manifest
    external: Manifest | None
    weights: dict[str, Path]
    folder: RunFolder
    n_excluded: int = 0


EXCLUDED = "excluded.csv"
"""In the run's folder: the names of the images left out on request."""


def check(request: Request) -> RunPlan:
    """Check a request, fetch what has to be downloaded, and make the run's folder.

    Raises:
        SpaceError, SourceError, DataError, WeightsError, FolderError, StorageError, RequestError:
            each says the rule, the value, and the way out.
    """
    check_output_path(request)
    if request.shared is not None:
        request.shared.try_out()
        if request.resume is not None and not request.resume.exists():
            fetch(request.shared, request.resume)
    folder = RunFolder.open(request.resume) if request.resume else None
    exclusion = None if request.exclude is None else read_exclusion(request.exclude)
    kept: dict[str, Any] = {}
    if folder is not None:
        if exclusion is not None:
            raise RequestError(
                "a run that is carried on keeps its images, but --exclude would change them:"
                " leave it out, or begin a new run"
            )
        kept = folder.environment["request"]
        check_same_space(request.space if request.names_space else None, folder)
        excluded = folder.path / EXCLUDED
        exclusion = read_exclusion(excluded, must_exist=False) if excluded.is_file() else None
        request = request.merge_with_saved(kept)
        if request.shared is not None:
            request.shared.try_out()
    else:
        RunFolder.check_free(request.out, request.name)
    space = load_requested_space(request)
    if folder is not None and "resize_mode" not in folder.summary.get(
        "settings", {"resize_mode": None}
    ):
        space = replace(space, resize_mode="crop")  # it began when there was no other
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
        weights = find_weights(space.backbones, request.weights, cache)
    if folder is None:
        folder = RunFolder.create(request.out, request.name)
        try:
            folder.write_origin(request.space, request.as_json())
            if exclusion is not None:
                write_exclusion(folder.path / EXCLUDED, exclusion)
        except BaseException:
            folder.discard()
            raise
    else:
        fixed = ("space", "out", "name", "resume")
        folder.remember(request.as_json() | {name: kept[name] for name in fixed})
    n_excluded = 0 if exclusion is None else len(exclusion.names)
    return RunPlan(request, space, manifest, external, weights, folder, n_excluded)


def check_same_space(asked: Path | None, folder: RunFolder) -> None:
    """Check that a run is carried on with the space that it began with.

    Args:
        asked: The space file that the command line names. None looks at the file that the run's
            own is a copy of: who changed it would not want the changes to be passed over.
        folder: Of the run.

    Raises:
        RequestError: a space differs; the message names what does.
    """
    own = folder.path / "space.py"
    environment = folder.environment
    if environment.get("space_digest", digest(own)) != digest(own):
        raise RequestError(
            f"{own} was changed since the run began, and its trials are of the space it was: undo"
            " the change, or begin a new run"
        )
    other = asked or Path(environment["request"]["space"])
    if asked is None and not other.is_file():
        return
    began, now = load_space(own), load_space(other)
    changed = [
        f"{name} was {shown(getattr(began, name))} and is {shown(getattr(now, name))}"
        for name in (field.name for field in fields(Space))
        if getattr(began, name) != getattr(now, name)
    ]
    if changed:
        raise RequestError(
            f"{other} is not the space that {folder.path} began with: {'; '.join(changed)}."
            f" Undo the change, begin a new run, or carry on with the space as it was: --space"
            f" {own}"
        )


def shown(value: object) -> str:
    """Return a space's field as one short text."""
    text = str(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def check_output_path(request: Request) -> None:
    """Check that what a run makes stays where it is put.

    Raises:
        RequestError: it would go away with the folder that a Ray job runs in.
    """
    if not request.folder.is_absolute() and _JOB_FOLDERS in Path.cwd().parts:
        option = "--resume" if request.resume else "--out"
        raise RequestError(
            f"{option} must be an absolute path in a Ray job, whose own folder is removed after it,"
            f" but got {request.resume or request.out}; give {option} such as"
            f" {Path.home() / 'results'}"
        )


def cache_folder() -> Path:
    """Return where downloads are kept: $CLASSIFIER_SEARCH_CACHE, or a folder of the user's."""
    default = Path.home() / ".cache" / "classifier-search"
    return Path(os.environ.get("CLASSIFIER_SEARCH_CACHE", default))
