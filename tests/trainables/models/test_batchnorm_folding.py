import pytest
import torch
from torch import nn

from spaces.rules import BACKBONES
from trainables.models.backbones import create_backbone
from trainables.models.batchnorm_folding import fold_batchnorm

WITHOUT_BATCH_NORM = {
    "cnn",
    "convnext_tiny",
    "squeezenet1_0",
    "squeezenet1_1",
    "vit_b_16",
    "swin_t",
}


N_UNFOLDED = {"densenet121": 62}
"""BatchNorm layers that come before their convolution."""


@pytest.mark.parametrize("name", BACKBONES)
def test_fold_batchnorm_leaves_the_features_unchanged(name: str) -> None:
    backbone = create_backbone(name, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():  # statistics as a trained network has them
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    x = torch.randn(2, 3, 64, 64, generator=generator)
    folded = fold_batchnorm(backbone)
    with torch.no_grad():
        for depth in range(1, 6):
            expected = backbone(x, 0, depth)
            error = (folded(x, 0, depth) - expected).norm() / expected.norm()
            assert error < 1e-5, depth
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    n_left = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    n_there = sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert (n_there == 0) == (name in WITHOUT_BATCH_NORM)
    assert n_left == N_UNFOLDED.get(name, 0)
