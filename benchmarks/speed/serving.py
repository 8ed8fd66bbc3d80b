"""Serve 200 requests in parallel: batching at least doubles the throughput.

    python -m benchmarks.speed.serving [--quick]

The server runs on 127.0.0.1 with batches of up to 8 images (the default on a CPU) and with batches
of one. The model is an untrained SqueezeNet 1.0 at 224 px, which costs as much as a trained one.
The client, on the same cores, keeps 200 requests of one JPEG each open. Three rounds of both in
turn; the ratio of the medians is reported. Any status but 200 and 429 is an error.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress, stop
from benchmarks.harness.workbench import generate_images

BACKBONE = "squeezenet1_0"
PORT = 8777
BATCH = 8


@dataclass(frozen=True)
class Plan:
    """Size of the measurement.

    Attributes:
        n_requests: Requests in a round.
        concurrent: Requests in parallel.
        n_rounds: Rounds with each batch size.
        backbone: Backbone of the model.
        image_size: Side in pixels.
    """

    n_requests: int
    concurrent: int
    n_rounds: int
    backbone: str
    image_size: int


PLANS = {
    "full": Plan(2000, 200, 3, BACKBONE, 224),
    "quick": Plan(600, 200, 1, BACKBONE, 224),
    "smoke": Plan(20, 10, 1, "tinynet", 32),
}


@dataclass(frozen=True)
class Round:
    """Statuses and times of a round."""

    statuses: Counter[int]
    latencies: tuple[float, ...]
    """Seconds of each response with status 200."""
    seconds: float

    @property
    def per_second(self) -> float:
        """Images predicted per second."""
        return self.statuses[200] / self.seconds


def main() -> None:
    """Measure, and report."""
    arguments = command_line(__doc__).parse_args()
    plan = PLANS[arguments.mode]
    report = Report("serving", "Throughput with dynamic batching against batches of one.")
    with tempfile.TemporaryDirectory() as scratch:
        model = save_model(plan, Path(scratch))
        files = generate_images(Path(scratch) / "images", 50)
        images = [path.read_bytes() for path in files.paths]
        rounds: dict[int, list[Round]] = {1: [], BATCH: []}
        for _ in range(plan.n_rounds):
            for batch, found in rounds.items():
                found.append(measure(plan, model, batch, images))
                log_progress(f"batches of {batch}: {found[-1].per_second:.1f} images/s")
    report.tables[f"{plan.concurrent} requests in parallel, one image each"] = [
        _row(batch, found) for batch, found in rounds.items()
    ]
    fast, slow = (median(r.per_second for r in rounds[batch]) for batch in (BATCH, 1))
    report.ratios.append(Ratio("images/s with batching over without", fast / slow, 2.0))
    wrong = sum(
        count
        for found in rounds.values()
        for one in found
        for status, count in one.statuses.items()
        if status not in (200, 429)
    )
    report.ratios.append(Ratio("answers other than 200 and 429", wrong, 0.0, at_least=False))
    report.notes.append("the client runs on the same cores and is counted on both sides")
    report.publish(arguments)


def save_model(plan: Plan, folder: Path) -> Path:
    """Save an ensemble of five heads over a frozen, untrained backbone."""
    from trainables.models.backbones import create_backbone
    from trainables.models.classifier import Classifier, create_head
    from trainables.models.ensemble import Ensemble
    from trainables.models.model import save_model
    from trainables.models.model_card import ModelCard

    size = plan.image_size
    classes = tuple(f"class {i}" for i in range(6))
    card = ModelCard(
        plan.backbone, classes, size, round(size / 0.875), 5, 0, n_members=5, resize_mode="crop"
    )
    backbone = create_backbone(plan.backbone)
    backbone.freeze(5)
    heads = (create_head(backbone.feature_size, len(classes), 0, 0.0) for _ in range(5))
    members = [Classifier(backbone, head).member_weights() for head in heads]
    save_model(Ensemble(card, backbone.stages.state_dict(), members), folder / "model.pt")
    return folder / "model.pt"


def measure(plan: Plan, model: Path, batch: int, images: list[bytes]) -> Round:
    """Start a server, warm it up, and send a round of requests."""
    command = [sys.executable, "-m", "search.serve", str(model), "--port", str(PORT)]
    command += ["--batch", str(batch), "--timeout", "300"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        if server.stdout is None or not server.stdout.readline().startswith("ready"):
            stop("the server did not start", 1)
        asyncio.run(_send(plan, images, plan.n_requests // 10))
        return asyncio.run(_send(plan, images, plan.n_requests))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


async def _send(plan: Plan, images: list[bytes], n: int) -> Round:
    import aiohttp

    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    remaining = iter(range(n))

    async def keep_asking(session: aiohttp.ClientSession) -> None:
        for index in remaining:
            form = aiohttp.FormData()
            form.add_field("images", images[index % len(images)], filename="x.jpg")
            started = perf_counter()
            async with session.post(f"http://127.0.0.1:{PORT}/predict", data=form) as answer:
                await answer.read()
                statuses[answer.status] += 1
                if answer.status == 200:
                    latencies.append(perf_counter() - started)

    started = perf_counter()
    connector = aiohttp.TCPConnector(limit=plan.concurrent)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(keep_asking(session) for _ in range(plan.concurrent)))
    return Round(statuses, tuple(latencies), perf_counter() - started)


def _row(batch: int, found: list[Round]) -> dict[str, object]:
    latencies = np.concatenate([np.array(one.latencies) for one in found])
    total = sum((one.statuses for one in found), Counter[int]())
    return {
        "batches up to": batch,
        "images/s": median(one.per_second for one in found),
        "p50 ms": float(np.percentile(latencies, 50)) * 1000,
        "p99 ms": float(np.percentile(latencies, 99)) * 1000,
        "200": total[200],
        "429": total[429],
        "other": sum(total.values()) - total[200] - total[429],
    }


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
