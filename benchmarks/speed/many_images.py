"""Measure seconds and memory of each stage of a run with 100,000 images.

    python -m benchmarks.speed.many_images [--quick] [--images 100000] [--side 64] [--mapped]
    python -m benchmarks.speed.many_images --images 4000 --side 32 --classes 1000

The images are generated: each mixes a dozen scenes of pink noise, common to all of them, with its
own, tinted by its class. So they are about as similar as photographs are, and the audit compares as
many pairs. They are JPEG files in a temporary folder. `search.run` runs on them, with `tinynet`, 4
views, 2 trials of 2 epochs and 2 folds. Memory is the peak of all of its processes together, shared
pages counted once (PSS); CPU seconds, also of all processes, depend less on other work on the
machine than wall-clock seconds. The ratio is the slowest stage's fraction of the whole.

`--mapped` keeps the decoded images in a memory-mapped file, as when they exceed the object store.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from PIL import Image

import search.run
from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress, stop
from search.cluster.session import configure_ray

configure_ray()  # before anything imports Ray

import search.api.execution  # noqa: E402
import search.pipeline.flow  # noqa: E402
import search.pipeline.prepare  # noqa: E402
import search.reporting.page  # noqa: E402

_IMAGES = {"full": 100_000, "quick": 5_000, "smoke": 200}
_N_SCENES = 12
_MIN_IMAGES_PER_CLASS = 4
_BATCH = 1000
_SPACE = """
from optuna.distributions import FloatDistribution
from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(),
    params={{
        "backbone": "tinynet",
        "lr": FloatDistribution(1e-3, 1e-2, log=True),
        "freeze_depth": 5,
        "augment": 1.0,
        "batch_size": 256,
    }},
    image_size={side}, resize_size={side}, epochs=2, trials=2, folds=2, views=4,
)
"""
STEPS: dict[str, tuple[Any, str]] = {
    "files listed, weights found": (search.api.execution, "prepare_run"),
    "read, decoded, thumbnails": (search.pipeline.prepare, "decode_images"),
    "audit": (search.pipeline.prepare, "audit_images"),
    "split": (search.pipeline.prepare, "split"),
    "linear probe, with its clean view": (search.pipeline.flow, "probe_backbones"),
    "feature cache": (search.pipeline.flow, "build_feature_cache"),
    "2 trials": (search.pipeline.flow, "run_search"),
    "cross-validation, 2 or 4 folds": (search.pipeline.flow, "retrain_finalists"),
    "evaluation": (search.pipeline.flow, "evaluate"),
    "report": (search.reporting.page, "write_report"),
}
"""The functions that are timed, each with the module in which its caller finds it."""
_WHOLE = "the whole command"


@dataclass
class Stopwatch:
    """Start and end of each step, with samples of memory and CPU time of all processes.

    Attributes:
        spans: Start and end of each step, by its name.
        samples: Time, MB of all processes, MB of this one, CPU seconds so far.
    """

    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    samples: list[tuple[float, float, float, float]] = field(default_factory=list)
    _cpu_seconds: dict[int, float] = field(default_factory=dict)

    def timed(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a step so that its time is recorded."""

        def run(*arguments: Any, **options: Any) -> Any:
            began = time.monotonic()
            try:
                return step(*arguments, **options)
            finally:
                self.spans[name] = (began, time.monotonic())
                log_progress(f"{name}: {time.monotonic() - began:.1f} s")

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample memory and CPU time until the block ends."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1.0):
                self._sample()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        yield
        ended.set()
        thread.join()

    def row(self, name: str, began: float, ended: float, n: int) -> dict[str, Any]:
        """Return a table row for the time between two moments, with n images."""
        inside = [s for s in self.samples if began <= s[0] <= ended + 1.0] or [(0.0,) * 4]
        return {
            "stage": name,
            "seconds": ended - began,
            "CPU seconds": inside[-1][3] - inside[0][3],
            "ms/image": 1000 * (ended - began) / n,
            "memory MB": max(sample[1] for sample in inside),
            "driver MB": max(sample[2] for sample in inside),
        }

    def _sample(self) -> None:
        me = psutil.Process()
        total = own = 0.0
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.Error):
                pss = process.memory_full_info().pss / 2**20
                times = process.cpu_times()
                self._cpu_seconds[process.pid] = times.user + times.system
                total += pss
                own = pss if process.pid == me.pid else own
        taken = sum(self._cpu_seconds.values())
        self.samples.append((time.monotonic(), total, own, taken))


def main() -> None:
    """Run the benchmark."""
    arguments = parse()
    n, side = arguments.images or _IMAGES[arguments.mode], arguments.side
    report = Report("many_images", "Seconds and memory of each stage with many images.")
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="many-images-") as name, ExitStack() as patched:
        folder = Path(name)
        log_progress(f"generating {n:,} images of {side} × {side}")
        n_bytes = generate(folder / "images", n, side, arguments.classes)
        (folder / "space.py").write_text(_SPACE.format(side=side))
        for step, (where, function) in STEPS.items():
            timed = watch.timed(step, getattr(where, function))
            patched.enter_context(mock.patch.object(where, function, timed))
        if arguments.mapped:
            in_file = mock.patch.object(search.pipeline.prepare, "IMAGES_FRACTION", 0.0)
            patched.enter_context(in_file)
        began = time.monotonic()
        with watch.watching():
            code = search.run.main(
                [
                    *("--space", str(folder / "space.py"), "--data", str(folder / "images")),
                    *("--out", str(folder / "out"), "--name", "run", "--quiet"),
                ]
            )
        watch.spans[_WHOLE] = (began, time.monotonic())
        if code:
            stop(f"the search ended with {code}", code)
        mapped = (folder / "out" / "run" / "cache" / "images.npy").is_file()
        files = {name: folder / "out" / "run" / name for name in ("summary.json", "report.html")}
        sizes = {name: path.stat().st_size / 2**20 for name, path in files.items()}
    fill_report(report, watch, n)
    report.notes.append(", ".join(f"{name} has {size:.1f} MB" for name, size in sizes.items()))
    report.notes.append(
        f"{n:,} JPEG files of {side} × {side} in {arguments.classes:,} classes,"
        f" {n_bytes / 2**20:,.0f} MB; decoded"
        f" {n * side * side * 3 / 2**20:,.0f} MB, "
        + ("in a memory-mapped file" if mapped else "in the object store")
    )
    report.publish(arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, metavar="N", help="(default: 100,000)")
    parser.add_argument("--side", type=int, default=64, metavar="PIXELS", help="(default: 64)")
    parser.add_argument("--classes", type=int, default=20, metavar="K", help="(default: 20)")
    parser.add_argument("--mapped", action="store_true", help="map decoded images from a file")
    arguments = parser.parse_args()
    n_least = _MIN_IMAGES_PER_CLASS * arguments.classes
    n = arguments.images or _IMAGES[arguments.mode]
    if n < n_least:
        parser.error(f"--images must be at least {n_least}, four per class, but got {n}")
    return arguments


def generate(folder: Path, n: int, side: int, n_classes: int) -> int:
    """Write n images into a folder per class; return their total size in bytes."""
    rng = np.random.default_rng(0)
    scenes = pink(rng, _N_SCENES, side)
    tints = rng.uniform(-25, 25, (n_classes, 3))
    for label in range(n_classes):
        (folder / f"class-{label:04d}").mkdir(parents=True)

    def write(place: int, pixels: np.ndarray) -> int:
        path = folder / f"class-{place % n_classes:04d}" / f"{place:07d}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        return path.stat().st_size

    n_bytes = 0
    with ThreadPoolExecutor(2) as writers:
        for start in range(0, n, _BATCH):
            places = range(start, min(start + _BATCH, n))
            mixed = np.tensordot(rng.normal(size=(len(places), _N_SCENES)), scenes, 1)
            mixed = mixed / np.sqrt(_N_SCENES) + 0.5 * pink(rng, len(places), side)
            tint = tints[np.arange(start, places.stop) % n_classes]
            pixels = np.clip(128 + 45 * mixed + tint[:, None, None], 0, 255).astype(np.uint8)
            n_bytes += sum(writers.map(write, places, pixels))
    return n_bytes


def pink(rng: np.random.Generator, n: int, side: int) -> np.ndarray:
    """Return noise with a 1 / frequency spectrum, like photographs: [n, side, side, 3]."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    gray = np.fft.rfft2(rng.normal(size=(n, side, side))) / frequency
    fields = np.fft.irfft2(gray, s=(side, side)).astype(np.float32)
    fields /= fields.std((1, 2), keepdims=True)
    return np.asarray(fields[..., None] * rng.uniform(0.7, 1.3, (n, 1, 1, 3)).astype(np.float32))


def fill_report(report: Report, watch: Stopwatch, n: int) -> None:
    """Add the table and the ratio to the report."""
    names = [name for name in STEPS if name in watch.spans]
    rows = [watch.row(name, *watch.spans[name], n) for name in (*names, _WHOLE)]
    report.tables[f"{n:,} images"] = rows
    *steps, whole = rows
    slowest = max(steps, key=lambda row: float(row["seconds"]))
    fraction = slowest["seconds"] / whole["seconds"]
    report.ratios.append(Ratio(f"{slowest['stage']}, fraction of the whole", fraction))


if __name__ == "__main__":
    main()
