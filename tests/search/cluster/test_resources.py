"""How many trials share a GPU, decided from a stand-in for the measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

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
    places,
)
from spaces.base import Space, TrialConfig
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
    gpu_memory = GpuMemory(int(peak_gib * GIB), total_gib * GIB)
    assert gpu_fraction_for(gpu_memory, most) == pytest.approx(share)


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


def machine(cpus: float, gpus: float = 0, kind: str = "") -> Node:
    return Node("10.0.0.1", cpus, gpus, kind, 0)


def these(monkeypatch: pytest.MonkeyPatch, *there: Node, to_come: Sequence[Node] = ()) -> None:
    """Stand in for a cluster of these machines."""
    monkeypatch.setattr(resources, "machines", lambda: list(there))
    monkeypatch.setattr(resources, "autoscaler_nodes", lambda: list(to_come))


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    these(monkeypatch, machine(4))
    shares = measure_gpu_fractions(space(), None, np.arange(4))  # type: ignore[arg-type]
    assert shares == {"tinynet": 0.0, "cnn": 0.0}


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
    monkeypatch.setattr(resources, "_measure", Measure)
    monkeypatch.setattr(resources.ray, "get", lambda value: value)


def test_each_backbone_has_its_own_share(measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measure, "peaks", {"tinynet": {"": 1}, "cnn": {"": 7}})
    these(monkeypatch, machine(16, 2))
    shares = measure_gpu_fractions(space(), None, np.arange(4))  # type: ignore[arg-type]
    assert shares == {"tinynet": pytest.approx(1 / 8), "cnn": pytest.approx(1 / 2)}
    these(monkeypatch, machine(4, 2))
    shares = measure_gpu_fractions(space(), None, np.arange(4))  # type: ignore[arg-type]
    assert shares["tinynet"] == pytest.approx(1 / 2)  # no more trials than there are CPUs for


def test_of_several_kinds_of_gpu_the_one_that_takes_fewest_decides(
    measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {"tinynet": {"A10G": 2, "T4": 2}, "cnn": {"A10G": 6, "T4": 7}}
    monkeypatch.setattr(Measure, "peaks", peaks)
    these(monkeypatch, machine(32), machine(16, 1, "A10G"), machine(16, 1, "T4"))
    shares = measure_gpu_fractions(space(), None, np.arange(4))  # type: ignore[arg-type]
    assert shares == {"tinynet": pytest.approx(1 / 5), "cnn": pytest.approx(1)}


@pytest.mark.parametrize(
    ("cpus", "share", "n"),
    [(1.0, 0.0, 3), (2.0, 0.0, 1), (1.0, 0.25, 3), (1.0, 0.5, 2), (4.0, 0.5, 0)],
)
def test_places_on_a_machine(cpus: float, share: float, n: int) -> None:
    assert places(machine(3, 1), cpus, share) == n
    assert places(machine(3), 1.0, 0.5) == 0, "no GPU, no place for a trial that asks for one"


def test_capacity_follows_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_SLOTS_VALID_SECONDS", -1.0)
    on_cpus, on_gpus = TrialSlots(1.0, [0.0, 0.0]), TrialSlots(1.0, [0.5, 0.25])
    these(monkeypatch, machine(2))
    assert (on_cpus(), on_gpus()) == (2, 1), "never none at all"
    these(monkeypatch, machine(2), machine(8, 1))
    assert (on_cpus(), on_gpus()) == (10, 4), "a machine without a GPU is not counted"
    these(monkeypatch, machine(2), to_come=[machine(8, 1), machine(2, 1)])
    assert (on_cpus(), on_gpus()) == (12, 6), "what the autoscaler may add is asked for"
