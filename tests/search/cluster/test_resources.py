"""GPU fractions from a stand-in for the measurement, and trial slots from stand-ins for nodes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from search.cluster import resources
from search.cluster.nodes import Node
from search.cluster.resources import (
    GpuMemory,
    TrialSlots,
    gpu_fraction_for,
    heaviest_config,
    measure_gpu_fractions,
    slots_on,
)
from spaces.base import Space, TrialConfig
from spaces.sources import digits

GIB = 2**30
WITHOUT_PROBES: Any = SimpleNamespace(heads={})


def space(**params: object) -> Space:
    return Space(
        source=digits(),
        params={"backbone": CategoricalDistribution(["tinynet", "cnn"]), **params},  # type: ignore[dict-item]
        image_size=32,
    )


@pytest.mark.parametrize(
    ("peak_gib", "total_gib", "max_trials", "fraction"),
    [
        (1.0, 16, 8, 1 / 8),  # 1.74 GiB each: nine fit, eight are allowed
        (1.0, 16, 4, 1 / 4),
        (4.0, 16, 8, 1 / 3),  # 5.2 GiB each
        (7.0, 16, 8, 1.0),  # 8.6 GiB each: two do not fit
        (15.5, 16, 8, 1.0),  # more than the GPU has: it runs alone, and halves its batches
        (0.0, 80, 8, 1 / 8),
    ],
)
def test_a_gpu_fraction_is_one_over_the_trials_that_fit(
    peak_gib: float, total_gib: int, max_trials: int, fraction: float
) -> None:
    gpu_memory = GpuMemory(int(peak_gib * GIB), total_gib * GIB)
    assert gpu_fraction_for(gpu_memory, max_trials) == pytest.approx(fraction)


def test_memory_is_measured_with_most_stages_trained_and_the_largest_batch() -> None:
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


def a_node(cpus: float, gpus: float = 0, kind: str = "") -> Node:
    return Node("10.0.0.1", cpus, gpus, kind, 0)


def stand_in(monkeypatch: pytest.MonkeyPatch, *alive: Node, possible: Sequence[Node] = ()) -> None:
    """Stand in for a cluster of these nodes."""
    monkeypatch.setattr(resources, "nodes", lambda: list(alive))
    monkeypatch.setattr(resources, "autoscaler_nodes", lambda: list(possible))


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, a_node(4))
    fractions = measure_gpu_fractions(space(), WITHOUT_PROBES, np.arange(4))
    assert fractions == {"tinynet": 0.0, "cnn": 0.0}


class Measure:
    """Stands in for the task that measures: by backbone and kind of GPU, GiB of the peak."""

    peaks: ClassVar[dict[str, dict[str, float]]] = {}

    def __init__(self, kind: str = "") -> None:
        self._kind = kind

    @classmethod
    def options(cls, resources: dict[str, float]) -> Measure:
        return cls(next(iter(resources), "").removeprefix("accelerator_type:"))

    def remote(self, context: None, config: TrialConfig, rows: object) -> GpuMemory:
        total = {"": 24, "A10G": 24, "T4": 16}[self._kind]
        return GpuMemory(int(self.peaks[config.backbone][self._kind] * GIB), total * GIB)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "measure_gpu_memory", Measure)
    monkeypatch.setattr("ray.get", lambda value: value)


def test_each_backbone_has_a_fraction_of_its_own(
    measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Measure, "peaks", {"tinynet": {"": 1}, "cnn": {"": 7}})
    stand_in(monkeypatch, a_node(16, 2))
    fractions = measure_gpu_fractions(space(), WITHOUT_PROBES, np.arange(4))
    assert fractions == {"tinynet": pytest.approx(1 / 8), "cnn": pytest.approx(1 / 2)}
    stand_in(monkeypatch, a_node(4, 2))
    fractions = measure_gpu_fractions(space(), WITHOUT_PROBES, np.arange(4))
    assert fractions["tinynet"] == pytest.approx(1 / 2)  # no more trials than there are CPUs for


def test_of_several_kinds_of_gpu_the_one_with_fewest_trials_decides(
    measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {"tinynet": {"A10G": 2, "T4": 2}, "cnn": {"A10G": 6, "T4": 7}}
    monkeypatch.setattr(Measure, "peaks", peaks)
    stand_in(monkeypatch, a_node(32), a_node(16, 1, "A10G"), a_node(16, 1, "T4"))
    fractions = measure_gpu_fractions(space(), WITHOUT_PROBES, np.arange(4))
    assert fractions == {"tinynet": pytest.approx(1 / 5), "cnn": pytest.approx(1)}


@pytest.mark.parametrize(
    ("cpus", "gpu_fraction", "n"),
    [(1.0, 0.0, 3), (2.0, 0.0, 1), (1.0, 0.25, 3), (1.0, 0.5, 2), (4.0, 0.5, 0)],
)
def test_slots_on_a_node(cpus: float, gpu_fraction: float, n: int) -> None:
    assert slots_on(a_node(3, 1), cpus, gpu_fraction) == n
    assert slots_on(a_node(3), 1.0, 0.5) == 0, "no GPU, no slot for a trial that needs one"


def test_trial_slots_follow_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "SLOTS_VALID_SECONDS", -1.0)
    on_cpus, on_gpus = TrialSlots(1.0, [0.0, 0.0]), TrialSlots(1.0, [0.5, 0.25])
    stand_in(monkeypatch, a_node(2))
    assert (on_cpus(), on_gpus()) == (2, 1), "never none at all"
    stand_in(monkeypatch, a_node(2), a_node(8, 1))
    assert (on_cpus(), on_gpus()) == (10, 4), "a node without a GPU is not counted"
    stand_in(monkeypatch, a_node(2), possible=[a_node(8, 1), a_node(2, 1)])
    assert (on_cpus(), on_gpus()) == (12, 6), "nodes that the autoscaler may add count"
