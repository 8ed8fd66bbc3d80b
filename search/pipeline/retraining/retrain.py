"""The folds stage: finalists are retrained by k-fold, and the winner's folds become the model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

from search.cluster.resources import CPUS_PER_TRIAL
from search.console.progress import Progress
from search.pipeline.finalists import Candidate, read_retrain_config
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.center_crop import CenterCropProbes, CenterCropResult
from search.pipeline.retraining.kfold import Fold, FoldStore, RetrainConfig, retrain
from search.pipeline.retraining.out_of_fold import fit_ood, fold_interval, learn_from_folds
from search.runs.run_folder import RunFolder
from search.tuning.checkpoints import BEST_WEIGHTS
from search.tuning.study import BASELINE_TRIAL, best_value, ranked_trials
from trainables.models.ensemble import Ensemble, ModelCard, Weights
from trainables.worker import clone_backbone


@dataclass(frozen=True)
class Finalist:
    """A candidate that was retrained by k-fold."""

    candidate: Candidate
    trained: list[Fold]
    """What its members make of the images that they did not see, by themselves."""
    second: CenterCropResult | None = None
    """What a second look makes of them; None where there is none."""

    @property
    def kept(self) -> CenterCropResult | None:
        """The second look, where it helps."""
        return self.second if self.second is not None and self.second.helps else None

    @property
    def folds(self) -> list[Fold]:
        """Its folds as they would be used."""
        return self.trained if self.kept is None else self.kept.folds

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds."""
        return _mean_accuracy(self.folds)

    @property
    def std(self) -> float:
        """Standard deviation (n - 1) of the folds' accuracies."""
        return float(np.std([fold.accuracy for fold in self.folds], ddof=1))

    @property
    def gap(self) -> float:
        """How much the search flattered: its accuracy minus that of folds that look once, too."""
        return self.candidate.search_accuracy - _mean_accuracy(self.trained)


def _mean_accuracy(folds: Sequence[Fold]) -> float:
    return float(np.mean([fold.accuracy for fold in folds]))


@dataclass(frozen=True)
class Retrained:
    """What the folds stage made.

    Attributes:
        winner: The finalist of the best fold mean.
        ensemble: Its folds: the model.
        baseline: The first trial's recipe, retrained on the same folds; None where that is the
            winner, or there is none.
    """

    winner: Finalist
    ensemble: Ensemble
    baseline: Ensemble | None


def retrain_finalists(
    prepared: PreparedData,
    candidates: Sequence[Candidate],
    use_probe: bool,
    folder: RunFolder,
    progress: Progress,
) -> Retrained:
    """Retrain the candidates by k-fold; the best fold mean wins, and its folds are the model.

    Args:
        prepared: What the run works on.
        candidates: At least one.
        use_probe: Whether linear heads begin as probes.
        folder: Gets `folds/` and `model.pt`.
        progress: Is told each fold.
    """
    n_folds = prepared.space.folds
    progress.begin("folds", n_folds * len(candidates), "folds")
    looks = CenterCropProbes(prepared, folder.summary["gpu_fraction"])
    finalists = []
    for place, candidate in enumerate(candidates):
        folds = _retrain(prepared, candidate, use_probe, folder, progress, place * n_folds)
        backbone = candidate.retrain_config.config.backbone
        second = looks.look(backbone, folds) if looks.applies_to(backbone) else None
        one = Finalist(candidate, folds, second)
        finalists.append(one)
        progress.say(
            f"{candidate.name}: {one.mean:.4f} ± {one.std:.4f} over {n_folds} folds"
            + (", with a second look" if one.kept else "")
        )
    winner = max(finalists, key=lambda finalist: finalist.mean)
    _write_folds(finalists, winner, folder)
    temperature = learn_from_folds(prepared, winner.folds, folder)
    ensemble = _as_model(prepared, winner, looks, temperature)
    ensemble.ood_scorer = fit_ood(winner.folds)
    ensemble.save(folder.path / "model.pt")
    first = next((one for one in finalists if one.candidate.number == BASELINE_TRIAL), None)
    if first is None or first is winner:
        return Retrained(winner, ensemble, None)
    return Retrained(winner, ensemble, _as_model(prepared, first, looks, temperature=1.0))


def _as_model(
    prepared: PreparedData, finalist: Finalist, looks: CenterCropProbes, temperature: float
) -> Ensemble:
    retrain_config, second = finalist.candidate.retrain_config, None
    if finalist.kept is not None:
        config = retrain_config.config
        second = looks.weights(config.backbone, config.freeze_depth, finalist.kept.heads)
    weights = [fold.weights for fold in finalist.folds]
    return build_ensemble(prepared, retrain_config, weights, temperature, second)


def _retrain(
    prepared: PreparedData,
    candidate: Candidate,
    use_probe: bool,
    folder: RunFolder,
    progress: Progress,
    n_before: int,
) -> list[Fold]:
    """Train a candidate's folds, but for those that an earlier session finished."""
    n_folds, retrain_config = prepared.space.folds, candidate.retrain_config
    rows = prepared.rows("train", "val")
    share = folder.summary["gpu_fraction"][retrain_config.config.backbone]
    store = FoldStore(folder.path / "folds" / "state", candidate.name, retrain_config)
    before = store.load(n_folds)
    n_done = n_before + len(before)
    progress.advance(n_done)

    def on_fold(index: int, fold: Fold) -> None:
        nonlocal n_done
        n_done += 1
        store.save(index, fold)
        progress.advance(n_done)
        progress.say(f"{candidate.name}, fold {index + 1} of {n_folds}: {fold.accuracy:.4f}")

    resources = {"num_cpus": CPUS_PER_TRIAL, "num_gpus": share}
    return retrain(
        prepared.context, retrain_config, rows, n_folds, use_probe, resources, on_fold, before
    )


def save_best_trial(prepared: PreparedData, study: optuna.Study, folder: RunFolder) -> None:
    """Make the best full-length trial the model, for a search that ends before the folds."""
    for trial in ranked_trials(study):
        weights = folder.path / "trials" / str(trial.number) / BEST_WEIGHTS
        if trial.state == TrialState.COMPLETE and weights.is_file():
            retrain_config = read_retrain_config(trial, prepared.space, folder.path)
            member = torch.load(weights, weights_only=True)
            build_ensemble(prepared, retrain_config, [member]).save(folder.path / "model.pt")
            _note_best(folder, Candidate(trial.number, retrain_config, best_value(trial)))
            return


def build_ensemble(
    prepared: PreparedData,
    retrain_config: RetrainConfig,
    members: Sequence[Weights],
    temperature: float = 1.0,
    center_crop: Weights | None = None,
) -> Ensemble:
    """Put members over the frozen stages that they were trained on."""
    space, config = prepared.space, retrain_config.config
    card = ModelCard(
        backbone=config.backbone,
        classes=prepared.manifest.classes,
        image_size=space.image_size,
        cache_size=space.cache_size,
        resize_mode=space.resize_mode,
        freeze_depth=config.freeze_depth,
        hidden_units=config.hidden_units,
        n_members=len(members),
        temperature=temperature,
        center_crop=center_crop is not None,
    )
    backbone = clone_backbone(
        prepared.context, config.backbone, config.freeze_depth, torch.device("cpu")
    )
    prefix = backbone.stages[: config.freeze_depth].state_dict()
    return Ensemble(card, prefix, members, center_crop=center_crop)


def _write_folds(finalists: Sequence[Finalist], winner: Finalist, folder: RunFolder) -> None:
    """Write `folds.csv` and the summary's sections `best` and `kfold`."""
    folder.path.joinpath("folds").mkdir(exist_ok=True)
    with (folder.path / "folds" / "folds.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "fold", "accuracy", "n", "seconds", "node"])
        for finalist in finalists:
            number = finalist.candidate.number
            for index, fold in enumerate(finalist.folds):
                row = ["probe" if number is None else number, index + 1, fold.accuracy]
                writer.writerow([*row, len(fold.held_out), round(fold.seconds, 3), fold.node])
    _note_best(folder, winner.candidate)
    folder.note(
        "kfold",
        {
            "folds": len(winner.folds),
            "accuracy_mean": winner.mean,
            "accuracy_std": winner.std,
            "accuracy_ci95": fold_interval(winner.folds),
            "gap": winner.gap,
            "center_crop": _describe_center_crop(winner),
            "finalists": [
                {
                    "trial": finalist.candidate.number,
                    "name": finalist.candidate.name,
                    "search_accuracy": finalist.candidate.search_accuracy,
                    "accuracy_mean": finalist.mean,
                    "accuracy_std": finalist.std,
                    "center_crop": finalist.kept is not None,
                }
                for finalist in finalists
            ],
        },
    )


def _describe_center_crop(winner: Finalist) -> dict[str, Any] | None:
    """Return what the winner's second look does to images that its folds held out."""
    if winner.second is None:
        return None
    return {
        "kept": winner.kept is not None,
        "log_loss": winner.second.log_loss,
        "log_loss_baseline": winner.second.log_loss_one_view,
        "accuracy_mean": _mean_accuracy(winner.second.folds),
        "accuracy_mean_without": _mean_accuracy(winner.trained),
    }


def _note_best(folder: RunFolder, candidate: Candidate) -> None:
    folder.note(
        "best",
        {
            "trial": candidate.number,
            "name": candidate.name,
            "config": asdict(candidate.retrain_config.config),
            "val_accuracy": candidate.search_accuracy,
            "epoch": candidate.retrain_config.epochs,
        },
    )
