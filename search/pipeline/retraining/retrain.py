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

from search.console.progress import Progress
from search.pipeline.finalists import Candidate, read_recipe
from search.pipeline.prepare import Material
from search.pipeline.retraining.center_crop import LookedTwice, SecondLooks
from search.pipeline.retraining.kfold import Fold, FoldStore, Recipe, retrain
from search.pipeline.retraining.out_of_fold import fold_interval, learn_doubt, learn_from_folds
from search.reporting.evidence import FIRST
from search.runs.run_folder import RunFolder
from search.tuning.checkpoints import BEST_WEIGHTS
from search.tuning.study import best_value, ranked_trials
from search.tuning.tune import CPUS_A_TRIAL
from trainables.models.ensemble import Ensemble, ModelCard, Weights
from trainables.trial import fresh_backbone


@dataclass(frozen=True)
class Finalist:
    """A candidate that was retrained by k-fold."""

    candidate: Candidate
    trained: list[Fold]
    """What its members make of the pictures that they did not see, by themselves."""
    second: LookedTwice | None = None
    """What a second look makes of them; None where there is none."""

    @property
    def kept(self) -> LookedTwice | None:
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
    material: Material,
    candidates: Sequence[Candidate],
    use_probe: bool,
    folder: RunFolder,
    progress: Progress,
) -> Retrained:
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
    looks = SecondLooks(material, folder.summary["gpu_shares"])
    finalists = []
    for place, candidate in enumerate(candidates):
        folds = _retrain(material, candidate, use_probe, folder, progress, place * n_folds)
        backbone = candidate.recipe.config.backbone
        second = looks.look(backbone, folds) if looks.can_look(backbone) else None
        one = Finalist(candidate, folds, second)
        finalists.append(one)
        progress.say(
            f"{candidate.name}: {one.mean:.4f} ± {one.std:.4f} over {n_folds} folds"
            + (", with a second look" if one.kept else "")
        )
    winner = max(finalists, key=lambda finalist: finalist.mean)
    _write_folds(finalists, winner, folder)
    temperature = learn_from_folds(material, winner.folds, folder)
    ensemble = _as_model(material, winner, looks, temperature)
    ensemble.doubt = learn_doubt(winner.folds)
    ensemble.save(folder.path / "model.pt")
    first = next((one for one in finalists if one.candidate.number == FIRST), None)
    if first is None or first is winner:
        return Retrained(winner, ensemble, None)
    return Retrained(winner, ensemble, _as_model(material, first, looks, temperature=1.0))


def _as_model(
    material: Material, finalist: Finalist, looks: SecondLooks, temperature: float
) -> Ensemble:
    recipe, second = finalist.candidate.recipe, None
    if finalist.kept is not None:
        config = recipe.config
        second = looks.weights(config.backbone, config.freeze_depth, finalist.kept.heads)
    weights = [fold.weights for fold in finalist.folds]
    return build_ensemble(material, recipe, weights, temperature, second)


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
    material: Material,
    recipe: Recipe,
    members: Sequence[Weights],
    temperature: float = 1.0,
    second_look: Weights | None = None,
) -> Ensemble:
    """Put members over the frozen stages that they were trained on."""
    space, config = material.space, recipe.config
    card = ModelCard(
        backbone=config.backbone,
        classes=material.listing.classes,
        image_size=space.image_size,
        packed_size=space.packed_size,
        framing=space.framing,
        freeze_depth=config.freeze_depth,
        hidden_units=config.hidden_units,
        n_members=len(members),
        temperature=temperature,
        second_look=second_look is not None,
    )
    backbone = fresh_backbone(
        material.bench, config.backbone, config.freeze_depth, torch.device("cpu")
    )
    prefix = backbone.stages[: config.freeze_depth].state_dict()
    return Ensemble(card, prefix, members, second_look=second_look)


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
            "second_look": _describe_second(winner),
            "finalists": [
                {
                    "trial": finalist.candidate.number,
                    "name": finalist.candidate.name,
                    "search_accuracy": finalist.candidate.search_accuracy,
                    "accuracy_mean": finalist.mean,
                    "accuracy_std": finalist.std,
                    "second_look": finalist.kept is not None,
                }
                for finalist in finalists
            ],
        },
    )


def _describe_second(winner: Finalist) -> dict[str, Any] | None:
    """Return what the winner's second look does to pictures that its folds held out."""
    if winner.second is None:
        return None
    return {
        "kept": winner.kept is not None,
        "log_loss": winner.second.log_loss,
        "log_loss_without": winner.second.log_loss_once,
        "accuracy_mean": _mean_accuracy(winner.second.folds),
        "accuracy_mean_without": _mean_accuracy(winner.trained),
    }


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
