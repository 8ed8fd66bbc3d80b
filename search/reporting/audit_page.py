"""The report's section on the audit: counts by kind, and pairs of near-duplicates to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from search.data.audit import COPIES, KINDS

MAX_PAIRS = 24
"""Pairs of near-duplicates whose images a run keeps and its report shows."""


@dataclass(frozen=True)
class Finding:
    """A line of `audit.csv`, as it stands there."""

    name: str
    problem: str
    detail: str
    duplicate_of: str = ""
    similarity: str = ""


@dataclass(frozen=True)
class AuditPage:
    """What the section shows.

    Attributes:
        kinds: Each kind that was found, what it means, and how often.
        pairs: Near-duplicates, the gravest first.
        n_pairs: Of them all.
        others: All other findings.
    """

    kinds: tuple[tuple[str, str, int], ...]
    pairs: tuple[Finding, ...]
    n_pairs: int
    others: tuple[Finding, ...]


def lay_out(findings: Sequence[Finding]) -> AuditPage:
    """Sort findings for the page."""
    counts = Counter(finding.problem for finding in findings)
    is_pair = [finding.problem in COPIES and bool(finding.duplicate_of) for finding in findings]
    pairs = [finding for finding, paired in zip(findings, is_pair, strict=True) if paired]
    return AuditPage(
        kinds=tuple((kind, what, counts[kind]) for kind, what in KINDS.items() if counts[kind]),
        pairs=tuple(pairs[:MAX_PAIRS]),
        n_pairs=len(pairs),
        others=tuple(f for f, paired in zip(findings, is_pair, strict=True) if not paired),
    )
