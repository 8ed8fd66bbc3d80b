from dataclasses import replace

import torch

from trainables.models.backbones import create_backbone
from trainables.models.classifier import Classifier, create_head
from trainables.models.digest import model_digest
from trainables.models.ensemble import Ensemble
from trainables.models.model import load_model, save_model
from trainables.models.model_card import ModelCard
from trainables.models.ood import fit_ood_scorer

CARD = ModelCard("tinynet", ("a", "b"), 32, 36, 5, 0, 1, temperature=1.5)


def build(seed: int = 0) -> Ensemble:
    torch.manual_seed(seed)
    network = create_backbone("tinynet")
    network.freeze(5)
    member = Classifier(network, create_head(network.feature_size, 2, 0, 0.0)).member_weights()
    return Ensemble(CARD, network.stages.state_dict(), [member])


def test_equal_models_have_equal_digests(tmp_path):
    model = build()
    assert model_digest(model) == model_digest(build())
    save_model(model, tmp_path / "model.pt")
    assert model_digest(load_model(tmp_path / "model.pt")) == model_digest(model)


def test_any_change_changes_the_digest():
    model = build()
    found = {model_digest(model), model_digest(build(seed=1))}
    model.card = replace(CARD, temperature=1.5000001)
    found.add(model_digest(model))
    model.card = CARD
    head = model.classifiers[0].head[-1]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.bias[1] += 1e-6
    found.add(model_digest(model))
    subspace = {"mean": torch.zeros(1), "components": torch.zeros(1, 1)}
    model.ood_scorer = fit_ood_scorer([subspace], torch.rand(9), torch.rand(9))
    found.add(model_digest(model))
    assert len(found) == 5
