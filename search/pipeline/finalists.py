"""Choose the finalists, which are retrained by k-fold: the best trials, a probe, the baseline."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.console.formatting import count
from search.pipeline.retraining.kfold import RetrainConfig
from search.runs.summary import BestModel, ProbeScore
from search.tuning.study import (
    BASELINE_TRIAL,
    best_epoch,
    count_states,
    learning_rates,
    ranked_trials,
    trial_params,
)
from spaces.base import Space, TrialConfig
from trainables.models.network_cut import N_STAGES
from trainables.worker import resolve_config


@dataclass(frozen=True)
class Finalist:
    """A trial, or a linear probe, that is retrained by k-fold.

    Attributes:
        trial: The trial's number; None for a linear probe.
        retrain_config: How it is retrained.
        val_accuracy: Its best epoch's validation accuracy; cross-validated, for a linear probe.
        val_score: Likewise its validation score, by the metric.
    """

    trial: int | None
    retrain_config: RetrainConfig
    val_accuracy: float
    val_score: float = math.nan

    @property
    def name(self) -> str:
        """Display name, such as "trial 3, 8 epochs"."""
        if self.trial is None:
            return f"linear probe of {self.retrain_config.config.backbone}"
        return f"trial {self.trial}, {count(self.retrain_config.epochs, 'epoch')}"

    @property
    def cost(self) -> tuple[int, int]:
        """Sort key: trainable stages of any backbone, the probe before trials, the number."""
        n_trainable = N_STAGES - self.retrain_config.config.freeze_depth
        return n_trainable, -1 if self.trial is None else self.trial

    def as_best_model(self) -> BestModel:
        """Return the summary's section about where the model comes from."""
        return BestModel(
            trial=self.trial,
            name=self.name,
            config=asdict(self.retrain_config.config),
            val_accuracy=self.val_accuracy,
            val_score=self.val_score,
            epoch=self.retrain_config.epochs,
        )


def choose_finalists(
    study: optuna.Study,
    space: Space,
    n: int,
    probe_scores: Mapping[str, ProbeScore],
    with_baseline: bool = True,
    too_slow: Collection[int] = (),
) -> list[Finalist]:
    """Return the n best trials of different configurations, the best linear probe, and trial 0.

    The best of many validation accuracies is optimistic. So the probe and the baseline, trial 0,
    are retrained as well: no search ends with less than they reach.

    Args:
        study: The trials.
        space: What was searched.
        n: Number of trials.
        probe_scores: By backbone, the best first; empty without probes.
        with_baseline: Whether trial 0 is retrained if it is not among the best.
        too_slow: Trials that are not retrained.
    """
    chosen, ranked = _best_trials(study, n, too_slow), ranked_trials(study)
    finalists = [_as_finalist(trial, space) for trial in chosen]
    # Where no trial has ended an epoch, the probe is all there is; but where they failed, it would
    # hide that.
    if probe_scores and (ranked or not count_states(study)["failed"]):
        name, score = next(iter(probe_scores.items()))
        retrain_config = RetrainConfig(probe_config(name), 0, None)
        finalists.append(Finalist(None, retrain_config, score.accuracy, score.score))
    if with_baseline and chosen and all(one.trial != BASELINE_TRIAL for one in finalists):
        baseline = study.get_trials(deepcopy=False)[BASELINE_TRIAL]
        is_new = all(baseline.params != trial.params for trial in chosen)
        if is_new and baseline.intermediate_values and baseline.state != TrialState.FAIL:
            retrain_config = full_length(
                read_retrain_config(baseline, space), baseline, space.epochs
            )
            finalists.append(_with_scores(baseline, retrain_config))
    return finalists


def next_finalists(
    study: optuna.Study, space: Space, n: int, too_slow: Collection[int] = ()
) -> list[Finalist]:
    """Return the n trials that follow the n best, to take the place of those that are dropped."""
    return [_as_finalist(trial, space) for trial in _best_trials(study, 2 * n, too_slow)[n:]]


def _best_trials(study: optuna.Study, n: int, too_slow: Collection[int]) -> list[FrozenTrial]:
    """Return the n best trials of different configurations, the best first."""
    chosen: list[FrozenTrial] = []
    for trial in ranked_trials(study):
        is_new = all(trial.params != other.params for other in chosen)
        if len(chosen) < n and is_new and trial.number not in too_slow:
            chosen.append(trial)
    return chosen


def _as_finalist(trial: FrozenTrial, space: Space) -> Finalist:
    return _with_scores(trial, read_retrain_config(trial, space))


def _with_scores(trial: FrozenTrial, retrain_config: RetrainConfig) -> Finalist:
    best = best_epoch(trial)
    return Finalist(trial.number, retrain_config, best.val_accuracy, best.val_score)


def probe_config(backbone: str) -> TrialConfig:
    """Return the configuration of a linear probe: every stage of the backbone is frozen."""
    return TrialConfig(backbone=backbone, freeze_depth=5)


def full_length(retrain_config: RetrainConfig, trial: FrozenTrial, epochs: int) -> RetrainConfig:
    """Extend a pruned trial's retraining to the full number of epochs.

    Learning rates that a plateau decided stay as they were in the trial's last epoch.
    """
    if trial.state == TrialState.COMPLETE:
        return retrain_config
    lrs = retrain_config.epoch_lrs
    return replace(
        retrain_config, epochs=epochs, epoch_lrs=lrs and lrs + lrs[-1:] * (epochs - len(lrs))
    )


def read_retrain_config(trial: FrozenTrial, space: Space) -> RetrainConfig:
    """Return how to retrain a trial: its configuration, its best epoch, its learning rates."""
    config = resolve_config(trial_params(trial, space))
    lrs = learning_rates(trial) if config.scheduler == "plateau" else None
    return RetrainConfig(config, best_epoch(trial).epoch, lrs)
