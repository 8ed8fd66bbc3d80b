"""Estimate what follows the trials: cross-validation, evaluation, boards and report.

A time budget reserves these seconds, and the time left announces them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from spaces.base import Space
from trainables.models.linear_probe import uses_center_crop

FOLD_SECONDS = 1.0
"""Seconds of a fold besides its epochs: a worker, weights, the probe's head, predictions."""

FORWARD_FRACTION = 1 / 3
"""Seconds that a forward pass takes per image, over those of training the same stages."""

CLOSING_SECONDS = 12.0
"""Seconds of boards and report, measured on two cores."""

SAMPLE_PASSES = 600
"""Images through a network that heat maps and the measured cost of a model take, measured."""

MAX_PROJECTED = 1000
"""Test images whose features TensorBoard's projector shows."""

_STAGES = 5

Kind = tuple[str, int]
"""Backbone and freeze depth of a model."""


class AfterTrials:
    """Estimates the seconds of each part of what follows the trials."""

    def __init__(
        self,
        space: Space,
        n_train: int,
        growth: float,
        slots: Callable[[str], int],
        latencies: Mapping[str, float],
        n_evaluated: int = 0,
        seconds_per_image: Mapping[str, Sequence[float]] | None = None,
        has_probe: bool = True,
    ) -> None:
        """Take what was measured.

        Args:
            space: What is searched.
            n_train: Images that a trial trains on.
            growth: See `fold_growth`.
            slots: Returns how many folds of a backbone run in parallel.
            latencies: By backbone, seconds that one view of an image takes to be predicted by a
                model of one member, in a batch and on all cores; NaN where that was not measured.
            n_evaluated: Test images and external images that the model is evaluated on.
            seconds_per_image: See `search.tuning.throughput.measure_throughput`; without it, all
                stages of a network are taken to cost the same, by its latency.
            has_probe: Whether a linear probe is a finalist.
        """
        self._space = space
        self._n_train = n_train
        self._growth = growth
        self._slots = slots
        self._latencies = latencies
        self._n_evaluated = n_evaluated
        self._seconds_per_image = seconds_per_image or {}
        self._has_probe = has_probe

    @property
    def growth(self) -> float:
        """Images that a fold trains on, over those that a trial does."""
        return self._growth

    def slots(self, backbone: str) -> int:
        """Return how many folds of a backbone run in parallel, at least one."""
        return max(1, self._slots(backbone))

    def rounds(self, backbone: str) -> int:
        """Return how often as many folds as there are slots run one after the other."""
        return math.ceil(self._space.folds / self.slots(backbone))

    def folds_seconds(self, backbone: str, epochs: int, epoch_seconds: float) -> float:
        """Return what the folds of a finalist take.

        Args:
            backbone: Its backbone.
            epochs: Epochs of a fold; 0 for a linear probe.
            epoch_seconds: Seconds of an epoch of a trial.
        """
        return self.rounds(backbone) * (FOLD_SECONDS + epochs * epoch_seconds * self._growth)

    def center_crop_seconds(self, backbone: str) -> float:
        """Return what the centre-crop branch takes for all images of the folds."""
        if not self._uses_center_crop():
            return 0.0
        per_image = FORWARD_FRACTION * sum(self.stage_seconds(backbone))
        return self._n_cross_validated() * per_image / self.slots(backbone)

    def evaluation_seconds(
        self,
        kinds: Collection[Kind],
        baseline: Kind | None = None,
        more_probes: Sequence[float] = (),
        n_folds: int | None = None,
    ) -> float:
        """Return what the model takes to be evaluated, one finalist or several together.

        Heat maps, the measured cost and the features of TensorBoard's projector are part of it.

        Args:
            kinds: The likely finalists, at least one.
            baseline: What it is compared with; None where that is not evaluated.
            more_probes: Seconds of each linear probe that may be part of the model, beside `kinds`.
            n_folds: Members of each; None is all folds.
        """
        if not self._n_evaluated:
            return 0.0
        parts = [self._part_seconds(kind, n_folds) for kind in kinds]
        model = sum(parts) + sum(more_probes) if more_probes else max(parts)
        passes = SAMPLE_PASSES + min(MAX_PROJECTED, self._n_evaluated)
        samples = passes * max(self._latency(backbone) for backbone, _ in kinds)
        compared = 0.0 if baseline is None else self._part_seconds(baseline, n_folds)
        return model + samples + compared

    def probe_seconds(self, backbone: str) -> float:
        """Return what a linear probe, as part of a model, adds to its evaluation."""
        latency = self._latencies.get(backbone, 0.0)
        return 0.0 if math.isnan(latency) else self._n_evaluated * latency

    def stage_seconds(self, backbone: str) -> Sequence[float]:
        """Return the seconds that an image takes to train each stage of a network."""
        if backbone in self._seconds_per_image:
            return self._seconds_per_image[backbone]
        latency = self._latencies.get(backbone, math.nan)
        each = 0.0 if math.isnan(latency) else latency / FORWARD_FRACTION / _STAGES
        return [each] * _STAGES

    def _part_seconds(self, kind: Kind, n_folds: int | None) -> float:
        """Return what an ensemble of the folds, frozen to a depth, takes to be evaluated."""
        backbone, depth = kind
        seconds, n_folds = self.stage_seconds(backbone), n_folds or self._space.folds
        n_networks = sum(seconds[:depth]) + n_folds * sum(seconds[depth:])
        n_networks /= max(sum(seconds), 1e-9)  # the frozen stages are computed once
        n_views = 2 if self._uses_center_crop() else 1
        return self._n_evaluated * n_views * n_networks * self._latency(backbone)

    def _latency(self, backbone: str) -> float:
        """Return the seconds of one view of an image through a network, in a batch."""
        latency = self._latencies.get(backbone, math.nan)
        if math.isnan(latency):
            return FORWARD_FRACTION * sum(self.stage_seconds(backbone))
        return latency

    def _uses_center_crop(self) -> bool:
        return self._has_probe and uses_center_crop(self._space, self._n_cross_validated())

    def _n_cross_validated(self) -> float:
        return self._n_train * self._growth * self._space.folds / (self._space.folds - 1)


def fold_growth(n_train: int, n_val: int, folds: int) -> float:
    """Return the images that a fold trains on, over those that a trial does."""
    return (n_train + n_val) * (folds - 1) / folds / max(1, n_train)
