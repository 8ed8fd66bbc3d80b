"""The flow, from checked pictures to a report. What a stage makes is on disk before the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import optuna
import torch
from torch import Tensor

from search.checks import Checked
from search.evaluate import evaluate
from search.folder import RunFolder
from search.interruption import Interruption
from search.keeper import start_keeper
from search.material import Material, pack_pictures
from search.probing import build_banks, open_banks, probe_backbones
from search.progress import Progress, describe
from search.request import RequestError
from search.sharing import measure_shares
from search.study import (
    best_value,
    count_states,
    count_unfinished,
    kept_scores,
    open_study,
    ranked_trials,
    storage_url,
    write_trials,
)
from search.tensorboard import TrialBoards
from search.trials import SearchPlan, run_trials
from search.winner import choose_candidates, retrain_finalists, save_best_trial
from spaces.base import Space
from trainables.backbones import create_backbone
from trainables.weights import WeightsError, load_weights

FAILED = 1
"""Exit code of a run that came to nothing, through no fault of the request."""

SEARCH_SHARE = 0.6
"""Of a time budget, from the command to the last trial; the rest is for folds and evaluation."""


def run(checked: Checked, progress: Progress, interruption: Interruption) -> int:
    """Run every stage; return the exit code. Ray must be running.

    Raises:
        DataError, WeightsError, RequestError: what only a closer look at the pictures and the
            weights could find.
    """
    request, folder = checked.request, checked.folder
    weights = read_weights(checked)
    folder.note("settings", settings(checked))
    # 1. Pictures are decoded once, and features of frozen stages are computed once.
    with stage("pictures", folder):
        material = pack_pictures(checked, weights, progress)
    with stage("probe", folder):
        material = open_banks(material)
        if request.probe:
            material = probe_backbones(material, folder, progress)
    with stage("banks", folder):
        build_banks(material, progress)
    # 2. Trials are judged on the validation split; the folds use both, and choose a winner.
    with stage("search", folder):
        study = search(checked, material, progress, interruption)
    with stage("folds", folder):
        candidates = choose_candidates(study, material.space, request.finalists, folder)
        if not candidates:
            progress.warn(f"no trial ended an epoch; see {folder.path / 'trials.csv'}")
            report(folder, progress)
            return FAILED
        _, ensemble = retrain_finalists(material, candidates, request.probe, folder, progress)
    # 3. Everything is chosen: the test split is opened.
    with stage("evaluation", folder):
        progress.begin("evaluation")
        evaluate(material, ensemble, folder)
    report(folder, progress)
    progress.show_result(folder)
    return 0


def search(
    checked: Checked, material: Material, progress: Progress, interruption: Interruption
) -> optuna.Study:
    """Run trials until the study holds as many as are asked for, or the time is up.

    Raises:
        KeyboardInterrupt: the user asked to stop; all that was finished is kept.
    """
    request, space, folder = checked.request, checked.space, checked.folder
    started = monotonic()
    study = open_study(storage_url(folder.path), space)
    budget = request.time_budget_seconds
    shares = measure_shares(space, material.bench, material.rows("train"))
    if any(shares.values()):
        progress.say("share of a GPU a trial takes: " + describe(shares))
    folder.note("gpu_shares", shares)
    plan = SearchPlan(
        n_trials=space.trials,
        sampler=request.sampler,
        scheduler=request.scheduler,
        interrupted=interruption.asked,
        time_budget_seconds=budget and max(1.0, budget * SEARCH_SHARE - progress.elapsed_seconds),
        concurrent=request.concurrent,
        gpu_shares=shares,
    )
    # What an earlier session found out about its winner says nothing of the next one.
    folder.forget("kfold", "test", "external")
    trials = folder.path / "trials"
    keeper = start_keeper(trials.absolute(), space.keep, kept_scores(study))
    boards = TrialBoards(folder.path / "tensorboard", space)
    n_ended = sum(count_states(study).values())
    ranked = ranked_trials(study)
    best = (best_value(ranked[0]), ranked[0].number, ranked[0].params) if ranked else None
    progress.begin_trials(space.trials, n_ended, space.epochs, best)
    rows = {part: material.rows(part) for part in ("train", "val")}
    try:
        with interruption.in_good_order():
            listeners = (boards, progress)
            run_trials(plan, study, space, material.bench, rows, keeper, trials, listeners)
    finally:
        boards.close()
        _note_trials(study, space, folder, monotonic() - started)
        save_best_trial(material, study, folder)  # until the folds have made a better model
        if interruption.asked():
            report(folder, progress)
    return study


def report(folder: RunFolder, progress: Progress) -> None:
    """Write the report, of an unfinished run too."""
    from search.report import write_report  # Matplotlib takes a while, and is needed last.

    progress.begin("report")
    with stage("report", folder):
        write_report(folder)


def _note_trials(study: optuna.Study, space: Space, folder: RunFolder, seconds: float) -> None:
    write_trials(folder.path / "trials.csv", study, space)
    states = count_states(study)
    folder.note(
        "search",
        {
            "trials": sum(states.values()),
            "complete": states["complete"],
            "pruned": states["pruned"],
            "failed": states["failed"],
            "unfinished": count_unfinished(study),
            "seconds": seconds,
        },
    )


def settings(checked: Checked) -> dict[str, object]:
    """Return what applied to the run, the command line's changes to the space included."""
    request, space = checked.request, checked.space
    fields = ("trials", "epochs", "folds", "image_size", "patience", "views", "weights", "keep")
    return {
        **{name: getattr(space, name) for name in fields},
        "packed_size": space.packed_size,
        "searched": {name: str(value) for name, value in space.distributions.items()},
        "constants": space.constants,
        "finalists": request.finalists,
        "sampler": request.sampler,
        "scheduler": request.scheduler,
        "probe": request.probe,
        "seed": request.seed,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def read_weights(checked: Checked) -> dict[str, dict[str, Tensor]]:
    """Read all pretrained weights, and try that they, and the pictures' size, fit.

    Raises:
        WeightsError: weights cannot be read or do not fit.
        RequestError: a backbone cannot see pictures of the space's size.
    """
    weights = {name: load_weights(path) for name, path in checked.weights.items()}
    for name in checked.space.backbones:
        try:
            backbone = create_backbone(name, weights.get(name))
            backbone.boundary_shapes(checked.space.image_size)
        except WeightsError:
            raise
        except ValueError as error:
            raise RequestError(f"{name}: {error}") from None
    return weights


@contextmanager
def stage(name: str, folder: RunFolder) -> Iterator[None]:
    """Note how many seconds a stage took."""
    started = monotonic()
    yield
    folder.note_seconds(name, monotonic() - started)
