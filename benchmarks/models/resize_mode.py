"""How much of an image should the model see?

    python -m benchmarks.models.resize_mode [--quick] [--data DIR]

An image becomes a square in one of five ways: the middle of torchvision's recipes, the whole
central square, and the whole image, squeezed, padded (its outermost pixels go on to the edges)
or ours: squeezed to half its length at most, then padded. Or it is looked at twice, by the mean of
a probe of ours and one of the middle, or of ours zoomed in by 0.7. Each set is judged by five
folds of a linear probe on pooled features; Caltech-101 and photos of its classes from elsewhere by
a probe of the one set that is asked for the other. Differences from the middle are paired by seed,
with Student's 95 % interval over the seeds.
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

from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress, stop
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
from benchmarks.models.feature_cache import interval
from search.pipeline.retraining.kfold import split_folds
from trainables.batches import ImageSet
from trainables.images import CROP_FRACTION, read_image, to_square
from trainables.models.ensemble import Weights
from trainables.models.export_module import central
from trainables.models.linear_probe import fit_head

BACKBONE = "mobilenet_v2"
_ZOOM = 0.7
_FEW = 20
"""Images of a class, where a probe learns from few."""


def main() -> int:
    """Measure, print tables, and keep them as JSON."""
    arguments = command_line(__doc__ or "", data=True).parse_args()
    n_seeds = {"full": 5, "quick": 2, "smoke": 2}[arguments.mode]
    image_size, n_folds = (64, 2) if arguments.mode == "smoke" else (224, 5)
    report = Report("resize_mode", "How much of an image the model should see: accuracies.")
    with tempfile.TemporaryDirectory() as scratch:
        sets, state = _sets(arguments, Path(scratch))
        found = {name: _features(name, files, image_size, state) for name, files in sets.items()}
    right: dict[str, dict[str, list[float]]] = {}
    for name, files in sets.items():
        if name != "elsewhere":
            right[name] = {
                way: [
                    _folds([found[name][one] for one in ways], files.labels, n_folds, seed)
                    for seed in range(n_seeds)
                ]
                for way, ways in LOOKS.items()
            }
    if "elsewhere" in sets:
        right |= _across(sets, found, n_seeds)
    report.tables[f"accuracy, mean of {n_seeds} seeds"] = [
        {"judged": name, **{way: fmean(seeds) for way, seeds in by_way.items()}}
        for name, by_way in right.items()
    ]
    for name, by_way in right.items():
        gains = [ours - middle for ours, middle in zip(by_way[OURS], by_way[MIDDLE], strict=True)]
        centre, low, high = interval(gains)
        report.ratios.append(Ratio(f"{name}: gained by {OURS} over {MIDDLE}", centre))
        report.notes.append(f"{name}: 95 % interval {low:+.4f} to {high:+.4f}")
    report.publish(arguments)
    return 0


# --- the ways ----------------------------------------------------------------------------------


def middle(image: Image.Image, size: int) -> np.ndarray:
    """Return the central `size` of a shorter side of `size / 0.875`."""
    decoded = torch.from_numpy(to_square(image, round(size / CROP_FRACTION), size))
    return central(decoded[None], size)[0].numpy()


def squeezed(image: Image.Image, size: int) -> np.ndarray:
    """Return the whole image in other proportions."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def padded(image: Image.Image, size: int) -> np.ndarray:
    """Return the whole image in its proportions, its outermost pixels going on to the edges."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = (size - width) // 2, (size - height) // 2
    margins = ((top, size - top - height), (left, size - left - width), (0, 0))
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return np.pad(pixels, margins, mode="edge")


def zoomed(image: Image.Image, size: int) -> np.ndarray:
    """Return the middle of ours, enlarged."""
    cut = size * (1 - _ZOOM) / 2
    ours = Image.fromarray(to_square(image, size, size, "pad"))
    box = (cut, cut, size - cut, size - cut)
    return np.asarray(ours.resize((size, size), Image.Resampling.BILINEAR, box=box))


MIDDLE, OURS, ZOOMED = "the middle", "ours", "ours, zoomed"
WAYS: Mapping[str, Callable[[Image.Image, int], np.ndarray]] = {
    MIDDLE: middle,
    "the square": lambda image, size: to_square(image, size, size),
    "squeezed": squeezed,
    "padded": padded,
    OURS: lambda image, size: to_square(image, size, size, "pad"),
    ZOOMED: zoomed,
}
LOOKS: Mapping[str, Sequence[str]] = {
    **{way: (way,) for way in WAYS},
    "ours and the middle": (OURS, MIDDLE),
    "ours and zoomed": (OURS, ZOOMED),
}
"""What a model looks at: one way, or two, each by a probe of its own."""


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
    elsewhere = class_folders(data / "external" / "caltech6", "elsewhere")
    labels = np.array([CALTECH_SIX.index(name) for name in elsewhere.classes])[elsewhere.labels]
    theirs = ImageFiles(elsewhere.paths, labels, CALTECH_SIX, "elsewhere")
    return {**sets, "elsewhere": theirs}, state


def _features(
    name: str, files: ImageFiles, image_size: int, state: Weights | None
) -> dict[str, torch.Tensor]:
    """Return pooled features by way: float32 [n, feature_size]."""
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
    """Return the share of images that the folds have right, each image once."""
    every = np.arange(len(labels))
    n_right = 0
    for held_out in split_folds(every, labels, n_folds, seed):
        train = np.setdiff1d(every, held_out)
        predicted = _asked([(x, x[held_out]) for x in features], labels, train)
        n_right += int((predicted == labels[held_out]).sum())
    return n_right / len(labels)


def _asked(
    looks: Sequence[tuple[torch.Tensor, torch.Tensor]], labels: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Return what the mean of probes says, each of its features of all and of what is asked."""
    logits = [_logits(x, labels, train, of) for x, of in looks]
    return np.asarray(np.sum(logits, axis=0).argmax(axis=1))


def _logits(x: torch.Tensor, labels: np.ndarray, train: np.ndarray, of: torch.Tensor) -> np.ndarray:
    head = fit_head(x[train], torch.from_numpy(labels[train]), int(labels.max()) + 1)
    return np.asarray((of @ head["weight"].T + head["bias"]).numpy())


def _across(
    sets: Mapping[str, ImageFiles],
    found: Mapping[str, Mapping[str, torch.Tensor]],
    n_seeds: int,
) -> dict[str, dict[str, list[float]]]:
    """Judge a probe of Caltech-101 on photos from elsewhere, and the other way round."""
    ours, theirs = sets["caltech"].labels, sets["elsewhere"].labels
    known = np.isin(ours, theirs)
    right: dict[str, dict[str, list[float]]] = {}
    for way, ways in LOOKS.items():
        xs = [(found["caltech"][one], found["elsewhere"][one]) for one in ways]
        ys = [(y, x[known]) for x, y in xs]
        score = partial(_score, right, way)
        for seed in range(n_seeds):
            few = choose_per_class(ours, _FEW, seed)
            score("Caltech → elsewhere", _asked(xs, ours, np.arange(len(ours))) == theirs)
            score(f"Caltech, {_FEW} a class → elsewhere", _asked(xs, ours, few) == theirs)
            back = _asked(ys, theirs, np.arange(len(theirs))) == ours[known]
            score("elsewhere → Caltech", back)
    return right


def _score(
    right: dict[str, dict[str, list[float]]], way: str, judged: str, correct: np.ndarray
) -> None:
    right.setdefault(judged, {}).setdefault(way, []).append(float(correct.mean()))


if __name__ == "__main__":
    sys.exit(main())
