"""DINOv2's ViT-S/14 with random weights at 224 px: a whole search that is killed and resumed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from search.runs.run_folder import CHECKPOINT
from search.tuning.study import load_study
from tests.system.faults.processes import Process
from trainables.feature_cache import bytes_per_image
from trainables.models.backbones import create_backbone

NAME = "timm/vit_small_patch14_dinov2.lvd142m"
N_IMAGES, N_VIEWS, DEPTHS = 40, 3, (3, 4, 5)
SPACE = f"""
from optuna.distributions import IntDistribution
from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(),
    params={{
        "backbone": "{NAME}",
        "freeze_depth": IntDistribution(3, 5),
        "augment": 1.0,
        "batch_size": 8,
    }},
    first_trials=tuple({{"freeze_depth": depth}} for depth in {DEPTHS}),
    image_size=224, epochs=3, trials=3, folds=2, views={N_VIEWS}, center_crop=False,
)
"""


@pytest.mark.long
def test_a_killed_search_of_a_transformer_resumes_from_the_cache(tmp_path: Path) -> None:
    network = NAME.removeprefix("timm/").partition(".")[0]
    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    state = timm.create_model(network).state_dict()
    save_file(state, tmp_path / "weights" / f"{network}.safetensors")
    rng = np.random.default_rng(0)
    for label, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(N_IMAGES // 2):
            pixels = np.clip(rng.normal(colour, 60, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((224, 224)).save(
                tmp_path / "images" / label / f"{index}.png"
            )
    (tmp_path / "space.py").write_text(SPACE)
    run = tmp_path / "results" / "vit"
    command = [sys.executable, "-m", "search.run"]
    new = ["--space", tmp_path / "space.py", "--data", tmp_path / "images", "--no-probe"]
    new += ["--weights", tmp_path / "weights", "--out", run.parent, "--name", run.name]
    options = ["--scheduler", "none", "--max-concurrent", "1"]
    killed = Process([*command, *map(str, new), *options], tmp_path / "first.log", {})
    try:
        killed.wait_until(lambda: any(run.glob(f"trials/*/{CHECKPOINT}")))
    finally:
        killed.kill()
    assert killed.left_over() == 0

    resumed = Process([*command, "--resume", str(run)], tmp_path / "second.log", {})
    try:
        assert resumed.wait(300.0) == 0, resumed.shown()
    finally:
        resumed.kill()
    study = load_study(run)
    assert study is not None
    trials = study.get_trials()
    assert [trial.params["freeze_depth"] for trial in trials] == list(DEPTHS)
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    for trial in trials:
        rows = (run / "trials" / str(trial.number) / "progress.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3"]

    summary = json.loads((run / "summary.json").read_text())
    n_cached = summary["data"]["train"] + summary["data"]["val"]
    bytes_of = bytes_per_image(create_backbone(NAME, state, image_size=224), 224)
    expected = n_cached * N_VIEWS * sum(bytes_of[depth - 1] for depth in DEPTHS) / 2**20
    built = re.findall(r"stage outputs \[3, 4, 5\]: ([\d.]+) MB", (run / "run.log").read_text())
    assert [float(megabytes) for megabytes in built] == [pytest.approx(expected, abs=0.06)] * 2
    assert summary["model_cost"]["megabytes"] > 80
    assert "computed when they are needed" not in resumed.shown()
