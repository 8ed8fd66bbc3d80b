import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainables.models.backbones import create_backbone
from trainables.models.classifier import create_head
from trainables.models.ensemble import Ensemble
from trainables.models.model import load_model, save_model
from trainables.models.model_card import ModelCard, ModelError
from trainables.models.ood import (
    OODScorer,
    energy,
    fit_ood_scorer,
    fit_subspace,
    load_ood_scorer,
    residual,
)

N_FEATURES = 24


def drawn(n: int, seed: int, directions: Tensor) -> Tensor:
    """Draw features around 1 that differ in a few directions, and a little in all."""
    generator = torch.Generator().manual_seed(seed)
    along = torch.randn(n, len(directions), generator=generator) @ directions
    return 1 + along + 0.05 * torch.randn(n, N_FEATURES, generator=generator)


def axes(*indices: int) -> Tensor:
    return torch.eye(N_FEATURES)[list(indices)]


def test_fit_subspace_contains_the_variation_of_the_training_features() -> None:
    subspace = fit_subspace(drawn(400, 0, axes(0, 1, 2)))
    assert subspace["components"].shape == (N_FEATURES // 2, N_FEATURES)
    same, other = drawn(50, 1, axes(0, 1, 2)), drawn(50, 2, axes(20, 21, 22))
    assert residual(same, subspace).mean() < 0.2
    assert residual(other, subspace).min() > 0.4
    assert residual(subspace["mean"][None], subspace).item() == 0.0


def test_residual_is_the_fraction_of_length_outside_the_subspace() -> None:
    subspace = {"mean": torch.ones(2), "components": torch.tensor([[1.0, 0.0]])}
    features = torch.tensor([[4.0, 1.0], [1.0, 3.0], [4.0, 5.0]])
    assert residual(features, subspace).tolist() == pytest.approx([0.0, 1.0, 0.8])


@pytest.mark.parametrize("n", [2, 3, 10])
def test_fit_subspace_has_fewer_components_for_few_images(n: int) -> None:
    subspace = fit_subspace(drawn(n, 0, axes(0)))
    assert len(subspace["components"]) == max(1, n // 2)


def test_energy_is_lower_for_a_higher_logit() -> None:
    low, high = energy(torch.tensor([[9.0, 0.0], [0.1, 0.0]])).tolist()
    assert low < high
    assert low == pytest.approx(-9.0001, abs=1e-3)


def fitted_scorer() -> tuple[OODScorer, Tensor]:
    """Return the scorer of two members, and the features that its scale was fitted on."""
    seen = drawn(400, 0, axes(0, 1, 2))
    subspaces = [fit_subspace(seen[:300]), fit_subspace(seen[100:])]
    unseen = drawn(1000, 1, axes(0, 1, 2))
    logits = torch.randn(1000, 3, generator=torch.Generator().manual_seed(2))
    return fit_ood_scorer(subspaces, residual(unseen, subspaces[0]), energy(logits)), unseen


def scores(scorer: OODScorer, features: Tensor, seed: int = 3) -> Tensor:
    logits = torch.randn(len(features), 3, generator=torch.Generator().manual_seed(seed))
    return scorer.score(torch.stack([features] * 2), torch.stack([logits] * 2))


def test_95_percent_of_images_score_at_most_1_and_others_more() -> None:
    scorer, _ = fitted_scorer()
    in_distribution = scores(scorer, drawn(2000, 5, axes(0, 1, 2)))
    assert 0.93 < (in_distribution <= 1).float().mean() < 0.97
    assert in_distribution.median() == pytest.approx(0.0, abs=0.1)
    assert (scores(scorer, drawn(200, 6, axes(20, 21))) > 1).float().mean() > 0.99


def test_a_higher_energy_raises_the_score() -> None:
    scorer, unseen = fitted_scorer()
    features = torch.stack([unseen[:1]] * 2)
    sure, unsure = (
        scorer.score(features, torch.full((2, 1, 3), value)).item() for value in (5.0, -5.0)
    )
    assert unsure > sure


def test_identical_images_give_finite_scores() -> None:
    subspace = fit_subspace(torch.ones(5, 4))
    scorer = fit_ood_scorer([subspace], torch.zeros(5), torch.zeros(5))
    assert torch.isfinite(scorer.score(torch.ones(1, 2, 4), torch.zeros(1, 2, 3))).all()


def test_load_model_restores_the_ood_scorer(tmp_path: Path) -> None:
    card = ModelCard("tinynet", ("a", "b", "c"), 32, 36, 5, 0, n_members=2)
    backbone = create_backbone("tinynet", seed=0)
    heads = [create_head(backbone.feature_size, 3, 0, 0.0).state_dict() for _ in range(2)]
    members = [{f"head.{key}": value for key, value in head.items()} for head in heads]
    features = torch.randn(60, backbone.feature_size)
    subspaces = [fit_subspace(features[:40]), fit_subspace(features[20:])]
    scorer = fit_ood_scorer(subspaces, residual(features, subspaces[0]), torch.randn(60))
    made = Ensemble(card, backbone.stages.state_dict(), members, scorer)
    images = torch.randint(0, 255, (3, 36, 36, 3), dtype=torch.uint8)
    logits, before = made.predict_with_ood(images)
    assert torch.equal(logits, made.logits(images))
    bare = tmp_path / "bare.pt"
    save_model(Ensemble(card, backbone.stages.state_dict(), members), bare)
    assert load_model(bare).predict_with_ood(images)[1] is None
    path = tmp_path / "model.pt"
    save_model(made, path)
    assert path.stat().st_size - bare.stat().st_size < 2 * 34 * backbone.feature_size * 2 + 4000
    after = load_model(path).predict_with_ood(images)[1]
    assert before is not None
    assert after is not None
    assert after.tolist() == pytest.approx(before.tolist(), abs=0.02), (
        "it is saved in half precision"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"means": torch.zeros(3, 4)},
        {"means": torch.zeros(4)},
        {"components": torch.zeros(2, 4)},
        {"components": torch.zeros(2, 1, 5)},
        {"scale": torch.zeros(2)},
        {"scale": torch.tensor([1.0, float("nan"), 0.0])},
    ],
)
def test_load_ood_scorer_raises_for_tensors_that_are_no_scorers(change: dict[str, Tensor]) -> None:
    state = {"means": torch.zeros(2, 4), "components": torch.zeros(2, 1, 4)}
    state["scale"] = torch.ones(3)
    assert load_ood_scorer(state).means.shape == (2, 4)
    with pytest.raises(ValueError, match="its OOD scorer has tensors of wrong shapes"):
        load_ood_scorer({**state, **change})


@pytest.mark.parametrize("shape", [(1, 128), (2, 64)])
def test_load_model_raises_for_an_ood_scorer_of_another_model(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    card = ModelCard("tinynet", ("a", "b", "c"), 32, 36, 5, 0, n_members=2)
    backbone = create_backbone("tinynet", seed=0)
    head = create_head(backbone.feature_size, 3, 0, 0.0).state_dict()
    members = [{f"head.{key}": value for key, value in head.items()}] * 2
    path = tmp_path / "model.pt"
    save_model(Ensemble(card, backbone.stages.state_dict(), members), path)
    state = {"means": torch.zeros(shape), "components": torch.zeros(shape[0], 1, shape[1])}
    content = torch.load(path)
    content["parts"][0]["ood"] = {**state, "scale": torch.ones(3)}
    torch.save(content, path)
    expected = "is damaged: the OOD scorer is not of [members, features] = (2, 128)"
    with pytest.raises(ModelError, match=re.escape(expected)):
        load_model(path)
