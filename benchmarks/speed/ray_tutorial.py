"""Search as Ray Tune's tutorial shows: the other side of `vs_ray_tutorial`.

    python -m benchmarks.speed.ray_tutorial JOB.json

A function trainable; image files read by a Dataset and a DataLoader, decoded and transformed by
PIL and torchvision every time; a full forward pass each epoch; a checkpoint per epoch; a process
per trial. See https://docs.ray.io/en/latest/tune/examples/tune-pytorch-cifar.html.

Network, freezing, optimizer, schedule, batch size, ASHA and split are the same as ours, so that
only the implementation differs. `vs_ray_tutorial.py` writes the job and reads the results.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainables.models.backbones import create_backbone
from trainables.models.classifier import Classifier, create_head
from trainables.pretrained.weights import load_weights

# A trial has one CPU, so decoding in other processes gains nothing (measured: 0 is no slower).
N_LOADER_WORKERS = 0
WARMUP_FRACTION = 0.1
CHECKPOINT = "checkpoint.pt"

Sample = tuple[str, int]
"""An image's path and its label."""


@dataclass(frozen=True)
class Job:
    """The search to run.

    Attributes:
        configs: One trial each.
        epochs: Epochs of a full training.
        grace_epochs: See ASHA.
        reduction_factor: See ASHA.
        image_size: Side in pixels that the network sees.
        n_classes: Number of classes.
        weights: Path of the backbone's state dict, or None for random weights.
        samples: By split: "train", "val" and "test".
        max_concurrent: Trials in parallel.
        out: The JSON file to write.
    """

    configs: tuple[dict[str, Any], ...]
    epochs: int
    grace_epochs: int
    reduction_factor: int
    image_size: int
    n_classes: int
    weights: str | None
    samples: dict[str, list[Sample]]
    max_concurrent: int
    out: str

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Image files with labels, as torchvision's ImageFolder reads them."""

    def __init__(self, samples: Sequence[Sample], transform: transforms.Compose) -> None:
        self._samples = list(samples)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._samples[index]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), label


def training_transform(image_size: int, augment: float) -> transforms.Compose:
    """Crop, flip, rotate and change colours; `augment` in [0, 1] scales the reach of each."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                image_size,
                scale=(1 - 0.65 * augment, 1.0),
                ratio=((3 / 4) ** augment, (4 / 3) ** augment),
            ),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(30 * augment),
            transforms.ColorJitter(0.5 * augment, 0.5 * augment, 0.5 * augment, 0.1 * augment),
            transforms.ToTensor(),
        ]
    )


def evaluation_transform(image_size: int) -> transforms.Compose:
    """Resize the shorter side and cut out the centre."""
    return transforms.Compose(
        [
            transforms.Resize(round(image_size / 0.875)),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
        ]
    )


def create_model(config: dict[str, Any], weights: str | None, n_classes: int) -> Classifier:
    """Create the network of a configuration, its first stages frozen, in plain float32."""
    state = None if weights is None else load_weights(Path(weights))
    backbone = create_backbone(config["backbone"], state)
    backbone.freeze(config["freeze_depth"])
    return Classifier(backbone, create_head(backbone.feature_size, n_classes, 0, config["dropout"]))


def create_loader(
    samples: Sequence[Sample], transform: transforms.Compose, batch_size: int, shuffle: bool
) -> DataLoader[tuple[Tensor, int]]:
    """Create a loader of batches of image files."""
    dataset = ImageFolder(samples, transform)
    return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=N_LOADER_WORKERS)


def create_optimizer(
    model: nn.Module, config: dict[str, Any], n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Create AdamW for what is not frozen, with a warm-up and a cosine over `n_steps`."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config["lr"],
        weight_decay=config["weight_decay"],
    )
    n_warm = max(1, round(WARMUP_FRACTION * n_steps))

    def factor(step: int) -> float:
        if step < n_warm:
            return (step + 1) / n_warm
        return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_epoch(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, int]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    bfloat16: bool = False,
) -> float:
    """Train on every image once; return the mean loss in nats.

    The tutorial computes in float32. With `bfloat16` the forward pass is under an autocast.
    """
    model.train()
    loss_sum = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        loss_sum += loss.item() * len(labels)
    return loss_sum / len(loader.dataset)  # type: ignore[arg-type]


@torch.no_grad()
def measure_accuracy(model: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> float:
    """Compute the accuracy on a loader's images."""
    model.eval()
    n_right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    return n_right / len(loader.dataset)  # type: ignore[arg-type]


def train(config: dict[str, Any], job: Job) -> None:
    """Train one configuration and report each epoch: Ray Tune's function trainable."""
    from ray import tune

    params = config["params"]
    batch_size = params.get("batch_size", 32)
    model = create_model(params, job.weights, job.n_classes)
    transform = training_transform(job.image_size, params["augment"])
    loader = create_loader(job.samples["train"], transform, batch_size, shuffle=True)
    val_loader = create_loader(
        job.samples["val"], evaluation_transform(job.image_size), 64, shuffle=False
    )
    optimizer, schedule = create_optimizer(model, params, len(loader) * job.epochs)
    for epoch in range(1, job.epochs + 1):
        started = perf_counter()
        loss = train_epoch(model, loader, optimizer, schedule)
        accuracy = measure_accuracy(model, val_loader)
        seconds = perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, Path(folder) / CHECKPOINT)
            tune.report(
                {"epoch": epoch, "loss": loss, "val_accuracy": accuracy, "seconds": seconds},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


def search(job: Job, storage: Path) -> Any:
    """Run all configurations; return Tune's results."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        time_attr="epoch",
        max_t=job.epochs,
        grace_period=job.grace_epochs,
        reduction_factor=job.reduction_factor,
    )
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, job=job), {"cpu": 1}),
        param_space={"params": tune.grid_search(list(job.configs))},
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            scheduler=scheduler,
            max_concurrent_trials=job.max_concurrent,
        ),
        run_config=tune.RunConfig(storage_path=str(storage), name="tutorial", verbose=0),
    )
    return tuner.fit()


def describe_trials(results: Any) -> list[dict[str, Any]]:
    """Return each trial's parameters, and accuracy and seconds by epoch."""
    trials = []
    for result in results:
        frame = result.metrics_dataframe
        if result.error is not None or frame is None:
            raise RuntimeError(f"a trial of the tutorial failed: {result.error}")
        trials.append(
            {
                "params": result.config["params"],
                "val_accuracy": frame["val_accuracy"].tolist(),
                "seconds": frame["seconds"].tolist(),
            }
        )
    return trials


def test_accuracy(best: Any, job: Job) -> float:
    """Compute the test accuracy of the best epoch of the best trial."""
    model = create_model(best.config["params"], job.weights, job.n_classes)
    checkpoint = best.get_best_checkpoint("val_accuracy", "max")
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    loader = create_loader(job.samples["test"], evaluation_transform(job.image_size), 64, False)
    return measure_accuracy(model, loader)


def main() -> None:
    """Run the job given on the command line and write its results."""
    started = perf_counter()
    import ray

    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        results = search(job, Path(storage))
        search_seconds = perf_counter() - started
        best = results.get_best_result("val_accuracy", "max", scope="all")
        content = {
            "search_seconds": search_seconds,
            "trials": describe_trials(results),
            "best_val_accuracy": float(best.metrics_dataframe["val_accuracy"].max()),
            "test_accuracy": test_accuracy(best, job),
        }
    Path(job.out).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
