"""Compare linear probes on external images: the centre-crop branch and alternatives.

    python -m benchmarks.models.center_crop [--quick] [--data DIR]

Pairs of a training set and an external test set of its classes: Caltech-101's six classes and
photos from other repositories, with all training images and with 20 per class; the same swapped;
clothes photographed for sale and Fashion-MNIST's (three classes); handwritten digits and digits of
fonts. Features are pooled, from frozen backbones. Each method changes one thing in the linear
probe: its training views, the number of probes that are averaged, or the views it predicts from.
Differences from the plain probe are paired by seed, with Student's 95% interval of their mean over
the pairs and seeds. Sets without external images have only their own test set. Fine-tuning from the
probe's head (LP-FT) is in lp_ft.py.

--quick uses the pairs of Caltech-101 and of digits, one backbone and only slight augmentation.
Features are cached in results/center_crop/; delete it to compute them again.

The module is long because it has one function per method that is compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
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

from benchmarks.harness.reporting import (
    ROOT,
    Ratio,
    Report,
    command_line,
    log_progress,
    mean_interval,
    stop,
)
from benchmarks.harness.workbench import (
    CALTECH_SIX,
    build_cache,
    choose_per_class,
    choose_stratified,
    class_folders,
    decode_images,
    find_weights_folder,
    image_sets,
    need_data,
    new_backbone,
    read_state,
)
from search.pipeline.retraining.kfold import split_folds
from spaces.sources import Arrays, digits, fashion_mnist, rendered_digits
from trainables.batches import ImageSet
from trainables.compute import mixed_precision
from trainables.images import crop_pixels, to_square
from trainables.models.center_crop import enlarge_center

MAGNITUDES = (0.0, 1 / 7, 2 / 7, 4 / 7, 1.0)
"""The magnitudes of the views; the first is the image without augmentation."""
PHOTOS = ("mobilenet_v2", "squeezenet1_0")
_FASHION = {"t-shirt": (0,), "pants": (1,), "shoes": (5, 7, 9)}
"""Fashion-MNIST's labels of each class of the products."""
_TRAINED_FRACTION = 0.8
_STORE = ROOT / "results" / "center_crop"


@dataclass(frozen=True)
class Method:
    """How a probe is fitted and how it predicts.

    Attributes:
        views: How many of the views it is fitted on.
        members: Number of folds whose probabilities are averaged; 1 for one probe of all images.
        test_views: How many of the views of a test image are averaged.
        backbones: How many are averaged.
        regularisation: Inverse strength, scikit-learn's C.
        center_crop: Whether to add the logits of a probe of the enlarged centre
            (`trainables.models.center_crop`).
    """

    views: int = 1
    members: int = 1
    test_views: int = 1
    backbones: int = 1
    regularisation: float = 0.03
    center_crop: bool = False

    def fits(self, features: list[np.ndarray]) -> bool:
        """Check that there are enough backbones and views."""
        n_views = len(features[0]) - 1
        return len(features) >= self.backbones and n_views >= max(self.views, self.test_views)


PLAIN = "plain probe"
METHODS: Mapping[str, Method] = {
    PLAIN: Method(),
    "augmented up to 0.29": Method(views=3),
    "augmented up to 0.57": Method(views=4),
    "augmented up to 1": Method(views=5),
    "mean of five folds": Method(members=5),
    "test: mean of 3 views": Method(test_views=3),
    "both, up to 0.29 and 3 views": Method(views=3, test_views=3),
    "centre-crop branch": Method(center_crop=True),
    "two backbones": Method(backbones=2),
    "ten times the regularisation": Method(regularisation=0.003),
    "a tenth of the regularisation": Method(regularisation=0.3),
}


@dataclass(frozen=True)
class Pair:
    """A set to train and test on, and an external test set.

    Attributes:
        features: By backbone, float32 [views + 1, n, d]; the last view is the enlarged centre.
        labels: int64 [n].
        external: The same of the external images; empty without any.
        external_labels: int64 [m].
        per_class: Training images per class; None for four fifths of all.
    """

    features: list[np.ndarray]
    labels: np.ndarray
    external: list[np.ndarray]
    external_labels: np.ndarray
    per_class: int | None = None


def main() -> int:
    """Run the benchmark."""
    parser = command_line(__doc__ or "", data=True)
    arguments = parser.parse_args()
    n_seeds = {"full": 5, "quick": 5, "smoke": 2}[arguments.mode]
    report = Report("center_crop", "Accuracy of linear probes on external images, by method.")
    pairs = _pairs(arguments)
    found: dict[tuple[str, str, str], list[float]] = {}
    for pair_name, pair in pairs.items():
        log_progress(pair_name)
        for seed in range(n_seeds):
            for name, method in METHODS.items():
                if method.fits(pair.features):
                    for test_set, accuracy in _measure(pair, method, seed).items():
                        found.setdefault((test_set, pair_name, name), []).append(accuracy)
    for test_set in ("external", "test"):
        with_plain = [pair for pair in pairs if (test_set, pair, PLAIN) in found]
        rows = []
        for method in METHODS:
            gains = [
                ours - plain
                for pair in with_plain
                for ours, plain in zip(
                    found.get((test_set, pair, method), []),
                    found[test_set, pair, PLAIN],
                    strict=False,
                )
            ]
            if not gains:
                continue
            center, low, high = mean_interval(gains)
            means = {
                pair: fmean(found[key]) if (key := (test_set, pair, method)) in found else None
                for pair in with_plain
            }
            rows.append({"method": method, **means, "gain": center, "low": low, "high": high})
            if method != PLAIN:
                report.ratios.append(Ratio(f"{test_set}: gained by {method}", center))
        report.tables[f"{test_set} accuracy, mean of {n_seeds} seeds"] = rows
    report.publish(arguments)
    return 0


def _measure(pair: Pair, method: Method, seed: int) -> dict[str, float]:
    """Fit on a part of the set; return the accuracy on the rest and on external images."""
    if pair.per_class is not None:
        train = choose_per_class(pair.labels, pair.per_class, seed)
    else:
        train = choose_stratified(pair.labels, round(_TRAINED_FRACTION * len(pair.labels)), seed)
    rest = np.setdiff1d(np.arange(len(pair.labels)), train)
    parts = [train]
    if method.members > 1:
        folds = split_folds(np.sort(train), pair.labels, method.members, seed)
        parts = [np.setdiff1d(train, fold) for fold in folds]
    test_sets = {"test": ([x[:, rest] for x in pair.features], pair.labels[rest])}
    if pair.external:
        test_sets["external"] = (pair.external, pair.external_labels)
    n_classes = int(pair.labels.max()) + 1
    sums = {name: np.zeros((len(y), n_classes)) for name, (_, y) in test_sets.items()}
    for place in range(method.backbones):
        for part in parts:
            x = pair.features[place][:, part]
            probe = _fit(x[: method.views], pair.labels[part], method)
            center = _fit(x[-1:], pair.labels[part], method) if method.center_crop else None
            for name, (features, y) in test_sets.items():
                views = features[place][: method.test_views]
                logits = probe.predict_log_proba(views.reshape(-1, views.shape[2]))
                if center is not None:
                    logits = log_softmax(logits + center.predict_log_proba(features[place][-1]), 1)
                probabilities = np.exp(logits).reshape(method.test_views, len(y), -1)
                sums[name][:, probe.classes_] += probabilities.mean(0)
    return {
        name: float((sums[name].argmax(1) == y).mean())
        for name, (_, y) in test_sets.items()
        if len(y)
    }


def _fit(x: np.ndarray, labels: np.ndarray, method: Method) -> Pipeline:
    """Fit a probe on views of images, [views, n, d]."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=method.regularisation / len(x), max_iter=200)
    )
    return model.fit(x.reshape(-1, x.shape[2]), np.tile(labels, len(x)))


def _pairs(arguments: argparse.Namespace) -> dict[str, Pair]:
    none: tuple[list[np.ndarray], np.ndarray] = ([], np.zeros(0, np.int64))
    handwritten, fonts = (
        array_set(source, 32, flip=False) for source in (digits(), rendered_digits())
    )
    ours = [_features("digits", handwritten, "tinynet", None)]
    theirs = [_features("fonts", fonts, "tinynet", None)]
    pairs = {"digits → fonts": Pair(ours, handwritten.labels.numpy(), theirs, fonts.labels.numpy())}
    if arguments.mode == "smoke":
        return pairs
    data = need_data(arguments)
    weights = find_weights_folder(arguments, data)
    sets, backbones, magnitudes = image_sets(data), PHOTOS, MAGNITUDES
    if arguments.mode == "quick":
        sets, backbones = {"caltech": sets["caltech"]}, PHOTOS[:1]
        magnitudes = MAGNITUDES[:3]

    def photos(name: str, images: ImageSet) -> list[np.ndarray]:
        return [_features(name, images, backbone, weights, magnitudes) for backbone in backbones]

    labels = {name: one.labels for name, one in sets.items()}
    features = {name: photos(name, decode_images(one, 224)) for name, one in sets.items()}
    found = class_folders(data / "external" / "caltech6", "external")
    of_class = np.array([CALTECH_SIX.index(name) for name in found.classes])
    external = photos("external", decode_images(found, 224))
    external_labels = of_class[found.labels]
    six = (features["caltech"], labels["caltech"])
    pairs["Caltech → external"] = Pair(*six, external, external_labels)
    pairs["Caltech, 20 per class → external"] = Pair(*six, external, external_labels, 20)
    known = np.isin(labels["caltech"], external_labels)
    pairs["external → Caltech"] = Pair(
        external, external_labels, [x[:, known] for x in six[0]], six[1][known]
    )
    if "products" in sets:
        clothes = _fashion(data, sets["products"].classes)
        worn = photos("fashion", clothes), clothes.labels.numpy()
        pairs["products → Fashion-MNIST"] = Pair(features["products"], labels["products"], *worn)
    for name in ("cats_dogs", "tools"):
        if name in sets:
            pairs[name] = Pair(features[name], labels[name], *none)
    return pairs


def _features(
    name: str,
    images: ImageSet,
    backbone: str,
    weights: Path | None,
    magnitudes: Sequence[float] = MAGNITUDES,
) -> np.ndarray:
    """Compute pooled features of every view and of the enlarged centre, or load cached ones.

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
        made = build_cache(network, images, rows, 5, len(magnitudes), magnitudes)
        return np.stack([torch.cat(blocks).float().numpy() for blocks in made.views])

    @torch.no_grad()
    def center() -> np.ndarray:
        parts = []
        for batch in images.table.split(32):
            pixels = crop_pixels(batch, images.image_size)
            with mixed_precision(torch.device("cpu")):
                parts.append(network(enlarge_center(pixels)).float())
        return torch.cat(parts)[None].numpy()

    stem = f"{name}-{backbone}"
    return np.concatenate(
        [_cached(f"{stem}-{len(magnitudes)}", every_view), _cached(f"{stem}-center", center)]
    )


def _cached(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    path = _STORE / f"{name}.npy"
    if not path.is_file():
        log_progress(f"features: {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    return np.asarray(np.load(path))


def array_set(source: Any, size: int, flip: bool) -> ImageSet:
    """Decode a set whose source gives arrays."""
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
