"""A space that was made in Python is written to a file that rebuilds it."""

from __future__ import annotations

import runpy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.api.space_file import write_space
from spaces.base import NOT_SPACES, Space, load_space
from spaces.conditions import ByValue, When
from spaces.rules import SpaceError
from spaces.sources import Source, folder

ROOT = Path(__file__).parents[3]
SPACES = sorted(p for p in (ROOT / "spaces").glob("*.py") if p.stem not in NOT_SPACES)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_of_the_package_is_rebuilt(path: Path, tmp_path: Path) -> None:
    space = load_space(path)
    write_space(tmp_path / "space.py", space)
    assert load_space(tmp_path / "space.py") == space


def test_every_kind_of_value_is_rebuilt(tmp_path: Path) -> None:
    space = Space(
        source=folder(classes=("it's", 'a "b"', "größe\n")),
        params={
            "backbone": CategoricalDistribution(["cnn"]),
            "lr": FloatDistribution(float(np.float64(1e-4)), 1e-2, log=True),
            "dropout": FloatDistribution(0.0, 0.5, step=0.1),
            "batch_size": IntDistribution(16, 64, step=16),
            "freeze_depth": IntDistribution(0, 5),
            "weight_decay": np.float64(0.25),
            "class_weights": True,
            "hidden_units": When({"freeze_depth": (4, 5)}, CategoricalDistribution([0, 64])),
            "mixup": When({"freeze_depth": 0}, ByValue("backbone", {"cnn": 0.1}, default=0.2)),
        },
        val_fraction=0.3,
        first_trials=({"lr": 1e-3}, {"lr": 2e-3, "freeze_depth": 1}),
        weights="none",
        patience=3,
    )
    write_space(tmp_path / "space.py", space)
    again = load_space(tmp_path / "space.py")
    assert again == space
    assert again.params["class_weights"] is True
    assert again.source.classes == ("it's", 'a "b"', "größe\n")
    # Only what differs from the defaults is written.
    text = (tmp_path / "space.py").read_text()
    assert "image_size" not in text
    assert "epochs" not in text


def test_files_are_of_this_format(tmp_path: Path) -> None:
    params = {"backbone": CategoricalDistribution(["cnn"]), "lr": 1e-3}
    write_space(tmp_path / "space.py", Space(source=folder(), params=params, trials=7))
    assert (
        (tmp_path / "space.py").read_text()
        == '''"""A space that was made in Python."""

from optuna.distributions import CategoricalDistribution
from spaces.base import Space
from spaces.sources import Source

SPACE = Space(
    source=Source(name='folder'),
    params={
        'backbone': CategoricalDistribution(['cnn']),
        'lr': 0.001,
    },
    trials=7,
)
'''
    )


@dataclass(frozen=True)
class TableSource(Source):
    """A source with a value that no file can hold."""

    table: object = None


def test_what_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Local(Source):
        pass

    space = runpy.run_path(str(ROOT / "spaces" / "digits.py"))["SPACE"]
    with pytest.raises(SpaceError, match=r"Local is only in this program: define the space in a"):
        write_space(tmp_path / "space.py", replace(space, source=Local("mine")))
    with pytest.raises(SpaceError, match=r"a object cannot be written to a file"):
        write_space(tmp_path / "space.py", replace(space, source=TableSource("t", table=object())))
    assert not (tmp_path / "space.py").exists()
