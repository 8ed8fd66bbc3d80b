"""Folding normalisation into convolutions changes the time, not the features."""

import pytest
import torch
from torch import nn

from spaces.base import BACKBONES
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


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_those_of_the_network_itself(name: str) -> None:
    backbone = create_backbone(name, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():  # statistics as a trained network has them
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    x = torch.randn(2, 3, 64, 64, generator=generator)
    quick = fold_batchnorm(backbone)
    with torch.no_grad():
        for stage_output in range(1, 6):
            expected = backbone(x, 0, stage_output)
            error = (quick(x, 0, stage_output) - expected).norm() / expected.norm()
            assert error < 1e-4, stage_output
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    n_left = sum(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    n_there = sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert (n_there == 0) == (name in WITHOUT_BATCH_NORM)
    assert n_left < n_there or n_there == 0
