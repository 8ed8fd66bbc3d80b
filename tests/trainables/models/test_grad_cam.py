import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor

from spaces.rules import BACKBONES
from trainables.images import crop_pixels
from trainables.models.backbones import create_backbone
from trainables.models.classifier import Classifier, create_head
from trainables.models.ensemble import Ensemble
from trainables.models.grad_cam import GradCamError, grad_cam
from trainables.models.model import predict
from trainables.models.model_card import ModelCard


def build_ensemble(
    backbone: str, freeze_depth: int, members: int = 2, side: int = 64, hidden_units: int = 0
) -> Ensemble:
    """An ensemble with random weights, as different from one another as seeds make them."""
    torch.manual_seed(0)
    weights = []
    for seed in range(members):
        network = create_backbone(backbone, seed=seed)
        network.freeze(freeze_depth)
        head = create_head(network.feature_size, 3, hidden_units, 0.0)
        weights.append(Classifier(network, head).member_weights())
    prefix = create_backbone(backbone).stages[:freeze_depth].state_dict()
    cache_size = side + side // 8
    card = ModelCard(
        backbone, ("a", "b", "c"), side, cache_size, freeze_depth, hidden_units, members
    )
    return Ensemble(card, prefix, weights)


def images(n: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("freeze_depth", [0, 3, 5])
@pytest.mark.parametrize("hidden_units", [0, 16])
def test_grad_cam_equals_captums_layer_grad_cam(freeze_depth: int, hidden_units: int) -> None:
    ensemble = build_ensemble("tinynet", freeze_depth, members=1, hidden_units=hidden_units)
    table = images(3, 72)
    found = grad_cam(ensemble, table, [0, 1, 2])
    (classifier,) = ensemble.classifiers
    pool = classifier.backbone.stages[4][1]
    plain = LayerGradCam(classifier, pool).attribute(
        crop_pixels(table, 64).contiguous().requires_grad_(),
        target=torch.tensor([0, 1, 2]),
        attribute_to_layer_input=True,
        relu_attributions=True,
    )
    expected = plain.detach()[:, 0].numpy()
    highest = np.maximum(expected.max((1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(found, expected / highest, atol=1e-4)
    assert found.max() == 1.0


@pytest.mark.parametrize("freeze_depth", [0, 5])
def test_grad_cam_adds_up_the_members_maps(freeze_depth: int) -> None:
    ensemble = build_ensemble("tinynet", freeze_depth, members=3)
    table = images(2, 72)
    both = grad_cam(ensemble, table, [1, 1])
    alone = Ensemble(
        ModelCard(**{**vars(ensemble.card), "n_members": 1}),
        ensemble.prefix,
        ensemble.member_weights()[:1],
    )
    assert both.shape == (2, 8, 8)
    assert not np.allclose(both, grad_cam(alone, table, [1, 1]), atol=0.01)


def test_grad_cam_is_highest_at_the_object() -> None:
    ensemble = build_ensemble("tinynet", 5, members=1, side=96)
    classifier = ensemble.classifiers[0]
    table = torch.zeros(1, 108, 108, 3, dtype=torch.uint8)
    blank = classifier.backbone(crop_pixels(table, 96)).detach()
    table[:, 60:90, 66:96] = 255  # within the crop: rows 54 to 84, columns 60 to 90, of 96
    bright = classifier.backbone(crop_pixels(table, 96)).detach()
    head = classifier.head[1]
    head.weight.data[0] = bright[0] - blank[0]  # class 0 is the white square
    found = grad_cam(ensemble, table, [0])[0]
    row, column = np.unravel_index(found.argmax(), found.shape)
    side = found.shape[0]
    assert 54 / 96 <= (row + 0.5) / side <= 84 / 96
    assert 60 / 96 <= (column + 0.5) / side <= 90 / 96


def test_grad_cam_leaves_the_model_unchanged() -> None:
    ensemble = build_ensemble("tinynet", 2)
    table = images(2, 72)
    before = predict(ensemble, table).probabilities
    grad_cam(ensemble, table, [0, 1])
    assert torch.equal(predict(ensemble, table).probabilities, before)
    assert all(p.grad is None for p in ensemble.parameters())
    weight = ensemble.classifiers[0].backbone.stages[4][0][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_grad_cam_is_zero_where_nothing_speaks_for_the_class() -> None:
    ensemble = build_ensemble("tinynet", 5, members=1)
    ensemble.classifiers[0].head[1].weight.data.fill_(-1.0)  # features are never negative
    found = grad_cam(ensemble, images(1, 72), [0])
    assert (found == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_grad_cam_works_for_every_backbone(backbone: str) -> None:
    ensemble = build_ensemble(backbone, 4, members=1, side=96 if backbone != "vit_b_16" else 32)
    side = ensemble.card.cache_size
    found = grad_cam(ensemble, images(1, side), [1])
    assert found.ndim == 3
    assert found.shape[1] == found.shape[2] >= 2
    assert np.isfinite(found).all()
    assert found.min() == 0.0 or found.max() == 1.0


def test_grad_cam_raises_without_a_feature_map() -> None:
    ensemble = build_ensemble("tinynet", 5, members=1)
    ensemble.classifiers[0].backbone.stages[4] = torch.nn.Flatten()
    with pytest.raises(GradCamError, match="tinynet has no feature map in its last stage"):
        grad_cam(ensemble, images(1, 72), [0])
