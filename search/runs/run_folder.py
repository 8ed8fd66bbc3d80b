"""The run folder: `results/<run>/`, where every stage leaves what it made."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

from search.runs.storage import LocalFiles
from trainables.atomic_write import write_atomically

BEST_WEIGHTS = "best.pt"
CHECKPOINT = "checkpoint.pt"
"""Files of a trial, in `trials/<number>/`."""

STUDY = "study.db"
"""The study's database."""

_SUMMARY = "summary.json"
_ENVIRONMENT = "environment.json"
_PACKAGES = ("ray", "torch", "torchvision", "optuna", "scikit-learn", "numpy", "pandas", "pillow")


class FolderError(ValueError):
    """A run folder cannot be made or is not one."""


class RunFolder:
    """One run's folder. Files are replaced whole, so that a crash leaves the old ones readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._summary: dict[str, Any] = {}

    @staticmethod
    def check_free(out: Path, name: str) -> None:
        """Check that a run of this name can be made, without making it.

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
                f"there is a run called {name!r} in {out}: give another --name, or carry it on"
                f" with --resume {out / name}"
            )
        nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise FolderError(f"--out must be a folder, but {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise FolderError(f"--out {out} cannot be written to; give another --out")

    @classmethod
    def create(cls, out: Path, name: str) -> RunFolder:
        """Make the folder of a new run.

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
            FolderError: it is none, or what says how the run began is damaged.
        """
        if not (path / _ENVIRONMENT).is_file() or not (path / "space.py").is_file():
            raise FolderError(f"{path} is no run: a run's folder holds {_ENVIRONMENT} and space.py")
        folder = cls(path)
        try:
            _ = folder.environment["request"]
        except (ValueError, KeyError, TypeError):
            raise FolderError(
                f"{path / _ENVIRONMENT} is damaged, and says no longer how the run began: put a"
                " copy of it back, or begin a new run"
            ) from None
        try:
            folder._summary = json.loads((path / _SUMMARY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except ValueError:  # It is made again, stage by stage.
            folder._summary = {}
        return folder

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the stages have noted so far."""
        return self._summary

    @property
    def environment(self) -> dict[str, Any]:
        """The command, the versions and the machine that the run began with."""
        content: dict[str, Any] = json.loads((self.path / _ENVIRONMENT).read_text(encoding="utf-8"))
        return content

    def note(self, section: str, values: Any) -> None:
        """Put a section into `summary.json`."""
        self._summary[section] = values
        self.write_json(_SUMMARY, self._summary)

    def forget(self, *sections: str) -> None:
        """Take sections out of `summary.json`: what they say is about to be out of date."""
        if any(section in self._summary for section in sections):
            self._summary = {k: v for k, v in self._summary.items() if k not in sections}
            self.write_json(_SUMMARY, self._summary)

    def add_stage_seconds(self, stage: str, seconds: float) -> None:
        """Put a stage's seconds into `summary.json`; a stage carried on adds up."""
        stages = dict(self._summary.get("stages", {}))
        stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)
        self.note("stages", stages)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run; what is not a finite number becomes null."""
        self.write_text(name, _as_json(content))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run."""
        with write_atomically(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    @property
    def has_trials(self) -> bool:
        """Whether the search has begun, so that there is something to carry on."""
        return (self.path / STUDY).is_file()

    def discard(self) -> None:
        """Remove the folder of a run that ended before it made anything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def remember(self, request: Mapping[str, Any]) -> None:
        """Keep what a later command asked for anew, so that the next one need not say it again."""
        self._write_environment({**self.environment, "request": dict(request)})

    def _write_environment(self, content: Mapping[str, Any]) -> None:
        """Write what no stage could make again, so that a power cut leaves it whole."""
        LocalFiles(self.path).write(_ENVIRONMENT, _as_json(content).encode())

    def write_origin(self, space_file: Path, request: Mapping[str, Any]) -> None:
        """Keep what the run began with: the space, the request, the versions and the machine."""
        shutil.copyfile(space_file, self.path / "space.py")
        self._write_environment(
            {
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
    """Return what tells a file's content from any other."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _as_json(content: Any) -> str:
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def _finite(content: Any) -> Any:
    """Replace NaN and infinities, which JSON has no word for, with None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
