"""The competitors: the command that trains each, and how its model predicts the test images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.harness.reporting import ROOT
from benchmarks.tuning.competitors import fixed_finetuning
from benchmarks.tuning.competitors.job import Job
from search.deployment.predictor import load
from search.runs.run_folder import MODEL
from spaces.base import find_space, load_space

SPACE = "photos"
"""The space of a run with `--data` alone."""

RUN = "run"
"""Name of the run folder beside the job."""

_PACKAGE = "benchmarks.tuning.competitors"
_RANDOM_SPACE = f"""from dataclasses import replace

from spaces.base import find_space, load_space

SPACE = replace(load_space(find_space({SPACE!r})), patience=None)
"""

Probabilities = tuple[np.ndarray, Sequence[str]]
"""float64 [images, classes], and the classes in the order of the columns."""


@dataclass(frozen=True)
class Competitor:
    """One way to a model.

    Attributes:
        command: Returns the words that follow the Python to run, from the job and its folder.
        predict: Predicts images with the model.
        takes_time: Whether it takes the time that it is given; the others end by themselves, and
            are run once for all times.
        model: Where its model is, from the job's folder.
    """

    command: Callable[[Job, Path], list[str]]
    predict: Callable[[Path, Sequence[Path], str], Probabilities]
    takes_time: bool = True
    model: Path = Path(RUN) / MODEL


def search_words(job: Job, folder: Path, *extra: str, space: str | None = None) -> list[str]:
    """Return the options of `search.run` for a job."""
    words = ["--data", job.images, "--out", str(folder), "--name", RUN, "--quiet"]
    words += ["--seed", str(job.seed), "--image-size", str(job.image_size)]
    words += ["--space", space] if space is not None else []
    words += ["--weights", job.weights] if job.weights is not None else []
    words += ["--time-budget", f"{job.seconds:g}s"] if job.seconds is not None else []
    if "--backbones" not in extra:
        words += ["--backbones", ",".join(job.backbones)]
    return [*words, *extra]


def _ours(job: Job, folder: Path) -> list[str]:
    return ["-m", "search.run", *search_words(job, folder)]


def _random(job: Job, folder: Path) -> list[str]:
    """Draw at random and train to full length; the number of trials never ends it."""
    space = folder / "random_space.py"
    space.write_text(_RANDOM_SPACE, encoding="utf-8")
    extra = ("--sampler", "random", "--scheduler", "none", "--trials", "100000")
    return ["-m", "search.run", *search_words(job, folder, *extra, space=str(space))]


def _first_trial(job: Job, folder: Path) -> list[str]:
    first = load_space(find_space(SPACE)).first_trials[0]["backbone"]
    backbone = first if first in job.backbones else job.backbones[0]
    extra = ("--trials", "1", "--scheduler", "none", "--backbones", str(backbone))
    return ["-m", f"{_PACKAGE}.first_trial", *search_words(job, folder, *extra)]


def _stock(job: Job, folder: Path) -> list[str]:
    return ["-m", f"{_PACKAGE}.stock_tune", _job_file(job, folder), *search_words(job, folder)]


def _script(module: str, *words: str) -> Callable[[Job, Path], list[str]]:
    def command(job: Job, folder: Path) -> list[str]:
        return ["-m", f"{_PACKAGE}.{module}", *words, _job_file(job, folder)]

    return command


def _job_file(job: Job, folder: Path) -> str:
    path = folder / "job.json"
    job.write(path)
    return str(path)


def predict_with_model(model: Path, paths: Sequence[Path], python: str) -> Probabilities:
    """Predict images with a `model.pt` of the project."""
    predictor = load(model)
    classes = sorted(predictor.model.card.classes)
    table = [
        dict(zip(prediction.classes, prediction.probabilities, strict=True))
        for prediction in predictor.predict(list(paths), top=len(classes))
    ]
    return np.array([[row[name] for name in classes] for row in table]), classes


def _predict_with_network(model: Path, paths: Sequence[Path], python: str) -> Probabilities:
    probabilities, classes = fixed_finetuning.predict(model, paths)
    return probabilities.double().numpy(), classes


def _predict_with_autogluon(model: Path, paths: Sequence[Path], python: str) -> Probabilities:
    listed, out = model.with_name("images.txt"), model.with_name("probabilities.csv")
    listed.write_text("\n".join(map(str, paths)), encoding="utf-8")
    words = ["-m", f"{_PACKAGE}.autogluon_fit", "predict", str(model), str(listed), str(out)]
    subprocess.run([python, *words], cwd=ROOT, check=True, capture_output=True)
    table = pd.read_csv(out)
    return table.to_numpy(np.float64), list(table.columns)


OURS, PROBE, FIRST_TRIAL, AUTOGLUON = "ours", "probe", "first trial", "autogluon"
COMPETITORS: dict[str, Competitor] = {
    PROBE: Competitor(_script("linear_probe"), predict_with_model, False, Path(MODEL)),
    FIRST_TRIAL: Competitor(_first_trial, predict_with_model, takes_time=False),
    "random": Competitor(_random, predict_with_model),
    "stock": Competitor(_stock, predict_with_model),
    "fixed": Competitor(
        _script("fixed_finetuning"), _predict_with_network, model=Path("network.pt")
    ),
    OURS: Competitor(_ours, predict_with_model),
    AUTOGLUON: Competitor(
        _script("autogluon_fit", "fit"), _predict_with_autogluon, model=Path("autogluon")
    ),
}
"""By name; the last one needs an environment of its own."""


def python_of(name: str, autogluon_python: str | None) -> str:
    """Return the Python that runs a competitor."""
    return autogluon_python or "" if name == AUTOGLUON else sys.executable
