import dataclasses
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space, find_space, load_space, shipped_spaces
from spaces.rules import BACKBONE_NAMES, RULES, SpaceError
from spaces.sources import folder

PARAMS: dict[str, Any] = {
    "backbone": CategoricalDistribution(["tinynet", "cnn"]),
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "freeze_depth": IntDistribution(0, 5),
    "scheduler": "cosine",
}
HEADER = """from optuna.distributions import FloatDistribution
from spaces.base import Space
from spaces.sources import digits
"""


def space(**changes: Any) -> Space:
    return Space(**{"source": folder(), "params": PARAMS, **changes})


def problems_of(**changes: Any) -> tuple[str, ...]:
    """Build a space that breaks rules; return the problems."""
    with pytest.raises(SpaceError) as caught:
        space(**changes)
    assert str(caught.value) == "The space cannot be used:" + "".join(
        f"\n  - {problem}" for problem in caught.value.problems
    )
    return caught.value.problems


def written(tmp_path: Path, body: str, header: str = HEADER) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(header + body, encoding="utf-8")
    return path


def load_error(path: Path) -> str:
    """Load a space file that cannot be used; return what is wrong with it."""
    with pytest.raises(SpaceError) as caught:
        load_space(path)
    (problem,) = caught.value.problems
    assert str(caught.value) == f"Space file {path} cannot be used:\n  - {problem}"
    return problem


def test_a_space_separates_distributions_and_constants():
    good = space(first_trials=({"backbone": "cnn", "lr": 1e-3, "scheduler": "cosine"},))
    assert good.distributions == {k: v for k, v in PARAMS.items() if k != "scheduler"}
    assert good.constants == {"scheduler": "cosine"}
    assert good.backbones == ("tinynet", "cnn")
    assert space(params={"backbone": "cnn"}).backbones == ("cnn",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("image_size", "resize_size", "cache_size"),
    [(224, None, 256), (28, None, 32), (32, 32, 32), (224, 232, 232)],
)
def test_cache_size_has_torchvisions_margin(image_size, resize_size, cache_size):
    assert space(image_size=image_size, resize_size=resize_size).cache_size == cache_size


@pytest.mark.parametrize(
    ("augment", "largest"),
    [
        ({}, 0.0),
        ({"augment": 0.3}, 0.3),
        ({"augment": FloatDistribution(0.1, 0.6)}, 0.6),
        ({"augment": CategoricalDistribution([0.5, 0.2])}, 0.5),
    ],
)
def test_the_largest_augmentation_of_a_space(augment, largest):
    params = {name: value for name, value in PARAMS.items() if name != "augment"}
    assert space(params={**params, **augment}).max_augment == largest


def test_space_error_names_all_problems():
    params = {
        **PARAMS,
        "backbone": CategoricalDistribution(["resnet81", "cnn"]),
        "dropuot": 0.1,
        "augment": FloatDistribution(0.0, 1.5),
    }
    assert problems_of(params=params, epochs=0) == (
        f"backbone must be one of {BACKBONE_NAMES}, but got 'resnet81'; did you mean 'resnet18'?",
        f"unknown parameter 'dropuot'; did you mean 'dropout'? (known: {', '.join(RULES)})",
        "0 <= augment <= 1 must hold, but got 1.5",
        "1 <= epochs <= 10000 must hold, but got 0",
    )


@pytest.mark.parametrize(
    ("name", "parameter", "problem"),
    [
        ("lr", FloatDistribution(1e-9, 20.0), "1e-08 <= lr <= 10 must hold, but got 1e-09"),
        ("lr", True, "1e-08 <= lr <= 10 must hold, but got True"),
        ("lr", "fast", "1e-08 <= lr <= 10 must hold, but got 'fast'"),
        ("lr", float("nan"), "1e-08 <= lr <= 10 must hold, but got nan"),
        ("freeze_depth", IntDistribution(0, 7), "0 <= freeze_depth <= 5 must hold, but got 7"),
        ("freeze_depth", 2.5, "freeze_depth must be a whole number, but got 2.5"),
        ("dropout", 1.0, "0 <= dropout <= 0.95 must hold, but got 1.0"),
        ("weight_decay", -0.1, "0 <= weight_decay <= 1 must hold, but got -0.1"),
        ("batch_size", 0, "1 <= batch_size <= 65536 must hold, but got 0"),
        ("hidden_units", -1, "0 <= hidden_units <= 65536 must hold, but got -1"),
        ("label_smoothing", 1, "0 <= label_smoothing <= 0.9 must hold, but got 1"),
        ("mixup", -1.0, "0 <= mixup <= 10 must hold, but got -1.0"),
        ("class_weights", 1, "class_weights must be one of False, True, but got 1"),
        (
            "optimizer",
            CategoricalDistribution(["adam", "adamv"]),
            "optimizer must be one of adam, adamw, sgd, but got 'adamv'; did you mean 'adam'?",
        ),
        ("scheduler", None, "scheduler must be one of none, plateau, cosine, but got None"),
    ],
)
def test_a_parameter_out_of_range(name, parameter, problem):
    found = problems_of(params={**PARAMS, name: parameter})
    assert found[0].startswith(problem)
    if isinstance(parameter, FloatDistribution):
        assert found[1] == "1e-08 <= lr <= 10 must hold, but got 20.0"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"params": {"lr": 1e-3}}, "params must name a 'backbone'"),
        ({"source": "photos"}, "source must come from spaces.sources, but got 'photos'"),
        ({"image_size": 8}, "16 <= image_size <= 1024 must hold, but got 8"),
        ({"image_size": 224.0}, "image_size must be a whole number, but got 224.0"),
        ({"trials": 0}, "1 <= trials <= 1e+06 must hold, but got 0"),
        ({"folds": 1}, "2 <= folds <= 100 must hold, but got 1"),
        ({"views": 0}, "1 <= views <= 256 must hold, but got 0"),
        ({"keep_checkpoints": 0}, "1 <= keep_checkpoints <= 1e+06 must hold, but got 0"),
        ({"val_fraction": 0.01}, "0.05 <= val_fraction <= 0.5 must hold, but got 0.01"),
        ({"test_fraction": 0.9}, "0.05 <= test_fraction <= 0.5 must hold, but got 0.9"),
        ({"resize_size": 200}, "resize_size >= image_size must hold, but got 200 < 224"),
        ({"resize_mode": "square"}, "resize_mode must be 'pad' or 'crop', but got 'square'"),
        (
            {"metric": "macro-f1"},
            "metric must be 'accuracy' or 'balanced_accuracy' or 'macro_f1' or 'log_loss' or"
            " 'roc_auc', but got 'macro-f1'; did you mean 'macro_f1'?",
        ),
        ({"patience": 0}, "patience >= 1 must hold, but got 0"),
        ({"center_crop": "no"}, "center_crop must be True or False, but got 'no'"),
        ({"ablation": 1}, "ablation must be True or False, but got 1"),
        ({"weights": "imagenet"}, "weights must be 'pretrained' or 'none', but got 'imagenet'"),
    ],
)
def test_a_field_out_of_range(changes, problem):
    assert problems_of(**changes) == (problem,)


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        ({"lr": 0.5}, f"lr = 0.5 is outside {PARAMS['lr']}"),
        ({"lr": "slow"}, f"lr = 'slow' is outside {PARAMS['lr']}"),
        ({"lr": None}, f"lr = None is outside {PARAMS['lr']}"),
        ({"freeze_depth": 2.5}, f"freeze_depth = 2.5 is outside {PARAMS['freeze_depth']}"),
        ({"backbone": "resnet18"}, f"backbone = 'resnet18' is outside {PARAMS['backbone']}"),
        (
            {"freeze_dept": 3},
            "'freeze_dept' is not a parameter of this space; did you mean 'freeze_depth'?",
        ),
        ({"mixup": 0.2}, "'mixup' is not a parameter of this space"),
        ({"scheduler": "none"}, "scheduler = 'none', but the space fixes it at 'cosine'"),
    ],
)
def test_a_first_trial_outside_the_space(first, problem):
    assert problems_of(first_trials=({"lr": 1e-3}, first)) == (f"first_trials[1]: {problem}",)


def test_with_backbones_keeps_first_trials_without_duplicates():
    original = space(
        first_trials=(
            {"backbone": "tinynet", "lr": 1e-3, "freeze_depth": 5},
            {"backbone": "cnn", "lr": 1e-3},
            {"backbone": "cnn", "lr": 2e-3},
            {"lr": 1e-3},
        )
    )
    other = original.with_backbones(["resnet18", "vgg16_bn"])
    assert other.backbones == ("resnet18", "vgg16_bn")
    assert other.first_trials == (
        {"backbone": "resnet18", "lr": 1e-3, "freeze_depth": 5},
        {"backbone": "resnet18", "lr": 1e-3},
        {"backbone": "resnet18", "lr": 2e-3},
        {"lr": 1e-3},
    )
    preferred = original.with_backbones(["resnet18", "cnn"], "cnn").first_trials
    assert preferred[-1] == {"backbone": "cnn", "lr": 2e-3}, "that without one is the second"
    assert original.with_backbones(["resnet18", "cnn"]).first_trials[1] == {
        "backbone": "cnn",
        "lr": 1e-3,
    }
    assert original.backbones == ("tinynet", "cnn"), "the original space has changed"
    with pytest.raises(SpaceError, match=r"but got 'resnet19'; did you mean 'resnet18'\?"):
        original.with_backbones(["resnet19"])


def test_with_constants_fixes_parameters_in_the_first_trials_too():
    original = space(
        first_trials=(
            {"backbone": "tinynet", "lr": 1e-3, "freeze_depth": 5},
            {"backbone": "tinynet", "lr": 2e-3},
            {"backbone": "tinynet", "lr": 3e-3},
        )
    )
    fixed = original.with_constants({"lr": 0.5, "mixup": 0.2})
    assert fixed.constants == {"scheduler": "cosine", "lr": 0.5, "mixup": 0.2}
    assert fixed.first_trials == (
        {"backbone": "tinynet", "lr": 0.5, "freeze_depth": 5},
        {"backbone": "tinynet", "lr": 0.5},
    )
    assert "lr" in original.distributions, "the original space has changed"
    with pytest.raises(SpaceError, match=r"1e-08 <= lr <= 10 must hold, but got 20"):
        original.with_constants({"lr": 20.0})


@pytest.mark.parametrize(
    ("resize_size", "expected"), [(None, (112, None, 128)), (224, (112, 112, 112))]
)
def test_with_image_size_keeps_the_margin(resize_size, expected):
    other = space(image_size=224, resize_size=resize_size).with_image_size(112)
    assert (other.image_size, other.resize_size, other.cache_size) == expected


@pytest.mark.parametrize("text", ["products", "products.py", "spaces/products.py", "./products"])
def test_a_space_of_the_package_is_found_by_name_in_any_folder(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_space(text) == shipped_spaces()["products"]
    assert shipped_spaces()["products"].is_file()


def test_a_file_comes_before_a_space_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spaces").mkdir()
    for name in ("products.py", "spaces/products.py"):
        (tmp_path / name).touch()
        assert find_space(name) == Path(name)
    assert find_space("products") == shipped_spaces()["products"]


@pytest.mark.parametrize("text", ["other/products.py", "products.txt", "base", "prodcts"])
def test_other_texts_are_paths(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_space(text) == Path(text)


def test_load_space(tmp_path):
    path = written(tmp_path, "SPACE = Space(source=digits(), params={'backbone': 'cnn'}, epochs=3)")
    loaded = load_space(str(path))
    assert (loaded.epochs, loaded.constants) == (3, {"backbone": "cnn"})


def test_load_space_names_all_problems(tmp_path):
    path = written(
        tmp_path,
        "SPACE = Space(source=digits(), folds=1,\n"
        "    params={'backbone': 'cmn', 'augment': FloatDistribution(-0.5, 1.0)})",
    )
    with pytest.raises(SpaceError) as caught:
        load_space(path)
    assert str(caught.value) == (
        f"Space file {path} cannot be used:"
        f"\n  - backbone must be one of {BACKBONE_NAMES}, but got 'cmn'; did you mean 'cnn'?"
        "\n  - 0 <= augment <= 1 must hold, but got -0.5"
        "\n  - 2 <= folds <= 100 must hold, but got 1"
    )


def test_load_space_suggests_a_name_for_a_missing_file(tmp_path):
    for name in ("caltech", "tools", "base", "rules", "sources", "glyphs"):
        (tmp_path / f"{name}.py").touch()
    names = "by name, from any folder, there are caltech, cats_dogs, digits, fashion_mnist, photos,"
    assert load_error(tmp_path / "caltec.py").startswith(
        f"there is no such file; did you mean '{tmp_path}/caltech.py'?;"
        f" {tmp_path}/ has caltech.py, tools.py; {names}"
    )
    assert load_error(tmp_path / "no" / "folder.py").startswith(f"there is no such file; {names}")
    assert load_error(Path("prodcts")).startswith("there is no such file; did you mean 'products'?")
    (tmp_path / "folder.py").mkdir()
    assert load_error(tmp_path / "folder.py").startswith("there is no such file")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("SPACE = Space(\n", "line 4 is not Python: '(' was never closed"),
        ("PLACE = 3", "it must define SPACE = Space(...), but defines none"),
        ("SPACE = {'epochs': 3}", "it must define SPACE = Space(...), but has a dict there"),
        ("\n1 / 0", "line 5: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit()", "line 4: SystemExit: "),
        ("SPACE = Space(source=exit(0))", "line 4: SystemExit: 0"),
        ("SPACE = digits(7)", "line 4: digits() takes 0 positional arguments but 1"),
        (
            "SPACE = Space(source=digits(), params={'backbone': 'cnn'}, epoch=3)",
            "unknown field 'epoch'; did you mean 'epochs'?",
        ),
        (
            "SPACE = Space(source=digits(),\n"
            "    params={'backbone': 'cnn', 'lr': FloatDistribution(1, 0)})",
            "line 5: `low <= high` must hold, but got (low=1, high=0)",
        ),
        ("import spaces.nowhere", "line 4: ModuleNotFoundError: No module named 'spaces.nowhere'"),
    ],
)
def test_load_space_raises_for_an_invalid_file(tmp_path, body, problem):
    assert load_error(written(tmp_path, body)).startswith(problem)


def test_load_space_raises_for_a_binary_file(tmp_path):
    path = tmp_path / "image.py"
    path.write_bytes(b"\x89PNG\r\n\0\xff\xfe" * 20)
    assert load_error(path) == (
        "the file is not Python: source code string cannot contain null bytes"
    )
