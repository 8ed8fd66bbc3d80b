"""Define the options of `python -m search.run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from search.console.arguments import Parser, seconds, whole_number
from spaces.rules import BACKBONES
from spaces.sources import did_you_mean


def create_parser() -> Parser:
    """Return the parser of `python -m search.run`."""
    parser = Parser(
        prog="python -m search.run",
        description="Find the best image classifier for a folder of images, and prove how good"
        " it is.",
        epilog="""examples:
  python -m search.run
  python -m search.run --space spaces/caltech.py
  python -m search.run --space spaces/products.py --data photos --trials 20 --time-budget 30m
  python -m search.run --resume results/products-1 --trials 60""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to search")
    what.add_argument("--space", type=Path, help="space file (default: spaces/digits.py)")
    what.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="images: a folder per class, or train/ [val/] test/ of those",
    )
    what.add_argument(
        "--external",
        type=Path,
        metavar="DIR",
        help="external test set: images of another source, flat or a folder per class",
    )
    what.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="images to exclude: a name per line, or lines of audit.csv or label_issues.csv",
    )
    what.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="<backbone>.pth files, used instead of a download",
    )
    what.add_argument(
        "--backbones",
        type=_backbones,
        metavar="A,B",
        help="search these instead of the space's",
    )
    what.add_argument(
        "--limit",
        type=whole_number(10),
        metavar="N",
        help="at most N images, stratified (a quick try)",
    )
    how = parser.add_argument_group("how long and how")
    how.add_argument("--trials", type=whole_number(1), metavar="N", help="trials in total")
    how.add_argument("--epochs", type=whole_number(1), metavar="N", help="full length of a trial")
    how.add_argument(
        "--folds", type=whole_number(2), metavar="K", help="folds of the cross-validation"
    )
    how.add_argument(
        "--finalists",
        type=whole_number(1),
        metavar="N",
        help="retrain the N best trials, and take the one of the best cross-validation accuracy"
        " (default: 1)",
    )
    how.add_argument(
        "--time-budget",
        type=seconds,
        dest="time_budget_seconds",
        metavar="30m",
        help="end within about this time (s, m or h), with the best model so far",
    )
    how.add_argument(
        "--max-concurrent",
        type=whole_number(1),
        metavar="N",
        help="trials in parallel (default: as many as the machines take; 1 repeats exactly)",
    )
    how.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),  # the range of NumPy's and scikit-learn's seeds
        default=0,
        metavar="S",
        help="default: %(default)s",
    )
    how.add_argument("--sampler", choices=("tpe", "random", "grid"), default="tpe")
    how.add_argument("--scheduler", choices=("asha", "none"), default="asha")
    how.add_argument(
        "--no-probe",
        dest="probe",
        action="store_false",
        help="no linear probe before the trials, and heads are initialised at random",
    )
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, default=Path("results"), help="default: %(default)s")
    where.add_argument("--name", help="the run's folder in --out (default: space and time)")
    where.add_argument(
        "--resume",
        type=Path,
        metavar="RUN_DIR",
        help="resume a run, or extend it with a larger --trials",
    )
    where.add_argument(
        "--address", help="Ray cluster to join, such as auto (default: this machine)"
    )
    where.add_argument(
        "--storage",
        metavar="URL",
        help="for checkpoints and a copy of the run on a cluster: s3://bucket/folder, or a folder"
        " that all machines reach (default: everything is sent to this machine)",
    )
    shown = parser.add_argument_group("what is shown").add_mutually_exclusive_group()
    shown.add_argument("-q", "--quiet", action="store_true", help="print only the result")
    shown.add_argument(
        "-v", "--verbose", action="store_true", help="print the run log as well, as it is written"
    )
    return parser


def _backbones(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("must name at least one backbone")
    problems = [
        f"there is no backbone {name!r}{did_you_mean(name, BACKBONES)}"
        for name in names
        if name not in BACKBONES
    ]
    if problems:
        raise argparse.ArgumentTypeError(
            f"{'; '.join(problems)} (there are: {', '.join(BACKBONES)})"
        )
    return names
