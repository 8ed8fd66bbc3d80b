"""Fine-tune one pretrained network in one fixed way, as a careful person writes it by hand.

Every training image is trained on, and nothing is searched: a network of timm or torchvision with
a new head, AdamW with learning rates that fall towards the first layers, warm-up and cosine,
RandomResizedCrop and flips, in float32 or bfloat16, whichever is faster here. The schedule follows
the clock, so that it ends when the time does; MAX_EPOCHS end it earlier on the smallest sets. It
uses nothing of the project's trainer.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.tuning.competitors.job import Job, read_job

PREFERRED = ("timm/tf_efficientnet_lite0", "mobilenet_v2", "squeezenet1_0")
"""The first that is at hand is trained: the best network of ImageNet that is as fast as these."""

BATCH_SIZE = 32
MAX_EPOCHS = 100
HEAD_LR = 2e-3
BACKBONE_LR = 5e-4  # of the last quarter of the backbone's tensors
LR_DECAY = 0.5  # from one quarter to the one before
WEIGHT_DECAY = 0.02
WARMUP_FRACTION = 0.1
MIN_CROP = 0.35  # smallest fraction of an image's area that RandomResizedCrop takes
CLOSING_SECONDS = 2.0
"""Kept for writing the model."""

MIN_SECONDS = 1.0
"""Training takes so long even where no time is left: a busy machine overruns, but has a model."""

_PREFIX = "timm/"
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_PARTS = 4


def create_network(name: str, n_classes: int, weights: str | None) -> tuple[nn.Module, list[str]]:
    """Create a network with a new head.

    Args:
        name: As torchvision calls it, or timm's with "timm/" before it.
        n_classes: Number of classes.
        weights: Folder of files that are called as the network; None starts from scratch.

    Returns:
        The network, and the names of its head's parameters.
    """
    stem = name.removeprefix(_PREFIX)
    if name.startswith(_PREFIX):
        network: nn.Module = timm.create_model(stem, num_classes=n_classes)
    else:
        network = torchvision.models.get_model(stem, num_classes=n_classes)
    state = {} if weights is None else _read_state(Path(weights), stem)
    own = network.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    # The head is what differs with the number of classes, whatever this number is.
    head = [name for name, _ in network.named_parameters()][-2:]
    network.load_state_dict({k: v for k, v in fitting.items() if k not in head}, strict=False)
    lacking = [name for name, _ in network.named_parameters() if name not in {*fitting, *head}]
    if state and lacking:
        raise ValueError(f"the weights of {name} lack {', '.join(lacking[:3])}")
    return network, head


def _read_state(folder: Path, stem: str) -> dict[str, Tensor]:
    if (folder / f"{stem}.safetensors").is_file():
        return dict(load_file(folder / f"{stem}.safetensors"))
    return dict(torch.load(folder / f"{stem}.pth", map_location="cpu", weights_only=True))


def normalisation(name: str) -> transforms.Normalize:
    """Return what a network's weights were trained with."""
    config: dict[str, Any] = _IMAGENET
    if name.startswith(_PREFIX):
        config = vars(timm.get_pretrained_cfg(name.removeprefix(_PREFIX)))
    return transforms.Normalize(config["mean"], config["std"])


def parameter_groups(network: nn.Module, head: Sequence[str]) -> list[dict[str, Any]]:
    """Group parameters by learning rate; normalisations and biases do not decay."""
    named = dict(network.named_parameters())
    backbone = [name for name in named if name not in head]
    groups = []
    for index, name in enumerate(backbone):
        part = index * _PARTS // len(backbone)
        groups.append((name, BACKBONE_LR * LR_DECAY ** (_PARTS - 1 - part)))
    groups += [(name, HEAD_LR) for name in head]
    return [
        {
            "params": [named[name]],
            "lr": lr,
            "peak": lr,
            "weight_decay": WEIGHT_DECAY if named[name].ndim > 1 else 0.0,
        }
        for name, lr in groups
    ]


def schedule(progress: float) -> float:
    """Return the factor on the learning rates: a linear warm-up, then a cosine to 0.

    Args:
        progress: Fraction of the training that is done, in [0, 1].
    """
    if progress < WARMUP_FRACTION:
        return progress / WARMUP_FRACTION
    done = (progress - WARMUP_FRACTION) / (1 - WARMUP_FRACTION)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(job: Job) -> None:
    """Train until the time is up, and write the model."""
    torch.manual_seed(job.seed)
    name = next((one for one in PREFERRED if one in job.backbones), PREFERRED[1])
    train_transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(job.image_size, scale=(MIN_CROP, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            normalisation(name),
        ]
    )
    dataset = ImageFolder(
        str(job.train), train_transform, loader=_load_rgb, is_valid_file=lambda _: True
    )
    size = min(BATCH_SIZE, len(dataset))
    loader = DataLoader(
        dataset,
        size,
        shuffle=True,
        drop_last=len(dataset) % size == 1,  # BatchNorm cannot train on one image
        num_workers=2,
        persistent_workers=True,
    )
    network, head = create_network(name, len(dataset.classes), job.weights)
    network = network.to(memory_format=torch.channels_last).train()
    bfloat16 = is_faster_in_bfloat16(network, *next(iter(loader)))
    optimizer = torch.optim.AdamW(parameter_groups(network, head))
    n_steps, n_done = MAX_EPOCHS * len(loader), 0
    started, seconds = perf_counter(), max(MIN_SECONDS, job.seconds_left() - CLOSING_SECONDS)
    progress = 0.0
    while progress < 1:
        for images, labels in loader:
            progress = max((perf_counter() - started) / seconds, n_done / n_steps)
            if progress >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(progress)
            _train_batch(network, optimizer, images, labels, bfloat16)
            n_done += 1
    precision = "bfloat16" if bfloat16 else "float32"
    print(f"{name}: {n_done / len(loader):.1f} epochs in {precision}")
    content = {"name": name, "classes": dataset.classes, "image_size": job.image_size}
    torch.save({**content, "state": network.state_dict()}, job.model)


def is_faster_in_bfloat16(network: nn.Module, images: Tensor, labels: Tensor) -> bool:
    """Time a training step of a copy in float32 and in bfloat16, after one to warm up."""
    seconds = {}
    for bfloat16 in (False, True):
        copied = copy.deepcopy(network)
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.0)
        _train_batch(copied, optimizer, images, labels, bfloat16)
        started = perf_counter()
        _train_batch(copied, optimizer, images, labels, bfloat16)
        seconds[bfloat16] = perf_counter() - started
    return seconds[True] < seconds[False]


def _train_batch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    bfloat16: bool,
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def predict(model: Path, paths: Sequence[Path]) -> tuple[Tensor, list[str]]:
    """Predict images with a model that `train` wrote.

    Returns:
        Probabilities, float32 [images, classes], and the classes.
    """
    content = torch.load(model, weights_only=True)
    network, _ = create_network(content["name"], len(content["classes"]), None)
    network.load_state_dict(content["state"])
    network = network.to(memory_format=torch.channels_last).eval()
    size = content["image_size"]
    transform = transforms.Compose(
        [
            transforms.Resize(round(size / 0.875)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            normalisation(content["name"]),
        ]
    )
    parts = []
    for start in range(0, len(paths), BATCH_SIZE):
        batch = [transform(_load_rgb(str(path))) for path in paths[start : start + BATCH_SIZE]]
        logits = network(torch.stack(batch).contiguous(memory_format=torch.channels_last))
        parts.append(logits.softmax(1))
    return torch.cat(parts), list(content["classes"])


def _load_rgb(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def main() -> None:
    """Run the job given on the command line."""
    train(read_job(sys.argv[1]))


if __name__ == "__main__":
    main()
