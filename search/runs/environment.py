"""`environment.json` as dataclasses: what a run began with, validated when it is read back."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from search.runs.storage import SharedFiles
from search.runs.validation import FolderError, read_json, validate
from spaces.rules import Metric, Value
from spaces.sources import Source

RUN_FORMAT = 3
"""Version of the run folder's files; a folder of another version is not read."""

_PACKAGES = ("ray", "torch", "torchvision", "optuna", "scikit-learn", "numpy", "pandas", "pillow")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command line. None leaves an option to the space, or to the run that is resumed.

    Attributes:
        backbones: `("auto",)` is the portfolio.
        probe: Whether backbones are probed before the search.
        patience_trials: Trials in a row without a better one after which the search ends.
        classes: The classes to use; None uses those of the space.
        constants: Hyperparameters that --set fixes, by name.
        warm_start: The folders of earlier runs whose best configurations are tried, too.
        out: The folder of all runs.
        resume: The folder of the run to resume.
        labels: The table of the images and their labels.
        image_column: Its column of images; likewise `label_column` and `group_column`.
        group_by: Regular expression that finds the group in an image's name.
        max_megapixels: Million pixels of an image, at most; None is Pillow's own limit.
        json: Whether the summary alone is printed.
        log: The trackers that the run is logged to, such as "mlflow=http://host:5000".
        study: URL of a database that gets a copy of the study.
        names_space: Whether --space was given; without it, a resumed run uses its own.
        names_run: Whether --name was given; without it, one that is taken gets a number.
    """

    space: Path
    data: Path | None
    external: Path | None
    exclude: Path | None
    weights: Path | None
    backbones: tuple[str, ...] | None
    limit: int | None
    trials: int | None
    epochs: int | None
    folds: int | None
    finalists: int | None
    time_budget_seconds: float | None
    max_concurrent: int | None
    seed: int
    sampler: str
    scheduler: str
    probe: bool
    out: Path
    name: str
    resume: Path | None
    address: str | None
    storage: str | None
    quiet: bool
    verbose: bool
    names_space: bool = False
    names_run: bool = True
    classes: tuple[str, ...] | None = None
    image_size: int | None = None
    constants: Mapping[str, Value] | None = None
    labels: Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    group_by: str | None = None
    max_latency_ms: float | None = None
    max_megapixels: int | None = None
    warm_start: tuple[str, ...] | None = None
    metric: Metric | None = None
    patience_trials: int | None = None
    json: bool = False
    log: tuple[str, ...] | None = None
    study: str | None = None

    @property
    def shared(self) -> SharedFiles | None:
        """The run's folder in `--storage`; None without that option."""
        return None if self.storage is None else SharedFiles(self.storage, self.folder.name)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.resume or self.out / self.name

    @property
    def is_quiet(self) -> bool:
        """Whether the standard output has the result of a finished run alone."""
        return self.quiet or self.json

    @property
    def has_open_end(self) -> bool:
        """Whether trials go on as long as there is time: a time budget, but no number of trials."""
        return self.time_budget_seconds is not None and self.trials is None

    @property
    def n_finalists(self) -> int:
        """Number of the best trials to retrain by k-fold."""
        return self.finalists or 1

    def with_labels(self, source: Source) -> Source:
        """Return a space's source with the labels and the groups that the options name.

        Raises:
            SourceError: they do not fit together.
        """
        return source.with_labels(
            self.labels, self.image_column, self.label_column, self.group_column, self.group_by
        )

    def with_absolute_paths(self) -> Request:
        """Return the request as a run saves it, for any working directory."""
        paths: dict[str, Any] = {
            name: value.absolute() for name, value in vars(self).items() if isinstance(value, Path)
        }
        if self.labels is not None and not self.labels.is_file():
            del paths["labels"]  # it lies in the archive that --data names
        return replace(self, **paths)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that a run began on.

    Attributes:
        system: Operating system and kernel.
        processor: Its kind, or its architecture where the system does not tell.
        cores: Logical processors; None where the system does not tell.
    """

    system: str
    processor: str
    cores: int | None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The content of `environment.json`.

    Attributes:
        format: `RUN_FORMAT` of the version that wrote it.
        command: The words of the command.
        request: The options, with absolute paths; those of the last session.
        space_digest: Of `space.py`: see `search.runs.run_folder.digest`.
        python: Version of Python.
        packages: By name, the versions of the packages that results depend on.
        machine: The driver's.
        run_id: Random; it is in all files that another run must not take for its own.
        program: Name, version and commit of this program.
    """

    format: int
    command: list[str]
    request: Request
    space_digest: str
    python: str
    packages: Mapping[str, str]
    machine: Machine
    run_id: str = ""
    program: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the content as it stands in the file."""
        content = asdict(self)
        content["request"] = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in content["request"].items()
        }
        return content


def describe_environment(request: Request, space_digest: str, program: str = "") -> Environment:
    """Return this process's environment, for a run that begins."""
    return Environment(
        format=RUN_FORMAT,
        command=[Path(sys.executable).name, "-m", "search.run", *sys.argv[1:]],
        request=request.with_absolute_paths(),
        space_digest=space_digest,
        python=platform.python_version(),
        packages={name: metadata.version(name) for name in _PACKAGES},
        machine=Machine(
            system=platform.platform(),
            processor=platform.processor() or platform.machine(),
            cores=os.cpu_count(),
        ),
        run_id=uuid4().hex,
        program=program,
    )


def read_environment(path: Path) -> Environment:
    """Read `environment.json`.

    Raises:
        FolderError: it is damaged, or of another `RUN_FORMAT`.
    """
    way_out = "put a copy of it back, or begin a new run"
    content = read_json(path, way_out)
    has_request = isinstance(content, dict) and "request" in content
    if has_request and (found := content.get("format", 1)) != RUN_FORMAT:
        raise FolderError(
            f"{path.parent} is a run of format {found}, and this version reads format {RUN_FORMAT}:"
            " use the version that wrote it, or begin a new run"
        )
    return validate(content, Environment, path, way_out)
