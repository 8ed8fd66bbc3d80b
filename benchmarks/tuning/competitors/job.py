"""What a competitor is given: images, weights, time, and where its model goes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One training to run, in a process of its own.

    Attributes:
        images: Folder that holds `train/` and `test/`, a folder per class in each. Competitors
            train on the first; only `search.run`, which evaluates its own model, reads the second.
        model: The file, or AutoGluon's folder, to write.
        weights: Folder of pretrained weights; None has none.
        backbones: The networks that may be used.
        seconds: Wall time from the start of the process to its end; None for no limit.
        seed: Seed of whatever is random.
        image_size: Side in pixels that networks see.
    """

    images: str
    model: str
    weights: str | None
    backbones: tuple[str, ...]
    seconds: float | None
    seed: int
    image_size: int

    @property
    def train(self) -> Path:
        """The folder of the training images."""
        return Path(self.images) / "train"

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def seconds_left(self) -> float:
        """Return the time left, the start of Python and all imports counted; infinite for none."""
        return float("inf") if self.seconds is None else self.seconds - process_age()


def read_job(path: str) -> Job:
    """Read a job from JSON."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return Job(**{**content, "backbones": tuple(content["backbones"])})


def process_age() -> float:
    """Return the seconds since this process was started."""
    import psutil  # AutoGluon has it, too

    return time.time() - float(psutil.Process().create_time())
