"""Simulated trials, and what they replace in Ray."""

import inspect

import ray
from ray.air.execution.resources.placement_group import PlacementGroupAcquiredResources
from ray.tune.execution import tune_controller

from benchmarks.harness.simulated_trials import (
    RECORDED,
    SimulatedContext,
    SimulatedTrial,
    curve_of,
    epoch_seconds,
)

CHANGED = "Ray has changed: adapt share_processes in benchmarks/harness/simulated_trials.py"


def test_ray_starts_and_ends_workers_as_shared_processes_expect() -> None:
    actor_class = ray.remote(SimulatedTrial)
    metadata = getattr(actor_class, "__ray_metadata__", None)
    assert issubclass(getattr(metadata, "modified_class", object), SimulatedTrial), CHANGED
    annotate = inspect.signature(PlacementGroupAcquiredResources.annotate_remote_entities)
    assert list(annotate.parameters) == ["self", "entities"], CHANGED
    manager = inspect.getsource(tune_controller.RayActorManager)
    for call in (
        ".annotate_remote_entities(",
        "__ray_ready__.remote()",
        "__ray_terminate__.remote()",
        "ray.kill(",
    ):
        assert call in manager, f"{CHANGED}: {call} is gone"


def test_an_epochs_seconds_depend_on_the_trials_number_alone() -> None:
    context = SimulatedContext(epochs=5, median_epoch_seconds=2.0, seed=3)
    seconds = [epoch_seconds(context, number) for number in range(200)]
    assert seconds == [epoch_seconds(context, number) for number in range(200)]
    assert min(seconds) >= 0.4
    assert max(seconds) <= 4.0
    assert 1.6 < sorted(seconds)[100] < 2.4, "the median is that of the context"
    assert epoch_seconds(SimulatedContext(5, median_epoch_seconds=0), 7) == 0


def test_a_trial_reports_a_curve_that_is_near_its_configuration() -> None:
    context = SimulatedContext(epochs=5, median_epoch_seconds=0)
    params = {"lr": 1e-3, "freeze_depth": 5}
    curves = {curve_of(context, number, params) for number in range(50)}
    assert 1 < len(curves) <= 8, f"of {RECORDED.name}, the eight nearest"
    assert curve_of(context, 4, params) == curve_of(context, 4, params)
    assert all(curve.freeze_depth >= 4 for curve in curves)
