from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from search.deployment.exporters import run_onnx, run_program, write_int8, write_onnx, write_program
from search.deployment.parity import central_pixels
from search.export import one_member
from trainables.images import crop_pixels
from trainables.models.backbones import create_backbone
from trainables.models.center_crop import CENTER_FRACTION, enlarge_center
from trainables.models.classifier import Classifier, Weights, create_head, weights_from_stage
from trainables.models.ensemble import Ensemble
from trainables.models.export_module import ExportModule
from trainables.models.grad_cam import grad_cam
from trainables.models.model import load_model, save_model
from trainables.models.model_card import ModelCard, ModelError

CARD = ModelCard("tinynet", ("a", "b", "c"), 32, 36, 3, 0, n_members=2, center_crop=True)


def images(n: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 36, 36, 3), generator=generator, dtype=torch.uint8)


def members(card: ModelCard) -> list[Weights]:
    """Return members whose unfrozen stages are not the pretrained ones."""
    made = []
    for seed in range(card.n_members):
        backbone = create_backbone("tinynet", seed=0)
        tuned = create_backbone("tinynet", seed=10 + seed)
        for index in range(card.freeze_depth, 5):
            backbone.stages[index] = tuned.stages[index]
        backbone.freeze(card.freeze_depth)
        torch.manual_seed(seed)
        head = create_head(backbone.feature_size, 3, card.hidden_units, 0.0)
        made.append(Classifier(backbone, head).member_weights())
    return made


def heads(card: ModelCard) -> Weights:
    generator = torch.Generator().manual_seed(5)
    shape = (card.n_members, 3, create_backbone("tinynet").feature_size)
    weight = torch.randn(shape, generator=generator)
    return {"weight": weight, "bias": torch.randn(shape[:2], generator=generator)}


def build(card: ModelCard = CARD) -> Ensemble:
    pretrained = create_backbone("tinynet", seed=0)
    branch = weights_from_stage(pretrained, card.freeze_depth) | heads(card)
    prefix = pretrained.stages[: card.freeze_depth].state_dict()
    return Ensemble(card, prefix, members(card), center_crop=branch if card.center_crop else None)


def test_enlarge_center_equals_pillow() -> None:
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    side = 64
    image = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    found = enlarge_center(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float())
    cut = round(side * (1 - CENTER_FRACTION) / 2)
    box = (cut, cut, side - cut, side - cut)
    expected = Image.fromarray(image).crop(box).resize((side, side), Image.Resampling.BILINEAR)
    difference = found[0].permute(1, 2, 0).numpy() - np.asarray(expected, np.float32)
    assert np.abs(difference).max() <= 1.0, "Pillow rounds to whole steps"


@pytest.mark.parametrize("depth", [0, 3, 5])
@pytest.mark.parametrize("hidden_units", [0, 16])
def test_center_crop_logits_are_added_to_the_members(depth: int, hidden_units: int) -> None:
    card = replace(CARD, freeze_depth=depth, hidden_units=hidden_units)
    both, without = build(card), build(replace(card, center_crop=False))
    pixels = crop_pixels(images(), 32)
    features = create_backbone("tinynet", seed=0).eval()(enlarge_center(pixels))
    head = heads(card)
    with torch.no_grad():
        added = torch.stack(
            [features @ w.T + b for w, b in zip(head["weight"], head["bias"], strict=True)]
        )
        torch.testing.assert_close(both(pixels), without(pixels) + added, atol=1e-4, rtol=1e-4)
        features = both.features_and_logits(pixels)[0]
        assert torch.equal(features, without.features_and_logits(pixels)[0]), (
            "the OOD scorer's input"
        )
    assert both.center_crop is not None
    for index, stage in enumerate(both.center_crop.backbone.stages):
        shared = stage is both.classifiers[0].backbone.stages[index]
        assert shared == (index < depth), "frozen stages are stored once"
    assert not any(p.requires_grad for p in both.center_crop.parameters())


@pytest.mark.parametrize("depth", [0, 3, 5])
def test_load_model_restores_the_center_crop_branch(depth: int, tmp_path: Path) -> None:
    card = replace(CARD, freeze_depth=depth)
    model, path = build(card), tmp_path / "model.pt"
    save_model(model, path)
    again = load_model(path)
    assert again.card == card
    assert torch.equal(again.logits(images()), model.logits(images()))
    if depth == 5:  # no stage is stored twice: the branch adds two heads
        without = tmp_path / "without.pt"
        save_model(build(replace(card, center_crop=False)), without)
        n_bytes = 4 * sum(tensor.numel() for tensor in heads(card).values())
        assert path.stat().st_size - without.stat().st_size < n_bytes + 2000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("center_crop"), "only one of card and weights has a centre-crop branch"),
        (
            lambda c: _on_card(c, center_crop=False),
            "only one of card and weights has a centre-crop",
        ),
        (lambda c: _on_card(c, center_crop=1), "its center_crop must be true or false, but is 1"),
        (lambda c: c["center_crop"].pop("stages.4.0.0.weight"), "are missing: 4.0.0.weight"),
        (lambda c: c["center_crop"].pop("bias"), "KeyError: 'bias'"),
        (
            lambda c: c["center_crop"].update(weight=torch.zeros(1, 3, 128)),
            r"centre-crop heads must be .* = \(2, 3, 128\), but got \(1, 3, 128\)",
        ),
        (lambda c: c.update(center_crop=[1]), "is damaged"),
    ],
)
def test_load_model_raises_for_an_invalid_center_crop_branch(
    change: Any, reason: str, tmp_path: Path
) -> None:
    """Otherwise stages would silently keep their random weights."""
    path = tmp_path / "model.pt"
    save_model(build(), path)
    content = torch.load(path, weights_only=True)
    change(content["parts"][0])
    torch.save(content, path)
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")


def _on_card(content: dict[str, Any], **changes: object) -> None:
    content["card"] = json.dumps(json.loads(content["card"]) | changes)


@pytest.mark.parametrize("depth", [0, 3, 5])
def test_one_member_keeps_its_center_crop_head(depth: int) -> None:
    model = build(replace(CARD, freeze_depth=depth))
    alone = one_member(model, 2)
    torch.testing.assert_close(alone.logits(images())[0], model.logits(images())[1])


@pytest.mark.parametrize("depth", [3, pytest.param(5, marks=pytest.mark.long)])
def test_exported_models_include_the_center_crop_branch(depth: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra: export")
    model = build(replace(CARD, freeze_depth=depth))
    pixels = central_pixels(model.card, images().numpy())
    with torch.no_grad():
        x = crop_pixels(images(), 32)
        expected = torch.softmax(model(x), 2).mean(0)
        torch.testing.assert_close(ExportModule(model)(torch.from_numpy(pixels))[0], expected)
    write_onnx(model, tmp_path / "model.onnx")
    found = run_onnx(tmp_path / "model.onnx", pixels).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-4)
    write_program(model, tmp_path / "model.pt2")
    found = run_program(tmp_path / "model.pt2", pixels).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-4)
    write_int8(model, images().numpy(), tmp_path / "int8.onnx")
    found = run_onnx(tmp_path / "int8.onnx", pixels).probabilities
    np.testing.assert_allclose(found, expected, atol=0.1)


@pytest.mark.parametrize("depth", [3, 5])
def test_grad_cam_ignores_the_center_crop_branch(depth: int) -> None:
    card = replace(CARD, freeze_depth=depth)
    both, without = build(card), build(replace(card, center_crop=False))
    maps = grad_cam(both, images(2), [0, 1])
    np.testing.assert_allclose(maps, grad_cam(without, images(2), [0, 1]), atol=1e-5)
    assert both.center_crop is not None, "the model is not changed"
