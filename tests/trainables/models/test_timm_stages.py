"""Networks of timm in five stages, one or two of each family, small and with random weights."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from spaces.timm_names import PREFIX
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.batchnorm_folding import fold_batchnorm
from trainables.models.classifier import Classifier, create_head

TRANSFORMERS = {
    "vit_tiny_patch16_224": 32,
    "deit_tiny_distilled_patch16_224": 32,
    "vit_small_patch14_dinov2": 28,
    "vit_small_patch16_dinov3": 32,
    "eva02_tiny_patch14_224": 28,
    "beit_base_patch16_224": 32,
    "vit_base_patch32_clip_224": 64,
    "swin_tiny_patch4_window7_224": 64,
    "swinv2_tiny_window8_256": 64,
}
CONVOLUTIONS = {
    "convnext_atto": 32,
    "convnextv2_atto": 32,
    "resnet18": 64,
    "resnet26d": 64,
    "resnetv2_50d_gn": 64,
    "tf_efficientnet_lite0": 64,
    "efficientnetv2_rw_t": 64,
    "mobilenetv2_050": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64,
    "regnety_002": 64,
    "densenet121": 64,
    "convmixer_768_32": 56,
    "poolformerv2_s12": 64,
    "mixer_s32_224": 64,
}
TRUNKS = {"cait_xxs24_224": 224, "hrnet_w18_small": 64}
SIZES = TRANSFORMERS | CONVOLUTIONS | TRUNKS
ALWAYS = {
    *("vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"),
    *("convnext_atto", "resnet18", "tf_efficientnet_lite0", "mobilenetv4_conv_small_035"),
    *("densenet121", "cait_xxs24_224"),
}
"""The others are tested by `make test-long`."""
NAMES = [
    pytest.param(name, marks=() if name in ALWAYS else pytest.mark.long) for name in sorted(SIZES)
]

BLOCKS = {
    "resnet18": ["maxpool", "layer1", "layer2", "layer3", "layer4"],
    "convnext_atto": ["stem", "stages.0", "stages.1", "stages.2", "stages.3"],
}
"""A module in each stage."""


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def timm_network(name: str) -> nn.Module:
    """Build a network of timm with random weights and statistics."""
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    options = {"img_size": SIZES[name]} if fixed else {}
    net = timm.create_model(name, num_classes=0, **options)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for key, parameter in net.named_parameters():  # initial values would hide mistakes
        if parameter.dim() == 1 or "token" in key or "pos_embed" in key:
            nn.init.uniform_(parameter, 0.5, 1.0, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def reference(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm_network(name)


@pytest.fixture(scope="module")
def backbone(name: str, reference: nn.Module) -> Backbone:
    state = reference.state_dict()
    return create_backbone(PREFIX + name, state, image_size=SIZES[name]).eval()


@pytest.fixture(scope="module")
def pixels(name: str) -> Tensor:
    size = SIZES[name]
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_stages_compute_timms_features(name, reference, backbone, pixels):
    x, shapes = pixels, []
    for stage in range(5):
        before = x.clone()
        out = backbone(x, stage, stage + 1)
        assert torch.equal(x, before), f"stage {stage + 1} changes its input in place"
        x = out
        shapes.append(tuple(x.shape[1:]))
    features = reference.forward_features(backbone.normalise(pixels))
    expected = reference.forward_head(features, pre_logits=True)
    assert expected.std() > 1e-3
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    assert backbone.stage_output_shapes(SIZES[name]) == tuple(shapes)
    assert x.shape == (2, backbone.feature_size)
    assert backbone.is_trunk == (name in TRUNKS)


def test_every_parameter_is_in_one_stage(name, reference, backbone):
    in_stages = [set(map(id, stage.parameters())) for stage in backbone.stages]
    assert len(set.union(*in_stages)) == sum(map(len, in_stages))
    n_expected = sum(parameter.numel() for parameter in reference.parameters())
    assert sum(parameter.numel() for parameter in backbone.parameters()) == n_expected
    if name not in TRUNKS:
        assert all(in_stages)


def test_freezing_stops_gradients_and_statistics_of_the_first_stages(name, backbone, pixels):
    net = copy.deepcopy(backbone)
    classifier = Classifier(net, create_head(net.feature_size, 3, 0, 0.0))
    for depth in (5, 0, 1, 3):
        net.freeze(depth)
        classifier.train()
        trained = 0 if name in TRUNKS and depth else 5 - depth
        state = copy.deepcopy(net.state_dict())
        optimizer = torch.optim.SGD(
            (p for p in classifier.parameters() if p.requires_grad), lr=1e-3
        )
        x = torch.cat([pixels, pixels.flip(3)])
        loss = classifier(x)[:, 0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        changed = {
            int(key.split(".")[1])
            for key, value in net.state_dict().items()
            if not torch.equal(value, state[key])
        }
        assert changed == set(range(5 - trained, 5)) if name not in TRUNKS else changed <= {0}
        assert bool(changed) == (trained > 0)


@torch.no_grad()
def test_folding_leaves_the_features_unchanged(backbone, pixels):
    expected = backbone(pixels)
    folded = fold_batchnorm(backbone)(pixels)
    assert (folded - expected).norm() / expected.norm() < 1e-5


def test_batchnorms_of_convolutions_are_folded():
    for name, n_left in (("tf_efficientnet_lite0", 0), ("resnet18", 0), ("densenet121", 62)):
        net = fold_batchnorm(create_backbone(PREFIX + name, image_size=64))
        assert sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == n_left


@pytest.mark.parametrize("name", BLOCKS)
def test_networks_are_cut_where_torchvisions_are(name):
    net = timm.create_model(name, num_classes=0)
    stages = create_backbone(PREFIX + name).stages
    for path, stage in zip(BLOCKS[name], stages, strict=True):
        wanted = (
            type(net.get_submodule(path)),
            [tuple(p.shape) for p in net.get_submodule(path).parameters()],
        )
        found = [(type(m), [tuple(p.shape) for p in m.parameters()]) for m in stage.modules()]
        assert wanted in found, path


def test_position_embeddings_are_resampled_as_timm_does():
    state = timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict()
    net = create_backbone("timm/vit_tiny_patch16_224", state, image_size=64)
    expected = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, num_classes=0)
    expected.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = expected.eval()(net.normalise(pixels))
        torch.testing.assert_close(net.eval()(pixels), features, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_a_backbone_is_refused():
    with pytest.raises(ValueError, match="mobilenetv5_300m_enc cannot be a backbone, which turns"):
        create_backbone("timm/mobilenetv5_300m_enc", image_size=64)
    with pytest.raises(ValueError, match=r"did you mean timm/mobilenetv2_075, "):
        create_backbone("timm/mobilenetv2_05")
