"""The model of a search that ends before the folds; whole runs are in test_run.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution
from ray.tune.search import Searcher

from search.pipeline.model_file import build_ensemble, save_best_trial
from search.pipeline.prepare import PreparedData
from search.pipeline.request import parse_request
from search.runs.run_folder import BEST_WEIGHTS, MODEL, RunFolder
from search.tuning.checkpoints import CheckpointStore
from search.tuning.searcher import StudySearcher
from search.tuning.study import open_storage, open_study
from spaces.base import Space, TrialConfig
from spaces.sources import folder as images_in_folders
from tests.fixtures.prepared_data import prepared_data
from trainables import trial as trial_module
from trainables.levels import Levels
from trainables.models.classifier import Weights
from trainables.models.model import load_model, save_model
from trainables.pretrained.weights import PACKAGED, load_weights
from trainables.trial import ImageTrial

N_IMAGES = 12
SPACE = Space(
    source=images_in_folders(),
    params={"backbone": "cnn", "freeze_depth": 4, "lr": FloatDistribution(1e-3, 1e-2, log=True)},
    image_size=32,
    epochs=1,
)


@dataclass(frozen=True, eq=False)
class InMemoryWeights:
    """Shared weights of this process."""

    weights: Weights

    def open(self) -> Weights:
        return self.weights


@pytest.fixture
def prepared() -> PreparedData:
    pixels = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 36, 36, 3), np.uint8)
    labels = [i % 2 for i in range(N_IMAGES)]
    return prepared_data(SPACE, pixels, labels, ("even", "odd"), ["train"] * 8 + ["val"] * 4)


@pytest.fixture
def run(tmp_path: Path, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The folder of a run whose two trials have ended; each runs in this process."""
    monkeypatch.setattr(trial_module, "configure_cpu", lambda n_threads: None)
    folder = RunFolder.create(tmp_path, "run")
    space_file = tmp_path / "space.py"
    space_file.write_text("SPACE = None")
    folder.write_origin(parse_request(["--space", str(space_file)]))
    run_id = folder.environment.run_id
    store = CheckpointStore(folder.path / "trials", 2, {}, run_id)
    context = replace(prepared.training_context({}, None), run_id=run_id)
    searcher = StudySearcher(open_storage(folder.path), SPACE, 2, "random", 0)
    for name in ("a", "b"):
        config = searcher.suggest(name)
        assert config != Searcher.FINISHED
        trial = ImageTrial.__new__(ImageTrial)  # as an actor, without Tune's folders
        trial.setup(config, context, np.arange(8), np.arange(8, 12), store)
        result = trial.step()
        assert result["done"], result
        searcher.on_trial_result(name, result)
        searcher.on_trial_complete(name, result)
    return folder


def test_the_card_has_the_licence_of_pretrained_weights(prepared: PreparedData) -> None:
    config = TrialConfig(backbone="tinynet", freeze_depth=5)
    head = {"head.1.weight": torch.zeros(2, 128), "head.1.bias": torch.zeros(2)}
    assert build_ensemble(prepared, config, [head]).card.licence == ""
    weights = {"tinynet": InMemoryWeights(load_weights(PACKAGED["tinynet"]))}
    pretrained = replace(prepared, features=replace(prepared.features, weights=weights))
    assert build_ensemble(pretrained, config, [head]).card.licence == "apache-2.0"


def test_the_card_has_the_levels_of_the_images(prepared: PreparedData, tmp_path: Path) -> None:
    levels = Levels(integers=(0, 4095))
    deep = replace(prepared, images=replace(prepared.images, levels=levels))
    config = TrialConfig(backbone="tinynet", freeze_depth=5)
    head = {"head.1.weight": torch.zeros(2, 128), "head.1.bias": torch.zeros(2)}
    save_model(build_ensemble(deep, config, [head]), tmp_path / "model.pt")
    assert load_model(tmp_path / "model.pt").card.levels == levels


def test_the_best_trial_is_the_model(run: RunFolder, prepared: PreparedData) -> None:
    study = open_study(open_storage(run.path))
    save_best_trial(prepared, study, run)
    assert load_model(run.path / MODEL).card.backbone == "cnn"
    assert run.summary.best is not None
    best = run.summary.best.trial
    (run.path / MODEL).unlink()
    # The weights of another trial, or of another run, are not the best trial's.
    weights = [run.path / "trials" / str(number) / BEST_WEIGHTS for number in (0, 1)]
    weights[best].write_bytes(weights[1 - best].read_bytes())
    save_best_trial(prepared, study, run)
    assert (run.path / MODEL).is_file()
    assert run.summary.best.trial == 1 - best
    (run.path / MODEL).unlink()
    run.save_environment(replace(run.environment, run_id="another"))
    save_best_trial(prepared, study, run)
    assert not (run.path / MODEL).exists()
