"""Compare the search with others at equal wall time, on the same images and weights.

    python -m benchmarks.tuning.versus [--only set=tools competitor=ours,probe] [--report]

Six image sets × {10, all} images of each class × 3 seeds × {5, 10} minutes of wall time, on which
each competitor trains in a process of its own; then this process predicts the set's test images
with the model file, and records accuracy and log loss. Nothing else reads the test images, but for
`search.run`, which is given them as `test/` and evaluates its model on them within its time.

    probe        the linear probe of the backbone with the best cross-validation accuracy
    first trial  the space's first trial, trained and cross-validated
    random       search.run with random proposals, without early stopping
    stock        Ray Tune's OptunaSearch and ASHAScheduler on our trainable
    fixed        one network fine-tuned in one fixed way, as many epochs as the time allows
    ours         search.run
    autogluon    AutoGluon MultiModal, where --autogluon-python names an environment with it

The time of each is that of its process, from the start of Python to the end. The first two end by
themselves, and are run once for all times. All of it takes more than a day on 2 cores, so each
training is a line of a JSON lines file as it ends: the same command goes on where it stopped, and
runs again what failed. --report shows what there is so far. --quick is one small set, 20 s each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.reporting import (
    Report,
    command_line,
    default_output,
    log_progress,
    stop,
)
from benchmarks.harness.workbench import find_weights_folder, need_data
from benchmarks.tuning import versus_report
from benchmarks.tuning.competitors.commands import AUTOGLUON, COMPETITORS
from benchmarks.tuning.versus_cells import (
    ALL,
    Cell,
    append_record,
    pending,
    plan_cells,
    read_records,
    run_cell,
)
from benchmarks.tuning.versus_sets import GENERATED, SETS, ImageSet, load_set
from search.console.arguments import seconds
from spaces.portfolio import portfolio_backbones
from trainables.pretrained.weight_files import find_available_weights


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        sets, images, seeds, times: See `versus_cells.Cell`; times in seconds.
        image_size: Side in pixels that networks see.
        data: The folder of the sets; None for generated images.
        weights: Folder of pretrained weights; None has none.
        backbones: The networks that may be used.
    """

    sets: Sequence[str]
    images: Sequence[str]
    seeds: Sequence[int]
    times: Sequence[float]
    image_size: int
    data: Path | None
    weights: Path | None
    backbones: Sequence[str]


def main() -> None:
    """Run the cells that are left, and report."""
    arguments = parse()
    report = Report("versus", "Accuracy on test images at equal wall time.")
    with tempfile.TemporaryDirectory(prefix="versus-") as scratch:
        out = arguments.out or default_output("versus", arguments.mode)
        path = (out or Path(scratch) / "versus.json").with_suffix(".jsonl")
        if not arguments.report:
            run_cells(arguments, choose_settings(arguments), path, Path(scratch))
        records = read_records(path).values()
        if not records:
            stop(f"{path} has no cell: run some without --report")
        versus_report.fill_report(report, records)
        report.publish(arguments)
        if out is not None:
            versus_report.draw(out.with_suffix(".svg"), records)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="KEY=A,B",
        help="only these: set=, images=, seed=, competitor=",
    )
    parser.add_argument(
        "--times", metavar="5m,10m", help="wall times of each training (default: 5m,10m)"
    )
    parser.add_argument(
        "--report", action="store_true", help="run nothing: report the cells so far"
    )
    parser.add_argument(
        "--autogluon-python",
        type=Path,
        metavar="PATH",
        help="Python of an environment with AutoGluon (default: it does not take part)",
    )
    arguments = parser.parse_args()
    python = arguments.autogluon_python
    if python is not None and not python.is_file():
        stop(f"there is no Python {python}; see --autogluon-python")
    if arguments.times is not None:
        try:
            arguments.times = [seconds(text) for text in arguments.times.split(",")]
        except argparse.ArgumentTypeError as error:
            stop(f"--times {error}")
    return arguments


def choose_settings(arguments: argparse.Namespace) -> Settings:
    """Choose what is compared by the mode."""
    if arguments.mode == "smoke":
        times = arguments.times or (12.0,)
        return Settings((GENERATED,), (ALL,), (0,), times, 64, None, None, ("tinynet",))
    data = need_data(arguments)
    weights = find_weights_folder(arguments, data)
    if weights is None:
        stop(f"there is no folder {data}/weights; give pretrained weights with --weights")
    found, _ = find_available_weights(portfolio_backbones(weights), weights, Path())
    if not found:
        stop(f"{weights} has no weights of a backbone of the portfolio")
    if arguments.mode == "quick":
        times = arguments.times or (20.0,)
        return Settings(("tools",), ("10",), (0,), times, 224, data, weights, tuple(found))
    times = arguments.times or (300.0, 600.0)
    return Settings(SETS, ("10", ALL), range(3), times, 224, data, weights, tuple(found))


def run_cells(arguments: argparse.Namespace, settings: Settings, path: Path, scratch: Path) -> None:
    """Run the cells that have no result yet, and record each."""
    cells = choose_cells(settings, arguments.only, arguments.autogluon_python is not None)
    left = list(pending(cells, read_records(path)))
    log_progress(f"{len(left)} of {len(cells)} cells are left; {path}")
    sets: dict[str, ImageSet] = {}
    for number, cell in enumerate(left, 1):
        log_progress(f"{number} of {len(left)}: {cell}")
        if cell.set not in sets:
            sets[cell.set] = load_set(cell.set, settings.data, scratch)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            record = run_cell(
                cell,
                sets[cell.set],
                settings.weights,
                settings.backbones,
                settings.image_size,
                str(arguments.autogluon_python) if arguments.autogluon_python else None,
                Path(folder),
            )
        append_record(path, record)
        if record["error"] is None:
            log_progress(f"accuracy {record['accuracy']:.3f} after {record['taken']:.0f} s")
        else:
            log_progress(f"FAILED: {record['error']}")


def choose_cells(settings: Settings, only: Sequence[str], with_autogluon: bool) -> list[Cell]:
    """List the cells that --only leaves."""
    competitors = [name for name in COMPETITORS if with_autogluon or name != AUTOGLUON]
    choices: Mapping[str, Sequence[str]] = {
        "set": settings.sets,
        "images": settings.images,
        "seed": [str(seed) for seed in settings.seeds],
        "competitor": competitors,
    }
    chosen = dict(choices)
    for text in only:
        key, _, values = text.partition("=")
        if key not in choices:
            stop(f"--only takes {', '.join(f'{key}=' for key in choices)} but got {text!r}")
        chosen[key] = values.split(",")
        if unknown := [value for value in chosen[key] if value not in choices[key]]:
            stop(f"there is no {key} {unknown[0]!r} (there are: {', '.join(choices[key])})")
    return plan_cells(
        chosen["set"],
        chosen["images"],
        [int(seed) for seed in chosen["seed"]],
        settings.times,
        chosen["competitor"],
    )


if __name__ == "__main__":
    main()
