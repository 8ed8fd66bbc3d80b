"""The pictures stage: what a run works on, from files to one shared table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import ray
from torch import Tensor

from search.banks import BankPlan, store_bytes
from search.checks import Checked
from search.dataset import Packed, pack, split, write_audit_csv, write_split_csv
from search.folder import RunFolder
from search.layout import DataError
from search.listing import Listing, check_counts
from search.progress import Progress
from spaces.base import Space
from trainables.trial import Bench

PICTURES_SHARE = 0.3
"""Of the smallest node's object store; more pictures than that are mapped from a file."""


@dataclass(frozen=True, eq=False)
class Material:
    """What a run works on, ready for trainings."""

    space: Space
    listing: Listing
    packed: Packed
    splits: np.ndarray
    """By table row, "train", "val" or "test"."""
    external: tuple[Listing, Packed] | None
    bench: Bench
    plan: BankPlan | None = None

    def rows(self, *splits: str) -> np.ndarray:
        """Return the table rows of some splits, ascending."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the names of pictures, given by their table rows."""
        return [self.listing.names[self.packed.kept[row]] for row in rows]


def pack_pictures(
    checked: Checked, weights: Mapping[str, Mapping[str, Tensor]], progress: Progress
) -> Material:
    """Decode, audit and split the pictures, and put all that trainings share into the store.

    Raises:
        DataError: too few pictures could be read, or a run carried on finds other pictures.
    """
    request, space, folder = checked.request, checked.space, checked.folder
    listing, external = checked.listing, checked.external
    n_pictures = len(listing.names) + (len(external.names) if external else 0)
    progress.begin("pictures", n_pictures, "pictures")
    packed = pack(
        listing,
        space.packed_size,
        progress.advance,
        space.image_size,
        budget_bytes=store_bytes(PICTURES_SHARE),
        overflow=(folder.path / "cache" / "pictures.npy").absolute(),
    )
    write_audit_csv(folder.path / "audit.csv", packed.problems)
    if packed.problems:
        shown = ", ".join(problem.name for problem in packed.problems[:3])
        more = f" and {len(packed.problems) - 3} more" if len(packed.problems) > 3 else ""
        progress.warn(
            f"{len(packed.problems)} files are left out: {shown}{more}"
            f" (see {folder.path / 'audit.csv'})"
        )
    check_counts(listing, packed.kept, space.folds)
    splits = split(
        listing, packed.kept, space.val_fraction, space.test_fraction, request.seed, space.folds
    )
    _write_split(folder, listing, packed, splits)
    outside = None
    if external is not None:
        outside = (external, pack(external, space.packed_size, lambda *_: None, space.image_size))
    bench = Bench(
        table=packed.table,
        labels=listing.labels[packed.kept],
        n_classes=len(listing.classes),
        image_size=space.image_size,
        flip=space.flip,
        weights={name: ray.put(dict(state)) for name, state in weights.items()},
        n_views=space.views,
        banks=None,
        heads={},
        epochs=space.epochs,
        patience=space.patience,
        seed=request.seed,
    )
    material = Material(space, listing, packed, splits, outside, bench)
    counts = {part: len(material.rows(part)) for part in ("train", "val", "test")}
    folder.note(
        "data",
        {
            "classes": list(listing.classes),
            "n": len(packed.kept),
            **counts,
            "left_out": len(packed.problems),
        },
    )
    progress.say(
        f"{len(packed.kept)} pictures of {len(listing.classes)} classes:"
        f" {counts['train']} to train, {counts['val']} to validate, {counts['test']} held out"
    )
    return material


def _write_split(folder: RunFolder, listing: Listing, packed: Packed, splits: np.ndarray) -> None:
    """Write `split.csv`; a run that is carried on must find the one that it began with."""
    path = folder.path / "split.csv"
    if not path.exists():
        write_split_csv(path, listing, packed.kept, splits)
        return
    fresh = path.with_name("split.csv.partial")
    write_split_csv(fresh, listing, packed.kept, splits)
    old, new = (set(p.read_bytes().splitlines()) for p in (path, fresh))
    fresh.unlink()
    if old != new:
        changed = sorted(line.decode(errors="replace") for line in old ^ new)
        raise DataError(
            f"the pictures are not those that the run began with: {len(changed)} lines of"
            f" {path} differ, such as {changed[0]!r}; give back the pictures, or begin a new run"
        )
