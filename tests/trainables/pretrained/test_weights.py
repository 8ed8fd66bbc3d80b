import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import DenseNet, VisionTransformer

from trainables.pretrained.weights import WeightsError, copy_weights, load_weights


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [False, True])
def test_load_weights_plain_wrapped_and_in_the_old_format(tmp_path, wrapper, zipped):
    state = nn.Linear(3, 2).state_dict()
    path = tmp_path / "net.pth"
    content = state if wrapper is None else {wrapper: state, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_weights(path)
    assert list(loaded) == ["weight", "bias"]
    assert torch.equal(loaded["weight"], state["weight"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "must hold a state dict, but holds a list"),
        ({}, "must hold a state dict, but holds a dict"),
        ({"epoch": 3}, "must hold a state dict, but 'epoch' in it is a int"),
        (nn.Linear(1, 1), "cannot be read as weights: Weights only load failed"),
    ],
)
def test_load_weights_raises_for_other_content(tmp_path, content, reason):
    path = tmp_path / "net.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=f"^{path} {reason}"):
        load_weights(path)


def test_load_weights_of_safetensors(tmp_path):
    state = nn.Linear(3, 2).state_dict()
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    loaded = load_weights(path)
    assert torch.equal(loaded["weight"], state["weight"])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=f"^{path} cannot be read as weights: ."):
        load_weights(path)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 truncated", None])
def test_load_weights_raises_for_a_damaged_or_missing_file(tmp_path, content):
    path = tmp_path / "net.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{path} cannot be read as weights: ."):
        load_weights(path)


def test_copy_weights_accepts_old_keys_and_files_without_counters():
    net = DenseNet(growth_rate=4, block_config=(2, 1, 1, 1), num_init_features=8, num_classes=2)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer2.norm.1.weight" in old
    with torch.device("meta"):
        copy = DenseNet(growth_rate=4, block_config=(2, 1, 1, 1), num_init_features=8)
    copy_weights(copy, old, "densenet", "classifier")
    fitted = copy.features.state_dict()
    assert all(torch.equal(fitted[k], v) for k, v in net.features.state_dict().items())


def test_copy_weights_accepts_the_old_keys_of_vit():
    net = VisionTransformer(32, 16, 2, 2, 8, 16)
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in net.state_dict().items()
    }
    assert "encoder.layers.encoder_layer_1.mlp.linear_2.bias" in old
    copy = VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=3)
    copy_weights(copy, old, "vit", "heads")
    fitted = copy.encoder.state_dict()
    assert all(torch.equal(fitted[k], v) for k, v in net.encoder.state_dict().items())


def test_copy_weights_converts_to_the_networks_precision():
    net = nn.Linear(3, 2)
    copy_weights(net, {k: v.half() for k, v in net.state_dict().items()}, "net", None)
    assert net.weight.dtype == torch.float32
    assert net.weight.requires_grad
