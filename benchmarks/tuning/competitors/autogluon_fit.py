"""AutoGluon MultiModal on the same images, weights and time, in an environment of its own.

    PYTHON -m benchmarks.tuning.competitors.autogluon_fit fit JOB
    PYTHON -m benchmarks.tuning.competitors.autogluon_fit predict MODEL LIST CSV

Its image model is timm's network whose weights are at hand; everything else is AutoGluon's default.
"predict" reads a list of paths, one a line, and writes a column of probabilities for each class.
Only this module runs in AutoGluon's environment, which has neither Ray nor the project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.tuning.competitors.job import Job, read_job

NETWORK = "tf_efficientnet_lite0"
CLOSING_SECONDS = 8.0
"""Kept for what follows AutoGluon's `time_limit`: it writes its model."""


def fit(job: Job) -> None:
    """Train within the job's time; the model is a folder."""
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    files = sorted(path for path in job.train.rglob("*") if path.is_file())
    table = pd.DataFrame(
        {"image": [str(path) for path in files], "label": [path.parent.name for path in files]}
    )
    options: dict[str, Any] = {"model.names": ["timm_image"], "env.num_gpus": 0}
    if job.weights is not None:
        checkpoint = Path(job.model).with_name("checkpoint")
        _write_checkpoint(Path(job.weights) / f"{NETWORK}.pth", checkpoint)
        options["model.timm_image.checkpoint_name"] = str(checkpoint)
    MultiModalPredictor(label="label", path=job.model).fit(
        table,
        column_types={"image": "image_path"},
        hyperparameters=options,
        time_limit=max(1.0, job.seconds_left() - CLOSING_SECONDS),
        seed=job.seed,
    )


def predict(model: str, listed: str, out: str) -> None:
    """Write each image's probabilities, a column a class."""
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    paths = Path(listed).read_text(encoding="utf-8").splitlines()
    predictor = MultiModalPredictor.load(model)
    found = predictor.predict_proba(pd.DataFrame({"image": paths}), as_pandas=True)
    found.to_csv(out, index=False)


def _write_checkpoint(weights: Path, folder: Path) -> None:
    """Write weights as AutoGluon reads its own of timm's networks: a folder, without the head."""
    import timm
    import torch

    network: Any = timm.create_model(NETWORK, num_classes=0)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()})
    folder.mkdir()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    wanted = ("input_size", "interpolation", "mean", "std", "crop_pct")
    config = {
        "architecture": NETWORK,
        "num_features": network.num_features,
        "pretrained_cfg": {name: network.pretrained_cfg[name] for name in wanted},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "fit":
        fit(read_job(sys.argv[2]))
    else:
        predict(*sys.argv[2:])
