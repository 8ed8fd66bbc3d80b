"""What the user asks for: the command line, checked."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import spaces
from search.runs.storage import SharedFiles
from spaces.base import BACKBONES, Space, load_space
from spaces.sources import did_you_mean

DEFAULT_SPACE = "spaces/digits.py"


class RequestError(ValueError):
    """The command line asks for something that cannot be."""


@dataclass(frozen=True)
class Request:
    """The command line. None leaves a thing as the space has it."""

    space: Path
    data: Path | None
    external: Path | None
    exclude: Path | None
    weights: Path | None
    backbones: tuple[str, ...] | None
    limit: int | None
    trials: int | None
    epochs: int | None
    folds: int | None
    finalists: int | None
    time_budget_seconds: float | None
    concurrent: int | None
    seed: int
    sampler: str
    scheduler: str
    probe: bool
    out: Path
    name: str
    resume: Path | None
    address: str | None
    storage: str | None
    quiet: bool
    verbose: bool
    names_space: bool = False
    """Whether --space was given; a run that is carried on has its own else."""

    def apply_to(self, space: Space) -> Space:
        """Return the space with what the command line changes in it."""
        space = replace(
            space,
            trials=self.trials or space.trials,
            epochs=self.epochs or space.epochs,
            folds=self.folds or space.folds,
        )
        return space.with_backbones(self.backbones) if self.backbones else space

    @property
    def shared(self) -> SharedFiles | None:
        """The run's folder in storage, if there is storage."""
        return None if self.storage is None else SharedFiles(self.storage, self.folder.name)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.resume or self.out / self.name

    def as_json(self) -> dict[str, Any]:
        """Return what a run keeps of its request, as JSON takes it; paths are made absolute."""
        kept = asdict(self)
        return {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in kept.items()}

    def merge_with_saved(self, kept: dict[str, Any]) -> Request:
        """Return the request of an earlier run, with what this command line says anew.

        Raises:
            RequestError: it says anew what a run cannot change.
        """
        paths = ("data", "external", "exclude", "weights")
        old: dict[str, Any] = {k: Path(v) if (v := kept.get(k)) else None for k in paths}
        old |= {"backbones": tuple(kept["backbones"]) if kept["backbones"] else None}
        for name in (
            "limit",
            "trials",
            "epochs",
            "folds",
            "finalists",
            "time_budget_seconds",
            "concurrent",
            "storage",
        ):
            old[name] = kept.get(name)
        said = {k: v for k in old if (v := getattr(self, k)) is not None}
        for name in ("backbones", "limit"):
            if name in said and said[name] != old[name]:
                began = "without it" if old[name] is None else f"with {old[name]}"
                raise RequestError(
                    f"--{name} of a run cannot change: it began {began}; begin a new run"
                )
        fixed = {k: kept[k] for k in ("seed", "sampler", "scheduler", "probe")}
        for name, began in fixed.items():
            asked = getattr(self, name)
            if asked not in (began, _parser().get_default(name)):
                raise RequestError(
                    f"--{name} of a run cannot change: it began with {began}, but got {asked};"
                    " begin a new run"
                )
        return replace(self, space=self.folder / "space.py", **{**old, **said, **fixed})


def parse_request(arguments: Sequence[str] | None = None) -> Request:
    """Read the command line; exits with 2 and a usage line where it is malformed."""
    options = vars(_parser().parse_args(arguments))
    options["names_space"] = options["space"] is not None
    own = options["resume"] and options["resume"] / "space.py"
    space: Path = options["space"] or own or _default_space()
    options["space"] = space
    options["name"] = options["name"] or f"{space.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return Request(**options)


def load_requested_space(request: Request) -> Space:
    """Load the space and change in it what the command line asks for.

    Raises:
        SpaceError: the space, or what the command line makes of it, breaks a rule.
    """
    return request.apply_to(load_space(request.space))


def _default_space() -> Path:
    """Return the embedded space: the checkout's, or the installed package's."""
    here = Path(DEFAULT_SPACE)
    return here if here.is_file() else Path(spaces.__path__[0]) / here.name


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one message."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
        help="images from elsewhere, flat or a folder per class",
    )
    what.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="images to leave out: a name a line, or lines of audit.csv or label_issues.csv",
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
        "--limit", type=_whole(10), metavar="N", help="at most N images, stratified (a quick try)"
    )
    how = parser.add_argument_group("how long and how")
    how.add_argument("--trials", type=_whole(1), metavar="N", help="trials in all")
    how.add_argument("--epochs", type=_whole(1), metavar="N", help="full length of a trial")
    how.add_argument("--folds", type=_whole(2), metavar="K", help="folds of the retraining")
    how.add_argument(
        "--finalists",
        type=_whole(1),
        metavar="N",
        help="retrain the N best, and let the folds decide (default: 1)",
    )
    how.add_argument(
        "--time-budget",
        type=_seconds,
        dest="time_budget_seconds",
        metavar="30m",
        help="end within about this time (s, m or h), with the best found so far",
    )
    how.add_argument(
        "--concurrent",
        type=_whole(1),
        metavar="N",
        help="trials at a time (default: as many as the machines take; 1 repeats exactly)",
    )
    how.add_argument(
        "--seed",
        type=_whole(0, 2**32 - 1),  # as far as NumPy's and scikit-learn's go
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
        help="no linear probe before the trials, and heads begin at random",
    )
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, default=Path("results"), help="default: %(default)s")
    where.add_argument("--name", help="the run's folder in --out (default: space and time)")
    where.add_argument(
        "--resume",
        type=Path,
        metavar="RUN_DIR",
        help="carry a run on, or extend it with a larger --trials",
    )
    where.add_argument(
        "--address", help="Ray cluster to join, such as auto (default: this machine)"
    )
    where.add_argument(
        "--storage",
        metavar="URL",
        help="for checkpoints and a copy of the run on a cluster: s3://bucket/folder, or a folder"
        " that all machines share (default: all comes to this machine)",
    )
    shown = parser.add_argument_group("what is shown").add_mutually_exclusive_group()
    shown.add_argument("-q", "--quiet", action="store_true", help="print only the result")
    shown.add_argument(
        "-v", "--verbose", action="store_true", help="show the log, each epoch of each trial too"
    )
    return parser


def _whole(low: int, high: float = math.inf) -> Any:
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, but got {text!r}") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, but got {value}")
        if value > high:
            raise argparse.ArgumentTypeError(f"must be at most {high}, but got {value}")
        return value

    return whole


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
