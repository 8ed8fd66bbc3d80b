"""Our trainable under stock Ray Tune takes what Optuna proposes, and saves its best weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.prepared_data import InMemory
from trainables import trial
from trainables.worker import TrainingContext

N_IMAGES = 24
CONTEXT = TrainingContext(
    table=InMemory(np.random.default_rng(0).integers(0, 256, (N_IMAGES, 32, 32, 3), np.uint8)),
    image_size=32,
    flip=False,
    weights={},
    seed=0,
    labels=np.arange(N_IMAGES) % 2,
    n_classes=2,
    epochs=2,
    patience=None,
    heads={},
    feature_source=None,
)
PARAMS = {"backbone": "tinynet", "optimizer": "sgd"}


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported without changing this process's environment or threads."""
    monkeypatch.setattr("search.cluster.session.configure_ray", lambda: None)
    monkeypatch.setattr(trial, "configure_cpu", lambda n_threads: None)
    return importlib.import_module("benchmarks.tuning.competitors.stock_tune")


def test_a_trial_begins_reports_and_saves_its_best_weights(stock: Any, tmp_path: Path) -> None:
    one = stock.StockTrial.__new__(stock.StockTrial)
    shared = {
        "context": CONTEXT,
        "train_rows": np.arange(16),
        "val_rows": np.arange(16, N_IMAGES),
        "checkpoints": stock.NoCheckpoints(),
    }
    one.setup({**PARAMS, "lr": 1e-2, "freeze_depth": 5}, **shared)
    first = one.step()
    assert (first["failure"], first["done"]) == (None, False)
    assert {"val_score", "best_val_score", "epoch"} <= first.keys()
    assert one.step()["done"]
    one.save_checkpoint(str(tmp_path))
    saved = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert {key.split(".")[0] for key in saved} == {"head"}  # all else is frozen
    number = one._number
    assert one.reset_config({**PARAMS, "lr": 1e-3, "freeze_depth": 4})
    assert one._number != number
    one.step()
    one.save_checkpoint(str(tmp_path))
    assert len(torch.load(tmp_path / "weights.pt", weights_only=True)) > len(saved)
