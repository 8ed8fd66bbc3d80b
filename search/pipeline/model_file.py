"""Write `model.pt`: from a linear probe, from the best trial, or from the folds of a finalist."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState

from search.pipeline.finalists import Finalist, probe_config, read_retrain_config
from search.pipeline.prepare import PreparedData
from search.runs.run_folder import BEST_WEIGHTS, MODEL, RunFolder
from search.tuning.study import best_epoch, ranked_trials, trial_params
from spaces.base import TrialConfig
from trainables.models.classifier import Weights
from trainables.models.ensemble import Ensemble
from trainables.models.linear_probe import Probe
from trainables.models.model import save_model
from trainables.models.model_card import ModelCard
from trainables.models.ood import OODScorer
from trainables.pretrained.licences import weights_licence
from trainables.trial_files import TrialIdentity, unpack
from trainables.worker import clone_backbone

_log = logging.getLogger(__name__)


def build_ensemble(
    prepared: PreparedData,
    config: TrialConfig,
    members: Sequence[Weights],
    temperature: float = 1.0,
    center_crop: Weights | None = None,
    ood_scorer: OODScorer | None = None,
) -> Ensemble:
    """Build a model from members and the frozen stages that they were trained on.

    Args:
        prepared: Images and backbones.
        config: How the members were trained.
        members: Their weights.
        temperature: Divides the logits.
        center_crop: Weights of the centre-crop branch; None for a model without one.
        ood_scorer: Scores how far an image is from the training images; None if not fitted.
    """
    space = prepared.space
    depth = config.freeze_depth
    backbone = clone_backbone(prepared.features, config.backbone, depth, torch.device("cpu"))
    is_pretrained = config.backbone in prepared.features.weights
    card = ModelCard(
        backbone=config.backbone,
        classes=prepared.classes,
        image_size=space.image_size,
        cache_size=space.cache_size,
        resize_mode=space.resize_mode,
        freeze_depth=config.freeze_depth,
        hidden_units=config.hidden_units,
        n_members=len(members),
        temperature=temperature,
        center_crop=center_crop is not None,
        mean=backbone.normalise.mean,
        std=backbone.normalise.std,
        licence=weights_licence(config.backbone).name if is_pretrained else "",
        levels=prepared.images.levels,
    )
    prefix = backbone.stages[:depth].state_dict()
    return Ensemble(card, prefix, members, ood_scorer, center_crop)


def save_probe(prepared: PreparedData, backbone: str, probe: Probe, path: Path) -> None:
    """Write a linear probe as a model of one member."""
    head = {f"head.1.{key}": value for key, value in probe.head.items()}
    save_model(build_ensemble(prepared, probe_config(backbone), [head]), path)
    _log.info("%s: the linear probe of %s", path, backbone)


def save_best_trial(prepared: PreparedData, study: optuna.Study, folder: RunFolder) -> None:
    """Write the best complete trial as the model, for a search that ends before the folds.

    Also writes the summary's section `best`.
    """
    for trial in ranked_trials(study):
        weights = folder.path / "trials" / str(trial.number) / BEST_WEIGHTS
        if trial.state == TrialState.COMPLETE and weights.is_file():
            params = trial_params(trial, prepared.space)
            identity = TrialIdentity(folder.environment.run_id, trial.number, params)
            member = unpack(identity, weights.read_bytes())
            if member is None:
                _log.warning("%s is damaged, or of another trial, and is not used", weights)
                continue
            retrain_config = read_retrain_config(trial, prepared.space)
            try:
                ensemble = build_ensemble(prepared, retrain_config.config, [member])
            except Exception as error:  # torch raises nearly anything on what is damaged
                _log.warning("%s is damaged, and is not used: %s", weights, error)
                continue
            save_model(ensemble, folder.path / MODEL)
            finalist = Finalist(trial.number, retrain_config, best_epoch(trial).val_accuracy)
            folder.write_summary(replace(folder.summary, best=finalist.as_best_model()))
            _log.info("%s: the best trial, %d", folder.path / MODEL, trial.number)
            return
