"""Networks by functions of the user's own."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.images import MEAN, STD
from trainables.models.backbones import create_backbone
from trainables.models.classifier import Classifier, create_head
from trainables.models.ensemble import Ensemble
from trainables.models.model import load_model, save_model
from trainables.models.model_card import ModelCard, ModelError
from trainables.models.own_networks import OwnNetworkError, check_own, find_modules, register_module

PAGE = Path(__file__).parents[3] / "docs" / "backbones.md"
STAGES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3, 3, 3) for _ in range({n}))
        self.stages[-1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.feature_size = {size}
        self.mean = {mean}

def build():
    return Net()
"""


@pytest.fixture(autouse=True)
def forgotten() -> object:
    """Forget the modules that a test imports."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("mynets"):
            del sys.modules[name]


def example() -> str:
    """Return the network of the page."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if "def build" in block)


def stages(n: int = 5, size: object = 3, mean: object = (0.5, 0.5, 0.5)) -> str:
    return STAGES.format(n=n, size=size, mean=mean)


def test_the_pages_example_has_twenty_lines_and_is_a_backbone(tmp_path: Path) -> None:
    (tmp_path / "mynets.py").write_text(example())
    assert len([line for line in example().splitlines() if line]) <= 20
    sources = find_modules(["resnet18", "mynets:build"], [tmp_path], 32)
    assert sources == {"mynets": example()}
    backbone = create_backbone("mynets:build", image_size=32)
    assert not backbone.is_trunk
    assert len(backbone.stage_output_shapes(32)) == 5
    classifier = Classifier(backbone, create_head(backbone.feature_size, 3, 0, 0.0))
    for depth in range(6):
        backbone.freeze(depth)
        classifier.train()
        classifier(torch.rand(4, 3, 32, 32)).sum().backward()
    same = create_backbone("mynets:build", backbone.stages.state_dict(), image_size=32)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(same.eval()(x), backbone.eval()(x))


def test_a_plain_module_is_one_trunk() -> None:
    source = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), "
    register_module("mynets_plain", source + "nn.AdaptiveAvgPool2d(1), nn.Flatten())\n")
    check_own("mynets_plain:build", 16)
    backbone = create_backbone("mynets_plain:build", image_size=16)
    assert backbone.is_trunk
    assert backbone.feature_size == 4
    assert (backbone.normalise.mean, backbone.normalise.std) == (MEAN, STD)
    for depth in range(6):
        backbone.freeze(depth)
        assert {p.requires_grad for p in backbone.parameters()} == {depth == 0}


def test_own_mean_and_seed() -> None:
    register_module("mynets_mean", stages())
    first, same, other = (
        create_backbone("mynets_mean:build", seed=seed, image_size=32) for seed in (1, 1, 2)
    )
    assert first.normalise.mean == (0.5, 0.5, 0.5)
    key = "stages.0.weight"
    assert torch.equal(first.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def other(): pass", "defines no function 'build'"),
        ("from os import abort as build", "defines no function 'build'"),
        ("def build(): return 3", "must return an nn.Module, but returned a int"),
        ("def build(): 1 / 0", "raised ZeroDivisionError"),
        ("def build(): raise SystemExit(3)", "raised SystemExit: 3"),
        (stages(n=4), "stages must be 5 modules, but there are 4"),
        (stages(size=7), r"must return features \[N, 7\], but returned \[2, 3\]"),
        (stages(size="None"), "feature_size must be a whole number above 0, but is None"),
        (stages(mean="(1, 2)"), "mean must be three numbers, but is"),
        (
            "from torch import nn\ndef build(): return nn.Conv2d(3, 3, 3)",
            r"must return features \[N, n\], but returned \[2, 3, 14, 14\]",
        ),
        (
            "from torch import nn\ndef build(): return nn.Linear(2, 2)",
            "RuntimeError",
        ),
        (
            stages()
            .replace("nn.Conv2d(3, 3, 3) for", "nn.ReLU(inplace=True) for")
            .replace("(0.5, 0.5, 0.5)", "(0, 0, 0)")
            .replace("nn.ReLU", "Minus")
            .replace(
                "class Net",
                "class Minus(nn.Module):\n    def __init__(self, inplace):\n"
                "        super().__init__()\n    def forward(self, x):\n"
                "        return x.sub_(1)\n\nclass Net",
            ),
            "must not change its input in place",
        ),
    ],
)
def test_check_own_names_what_is_wrong(source: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "mynets.py").write_text(source)
    with pytest.raises(OwnNetworkError, match=reason):
        find_modules(["mynets:build"], [tmp_path], 16)


@pytest.mark.parametrize("name", ["os:abort", "mynets_missing:build", "space:build"])
def test_modules_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    with pytest.raises(OwnNetworkError, match=r"module of your own|cannot import|space\.py"):
        find_modules([name], [tmp_path], 16)


def test_a_modules_own_errors_are_named(tmp_path: Path) -> None:
    (tmp_path / "mynets.py").write_text("import no_such_module\n")
    with pytest.raises(OwnNetworkError, match=r"mynets\.py: ModuleNotFoundError: .*no_such_module"):
        find_modules(["mynets:build"], [tmp_path], 16)
    assert "mynets" not in sys.modules


def test_a_module_is_registered_again_only_if_its_text_differs() -> None:
    register_module("mynets_text", "VALUE = 1")
    first = sys.modules["mynets_text"]
    register_module("mynets_text", "VALUE = 1")
    assert sys.modules["mynets_text"] is first
    register_module("mynets_text", "VALUE = 2")
    assert vars(sys.modules["mynets_text"])["VALUE"] == 2


def test_a_model_needs_the_function_and_says_so(tmp_path: Path, monkeypatch) -> None:
    register_module("mynets_model", stages())
    backbone = create_backbone("mynets_model:build", image_size=16)
    backbone.freeze(3)
    card = ModelCard("mynets_model:build", ("a", "b"), 16, 18, 3, 0, 1, mean=(0.5, 0.5, 0.5))
    member = Classifier(backbone, create_head(3, 2, 0, 0.0)).member_weights()
    model = Ensemble(card, backbone.stages[:3].state_dict(), [member])
    save_model(model, tmp_path / "model.pt")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_model(tmp_path / "model.pt")(x), model(x))
    del sys.modules["mynets_model"]
    (tmp_path / "mynets_model.py").write_text(stages())
    reason = r"model\.pt cannot be loaded: .* your function mynets_model:build"
    with pytest.raises(ModelError, match=reason):
        load_model(tmp_path / "model.pt")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torch.equal(load_model(tmp_path / "model.pt")(x), model(x))


def test_nn_modules_are_no_functions_of_the_users() -> None:
    assert isinstance(nn.Linear(2, 2), nn.Module)
    with pytest.raises(OwnNetworkError, match="defines no function 'Linear'"):
        create_backbone("torch.nn:Linear")


def test_an_interrupt_is_no_mistake_of_the_module() -> None:
    with pytest.raises(KeyboardInterrupt):
        register_module("mynets_interrupted", "raise KeyboardInterrupt")
    assert "mynets_interrupted" not in sys.modules
