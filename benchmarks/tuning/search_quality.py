"""Our search against random search, random + ASHA and stock Ray Tune, at equal epochs.

    python -m benchmarks.tuning.search_quality --build       # once: trains the tables, by parts
    python -m benchmarks.tuning.search_quality [--quick] [--parts] [--first-seed N]

The searches are real, the trainings are looked up: configurations of the Caltech space, drawn at
random and each trained in full (`curve_tables.py`), answer whatever is proposed by the curve
of the nearest one. Each seed splits a set's pool of images into validation images, which the
searches see, and test images, which they do not. Four trials run in parallel.

Quoted is the regret: the best accuracy in the table less that of the best trial so far, in
percentage points, for what the search maximises and for the test images. Differences are paired by
seed; intervals are 95% bootstrap intervals of the mean over seeds.

The module is long because its four searches and their comparison are one experiment.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress, stop
from benchmarks.harness.simulated_trials import RECORDED
from benchmarks.harness.workbench import (
    ImageFiles,
    decode_images,
    find_weights_folder,
    generate_images,
    need_data,
    read_state,
)
from benchmarks.tuning.curve_tables import (
    BACKBONES,
    CurveTable,
    TableConfig,
    extend_table,
    load_table,
)
from benchmarks.tuning.regret_figure import bootstrap, draw_regrets
from benchmarks.tuning.simulated_search import OURS, PARTS, SIDES, Race, Side, race
from search.data.scan import scan
from spaces.base import load_space

CACHE = ROOT / "results" / "curves"
TABLE_CONFIGS = {
    config.name: config
    for config in (
        TableConfig("caltech", n_train=120, n_pool=868, n_val=160, image_size=96, epochs=8),
        TableConfig("cats_dogs", n_train=120, n_pool=780, n_val=160, image_size=96, epochs=8),
        TableConfig("products", n_train=120, n_pool=435, n_val=160, image_size=96, epochs=8),
    )
}
_FOLDERS = {"caltech": "caltech101"}  # of the test data; the others are called as their space is


@dataclass(frozen=True)
class Plan:
    """How much is compared.

    Attributes:
        sets: Which tables.
        n_configs: Configurations of each table.
        n_seeds: Searches of each side on each set.
        full_trainings: The budget of a search, in trainings of full length.
        workers: Trials in parallel.
    """

    sets: tuple[str, ...]
    n_configs: int
    n_seeds: int
    full_trainings: int
    workers: int = 4


PLANS = {
    "full": Plan(tuple(TABLE_CONFIGS), 340, 60, 48),
    "quick": Plan(tuple(TABLE_CONFIGS), 340, 20, 24),
    "smoke": Plan(("generated",), 12, 3, 6, 2),
}


@dataclass(frozen=True)
class Found:
    """What the searches on one set came to.

    Attributes:
        val: Regret in percentage points by side: float64 [seeds, budgets], where budget b is that
            of b + 1 full trainings.
        test: The same of the test images.
        races: By side, each seed's.
    """

    val: dict[str, np.ndarray] = field(default_factory=dict)
    test: dict[str, np.ndarray] = field(default_factory=dict)
    races: dict[str, list[Race]] = field(default_factory=dict)


def main() -> None:
    """Build tables, or compare on them, and report."""
    parser = command_line(__doc__, data=True)
    parser.add_argument("--build", action="store_true", help="train the tables, and stop")
    parser.add_argument(
        "--record", action="store_true", help=f"write Caltech's curves to {RECORDED.name}, and stop"
    )
    parser.add_argument(
        "--sets", metavar="A,B", help=f"of {', '.join(TABLE_CONFIGS)} (default: all)"
    )
    parser.add_argument("--configs", type=int, metavar="N", help="of each table (default: 340)")
    parser.add_argument("--tables", type=Path, metavar="DIR", default=CACHE, help="kept there")
    parser.add_argument("--parts", action="store_true", help="our parts one by one, too")
    parser.add_argument("--first-seed", type=int, metavar="N", default=0, help="(default: 0)")
    parser.add_argument("--figure", type=Path, metavar="SVG", help="regret curves, drawn")
    arguments = parser.parse_args()
    plan = PLANS[arguments.mode]
    report = Report("search_quality", "Searches at equal epochs: regret in percentage points.")
    logging.getLogger("ray").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if arguments.mode == "smoke":
        with tempfile.TemporaryDirectory() as scratch:
            tables = {"generated": build_generated(Path(scratch), plan.n_configs)}
    else:
        if arguments.record:
            record(read_table(arguments.tables, "caltech"))
            return
        sets = split_sets(arguments.sets)
        if arguments.build:
            for name in sets:
                build(arguments, name, arguments.configs or plan.n_configs)
            return
        tables = {name: read_table(arguments.tables, name) for name in sets}
    sides = {**SIDES, **(PARTS if arguments.parts else {})}
    seeds = range(arguments.first_seed, arguments.first_seed + plan.n_seeds)
    found = {name: compare(table, plan, sides, seeds) for name, table in tables.items()}
    fill(report, plan, tables, found)
    report.publish(arguments)
    if arguments.figure:
        draw_regrets(arguments.figure, {name: (f.val, f.test) for name, f in found.items()})
        print(f"drawn to {arguments.figure}")


def build(arguments: argparse.Namespace, name: str, n_configs: int) -> CurveTable:
    """Train what a set's table lacks."""
    data = need_data(arguments)
    weights = find_weights_folder(arguments, data)
    states = {backbone: read_state(backbone, weights) for backbone in BACKBONES}
    lacking = [backbone for backbone, state in states.items() if state is None]
    if lacking:
        stop(f"there are no weights of {', '.join(lacking)}; give the folder with --weights")
    config = TABLE_CONFIGS[name]
    source = load_space(ROOT / "spaces" / f"{name}.py").source
    manifest = scan(source, data / _FOLDERS.get(name, name), CACHE, 2, None, 0)
    files = ImageFiles(manifest.paths or (), manifest.labels, manifest.classes, name)
    images = decode_images(files, config.image_size)
    try:
        return extend_table(_path(arguments.tables, name), config, images, states, n_configs)
    except ValueError as error:
        return stop(str(error))


def record(table: CurveTable) -> None:
    """Write a table's validation curves for the simulated trials of other benchmarks."""
    view, epochs = table.split(0), range(1, table.config.epochs + 1)
    with RECORDED.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [f"{what}_{epoch}" for what in ("accuracy", "loss") for epoch in epochs]
        writer.writerow(["backbone", "lr", "freeze_depth", *names])
        for row, params in enumerate(table.params):
            scores = [*view.val_accuracy[row], *view.val_loss[row]]
            about = [params["backbone"], f"{params['lr']:.3g}", params["freeze_depth"]]
            writer.writerow([*about, *(f"{score:.4g}" for score in scores)])
    print(f"{len(table.params)} curves in {RECORDED}")


def build_generated(folder: Path, n_configs: int) -> CurveTable:
    """Train a few configurations on generated images, from scratch."""
    config = TableConfig(
        "generated", n_train=12, n_pool=24, n_val=12, image_size=32, epochs=2, n_views=2
    )
    images = decode_images(generate_images(folder, 36), config.image_size)
    states = dict.fromkeys(BACKBONES)
    return extend_table(folder / "generated.npz", config, images, states, n_configs)


def compare(
    table: CurveTable, plan: Plan, sides: Mapping[str, Side], seeds: Sequence[int]
) -> Found:
    """Let every side search, once per seed."""
    budget = plan.full_trainings * table.config.epochs
    ends = np.arange(1, plan.full_trainings + 1) * table.config.epochs - 1
    found = Found(races={name: [] for name in sides})
    val: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    test: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for n_done, seed in enumerate(seeds, start=1):
        view = table.split(seed)
        best = (np.arange(len(table.params)), view.best_epochs())
        for name, side in sides.items():
            run = race(side, table, view, budget, plan.workers, seed)
            found.races[name].append(run)
            val[name].append(100 * (view.val_accuracy[best].max() - run.val[ends]))
            test[name].append(100 * (view.test_accuracy[best].max() - run.test[ends]))
        if n_done % 10 == 0:
            log_progress(f"{table.config.name}: {n_done} of {len(seeds)} seeds")
    found.val.update({name: np.stack(rows) for name, rows in val.items()})
    found.test.update({name: np.stack(rows) for name, rows in test.items()})
    return found


def fill(
    report: Report, plan: Plan, tables: Mapping[str, CurveTable], found: Mapping[str, Found]
) -> None:
    """Add tables, ratios and notes to the report."""
    report.tables["Tables of curves"] = [_about(table) for table in tables.values()]
    pooled = {name: _pooled(found, name) for name in next(iter(found.values())).val}
    marks = sorted({max(1, plan.full_trainings * part // 8) for part in (1, 2, 4, 8)})
    for title, which in (("validation", 0), ("test", 1)):
        rows = [
            _regrets(name, side, (f.val, f.test)[which][side], marks)
            for name, f in found.items()
            for side in f.val
        ]
        rows += [_regrets("mean", side, both[which], marks) for side, both in pooled.items()]
        report.tables[f"Regret, {title}: points after so many full trainings' epochs"] = rows
    verdicts = [
        _verdict(name, kind, side, (f.val, f.test)[which])
        for name, f in found.items()
        for which, kind in enumerate(("validation", "test"))
        for side in f.val
        if side != OURS
    ]
    for which, kind in enumerate(("validation", "test")):
        means = {side: both[which] for side, both in pooled.items()}
        verdicts += [_verdict("mean", kind, side, means) for side in means if side != OURS]
    report.tables["Ours against the others, paired by seed: budgets with an interval beyond 0"] = (
        verdicts
    )
    report.ratios += [
        Ratio(
            f"budgets of {plan.full_trainings} at which ours is worse than {row['against']},"
            f" {row['regret']}, mean of the sets",
            float(row["ours worse"]),
            0.0,
            at_least=False,
        )
        for row in verdicts
        if row["set"] == "mean"
    ]
    report.notes.append(
        f"{plan.n_seeds} seeds, {plan.workers} trials in parallel, {plan.full_trainings} full"
        " trainings' epochs"
    )
    report.extra["curves"] = {
        name: {
            kind: {side: _curve(values) for side, values in regrets.items()}
            for kind, regrets in (("validation", f.val), ("test", f.test))
        }
        for name, f in found.items()
    }


def _pooled(found: Mapping[str, Found], side: str) -> tuple[np.ndarray, np.ndarray]:
    """Average a side's regrets over the sets, within each seed."""
    every = found.values()
    return (
        np.mean([f.val[side] for f in every], axis=0),
        np.mean([f.test[side] for f in every], axis=0),
    )


def _about(table: CurveTable) -> dict[str, Any]:
    view = table.split(0)
    config = table.config
    best = view.val_accuracy.max(1)
    return {
        "set": config.name,
        "configurations": len(table.params),
        "epochs": config.epochs,
        "training images": config.n_train,
        "validation": config.n_val,
        "test": len(table.labels) - config.n_val,
        "px": config.image_size,
        "best": float(best.max()),
        "median": float(np.median(best)),
        "worst": float(best.min()),
        "rank correlation with nearest": table.neighbour_correlation(),
    }


def _regrets(name: str, side: str, values: np.ndarray, marks: Sequence[int]) -> dict[str, Any]:
    mean, low, high = bootstrap(values)
    cells = {f"{m}": f"{mean[m - 1]:.2f} [{low[m - 1]:.2f}, {high[m - 1]:.2f}]" for m in marks}
    overall, overall_low, overall_high = (float(x[0]) for x in bootstrap(values.mean(1)[:, None]))
    over_all = f"{overall:.2f} [{overall_low:.2f}, {overall_high:.2f}]"
    return {"set": name, "search": side, **cells, "mean of all budgets": over_all}


def _verdict(name: str, kind: str, side: str, regrets: Mapping[str, np.ndarray]) -> dict[str, Any]:
    gain = regrets[side] - regrets[OURS]
    _, low, high = bootstrap(gain)
    overall, overall_low, overall_high = (float(x[0]) for x in bootstrap(gain.mean(1)[:, None]))
    return {
        "set": name,
        "regret": kind,
        "against": side,
        "ours better": int((low > 0).sum()),
        "ours worse": int((high < 0).sum()),
        "budgets": gain.shape[1],
        "gain, mean of all budgets": overall,
        "low": overall_low,
        "high": overall_high,
    }


def _curve(values: np.ndarray) -> dict[str, list[float]]:
    return {
        name: np.round(line, 4).tolist()
        for name, line in zip(("mean", "low", "high"), bootstrap(values), strict=True)
    }


def split_sets(text: str | None) -> list[str]:
    """Return the names in `--sets`, or all; end the command for one that is unknown."""
    if text is None:
        return list(TABLE_CONFIGS)
    names = text.split(",")
    for name in names:
        if name not in TABLE_CONFIGS:
            stop(f"--sets must be among {', '.join(TABLE_CONFIGS)}, but got {name!r}")
    return names


def _path(tables: Path, name: str) -> Path:
    return tables / f"{name}.npz"


def read_table(tables: Path, name: str) -> CurveTable:
    """Read a set's table; end the command, naming the one that trains it, where there is none."""
    path = _path(tables, name)
    if not path.exists():
        stop(
            f"there is no table {path}; train it with"
            f" python -m benchmarks.tuning.search_quality --build --sets {name}"
        )
    return load_table(path)


if __name__ == "__main__":
    main()
