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
from search.progress import Progress, describe
from search.study import best_epoch, best_value, ranked_trials, trial_params
from search.trials import CPUS_A_TRIAL
from spaces.base import Space
from trainables.model import Ensemble, ModelCard
from trainables.trial import fresh_backbone, settled


@dataclass(frozen=True)
class Finalist:
    """A trial that was retrained by k-fold."""

    number: int
    recipe: Recipe
    search_accuracy: float
    folds: list[Fold]

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(np.mean([fold.accuracy for fold in self.folds]))

    @property
    def std(self) -> float:
        """Standard deviation (n - 1) of the folds' accuracies."""
        return float(np.std([fold.accuracy for fold in self.folds], ddof=1))


def retrain_finalists(
    material: Material,
    candidates: Sequence[FrozenTrial],
    use_probe: bool,
    folder: RunFolder,
    progress: Progress,
) -> tuple[Finalist, Ensemble]:
    """Retrain the candidates by k-fold; the best fold mean wins, and its folds are the model.

    Args:
        material: What the run works on.
        candidates: Trials, best first; at least one.
        use_probe: Whether linear heads begin as probes.
        folder: Gets `folds/` and `model.pt`.
        progress: Is told each fold.
    """
    space, rows = material.space, material.rows("train", "val")
    total = space.folds * len(candidates)
    progress.begin("folds", total, "folds")
    finalists: list[Finalist] = []
    for place, trial in enumerate(candidates):
        recipe = read_recipe(trial, space, folder.path)
        done = place * space.folds
        progress.say(f"trial {trial.number}, {recipe.epochs} epochs: {describe(trial.params)}")

        store = FoldStore(folder.path / "folds" / "state", trial.number, recipe)
        before = store.load(space.folds)
        done += len(before)
        progress.advance(done, total)

        def on_fold(index: int, fold: Fold, store: FoldStore = store) -> None:
            nonlocal done
            done += 1
            store.save(index, fold)
            progress.advance(done, total)
            progress.say(f"fold {index + 1} of {space.folds}: {fold.accuracy:.4f}")

        share = folder.summary["gpu_shares"][recipe.config.backbone]
        resources = {"num_cpus": CPUS_A_TRIAL, "num_gpus": share}
        folds = retrain(
            material.bench, recipe, rows, space.folds, use_probe, resources, on_fold, before
        )
        accuracy = best_value(trial)
        finalists.append(Finalist(trial.number, recipe, accuracy, folds))
    winner = max(finalists, key=lambda finalist: finalist.mean)
    _write_folds(material, finalists, winner, folder)
    ensemble = build_ensemble(material, winner.recipe, [fold.weights for fold in winner.folds])
    ensemble.save(folder.path / "model.pt")
    return winner, ensemble


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
            _note_best(folder, trial.number, recipe, best_value(trial))
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


def choose_candidates(ranked: Sequence[FrozenTrial], n: int) -> list[FrozenTrial]:
    """Return the first n ranked trials whose configurations differ."""
    chosen: list[FrozenTrial] = []
    for trial in ranked:
        if all(trial.params != other.params for other in chosen):
            chosen.append(trial)
    return chosen[:n]


def _write_folds(
    material: Material, finalists: Sequence[Finalist], winner: Finalist, folder: RunFolder
) -> None:
    """Write `folds.csv`, `oof_predictions.csv` and the summary's sections."""
    folder.path.joinpath("folds").mkdir(exist_ok=True)
    with (folder.path / "folds" / "folds.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "fold", "accuracy", "n", "seconds"])
        for finalist in finalists:
            for index, fold in enumerate(finalist.folds):
                row = [finalist.number, index + 1, fold.accuracy, len(fold.held_out)]
                writer.writerow([*row, round(fold.seconds, 3)])
    rows, logits = out_of_fold(winner.folds)
    write_predictions(
        folder.path / "folds" / "oof_predictions.csv",
        material.names(rows),
        material.bench.labels[rows],
        torch.softmax(torch.from_numpy(logits), 1).numpy(),
        material.listing.classes,
    )
    _note_best(folder, winner.number, winner.recipe, winner.search_accuracy)
    folder.note(
        "kfold",
        {
            "folds": len(winner.folds),
            "accuracy_mean": winner.mean,
            "accuracy_std": winner.std,
            "gap": winner.search_accuracy - winner.mean,
            "finalists": [
                {
                    "trial": finalist.number,
                    "search_accuracy": finalist.search_accuracy,
                    "accuracy_mean": finalist.mean,
                    "accuracy_std": finalist.std,
                }
                for finalist in finalists
            ],
        },
    )


def _note_best(folder: RunFolder, number: int, recipe: Recipe, val_accuracy: float) -> None:
    folder.note(
        "best",
        {
            "trial": number,
            "config": asdict(recipe.config),
            "val_accuracy": val_accuracy,
            "epoch": recipe.epochs,
        },
    )
