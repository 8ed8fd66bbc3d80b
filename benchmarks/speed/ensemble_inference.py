"""Compare the inference time of an ensemble over one frozen backbone with that of one member.

    python -m benchmarks.speed.ensemble_inference [--quick]

Five members of freeze depth 5 share all stages, which run once. The ensemble and one member predict
32 decoded images in turn, in PyTorch and as exported ONNX graphs; the ratio of the median times is
reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress
from benchmarks.speed.serving import Plan as ServedModel
from benchmarks.speed.serving import save_model
from search.deployment.exporters import INPUT, write_onnx
from search.deployment.parity import central_pixels
from search.export import one_member
from trainables.models.model import Model, load_model, predict

N_IMAGES = 32


@dataclass(frozen=True)
class Plan:
    """Backbones, and the rounds of each."""

    backbones: tuple[str, ...]
    image_size: int
    n_rounds: int


PLANS = {
    "full": Plan(("squeezenet1_0", "mobilenet_v2", "resnet18"), 224, 30),
    "quick": Plan(("squeezenet1_0",), 224, 15),
    "smoke": Plan(("tinynet",), 32, 3),
}


def main() -> None:
    """Measure, and report."""
    arguments = command_line(__doc__).parse_args()
    plan = PLANS[arguments.mode]
    report = Report("ensemble_inference", "Five members at freeze depth 5 against one of them.")
    rows = []
    for backbone in plan.backbones:
        with tempfile.TemporaryDirectory() as scratch:
            served = ServedModel(0, 0, 0, backbone, plan.image_size)
            whole = load_model(save_model(served, Path(scratch)))
            pair = (whole, one_member(whole, 1))
            for way, sides in (
                ("PyTorch", [_torch(model) for model in pair]),
                ("ONNX", [_onnx(model, Path(scratch) / "model.onnx") for model in pair]),
            ):
                five, one = _in_turn(sides, plan.n_rounds)
                rows.append({"backbone": backbone, "by": way, "five ms": five, "one ms": one})
                log_progress(f"{backbone}, {way}: {five / one:.3f}")
                ratio = Ratio(f"{backbone}, {way}: five over one", five / one, 1.15, at_least=False)
                report.ratios.append(ratio)
    report.tables[f"{N_IMAGES} images of {plan.image_size} px"] = rows
    report.publish(arguments)


def _images(model: Model) -> np.ndarray:
    side = model.card.cache_size
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (N_IMAGES, side, side, 3), dtype=np.uint8)


def _torch(model: Model) -> Callable[[], object]:
    images = torch.from_numpy(_images(model))
    return lambda: predict(model, images)


def _onnx(model: Model, path: Path) -> Callable[[], object]:
    import onnxruntime

    write_onnx(model, path)
    session = onnxruntime.InferenceSession(path.read_bytes())
    taken = {INPUT: central_pixels(model.card, _images(model))}
    return lambda: session.run(None, taken)


def _in_turn(sides: list[Callable[[], object]], n_rounds: int) -> tuple[float, float]:
    """Return the median milliseconds of each, after one round of warm-up."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(n_rounds + 1):
        for compute, times in zip(sides, found, strict=True):
            started = perf_counter()
            compute()
            times.append(1000 * (perf_counter() - started))
    return median(found[0][1:]), median(found[1][1:])


if __name__ == "__main__":
    main()
