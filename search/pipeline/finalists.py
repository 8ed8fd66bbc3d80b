"""What may be retrained by k-fold: the best trials, the linear probe, and the first trial."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.pipeline.retraining.kfold import RetrainConfig
from search.runs.run_folder import RunFolder
from search.tuning.study import (
    BASELINE_TRIAL,
    best_epoch,
    best_value,
    count_states,
    ranked_trials,
    trial_params,
)
from spaces.base import Space, TrialConfig
from trainables.worker import resolve_config


@dataclass(frozen=True)
class Candidate:
    """What may be retrained by k-fold: a trial, or the linear probe (no number, no epochs)."""

    number: int | None
    retrain_config: RetrainConfig
    search_accuracy: float

    @property
    def name(self) -> str:
        """What people are shown."""
        if self.number is None:
            return f"linear probe of {self.retrain_config.config.backbone}"
        return f"trial {self.number}, {self.retrain_config.epochs} epochs"


def choose_finalists(
    study: optuna.Study,
    space: Space,
    n: int,
    folder: RunFolder,
    with_first: bool = True,
    without: Collection[int] = (),
) -> list[Candidate]:
    """Return the n best trials of different configurations, the best linear probe, and trial 0.

    A validation score is the best of many, and flatters: the probe and the first trial, which is
    the space's own recipe, are finalists, too, so that no search falls short of them. Without
    `with_first`, the first trial is one only if it is among the best; those in `without` are none.
    """
    chosen: list[FrozenTrial] = []
    probes = folder.summary.get("probe")
    ranked = ranked_trials(study)
    for trial in ranked:
        is_new = all(trial.params != other.params for other in chosen)
        if len(chosen) < n and is_new and trial.number not in without:
            chosen.append(trial)
    candidates = [
        Candidate(trial.number, read_retrain_config(trial, space, folder.path), best_value(trial))
        for trial in chosen
    ]
    # Without an epoch of any trial, the probe is what there is, unless trials did not get that far
    # because they failed.
    if probes and (ranked or not count_states(study)["failed"]):
        name, probe = next(iter(probes.items()))
        retrain_config = RetrainConfig(TrialConfig(backbone=name, freeze_depth=5), 0, None)
        candidates.append(Candidate(None, retrain_config, probe["accuracy"]))
    if (
        with_first
        and chosen
        and all(candidate.number != BASELINE_TRIAL for candidate in candidates)
    ):
        first = study.get_trials(deepcopy=False)[BASELINE_TRIAL]
        is_new = all(first.params != trial.params for trial in chosen)
        if is_new and first.intermediate_values and first.state != TrialState.FAIL:
            retrain_config = full_length(
                read_retrain_config(first, space, folder.path), first, space.epochs
            )
            candidates.append(Candidate(BASELINE_TRIAL, retrain_config, best_value(first)))
    return candidates


def full_length(retrain_config: RetrainConfig, trial: FrozenTrial, epochs: int) -> RetrainConfig:
    """Return the recipe of a trial that ASHA stopped as it would have been without a search.

    Rates that a plateau decided stay, from where it was stopped, as they were last.
    """
    if trial.state == TrialState.COMPLETE:
        return retrain_config
    lrs = retrain_config.epoch_lrs
    return replace(
        retrain_config, epochs=epochs, epoch_lrs=lrs and lrs + lrs[-1:] * (epochs - len(lrs))
    )


def read_retrain_config(trial: FrozenTrial, space: Space, run_folder: Path) -> RetrainConfig:
    """Return what a trial found: its configuration, its best epoch, its learning rates."""
    config = resolve_config(trial_params(trial, space))
    epochs = best_epoch(trial)
    if config.scheduler != "plateau":
        return RetrainConfig(config, epochs, None)
    curve = run_folder / "trials" / str(trial.number) / "progress.csv"
    with curve.open(newline="", encoding="utf-8") as file:
        lrs = {int(row["epoch"]): float(row["lr"]) for row in csv.DictReader(file)}
    return RetrainConfig(config, epochs, tuple(lrs[epoch] for epoch in range(1, epochs + 1)))
