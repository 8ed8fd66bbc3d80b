"""The tables, ratios and figure of `versus`, from the cells recorded so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

from benchmarks.harness.reporting import Ratio, Report
from benchmarks.tuning.competitors.commands import COMPETITORS, FIRST_TRIAL, OURS, PROBE
from benchmarks.tuning.regret_figure import bootstrap
from benchmarks.tuning.versus_cells import Record
from search.reporting import style

TARGET_POINTS = 1.0
SET_TARGETS = {"grocery": 12.0, "flowers": 4.0}
"""Points over the probe that ours is to have: over the mean of the sets, and on single ones within
the longest time."""

Block = tuple[str, str, int]
"""Image set, images of each class, seed."""


@dataclass(frozen=True)
class Results:
    """The records of one wall time; those of competitors that take none are in each.

    Attributes:
        seconds: The wall time.
        by_block: By block and competitor.
    """

    seconds: float
    by_block: Mapping[Block, Mapping[str, Record]]

    @property
    def label(self) -> str:
        """The wall time as text."""
        whole = self.seconds % 60 == 0
        return f"{self.seconds / 60:g} min" if whole else f"{self.seconds:g} s"

    @property
    def competitors(self) -> list[str]:
        """Those that have a record."""
        return [c for c in COMPETITORS if any(c in block for block in self.by_block.values())]

    def records(self, competitor: str) -> list[Record]:
        """Return a competitor's records."""
        return [block[competitor] for block in self.by_block.values() if competitor in block]

    def differences(self, competitor: str, other: str, figure: str) -> dict[str, float]:
        """Return by set the mean difference of a figure, over the blocks that both completed."""
        by_set: dict[str, list[float]] = {}
        for (name, _, _), block in self.by_block.items():
            if _completed(block, competitor) and _completed(block, other):
                difference = block[competitor][figure] - block[other][figure]
                by_set.setdefault(name, []).append(difference)
        return {name: mean(values) for name, values in by_set.items()}

    def ranks(self) -> dict[str, list[float]]:
        """Return each competitor's ranks by accuracy, 1 the best, over blocks with all of them.

        Equal ones share their mean rank; one that failed is behind all others.
        """
        names, ranks = self.competitors, []
        for block in self.by_block.values():
            if all(name in block for name in names):
                found = [block[n]["accuracy"] if _completed(block, n) else -1.0 for n in names]
                ranks.append(rankdata([-value for value in found]))
        return {name: [float(row[i]) for row in ranks] for i, name in enumerate(names)}

    def n_wins(self, competitor: str) -> int:
        """Count the blocks in which no other is better, of those with all competitors."""
        ranks = self.ranks()
        lowest = [min(row) for row in zip(*ranks.values(), strict=True)]
        return sum(a == b for a, b in zip(ranks[competitor], lowest, strict=True))


def group(records: Iterable[Record]) -> list[Results]:
    """Group records by wall time, the shortest first."""
    records = list(records)
    times = sorted({r["seconds"] for r in records if r["seconds"] is not None})
    results = []
    for seconds in times:
        by_block: dict[Block, dict[str, Record]] = {}
        for record in records:
            if record["seconds"] in (seconds, None):
                block = record["set"], record["images"], record["seed"]
                by_block.setdefault(block, {})[record["competitor"]] = record
        results.append(Results(seconds, by_block))
    return results


def interval(by_set: Mapping[str, float]) -> tuple[float, float, float]:
    """Return the mean over sets and its 95% bootstrap interval; a single set has none."""
    if not by_set:
        return (float("nan"),) * 3
    center, low, high = (float(v[0]) for v in bootstrap(np.array([*by_set.values()])[:, None]))
    return (center, low, high) if len(by_set) > 1 else (center, float("nan"), float("nan"))


def fill_report(report: Report, records: Iterable[Record]) -> None:
    """Add tables, ratios and notes to the report."""
    records = list(records)
    all_results = group(records)
    for results in all_results:
        report.tables[f"{results.label}: mean of the sets, points over others"] = [
            _row(results, competitor) for competitor in results.competitors
        ]
        report.tables[f"{results.label}: accuracy by set, mean of the seeds"] = _by_set(results)
        report.ratios += _ratios(results)
    for results in all_results[-1:]:
        over_probe = results.differences(OURS, PROBE, "accuracy")
        report.ratios += [
            Ratio(f"{name}, ours minus probe, points, {results.label}", 100 * value, target)
            for name, target in SET_TARGETS.items()
            if (value := over_probe.get(name)) is not None
        ]
    commits = sorted({str(record["commit"]) for record in records})
    report.notes += [
        "intervals: bootstrap over the sets; each set's difference is its mean over images and"
        " seeds",
        "seconds: from the start of the process, imports included, to its end; that of search.run"
        " includes its own evaluation and report",
        f"a rank is of a block (set, images, seed) with all competitors; load"
        f" {median([record['load'] for record in records]):.1f} as the median cell began",
        f"commits of the cells: {', '.join(commits)}",
    ]
    report.extra["cells"] = records


def _row(results: Results, competitor: str) -> dict[str, Any]:
    records, ranks = results.records(competitor), results.ranks()[competitor]
    completed = [record for record in records if record["error"] is None]
    row: dict[str, Any] = {"competitor": competitor, "cells": len(completed)}
    for figure in ("accuracy", "log_loss"):
        values: dict[str, list[float]] = {}
        for record in completed:
            values.setdefault(record["set"], []).append(record[figure])
        row[figure.replace("_", " ")] = _mean([mean(each) for each in values.values()])
    for other in (PROBE, FIRST_TRIAL):
        by_set = results.differences(competitor, other, "accuracy")
        row[f"over {other}"], row["low"], row["high"] = (100 * v for v in interval(by_set))
        row[f"over {other}, low"], row[f"over {other}, high"] = row.pop("low"), row.pop("high")
    row["mean rank"], row["wins"] = _mean(ranks), results.n_wins(competitor)
    row["median seconds"] = median([record["taken"] for record in records])
    row["longest"] = max(record["taken"] for record in records)
    row["overran"] = sum(record["taken"] > results.seconds for record in records)
    row["failed"] = len(records) - len(completed)
    return row


def _by_set(results: Results) -> list[dict[str, Any]]:
    rows = []
    for name, images in dict.fromkeys((name, images) for name, images, _ in results.by_block):
        row: dict[str, Any] = {"set": name, "images a class": images}
        for competitor in results.competitors:
            found = [
                block[competitor]["accuracy"]
                for (set_name, count, _), block in results.by_block.items()
                if (set_name, count) == (name, images) and _completed(block, competitor)
            ]
            row[competitor] = _mean(found)
        rows.append(row)
    return rows


def _ratios(results: Results) -> list[Ratio]:
    if OURS not in results.competitors:
        return []
    ratios = []
    for other in (PROBE, FIRST_TRIAL):
        if by_set := results.differences(OURS, other, "accuracy"):
            center, low, _ = (100 * value for value in interval(by_set))
            what = f"ours minus {other}, points, {results.label}"
            ratios += [
                Ratio(what, center, TARGET_POINTS),
                Ratio(f"{what}, lower end of the interval", low, 0.0),
            ]
    ranks = {name: _mean(found) for name, found in results.ranks().items()}
    best = min((rank for name, rank in ranks.items() if name != OURS), default=float("nan"))
    what = f"mean rank of ours over the best other's, {results.label}"
    return [*ratios, Ratio(what, ranks[OURS] / best, 1.0, at_least=False)]


def draw(path: Path, records: Iterable[Record]) -> None:
    """Draw every competitor's points over the probe: a dot a set, their mean and its interval.

    Args:
        path: Path of the SVG.
        records: The cells.
    """
    all_results = group(records)
    with style.style():
        figure = Figure(figsize=(1.6 + 4.2 * len(all_results), 3.6), layout="constrained")
        for axes, results in zip(
            figure.subplots(1, len(all_results), squeeze=False, sharey=True)[0],
            all_results,
            strict=True,
        ):
            names = [name for name in results.competitors if name != PROBE][::-1]
            for place, name in enumerate(names):
                by_set = results.differences(name, PROBE, "accuracy")
                center, low, high = (100 * value for value in interval(by_set))
                colour = style.ACCENT if name == OURS else style.MUTED
                dots = [100 * value for value in by_set.values()]
                axes.plot(dots, [place] * len(dots), "o", color=colour, ms=4, alpha=0.4)
                axes.plot([low, high], [place, place], color=colour, lw=2)
                axes.plot([center], [place], "D", color=colour, ms=8)
            axes.axvline(0, color=style.MUTED, lw=1)
            axes.set_yticks(range(len(names)), names)
            axes.set_title(results.label)
            axes.set_xlabel("accuracy over the probe's, percentage points")
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def _completed(block: Mapping[str, Record], competitor: str) -> bool:
    return competitor in block and block[competitor]["error"] is None


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else float("nan")
