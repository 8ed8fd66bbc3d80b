import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from trainables.images import crop_pixels, to_square
from trainables.models.backbones import create_backbone
from trainables.models.classifier import Classifier, Weights, create_head
from trainables.models.ensemble import Ensemble, mean_probabilities
from trainables.models.model import FORMAT, load_model, predict, save_model
from trainables.models.model_card import ModelCard, ModelError

CARD = ModelCard(
    backbone="tinynet",
    classes=("cat", "dog", "Käfer"),
    image_size=32,
    cache_size=36,
    freeze_depth=3,
    hidden_units=0,
    n_members=3,
    temperature=1.5,
)


def classifier(card: ModelCard = CARD, seed: int = 0) -> Classifier:
    """Build a classifier whose frozen stages are the same for every seed."""
    backbone = create_backbone(card.backbone, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = create_head(backbone.feature_size, len(card.classes), card.hidden_units, 0.0)
        for stage in backbone.stages[card.freeze_depth :]:
            for parameter in stage.parameters():
                nn.init.normal_(parameter, std=0.3)
        nn.init.normal_(head[-1].bias)
    backbone.freeze(card.freeze_depth)
    return Classifier(backbone, head).eval()


def prefix(card: ModelCard = CARD) -> Weights:
    return create_backbone(card.backbone, seed=0).stages[: card.freeze_depth].state_dict()


def ensemble(card: ModelCard = CARD) -> Ensemble:
    members = [classifier(card, seed).member_weights() for seed in range(card.n_members)]
    return Ensemble(card, prefix(card), members)


def images(n: int = 5, side: int = CARD.cache_size) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(ensemble(), path)
    return path


def rewritten(saved: Path, path: Path, **changes: Any) -> Path:
    """Write the saved model again with other content; keys of its card go into the card."""
    content = torch.load(saved, weights_only=True)
    (part,) = content["parts"]
    card = json.loads(part["card"])
    for key, value in changes.items():
        next((one for one in (part, content) if key in one), card)[key] = value
    if "card" not in changes:
        part["card"] = json.dumps(card)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("depth", [0, 3, 5])
def test_members_share_only_the_frozen_stages(depth):
    card = replace(CARD, freeze_depth=depth)
    models = ensemble(card).classifiers
    assert len(models) == 3
    for index in range(5):
        memory = {
            tuple(p.data_ptr() for p in m.backbone.stages[index].parameters()) for m in models
        }
        assert len(memory) == (1 if index < depth else 3)
    assert len({m.head[-1].weight.data_ptr() for m in models}) == 3


def test_probabilities_are_the_mean_of_the_members():
    model = ensemble()
    decoded = images()
    probabilities = predict(model, decoded).probabilities
    with torch.no_grad():
        x = crop_pixels(decoded, CARD.image_size)
        alone = [classifier(seed=seed)(x) for seed in range(3)]
    expected = torch.stack([torch.softmax(logits / 1.5, 1) for logits in alone]).mean(0)
    torch.testing.assert_close(probabilities, expected, atol=0.02, rtol=0)
    assert max(float((torch.softmax(one / 1.5, 1) - expected).abs().max()) for one in alone) > 0.1
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(decoded)))
    assert (probabilities.dtype, probabilities.device.type) == (torch.float32, "cpu")


def test_mean_probabilities_applies_the_temperature_before_the_mean():
    logits = torch.tensor([[[2.0, 0.0]], [[-6.0, 0.0]]])
    mean = mean_probabilities(logits, 2.0)
    expected = (torch.sigmoid(torch.tensor(1.0)) + torch.sigmoid(torch.tensor(-3.0))) / 2
    torch.testing.assert_close(mean, torch.stack([expected, 1 - expected])[None])


def test_logits_do_not_depend_on_the_batch_size():
    model, decoded = ensemble(), images(5)
    whole = model.logits(decoded)
    assert whole.shape == (3, 5, 3)
    by_twos = model.logits(decoded, batch_size=2)
    torch.testing.assert_close(by_twos, whole, atol=0.05, rtol=0.02)
    assert model.logits(decoded[:0]).shape == (3, 0, 3)


def test_predictions_leave_the_ensemble_unchanged():
    model = ensemble()
    assert not any(module.training for module in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    predict(model, images())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(("depth", "hidden_units"), [(0, 0), (3, 16), (5, 0)])
def test_load_model_restores_a_saved_model_exactly(tmp_path, depth, hidden_units):
    model = ensemble(replace(CARD, freeze_depth=depth, hidden_units=hidden_units))
    path = tmp_path / "model.pt"
    save_model(model, path)
    again = load_model(path)
    assert again.card == model.card
    before, after = (predict(one, images()).probabilities for one in (model, again))
    assert torch.equal(before, after)
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("resize_mode", ["pad", "crop"])
def test_a_loaded_model_resizes_images_as_its_card_says(tmp_path, resize_mode):
    path = tmp_path / "model.pt"
    save_model(ensemble(replace(CARD, resize_mode=resize_mode)), path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    np.testing.assert_array_equal(
        load_model(path).card.to_square(image),
        to_square(image, CARD.cache_size, CARD.image_size, resize_mode),
    )


@pytest.mark.parametrize("name", [field.name for field in fields(ModelCard)])
def test_load_model_raises_if_the_card_lacks_a_field(saved, tmp_path, name):
    card = asdict(CARD)
    del card[name]
    path = rewritten(saved, tmp_path / "model.pt", card=json.dumps(card))
    with pytest.raises(ModelError, match=f"^{path} is damaged: its card lacks {name}$"):
        load_model(path)


def test_a_file_contains_the_frozen_stages_once(saved, tmp_path):
    content = torch.load(saved, weights_only=True)
    assert set(content) == {"format", "weights", "parts"}
    assert (content["format"], content["weights"]) == (FORMAT, [1.0])
    (content,) = content["parts"]
    assert set(content) == {"card", "prefix", "members"}
    assert json.loads(content["card"])["classes"] == ["cat", "dog", "Käfer"]
    tensors = [content["prefix"], *content["members"]]
    assert all(isinstance(value, Tensor) for weights in tensors for value in weights.values())
    n_bytes = sum(v.numel() * v.element_size() for weights in tensors for v in weights.values())
    assert saved.stat().st_size < 1.1 * n_bytes + 50_000, "views drag their whole storage along"
    frozen = {int(key.split(".")[0]) for key in content["prefix"]}
    assert frozen == {0, 1, 2}
    assert all(
        f"stages.{stage}." not in key for m in content["members"] for key in m for stage in frozen
    )


def test_save_replaces_the_file_atomically(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_model(ensemble(), path)
    save_model(ensemble(replace(CARD, temperature=2.0)), path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert load_model(path).card.temperature == 2.0

    def crash(content: Any, partial: BinaryIO) -> None:
        partial.write(b"half a mod")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="No space left"):
        save_model(ensemble(), path)
    assert load_model(path).card.temperature == 2.0


def test_load_model_raises_for_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match=f"^there is no model at {tmp_path}/model.pt$"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_load_model_raises_for_a_truncated_file(saved, tmp_path, kept):
    content = saved.read_bytes()
    path = tmp_path / "model.pt"
    path.write_bytes(content[: kept if kept >= 1 else int(kept * len(content))])
    with pytest.raises(ModelError, match=f"^{path} cannot be read as a model: ."):
        load_model(path)


def test_load_model_raises_for_a_damaged_file(saved, tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[::-1] if name.endswith("data.pkl") else content)
    with pytest.raises(ModelError, match=f"^{path} cannot be read as a model: ."):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], None),
        ({"weight": torch.ones(2)}, None),
        ({"format": "classifier-search model 1"}, "classifier-search model 1"),
        ("text", None),
    ],
)
def test_load_model_raises_for_another_format(tmp_path, content, found):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert str(caught.value) == (
        f"{path} must have the format 'classifier-search model 5', but has {found!r}"
    )


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_load_model_runs_no_code_of_the_file(tmp_path, zipped):
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    content = {"format": FORMAT, "card": Malicious(trace)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match=f"^{path} cannot be read as a model: ."):
        load_model(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_size": -1}, "out of range"),
        ({"image_size": 0}, "1 <= image_size <= cache_size <= 4096 must hold, but its card has 0"),
        ({"image_size": 1e9}, "out of range"),
        ({"image_size": "32"}, "out of range"),
        (
            {"image_size": 64},
            "1 <= image_size <= cache_size <= 4096 must hold, but its card has 64 and 36",
        ),
        ({"cache_size": 70_000}, "out of range"),
        ({"freeze_depth": 6}, "0 <= freeze_depth <= 5 must hold, but got 6"),
        ({"hidden_units": -1}, "out of range"),
        ({"resize_mode": "tall"}, "its resize_mode must be 'pad' or 'crop', but is 'tall'"),
        ({"temperature": 0}, "its temperature must be a number above 0, but is 0"),
        ({"temperature": float("nan")}, "its temperature must be a number above 0, but is nan"),
        ({"temperature": "hot"}, "its temperature must be a number above 0, but is 'hot'"),
        ({"licence": 3}, "its licence must be a name, but is 3"),
        ({"classes": ["cat"]}, "its card names fewer than two classes"),
        ({"classes": ["cat", 3]}, "its card names fewer than two classes"),
        ({"classes": ["cat", "dog"]}, "the weights do not fit tinynet"),
        ({"classes": 3}, "'int' object is not iterable"),
        ({"backbone": "resnet19"}, "there is no backbone 'resnet19'"),
        ({"backbone": "cnn"}, "the weights do not fit cnn"),
        ({"hidden_units": 8}, "the weights do not fit tinynet"),
        ({"n_members": 2}, "the card is of 2 members, but there are 3"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"card": "{"}, "JSONDecodeError"),
        ({"card": "[" * 100_000}, "it is nested too deeply"),
        ({"card": 3}, "TypeError"),
        ({"members": []}, "the card is of 3 members, but there are 0"),
        ({"members": {"head.1.weight": torch.ones(2)}}, "is damaged"),
        ({"members": [3, 4, 5]}, "is damaged"),
        ({"prefix": {}}, "the weights do not fit tinynet: .*0.0.weight"),
        ({"prefix": [1]}, "is damaged"),
    ],
)
def test_load_model_raises_for_an_invalid_card_or_weights(saved, tmp_path, changes, reason):
    path = rewritten(saved, tmp_path / "model.pt", **changes)
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")


@pytest.mark.parametrize("key", ["stages.4.0.1.running_var", "stages.3.0.0.weight", "head.1.bias"])
def test_load_model_raises_if_a_member_lacks_a_tensor(saved, tmp_path, key):
    """Otherwise a stage would silently keep its random weights."""
    members = torch.load(saved, weights_only=True)["parts"][0]["members"]
    del members[1][key]
    path = rewritten(saved, tmp_path / "model.pt", members=members)
    name = key.split(".", 1)[1]
    with pytest.raises(ModelError, match=f"is damaged: .*the weights do not fit tinynet: .*{name}"):
        load_model(path)


def test_a_file_contains_the_card(saved):
    content = torch.load(saved, weights_only=True)
    assert json.loads(content["parts"][0]["card"]) == json.loads(json.dumps(asdict(CARD)))
