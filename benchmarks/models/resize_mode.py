"""Measure accuracy by how an image is resized to the square that the network sees.

    python -m benchmarks.models.resize_mode [--quick] [--data DIR]

An image becomes a square in one of five ways: torchvision's centre crop, the whole central square,
or the whole image: squeezed, padded (the outermost pixels are repeated to the edges), or ours,
squeezed to at most half its length, then padded. With two views, the mean of two probes predicts:
one on ours, one on the centre crop or on ours enlarged by 1/0.7. Each set is evaluated by 5-fold
cross-validation of a linear probe on pooled features; Caltech-101 and external photos of its
classes by a probe that is trained on one and tested on the other. Differences from the centre crop
are paired by seed, with Student's 95% interval over the seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from benchmarks.harness.reporting import (
    Ratio,
    Report,
    command_line,
    log_progress,
    mean_interval,
    stop,
)
from benchmarks.harness.workbench import (
    CALTECH_SIX,
    ImageFiles,
    build_cache,
    choose_per_class,
    class_folders,
    find_weights_folder,
    generate_images,
    image_sets,
    need_data,
    new_backbone,
    read_state,
)
from search.pipeline.retraining.kfold import split_folds
from trainables.batches import ImageSet
from trainables.images import CROP_FRACTION, evaluation_crop, read_image, to_square
from trainables.models.classifier import Weights
from trainables.models.linear_probe import fit_head

BACKBONE = "mobilenet_v2"
_ZOOM = 0.7
_FEW = 20
"""Training images per class of the small training set."""


def main() -> int:
    """Run the benchmark."""
    arguments = command_line(__doc__ or "", data=True).parse_args()
    n_seeds = {"full": 5, "quick": 2, "smoke": 2}[arguments.mode]
    image_size, n_folds = (64, 2) if arguments.mode == "smoke" else (224, 5)
    report = Report("resize_mode", "Accuracy by how an image is resized to a square.")
    with tempfile.TemporaryDirectory() as scratch:
        sets, state = _sets(arguments, Path(scratch))
        found = {name: _features(name, files, image_size, state) for name, files in sets.items()}
    right: dict[str, dict[str, list[float]]] = {}
    for name, files in sets.items():
        if name != "external":
            right[name] = {
                way: [
                    _folds([found[name][one] for one in ways], files.labels, n_folds, seed)
                    for seed in range(n_seeds)
                ]
                for way, ways in VIEWS.items()
            }
    if "external" in sets:
        right |= _across(sets, found, n_seeds)
    report.tables[f"accuracy, mean of {n_seeds} seeds"] = [
        {"set": name, **{way: fmean(seeds) for way, seeds in by_way.items()}}
        for name, by_way in right.items()
    ]
    for name, by_way in right.items():
        gains = [
            ours - cropped for ours, cropped in zip(by_way[OURS], by_way[CENTER_CROP], strict=True)
        ]
        center, low, high = mean_interval(gains)
        report.ratios.append(Ratio(f"{name}: gained by {OURS} over {CENTER_CROP}", center))
        report.notes.append(f"{name}: 95% CI {low:+.4f} to {high:+.4f}")
    report.publish(arguments)
    return 0


# --- the ways ----------------------------------------------------------------------------------


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side to `size / 0.875` and crop the centre."""
    decoded = torch.tensor(to_square(image, round(size / CROP_FRACTION), size))
    return evaluation_crop(decoded[None], size)[0].numpy()


def squeezed(image: Image.Image, size: int) -> np.ndarray:
    """Resize the whole image, changing its proportions."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def padded(image: Image.Image, size: int) -> np.ndarray:
    """Resize the whole image in its proportions; repeat its outermost pixels to the edges."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = (size - width) // 2, (size - height) // 2
    margins = ((top, size - top - height), (left, size - left - width), (0, 0))
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return np.pad(pixels, margins, mode="edge")


def enlarged(image: Image.Image, size: int) -> np.ndarray:
    """Enlarge the centre of ours."""
    cut = size * (1 - _ZOOM) / 2
    ours = Image.fromarray(to_square(image, size, size, "pad"))
    box = (cut, cut, size - cut, size - cut)
    return np.asarray(ours.resize((size, size), Image.Resampling.BILINEAR, box=box))


CENTER_CROP, OURS, ENLARGED = "centre crop", "ours", "ours, enlarged"
WAYS: Mapping[str, Callable[[Image.Image, int], np.ndarray]] = {
    CENTER_CROP: center_crop,
    "central square": lambda image, size: to_square(image, size, size),
    "squeezed": squeezed,
    "padded": padded,
    OURS: lambda image, size: to_square(image, size, size, "pad"),
    ENLARGED: enlarged,
}
VIEWS: Mapping[str, Sequence[str]] = {
    **{way: (way,) for way in WAYS},
    "ours and centre crop": (OURS, CENTER_CROP),
    "ours and ours, enlarged": (OURS, ENLARGED),
}
"""What a model predicts from: one view, or two, each with its own probe."""


# --- measuring ---------------------------------------------------------------------------------


def _sets(
    arguments: argparse.Namespace, scratch: Path
) -> tuple[dict[str, ImageFiles], Weights | None]:
    if arguments.mode == "smoke":
        return {"generated": generate_images(scratch, 24)}, None
    data = need_data(arguments)
    state = read_state(BACKBONE, find_weights_folder(arguments, data))
    if state is None:
        stop(f"there are no weights of {BACKBONE}; give the folder with --weights")
    sets = image_sets(data)
    if arguments.mode == "quick":
        return {"tools": sets["tools"]}, state
    external = class_folders(data / "external" / "caltech6", "external")
    labels = np.array([CALTECH_SIX.index(name) for name in external.classes])[external.labels]
    theirs = ImageFiles(external.paths, labels, CALTECH_SIX, "external")
    return {**sets, "external": theirs}, state


def _features(
    name: str, files: ImageFiles, image_size: int, state: Weights | None
) -> dict[str, torch.Tensor]:
    """Compute pooled features by way of resizing: float32 [n, feature_size]."""
    labels = torch.from_numpy(files.labels.astype(np.int64))
    rows = torch.arange(len(labels))
    made = {}
    for way, frame in WAYS.items():
        log_progress(f"{name}: {way}")
        table = np.stack([frame(read_image(path), image_size) for path in files.paths])
        images = ImageSet(
            torch.from_numpy(table), labels, len(files.classes), image_size, flip=True
        )
        cache = build_cache(new_backbone(BACKBONE, state), images, rows, stage_output=5, n_views=1)
        made[way] = cache.clean(rows).float()
    return made


def _folds(features: Sequence[torch.Tensor], labels: np.ndarray, n_folds: int, seed: int) -> float:
    """Compute the cross-validation accuracy of the mean of probes."""
    every = np.arange(len(labels))
    n_correct = 0
    for fold in split_folds(every, labels, n_folds, seed):
        train = np.setdiff1d(every, fold)
        predicted = _predict([(x, x[fold]) for x in features], labels, train)
        n_correct += int((predicted == labels[fold]).sum())
    return n_correct / len(labels)


def _predict(
    views: Sequence[tuple[torch.Tensor, torch.Tensor]], labels: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Predict with the mean of probes; a view is the features of the set and of the test images."""
    logits = [_logits(x, labels, train, test) for x, test in views]
    return np.asarray(np.sum(logits, axis=0).argmax(axis=1))


def _logits(
    x: torch.Tensor, labels: np.ndarray, train: np.ndarray, test: torch.Tensor
) -> np.ndarray:
    head = fit_head(x[train], torch.from_numpy(labels[train]), int(labels.max()) + 1)
    return np.asarray((test @ head["weight"].T + head["bias"]).numpy())


def _across(
    sets: Mapping[str, ImageFiles],
    found: Mapping[str, Mapping[str, torch.Tensor]],
    n_seeds: int,
) -> dict[str, dict[str, list[float]]]:
    """Test a probe of Caltech-101 on external photos, and a probe of those on Caltech-101."""
    ours, theirs = sets["caltech"].labels, sets["external"].labels
    known = np.isin(ours, theirs)
    right: dict[str, dict[str, list[float]]] = {}
    for way, ways in VIEWS.items():
        xs = [(found["caltech"][one], found["external"][one]) for one in ways]
        ys = [(y, x[known]) for x, y in xs]
        score = partial(_score, right, way)
        for seed in range(n_seeds):
            few = choose_per_class(ours, _FEW, seed)
            score("Caltech → external", _predict(xs, ours, np.arange(len(ours))) == theirs)
            score(f"Caltech, {_FEW} a class → external", _predict(xs, ours, few) == theirs)
            back = _predict(ys, theirs, np.arange(len(theirs))) == ours[known]
            score("external → Caltech", back)
    return right


def _score(
    right: dict[str, dict[str, list[float]]], way: str, name: str, correct: np.ndarray
) -> None:
    right.setdefault(name, {}).setdefault(way, []).append(float(correct.mean()))


if __name__ == "__main__":
    sys.exit(main())
