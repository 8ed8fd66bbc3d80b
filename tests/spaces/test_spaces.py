from pathlib import Path

import pytest

from spaces import base
from spaces.base import NOT_SPACES, Space, TrialConfig, load_space
from spaces.sources import Arrays, SourceError
from trainables.pretrained.weight_files import find_weights

FOLDER = Path(base.__file__).parent
STUDIES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NOT_SPACES)


def study(name: str) -> Space:
    return load_space(FOLDER / f"{name}.py")


def first_configs(name: str) -> list[TrialConfig]:
    """Return the configurations of a study's first trials, those that are of one backbone."""
    space = study(name)
    firsts = [first for first in space.first_trials if "backbone" in first]
    return [TrialConfig.from_params({**space.constants, **first}) for first in firsts]


def test_there_are_five_studies_and_the_defaults():
    studies = {"caltech", "cats_dogs", "fashion_mnist", "products", "tools"}
    assert set(STUDIES) == studies | {"digits", "photos"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_space_file_begins_with_its_command(name):
    space = study(name)
    assert space.first_trials, "every space needs a baseline"
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    command = "python -m search.run"
    if name not in ("digits", "photos"):
        command += f" --space {name}"
    if space.source.obtain or name == "photos":
        command += " --data DIR"
    assert f"    {command}\n" in text


@pytest.mark.parametrize("name", STUDIES)
def test_first_trials_name_backbones_of_their_space(name):
    space = study(name)
    named = {config.backbone for config in first_configs(name)}
    assert named
    assert named <= set(space.backbones)


def test_caltech():
    space = study("caltech")
    assert space.source.classes == ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
    assert (space.image_size, space.epochs, space.flip) == (224, 20, True)
    baseline = first_configs("caltech")[0]
    assert (baseline.backbone, baseline.hidden_units) == ("resnet18", 0)
    assert baseline.freeze_depth < 5, "the study fine-tuned the backbone"
    assert baseline.augment > 0


def test_tools():
    space = study("tools")
    baseline = first_configs("tools")[0]
    assert (baseline.backbone, baseline.freeze_depth, baseline.dropout) == (
        "resnet50",
        3,
        0.5,
    )
    assert (baseline.optimizer, baseline.lr, baseline.scheduler) == (
        "adam",
        1e-4,
        "plateau",
    )
    assert baseline.class_weights is True
    assert baseline.hidden_units > 0, "the study's head was dense"
    assert baseline.augment >= 0.8, "the study augmented aggressively"
    assert space.patience is not None, "the study stopped early"
    assert space.val_fraction == 0.2


def test_cats_dogs_has_an_ablation():
    assert study("cats_dogs").ablation
    baseline = first_configs("cats_dogs")[0]
    assert (baseline.backbone, baseline.freeze_depth) == ("resnet50", 5), "the study's last step"


def test_fashion_mnist():
    space = study("fashion_mnist")
    assert (space.image_size, space.cache_size) == (28, 28)
    configs = first_configs("fashion_mnist")
    assert {c.optimizer for c in configs} == {"adam"}
    assert all(c.augment > 0 for c in configs)
    assert {"cnn", "tinynet"} <= {c.backbone for c in configs}
    assert any(name.startswith("resnet") for name in space.backbones)


def test_products():
    space = study("products")
    assert (space.epochs, space.patience, space.test_fraction) == (30, 5, 0.2)
    assert first_configs("products")[0].backbone == "mobilenet_v2"


def test_photos_searches_all_depths_of_pretrained_networks():
    space = study("photos")
    assert (space.image_size, space.weights, space.source.classes) == (224, "pretrained", None)
    assert space.freeze_depths == (0, 1, 2, 3, 4, 5)
    assert {"backbone", "lr", "dropout", "augment", "weight_decay"} <= space.distributions.keys()
    baseline = first_configs("photos")[0]
    assert (baseline.freeze_depth, baseline.hidden_units) == (5, 0), "a linear head"


def test_digits_need_no_download(tmp_path):
    space = study("digits")
    assert space.flip is False, "a mirrored digit is another digit, or none"
    found = find_weights(space.backbones, None, tmp_path / "cache")
    assert set(found) == {"tinynet"}
    assert space.external is not None
    for source in (space.source, space.external):
        arrays = source.open(None, tmp_path / "cache")
        assert isinstance(arrays, Arrays)
        assert arrays.classes == tuple("0123456789")
    assert not (tmp_path / "cache").exists(), "something was downloaded"
    assert first_configs("digits")[0].backbone == "tinynet"


@pytest.mark.parametrize("name", ["tools", "cats_dogs", "products"])
def test_a_source_without_download_explains_how_to_get_its_images(name, tmp_path):
    with pytest.raises(SourceError) as caught:
        study(name).source.open(None, tmp_path)
    message = str(caught.value)
    assert message.startswith(
        "this space brings no images of its own: give --data DIR, a folder that holds a folder"
        " per class, or train/ [val/] test/ of those; "
    )
    assert "Kaggle" in message
    assert "needs an account" in message
    assert "give the folder that holds" in message
