"""The pictures stage: what a run works on, from files to one shared table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from search.cluster.feature_cache_actor import BankPlan, store_bytes
from search.cluster.parallel import on_all_machines
from search.cluster.shared_file import share_file
from search.console.formatting import count
from search.console.progress import Progress
from search.data.audit import COPIES, UNUSED, Audit, Pictures, examine, sum_up, write_audit_csv
from search.data.class_folders import DataError
from search.data.exclusion import EXTERNAL
from search.data.manifest import Listing, check_counts
from search.data.packing import Packed, pack
from search.data.splits import OUT, read_split_csv, split, straddling, write_split_csv
from search.pipeline.preflight import Checked
from search.reporting.audit_page import MOST_PAIRS
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from spaces.base import Space
from trainables.trial import Bench, open_table

PICTURES_SHARE = 0.2
"""Of the smallest node's object store; more pictures than that are mapped from a file."""


@dataclass(frozen=True, eq=False)
class Material:
    """What a run works on, ready for trainings."""

    space: Space
    listing: Listing
    packed: Packed
    splits: np.ndarray
    """By table row, "train", "val", "test", or `splitting.OUT`."""
    external: tuple[Listing, Packed] | None
    bench: Bench
    plan: BankPlan | None = None
    external_twins: np.ndarray | None = None
    """By table row of the external pictures, whether one is a near-duplicate of the set's, and is
    no picture from elsewhere."""

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
        space.framing,
        budget_bytes=store_bytes(PICTURES_SHARE),
        overflow=(folder.path / "cache" / "pictures.npy").absolute(),
        send_files=request.address is not None,
    )
    outside = None
    if external is not None:
        outside = (
            external,
            pack(
                external,
                space.packed_size,
                lambda *_: None,
                space.image_size,
                space.framing,
                send_files=request.address is not None,
            ),
        )
    external_pictures = None if outside is None else _pictures(*outside)
    audit = examine(_pictures(listing, packed), external_pictures, space.flip, on_all_machines)
    # A run that is refused here is left as it was.
    splits, groups = _split(checked, packed, audit)
    _tell(audit, listing, packed, outside, space, folder, progress)
    table: Any = packed.table
    if isinstance(table, Path) and request.address is not None:
        table = share_file(table)
    bench = Bench(
        table=table,
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
        groups=groups,
    )
    material = Material(
        space, listing, packed, splits, outside, bench, external_twins=audit.external_twins
    )
    counts = {part: len(material.rows(part)) for part in ("train", "val", "test")}
    folder.note(
        "data",
        {
            "classes": list(listing.classes),
            "n": len(packed.kept),
            **counts,
            "out": int((splits == OUT).sum()),
            "left_out": len(packed.problems),
            "excluded": checked.n_excluded,
        },
    )
    progress.say(
        f"{len(packed.kept)} pictures of {len(listing.classes)} classes:"
        f" {counts['train']} to train, {counts['val']} to validate, {counts['test']} held out"
    )
    return material


def _tell(
    audit: Audit,
    listing: Listing,
    packed: Packed,
    outside: tuple[Listing, Packed] | None,
    space: Space,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Tell what was found in the pictures, and keep those of some pairs."""
    write_audit_csv(folder.path / "audit.csv", audit.problems)
    folder.note("audit", audit.as_json())
    unused = [problem for problem in audit.problems if problem.kind in UNUSED]
    if unused:
        shown = ", ".join(problem.name for problem in unused[:3])
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        progress.warn(
            f"{len(unused)} files are left out: {shown}{more} (see {folder.path / 'audit.csv'})"
        )
    if n_out := audit.count("left out"):
        progress.warn(
            f"{n_out} pictures are near-duplicates of test or validation pictures, and leave"
            f" training (see {folder.path / 'audit.csv'})"
        )
    progress.say(f"audit: {sum_up(audit)}")
    pairs = [problem for problem in audit.problems if problem.kind in COPIES][:MOST_PAIRS]
    wanted = {name for problem in pairs for name in (problem.name, problem.twin)}
    gallery = Gallery(folder.path)
    _keep(gallery, "data", wanted, listing, packed, space)
    if outside is not None:
        names = {n.removeprefix(EXTERNAL) for n in wanted if n.startswith(EXTERNAL)}
        _keep(gallery, "external", names, *outside, space)


def _keep(
    gallery: Gallery, part: str, wanted: set[str], listing: Listing, packed: Packed, space: Space
) -> None:
    rows = [row for row, i in enumerate(packed.kept) if listing.names[i] in wanted]
    if rows:
        table = open_table(packed.table, torch.device("cpu"))[rows].numpy()
        names = [listing.names[packed.kept[row]] for row in rows]
        gallery.keep(part, names, table, space.image_size)


def _pictures(listing: Listing, packed: Packed) -> Pictures:
    return Pictures(listing, packed.kept, packed.sketches, packed.problems)


def _split(checked: Checked, packed: Packed, audit: Audit) -> tuple[np.ndarray, np.ndarray]:
    """Divide the pictures; a run that is carried on keeps the split that it began with.

    Raises:
        DataError: a class is too small, or a run carried on finds other pictures.
    """
    request, space, listing, kept = checked.request, checked.space, checked.listing, packed.kept
    path = checked.folder.path / "split.csv"
    try:
        if path.exists():
            return read_split_csv(path, listing, kept, packed.digests)
        stays = ~straddling(listing, kept, audit.groups)
        check_counts(listing, kept[stays], space.folds, audit.groups[stays])
    except DataError as error:
        raise DataError(f"{error}{_unreadable(packed)}") from None
    splits = split(
        listing,
        kept,
        space.val_fraction,
        space.test_fraction,
        request.seed,
        space.folds,
        audit.groups,
    )
    write_split_csv(path, listing, kept, splits, audit.groups, packed.digests)
    return splits, audit.groups


def _unreadable(packed: Packed) -> str:
    """Return what is to be said of files that could not be read, where pictures are missing."""
    found = [problem for problem in packed.problems if problem.kind == "unreadable"]
    if not found:
        return ""
    return (
        f" ({count(len(found), 'file')} could not be read, such as {found[0].name}:"
        f" {found[0].detail}; python -m search.audit lists them all)"
    )
