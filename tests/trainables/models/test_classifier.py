import pytest
import torch
from torch import nn

from trainables.models.backbones import create_backbone
from trainables.models.classifier import Classifier, create_head


def classifier(freeze_depth: int = 3, hidden_units: int = 0, seed: int = 0) -> Classifier:
    backbone = create_backbone("tinynet", seed=seed)
    backbone.freeze(freeze_depth)
    frozen = create_backbone("tinynet", seed=0).stages[:freeze_depth]
    backbone.stages[:freeze_depth].load_state_dict(frozen.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = create_head(backbone.feature_size, 3, hidden_units, 0.0)
    return Classifier(backbone, head).eval()


def test_create_head_builds_a_linear_or_a_dense_head():
    linear = create_head(128, 3, 0, 0.25)
    assert [type(layer) for layer in linear] == [nn.Dropout, nn.Linear]
    assert (linear[0].p, linear[1].in_features, linear[1].out_features) == (0.25, 128, 3)
    dense = create_head(128, 3, 64, 0.5)
    assert [type(layer) for layer in dense] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (dense[0].in_features, dense[0].out_features, dense[2].p) == (128, 64, 0.5)
    assert (dense[3].in_features, dense[3].out_features) == (64, 3)


@pytest.mark.parametrize("start", [0, 2, 5])
def test_a_classifier_can_start_at_any_stage(start):
    model = classifier()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(model.backbone(x, 0, start), start), model(x))


def test_the_head_is_computed_in_float32():
    model = classifier()
    features = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model.head(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(features, 5)
    assert torch.equal(logits, exact)


@pytest.mark.parametrize("depth", [0, 3, 5])
@pytest.mark.parametrize("hidden_units", [0, 16])
def test_member_weights_can_be_loaded_again(depth, hidden_units):
    model, other = (classifier(depth, hidden_units, seed) for seed in (1, 2))
    weights = model.member_weights()
    stages = {int(key.split(".")[1]) for key in weights if key.startswith("stages.")}
    assert stages == set(range(depth, 5))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.removeprefix("backbone.") for name in trained} <= set(weights)
    other.load_member_weights(weights)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    before = weights["head.0.weight" if hidden_units else "head.1.weight"].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(weights["head.0.weight" if hidden_units else "head.1.weight"], before)


def test_load_member_weights_raises_for_other_stages():
    with pytest.raises(ValueError, match=r"^weights of stages are unexpected: 4\.9\.weight$"):
        classifier().load_member_weights(
            {**classifier().member_weights(), "stages.4.9.weight": torch.ones(1)}
        )
