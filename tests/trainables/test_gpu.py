"""Training on a real GPU: precision, memory, and a whole search whose trials share it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from search.cluster.resources import GpuMemory, gpu_fraction_for, measure_gpu_memory
from spaces.base import TrialConfig
from tests.fixtures.prepared_data import InMemory
from trainables.batches import ImageSet
from trainables.compute import mixed_precision
from trainables.models.backbones import create_backbone
from trainables.pretrained.weights import PACKAGED, load_weights
from trainables.trainer import Trainer
from trainables.worker import TrainingContext

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")
N_IMAGES, N_TRAIN, BATCH_SIZE = 1536, 1024, 512


def pixels(n: int = N_IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """Return images of two classes, a lying and a standing bar in noise, and their labels."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 100, (n, 32, 32, 3), np.uint8)
    labels = np.arange(n) % 2
    for image, label in zip(table, labels, strict=True):
        x, y = rng.integers(3, 12, 2)
        width, height = ((18, 5), (5, 18))[label]
        image[y : y + height, x : x + width] += 155
    return table, labels


def create(device: torch.device = CUDA, epochs: int = 3) -> Trainer:
    table, labels = pixels()
    images = ImageSet(
        torch.from_numpy(table).to(device), torch.from_numpy(labels), 2, 32, flip=False
    )
    backbone = create_backbone("tinynet", load_weights(PACKAGED["tinynet"]))
    return Trainer(
        TrialConfig("tinynet", lr=3e-3, freeze_depth=0, augment=0.0, batch_size=BATCH_SIZE),
        backbone.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        images,
        torch.arange(N_TRAIN),
        torch.arange(N_TRAIN, N_IMAGES),
        epochs=epochs,
        seed=0,
    )


@pytest.fixture
def all_memory() -> Iterator[None]:
    """Give the process the whole card again."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("has_bfloat16", [True, False], ids=["bfloat16", "float16"])
def test_both_precisions_learn(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    if has_bfloat16 and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bfloat16")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: has_bfloat16)
    with mixed_precision(CUDA):
        dtype = torch.get_autocast_dtype("cuda")
    assert dtype == (torch.bfloat16 if has_bfloat16 else torch.float16)
    trainer = create()
    results = [trainer.run_epoch() for _ in range(3)]
    assert results[-1].train_loss < results[0].train_loss
    assert results[-1].val_accuracy > 0.9
    assert results[-1].gpu_memory_mb > 0


def test_the_gpu_computes_what_the_cpu_computes() -> None:
    on_gpu, on_cpu = (create(device).model.eval() for device in (CUDA, torch.device("cpu")))
    on_cpu.load_state_dict(on_gpu.state_dict())
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # TensorFloat-32, PyTorch's default in convolutions, has 10 bits.
        torch.testing.assert_close(on_gpu(x.to(CUDA)).cpu(), on_cpu(x), rtol=0.02, atol=0.02)


def test_a_batch_that_does_not_fit_the_card_is_split(all_memory: None) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = create()
    before = torch.cuda.memory_allocated()
    expected = whole.run_epoch()
    peak = torch.cuda.max_memory_allocated()
    del whole
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((before + (peak - before) * 0.6) / total)
    split = create()
    result = split.run_epoch()
    assert split._micro_batch < BATCH_SIZE, "the batch was split"
    assert result.train_loss == pytest.approx(expected.train_loss, rel=0.05)


def test_the_measured_memory_lets_several_trials_share_the_card() -> None:
    table, labels = pixels(64)
    context = TrainingContext(
        table=InMemory(table),
        image_size=32,
        flip=False,
        weights={},
        seed=0,
        labels=labels,
        n_classes=2,
        epochs=1,
        patience=None,
        heads={},
        feature_source=None,
    )
    config = TrialConfig("tinynet", freeze_depth=0, augment=0.5, batch_size=64)
    measured: GpuMemory = measure_gpu_memory._function(context, config, np.arange(64))
    assert 0 < measured.peak_bytes < measured.total_bytes
    assert math.isclose(1 / gpu_fraction_for(measured, 4) % 1, 0, abs_tol=1e-9)


def test_a_search_shares_the_card_and_its_model_predicts_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "search.run", "--limit", "600", "--trials", "6"]
    command += ["--epochs", "3", "--folds", "2", "--out", str(tmp_path), "--name", "run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    fractions = summary["search"]["gpu_fraction"]
    assert fractions
    assert all(0 < fraction < 1 for fraction in fractions.values())
    image = next((tmp_path / "run").rglob("*.png"))
    predict = [sys.executable, "-m", "search.predict", str(tmp_path / "run"), str(image)]
    done = subprocess.run(predict, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
