"""The folds stage: finalists are retrained by k-fold, and the winner's folds become the model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from search.evaluate import write_predictions
from search.folder import RunFolder
from search.folds import Fold, FoldStore, Recipe, out_of_fold, retrain
from search.keeper import BEST_WEIGHTS
from search.material import Material
from search.progress import Progress
from search.study import best_epoch, best_value, ranked_trials, trial_params
from search.trials import CPUS_A_TRIAL
from spaces.base import Space, TrialConfig
from trainables.model import Ensemble, ModelCard
from trainables.trial import fresh_backbone, settled


@dataclass(frozen=True)
class Candidate:
    """What may be retrained by k-fold: a trial, or the linear probe (no number, no epochs)."""

    number: int | None
    recipe: Recipe
    search_accuracy: float

    @property
    def name(self) -> str:
        """What people are shown."""
        if self.number is None:
            return f"linear probe of {self.recipe.config.backbone}"
        return f"trial {self.number}, {self.recipe.epochs} epochs"


@dataclass(frozen=True)
class Finalist:
    """A candidate that was retrained by k-fold."""

    candidate: Candidate
    folds: list[Fold]

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(np.mean([fold.accuracy for fold in self.folds]))

    @property
    def std(self) -> float:
        """Standard deviation (n - 1) of the folds' accuracies."""
        return float(np.std([fold.accuracy for fold in self.folds], ddof=1))


def choose_candidates(
    study: optuna.Study, space: Space, n: int, folder: RunFolder
) -> list[Candidate]:
    """Return the n best trials of different configurations, and the best linear probe.

    A validation score is the best of many, and flatters: the probe is always a finalist, so that
    no search falls short of it.
    """
    chosen: list[FrozenTrial] = []
    for trial in ranked_trials(study):
        if len(chosen) < n and all(trial.params != other.params for other in chosen):
            chosen.append(trial)
    candidates = [
        Candidate(trial.number, read_recipe(trial, space, folder.path), best_value(trial))
        for trial in chosen
    ]
    probes = folder.summary.get("probe")
    if candidates and probes:
        name, probe = next(iter(probes.items()))
        recipe = Recipe(TrialConfig(backbone=name, freeze_depth=5), 0, None)
        candidates.append(Candidate(None, recipe, probe["accuracy"]))
    return candidates


def retrain_finalists(
    material: Material,
    candidates: Sequence[Candidate],
    use_probe: bool,
    folder: RunFolder,
    progress: Progress,
) -> tuple[Finalist, Ensemble]:
    """Retrain the candidates by k-fold; the best fold mean wins, and its folds are the model.

    Args:
        material: What the run works on.
        candidates: At least one.
        use_probe: Whether linear heads begin as probes.
        folder: Gets `folds/` and `model.pt`.
        progress: Is told each fold.
    """
    n_folds = material.space.folds
    progress.begin("folds", n_folds * len(candidates), "folds")
    finalists = []
    for place, candidate in enumerate(candidates):
        folds = _retrain(material, candidate, use_probe, folder, progress, place * n_folds)
        finalists.append(Finalist(candidate, folds))
        mean, std = finalists[-1].mean, finalists[-1].std
        progress.say(f"{candidate.name}: {mean:.4f} ± {std:.4f} over {n_folds} folds")
    winner = max(finalists, key=lambda finalist: finalist.mean)
    _write_folds(material, finalists, winner, folder)
    weights = [fold.weights for fold in winner.folds]
    ensemble = build_ensemble(material, winner.candidate.recipe, weights)
    ensemble.save(folder.path / "model.pt")
    return winner, ensemble


def _retrain(
    material: Material,
    candidate: Candidate,
    use_probe: bool,
    folder: RunFolder,
    progress: Progress,
    n_before: int,
) -> list[Fold]:
    """Train a candidate's folds, but for those that an earlier session finished."""
    n_folds, recipe = material.space.folds, candidate.recipe
    rows = material.rows("train", "val")
    share = folder.summary["gpu_shares"][recipe.config.backbone]
    store = FoldStore(folder.path / "folds" / "state", candidate.name, recipe)
    before = store.load(n_folds)
    n_done = n_before + len(before)
    progress.advance(n_done)

    def on_fold(index: int, fold: Fold) -> None:
        nonlocal n_done
        n_done += 1
        store.save(index, fold)
        progress.advance(n_done)
        progress.say(f"{candidate.name}, fold {index + 1} of {n_folds}: {fold.accuracy:.4f}")

    resources = {"num_cpus": CPUS_A_TRIAL, "num_gpus": share}
    return retrain(material.bench, recipe, rows, n_folds, use_probe, resources, on_fold, before)


def read_recipe(trial: FrozenTrial, space: Space, run_folder: Path) -> Recipe:
    """Return what a trial found: its configuration, its best epoch, its learning rates."""
    config = settled(trial_params(trial, space))
    epochs = best_epoch(trial)
    if config.scheduler != "plateau":
        return Recipe(config, epochs, None)
    curve = run_folder / "trials" / str(trial.number) / "progress.csv"
    with curve.open(newline="", encoding="utf-8") as file:
        lrs = {int(row["epoch"]): float(row["lr"]) for row in csv.DictReader(file)}
    return Recipe(config, epochs, tuple(lrs[epoch] for epoch in range(1, epochs + 1)))


def save_best_trial(material: Material, study: optuna.Study, folder: RunFolder) -> None:
    """Make the best full-length trial the model, for a search that ends before the folds."""
    for trial in ranked_trials(study):
        weights = folder.path / "trials" / str(trial.number) / BEST_WEIGHTS
        if trial.state == TrialState.COMPLETE and weights.is_file():
            recipe = read_recipe(trial, material.space, folder.path)
            member = torch.load(weights, weights_only=True)
            build_ensemble(material, recipe, [member]).save(folder.path / "model.pt")
            _note_best(folder, Candidate(trial.number, recipe, best_value(trial)))
            return


def build_ensemble(
    material: Material, recipe: Recipe, members: Sequence[dict[str, torch.Tensor]]
) -> Ensemble:
    """Put members over the frozen stages that they were trained on."""
    space, config = material.space, recipe.config
    card = ModelCard(
        backbone=config.backbone,
        classes=material.listing.classes,
        image_size=space.image_size,
        packed_size=space.packed_size,
        freeze_depth=config.freeze_depth,
        hidden_units=config.hidden_units,
        n_members=len(members),
    )
    backbone = fresh_backbone(
        material.bench, config.backbone, config.freeze_depth, torch.device("cpu")
    )
    prefix = backbone.stages[: config.freeze_depth].state_dict()
    return Ensemble(card, prefix, members)


def _write_folds(
    material: Material, finalists: Sequence[Finalist], winner: Finalist, folder: RunFolder
) -> None:
    """Write `folds.csv`, `oof_predictions.csv` and the summary's sections."""
    folder.path.joinpath("folds").mkdir(exist_ok=True)
    with (folder.path / "folds" / "folds.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "fold", "accuracy", "n", "seconds"])
        for finalist in finalists:
            number = finalist.candidate.number
            for index, fold in enumerate(finalist.folds):
                row = ["probe" if number is None else number, index + 1, fold.accuracy]
                writer.writerow([*row, len(fold.held_out), round(fold.seconds, 3)])
    rows, logits = out_of_fold(winner.folds)
    write_predictions(
        folder.path / "folds" / "oof_predictions.csv",
        material.names(rows),
        material.bench.labels[rows],
        torch.softmax(torch.from_numpy(logits), 1).numpy(),
        material.listing.classes,
    )
    _note_best(folder, winner.candidate)
    folder.note(
        "kfold",
        {
            "folds": len(winner.folds),
            "accuracy_mean": winner.mean,
            "accuracy_std": winner.std,
            "gap": winner.candidate.search_accuracy - winner.mean,
            "finalists": [
                {
                    "trial": finalist.candidate.number,
                    "name": finalist.candidate.name,
                    "search_accuracy": finalist.candidate.search_accuracy,
                    "accuracy_mean": finalist.mean,
                    "accuracy_std": finalist.std,
                }
                for finalist in finalists
            ],
        },
    )


def _note_best(folder: RunFolder, candidate: Candidate) -> None:
    folder.note(
        "best",
        {
            "trial": candidate.number,
            "name": candidate.name,
            "config": asdict(candidate.recipe.config),
            "val_accuracy": candidate.search_accuracy,
            "epoch": candidate.recipe.epochs,
        },
    )
