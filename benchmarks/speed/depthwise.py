"""Compare a training step's time with depthwise convolutions in bfloat16 and in float32, on a CPU.

    python -m benchmarks.speed.depthwise [--quick]

Each backbone takes forward and backward passes of one batch in turn under `mixed_precision`, which
computes all convolutions in bfloat16, and under `training_precision`, which leaves the depthwise
ones in float32; the ratio of the median times is reported, for the whole network and for its last
two stages. Random weights and inputs, one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress
from benchmarks.harness.workbench import new_backbone
from trainables.compute import configure_cpu, mixed_precision, training_precision
from trainables.models.backbones import Backbone

_BATCH_SIZE = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """Backbones, the images' side in pixels, and the rounds of each pair."""

    backbones: tuple[str, ...]
    image_size: int
    n_rounds: int


PLANS = {
    "full": Plan(
        (
            "mobilenet_v2",
            "timm/tf_efficientnet_lite0",
            "timm/mobilenetv4_conv_medium.e500_r224_in1k",
            "timm/convnext_nano.in12k_ft_in1k",
        ),
        224,
        10,
    ),
    "quick": Plan(("mobilenet_v2", "timm/tf_efficientnet_lite0"), 224, 5),
    "smoke": Plan(("mobilenet_v2",), 32, 2),
}


def main() -> None:
    """Measure, and report."""
    arguments = command_line(__doc__).parse_args()
    plan = PLANS[arguments.mode]
    configure_cpu(1)
    report = Report("depthwise", "Training steps with depthwise convolutions in two precisions.")
    rows = []
    for name in plan.backbones:
        backbone = new_backbone(name, None)
        for depth in (0, 3):
            low, high = _in_turn(backbone, depth, plan)
            rows.append({"backbone": name, "depth": depth, "bfloat16 ms": low, "float32 ms": high})
            log_progress(f"{name}, depth {depth}: {low / high:.2f}")
            report.ratios.append(
                Ratio(f"{name}, depth {depth}: bfloat16 over float32", low / high, 1.0)
            )
    report.tables["milliseconds an image"] = rows
    report.publish(arguments)


def _in_turn(backbone: Backbone, depth: int, plan: Plan) -> tuple[float, float]:
    """Return the median milliseconds an image of both precisions, after a round of warm-up."""
    backbone.freeze(depth)
    backbone.train()
    side = plan.image_size
    pixels = torch.rand(_BATCH_SIZE, 3, side, side).to(memory_format=torch.channels_last)
    with torch.no_grad(), mixed_precision(_CPU):
        inputs = backbone(pixels, 0, depth)
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(plan.n_rounds + 1):
        for precision, times in zip((mixed_precision, training_precision), found, strict=True):
            started = perf_counter()
            _step(backbone, depth, inputs, precision)
            times.append(1000 * (perf_counter() - started) / _BATCH_SIZE)
    return median(found[0][1:]), median(found[1][1:])


def _step(
    backbone: Backbone,
    depth: int,
    inputs: Tensor,
    precision: Callable[[torch.device], AbstractContextManager[None]],
) -> None:
    with precision(_CPU):
        features = backbone(inputs, depth, 5)
    features.float().sum().backward()
    backbone.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
