"""The feature cache in a Ray session: built by tasks, read as a trial reads it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import ray
import torch

from search.cluster.feature_cache_client import FeatureCacheClient, start_feature_cache
from search.cluster.feature_cache_plan import FeatureCachePlan
from search.cluster.shared_file import StoredObject
from trainables.feature_cache import as_features, build_view
from trainables.worker import FeatureContext, build_block, folded_backbone

N_IMAGES, SIDE, N_VIEWS = 150, 32, 8
ROWS = np.arange(0, N_IMAGES, 2)
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def context(ray_session: None) -> FeatureContext:
    """Noise, and a backbone that starts from scratch."""
    table = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIDE, SIDE, 3), np.uint8)
    return FeatureContext(StoredObject.put(table), SIDE, flip=False, weights={}, seed=0)


def start(context: FeatureContext, n_images: int = len(ROWS)) -> FeatureCacheClient:
    view_bytes = {"tinynet": (10**6,) * 5}
    rows = ROWS if n_images == len(ROWS) else np.arange(n_images)
    return start_feature_cache(
        FeatureCachePlan(ray.put(context), 0, rows, N_VIEWS, 3, view_bytes, 10**8, 0.0)
    )


def test_views_are_those_that_a_worker_computes(
    context: FeatureContext, caplog: pytest.LogCaptureFixture
) -> None:
    client = start(context)
    progress: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, "search.cluster.feature_cache_client"):
        client.build({"tinynet": (4, 5)}, 3, lambda *counts: progress.append(counts))
    assert progress == [(n, 6) for n in range(7)], "two blocks of three views"
    assert "built 3 views of tinynet at stage outputs [4, 5]" in caplog.text
    cache = client.get_views("tinynet", 5, 0.0)
    assert cache is not None
    assert len(cache.views) == 1
    (bits,) = build_block(context, "tinynet", ROWS, 0, N_VIEWS, (5,), seed=0)
    clean = as_features(bits).float()
    # Untrained, so all images have similar features: errors are measured by their differences.
    error = (cache.clean(torch.from_numpy(ROWS)).float() - clean).norm()
    assert error < 0.1 * (clean - clean.mean(0)).norm()
    stronger = client.get_views("tinynet", 5, 0.08)
    assert stronger is not None
    assert len(stronger.views) == 3
    magnitude, seed = (2 / 7) ** 2, 2 * 1_000_003
    backbone = folded_backbone(context, "tinynet", CPU)
    first = torch.from_numpy(context.table.open()[ROWS[: len(stronger.views[2][0])]])
    built = build_view(backbone, first, SIDE, magnitude, False, (5,), seed, CPU)[5]
    error = (stronger.views[2][0].float() - as_features(built).float()).norm()
    assert error < 0.1 * (as_features(built).float() - clean[: len(first)]).norm()
    assert client.get_views("tinynet", 3, 0.0) is None, "computed by the first trial itself"
    caplog.clear()
    client.log_lost_blocks()
    assert caplog.text == ""
    ray.kill(client.actor)


def test_a_block_that_cannot_be_built_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    broken = FeatureContext(StoredObject.put(np.zeros(3)), SIDE, flip=False, weights={}, seed=0)
    client = start(broken)
    client.build({"tinynet": (5,)}, 1, lambda *counts: None)
    assert "a block of features could not be built" in caplog.text
    assert "IndexError" in caplog.text
    ray.kill(client.actor)


def test_an_actor_that_crashed_is_restarted_also_with_many_images(
    context: FeatureContext, capfd: pytest.CaptureFixture[str]
) -> None:
    client = start(context, n_images=20_000)
    ray.kill(client.actor, no_restart=False)
    assert ray.get(client.actor.sizes_bytes.remote(), timeout=60) == {}
    assert client.sizes_bytes() == {}
    ray.kill(client.actor)
    assert "arguments in the object store" not in capfd.readouterr().err
