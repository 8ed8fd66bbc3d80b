"""What makes a head err less on images from elsewhere?

    python -m benchmarks.models.center_crop [--quick] [--data DIR]

Pairs of a set to learn from and images of its classes from elsewhere: Caltech-101's six classes
and photos of other repositories, all of them and 20 a class; those photos and Caltech-101, the
other way round; clothes photographed for sale and Fashion-MNIST's (three classes); handwritten
digits and digits of fonts. Features are pooled, of frozen backbones. Each way changes one thing in
the linear probe: what it is fitted on, how many are averaged, and of what images it is asked.
Differences from the plain probe are paired by seed, with Student's 95 % interval of their mean over
the pairs and seeds. Sets with nothing from elsewhere are judged on held-out images alone.
Fine-tuning from the probe's head (LP-FT) is in lpft.py.

--quick is the pairs of Caltech-101 and of digits, with one backbone and slight augmentation alone.
Features are kept in results/outside/; delete it to compute them anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress, stop
from benchmarks.harness.workbench import (
    CALTECH_SIX,
    build_cache,
    choose_per_class,
    choose_stratified,
    class_folders,
    find_weights_folder,
    image_sets,
    need_data,
    new_backbone,
    pack_images,
    read_state,
)
from benchmarks.models.feature_cache import interval
from search.pipeline.retraining.kfold import split_folds
from spaces.sources import Arrays, digits, fashion_mnist, rendered_digits
from trainables.batches import ImageSet
from trainables.feature_cache import mixed_precision
from trainables.images import crop_and_normalise, to_square
from trainables.models.center_crop import enlarge_center

N_VIEWS = 8
VIEWS = (0, 1, 2, 4, 7)
"""Views that are used, of magnitudes v / 7; the first is the image as it is."""
PHOTOS = ("mobilenet_v2", "squeezenet1_0")
_FASHION = {"t-shirt": (0,), "pants": (1,), "shoes": (5, 7, 9)}
"""By class of the products, Fashion-MNIST's labels."""
_TRAINED_FRACTION = 0.8
_STORE = ROOT / "results" / "outside"


@dataclass(frozen=True)
class Way:
    """How a probe is fitted and asked.

    Attributes:
        views: How many of `VIEWS` it is fitted on.
        members: Folds whose probabilities are averaged; 1 is one probe of all.
        asked: How many of `VIEWS` of an image are averaged.
        backbones: How many are averaged.
        regularisation: Inverse, of the probe.
        looks: 2 adds the logits of a probe of the enlarged middle (`models.center_crop`).
    """

    views: int = 1
    members: int = 1
    asked: int = 1
    backbones: int = 1
    regularisation: float = 0.03
    looks: int = 1

    def fits(self, features: list[np.ndarray]) -> bool:
        """Tell whether there are as many backbones and views as it needs."""
        n_views = len(features[0]) - 1
        return len(features) >= self.backbones and n_views >= max(self.views, self.asked)


PLAIN = "plain probe"
WAYS: Mapping[str, Way] = {
    PLAIN: Way(),
    "augmented up to 0.29": Way(views=3),
    "augmented up to 0.57": Way(views=4),
    "augmented up to 1": Way(views=5),
    "mean of five folds": Way(members=5),
    "mean of 3 views when asked": Way(asked=3),
    "both, up to 0.29 and 3 views": Way(views=3, asked=3),
    "a second look": Way(looks=2),
    "two backbones": Way(backbones=2),
    "ten times the regularisation": Way(regularisation=0.003),
    "a tenth of the regularisation": Way(regularisation=0.3),
}


@dataclass(frozen=True)
class Pair:
    """A set to learn from, and images from elsewhere.

    Attributes:
        inside: Its features by backbone, float32 [views + 1, n, d]; the last are of the enlarged
            middle.
        labels: int64 [n].
        outside: Those from elsewhere, the same backbones; empty where there are none.
        outside_labels: int64 [m].
        per_class: Training images of each class; None is four fifths of all.
    """

    inside: list[np.ndarray]
    labels: np.ndarray
    outside: list[np.ndarray]
    outside_labels: np.ndarray
    per_class: int | None = None


def main() -> int:
    """Measure, print tables, and keep them as JSON."""
    parser = command_line(__doc__ or "", data=True)
    arguments = parser.parse_args()
    n_seeds = {"full": 5, "quick": 5, "smoke": 2}[arguments.mode]
    report = Report("outside", "What makes a head err less on images from elsewhere.")
    pairs = _pairs(arguments)
    found: dict[tuple[str, str, str], list[float]] = {}
    for name, pair in pairs.items():
        log_progress(name)
        for seed in range(n_seeds):
            for way, settings in WAYS.items():
                if settings.fits(pair.inside):
                    for where, accuracy in _measure(pair, settings, seed).items():
                        found.setdefault((where, name, way), []).append(accuracy)
    for where in ("elsewhere", "held out"):
        judged = [name for name in pairs if (where, name, PLAIN) in found]
        rows = []
        for way in WAYS:
            gains = [
                ours - plain
                for name in judged
                for ours, plain in zip(
                    found.get((where, name, way), []), found[where, name, PLAIN], strict=False
                )
            ]
            if not gains:
                continue
            centre, low, high = interval(gains)
            means = {
                name: fmean(found[where, name, way]) if (where, name, way) in found else None
                for name in judged
            }
            rows.append({"way": way, **means, "gain": centre, "low": low, "high": high})
            if way != PLAIN:
                report.ratios.append(Ratio(f"{where}: gained by {way}", centre))
        report.tables[f"accuracy {where}, mean of {n_seeds} seeds"] = rows
    report.publish(arguments)
    return 0


def _measure(pair: Pair, way: Way, seed: int) -> dict[str, float]:
    """Fit on a part of the set, and judge on the rest and on images from elsewhere."""
    if pair.per_class is not None:
        train = choose_per_class(pair.labels, pair.per_class, seed)
    else:
        train = choose_stratified(pair.labels, round(_TRAINED_FRACTION * len(pair.labels)), seed)
    rest = np.setdiff1d(np.arange(len(pair.labels)), train)
    parts = [train]
    if way.members > 1:
        folds = split_folds(np.sort(train), pair.labels, way.members, seed)
        parts = [np.setdiff1d(train, held_out) for held_out in folds]
    asked = {"held out": ([x[:, rest] for x in pair.inside], pair.labels[rest])}
    if pair.outside:
        asked["elsewhere"] = (pair.outside, pair.outside_labels)
    n_classes = int(pair.labels.max()) + 1
    sums = {where: np.zeros((len(y), n_classes)) for where, (_, y) in asked.items()}
    for place in range(way.backbones):
        for part in parts:
            x = pair.inside[place][:, part]
            model = _fit(x[: way.views], pair.labels[part], way)
            middle = _fit(x[-1:], pair.labels[part], way) if way.looks > 1 else None
            for where, (features, y) in asked.items():
                seen = features[place][: way.asked]
                made = model.predict_log_proba(seen.reshape(-1, seen.shape[2]))
                if middle is not None:
                    made = log_softmax(made + middle.predict_log_proba(features[place][-1]), 1)
                shares = np.exp(made).reshape(way.asked, len(y), -1)
                sums[where][:, model.classes_] += shares.mean(0)
    return {
        where: float((sums[where].argmax(1) == y).mean())
        for where, (_, y) in asked.items()
        if len(y)
    }


def _fit(x: np.ndarray, labels: np.ndarray, way: Way) -> Pipeline:
    """Fit a probe on views of images, [views, n, d]."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=way.regularisation / len(x), max_iter=200)
    )
    return model.fit(x.reshape(-1, x.shape[2]), np.tile(labels, len(x)))


def _pairs(arguments: argparse.Namespace) -> dict[str, Pair]:
    none: tuple[list[np.ndarray], np.ndarray] = ([], np.zeros(0, np.int64))
    drawn, fonts = (array_set(source, 32, flip=False) for source in (digits(), rendered_digits()))
    ours = [_features("digits", drawn, "tinynet", None)]
    theirs = [_features("fonts", fonts, "tinynet", None)]
    pairs = {"digits → fonts": Pair(ours, drawn.labels.numpy(), theirs, fonts.labels.numpy())}
    if arguments.mode == "smoke":
        return pairs
    data = need_data(arguments)
    weights = find_weights_folder(arguments, data)
    sets, backbones, views = image_sets(data), PHOTOS, VIEWS
    if arguments.mode == "quick":
        sets, backbones, views = {"caltech": sets["caltech"]}, PHOTOS[:1], VIEWS[:3]

    def photos(name: str, images: ImageSet) -> list[np.ndarray]:
        return [_features(name, images, backbone, weights, views) for backbone in backbones]

    labels = {name: one.labels for name, one in sets.items()}
    inside = {name: photos(name, pack_images(one, 224)) for name, one in sets.items()}
    elsewhere = class_folders(data / "external" / "caltech6", "elsewhere")
    of_class = np.array([CALTECH_SIX.index(name) for name in elsewhere.classes])
    outside = photos("elsewhere", pack_images(elsewhere, 224))
    outside_labels = of_class[elsewhere.labels]
    six = (inside["caltech"], labels["caltech"])
    pairs["Caltech → elsewhere"] = Pair(*six, outside, outside_labels)
    pairs["Caltech, 20 a class → elsewhere"] = Pair(*six, outside, outside_labels, 20)
    known = np.isin(labels["caltech"], outside_labels)
    pairs["elsewhere → Caltech"] = Pair(
        outside, outside_labels, [x[:, known] for x in six[0]], six[1][known]
    )
    if "products" in sets:
        clothes = _fashion(data, sets["products"].classes)
        seen = photos("fashion", clothes), clothes.labels.numpy()
        pairs["products → Fashion-MNIST"] = Pair(inside["products"], labels["products"], *seen)
    for name in ("cats_dogs", "tools"):
        if name in sets:
            pairs[name] = Pair(inside[name], labels[name], *none)
    return pairs


def _features(
    name: str,
    images: ImageSet,
    backbone: str,
    weights: Path | None,
    views: tuple[int, ...] = VIEWS,
) -> np.ndarray:
    """Return pooled features of every view and of the middle, from an earlier time if kept.

    Returns:
        float32 [views + 1, n, d].
    """
    if backbone == "tinynet":
        state = read_state(backbone, ROOT / "trainables" / "weights")
    else:
        state = read_state(backbone, weights)
    if state is None:
        stop(f"there are no weights of {backbone}; give the folder with --weights")
    network = new_backbone(backbone, state).eval()

    def every_view() -> np.ndarray:
        rows = torch.arange(len(images.labels))
        made = build_cache(network, images, rows, 5, N_VIEWS, views)
        return np.stack([torch.cat(blocks).float().numpy() for blocks in made.views])

    @torch.no_grad()
    def middle() -> np.ndarray:
        parts = []
        for batch in images.table.split(32):
            pixels = crop_and_normalise(batch, images.image_size)
            with mixed_precision(torch.device("cpu")):
                parts.append(network(enlarge_center(pixels)).float())
        return torch.cat(parts)[None].numpy()

    stem = f"{name}-{backbone}"
    return np.concatenate(
        [_kept(f"{stem}-{len(views)}-whole", every_view), _kept(f"{stem}-middle", middle)]
    )


def _kept(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    path = _STORE / f"{name}.npy"
    if not path.is_file():
        log_progress(f"features: {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    return np.asarray(np.load(path))


def array_set(source: Any, size: int, flip: bool) -> ImageSet:
    """Pack a set that comes as arrays."""
    found = source.open(None, ROOT)
    if not isinstance(found, Arrays):
        raise TypeError("these sets are read as arrays")
    return _as_set(found.images, found.labels, size, flip)


def _fashion(data: Path, classes: tuple[str, ...]) -> ImageSet:
    """Return Fashion-MNIST's test images of the products' classes, every tenth."""
    found = fashion_mnist().open(data, data)
    if not isinstance(found, Arrays):
        raise TypeError("Fashion-MNIST is read as arrays")
    images, labels = found.images[-10_000::10], found.labels[-10_000::10]
    named = np.full(10, -1)
    for name, theirs in _FASHION.items():
        named[list(theirs)] = classes.index(name)
    kept = named[labels] >= 0
    return _as_set(images[kept], named[labels][kept], 224, flip=True)


def _as_set(images: np.ndarray, labels: np.ndarray, size: int, flip: bool) -> ImageSet:
    decoded = size if size < 64 else round(size / 0.875)
    table = np.stack(
        [to_square(Image.fromarray(x).convert("RGB"), decoded, size, "pad") for x in images]
    )
    y = torch.from_numpy(labels.astype(np.int64))
    return ImageSet(torch.from_numpy(table), y, int(y.max()) + 1, size, flip)


if __name__ == "__main__":
    sys.exit(main())
