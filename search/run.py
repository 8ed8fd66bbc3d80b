"""Search, retrain, evaluate: the flow, from a space to a report.

python -m search.run --space spaces/caltech.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from search.session import SessionError, ray_session  # isort: skip  # quiets Ray

import optuna
from torch import Tensor

from search.evaluate import evaluate
from search.folder import FolderError, RunFolder
from search.keeper import start_keeper
from search.layout import DataError
from search.material import Material, find_pictures, pack_pictures
from search.probing import build_banks, open_banks, probe_backbones
from search.progress import Progress
from search.report import write_report
from search.request import Request, RequestError, load_requested_space, parse_request
from search.study import (
    count_states,
    kept_scores,
    open_study,
    ranked_trials,
    storage_url,
    write_trials,
)
from search.tensorboard import TrialBoards
from search.trials import SearchPlan, run_trials, trial_resources
from search.winner import choose_candidates, retrain_finalists
from spaces.base import Space, SpaceError
from spaces.sources import SourceError
from trainables.backbones import create_backbone
from trainables.weights import WeightsError, find_weights, load_weights

MISTAKES = (
    SpaceError,
    SourceError,
    DataError,
    WeightsError,
    FolderError,
    RequestError,
    SessionError,
)
"""What the user can get wrong: exit code 2 and one message."""

SEARCH_SHARE = 0.6
"""Of a time budget, from the command to the last trial; the rest is for folds and evaluation."""


class RunError(RuntimeError):
    """The run cannot go on, through no fault of the request."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    request = parse_request(arguments)
    folder: RunFolder | None = None
    try:
        folder = RunFolder.open(request.resume) if request.resume else None
        if folder is not None:
            request = request.carrying_on(folder.environment["request"])
        space = load_requested_space(request)
        with Progress(quiet=request.quiet) as progress:
            run(request, space, folder, progress)
        return 0
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; carry on with --resume {request.folder}", file=sys.stderr)
        return 130


def run(request: Request, space: Space, folder: RunFolder | None, progress: Progress) -> None:
    """Run the whole flow. What a stage makes is in the run folder before the next begins."""
    # 1. All that can be wrong with the request is found before anything costly starts.
    listing, external = find_pictures(request, space, cache_folder())
    weights = read_weights(request, space)
    if folder is None:
        folder = RunFolder.create(request.out, request.name)
        folder.write_origin(request.space, request.as_json())
    with ray_session(request.address):
        # 2. Pictures are decoded once, and features of frozen stages are computed once.
        with stage("pictures", folder):
            material = pack_pictures(request, space, listing, external, weights, folder, progress)
        with stage("probe", folder):
            material = open_banks(material)
            if request.probe:
                material = probe_backbones(material, folder, progress)
        with stage("banks", folder):
            build_banks(material, progress)
        # 3. Trials are judged on the validation split; the folds use both, and choose a winner.
        with stage("search", folder):
            study = search(request, material, folder, progress)
        with stage("folds", folder):
            candidates = choose_candidates(ranked_trials(study), request.finalists)
            if not candidates:
                raise RunError(f"no trial ended an epoch; see {folder.path / 'trials.csv'}")
            cpus, gpus = trial_resources()
            resources = {"num_cpus": cpus, "num_gpus": gpus}
            _, ensemble = retrain_finalists(
                material, candidates, resources, request.probe, folder, progress
            )
        # 4. Everything is chosen: the test split is opened.
        with stage("evaluation", folder):
            progress.begin("evaluation")
            evaluate(material, ensemble, folder)
    with stage("report", folder):
        progress.begin("report")
        write_report(folder)
    progress.show_result(folder)


def search(
    request: Request, material: Material, folder: RunFolder, progress: Progress
) -> optuna.Study:
    """Run trials until the study holds as many as are asked for, or the time is up."""
    space = material.space
    study = open_study(storage_url(folder.path), space, request.sampler, space.trials, request.seed)
    budget = request.time_budget_seconds
    cpus, gpus = trial_resources()
    plan = SearchPlan(
        n_trials=space.trials,
        scheduler=request.scheduler,
        time_budget_seconds=budget and max(1.0, budget * SEARCH_SHARE - progress.elapsed_seconds),
        concurrent=request.concurrent,
        cpus=cpus,
        gpus=gpus,
    )
    keeper = start_keeper(folder.path.absolute() / "trials", space.keep, kept_scores(study))
    boards = TrialBoards(folder.path / "tensorboard", space)
    progress.begin_trials(space.trials, sum(count_states(study).values()), space.epochs)
    rows = {part: material.rows(part) for part in ("train", "val")}
    run_trials(
        plan, study, space, material.bench, rows, keeper, folder.path / "trials", (boards, progress)
    )
    boards.close()
    write_trials(folder.path / "trials.csv", study, space)
    states = count_states(study)
    folder.note(
        "search",
        {
            "trials": sum(states.values()),
            "complete": states["complete"],
            "pruned": states["pruned"],
            "failed": states["fail"],
            "seconds": monotonic() - progress.stage_started,
        },
    )
    return study


def read_weights(request: Request, space: Space) -> dict[str, dict[str, Tensor]]:
    """Read all pretrained weights that the space wants, and try that they and its sizes fit.

    Raises:
        WeightsError: they cannot be had or do not fit.
        RequestError: a backbone cannot see pictures of the space's size.
    """
    weights = {}
    if space.weights == "pretrained":
        found = find_weights(space.backbones, request.weights, cache_folder())
        weights = {name: load_weights(path) for name, path in found.items()}
    for name in space.backbones:
        try:
            create_backbone(name, weights.get(name)).boundary_shapes(space.image_size)
        except WeightsError:
            raise
        except ValueError as error:
            raise RequestError(f"{name}: {error}") from None
    return weights


def cache_folder() -> Path:
    """Return where downloads are kept: $CLASSIFIER_SEARCH_CACHE, or a folder of the user's."""
    default = Path.home() / ".cache" / "classifier-search"
    return Path(os.environ.get("CLASSIFIER_SEARCH_CACHE", default))


@contextmanager
def stage(name: str, folder: RunFolder) -> Iterator[None]:
    """Note how many seconds a stage took."""
    started = monotonic()
    yield
    folder.note_seconds(name, monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
