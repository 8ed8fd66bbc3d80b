"""Check a request and prepare its run, before anything costly starts.

Neither this module nor its imports load PyTorch or start Ray: a mistake is reported within a
second, and with a correct request both start in parallel to what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from search.console.commands import version
from search.data.decoding import read_headers
from search.data.exclusion import Exclusion, read_exclusion, write_exclusion
from search.data.manifest import Manifest
from search.data.scan import scan, scan_external
from search.pipeline.backbones.available import Available, find_available
from search.pipeline.backbones.selection import taking_part, with_decided_views
from search.pipeline.request import (
    DEFAULT_SPACE,
    RequestError,
    check_output_path,
    check_paths,
    find_own_modules,
    load_requested_space,
    with_table,
)
from search.pipeline.resume import EXCLUDED_FILE, check_free, check_storage, fetched, open_run
from search.reporting.trackers.choice import check_study, check_trackers
from search.runs.environment import Request
from search.runs.run_folder import RunFolder
from search.runs.validation import FolderError
from search.runs.warm_start import read_warm_start, write_warm_start
from search.tuning.study import load_study, ranked_trials
from spaces.archives import open_folder
from spaces.base import Space, shipped_spaces
from spaces.downloads import cache_folder
from spaces.first_trials import Config, unique

if TYPE_CHECKING:
    from search.tuning.tune import Callback

_SMALL_SIZE = 64
"""Side in pixels up to which a space is one for small images. Larger ones take photos of any size,
which are resized for them."""
_MAX_SHRINKING = 2.0
"""How many times larger than such a space's images others may be: at 2 a quarter of the pixels is
left."""
_SMALL_NETWORKS = frozenset(("tinynet", "cnn"))
"""Backbones for small images: what they were pretrained on, if at all, are grayscale glyphs."""

N_WARM_START = 3
"""Configurations of each run that `--warm-start` names: the best ones are often alike."""

_FOR_PHOTOS = f"omit --space, or use --space {DEFAULT_SPACE}"


@dataclass(frozen=True, eq=False)
class RunPlan:
    """A checked request and everything that the run begins with.

    Attributes:
        request: The request; that of a resumed run has the run's saved options filled in.
        space: The space with the command line's changes, and the backbones that are searched.
        manifest: The images.
        external: The external test set; None where there is none.
        available: The backbones that the command asks for, and their weights.
        folder: The run's folder.
        n_excluded: Images that were excluded by request.
        warnings: What is likely a mistake, though the run goes on.
        callbacks: Callbacks for Ray Tune, beside the run's own.
        modules: By name, the source texts of modules that build backbones of the user's own.
        warm_start: Configurations of earlier runs, which may lie outside the space.
    """

    request: Request
    space: Space
    manifest: Manifest
    external: Manifest | None
    available: Available
    folder: RunFolder
    n_excluded: int = 0
    warnings: tuple[str, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    warm_start: tuple[Config, ...] = ()

    @property
    def weights(self) -> Mapping[str, Path]:
        """By backbone, the file of its pretrained weights."""
        return self.available.weights

    @property
    def backbones(self) -> list[str]:
        """Those that are searched, and those whose linear probes alone take part."""
        return taking_part(self.space, self.folder.summary.linear_probe or {})

    def accept(self) -> None:
        """Save a resumed run's options: nothing can refuse them any more."""
        if self.request.resume is not None:
            _write_modules(self.folder, self.modules)
            saved = self.folder.environment.request
            fixed = {name: getattr(saved, name) for name in ("space", "out", "name", "resume")}
            counts = self.folder.summary.search
            if saved.has_open_end and counts is not None and self.request.trials == counts.trials:
                fixed["trials"] = None  # more time, another time, is time for more trials
            self.folder.save_request(replace(self.request.with_absolute_paths(), **fixed))


def _cannot_lock(_folder: Path) -> bool:
    return False


def prepare_run(request: Request, hold: Callable[[Path], bool] = _cannot_lock) -> RunPlan:
    """Check a request, download what it needs, and create the run's folder.

    Args:
        request: The request.
        hold: Takes the lock of a new run's folder, and returns whether its file system can lock:
            without locks the name of a run that was killed before its first result stays taken.
            Raises `FolderError` where another command has it.

    Raises:
        SpaceError, SourceError, DataError, WeightsError, FolderError, StorageError, RequestError,
        TrackerError, DatabaseError:
            each with the rule, the value, and the way out.
    """
    check_output_path(request)
    check_paths(request)
    if request.shared is not None:
        request.shared.try_out()
    with fetched(request):
        return _prepare(request, hold)


def _prepare(request: Request, hold: Callable[[Path], bool]) -> RunPlan:
    used_again = False
    if request.resume is not None:
        folder, request, exclusion = open_run(request, request.resume)
    else:
        folder = None
        used_again = check_free(request, hold)
        exclusion = None if request.exclude is None else read_exclusion(request.exclude)
    warm_start = read_warm_start(folder.path) if folder is not None else _best_configs(request)
    check_trackers(request)
    if folder is not None:
        check_study(request, folder.environment)
    request = with_table(request)
    space = load_requested_space(request)
    request = replace(request, metric=space.metric)  # on resuming, that one may be named again
    if folder is not None:
        space = with_decided_views(space, folder.summary)
    modules = find_own_modules(request, space)
    cache = cache_folder()
    manifest = scan(
        space.source, request.data, cache, space.folds, request.limit, request.seed, exclusion
    )
    warnings = () if folder is not None else check_fit(request, space, manifest)
    if used_again:
        warnings = (f"{request.folder}, which had no result, is used again", *warnings)
    external, chosen = None, request.classes is not None
    if request.external is not None:
        found = open_folder(request.external, cache, "--external")
        external = scan_external(found, manifest.classes, exclusion, None, chosen)
    elif space.external is not None and request.data is None:
        found_source = space.external.open(None, cache)
        table = space.external.table
        external = scan_external(found_source, manifest.classes, exclusion, table, chosen)
    recorded = None if folder is None else folder.summary.linear_probe
    available = find_available(space, request, recorded, cache)
    if folder is None:
        folder = RunFolder(request.folder)
        if not used_again:
            folder = RunFolder.create(request.out, request.name, renames=not request.names_run)
            hold(folder.path)
        request = _begin_run(folder, request, exclusion, modules, warm_start)
    return RunPlan(
        request,
        available.space,
        manifest,
        external,
        available,
        folder,
        n_excluded=0 if exclusion is None else len(exclusion.names),
        warnings=warnings,
        modules=modules,
        warm_start=warm_start,
    )


def _best_configs(request: Request) -> tuple[Config, ...]:
    """Return the best configurations of the runs that `--warm-start` names, run by run.

    Raises:
        FolderError: one is not the folder of a run in which a trial has ended an epoch.
    """
    found: list[Config] = []
    for name in request.warm_start or ():
        folder = RunFolder.open(Path(name))
        study, settings = load_study(folder.path), folder.summary.settings
        ranked = [] if study is None else ranked_trials(study)
        if not ranked:
            raise FolderError(f"{name} has no trial to begin with: give a run that has ended")
        constants = {} if settings is None else settings.constants
        different = unique([{**constants, **trial.params} for trial in ranked])
        found += different[:N_WARM_START]
    return tuple(found)


def _write_modules(folder: RunFolder, modules: Mapping[str, str]) -> None:
    """Write copies of the modules of the user's own networks."""
    for name, source in modules.items():
        (folder.path / f"{name}.py").write_text(source, encoding="utf-8")


def _begin_run(
    folder: RunFolder,
    request: Request,
    exclusion: Exclusion | None,
    modules: Mapping[str, str],
    warm_start: Sequence[Config],
) -> Request:
    """Write what a run begins with; return its request with the name that was free."""
    try:
        request = replace(request, name=folder.path.name)
        check_storage(request)
        if request.shared is not None:
            request.shared.delete()
        folder.clear()
        folder.write_origin(request, version())
        check_study(request, folder.environment)
        if exclusion is not None:
            write_exclusion(folder.path / EXCLUDED_FILE, exclusion)
        if warm_start:
            write_warm_start(folder.path, warm_start)
        _write_modules(folder, modules)
    except BaseException:
        folder.delete()
        raise
    return request


def check_fit(request: Request, space: Space, manifest: Manifest) -> tuple[str, ...]:
    """Check that a space for small images is not used for photos, by some files' headers.

    What a user has decided, in a space file or by an option, is warned about at most.

    Args:
        request: The request.
        space: Its space, with the command line's changes.
        manifest: The images.

    Returns:
        Warnings.

    Raises:
        RequestError: a space of this package would make the images too small.
    """
    is_small = space.image_size <= _SMALL_SIZE and request.image_size is None
    has_small_networks = _SMALL_NETWORKS.issuperset(space.backbones) and request.backbones is None
    if request.data is None or manifest.paths is None or not (is_small or has_small_networks):
        return ()
    headers = read_headers(manifest.paths)
    if not headers:
        return ()
    warnings = []
    file = request.space.resolve()
    shipped = next((n for n, path in shipped_spaces().items() if path.resolve() == file), None)
    side = median(min(size) for size, _ in headers)
    if is_small and side > _MAX_SHRINKING * space.image_size:
        problem = (
            f"the space {shipped or request.space} shows {space.image_size} × {space.image_size}"
            f" pixels to a network, but the images in {request.data} are much larger (typically"
            f" {side:.0f} pixels on the shorter side), and little of them would be left"
        )
        if shipped:
            raise RequestError(f"{problem}: {_FOR_PHOTOS}, or give --image-size, such as 224")
        warnings.append(f"{problem}; give --image-size, or change image_size in the space")
    if shipped and has_small_networks and mean(colour for _, colour in headers) > 0.5:
        warnings.append(
            f"the space {shipped} has networks for small grayscale images only, but the images in"
            f" {request.data} are in colour: {_FOR_PHOTOS}, which has networks pretrained on photos"
        )
    return tuple(warnings)
