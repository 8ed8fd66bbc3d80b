"""How many trials share a GPU, decided from a stand-in for the measurement."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from search import sharing
from search.sharing import (
    Footprint,
    gpu_share,
    heaviest_config,
    measure_shares,
    most_concurrent,
)
from spaces.base import Space
from spaces.sources import digits

GIB = 2**30


def space(**params: object) -> Space:
    return Space(
        source=digits(),
        params={"backbone": CategoricalDistribution(["tinynet", "cnn"]), **params},  # type: ignore[dict-item]
        image_size=32,
    )


@pytest.mark.parametrize(
    ("peak_gib", "total_gib", "most", "share"),
    [
        (1.0, 16, 8, 1 / 8),  # 1.74 GiB each: nine fit, eight are allowed
        (1.0, 16, 4, 1 / 4),
        (4.0, 16, 8, 1 / 3),  # 5.2 GiB each
        (7.0, 16, 8, 1.0),  # 8.6 GiB each: two do not fit
        (15.5, 16, 8, 1.0),  # more than there is: it runs alone, and halves its batches
        (0.0, 80, 8, 1 / 8),
    ],
)
def test_share_is_one_over_what_fits(
    peak_gib: float, total_gib: int, most: int, share: float
) -> None:
    footprint = Footprint(int(peak_gib * GIB), total_gib * GIB)
    assert gpu_share(footprint, most) == pytest.approx(share)


def test_measured_at_the_deepest_unfreezing_and_the_widest_batch() -> None:
    config = heaviest_config(
        space(
            freeze_depth=IntDistribution(2, 5),
            batch_size=CategoricalDistribution([16, 128, 64]),
            hidden_units=CategoricalDistribution([0, 512]),
        ),
        "tinynet",
    )
    assert (config.freeze_depth, config.batch_size, config.hidden_units) == (2, 128, 512)
    assert heaviest_config(space(), "tinynet").freeze_depth == 5
    assert heaviest_config(space(), "cnn").freeze_depth == 0  # it is never frozen


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing.ray, "cluster_resources", lambda: {"CPU": 4.0})
    shares = measure_shares(space(), None, np.arange(4))  # type: ignore[arg-type]
    assert shares == {"tinynet": 0.0, "cnn": 0.0}


def test_each_backbone_has_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"tinynet": 1 * GIB, "cnn": 7 * GIB}

    class Measure:
        @staticmethod
        def remote(bench: None, config: object, rows: object) -> Footprint:
            return Footprint(peaks[config.backbone], 24 * GIB)  # type: ignore[attr-defined]

    monkeypatch.setattr(sharing, "_measure", Measure)
    monkeypatch.setattr(sharing.ray, "get", lambda value: value)
    monkeypatch.setattr(sharing.ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    shares = measure_shares(space(), None, np.arange(4))  # type: ignore[arg-type]
    assert shares == {"tinynet": pytest.approx(1 / 8), "cnn": pytest.approx(1 / 2)}
    assert most_concurrent(1.0, list(shares.values())) == 16
    monkeypatch.setattr(sharing.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    shares = measure_shares(space(), None, np.arange(4))  # type: ignore[arg-type]
    assert shares["tinynet"] == pytest.approx(1 / 2)  # no more trials than there are CPUs for


@pytest.mark.parametrize(
    ("cpus", "shares", "n"),
    [(1.0, [0.0], 3), (2.0, [0.0], 1), (1.0, [0.5, 0.25], 3), (4.0, [0], 1)],
)
def test_most_concurrent(
    cpus: float, shares: list[float], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing.ray, "cluster_resources", lambda: {"CPU": 3.0, "GPU": 1.0})
    assert most_concurrent(cpus, shares) == n
