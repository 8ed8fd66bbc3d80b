"""What each stage of a search takes with 100,000 pictures, in seconds and in memory.

    python benchmarks/many_pictures.py [--quick] [--pictures 100000] [--side 64] [--mapped]

The pictures are generated: each mixes a dozen scenes of pink noise, which all of them share, and
some of its own, tinted by its class. So they are about as like one another as photographs are, and
the audit has as many pairs to look at. They are JPEG files in a folder for temporary files, which
goes away in the end. On them runs the very command, `search.run`, with `tinynet`, 4 views, 2 trials
of 2 epochs and 2 folds. Memory is what all of its processes take together, shared pages counted
once (PSS), at its most; the ratio is the slowest stage's share of the whole.

`--mapped` runs as where the pictures exceed the object store: the packed table is a file.
"""

from __future__ import annotations

import argparse
import sys
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

sys.path.insert(0, str(Path(__file__).parents[1]))

import search.run  # isort: skip  # sets Ray's environment first
import search.flow
import search.material
from benchmarks.reporting import Ratio, Report, command_line, say, stop

_PICTURES = {"full": 100_000, "quick": 5_000, "smoke": 200}
_N_CLASSES, _N_SCENES = 20, 12
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
_STEPS: dict[str, tuple[Any, str]] = {
    "names listed, weights read": (search.run, "check"),
    "read, decoded, sketched, packed": (search.material, "pack"),
    "audit": (search.material, "examine"),
    "split": (search.material, "_split"),
    "probe, with its clean view": (search.flow, "probe_backbones"),
    "banks": (search.flow, "build_banks"),
    "2 trials": (search.flow, "search"),
    "2 or 4 folds": (search.flow, "retrain_finalists"),
    "evaluation": (search.flow, "evaluate"),
    "report": (search.flow, "report"),
}
"""What is timed, and where it is looked up."""


@dataclass
class Stopwatch:
    """When each step began and ended, and what memory was taken meanwhile, in MB by moment."""

    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    memory: list[tuple[float, float, float]] = field(default_factory=list)

    def timed(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step, which notes its time."""

        def run(*arguments: Any, **options: Any) -> Any:
            began = time.monotonic()
            try:
                return step(*arguments, **options)
            finally:
                self.spans[name] = (began, time.monotonic())
                say(f"{name}: {time.monotonic() - began:.1f} s")

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample the memory until the block ends."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1.0):
                self.memory.append((time.monotonic(), *_memory_mb()))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        yield
        ended.set()
        thread.join()

    def most(self, name: str) -> tuple[float, float]:
        """Return the most that all processes and the driver took during a step."""
        began, ended = self.spans[name]
        inside = [m for m in self.memory if began <= m[0] <= ended + 1.0] or [(0.0, 0.0, 0.0)]
        return max(m[1] for m in inside), max(m[2] for m in inside)


def main() -> None:
    """Generate the pictures, run the search on them, and report."""
    arguments = parse()
    n, side = arguments.pictures or _PICTURES[arguments.mode], arguments.side
    report = Report("many_pictures", "What each stage takes with many pictures.")
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="many-pictures-") as name, ExitStack() as patched:
        folder = Path(name)
        say(f"{n:,} pictures of {side} × {side} are generated")
        n_bytes = generate(folder / "pictures", n, side)
        (folder / "space.py").write_text(_SPACE.format(side=side))
        for step, (where, function) in _STEPS.items():
            timed = watch.timed(step, getattr(where, function))
            patched.enter_context(mock.patch.object(where, function, timed))
        if arguments.mapped:
            patched.enter_context(mock.patch.object(search.material, "PICTURES_SHARE", 0.0))
        began = time.monotonic()
        with watch.watching():
            code = search.run.main(
                [
                    *("--space", str(folder / "space.py"), "--data", str(folder / "pictures")),
                    *("--out", str(folder / "out"), "--name", "run", "--quiet"),
                ]
            )
        whole = time.monotonic() - began
        if code:
            stop(f"the search ended with {code}", code)
        mapped = (folder / "out" / "run" / "cache" / "pictures.npy").is_file()
    tell(report, watch, n, whole)
    report.notes.append(
        f"{n:,} JPEG files of {side} × {side}, {n_bytes / 2**20:,.0f} MB; packed"
        f" {n * side * side * 3 / 2**20:,.0f} MB, "
        + ("in a file that is mapped" if mapped else "in the object store")
    )
    report.publish(arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--pictures", type=int, metavar="N", help="how many (default: 100,000)")
    parser.add_argument("--side", type=int, default=64, metavar="PIXELS", help="(default: 64)")
    parser.add_argument("--mapped", action="store_true", help="keep the packed table in a file")
    arguments = parser.parse_args()
    if arguments.pictures is not None and arguments.pictures < 10 * _N_CLASSES:
        parser.error(f"--pictures must be at least {10 * _N_CLASSES}, but got {arguments.pictures}")
    return arguments


def generate(folder: Path, n: int, side: int) -> int:
    """Write n pictures into a folder per class; return their bytes."""
    rng = np.random.default_rng(0)
    scenes = pink(rng, _N_SCENES, side)
    tints = rng.uniform(-25, 25, (_N_CLASSES, 3))
    for label in range(_N_CLASSES):
        (folder / f"class-{label:02d}").mkdir(parents=True)

    def write(place: int, pixels: np.ndarray) -> int:
        path = folder / f"class-{place % _N_CLASSES:02d}" / f"{place:07d}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        return path.stat().st_size

    n_bytes = 0
    with ThreadPoolExecutor(2) as writers:
        for start in range(0, n, _BATCH):
            places = range(start, min(start + _BATCH, n))
            mixed = np.tensordot(rng.normal(size=(len(places), _N_SCENES)), scenes, 1)
            mixed = mixed / np.sqrt(_N_SCENES) + 0.5 * pink(rng, len(places), side)
            tint = tints[np.arange(start, places.stop) % _N_CLASSES]
            pixels = np.clip(128 + 45 * mixed + tint[:, None, None], 0, 255).astype(np.uint8)
            n_bytes += sum(writers.map(write, places, pixels))
    return n_bytes


def pink(rng: np.random.Generator, n: int, side: int) -> np.ndarray:
    """Return noise whose waves fall off as 1 / frequency, as photographs do: [n, side, side, 3]."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    grey = np.fft.rfft2(rng.normal(size=(n, side, side))) / frequency
    fields = np.fft.irfft2(grey, s=(side, side)).astype(np.float32)
    fields /= fields.std((1, 2), keepdims=True)
    return np.asarray(fields[..., None] * rng.uniform(0.7, 1.3, (n, 1, 1, 3)).astype(np.float32))


def tell(report: Report, watch: Stopwatch, n: int, whole: float) -> None:
    """Fill the report."""
    rows = []
    for name in _STEPS:
        if name not in watch.spans:
            continue
        seconds = watch.spans[name][1] - watch.spans[name][0]
        together, driver = watch.most(name)
        rows.append(
            {
                "stage": name,
                "seconds": seconds,
                "ms/picture": 1000 * seconds / n,
                "memory MB": together,
                "of the driver MB": driver,
            }
        )
    rows.append(
        {
            "stage": "the whole command",
            "seconds": whole,
            "ms/picture": 1000 * whole / n,
            "memory MB": max((m[1] for m in watch.memory), default=0.0),
            "of the driver MB": max((m[2] for m in watch.memory), default=0.0),
        }
    )
    report.tables[f"{n:,} pictures"] = rows
    slowest = max(rows[:-1], key=lambda row: float(str(row["seconds"])))
    share = float(str(slowest["seconds"])) / whole
    report.ratios.append(Ratio(f"{slowest['stage']}, share of the whole", share))


def _memory_mb() -> tuple[float, float]:
    """Return what this process and its children take together, and what this one does."""
    me = psutil.Process()
    total = own = 0.0
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            pss = process.memory_full_info().pss / 2**20
            total += pss
            own = pss if process.pid == me.pid else own
    return total, own


if __name__ == "__main__":
    main()
