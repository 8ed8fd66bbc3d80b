"""The search's command line, which records which images every training takes.

    RECORD=FILE python -m tests.system.science.recorded ARGUMENTS

Each line of the file is a JSON object, in the order in which things happened: `{"end": STAGE}`, or
an event in a process. Images are recorded where their tensors are taken, in the workers: those of a
training in `ImageSet.take` and in the feature cache. What is taken while gradients are computed is
learned from; the rest is predicted. `PreparedData.image_rows` is what the driver predicts from.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.cluster.session import configure_ray

configure_ray()  # before Ray is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from search import run  # noqa: E402
from search.pipeline.prepare import PreparedData  # noqa: E402
from search.runs.run_folder import RunFolder  # noqa: E402
from spaces.base import TrialConfig  # noqa: E402
from trainables.batches import ImageSet  # noqa: E402
from trainables.feature_cache import FeatureCache  # noqa: E402
from trainables.images import ImageRows  # noqa: E402
from trainables.models.classifier import Weights  # noqa: E402
from trainables.worker import FeatureSource, TrainingContext  # noqa: E402


def record(**event: object) -> None:
    """Append an event to the file at once, as many processes write to it."""
    line = json.dumps({"pid": os.getpid(), **event}) + "\n"
    file = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


def record_rows(rows: Tensor) -> None:
    """Record rows of the image table that a training takes."""
    record(does="learns" if torch.is_grad_enabled() else "predicts", rows=rows.tolist())


class RecordedImages(ImageSet):
    """Images that record which of them are taken. Ray pickles it by value for its workers."""

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return some images."""
        record_rows(rows)
        return super().take(rows, device)


class RecordedCache(FeatureCache):
    """A feature cache that records whose features are taken."""

    def clean(self, rows: Tensor) -> Tensor:
        """Return features without augmentation."""
        record_rows(rows)
        return super().clean(rows)

    def draw(self, rows: Tensor, augment: float, generator: torch.Generator) -> Tensor:
        """Return features of augmented images."""
        record_rows(rows)
        return super().draw(rows, augment, generator)


class RecordedContext(TrainingContext):
    """What all trainings have in common; it hands out what records."""

    def images(self, device: torch.device) -> ImageSet:
        """Open the images for one training."""
        record(does="begins")
        return RecordedImages(**vars(super().images(device)))

    def cached_features(self, config: TrialConfig) -> FeatureCache | None:
        """Return the features that a training learns from."""
        return recorded_cache(super().cached_features(config))

    def pooled_features(self, backbone: str) -> FeatureCache | None:
        """Return the features that a fold's head is fitted on, before its training begins."""
        record(does="fits a head")
        return recorded_cache(super().pooled_features(backbone))


def recorded_cache(cache: FeatureCache | None) -> FeatureCache | None:
    """Return a cache that records; and record which images it holds."""
    if cache is None:
        return None
    record(does="caches", rows=torch.nonzero(cache.row_of >= 0)[:, 0].tolist())
    return RecordedCache(**vars(cache))


def install() -> None:
    """Record, in the driver, what the stages pass on."""
    training_context, image_rows = PreparedData.training_context, PreparedData.image_rows
    add_stage_seconds = RunFolder.add_stage_seconds

    def recorded_context(
        self: PreparedData, heads: Mapping[str, Weights], source: FeatureSource | None
    ) -> TrainingContext:
        torch.save(dict(heads), Path(os.environ["RECORD"]).with_suffix(".heads"))
        return RecordedContext(**vars(training_context(self, heads, source)))

    def recorded_rows(self: PreparedData, rows: np.ndarray) -> ImageRows:
        record(does="predicts", rows=rows.tolist())
        return image_rows(self, rows)

    def recorded_end(self: RunFolder, name: str, *arguments: Any) -> None:
        record(end=name)
        add_stage_seconds(self, name, *arguments)

    PreparedData.training_context = recorded_context  # type: ignore[method-assign]
    PreparedData.image_rows = recorded_rows  # type: ignore[method-assign]
    RunFolder.add_stage_seconds = recorded_end  # type: ignore[method-assign]


if __name__ == "__main__":
    install()
    sys.exit(run.main())
