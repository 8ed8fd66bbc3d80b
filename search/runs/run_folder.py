"""The run folder `results/<run>/`: the files that describe a run, and its summary."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

from search.runs.summary import RunSummary, SummaryError, read_summary
from trainables.atomic_write import write_atomically

RUN_FORMAT = 2
"""Version of the run folder's files; a folder of another version is not read."""

BEST_WEIGHTS = "best.pt"
CHECKPOINT = "checkpoint.pt"
"""Files of a trial, in `trials/<number>/`."""

STUDY = "study.journal"
"""The Optuna study, as `optuna.storages.journal` writes it."""

MODEL = "model.pt"
RUN_LOG = "run.log"

_SUMMARY = "summary.json"
_ENVIRONMENT = "environment.json"
_PACKAGES = ("ray", "torch", "torchvision", "optuna", "scikit-learn", "numpy", "pandas", "pillow")


class FolderError(ValueError):
    """A run folder cannot be created, or cannot be read."""


class RunFolder:
    """One run's folder. Files are written atomically: a crash leaves the old ones readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._summary = RunSummary()

    @staticmethod
    def check_free(out: Path, name: str) -> None:
        """Check that a run of this name can be created, without creating it.

        Raises:
            FolderError: the name is taken or unusable, or `out` cannot be written to.
        """
        if not re.fullmatch(r"[\w.\-]{1,60}", name) or name in (".", ".."):
            raise FolderError(
                "a run's name is made of at most 60 letters, digits, '.', '_' and '-',"
                f" but got {name!r}"
            )
        if (out / name).exists():
            raise FolderError(
                f"there is a run called {name!r} in {out}: give another --name, or resume it with"
                f" --resume {out / name}"
            )
        nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise FolderError(f"--out must be a folder, but {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise FolderError(f"--out {out} cannot be written to; give another --out")

    @classmethod
    def create(cls, out: Path, name: str) -> RunFolder:
        """Create the folder of a new run.

        Raises:
            FolderError: see `check_free`.
        """
        cls.check_free(out, name)
        path = out / name
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise FolderError(
                f"--out {out} cannot be written to: {error.strerror}; give another --out"
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            FolderError: it is no run, one of another `RUN_FORMAT`, or a damaged one.
        """
        if not (path / _ENVIRONMENT).is_file() or not (path / "space.py").is_file():
            raise FolderError(f"{path} is no run: a run's folder holds {_ENVIRONMENT} and space.py")
        folder = cls(path)
        try:
            environment = folder.environment
            _ = environment["request"]
        except (ValueError, KeyError, TypeError):
            raise FolderError(
                f"{path / _ENVIRONMENT} is damaged, and no longer holds the run's request: put a"
                " copy of it back, or begin a new run"
            ) from None
        if (found := environment.get("format", 1)) != RUN_FORMAT:
            raise FolderError(
                f"{path} is a run of format {found}, and this version reads format {RUN_FORMAT}:"
                " use the version that wrote it, or begin a new run"
            )
        try:
            folder._summary = read_summary(path / _SUMMARY)
        except SummaryError as error:
            raise FolderError(
                f"{error}; put a copy of it back, or remove it and resume the run"
            ) from None
        return folder

    @property
    def summary(self) -> RunSummary:
        """The results of the stages so far."""
        return self._summary

    @property
    def environment(self) -> dict[str, Any]:
        """The command, the request, the versions and the machine that the run began with."""
        content: dict[str, Any] = json.loads((self.path / _ENVIRONMENT).read_text(encoding="utf-8"))
        return content

    def set_section(self, name: str, value: Any) -> None:
        """Set a section of the summary, one of `RunSummary`'s attributes, and write it."""
        self._write_summary(replace(self._summary, **{name: value}))

    def clear_sections(self, *names: str) -> None:
        """Remove sections from the summary that are about to be out of date, and write it."""
        self._write_summary(replace(self._summary, **dict.fromkeys(names)))

    def add_stage_seconds(self, stage: str, seconds: float) -> None:
        """Add to a stage's seconds in the summary; those of several sessions add up."""
        stages = dict(self._summary.stages or {})
        stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)
        self.set_section("stages", stages)

    def _write_summary(self, summary: RunSummary) -> None:
        self._summary = summary
        self.write_json(_SUMMARY, summary.as_dict())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run; NaN and infinities become null."""
        self.write_text(name, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run."""
        with write_atomically(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    @property
    def has_trials(self) -> bool:
        """Whether the search has begun, so that there is something to resume."""
        return (self.path / STUDY).is_file()

    def delete(self) -> None:
        """Remove the folder of a run that ended before it made anything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def save_request(self, request: Mapping[str, Any]) -> None:
        """Overwrite the saved request with a resumed run's options."""
        self.write_json(_ENVIRONMENT, {**self.environment, "request": dict(request)})

    def write_origin(self, space_file: Path, request: Mapping[str, Any]) -> None:
        """Write what the run begins with: the space, the request, the versions, the machine."""
        shutil.copyfile(space_file, self.path / "space.py")
        self.write_json(
            _ENVIRONMENT,
            {
                "format": RUN_FORMAT,
                "command": [Path(sys.executable).name, "-m", "search.run", *sys.argv[1:]],
                "request": dict(request),
                "space_digest": digest(self.path / "space.py"),
                "python": platform.python_version(),
                "packages": {name: metadata.version(name) for name in _PACKAGES},
                "machine": {
                    "system": platform.platform(),
                    "processor": platform.processor() or platform.machine(),
                    "cores": os.cpu_count(),
                },
            },
        )


def digest(path: Path) -> str:
    """Return a digest of a file's content."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _finite(content: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, with None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
