import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from search.deployment import exporters, parity
from search.export import ExportError, one_member
from tests.trainables.models.test_ensemble import CARD, classifier, images
from trainables.models.digest import model_digest
from trainables.models.ensemble import Ensemble, mean_probabilities
from trainables.models.grad_cam import grad_cam
from trainables.models.model import (
    MAX_PARTS,
    Model,
    count_members,
    join,
    load_model,
    predict,
    save_model,
)
from trainables.models.model_card import ModelCard, ModelError
from trainables.models.ood import OODScorer


def part(card: ModelCard, seed: int, ood: bool = False) -> Ensemble:
    """Build an ensemble of seeded members."""
    members = [classifier(card, seed + i) for i in range(card.n_members)]
    prefix = members[0].backbone.stages[: card.freeze_depth].state_dict()
    n, size = card.n_members, members[0].backbone.feature_size
    scale = torch.tensor([1.0, 0.1, seed], dtype=torch.double)
    means = torch.arange(float(n))[:, None].expand(n, size)
    scorer = OODScorer(means, torch.eye(1, size).repeat(n, 1, 1), scale)
    weights = [member.member_weights() for member in members]
    return Ensemble(card, prefix, weights, scorer if ood else None)


HEAVY = replace(CARD, n_members=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), licence="apache-2.0")
LIGHT = replace(
    CARD,
    backbone="cnn",
    freeze_depth=0,
    hidden_units=8,
    n_members=1,
    temperature=0.5,
    licence="cc-by-nc-4.0",
)


@pytest.fixture(scope="module")
def model() -> Model:
    return join([part(HEAVY, 1, ood=True), part(LIGHT, 5, ood=True)], [0.75, 0.25])


def test_predict_averages_the_calibrated_probabilities_by_weight(model: Model) -> None:
    outputs = predict(model, images())
    heavy, light = (one.logits(images()) for one in model.parts)
    expected = 0.75 * mean_probabilities(heavy, 1.5) + 0.25 * mean_probabilities(light, 0.5)
    torch.testing.assert_close(outputs.probabilities, expected)
    torch.testing.assert_close(outputs.probabilities.sum(1), torch.ones(5))
    plain = 0.75 * mean_probabilities(heavy, 1.0) + 0.25 * mean_probabilities(light, 1.0)
    torch.testing.assert_close(outputs.uncalibrated, plain)
    assert not torch.allclose(outputs.probabilities, mean_probabilities(heavy, 1.5), atol=0.01)


def test_each_part_normalises_as_its_card_says(model: Model) -> None:
    assert HEAVY.mean != LIGHT.mean
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for one in model.parts:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (one.card.mean, one.card.std))
        for member in one.classifiers:
            torch.testing.assert_close(member.backbone.normalise(pixels), (pixels - mean) / std)


def test_the_heaviest_part_scores_how_far_an_image_is_and_is_explained(model: Model) -> None:
    first = model.parts[0]
    assert torch.equal(
        torch.as_tensor(predict(model, images()).ood_score), first.predict_with_ood(images())[1]
    )
    assert (grad_cam(model, images(1), [0]) == grad_cam(first, images(1), [0])).all()


def test_a_model_of_one_part_is_that_ensemble() -> None:
    alone = part(HEAVY, 1)
    assert join([alone], [1.0]) is alone
    assert predict(alone, images()).ood_score is None


def test_load_model_restores_all_parts(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    assert [one.card for one in again.parts] == [HEAVY, LIGHT]
    assert again.weights == (0.75, 0.25)
    assert count_members(again) == 3
    before, after = predict(model, images()), predict(again, images())
    assert torch.equal(before.probabilities, after.probabilities)
    # The scorer is saved in half precision.
    torch.testing.assert_close(before.ood_score, after.ood_score, atol=0.01, rtol=0.01)
    save_model(again, tmp_path / "again.pt")
    assert model_digest(again) == model_digest(load_model(tmp_path / "again.pt"))
    other = join(again.parts, [0.7, 0.3])
    assert model_digest(again) != model_digest(other), "the weights are part of a model"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(weights=[0.5]), "a weight for each, but has 2 and 1"),
        (lambda c: c.update(weights=[0.25, 0.75]), "weights must be above 0, descend, and sum to"),
        (lambda c: c.update(weights=[1.5, -0.5]), "weights must be above 0"),
        (lambda c: c.update(weights=[0.5, 0.4]), "weights must be above 0"),
        (lambda c: c.update(weights=[float("nan")] * 2), "weights must be above 0"),
        (lambda c: c.update(weights=["heavy", "light"]), "could not convert string to float"),
        (lambda c: c.update(weights=3), "TypeError"),
        (lambda c: c.update(parts=[]), "a model must have 1 to 20 parts"),
        (lambda c: c.update(parts=[None] * 10_000), "at most 20 parts, but it has 10000"),
        (lambda c: c.update(parts=[3, 4]), "TypeError"),
        (lambda c: c.pop("weights"), "KeyError: 'weights'"),
    ],
)
def test_load_model_raises_for_invalid_parts(
    model: Model, change: Callable[[Any], None], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    save_model(model, path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")


@pytest.mark.parametrize(
    "change",
    [{"classes": ("a", "b", "c")}, {"cache_size": 40}, {"image_size": 30}, {"resize_mode": "crop"}],
)
def test_join_raises_where_parts_see_different_images(change: dict[str, Any]) -> None:
    parts = [part(HEAVY, 1), part(replace(LIGHT, **change), 2)]
    with pytest.raises(
        ModelError, match=f"the cards of its parts must agree on {next(iter(change))}"
    ):
        join(parts, [0.5, 0.5])


def test_join_raises_for_too_many_parts() -> None:
    with pytest.raises(ModelError, match="1 to 20 parts"):
        join([part(LIGHT, 1)] * (MAX_PARTS + 1), [1 / (MAX_PARTS + 1)] * (MAX_PARTS + 1))


def test_one_member_counts_through_the_parts(model: Model) -> None:
    second, third = one_member(model, 2), one_member(model, 3)
    assert torch.equal(second.logits(images())[0], model.parts[0].logits(images())[1])
    assert torch.equal(third.logits(images()), model.parts[1].logits(images()))
    assert third.ood_scorer is not None
    assert second.ood_scorer is not None
    assert torch.equal(second.ood_scorer.means, model.parts[0].ood_scorer.means[1:])
    with pytest.raises(ExportError, match="1 <= --member <= 3 must hold, but got 4"):
        one_member(model, 4)


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_exports_of_several_parts_give_equal_outputs(
    model: Model, form: str, tmp_path: Path
) -> None:
    decoded = parity.generate_images(model.card, 3).decoded
    pixels = parity.central_pixels(model.card, decoded)
    path = tmp_path / f"model.{form}"
    if form == "onnx":
        exporters.write_onnx(model, path)
        exported = exporters.run_onnx(path, pixels)
        onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: export")
        session = onnxruntime.InferenceSession(path)
        licences = session.get_modelmeta().custom_metadata_map["licences"]
    else:
        exporters.write_program(model, path)
        exported = exporters.run_program(path, pixels)
        files = {"licences.json": ""}
        torch.export.load(path, extra_files=files)
        licences = files["licences.json"]
    assert json.loads(licences) == {CARD.backbone: "apache-2.0", "cnn": "cc-by-nc-4.0"}
    expected = parity.expected_outputs(model, decoded)
    assert abs(exported.probabilities - expected.probabilities).max() < parity.TOLERANCE
    assert exported.ood_score is not None
    assert abs(exported.ood_score - expected.ood_score).max() < parity.OOD_TOLERANCE
    predicted: Tensor = predict(model, torch.from_numpy(decoded)).probabilities
    assert abs(exported.probabilities - predicted.numpy()).max() < parity.TOLERANCE
