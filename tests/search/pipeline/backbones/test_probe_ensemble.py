"""Which linear probes are finalists together, and that a run with several of them is resumed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from search.evaluation.calibration import log_losses
from search.pipeline.backbones.probe_ensemble import choose_probes
from search.pipeline.backbones.selection import RankedProbe

N = 300
LABELS = np.arange(N) % 3
GROUPS = np.arange(N)


def probe(name: str, seed: int, noise: float) -> RankedProbe:
    """Return a probe with mistakes of its own; the more noise, the more of them."""
    rng = np.random.default_rng(seed)
    logits = (3 * np.eye(3)[LABELS] + noise * rng.normal(size=(N, 3))) / max(1.0, noise)
    is_correct = logits.argmax(1) == LABELS
    accuracy = float(is_correct.mean())
    losses = log_losses(logits, LABELS, 1.0)
    return RankedProbe(name, accuracy, accuracy, accuracy, logits, is_correct, losses, 1, 1, 1)


BEST, SECOND, GUESSING = probe("best", 0, 2.0), probe("second", 1, 2.1), probe("guessing", 2, 99.0)


def chosen(*probes: RankedProbe) -> set[str]:
    return choose_probes(probes, "best", "accuracy", LABELS, GROUPS, seed=0)


def test_probes_of_independent_mistakes_are_chosen_together() -> None:
    assert chosen(GUESSING, BEST, SECOND) == {"best", "second"}


def test_where_no_ensemble_is_clearly_better_none_is_chosen() -> None:
    assert chosen(BEST, replace(BEST, name="copy"), GUESSING) == set()
    assert chosen(BEST) == set()


def test_a_probe_that_was_not_cross_validated_is_left_out() -> None:
    unknown = replace(SECOND, logits=np.empty((0, 3)), score=math.nan)
    assert chosen(BEST, unknown) == set()
    assert choose_probes([unknown], "second", "accuracy", LABELS, GROUPS, seed=0) == set()


def test_near_duplicates_count_once() -> None:
    """What is gained on a few images is chance, however many copies there are of them."""
    few, n_copies = slice(0, 12), 30
    probes = [
        replace(one, logits=np.repeat(one.logits[few], n_copies, axis=0)) for one in (BEST, SECOND)
    ]
    labels, groups = np.repeat(LABELS[few], n_copies), np.repeat(GROUPS[few], n_copies)
    assert choose_probes(probes, "best", "accuracy", labels, np.arange(len(labels)), seed=0)
    assert not choose_probes(probes, "best", "accuracy", labels, groups, seed=0)
