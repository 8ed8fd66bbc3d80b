"""A finished run on small pictures, made in a second, without a search."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from search.dataset import picture_digest
from search.evaluate import write_predictions
from search.folder import RunFolder
from trainables.backbones import create_backbone
from trainables.doubt import energy, fit_doubt, fit_subspace, residual
from trainables.images import crop_and_normalise, fit
from trainables.model import Classifier, Ensemble, ModelCard, create_head
from trainables.weights import PACKAGED, load_weights

CLASSES = ("red", "grün und blau", "blue")
"""Not in the order of their names."""
N_TRAIN, N_TEST = 12, 6

SPACE = f"""
from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(classes={CLASSES!r}),
    params={{"backbone": "tinynet", "freeze_depth": 5}},
    image_size=32,
)
"""


def colour_picture(label: int, seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Draw noise with one strong channel: class `label`."""
    rng = np.random.default_rng(1000 * label + seed)
    pixels = rng.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    pixels[:, :, label] += 100
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def colour_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class of `CLASSES`."""
    root = tmp_path_factory.mktemp("colours") / "pictures"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(N_TRAIN + N_TEST):
            colour_picture(label, index).save(root / name / f"{index:03}.png")
    return root


@pytest.fixture(scope="session")
def colour_run(tmp_path_factory: pytest.TempPathFactory, colour_pictures: Path) -> Path:
    """The folder of a run that tells the colours apart: five members over frozen tinynet."""
    card = ModelCard("tinynet", CLASSES, 32, 36, 5, 0, n_members=5, temperature=1.25)
    backbone = create_backbone("tinynet", load_weights(PACKAGED["tinynet"]))
    backbone.freeze(5)
    backbone.eval()
    names = [
        (f"{name}/{index:03}.png", label, "test" if index >= N_TRAIN else "train")
        for label, name in enumerate(CLASSES)
        for index in range(N_TRAIN + N_TEST)
    ]
    packed = [fit(Image.open(colour_pictures / name), 36, 32) for name, *_ in names]
    with torch.no_grad():
        features = backbone(crop_and_normalise(torch.from_numpy(np.stack(packed)), 32), 0, 5)
    labels = torch.tensor([label for _, label, _ in names])
    train = torch.tensor([split == "train" for *_, split in names])
    members, subspaces, signs = [], [], []
    for fold in range(5):
        chosen = train & (torch.arange(len(names)) % 5 != fold)
        head = create_head(backbone.feature_size, 3, 0, 0.0)
        x = torch.cat([features[chosen], torch.ones(int(chosen.sum()), 1)], 1)
        target = 6 * torch.nn.functional.one_hot(labels[chosen], 3).float() - 2
        solved = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ target)
        with torch.no_grad():
            head[1].weight.copy_(solved[:-1].T)
            head[1].bias.copy_(solved[-1])
            left_out = features[train & ~chosen]
            subspaces.append(fit_subspace(features[chosen]))
            signs.append((residual(left_out, subspaces[-1]), energy(head(left_out))))
        members.append(Classifier(backbone, head).member_weights())
    residuals, energies = (torch.cat(both) for both in zip(*signs, strict=True))
    doubt = fit_doubt(subspaces, residuals, energies)
    ensemble = Ensemble(card, backbone.stages.state_dict(), members, doubt)
    run = tmp_path_factory.mktemp("runs") / "colours"
    run.mkdir()
    folder = RunFolder(run)
    ensemble.save(run / "model.pt")
    space = run.with_name("space.py")
    space.write_text(SPACE, encoding="utf-8")
    folder.write_origin(space, {"data": str(colour_pictures)})
    with (run / "split.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "label", "split", "digest"])
        for name, label, part in names:
            digest = picture_digest((colour_pictures / name).read_bytes())
            writer.writerow((name, CLASSES[label], part, digest))
    held_out = torch.from_numpy(np.stack(packed))[~train]
    write_predictions(
        run / "test_predictions.csv",
        [name for name, _, split in names if split == "test"],
        labels[~train].numpy(),
        ensemble.probabilities(held_out).numpy(),
        CLASSES,
    )
    return run
