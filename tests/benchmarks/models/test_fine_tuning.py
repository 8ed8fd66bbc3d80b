import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness.training_parts import BASE, PARTS
from benchmarks.harness.workbench import generate_images
from benchmarks.models import fine_tuning
from benchmarks.models.fine_tuning import Cell, Plan


def cell(part: str, accuracy: float, log_loss: float, photo_set: str = "tools") -> Cell:
    return Cell(photo_set, "tinynet", 0, part, accuracy, log_loss, 2.0, 20, 10)


def test_measured_cells_are_kept_and_only_missing_ones_are_trained(tmp_path: Path) -> None:
    parts = {name: PARTS[name] for name in (BASE, "linear-probe")}
    sets = {"generated": generate_images(tmp_path, 18)}
    plan = Plan(sets, ["tinynet"], [0, 1], parts, image_size=32)
    known = {key_cell(seed).key for seed in (0, 1)}
    found = list(fine_tuning.measure(plan, known, math.inf))
    assert [(c.seed, c.part, c.n_val) for c in found] == [(0, "linear-probe", 6), (1, BASE, 6)]
    file = tmp_path / "results" / "cells.jsonl"
    for one in found:
        fine_tuning.append_cell(file, one)
    assert list(fine_tuning.read_cells(file).values()) == found
    assert not list(fine_tuning.measure(plan, [], deadline=-math.inf))


def key_cell(seed: int) -> Cell:
    part = BASE if seed == 0 else "linear-probe"
    return Cell("generated", "tinynet", seed, part, 0.5, 1.0, 2.0, 12, 6)


def test_a_split_is_stratified_and_has_every_image_once() -> None:
    labels = torch.arange(90) % 3
    train, val = fine_tuning.split(labels, seed=1)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(90))
    assert labels[val].bincount().tolist() == [10, 10, 10]
    assert not torch.equal(val, fine_tuning.split(labels, seed=2)[1])


def test_a_part_is_compared_with_the_base_of_the_same_cell() -> None:
    cells = [
        cell(BASE, 0.5, 1.0),
        cell("mixup", 0.6, 0.8),
        cell(BASE, 0.7, 0.6, "flowers"),
        cell("mixup", 0.7, 0.5, "flowers"),
        cell("mixup", 0.1, 9.0, "grocery"),
    ]
    plan = Plan(dict.fromkeys(("tools", "flowers", "grocery")), ["tinynet"], [0], PARTS)  # type: ignore[arg-type]
    result = fine_tuning.report(plan, cells)
    (row,) = result.tables["part minus base"]
    assert (row["part"], row["sets"], row["cells"]) == ("mixup", 2, 2)
    assert row["points"] == pytest.approx(5)
    assert row["log loss"] == pytest.approx(-0.15)
    assert (row["points low"], row["points high"]) == pytest.approx((0, 10))
    assert [ratio.value for ratio in result.ratios] == pytest.approx([5, -0.15])
    assert len(result.extra["cells"]) == len(cells)


def test_an_unknown_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    for name in ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").touch()
    command = ["fine_tuning", "--data", str(tmp_path), "--only", "mixup", "cutmix"]
    monkeypatch.setattr(sys, "argv", command)
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit, match="2"):
            fine_tuning.main()
    finally:
        torch.set_num_threads(threads)
    assert "--only has cutmix, but there are only 16-epochs, " in capsys.readouterr().err
