import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_model, vgg
from torchvision.models.vision_transformer import interpolate_embeddings

from spaces.rules import BACKBONES
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.small_networks import SMALL_NETWORKS
from trainables.pretrained.weights import WeightsError, load_weights


def reference_net(name: str) -> nn.Module:
    """Build the network that a backbone is cut from, with random weights and statistics."""
    if name in SMALL_NETWORKS:
        net: nn.Module = nn.Sequential(*SMALL_NETWORKS[name]()[0])
    elif name == "vgg16_bn":
        features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
        with torch.device("meta"):  # without allocating 119 million weights that are not used
            net = vgg.VGG(features)
    else:
        net = get_model(name, weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for key, parameter in net.named_parameters():
        if "layer_scale" in key or "class_token" in key:  # the initial value would hide mistakes
            nn.init.uniform_(parameter, 0.5, 1.0)
    return net.eval()


def without_classifier(net: nn.Module, name: str) -> nn.Module:
    """Return the network as torchvision runs it, up to the features that its classifier takes."""
    net = copy.deepcopy(net)
    if name == "convnext_tiny":
        net.classifier = net.classifier[:2]
    elif name.startswith("squeezenet"):
        net.classifier = nn.AdaptiveAvgPool2d(1)  # without the convolution before it
    elif name == "vgg16_bn":
        net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    elif name not in SMALL_NETWORKS:
        classifier = [child for child, _ in net.named_children()][-1]
        setattr(net, classifier, nn.Identity())
    return net


@pytest.fixture(scope="module", params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def reference(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return reference_net(name)


@pytest.fixture(scope="module")
def images(name: str) -> Tensor:
    size = 224 if name == "vit_b_16" else 64
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def backbone(name: str, reference: nn.Module) -> Backbone:
    return create_backbone(name, reference.state_dict()).eval()


@torch.no_grad()
def test_the_stages_compute_torchvisions_features(name, reference, backbone, images):
    x, shapes = images, []
    for stage in range(5):
        before = x.clone()
        out = backbone(x, stage, stage + 1)
        assert torch.equal(x, before), f"stage {stage + 1} changes its input in place"
        x = out
        shapes.append(tuple(x.shape[1:]))
    expected = without_classifier(reference, name)(backbone.normalise(images))
    assert expected.std() > 1e-3
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(backbone(images), x)
    assert backbone.stage_output_shapes(images.shape[-1]) == tuple(shapes)
    assert x.shape == (2, backbone.feature_size)


@torch.no_grad()
def test_freeze_stops_gradients_and_batchnorm_statistics_of_the_first_stages(backbone, images):
    net = copy.deepcopy(backbone)
    norms = [[m for m in s.modules() if isinstance(m, nn.BatchNorm2d)] for s in net.stages]
    for depth in (3, 0, 1, 2, 4, 5):
        net.freeze(depth)
        net.train()
        for index, stage in enumerate(net.stages):
            assert {p.requires_grad for p in stage.parameters()} == {index >= depth}
            assert {m.training for m in stage.modules()} == {index >= depth}
        before = [[norm.running_mean.clone() for norm in stage] for stage in norms]
        counts = [[int(norm.num_batches_tracked) for norm in stage] for stage in norms]
        if any(norms):
            net(images)
        for index, stage in enumerate(norms):
            moved = [
                not torch.equal(norm.running_mean, mean)
                for norm, mean in zip(stage, before[index], strict=True)
            ]
            assert moved == [index >= depth] * len(stage)
            counted = [int(norm.num_batches_tracked) for norm in stage]
            assert counted == [count + (index >= depth) for count in counts[index]]


@torch.no_grad()
def test_frozen_statistics_stay_while_their_scales_train(backbone, images):
    net = copy.deepcopy(backbone)
    net.freeze(1, freezes_statistics=True)
    net.train()
    norms = [module for module in net.stages[1:].modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    net(images)
    for norm, mean in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean)
        assert norm.weight.requires_grad
    net.freeze(1)
    assert all(norm.training for norm in norms)


def test_create_backbone_copies_all_weights(reference, backbone):
    theirs = {v.data_ptr() for v in reference.state_dict().values() if v.device.type == "cpu"}
    ours = backbone.state_dict()
    assert theirs.isdisjoint(v.data_ptr() for v in ours.values())
    assert {v.device.type for v in ours.values()} == {"cpu"}
    assert len(backbone.stages) == 5
    assert backbone.freeze_depth == 0


def test_create_backbone_without_weights(name):
    net = create_backbone(name)
    assert {t.device.type for t in net.state_dict().values()} == {"cpu"}
    assert net.stage_output_shapes(64)[-1] == (net.feature_size,)
    assert all(p.requires_grad for p in net.parameters())
    assert net.training


@pytest.mark.parametrize("name", ["tinynet", "cnn", "mobilenet_v3_small", "squeezenet1_1"])
def test_random_weights_depend_on_the_seed_alone(name):
    state = torch.random.get_rng_state()
    first, same, other = (create_backbone(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "swin_t"])
@torch.no_grad()
def test_stochastic_depth_is_off_in_frozen_stages(name):
    net = create_backbone(name)
    for key, parameter in net.named_parameters():
        if "layer_scale" in key:
            nn.init.ones_(parameter)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def changes(first: int, last: int) -> bool:
        at_first = net.eval()(x, 0, first)
        net.train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return not torch.equal(net(at_first, first, last), net(at_first, first, last))

    net.freeze(4)
    assert not changes(0, 4)
    assert changes(4, 5)
    net.freeze(5)
    assert not changes(0, 5)


def test_only_unfrozen_stages_get_gradients():
    net = create_backbone("resnet18")
    net.freeze(3)
    net(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).sum().backward()
    for index, stage in enumerate(net.stages):
        assert {p.grad is not None for p in stage.parameters()} == {index >= 3}


def test_frozen_stages_stay_in_eval_mode_when_a_parent_trains():
    net = create_backbone("tinynet")
    model = nn.Sequential(net, nn.Linear(net.feature_size, 2))
    net.freeze(2)
    model.train()
    assert [stage.training for stage in net.stages] == [False, False, True, True, True]
    model.eval()
    net.freeze(0)
    assert not any(stage.training for stage in net.stages)
    model.train()
    assert all(stage.training for stage in net.stages)


@pytest.mark.parametrize("depth", [-1, 7])
def test_freeze_raises_for_a_depth_out_of_range(depth):
    net = create_backbone("tinynet")
    with pytest.raises(ValueError, match=f"^0 <= freeze_depth <= 5 must hold, but got {depth}$"):
        net.freeze(depth)


def test_create_backbone_suggests_a_name():
    with pytest.raises(
        ValueError, match=r"there is no backbone 'resnet81'; did you mean 'resnet18'\?$"
    ):
        create_backbone("resnet81")


def test_create_backbone_raises_for_weights_that_do_not_fit():
    state = get_model("resnet18", weights=None, num_classes=7).state_dict()
    create_backbone("resnet18", state)  # a classifier of other classes is ignored
    for key in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean"):
        del state[key]
    state["stem.weight"] = torch.zeros(1)
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    with pytest.raises(WeightsError) as caught:
        create_backbone("resnet18", state)
    assert str(caught.value) == (
        "the weights do not fit resnet18: 4 missing (conv1.weight, bn1.weight, bn1.bias, …);"
        " 1 unexpected (stem.weight);"
        " 1 of the wrong shape (layer1.0.conv1.weight [64, 64, 1, 1] instead of [64, 64, 3, 3])"
    )


def test_convnext_requires_the_norm_of_its_classifier():
    state = get_model("convnext_tiny", weights=None).state_dict()
    del state["classifier.0.weight"]
    with pytest.raises(WeightsError, match=r"convnext_tiny: 1 missing \(classifier\.0\.weight\)$"):
        create_backbone("convnext_tiny", state)


def test_stage_output_shapes_raises_for_images_that_are_too_small():
    with pytest.raises(ValueError, match="vgg16_bn cannot take images of 16 × 16 pixels: "):
        create_backbone("vgg16_bn").stage_output_shapes(16)


def test_vit_accepts_any_multiple_of_its_patch_size():
    net = create_backbone("vit_b_16").eval()
    with pytest.raises(ValueError, match="side that is a multiple of 16 pixels, but got 100 × 100"):
        net.stage_output_shapes(100)
    small = VisionTransformer(64, 16, 12, 12, 768, 3072).eval()
    state = get_model("vit_b_16", weights=None).state_dict()
    net = create_backbone("vit_b_16", state).eval()
    small.load_state_dict(interpolate_embeddings(64, 16, state))
    small.heads = nn.Identity()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(x), small(net.normalise(x)), rtol=1e-6, atol=1e-6)
    assert net.stage_output_shapes(64)[0] == (17, 768)


@pytest.mark.parametrize("name", ["squeezenet1_0", "mobilenet_v2"])
@torch.no_grad()
def test_features_of_pretrained_weights_equal_torchvisions(name, shared_data):
    path = shared_data / "weights" / f"{name}.pth"
    if not path.is_file():
        pytest.skip(f"no pretrained weights at {path}")
    state = load_weights(path)
    reference = get_model(name, weights=None).eval()
    reference.load_state_dict(state)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    backbone = create_backbone(name, state).eval()
    ours, x = backbone(x), backbone.normalise(x)
    torch.testing.assert_close(ours, without_classifier(reference, name)(x).flatten(1))
