"""The data stage: decode, audit and split the images, and share them with all workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from search.cluster.nodes import object_store_bytes
from search.cluster.parallel import ray_map
from search.cluster.shared_file import MappedFile, StoredObject, share_file
from search.console.formatting import count
from search.console.progress import Progress
from search.data.audit import DUPLICATES, UNUSED, Audit, audit_images, summarize, write_audit_csv
from search.data.decoding import DecodedImages, ResizeSpec, decode_images
from search.data.exclusion import EXTERNAL
from search.data.image_files import DataError
from search.data.manifest import check_counts
from search.data.splits import EXCLUDED, leaks_into_holdout, read_split_csv, split, write_split_csv
from search.evaluation.sample_size import ClassCounts, few_images_warnings
from search.pipeline.preflight import RunPlan
from search.reporting.examples import MAX_DUPLICATES
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from search.runs.summary import DataCounts
from spaces.base import Space
from trainables.images import ImageRows, as_tensor
from trainables.models.classifier import Weights
from trainables.worker import FeatureContext, FeatureSource, SharedArray, TrainingContext

IMAGES_FRACTION = 0.2
"""Fraction of the smallest node's object store; more images than that are mapped from a file."""


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The decoded images of a run, split and shared with all workers.

    Attributes:
        space: The space, with the command line's changes.
        images: The n decoded images; their positions are the rows of the shared table.
        splits: [n] of "train", "val", "test" or `splits.EXCLUDED`.
        groups: int64 [n]; images of equal numbers stay together: near-duplicates, and given groups.
        external: The m decoded images of the external test set; None where there is none.
        external_near_duplicates: bool [m], which of these are near-duplicates of the images above.
        features: The shared table and, once they are chosen, the pretrained backbones.
    """

    space: Space
    images: DecodedImages
    splits: np.ndarray
    groups: np.ndarray
    external: DecodedImages | None
    external_near_duplicates: np.ndarray
    features: FeatureContext

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.images.manifest.classes

    @property
    def table(self) -> Tensor:
        """The images in the driver's memory, uint8 [n, S, S, 3]; they must not be written to."""
        return as_tensor(self.images.pixels)

    def rows(self, *splits: str) -> np.ndarray:
        """Return the table rows of some splits, ascending."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def count_evaluated(self) -> int:
        """Count the test images and the external ones."""
        n_external = 0 if self.external is None else len(self.external)
        return len(self.rows("test")) + n_external

    def class_counts(self) -> ClassCounts:
        """Count the images of each class in each split."""
        return {
            name: Counter(self.splits[self.images.labels == label].tolist())
            for label, name in enumerate(self.classes)
        }

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the names of images, given by their table rows."""
        return [self.images.names[row] for row in rows]

    def image_rows(self, rows: np.ndarray) -> ImageRows:
        """Return some of the images, which are read only when they are used."""
        return ImageRows(self.table, as_tensor(rows))

    def training_context(
        self, heads: Mapping[str, Weights], feature_source: FeatureSource | None
    ) -> TrainingContext:
        """Return what all trainings have in common.

        Args:
            heads: By backbone, the linear probe's head.
            feature_source: Source of cached features.
        """
        return TrainingContext(
            **vars(self.features),
            labels=self.images.labels,
            n_classes=len(self.classes),
            epochs=self.space.epochs,
            patience=self.space.patience,
            metric=self.space.metric,
            heads=heads,
            feature_source=feature_source,
            groups=self.groups,
        )


def prepare_data(run_plan: RunPlan, progress: Progress) -> PreparedData:
    """Decode, audit and split the images, and share them with all workers.

    Writes `split.csv`, `audit.csv`, images of near-duplicates, and the summary's sections `data`
    and `audit`.

    Raises:
        DataError: too few images could be read, or a resumed run finds other images.
    """
    request, space, folder = run_plan.request, run_plan.space, run_plan.folder
    external = run_plan.external
    progress.begin("data", len(run_plan.manifest.names), "images")
    resize = ResizeSpec(space.cache_size, space.image_size, space.resize_mode)
    on_cluster = request.address is not None
    n_bytes = len(run_plan.manifest.names) * 3 * space.cache_size**2
    mapped_file = None
    if n_bytes > object_store_bytes(IMAGES_FRACTION):
        mapped_file = (folder.path / "cache" / "images.npy").absolute()
    images = decode_images(
        run_plan.manifest,
        resize,
        ray_map,
        progress.advance,
        mapped_file=mapped_file,
        send_files=on_cluster,
    )
    external_images = None
    if external is not None:
        external_images = decode_images(
            external, resize, ray_map, send_files=on_cluster, levels=images.levels
        )
        if not len(external_images):
            raise DataError(
                "--external must hold images, but none of its files can be used"
                f"{_unreadable(external_images)}: give another folder, or omit the option"
            )
    audit = audit_images(images, external_images, space.flip, ray_map)
    splits, groups = _split(run_plan, images, audit)  # an error leaves the folder as it was
    _report_audit(audit, folder, progress)
    with progress.tolerating("the gallery of near-duplicates"):
        _save_duplicates(audit, images, external_images, space, folder)
    table = _share(images, mapped_file, on_cluster)
    prepared = PreparedData(
        space=space,
        images=replace(images, pixels=table.open()),  # one copy in memory, the shared one
        splits=splits,
        groups=groups,
        external=external_images,
        external_near_duplicates=audit.external_near_duplicates,
        features=FeatureContext(
            table=table,
            image_size=space.image_size,
            flip=space.flip,
            weights={},
            seed=request.seed,
            modules=run_plan.modules,
        ),
    )
    _report_counts(prepared, run_plan, progress)
    return prepared


def _share(images: DecodedImages, mapped_file: Path | None, on_cluster: bool) -> SharedArray:
    if mapped_file is None:
        return StoredObject.put(images.pixels)
    return share_file(mapped_file) if on_cluster else MappedFile(mapped_file)


def _split(run_plan: RunPlan, images: DecodedImages, audit: Audit) -> tuple[np.ndarray, np.ndarray]:
    """Split the images; a resumed run keeps the splits and groups that it began with.

    Raises:
        DataError: a class is too small, or a resumed run finds other images.
    """
    space, manifest, indices = run_plan.space, images.manifest, images.indices
    path = run_plan.folder.path / "split.csv"
    try:
        if path.exists():
            data = run_plan.folder.summary.data
            return read_split_csv(path, images, None if data is None else data.n)
        stays = ~leaks_into_holdout(manifest, indices, audit.together)
        check_counts(manifest, indices[stays], space.folds, audit.together[stays])
    except DataError as error:
        raise DataError(f"{error}{_unreadable(images)}") from None
    splits = split(
        manifest,
        indices,
        space.val_fraction,
        space.test_fraction,
        run_plan.request.seed,
        space.folds,
        audit.together,
        audit.groups,
    )
    write_split_csv(path, images, splits, audit.together)
    return splits, audit.together


def _unreadable(images: DecodedImages) -> str:
    """Return the part of an error about missing images that names unreadable files."""
    found = [issue for issue in images.issues if issue.issue == "unreadable"]
    if not found:
        return ""
    return (
        f" ({count(len(found), 'file')} could not be read, such as {found[0].image}:"
        f" {found[0].detail}; python -m search.audit lists them all)"
    )


def _report_audit(audit: Audit, folder: RunFolder, progress: Progress) -> None:
    """Write the audit, and warn about images that are not used."""
    path = folder.path / "audit.csv"
    write_audit_csv(path, audit.issues)
    folder.write_summary(replace(folder.summary, audit=audit.counts()))
    unused = [issue.image for issue in audit.issues if issue.issue in UNUSED]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        progress.warn(
            f"{len(unused)} files are not used: {', '.join(unused[:3])}{more}; see {path}"
        )
    for kind, what in (("excluded", "near-duplicates"), ("excluded group", "of the groups")):
        if n_excluded := audit.count(kind):
            progress.warn(
                f"{n_excluded} images are {what} of test or validation images, and are excluded"
                f" from training; see {path}"
            )
    progress.say(f"audit: {summarize(audit)}")


def _save_duplicates(
    audit: Audit,
    images: DecodedImages,
    external: DecodedImages | None,
    space: Space,
    folder: RunFolder,
) -> None:
    """Save the images of the pairs of near-duplicates that the report shows."""
    pairs = [issue for issue in audit.issues if issue.issue in DUPLICATES][:MAX_DUPLICATES]
    names = {name for issue in pairs for name in (issue.image, issue.duplicate_of)}
    gallery = Gallery(folder.path)
    for part, prefix, decoded in (("data", "", images), ("external", EXTERNAL, external)):
        if decoded is None:
            continue
        rows = [row for row, name in enumerate(decoded.names) if prefix + name in names]
        if rows:
            saved = [decoded.names[row] for row in rows]
            gallery.save(part, saved, decoded.pixels[rows], space.image_size)


def _report_counts(prepared: PreparedData, run_plan: RunPlan, progress: Progress) -> None:
    """Set the section `data`, and warn where so few images make poor figures."""
    n_of = {name: len(prepared.rows(name)) for name in ("train", "val", "test", EXCLUDED)}
    warnings = few_images_warnings(prepared.class_counts())
    counts = DataCounts(
        classes=list(prepared.classes),
        n=len(prepared.images),
        train=n_of["train"],
        val=n_of["val"],
        test=n_of["test"],
        excluded=n_of[EXCLUDED],
        unused_files=len(prepared.images.issues),
        excluded_by_request=run_plan.n_excluded,
        warnings=warnings,
    )
    run_plan.folder.write_summary(replace(run_plan.folder.summary, data=counts))
    progress.say(
        f"{len(prepared.images)} images of {len(prepared.classes)} classes: {n_of['train']} in the"
        f" training set, {n_of['val']} in the validation set, {n_of['test']} in the test set"
    )
    for text in warnings:
        progress.warn(text)
