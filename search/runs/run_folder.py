"""The run folder `results/<run>/`: the files that describe a run, and its summary.

The module is long because all that knows the names of a run's files is in one place.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from search.runs.environment import Environment, Request, describe_environment, read_environment
from search.runs.summary import RunSummary, read_summary
from search.runs.validation import FolderError
from trainables.atomic_write import write_atomically, write_patiently

BEST_WEIGHTS = "best.pt"
CHECKPOINT = "checkpoint.pt"
"""Files of a trial, in `trials/<number>/`."""

STUDY = "study.journal"
"""The Optuna study, as `optuna.storages.journal` writes it."""

ENVIRONMENT = "environment.json"
MODEL = "model.pt"
RUN_LOG = "run.log"
LOCK = "run.lock"
"""Names the command that works on the run: see `search.api.run_lock`."""

_SUMMARY = "summary.json"

_FIRST_FILES = frozenset(
    (
        *("space.py", ENVIRONMENT, RUN_LOG, LOCK, _SUMMARY, "excluded.csv", "warm_start.json"),
        *("split.csv", "audit.csv", "cache", "gallery", "tensorboard"),
        *("mlflow.json", "wandb.json", "wandb"),
    )
)
"""What a run writes before its first result, beside the modules of the user's own networks."""

_FILES = (
    *(RUN_LOG, LOCK, STUDY, MODEL, _SUMMARY, "report.html", "evaluation.npz", "warm_start.json"),
    *("split.csv", "audit.csv", "excluded.csv", "trials.csv", "ablation.csv"),
    *("test_predictions.csv", "external_predictions.csv"),
)
_FOLDERS = ("trials", "folds", "figures", "gallery", "tensorboard", "export")
"""What a run and the commands read or write in its folder."""

_log = logging.getLogger(__name__)


class RunFolder:
    """One run's folder. Files are written atomically: a crash leaves the old ones readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._summary = RunSummary()
        self._environment: Environment | None = None
        self._has_saved_request = False

    @staticmethod
    def check_name(name: str) -> None:
        """Check that a folder can have the name of a run.

        Raises:
            FolderError: it cannot.
        """
        if not re.fullmatch(r"[\w.\-]{1,60}", name) or name in (".", ".."):
            raise FolderError(
                "a run's name is made of at most 60 letters, digits, '.', '_' and '-',"
                f" but got {name!r}"
            )

    @staticmethod
    def check_free(out: Path, name: str) -> None:
        """Check that a run of this name can be created, without creating it.

        Raises:
            FolderError: the name is taken or unusable, or `out` cannot be written to.
        """
        RunFolder.check_name(name)
        if (out / name).exists():
            raise FolderError(
                f"there is a run called {name!r} in {out}: give another --name, or resume it with"
                f" --resume {shlex.quote(str(out / name))}"
            )
        nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise FolderError(f"--out must be a folder, but {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise FolderError(f"--out {out} cannot be written to; give another --out")

    @classmethod
    def create(cls, out: Path, name: str, *, renames: bool = False) -> RunFolder:
        """Create the folder of a new run.

        Args:
            out: The folder of all runs.
            name: The run's.
            renames: Whether a taken name is followed by a number: that of a run which began in the
                same second, as nobody chose it.

        Raises:
            FolderError: see `check_free`.
        """
        names = (name, *(f"{name}-{number}" for number in range(2, 1000 if renames else 2)))
        for one in names:
            if renames and (out / one).exists():
                continue
            cls.check_free(out, one)
            try:
                (out / one).mkdir(parents=True)
            except FileExistsError:  # since the check
                continue
            except OSError as error:
                raise FolderError(
                    f"--out {out} cannot be written to: {error.strerror}; give another --out"
                ) from None
            return cls(out / one)
        raise FolderError(f"there is a run called {name!r} in {out}: give another --name")

    @property
    def ended_without_result(self) -> bool:
        """Whether a run began here and has no result, unless a command still works on it.

        False for a folder with any other file: it is of no run, or somebody's own.
        """
        if self.path.is_symlink() or not self.path.is_dir():
            return False
        try:
            names = [path.name for path in self.path.iterdir()]
            if ENVIRONMENT in names:
                read_environment(self.path / ENVIRONMENT)
            return is_without_result(names)
        except (OSError, FolderError):  # it is another user's, or of another program
            return False

    def clear(self) -> None:
        """Remove all files but the lock, for a new run of the same name."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)  # such as a heartbeat that has just been written

    @classmethod
    def open(cls, path: Path, *, resumes: bool = False) -> RunFolder:
        """Open the folder of an earlier run.

        Args:
            path: The folder.
            resumes: Whether the run is resumed: see `read_summary`.

        Raises:
            FolderError: it is no run, one of another format, or a damaged one.
        """
        if not (path / ENVIRONMENT).is_file() or not (path / "space.py").is_file():
            raise FolderError(f"{path} is no run: a run's folder holds {ENVIRONMENT} and space.py")
        _check_kinds(path)
        folder = cls(path)
        folder._environment = read_environment(path / ENVIRONMENT)
        folder._summary = read_summary(path / _SUMMARY, resumes=resumes)
        return folder

    @property
    def summary(self) -> RunSummary:
        """The results of the stages so far."""
        return self._summary

    @property
    def environment(self) -> Environment:
        """The command, the request, the versions and the machine that the run began with.

        Raises:
            FolderError: it is damaged.
        """
        if self._environment is None:
            self._environment = read_environment(self.path / ENVIRONMENT)
        return self._environment

    def add_stage_seconds(self, stage: str, seconds: float) -> None:
        """Add to a stage's seconds in the summary; those of several sessions add up."""
        stages = dict(self._summary.stages or {})
        stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)
        self.write_summary(replace(self._summary, stages=stages))

    def write_summary(self, summary: RunSummary) -> None:
        """Write a summary over the earlier one, such as `replace(folder.summary, best=…)`.

        Waits while another program holds the file: see `trainables.atomic_write`.
        """
        self._summary = summary
        path = self.path / _SUMMARY
        write_patiently(lambda: self.write_json(_SUMMARY, summary.as_dict()), path, _log.warning)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run; NaN and infinities become null."""
        self.write_text(name, _as_json(content) + "\n")

    def summary_json(self) -> str:
        """Return what `summary.json` holds, for a terminal: in ASCII."""
        return _as_json(self._summary.as_dict(), is_ascii=True)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run; what UTF-8 cannot hold becomes a question mark."""
        with write_atomically(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8", errors="replace")

    @property
    def has_trials(self) -> bool:
        """Whether the search has begun, so that there is something to resume."""
        return (self.path / STUDY).is_file()

    @property
    def has_result(self) -> bool:
        """Whether there is a trial or a model; a run without one leaves nothing behind."""
        return self.has_trials or (self.path / MODEL).is_file()

    def check_study(self) -> None:
        """Check that the study is there if there have been trials.

        Raises:
            FolderError: it is not: a new one would give their numbers, and files, to other trials.
        """
        folders = (path for path in (self.path / "trials").glob("*") if path.name.isdecimal())
        n_trials = len(list(folders)) or (self.summary.search.trials if self.summary.search else 0)
        path = self.path / STUDY
        if n_trials and not (path.is_file() and b"\n" in path.read_bytes()):
            raise FolderError(
                f"{path} is {'empty' if path.is_file() else 'missing'}, but {n_trials} trials have"
                " begun: put a copy of it back, or begin a new run"
            )

    def delete(self) -> None:
        """Remove the folder of a run that ended before it made anything."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def has_saved_request(self) -> bool:
        """Whether this session's options are saved: a resumed run that is refused saves none."""
        return self._has_saved_request

    def save_request(self, request: Request) -> None:
        """Overwrite the saved request with a resumed run's options."""
        self._has_saved_request = True
        self.save_environment(replace(self.environment, request=request))

    def write_origin(self, request: Request, program: str = "") -> None:
        """Write what the run begins with: the space, the request, the versions, the machine.

        Args:
            request: The options.
            program: Name, version and commit of this program.
        """
        space = self.path / "space.py"
        shutil.copyfile(request.space, space)
        self.save_environment(describe_environment(request, digest(space), program))

    def save_environment(self, environment: Environment) -> None:
        """Write `environment.json` over the earlier one."""
        self._environment = environment
        self.write_json(ENVIRONMENT, environment.as_dict())


def is_without_result(names: Collection[str]) -> bool:
    """Return whether files are those of a run before its first result, by their names.

    Args:
        names: Of the files and folders at the top of the run's folder.
    """
    is_begun = ENVIRONMENT in names
    known = _FIRST_FILES if is_begun else {LOCK, "space.py"}  # in the order of writing
    suffixes = (".partial", ".py") if is_begun else (".partial",)
    are_known = all(name in known or name.endswith(suffixes) for name in names)
    return are_known and (is_begun or LOCK in names or not names)


def _check_kinds(path: Path) -> None:
    """Check that a run's files are files, and its folders folders; any may be missing.

    Raises:
        FolderError: one is something else, such as a pipe, which would block who reads it.
    """
    for names, is_right, kind in (
        (_FILES, Path.is_file, "a regular file"),
        (_FOLDERS, Path.is_dir, "a folder"),
    ):
        for one in (path / name for name in names):
            if os.path.lexists(one) and not is_right(one):
                raise FolderError(f"{one} is damaged: it must be {kind}; remove it")


def digest(path: Path) -> str:
    """Return a digest of a file's content."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _as_json(content: Any, is_ascii: bool = False, margin: str = "\n") -> str:
    """Return JSON with a line for each value, but with lists of numbers each on one line.

    So a confusion matrix of 1,000 classes has 1,000 lines. NaN and infinities, which JSON does not
    have, become null.
    """
    within = f"{margin}  "
    if isinstance(content, Mapping) and content:
        values = [
            f"{json.dumps(str(key), ensure_ascii=is_ascii)}: {_as_json(value, is_ascii, within)}"
            for key, value in content.items()
        ]
        return f"{{{within}{f',{within}'.join(values)}{margin}}}"
    if isinstance(content, list | tuple) and content:
        if all(isinstance(value, int | float) for value in content):
            return json.dumps([value if math.isfinite(value) else None for value in content])
        values = [_as_json(value, is_ascii, within) for value in content]
        return f"[{within}{f',{within}'.join(values)}{margin}]"
    if isinstance(content, float) and not math.isfinite(content):
        return "null"
    return json.dumps(content, ensure_ascii=is_ascii)
