"""Check the backbones of a run before it decodes images: weights, image size, memory.

One network is in memory at once, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import ray
import torch

from search.cluster.nodes import on_driver_node
from search.cluster.shared_file import StoredObject
from search.pipeline.preflight import RunPlan
from search.pipeline.prepare import PreparedData
from search.pipeline.request import RequestError
from search.runs.summary import ProbeScore
from spaces.base import Space
from spaces.rules import is_own_network
from trainables.compute import inference_batch_size, mixed_precision
from trainables.feature_cache import bytes_per_image
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.latency import measure_latency
from trainables.models.own_networks import register_module
from trainables.pretrained.weights import WeightsError, load_weights
from trainables.worker import training_device

_PASSES_OF_ESTIMATE = 2


@dataclass(frozen=True)
class Candidate:
    """What a backbone costs.

    The latencies are measured when they are first read, which takes a second or so: read them
    while nothing else computes.

    Attributes:
        image_bytes: Bytes of the cached features of one image at stage outputs 1 to 5.
        measure: Returns the milliseconds of one image on this machine: in a batch of one, or, for
            True, in batches as predictions have them.
        estimated_ms: Milliseconds that the features of one image take, roughly and on the CPU: it
            tells which backbone is the fastest, though other programs may have disturbed it.
        is_trunk: Whether the backbone cannot be cut into stages.
    """

    image_bytes: tuple[int, ...]
    measure: Callable[[bool], float]
    estimated_ms: float
    is_trunk: bool = False

    @cached_property
    def latency_ms(self) -> float:
        """Milliseconds of one image on this machine, in a batch of one."""
        return self.measure(False)

    @cached_property
    def batch_latency_ms(self) -> float:
        """Milliseconds of one image in batches as predictions have them."""
        return self.measure(True)


def check_candidates(run_plan: RunPlan) -> dict[str, Candidate]:
    """Check that weights and images' size fit each backbone, and learn what it costs.

    Raises:
        WeightsError: weights cannot be read, or do not fit.
        RequestError: a backbone cannot take images of the space's size.
    """
    found = {}
    for name in run_plan.backbones:
        path, size = run_plan.weights.get(name), run_plan.space.image_size
        try:
            weights = None if path is None else load_weights(path)
            backbone = create_backbone(name, weights, image_size=size)
            sizes = bytes_per_image(backbone, size)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        except ValueError as error:
            raise RequestError(f"{name}: {error}") from None
        found[name] = Candidate(
            sizes,
            partial(_measure, name, size, run_plan.modules),
            _estimate(backbone, size),
            is_trunk=backbone.is_trunk,
        )
    return found


def _estimate(backbone: Backbone, image_size: int) -> float:
    """Measure roughly what the features of one image take on the CPU, in milliseconds."""
    device = torch.device("cpu")
    return measure_latency(
        backbone, image_size, device, passes=_PASSES_OF_ESTIMATE, precision=mixed_precision
    )


def _measure(name: str, image_size: int, modules: Mapping[str, str], is_in_batches: bool) -> float:
    """Measure a backbone's latency, with random weights, on the device of this machine."""
    if training_device().type != "cuda":
        return _measure_here(name, image_size, is_in_batches)
    # Not in this process, whose context would take GPU memory.
    task = _measure_on_gpu.options(scheduling_strategy=on_driver_node())
    latency: float = ray.get(task.remote(name, image_size, modules, is_in_batches))
    return latency


@ray.remote(num_gpus=0.5, max_retries=3)
def _measure_on_gpu(
    name: str, image_size: int, modules: Mapping[str, str], is_in_batches: bool
) -> float:
    """Measure a backbone's latency in a worker; see `FeatureContext.modules`."""
    for module, source in modules.items():
        register_module(module, source)
    return _measure_here(name, image_size, is_in_batches)


def _measure_here(name: str, image_size: int, is_in_batches: bool) -> float:
    device = training_device()
    backbone = create_backbone(name, image_size=image_size)
    n = inference_batch_size(device, image_size) if is_in_batches else 1
    return measure_latency(backbone, image_size, device, n)


def find_slow(
    candidates: Mapping[str, Candidate], max_latency_ms: float | None
) -> dict[str, ProbeScore]:
    """Return the backbones that are slower than `--max-latency`, with the reason.

    Args:
        candidates: By backbone.
        max_latency_ms: Milliseconds an image may take; None is any number.

    Raises:
        RequestError: all are slower.
    """
    if max_latency_ms is None:
        return {}
    latencies = {name: candidate.latency_ms for name, candidate in candidates.items()}
    slow = {
        name: ProbeScore(
            latency_ms=latency,
            excluded=f"{latency:.1f} ms an image, above --max-latency {max_latency_ms:g}",
        )
        for name, latency in latencies.items()
        if latency > max_latency_ms
    }
    if len(slow) == len(candidates):
        fastest = min(latencies, key=latencies.__getitem__)
        raise RequestError(
            f"--max-latency {max_latency_ms:g} must be at least what a backbone takes for an image"
            f" on this machine, and the fastest, {fastest}, takes"
            f" {latencies[fastest]:.1f} ms: raise it, add a faster backbone with"
            " --backbones, or set a smaller image_size in the space"
        )
    return slow


def pretrained_backbones(space: Space, files: Mapping[str, Path]) -> list[str]:
    """Return the backbones of a space that have a file of weights, or bring weights of their own.

    The latter are functions of the user's, unless the space trains from scratch.
    """
    is_pretrained = space.weights == "pretrained"
    return [
        name
        for name in space.backbones
        if name in files or (is_pretrained and is_own_network(name))
    ]


def share_weights(
    prepared: PreparedData, files: Mapping[str, Path], names: Iterable[str]
) -> PreparedData:
    """Return the data with the weights of these backbones, and no others, for all workers.

    Args:
        prepared: Images.
        files: By backbone, the file of its pretrained weights.
        names: Backbones; those without a file start from scratch, but for networks of the user's
            own, which bring their weights.
    """
    names = tuple(names)
    weights = {name: StoredObject.put(load_weights(files[name])) for name in names if name in files}
    for name in pretrained_backbones(prepared.space, files):
        if name in names and name not in files:
            backbone = create_backbone(name, image_size=prepared.space.image_size)
            weights[name] = StoredObject.put(dict(backbone.stages.state_dict()))
    return replace(prepared, features=replace(prepared.features, weights=weights))
