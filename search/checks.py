"""All that can be wrong with a request is found here, before anything costly starts.

Nothing in this file, or behind its imports, loads PyTorch or starts Ray: a mistake is told in a
second, and a sound request goes on while both of them are still starting.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from search.folder import RunFolder
from search.listing import Listing, scan, scan_external
from search.request import Request, load_requested_space
from spaces.base import Space
from trainables.weights import find_weights


@dataclass(frozen=True, eq=False)
class Checked:
    """A request that can be carried out.

    Attributes:
        request: As asked; one that carries a run on has that run's own settings filled in.
        space: With what the command line changes in it.
        listing: The pictures.
        external: The external pictures, if there are any.
        weights: By backbone, the file of its pretrained weights.
        folder: Of the run.
    """

    request: Request
    space: Space
    listing: Listing
    external: Listing | None
    weights: dict[str, Path]
    folder: RunFolder


def check(request: Request) -> Checked:
    """Check a request, fetch what has to be downloaded, and make the run's folder.

    Raises:
        SpaceError, SourceError, DataError, WeightsError, FolderError: each says the rule, the
            value, and the way out.
    """
    folder = RunFolder.open(request.resume) if request.resume else None
    if folder is not None:
        request = request.carrying_on(folder.environment["request"])
    else:
        RunFolder.check_free(request.out, request.name)
    space = load_requested_space(request)
    cache = cache_folder()
    listing = scan(space.source, request.data, cache, space.folds, request.limit, request.seed)
    external = None
    if request.external is not None:
        external = scan_external(request.external, listing.classes)
    elif space.external is not None and request.data is None:
        external = scan_external(space.external.open(None, cache), listing.classes)
    weights = {}
    if space.weights == "pretrained":
        weights = find_weights(space.backbones, request.weights, cache)
    if folder is None:
        folder = RunFolder.create(request.out, request.name)
        folder.write_origin(request.space, request.as_json())
    return Checked(request, space, listing, external, weights, folder)


def cache_folder() -> Path:
    """Return where downloads are kept: $CLASSIFIER_SEARCH_CACHE, or a folder of the user's."""
    default = Path.home() / ".cache" / "classifier-search"
    return Path(os.environ.get("CLASSIFIER_SEARCH_CACHE", default))
