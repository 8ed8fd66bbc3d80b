"""The linear probe alone: that of the backbone with the best cross-validation accuracy.

Features are of the same images in the same resolution as the search's own probes, and every
training image takes part in the final fit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.harness.workbench import (
    build_cache,
    class_folders,
    decode_images,
    new_backbone,
)
from benchmarks.tuning.competitors.job import Job, read_job
from trainables.models.ensemble import Ensemble
from trainables.models.linear_probe import fit_probe
from trainables.models.model import save_model
from trainables.models.model_card import ModelCard
from trainables.models.network_cut import N_STAGES
from trainables.pretrained.weight_files import find_local_weights
from trainables.pretrained.weights import load_weights


def train(job: Job) -> Ensemble:
    """Fit a probe on each backbone's features, and return the best one as a model."""
    images = class_folders(job.train, "training images")
    decoded = decode_images(images, job.image_size)
    rows = torch.arange(len(images.paths))
    best: Ensemble | None = None
    best_accuracy = float("-inf")
    for name in job.backbones:
        folder = None if job.weights is None else Path(job.weights)
        file = find_local_weights(name, folder, Path())
        backbone = new_backbone(name, None if file is None else load_weights(file))
        features = build_cache(backbone, decoded, rows, N_STAGES, n_views=1).clean(rows).float()
        probe = fit_probe(features, decoded.labels, len(images.classes), job.seed)
        print(f"{name}: {probe.accuracy:.4f}")
        if probe.accuracy > best_accuracy:
            best_accuracy = probe.accuracy
            card = ModelCard(
                backbone=name,
                classes=images.classes,
                image_size=job.image_size,
                cache_size=decoded.table.shape[1],
                freeze_depth=N_STAGES,
                hidden_units=0,
                n_members=1,
                mean=backbone.normalise.mean,
                std=backbone.normalise.std,
            )
            head = {f"head.1.{key}": value for key, value in probe.head.items()}
            best = Ensemble(card, backbone.stages.state_dict(), [head])
    if best is None:
        raise ValueError("a probe needs at least one backbone and two images of each class")
    return best


def main() -> None:
    """Run the job given on the command line."""
    job = read_job(sys.argv[1])
    save_model(train(job), Path(job.model))


if __name__ == "__main__":
    main()
