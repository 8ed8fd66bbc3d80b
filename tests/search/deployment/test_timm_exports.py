"""Networks of timm as models: trained a step at each depth, saved, exported, with equal outputs."""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from search.deployment.exporters import run_onnx, run_program, write_onnx, write_program
from search.deployment.parity import TOLERANCE, central_pixels, expected_outputs, generate_images
from spaces.timm_names import PREFIX
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.classifier import Classifier, create_head
from trainables.models.ensemble import Ensemble
from trainables.models.grad_cam import GradCamError, grad_cam
from trainables.models.model import load_model, save_model
from trainables.models.model_card import ModelCard

SIZES = {"vit_small_patch14_dinov2": 28}
MORE_SIZES = {
    "tf_efficientnet_lite0": 64,
    "vit_small_patch16_dinov3": 32,
    "swin_tiny_patch4_window7_224": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 32,
    "deit_tiny_distilled_patch16_224": 32,
    "eva02_tiny_patch14_224": 28,
    "beit_base_patch16_224": 32,
    "vit_base_patch16_siglip_224": 32,
    "swinv2_tiny_window8_256": 64,
    "convnextv2_atto": 64,
    "resnet18": 64,
    "resnet26d": 64,
    "efficientnetv2_rw_t": 64,
    "mobilenetv2_050": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64,
    "regnety_002": 64,
    "densenet121": 64,
    "convmixer_768_32": 56,
    "poolformerv2_s12": 64,
    "hrnet_w18_small": 64,
}
TRANSFORMERS = (
    *("vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "vit_tiny_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"),
    "vit_base_patch16_siglip_224",
)
FEWER_BLOCKS: dict[str, dict[str, Any]] = {
    **{name: {"depth": 5} for name in TRANSFORMERS},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1)},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 2, 1)},
    "densenet121": {"block_config": (2, 2, 2, 2)},
}
"""Arguments of timm for networks of many equal blocks, whose export takes a time for each."""

NAMES = [*SIZES, *(pytest.param(name, marks=pytest.mark.long) for name in MORE_SIZES)]


@pytest.fixture(autouse=True)
def fewer_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    create_model = timm.create_model

    def create(name: str, **options: Any) -> torch.nn.Module:
        return create_model(name, **{**FEWER_BLOCKS.get(name, {}), **options})

    monkeypatch.setattr(timm, "create_model", create)


@functools.cache
def untrained(name: str) -> Backbone:
    return create_backbone(PREFIX + name, seed=0, image_size=(SIZES | MORE_SIZES)[name])


def trained_model(name: str, freeze_depth: int) -> Ensemble:
    """Train the unfrozen stages and a head for one step, from random weights."""
    backbone = copy.deepcopy(untrained(name))
    size = backbone.image_size
    backbone.freeze(freeze_depth)
    prefix = {k: v.clone() for k, v in backbone.stages[:freeze_depth].state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = create_head(backbone.feature_size, 3, 0, 0.0)
    classifier = Classifier(backbone, head).train()
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    pixels = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(classifier(pixels), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    optimizer.step()
    card = ModelCard(
        PREFIX + name,
        ("a", "b", "c"),
        size,
        size + size // 8,
        freeze_depth,
        0,
        1,
        mean=backbone.normalise.mean,
        std=backbone.normalise.std,
    )
    return Ensemble(card, prefix, [classifier.member_weights()])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_timm_is_trained_saved_and_exported(name: str, tmp_path: Path) -> None:
    for depth in range(5, -1, -1):
        model = trained_model(name, depth)
    model = trained_model(name, 3)
    decoded = generate_images(model.card, 3).decoded
    save_model(model, tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt")
    images = torch.from_numpy(decoded)
    assert torch.equal(loaded.logits(images), model.logits(images))
    expected = expected_outputs(loaded, decoded).probabilities
    write_program(loaded, tmp_path / "model.pt2")
    pixels = central_pixels(loaded.card, decoded)
    program = run_program(tmp_path / "model.pt2", pixels).probabilities
    assert np.abs(program - expected).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_onnx_graph_of_a_network_of_timm_has_equal_outputs(name: str, tmp_path: Path) -> None:
    model = trained_model(name, 3)
    decoded = generate_images(model.card, 3).decoded
    write_onnx(model, tmp_path / "model.onnx")
    pixels = central_pixels(model.card, decoded)
    onnx = run_onnx(tmp_path / "model.onnx", pixels).probabilities
    assert np.abs(onnx - expected_outputs(model, decoded).probabilities).max() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_grad_cam_of_a_network_of_timm(name: str) -> None:
    for depth in (5, 3):
        model = trained_model(name, depth)
        decoded = torch.from_numpy(generate_images(model.card, 3).decoded)
        every = decoded.repeat_interleave(3, dim=0)
        maps = grad_cam(model, every, [0, 1, 2] * 3)
        assert maps.shape[0] == 9
        assert maps.shape[1] == maps.shape[2] >= 2
        assert np.isfinite(maps).all()
        assert maps.max() == 1.0, "every position speaks against all three classes"


def test_grad_cam_says_where_there_is_no_map() -> None:
    model = trained_model("vit_tiny_patch16_224", 5)
    model.classifiers[0].backbone.stages[4] = torch.nn.Sequential(torch.nn.Flatten(1))
    with pytest.raises(GradCamError, match="vit_tiny_patch16_224 has no feature map"):
        grad_cam(model, torch.zeros(1, 36, 36, 3, dtype=torch.uint8), [0])
