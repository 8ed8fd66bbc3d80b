"""Parse and check the command line of `python -m search.run`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import spaces
from search.console.arguments import Parser, whole_number
from search.runs.environment import Request
from spaces.base import Space, load_space
from spaces.errors import SearchError
from spaces.rules import BACKBONES
from spaces.sources import did_you_mean

DEFAULT_SPACE = "spaces/digits.py"

_KEPT = (
    *("data", "external", "exclude", "weights", "backbones", "limit"),
    *("trials", "epochs", "folds", "finalists"),
    *("time_budget_seconds", "max_concurrent", "storage"),
)
"""Options that a run keeps when it is resumed, unless the command line gives them again."""
_FIXED = ("seed", "sampler", "scheduler", "probe")
"""Options with a default that a run keeps."""


class RequestError(SearchError):
    """The command line requests something impossible."""


def parse_request(arguments: Sequence[str] | None = None) -> Request:
    """Parse the command line; exits with code 2 and one message if it is malformed."""
    options = vars(create_parser().parse_args(arguments))
    options["names_space"] = options["space"] is not None
    own = options["resume"] and options["resume"] / "space.py"
    space: Path = options["space"] or own or _default_space()
    options["space"] = space
    options["name"] = options["name"] or f"{space.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return Request(**options)


def load_requested_space(request: Request) -> Space:
    """Load the space and apply the command line's changes.

    Raises:
        SpaceError: the space breaks a rule, as it is or with the changes.
    """
    space = load_space(request.space)
    space = replace(
        space,
        trials=request.trials or space.trials,
        epochs=request.epochs or space.epochs,
        folds=request.folds or space.folds,
    )
    return space.with_backbones(request.backbones) if request.backbones else space


def merge_with_saved(request: Request, saved: Request) -> Request:
    """Return the request of a run that is resumed, with this command line's changes.

    Args:
        request: The command line with `--resume`.
        saved: What the run saved.

    Raises:
        RequestError: an option that cannot change was given again with another value.
    """
    before = {name: getattr(saved, name) for name in _KEPT}
    given = {name: v for name in _KEPT if (v := getattr(request, name)) is not None}
    for name in ("backbones", "limit"):
        if name in given and given[name] != before[name]:
            began = "without it" if before[name] is None else f"with {before[name]}"
            raise RequestError(
                f"--{name} of a run cannot change: it began {began}; begin a new run"
            )
    fixed = {name: getattr(saved, name) for name in _FIXED}
    for name, began in fixed.items():
        value = getattr(request, name)
        if value not in (began, create_parser().get_default(name)):
            raise RequestError(
                f"--{name} of a run cannot change: it began with {began}, but got {value};"
                " begin a new run"
            )
    return replace(request, space=request.folder / "space.py", **{**before, **given, **fixed})


def _default_space() -> Path:
    """Return the default space: the checkout's, or the installed package's."""
    here = Path(DEFAULT_SPACE)
    return here if here.is_file() else Path(spaces.__path__[0]) / here.name


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
    what.add_argument("--space", type=Path, help=f"space file (default: {DEFAULT_SPACE})")
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
        type=_seconds,
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


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 30m or 2h, but got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


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
