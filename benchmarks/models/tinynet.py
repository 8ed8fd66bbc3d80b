"""Measure whether the pretrained `tinynet` earns its place on scikit-learn's digits.

python -m benchmarks.models.tinynet [--seeds 5] [--weights trainables/weights/tinynet.pth]

Prints accuracies (mean ± standard deviation over seeds; each seed draws its own labelled
images, and the others are the test) and writes benchmarks/results/tinynet.json. Every network is
trained by the same recipe, without augmentation, and judged at its last step.
"""

import argparse
import json
import time
from pathlib import Path

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

from benchmarks.harness.reporting import describe_setting
from spaces.glyphs import external_digits
from trainables.models.small_networks import tinynet_stages

IMAGE_SIZE = 32
BATCH_SIZE = 64
N_STEPS = 300
N_LABELS = (100, 1000, 1400)
# The better of 1e-3 and 3e-3 on the test images themselves, so the comparison favours scratch.
SCRATCH_LEARNING_RATE = 3e-3
FINE_TUNING_LEARNING_RATE = 1e-3
MAX_GRADIENT_NORM = 1.0
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
RESULTS = Path(__file__).parents[1] / "results" / "tinynet.json"


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--weights", type=Path, default=Path("trainables/weights/tinynet.pth"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    started = time.perf_counter()
    rows = measure(arguments.weights, arguments.seeds)
    seconds = round(time.perf_counter() - started, 1)
    setting = {**describe_setting("tinynet", "full", seconds), "seeds": arguments.seeds}
    table = {
        images: {way: summarise(values) for way, values in ways.items()}
        for images, ways in rows.items()
    }
    for images, ways in table.items():
        print(f"\n{images}")
        for way, figures in ways.items():
            print(f"  {way:<42} {figures['mean']:.4f} ± {figures['sd']:.4f}")
    print(f"\n{json.dumps(setting, indent=2)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**setting, "accuracy": table}, indent=2) + "\n")


def measure(weights: Path, n_seeds: int) -> dict[str, dict[str, list[float]]]:
    """Train and score every way of using the network.

    Args:
        weights: The pretrained state dict.
        n_seeds: How many draws of the labelled images, and of the scratch networks' weights.

    Returns:
        For each set of images and each way, one accuracy per seed.
    """
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images, labels = prepare(grey), torch.from_numpy(digits.target)
    external_grey, external_targets, _ = external_digits()
    external = (prepare(external_grey), torch.from_numpy(external_targets))
    features = extract(load(weights)[0], images).numpy()
    external_features = extract(load(weights)[0], external[0]).numpy()
    raw = digits.data / 16
    raw_external = external_grey.reshape(len(external_grey), -1) / 255

    rows: dict[str, dict[str, list[float]]] = {}

    def note(row: str, way: str, accuracy: float) -> None:
        rows.setdefault(row, {}).setdefault(way, []).append(float(accuracy))

    for seed in range(n_seeds):
        for n_labels in N_LABELS:
            train, test = train_test_split(
                np.arange(len(labels)),
                train_size=n_labels,
                stratify=digits.target,
                random_state=seed,
            )
            held_out = f"{n_labels} labels, {len(test)} others as test"
            outside = f"{n_labels} labels, {len(external_targets)} external digits as test"
            for way, inputs, outer in (
                ("raw pixels, linear", raw, raw_external),
                ("pretrained, frozen, linear head", features, external_features),
            ):
                probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
                probe.fit(inputs[train], digits.target[train])
                note(held_out, way, probe.score(inputs[test], digits.target[test]))
                note(outside, way, probe.score(outer, external_targets))
            for way, start, rate in (
                ("pretrained, fine-tuned", weights, FINE_TUNING_LEARNING_RATE),
                ("scratch", None, SCRATCH_LEARNING_RATE),
            ):
                network = train_network(start, images[train], labels[train], rate, seed)
                note(held_out, way, score(network, images[test], labels[test]))
                note(outside, way, score(network, *external))
    return rows


def summarise(accuracies: list[float]) -> dict[str, float | list[float]]:
    """Give the mean and the standard deviation over seeds, and the accuracies themselves."""
    mean, sd = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    return {"mean": mean, "sd": sd, "each": accuracies}


def prepare(grey: np.ndarray) -> Tensor:
    """Turn grey images [N, 8, 8] in 0 to 255 into what the digits space shows a network.

    Args:
        grey: uint8 images.

    Returns:
        ImageNet-normalised RGB [N, 3, 32, 32], scaled up bilinearly.
    """
    large = resize(torch.from_numpy(grey)[:, None], [IMAGE_SIZE, IMAGE_SIZE]) / 255
    return ((large - IMAGENET_MEAN) / IMAGENET_STD).contiguous(memory_format=torch.channels_last)


def load(weights: Path | None) -> tuple[nn.Sequential, int]:
    """Build the five stages, with the weights of a file or with random ones."""
    stages, n_features = tinynet_stages()
    if weights is not None:
        state = torch.load(weights, weights_only=True)
        nn.ModuleList(stages).load_state_dict(state)
    return nn.Sequential(*stages), n_features


@torch.no_grad()
def extract(backbone: nn.Module, images: Tensor) -> Tensor:
    """Compute what a frozen network makes of images [N, 3, H, W]."""
    backbone.eval()
    return torch.cat([backbone(batch) for batch in images.split(256)])


def train_network(
    weights: Path | None, images: Tensor, labels: Tensor, learning_rate: float, seed: int
) -> nn.Module:
    """Train all layers, with AdamW and a one-cycle schedule.

    Args:
        weights: Where to start, or none for random weights.
        images: [N, 3, 32, 32].
        labels: [N] from 0 to 9.
        learning_rate: The schedule's peak.
        seed: Seed of the random weights and of the order.

    Returns:
        The network with its head, after `N_STEPS` steps.
    """
    torch.manual_seed(seed)
    backbone, n_features = load(weights)
    network = nn.Sequential(backbone, nn.Linear(n_features, 10))
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=N_STEPS)
    batches: list[Tensor] = []
    for _ in range(N_STEPS):
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
    """Share of images whose likeliest class is the right one."""
    return (extract(network, images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
