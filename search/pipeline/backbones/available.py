"""Find the backbones that a run can search: those that have weights, and did not leave it before.

Neither this module nor its imports load PyTorch or start Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from search.console.downloads import DownloadDisplay
from search.pipeline.backbones.selection import narrow_space, taking_part
from search.runs.environment import Request
from search.runs.summary import ProbeScore
from spaces.base import Space
from spaces.portfolio import AUTO, is_portfolio
from trainables.pretrained.weight_files import (
    Reason,
    find_available_weights,
    unavailable_weights,
)


@dataclass(frozen=True)
class Available:
    """The backbones that a command asks for, and their weights.

    Attributes:
        requested: The space with all of them.
        space: The space without those that have no weights, or left it in an earlier session.
            Of the latter, `weights` has those whose linear probes are finalists.
        weights: By backbone, the file of its pretrained weights.
        unavailable: By backbone of the portfolio that has no weights, what returns why.
    """

    requested: Space
    space: Space
    weights: dict[str, Path] = field(default_factory=dict)
    unavailable: dict[str, Reason] = field(default_factory=dict)


def find_available(
    space: Space, request: Request, recorded: Mapping[str, ProbeScore] | None, cache: Path
) -> Available:
    """Find or download the weights of a space's backbones.

    Who names backbones wants those; of the portfolio, what is at hand is enough.

    Args:
        space: The space with the command line's changes.
        request: The command line.
        recorded: What a run that is resumed knows of its backbones: those that left it are not
            searched, and need no weights. None where it does not know yet.
        cache: The folder of downloads.

    Raises:
        WeightsError: weights that are needed are unavailable.
    """
    requested = space
    is_optional = request.backbones == (AUTO,) or is_portfolio(space.backbones)
    if recorded is not None:
        # A file that is gone from `--weights` is missed, and its backbone not silently left out.
        searched = [name for name, score in recorded.items() if score.excluded is None]
        if lost := [name for name in searched if name not in space.backbones]:
            space = requested = space.with_backbones([*space.backbones, *lost])
        space = narrow_space(space, recorded, all_scored=is_optional)
        is_optional = False
    if space.weights != "pretrained":
        return Available(requested, space)
    with DownloadDisplay() as display:
        weights, unavailable = find_available_weights(
            taking_part(space, recorded or {}), request.weights, cache, show=display.show
        )
    if unavailable and not (weights and is_optional):
        raise unavailable_weights(unavailable, request.weights)
    return Available(requested, space.without_backbones(unavailable), weights, unavailable)
