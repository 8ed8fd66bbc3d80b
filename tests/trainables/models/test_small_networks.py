import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from trainables.models.small_networks import cnn_stages, tinynet_stages
from trainables.pretrained.weights import PACKAGED

WEIGHTS = PACKAGED["tinynet"]
N_SEEDS = 3


@pytest.mark.parametrize("build", [tinynet_stages, cnn_stages])
@pytest.mark.parametrize("image_size", [28, 32, 64, 224])
def test_five_stages_return_one_finite_feature_vector(build, image_size):
    stages, n_features = build()
    assert len(stages) == 5
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        features = nn.Sequential(*stages).eval()(images)
    assert features.shape == (2, n_features)
    assert features.isfinite().all()
    assert features.std() > 0


@pytest.mark.parametrize("build", [tinynet_stages, cnn_stages])
def test_every_stage_has_parameters_and_all_get_a_gradient(build):
    stages, _ = build()
    network = nn.Sequential(*stages)
    network(torch.randn(4, 3, 28, 28)).square().sum().backward()
    for stage in stages:
        gradients = [parameter.grad for parameter in stage.parameters()]
        assert gradients
        assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_tinynet_is_small():
    stages, _ = tinynet_stages()
    n_parameters = sum(p.numel() for p in nn.ModuleList(stages).parameters())
    assert 100_000 < n_parameters <= 400_000


def test_tinynet_has_batch_norm_in_every_stage():
    stages, _ = tinynet_stages()
    for stage in stages:
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in stage.modules())


def test_cnn_has_no_normalisation_and_no_dropout():
    stages, _ = cnn_stages()
    layers = {type(layer) for layer in nn.ModuleList(stages).modules()}
    assert not layers & {nn.BatchNorm2d, nn.Dropout, nn.Dropout2d}


def test_packaged_weights_fit_the_network():
    assert WEIGHTS.stat().st_size <= 1_000_000
    state = torch.load(WEIGHTS, weights_only=True)
    stages = nn.ModuleList(tinynet_stages()[0])
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in stages.state_dict().items()
    }
    assert all(value.isfinite().all() for value in state.values())
    stages.load_state_dict(state)


@pytest.mark.long
def test_frozen_pretrained_features_beat_pixels_random_features_and_scratch():
    digits = load_digits()
    images = _normalise(torch.from_numpy(digits.images).float() / 16)
    pretrained = nn.ModuleList(tinynet_stages()[0])
    pretrained.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    torch.manual_seed(0)
    untrained = nn.ModuleList(tinynet_stages()[0])
    inputs = {
        "pixels": digits.data / 16,
        "pretrained": _extract(pretrained, images),
        "untrained": _extract(untrained, images),
    }
    accuracies = {name: [] for name in inputs}
    for seed in range(N_SEEDS):
        train, test = train_test_split(
            np.arange(len(images)), train_size=100, stratify=digits.target, random_state=seed
        )
        for name, features in inputs.items():
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
            probe.fit(features[train], digits.target[train])
            accuracies[name].append(probe.score(features[test], digits.target[test]))
        if seed == 0:
            labels = torch.from_numpy(digits.target)
            network = _train_from_scratch(images[train], labels[train])
            scratch = (network(images[test]).argmax(1) == labels[test]).float().mean().item()
    means = {name: float(np.mean(values)) for name, values in accuracies.items()}
    assert means["pretrained"] >= 0.94
    assert means["pretrained"] >= means["pixels"] + 0.03
    assert means["pretrained"] >= means["untrained"] + 0.03
    assert scratch > 0.7, "the comparison needs a scratch network that has learned"
    assert accuracies["pretrained"][0] >= scratch + 0.02


def _normalise(images):
    """[N, 8, 8] in 0 to 1 becomes ImageNet-normalised [N, 3, 32, 32]."""
    large = F.interpolate(images.unsqueeze(1), size=(32, 32), mode="bilinear", align_corners=False)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (large - mean) / std


@torch.no_grad()
def _extract(stages, images):
    return nn.Sequential(*stages).eval()(images).numpy()


def _train_from_scratch(images, labels, n_steps=120):
    torch.manual_seed(0)
    stages, n_features = tinynet_stages()
    network = nn.Sequential(*stages, nn.Linear(n_features, 10)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n_steps)
    for _ in range(n_steps):
        batch = torch.randperm(len(labels))[:50]
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)
