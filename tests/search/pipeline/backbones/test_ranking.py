"""Rankings of several backbones, in a Ray session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution

from search.cluster.feature_cache_client import start_feature_cache
from search.console.progress import Progress
from search.pipeline.backbones import ranking
from search.pipeline.backbones.candidates import Candidate, share_weights
from search.pipeline.backbones.feature_cache import plan_feature_cache
from search.pipeline.backbones.probe import ProbeResult, probe_backbones
from search.pipeline.backbones.ranking import (
    MIN_RANKING_IMAGES,
    choose_rows,
    is_worth_ranking,
    rank_backbones,
)
from spaces.base import Space
from spaces.sources import folder
from tests.fixtures.channel_noise import CLASSES, FILES, SIDE, SPACE, SPLITS, candidates, prepare
from tests.fixtures.prepared_data import prepared_data


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of tinynet, and of two networks that have learned nothing."""
    folder_of_weights = tmp_path_factory.mktemp("weights")
    files = {**FILES}
    for name in ("squeezenet1_1", "shufflenet_v2_x0_5"):
        files[name] = folder_of_weights / f"{name}.pth"
        net = {k: torch.zeros_like(v) for k, v in torchvision_state(name).items()}
        torch.save(net, files[name])
    return files


def torchvision_state(name: str) -> dict[str, torch.Tensor]:
    from torchvision.models import get_model

    state: dict[str, torch.Tensor] = get_model(name, weights=None).state_dict()
    return state


SPACE_OF_THREE = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(["squeezenet1_1", "tinynet", "shufflenet_v2_x0_5"]),
        "freeze_depth": 5,
    },
    image_size=SIDE,
    resize_size=SIDE,
    views=1,
)


@pytest.mark.usefixtures("ray_session")
def test_a_ranking_excludes_what_has_learned_nothing(
    three: dict[str, Path], tmp_path: Path
) -> None:
    prepared = prepare(None, SPACE_OF_THREE)
    costs = candidates(squeezenet1_1=2.0, tinynet=3.0, shufflenet_v2_x0_5=4.0)
    model = tmp_path / "model.pt"
    ranked = rank_backbones(prepared, costs, three, None, model, Progress(quiet=True))
    assert next(iter(ranked.scores)) == "tinynet"
    assert ranked.scores["tinynet"].excluded is None
    for name in ("squeezenet1_1", "shufflenet_v2_x0_5"):
        score = ranked.scores[name]
        assert "points behind tinynet" in str(score.excluded)
        assert score.behind > 2 * score.behind_se > 0
    assert list(ranked.heads) == ["tinynet"]
    assert model.is_file()
    # The head is the one that the feature cache gives, so a resumed run begins as the first did.
    kept = share_weights(prepare(None), three, ["tinynet"])
    plan = plan_feature_cache(kept, costs)
    cache, known = start_feature_cache(plan), ProbeResult(ranked.scores, {})
    again = probe_backbones(kept, plan, cache, costs, known, None, Progress(quiet=True))
    assert torch.equal(ranked.heads["tinynet"]["weight"], again.heads["tinynet"]["weight"])


@pytest.mark.usefixtures("ray_session")
def test_what_the_time_is_too_short_for_is_not_probed(three: dict[str, Path]) -> None:
    prepared = prepare(None, SPACE_OF_THREE)
    costs = candidates(squeezenet1_1=2.0, tinynet=1.0, shufflenet_v2_x0_5=1e9)
    ranked = rank_backbones(prepared, costs, three, 60.0, None, Progress(quiet=True))
    assert list(ranked.scores) == ["tinynet", "squeezenet1_1", "shufflenet_v2_x0_5"]
    last = ranked.scores["shufflenet_v2_x0_5"]
    assert str(last.excluded).startswith("its features would take ")
    assert np.isnan(last.accuracy)
    assert ranked.scores["squeezenet1_1"].accuracy > 0


def test_backbones_are_ranked_on_training_and_validation_images() -> None:
    prepared = prepare(None)
    rows = choose_rows(prepared, 0.5, None)
    assert rows.tolist() == np.flatnonzero(SPLITS != "test").tolist()


@pytest.mark.parametrize(("seconds", "n"), [(None, 6000), (600.0, 3000), (1.0, MIN_RANKING_IMAGES)])
def test_large_sets_are_ranked_on_as_many_images_as_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, n: int
) -> None:
    monkeypatch.setattr("search.pipeline.backbones.ranking.MAX_IMAGES", 6000)
    labels = np.arange(9000) % 3
    splits = np.where(np.arange(9000) % 10 == 0, "test", "train")
    pixels = np.zeros((9000, 1, 1, 3), np.uint8)
    prepared = prepared_data(SPACE, pixels, labels.tolist(), CLASSES, splits.tolist())
    rows = choose_rows(prepared, 0.2, seconds)
    assert len(rows) == pytest.approx(n, abs=3)
    assert (splits[rows] == "train").all()
    assert np.bincount(labels[rows]).tolist() == pytest.approx([n / 3] * 3, abs=2)


@pytest.mark.parametrize(
    ("probed", "is_one_node", "milliseconds", "expected"),
    [
        (["tinynet", "squeezenet1_0"], False, 1e9, True),
        (["tinynet"], True, 100.0, True),
        (["tinynet"], True, 1000.0, False),  # 78 images
        (["tinynet"], False, 100.0, False),
        ([], True, 1.0, False),
    ],
)
def test_a_single_backbone_is_probed_at_once_if_its_features_take_little_time(
    monkeypatch: pytest.MonkeyPatch,
    probed: list[str],
    is_one_node: bool,
    milliseconds: float,
    expected: bool,
) -> None:
    monkeypatch.setattr(ranking, "is_one_cpu_node", lambda: is_one_node)
    costs = candidates(tinynet=milliseconds, squeezenet1_0=milliseconds)
    assert is_worth_ranking(prepare(None), costs, probed) == expected


def test_a_single_backbone_whose_estimate_was_disturbed_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is estimated while workers start."""
    monkeypatch.setattr(ranking, "is_one_cpu_node", lambda: True)
    costs = {"tinynet": replace(candidates(tinynet=4.0)["tinynet"], estimated_ms=600.0)}
    assert is_worth_ranking(prepare(None), costs, ["tinynet"])


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("device", "budget", "expected"),
    [("cuda", 60.0, 0.02), ("cuda", None, 0.2), ("cpu", 60.0, 0.2)],
)
def test_what_a_gpu_has_time_for_is_not_estimated_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, device: str, budget: float | None, expected: float
) -> None:
    class ChosenError(Exception):
        pass

    def choose(_prepared: object, image_seconds: float, _seconds: object) -> None:
        assert image_seconds == pytest.approx(expected)
        raise ChosenError

    monkeypatch.setattr(ranking, "training_device", lambda: torch.device(device))
    monkeypatch.setattr(ranking, "choose_rows", choose)
    costs = {
        name: Candidate((64,) * 5, lambda _: 10.0, estimated_ms=100.0)
        for name in ("tinynet", "squeezenet1_1")
    }
    files = dict.fromkeys(costs, Path("weights.pth"))
    with pytest.raises(ChosenError):
        rank_backbones(
            prepare(None, SPACE_OF_THREE.without_backbones(["shufflenet_v2_x0_5"])),
            costs,
            files,
            budget,
            None,
            Progress(quiet=True),
        )
