"""Choose the finalists, which are retrained by k-fold: the best trials, a probe, the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

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
    retrain_epochs,
    trial_length,
    trial_params,
)
from spaces.base import Space, TrialConfig
from trainables.models.linear_probe import PROBE_C
from trainables.models.network_cut import N_STAGES
from trainables.worker import resolve_config

MAX_NEXT_FINALISTS = 6
"""Trials beside the finalists that are retrained at most where time is left."""


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
        config = asdict(self.retrain_config.config)
        if self.trial is None:
            config = {"backbone": config["backbone"], "C": PROBE_C}
        return BestModel(
            trial=self.trial,
            name=self.name,
            config=config,
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
) -> list[Finalist]:
    """Return the best linear probes, the n best trials, a fine-tuned one, and trial 0.

    There is one probe, or several where an ensemble of them is clearly better. The best of many
    validation accuracies is optimistic. So the probe and the baseline, trial 0, are retrained as
    well: no search ends with less than they reach.

    Args:
        study: The trials.
        space: What was searched.
        n: Number of trials.
        probe_scores: By backbone that has a probe, the best first; empty without probes.
        with_baseline: Whether trial 0 is retrained if it is not among the best.
    """
    finalists = []
    # Where no trial has ended an epoch, the probe is all there is; but where they failed, it would
    # hide that.
    if probe_scores and (ranked_trials(study) or not count_states(study)["failed"]):
        for name in finalist_probes(probe_scores):
            score, retrain_config = probe_scores[name], RetrainConfig(probe_config(name), 0, 0)
            finalists.append(Finalist(None, retrain_config, score.accuracy, score.score))
    chosen = _best_trials(study, space, n)
    finalists += [_as_finalist(trial, space) for trial in chosen]
    if with_baseline and chosen and all(one.number != BASELINE_TRIAL for one in chosen):
        baseline = study.get_trials(deepcopy=False)[BASELINE_TRIAL]
        is_new = all(baseline.params != trial.params for trial in chosen)
        if is_new and baseline.intermediate_values and baseline.state != TrialState.FAIL:
            finalists.append(_as_finalist(baseline, space))
    return finalists


def finalist_probes(scores: Mapping[str, ProbeScore]) -> list[str]:
    """Return the backbones of the linear probes that are finalists, the best first.

    Args:
        scores: By backbone that has a probe, the best first.
    """
    return [
        name
        for index, (name, score) in enumerate(scores.items())
        if index == 0 or score.in_ensemble
    ]


def next_finalists(study: optuna.Study, space: Space, chosen: Sequence[Finalist]) -> list[Finalist]:
    """Return the best trials that are no finalists, for the time that is left after those.

    The fine-tuned ones come first: of heads, the chosen ones and the probe tell enough.
    """
    known = {finalist.trial for finalist in chosen}
    ranked = _best_trials(study, space, MAX_NEXT_FINALISTS + len(known))
    others = [trial for trial in ranked if trial.number not in known]
    others.sort(key=lambda trial: not _is_fine_tuned(trial, space))
    return [_as_finalist(trial, space) for trial in others[:MAX_NEXT_FINALISTS]]


def _best_trials(study: optuna.Study, space: Space, n: int) -> list[FrozenTrial]:
    """Return the n best trials of different configurations, and one that was fine-tuned.

    A fine-tuned trial may be better than the best without a few hundred validation images showing
    it. So the best of those that train some of the backbone is there, whatever comes before it.
    """
    new: list[FrozenTrial] = []
    for trial in ranked_trials(study):
        if all(trial.params != other.params for other in new):
            new.append(trial)
    chosen, others = new[:n], new[n:]
    if not any(_is_fine_tuned(trial, space) for trial in chosen):
        chosen += [trial for trial in others if _is_fine_tuned(trial, space)][:1]
    return chosen


def _is_fine_tuned(trial: FrozenTrial, space: Space) -> bool:
    return resolve_config(trial_params(trial, space)).freeze_depth < N_STAGES


def _as_finalist(trial: FrozenTrial, space: Space) -> Finalist:
    best = best_epoch(trial)
    retrain_config = read_retrain_config(trial, space)
    return Finalist(trial.number, retrain_config, best.val_accuracy, best.val_score)


def probe_config(backbone: str) -> TrialConfig:
    """Return the configuration of a linear probe: every stage of the backbone is frozen."""
    return TrialConfig(backbone=backbone, freeze_depth=5)


def read_retrain_config(trial: FrozenTrial, space: Space) -> RetrainConfig:
    """Return how to retrain a trial: its configuration, its epochs, its learning rates.

    One that was pruned is retrained at its full length. Learning rates that a plateau decided stay
    as they were in its last epoch.
    """
    config, length = resolve_config(trial_params(trial, space)), trial_length(trial, space)
    lrs = learning_rates(trial) if config.scheduler == "plateau" else None
    if trial.state != TrialState.COMPLETE:
        return RetrainConfig(config, length, length, lrs and lrs + lrs[-1:] * (length - len(lrs)))
    epochs = retrain_epochs(config, length, best_epoch(trial).epoch)
    return RetrainConfig(config, epochs, length, lrs)
