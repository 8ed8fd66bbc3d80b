"""The images stage: what a run works on, from files to one shared table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from search.cluster.feature_cache_actor import FeatureCachePlan, store_bytes
from search.cluster.parallel import on_all_nodes
from search.cluster.shared_file import share_file
from search.console.formatting import count
from search.console.progress import Progress
from search.data.audit import COPIES, UNUSED, Audit, Images, examine, sum_up, write_audit_csv
from search.data.class_folders import DataError
from search.data.exclusion import EXTERNAL
from search.data.manifest import Manifest, check_counts
from search.data.packing import DecodedImages, pack
from search.data.splits import OUT, leaks_into_holdout, read_split_csv, split, write_split_csv
from search.pipeline.preflight import RunPlan
from search.reporting.audit_page import MAX_PAIRS
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from spaces.base import Space
from trainables.worker import TrainingContext, open_table

IMAGES_FRACTION = 0.2
"""Of the smallest node's object store; more images than that are mapped from a file."""


@dataclass(frozen=True, eq=False)
class PreparedData:
    """What a run works on, ready for trainings."""

    space: Space
    manifest: Manifest
    decoded: DecodedImages
    splits: np.ndarray
    """By table row, "train", "val", "test", or `splitting.OUT`."""
    external: tuple[Manifest, DecodedImages] | None
    context: TrainingContext
    plan: FeatureCachePlan | None = None
    external_near_duplicates: np.ndarray | None = None
    """By table row of the external images, whether one is a near-duplicate of the set's, and is
    no image from elsewhere."""

    def rows(self, *splits: str) -> np.ndarray:
        """Return the table rows of some splits, ascending."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the names of images, given by their table rows."""
        return [self.manifest.names[self.decoded.kept[row]] for row in rows]


def pack_images(
    run_plan: RunPlan, weights: Mapping[str, Mapping[str, Tensor]], progress: Progress
) -> PreparedData:
    """Decode, audit and split the images, and put all that trainings share into the store.

    Raises:
        DataError: too few images could be read, or a run carried on finds other images.
    """
    request, space, folder = run_plan.request, run_plan.space, run_plan.folder
    manifest, external = run_plan.manifest, run_plan.external
    n_images = len(manifest.names) + (len(external.names) if external else 0)
    progress.begin("images", n_images, "images")
    decoded = pack(
        manifest,
        space.cache_size,
        progress.advance,
        space.image_size,
        space.resize_mode,
        budget_bytes=store_bytes(IMAGES_FRACTION),
        overflow=(folder.path / "cache" / "images.npy").absolute(),
        send_files=request.address is not None,
    )
    outside = None
    if external is not None:
        outside = (
            external,
            pack(
                external,
                space.cache_size,
                lambda *_: None,
                space.image_size,
                space.resize_mode,
                send_files=request.address is not None,
            ),
        )
    external_images = None if outside is None else _images(*outside)
    audit = examine(_images(manifest, decoded), external_images, space.flip, on_all_nodes)
    # A run that is refused here is left as it was.
    splits, groups = _split(run_plan, decoded, audit)
    _tell(audit, manifest, decoded, outside, space, folder, progress)
    table: Any = decoded.table
    if isinstance(table, Path) and request.address is not None:
        table = share_file(table)
    context = TrainingContext(
        table=table,
        labels=manifest.labels[decoded.kept],
        n_classes=len(manifest.classes),
        image_size=space.image_size,
        flip=space.flip,
        weights={name: ray.put(dict(state)) for name, state in weights.items()},
        n_views=space.views,
        feature_cache=None,
        heads={},
        epochs=space.epochs,
        patience=space.patience,
        seed=request.seed,
        groups=groups,
    )
    prepared = PreparedData(
        space,
        manifest,
        decoded,
        splits,
        outside,
        context,
        external_near_duplicates=audit.external_near_duplicates,
    )
    counts = {part: len(prepared.rows(part)) for part in ("train", "val", "test")}
    folder.note(
        "data",
        {
            "classes": list(manifest.classes),
            "n": len(decoded.kept),
            **counts,
            "out": int((splits == OUT).sum()),
            "left_out": len(decoded.problems),
            "excluded": run_plan.n_excluded,
        },
    )
    progress.say(
        f"{len(decoded.kept)} images of {len(manifest.classes)} classes:"
        f" {counts['train']} to train, {counts['val']} to validate, {counts['test']} held out"
    )
    return prepared


def _tell(
    audit: Audit,
    manifest: Manifest,
    decoded: DecodedImages,
    outside: tuple[Manifest, DecodedImages] | None,
    space: Space,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Tell what was found in the images, and keep those of some pairs."""
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
            f"{n_out} images are near-duplicates of test or validation images, and leave"
            f" training (see {folder.path / 'audit.csv'})"
        )
    progress.say(f"audit: {sum_up(audit)}")
    pairs = [problem for problem in audit.problems if problem.kind in COPIES][:MAX_PAIRS]
    wanted = {name for problem in pairs for name in (problem.name, problem.duplicate_of)}
    gallery = Gallery(folder.path)
    _keep(gallery, "data", wanted, manifest, decoded, space)
    if outside is not None:
        names = {n.removeprefix(EXTERNAL) for n in wanted if n.startswith(EXTERNAL)}
        _keep(gallery, "external", names, *outside, space)


def _keep(
    gallery: Gallery,
    part: str,
    wanted: set[str],
    manifest: Manifest,
    decoded: DecodedImages,
    space: Space,
) -> None:
    rows = [row for row, i in enumerate(decoded.kept) if manifest.names[i] in wanted]
    if rows:
        table = open_table(decoded.table, torch.device("cpu"))[rows].numpy()
        names = [manifest.names[decoded.kept[row]] for row in rows]
        gallery.keep(part, names, table, space.image_size)


def _images(manifest: Manifest, decoded: DecodedImages) -> Images:
    return Images(manifest, decoded.kept, decoded.thumbnails, decoded.problems)


def _split(
    run_plan: RunPlan, decoded: DecodedImages, audit: Audit
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the images; a run that is carried on keeps the split that it began with.

    Raises:
        DataError: a class is too small, or a run carried on finds other images.
    """
    request, space, manifest, kept = (
        run_plan.request,
        run_plan.space,
        run_plan.manifest,
        decoded.kept,
    )
    path = run_plan.folder.path / "split.csv"
    try:
        if path.exists():
            return read_split_csv(path, manifest, kept, decoded.digests)
        stays = ~leaks_into_holdout(manifest, kept, audit.groups)
        check_counts(manifest, kept[stays], space.folds, audit.groups[stays])
    except DataError as error:
        raise DataError(f"{error}{_unreadable(decoded)}") from None
    splits = split(
        manifest,
        kept,
        space.val_fraction,
        space.test_fraction,
        request.seed,
        space.folds,
        audit.groups,
    )
    write_split_csv(path, manifest, kept, splits, audit.groups, decoded.digests)
    return splits, audit.groups


def _unreadable(decoded: DecodedImages) -> str:
    """Return what is to be said of files that could not be read, where images are missing."""
    found = [problem for problem in decoded.problems if problem.kind == "unreadable"]
    if not found:
        return ""
    return (
        f" ({count(len(found), 'file')} could not be read, such as {found[0].name}:"
        f" {found[0].detail}; python -m search.audit lists them all)"
    )
