"""The ladder: its rungs, and how they are climbed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution

from search.cluster.shared_file import StoredObject
from search.console.progress import Progress
from search.pipeline import ablation, flow
from search.pipeline.ablation import ablation_steps, run_ablation
from search.runs.run_folder import RunFolder
from spaces.base import Space, load_space
from spaces.sources import digits
from trainables.models.weights import PACKAGED, load_weights
from trainables.worker import TrainingContext

N_IMAGES, N_CLASSES, SIZE = 48, 3, 32


def space_of(**params: Any) -> Space:
    backbones = CategoricalDistribution(["tinynet"])
    return Space(source=digits(), params={"backbone": backbones, **params}, ablation=True)


def test_each_rung_adds_one_idea() -> None:
    rungs = ablation_steps(space_of(scheduler="cosine", batch_size=16), "resnet50")
    steps = [(r.config.backbone, r.config.dropout > 0, r.config.augment > 0) for r in rungs]
    assert steps == [
        ("cnn", False, False),
        ("cnn", True, False),
        ("cnn", True, True),
        ("resnet50", True, True),
    ]
    assert [rung.config.freeze_depth for rung in rungs] == [0, 0, 0, 5]
    assert rungs[3].name == "transfer from resnet50"
    assert {(rung.config.scheduler, rung.config.batch_size) for rung in rungs} == {("cosine", 16)}


def test_without_a_pretrained_network_there_is_no_transfer() -> None:
    assert [rung.name for rung in ablation_steps(space_of(), None)] == [
        "plain CNN",
        "+ dropout",
        "+ augmentation",
    ]


def test_what_a_space_fixes_gives_way_to_the_rung() -> None:
    plain = ablation_steps(space_of(dropout=0.3, augment=0.2, hidden_units=64), None)[0]
    assert (plain.config.dropout, plain.config.augment, plain.config.hidden_units) == (0, 0, 0)


def test_cats_and_dogs_asks_for_it() -> None:
    spaces = Path(__file__).parents[3] / "spaces"
    assert load_space(spaces / "cats_dogs.py").ablation
    assert not load_space(spaces / "digits.py").ablation


@pytest.fixture
def prepared(ray_session: None) -> Any:
    """Images whose class is their colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_IMAGES) % N_CLASSES
    table = torch.randint(0, 90, (N_IMAGES, SIZE, SIZE, 3), generator=generator)
    table[torch.arange(N_IMAGES), :, :, labels] += 120
    context = TrainingContext(
        table=StoredObject.put(table.to(torch.uint8).numpy()),
        labels=labels.numpy(),
        n_classes=N_CLASSES,
        image_size=SIZE,
        flip=False,
        weights={"tinynet": StoredObject.put(load_weights(PACKAGED["tinynet"]))},
        feature_source=None,
        heads={},
        epochs=2,
        patience=1,
        seed=0,
    )
    rows = {"train": np.arange(36), "val": np.arange(36, N_IMAGES)}
    return SimpleNamespace(space=space_of(batch_size=12), context=context, rows=rows.__getitem__)


@pytest.mark.slow
def test_every_rung_is_trained_to_full_length_and_kept(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.note("gpu_fraction", {"tinynet": 0.0})
    run_ablation(prepared, folder, Progress(quiet=True))
    rungs = folder.summary["ablation"]
    assert [rung["name"] for rung in rungs] == [
        "plain CNN",
        "+ dropout",
        "+ augmentation",
        "transfer from tinynet",
    ]
    assert [rung["epochs"] for rung in rungs] == [2] * 4, "patience ends no rung"
    assert all(0 <= rung["val_accuracy"] <= rung["best_val_accuracy"] <= 1 for rung in rungs)
    with (tmp_path / "ladder.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rung"], row["epoch"]) for row in rows] == [
        (str(rung), str(epoch)) for rung in range(1, 5) for epoch in (1, 2)
    ]
    last = float(rows[1]["val_accuracy"])
    assert last == pytest.approx(rungs[0]["val_accuracy"], abs=1e-6)

    # Carried on, only what is missing is trained, and what another length would change.
    (tmp_path / "ablation" / "2.json").write_text("{cut off")
    trained = []
    task = ablation._train_step

    class Watched:
        def options(self, **resources: Any) -> Any:
            def remote(context: TrainingContext, config: Any, *rows: Any) -> Any:
                trained.append((config.dropout, config.augment, context.epochs))
                return task.options(**resources).remote(context, config, *rows)

            return SimpleNamespace(remote=remote)

    monkeypatch.setattr(ablation, "_train_step", Watched())
    run_ablation(prepared, folder, Progress(quiet=True))
    assert trained == [(0.5, 0.4, 2)]
    assert json.loads((tmp_path / "ablation" / "2.json").read_text())["curve"][1]["epoch"] == 2
    assert folder.summary["ablation"][2]["val_accuracy"] == rungs[2]["val_accuracy"]
    prepared.context = replace(prepared.context, epochs=1)
    run_ablation(prepared, folder, Progress(quiet=True))
    assert len(trained) == 5


def test_the_ladder_is_climbed_only_where_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rungs train the CNN, two at a time: twice two epochs of 36 images at 0.5 s."""
    prepared = SimpleNamespace(
        space=replace(space_of(), epochs=2), context=None, rows={"train": np.arange(36)}.__getitem__
    )
    monkeypatch.setattr(ablation, "measure_throughput", lambda *_: {"cnn": (0.1,) * 5})
    monkeypatch.setattr(ablation, "TrialSlots", lambda *_: lambda: 2)
    folder, progress = RunFolder(tmp_path), Progress(quiet=True)
    folder.note("gpu_fraction", {"tinynet": 0.0})
    results = []
    monkeypatch.setattr(flow, "run_ablation", lambda *_: results.append(1))
    for seconds, times in ((60.0, 0), (100.0, 1), (None, 2)):
        request: Any = SimpleNamespace(time_budget_seconds=seconds)
        flow.run_ablation_in_time(request, prepared, folder, progress)
        assert len(results) == times
    assert "left out: it would take about 1 min 12 s, and 1 min" in capsys.readouterr().err
