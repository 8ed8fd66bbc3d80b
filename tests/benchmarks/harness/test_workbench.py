import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness import workbench


def test_a_missing_data_folder_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        workbench.need_data(argparse.Namespace(data=tmp_path / "nowhere"))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/nowhere holds no caltech101/101_ObjectCategories/;"
        " give the folder that does with --data\n"
    )


def test_a_missing_default_data_folder_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workbench, "DEFAULT_DATA", tmp_path)
    assert workbench.find_data(argparse.Namespace(data=None)) is None
    with pytest.raises(SystemExit) as stopped:
        workbench.need_data(argparse.Namespace(data=None))
    assert stopped.value.code == 2
    assert "needs real images" in capsys.readouterr().err


def test_images_are_drawn_stratified_by_class() -> None:
    labels = np.array([0] * 80 + [1] * 16 + [2] * 4)
    chosen = workbench.choose_stratified(labels, 25, seed=1)
    assert len(set(chosen.tolist())) == 25
    assert np.bincount(labels[chosen]).tolist() == [20, 4, 1]
    assert np.bincount(labels[workbench.choose_stratified(labels, 3, seed=1)]).tolist() == [1, 1, 1]


def test_weights_are_found_by_the_names_of_timm_and_in_the_package(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "tf_efficientnet_lite0.pth")
    found = workbench.read_state("timm/tf_efficientnet_lite0", tmp_path)
    assert found is not None
    assert found["weight"].tolist() == [1, 1]
    assert workbench.read_state("mobilenet_v2", tmp_path) is None
    assert workbench.read_state("mobilenet_v2", None) is None
    assert workbench.read_state("tinynet", None)
