"""The ablation: its steps, and how they are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution

from search.cluster.shared_file import StoredObject
from search.console.progress import Progress
from search.pipeline import ablation
from search.pipeline.ablation import ablation_steps, run_ablation
from search.pipeline.prepare import PreparedData
from search.runs.run_folder import RunFolder
from search.runs.tables import read_rows
from spaces.base import Space, load_space
from spaces.sources import digits
from tests.fixtures.prepared_data import prepared_data
from trainables.pretrained.weights import PACKAGED, load_weights

N_IMAGES, N_CLASSES, SIZE = 48, 3, 32


def space_of(**params: Any) -> Space:
    backbones = CategoricalDistribution(["tinynet"])
    return Space(source=digits(), params={"backbone": backbones, **params}, epochs=2, ablation=True)


def test_each_step_adds_one_idea() -> None:
    steps = ablation_steps(space_of(scheduler="cosine", batch_size=16), "resnet50")
    ideas = [(s.config.backbone, s.config.dropout > 0, s.config.augment > 0) for s in steps]
    assert ideas == [
        ("cnn", False, False),
        ("cnn", True, False),
        ("cnn", True, True),
        ("resnet50", True, True),
    ]
    assert [step.config.freeze_depth for step in steps] == [0, 0, 0, 5]
    assert steps[3].name == "transfer from resnet50"
    assert {(step.config.scheduler, step.config.batch_size) for step in steps} == {("cosine", 16)}


def test_without_a_pretrained_network_there_is_no_transfer() -> None:
    assert [step.name for step in ablation_steps(space_of(), None)] == [
        "plain CNN",
        "+ dropout",
        "+ augmentation",
    ]


def test_a_step_replaces_constants_of_the_space() -> None:
    plain = ablation_steps(space_of(dropout=0.3, augment=0.2, hidden_units=64), None)[0]
    assert (plain.config.dropout, plain.config.augment, plain.config.hidden_units) == (0, 0, 0)


def test_the_space_of_cats_and_dogs_has_an_ablation() -> None:
    spaces = Path(__file__).parents[3] / "spaces"
    assert load_space(spaces / "cats_dogs.py").ablation
    assert not load_space(spaces / "digits.py").ablation


@pytest.fixture
def prepared(ray_session: None) -> PreparedData:
    """Images whose class is their colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_IMAGES) % N_CLASSES
    table = torch.randint(0, 90, (N_IMAGES, SIZE, SIZE, 3), generator=generator)
    table[torch.arange(N_IMAGES), :, :, labels] += 120
    pixels = table.to(torch.uint8).numpy()
    return prepared_data(
        replace(space_of(batch_size=12), image_size=SIZE, patience=1),
        pixels,
        labels.tolist(),
        ("red", "green", "blue"),
        ["train"] * 36 + ["val"] * 12,
        table=StoredObject.put(pixels),
        weights={"tinynet": StoredObject.put(load_weights(PACKAGED["tinynet"]))},
    )


@pytest.mark.slow
def test_every_step_is_trained_to_full_length_and_saved(
    prepared: PreparedData, tmp_path: Path
) -> None:
    folder, context = RunFolder(tmp_path), prepared.training_context({}, None)

    def run(epochs: int = 2) -> dict[str, int]:
        """Run the ablation; return when each step's file was written."""
        run_ablation(
            prepared,
            replace(context, epochs=epochs),
            "tinynet",
            {"tinynet": 0.0},
            None,
            folder,
            Progress(quiet=True),
        )
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "ablation").iterdir()}

    first = run()
    steps = folder.summary.ablation
    assert steps is not None
    assert [step.name for step in steps] == [
        "plain CNN",
        "+ dropout",
        "+ augmentation",
        "transfer from tinynet",
    ]
    assert [step.epochs for step in steps] == [2] * 4, "patience does not end a step"
    assert all(0 <= step.val_accuracy <= step.best_val_accuracy <= 1 for step in steps)
    rows = read_rows(tmp_path / "ablation.csv")
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (str(step), str(epoch)) for step in range(1, 5) for epoch in (1, 2)
    ]
    assert float(rows[1]["val_accuracy"]) == pytest.approx(steps[0].val_accuracy, abs=1e-6)

    # A resumed run trains only what is missing, and what another length would change.
    (tmp_path / "ablation" / "2.json").write_text("{cut off")
    second = run()
    assert {name for name in first if second[name] != first[name]} == {"2.json"}
    curve = json.loads((tmp_path / "ablation" / "2.json").read_text())["curve"]
    assert curve[1]["epoch"] == 2
    assert folder.summary.ablation is not None
    assert folder.summary.ablation[2].val_accuracy == steps[2].val_accuracy
    third = run(epochs=1)
    assert all(third[name] != second[name] for name in second)


def test_there_is_no_ablation_without_time_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three steps train the CNN, two in parallel: twice two epochs of 36 images at 0.5 s."""
    prepared = prepared_data(
        space_of(), np.zeros((36, 2, 2, 3), np.uint8), [0, 1] * 18, ("a", "b"), ["train"] * 36
    )
    context = prepared.training_context({}, None)
    monkeypatch.setattr(ablation, "measure_throughput", lambda *_: {"cnn": (0.1,) * 5})
    monkeypatch.setattr(ablation, "TrialSlots", lambda *_: lambda: 2)
    assert ablation.expected_seconds(prepared, context, {}) == pytest.approx(72.0)
    folder, progress = RunFolder(tmp_path), Progress(quiet=True)
    run_ablation(prepared, context, None, {"tinynet": 0.0}, 60.0, folder, progress)
    assert folder.summary.ablation is None
    assert "no ablation: it would take about 1 min 12 s, and 1 min" in capsys.readouterr().err
