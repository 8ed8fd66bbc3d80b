import pytest
import torch

from trainables.models.backbones import create_backbone
from trainables.models.classifier import Classifier, create_head
from trainables.models.ensemble import Ensemble
from trainables.models.model_card import ModelCard

IMAGE_SIZE, CACHE_SIZE = 32, 36


@pytest.fixture
def small_ensemble() -> Ensemble:
    """An untrained model of three classes, with a fixed seed."""
    torch.manual_seed(0)
    network = create_backbone("tinynet")
    network.freeze(5)
    member = Classifier(network, create_head(network.feature_size, 3, 0, 0.0)).member_weights()
    card = ModelCard("tinynet", ("a", "b", "c"), IMAGE_SIZE, CACHE_SIZE, 5, 0, 1)
    return Ensemble(card, network.stages.state_dict(), [member])
