"""Compare the pretrained `tinynet` on scikit-learn's digits with pixels and training from scratch.

    python -m benchmarks.models.tinynet [--quick] [--seeds 5] [--weights tinynet.pth]

Mean and standard deviation over seeds; each seed draws its own labelled images, and the others are
the test set. All networks have the same training settings, without augmentation, and are evaluated
at their last step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize

from benchmarks.harness.reporting import Ratio, Report, command_line
from spaces.glyphs import external_digits
from trainables.models.small_networks import tinynet_stages
from trainables.pretrained.weights import PACKAGED

IMAGE_SIZE = 32
BATCH_SIZE = 64
N_STEPS = 300
N_LABELS = (100, 1000, 1400)
# The better of 1e-3 and 3e-3 on the test images themselves, which favours training from scratch.
SCRATCH_LEARNING_RATE = 3e-3
FINE_TUNING_LEARNING_RATE = 1e-3
MAX_GRADIENT_NORM = 1.0
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
FROZEN, SCRATCH = "pretrained, frozen, linear head", "scratch"
_N_SEEDS = {"full": 5, "quick": 2, "smoke": 2}


def main() -> int:
    """Run the benchmark."""
    parser = command_line(__doc__ or "")
    parser.add_argument("--seeds", type=int, help="at least 2 (default: 5)")
    parser.add_argument("--weights", type=Path, default=PACKAGED["tinynet"])
    arguments = parser.parse_args()
    n_seeds = arguments.seeds or _N_SEEDS[arguments.mode]
    n_steps = 3 if arguments.mode == "smoke" else N_STEPS
    report = Report("tinynet", "Accuracy on digits of the pretrained tinynet and of others.")
    accuracies = measure(arguments.weights, n_seeds, n_steps)
    for test_set, methods in accuracies.items():
        report.tables[f"accuracy, {test_set}, {n_seeds} seeds"] = [
            {"method": method, "mean": fmean(each), "± sd": stdev(each)}
            for method, each in methods.items()
        ]
    for test_set, methods in accuracies.items():
        gain = fmean(methods[FROZEN]) - fmean(methods[SCRATCH])
        report.ratios.append(Ratio(f"frozen minus scratch, {test_set}", gain))
    report.extra["by seed"] = accuracies
    report.publish(arguments)
    return 0


def measure(weights: Path, n_seeds: int, n_steps: int) -> dict[str, dict[str, list[float]]]:
    """Train and evaluate every way of using the network.

    Args:
        weights: The pretrained state dict.
        n_seeds: Number of draws of the labelled images and of the random weights.
        n_steps: Steps of every training.

    Returns:
        By test set and method, one accuracy per seed.
    """
    digits = load_digits()
    gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images, labels = prepare(gray), torch.from_numpy(digits.target)
    external_gray, external_targets, _ = external_digits()
    external = (prepare(external_gray), torch.from_numpy(external_targets))
    features = extract(load(weights)[0], images).numpy()
    external_features = extract(load(weights)[0], external[0]).numpy()
    raw = digits.data / 16
    raw_external = external_gray.reshape(len(external_gray), -1) / 255

    rows: dict[str, dict[str, list[float]]] = {}

    def add(row: str, way: str, accuracy: float) -> None:
        rows.setdefault(row, {}).setdefault(way, []).append(float(accuracy))

    for seed in range(n_seeds):
        for n_labels in N_LABELS:
            train, test = train_test_split(
                np.arange(len(labels)),
                train_size=n_labels,
                stratify=digits.target,
                random_state=seed,
            )
            test_set = f"{n_labels} labels, {len(test)} others as test"
            external_set = f"{n_labels} labels, {len(external_targets)} external digits as test"
            for way, inputs, outer in (
                ("raw pixels, linear", raw, raw_external),
                (FROZEN, features, external_features),
            ):
                probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
                probe.fit(inputs[train], digits.target[train])
                add(test_set, way, probe.score(inputs[test], digits.target[test]))
                add(external_set, way, probe.score(outer, external_targets))
            for way, start, rate in (
                ("pretrained, fine-tuned", weights, FINE_TUNING_LEARNING_RATE),
                (SCRATCH, None, SCRATCH_LEARNING_RATE),
            ):
                network = train_network(start, images[train], labels[train], rate, seed, n_steps)
                add(test_set, way, score(network, images[test], labels[test]))
                add(external_set, way, score(network, *external))
    return rows


def prepare(gray: np.ndarray) -> Tensor:
    """Preprocess grayscale images [N, 8, 8] in 0 to 255 as the digits space does.

    Args:
        gray: uint8 images.

    Returns:
        ImageNet-normalised RGB [N, 3, 32, 32], scaled up bilinearly.
    """
    large = resize(torch.from_numpy(gray)[:, None], [IMAGE_SIZE, IMAGE_SIZE]) / 255
    return ((large - IMAGENET_MEAN) / IMAGENET_STD).contiguous(memory_format=torch.channels_last)


def load(weights: Path | None) -> tuple[nn.Sequential, int]:
    """Create the five stages, with weights from a file or random ones."""
    stages, n_features = tinynet_stages()
    if weights is not None:
        state = torch.load(weights, weights_only=True)
        nn.ModuleList(stages).load_state_dict(state)
    return nn.Sequential(*stages), n_features


@torch.no_grad()
def extract(backbone: nn.Module, images: Tensor) -> Tensor:
    """Compute features of images [N, 3, H, W] with a frozen network."""
    backbone.eval()
    return torch.cat([backbone(batch) for batch in images.split(256)])


def train_network(
    weights: Path | None,
    images: Tensor,
    labels: Tensor,
    learning_rate: float,
    seed: int,
    n_steps: int,
) -> nn.Module:
    """Train all layers, with AdamW and a one-cycle schedule.

    Args:
        weights: Initial weights, or None for random ones.
        images: [N, 3, 32, 32].
        labels: [N] from 0 to 9.
        learning_rate: The schedule's peak.
        seed: Seed of the random weights and of the order.
        n_steps: Length of the training.

    Returns:
        The network with its head, after its last step.
    """
    torch.manual_seed(seed)
    backbone, n_features = load(weights)
    network = nn.Sequential(backbone, nn.Linear(n_features, 10))
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=n_steps)
    batches: list[Tensor] = []
    for _ in range(n_steps):
        if not batches:
            shuffled = torch.randperm(len(labels))
            batches = [part for part in shuffled.split(BATCH_SIZE) if len(part) >= BATCH_SIZE // 2]
        batch = batches.pop()
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
    return network


def score(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Compute the accuracy on images [N, 3, H, W]."""
    return (extract(network, images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    sys.exit(main())
