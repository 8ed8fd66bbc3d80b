"""Linear probes of cached features, fitted in a Ray session."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from search.cluster.feature_cache_client import start_feature_cache
from search.console.progress import Progress
from search.pipeline.backbones.candidates import share_weights
from search.pipeline.backbones.feature_cache import plan_feature_cache
from search.pipeline.backbones.probe import ProbeResult, probe_backbones
from search.runs.summary import ProbeScore
from tests.fixtures.channel_noise import FILES, candidates, prepare


def probed(changed: str | None, known: Mapping[str, ProbeScore] | None = None) -> ProbeResult:
    prepared = share_weights(prepare(changed), FILES, ["tinynet"])
    costs = candidates(tinynet=1.0)
    plan = plan_feature_cache(prepared, costs)
    cache = start_feature_cache(plan)
    ranked = ProbeResult(known or {}, {})
    return probe_backbones(prepared, plan, cache, costs, ranked, None, Progress(quiet=True))


@pytest.mark.usefixtures("ray_session")
def test_a_probes_head_depends_on_training_images_alone() -> None:
    """Trials begin with it, and are compared on the validation images."""
    first = probed(None)
    head, score = first.heads["tinynet"], first.scores["tinynet"]
    assert score.accuracy > 0.6
    assert (score.latency_ms, score.excluded) == (1.0, None)
    for name in ("val", "test", "train"):
        other = probed(name)
        is_equal = torch.equal(other.heads["tinynet"]["weight"], head["weight"])
        assert is_equal is (name != "train"), name
        if name == "test":
            assert other.scores["tinynet"].accuracy == score.accuracy


@pytest.mark.usefixtures("ray_session")
def test_known_scores_are_kept_and_only_heads_are_fitted() -> None:
    prepared = share_weights(prepare(None), FILES, ["tinynet"])
    costs = candidates(tinynet=1.0)
    known = probed(None)
    left = {"cnn": ProbeScore(excluded="slow")}
    recorded = ProbeResult({"tinynet": known.scores["tinynet"], **left}, {})
    plan = plan_feature_cache(prepared, costs)
    again = probe_backbones(
        prepared, plan, start_feature_cache(plan), costs, recorded, None, Progress(quiet=True)
    )
    assert again.scores == recorded.scores
    assert list(again.scores) == list(probed(None, left).scores) == ["tinynet", "cnn"]
    assert torch.equal(again.heads["tinynet"]["weight"], known.heads["tinynet"]["weight"])
