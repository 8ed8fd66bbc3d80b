"""Define the options of `python -m search.run`; long, as it has the help of each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from search.console.arguments import (
    Parser,
    Show,
    add_labels,
    add_max_megapixels,
    positive_number,
    run_folders,
    seconds,
    setting,
    split_names,
    whole_number,
)
from search.console.space_list import list_spaces
from spaces.base import find_space
from spaces.portfolio import AUTO
from spaces.rules import BACKBONE_NAMES, RULES, Metric, Value, backbone_problem


def create_parser() -> Parser:
    """Return the parser of `python -m search.run`."""
    parser = Parser(
        prog="python -m search.run",
        usage="python -m search.run [--data DIR] [--time-budget 30m] [options]",
        description="""\
Find the best image classifier for a folder of images, and prove how good it is.

Give a folder that holds a folder of images per class. Pretrained networks are tried, the best is
trained in many ways, and the winner is cross-validated and evaluated on images that took no part in
any choice. Everything is written to a folder in results/. Without options, the embedded
handwritten digits are searched, which needs no download and takes two minutes.""",
        epilog="""\
examples:
  python -m search.run --data photos --time-budget 30m
  python -m search.run --data photos --external phone-photos --classes cat,dog
  python -m search.run --space tools --data photos --set lr=1e-3 --trials 20
  python -m search.run --resume results/photos-1 --trials 60

Ctrl-C ends a run in good order: everything that has finished is kept, and --resume goes on.
exit codes: 0 finished, 1 failed, 2 wrong request, 130 interrupted""",
    )
    _add_images(parser)
    _add_search(parser)
    _add_length(parser)
    _add_policy(parser)
    _add_places(parser)
    _add_dashboards(parser)
    _add_output(parser)
    return parser


def _add_images(parser: Parser) -> None:
    group = parser.add_argument_group("your images")
    group.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the images: a folder per class, or train/ [val/] test/ with a folder per class each;"
        " or an archive of them",
    )
    add_labels(group)
    group.add_argument(
        "--classes",
        type=_classes,
        metavar="A,B",
        help="use only these classes, in this order (default: all that there are)",
    )
    group.add_argument(
        "--external",
        type=Path,
        metavar="DIR",
        help="external test set, such as photos of another camera: flat or a folder per class; the"
        " finished model is evaluated on it, and nothing else uses it",
    )
    group.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="images to exclude: a name per line, or lines of audit.csv or label_issues.csv",
    )
    group.add_argument(
        "--limit",
        type=whole_number(10),
        metavar="N",
        help="use at most N images, the same fraction of every class: for a quick try",
    )
    add_max_megapixels(group)


def _add_search(parser: Parser) -> None:
    group = parser.add_argument_group("what to search")
    group.add_argument(
        "--space",
        type=find_space,
        metavar="SPACE",
        help="the networks and the ranges of their hyperparameters: a name (see --list-spaces) or a"
        " Python file of your own (default: photos where --data is given, else digits)",
    )
    group.add_argument(
        "--list-spaces", action=Show, text=list_spaces, help="print the spaces and exit"
    )
    group.add_argument(
        "--backbones",
        type=_backbones,
        metavar="A,B",
        help="search these pretrained networks instead of the space's; auto: a portfolio of"
        " different kind and cost, and those that --weights has",
    )
    group.add_argument(
        "--max-latency",
        type=positive_number,
        dest="max_latency_ms",
        metavar="MS",
        help="search no network that takes longer for one image on this machine, in milliseconds,"
        " and join no finalists that together do",
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="read pretrained weights from DIR instead of downloading them: files <backbone>.pth or"
        " .safetensors, or as they are published",
    )
    group.add_argument(
        "--image-size",
        type=whole_number(16, 1024),
        metavar="PX",
        help="side in pixels of what a network sees (default: the space's, mostly 224); half of it"
        " is about four times as fast",
    )
    group.add_argument(
        "--batch-size",
        type=_batch_size,
        dest="settings",
        action="append",
        metavar="N",
        help="images per training step, instead of the space's; the same as --set batch_size=N",
    )
    group.add_argument(
        "--set",
        type=setting,
        dest="settings",
        action="append",
        metavar="NAME=VALUE",
        help="fix a hyperparameter instead of searching it, such as --set lr=1e-3; may be repeated"
        f" (names: {', '.join(name for name in RULES if name != 'backbone')})",
    )


def _add_length(parser: Parser) -> None:
    group = parser.add_argument_group("how long")
    group.add_argument(
        "--time-budget",
        type=seconds,
        dest="time_budget_seconds",
        metavar="TIME",
        help="use this time, such as 90s, 30m, 1h30m or 2d, and end within it, with the best model"
        " that was found (default: end when all trials have ended)",
    )
    group.add_argument(
        "--trials",
        type=whole_number(1),
        metavar="N",
        help="configurations to try, those of the run that is resumed included (default: the"
        " space's number; with --time-budget, as many as there is time for)",
    )
    group.add_argument(
        "--patience-trials",
        type=whole_number(1),
        metavar="N",
        help="end the search after N trials in a row that bring no better one",
    )
    group.add_argument(
        "--epochs",
        type=whole_number(1),
        metavar="N",
        help="epochs of a trial that is not stopped early",
    )
    group.add_argument(
        "--folds", type=whole_number(2), metavar="K", help="folds of the cross-validation"
    )
    group.add_argument(
        "--finalists",
        type=whole_number(1),
        metavar="N",
        help="cross-validate the N best trials and take the best of them (default: 1)",
    )


def _add_policy(parser: Parser) -> None:
    group = parser.add_argument_group("how to search (the defaults are good)")
    group.add_argument(
        "--metric",
        choices=get_args(Metric),
        help="what backbones, trials and finalists are compared by, and what the report begins with"
        " (default: the space's, mostly accuracy)",
    )
    group.add_argument(
        "--max-concurrent",
        type=whole_number(1),
        metavar="N",
        help="trials in parallel (default: as many as the machines take; 1 repeats exactly)",
    )
    group.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),  # the range of NumPy's and scikit-learn's seeds
        default=0,
        metavar="S",
        help="splits and proposals follow from it (default: %(default)s)",
    )
    group.add_argument(
        "--sampler",
        choices=("tpe", "gp", "random", "grid"),
        default="tpe",
        help="how configurations are proposed (default: tpe, which learns from ended trials; gp, a"
        " Gaussian process, learns from complete ones)",
    )
    group.add_argument(
        "--warm-start",
        type=run_folders,
        metavar="RUN,…",
        help="folders of earlier runs, whose best configurations are tried after the space's first"
        " trials",
    )
    group.add_argument(
        "--scheduler",
        choices=("asha", "none"),
        default="asha",
        help="asha stops poor trials early; none trains all to full length (default: asha)",
    )
    group.add_argument(
        "--no-probe",
        dest="probe",
        action="store_false",
        help="no linear probe before the trials, and heads are initialised at random",
    )


def _add_places(parser: Parser) -> None:
    group = parser.add_argument_group("where")
    group.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="the folder of all runs (default: %(default)s)",
    )
    group.add_argument("--name", help="the run's folder in --out (default: space and time)")
    group.add_argument(
        "--resume",
        type=Path,
        metavar="RUN_DIR",
        help="resume an interrupted run, or extend a finished one with a larger --trials",
    )
    group.add_argument(
        "--address", help="Ray cluster to join, such as auto (default: this machine)"
    )
    group.add_argument(
        "--storage",
        metavar="URL",
        help="for checkpoints and a copy of the run on a cluster: s3://bucket/folder, or a folder"
        " that all machines reach (default: everything is sent to this machine)",
    )


def _add_dashboards(parser: Parser) -> None:
    group = parser.add_argument_group("dashboards")
    group.add_argument(
        "--log",
        type=_trackers,
        action="extend",
        metavar="TRACKER",
        help="log the run and every trial as well: mlflow, mlflow=URI, wandb or wandb=offline; may"
        " be repeated",
    )
    group.add_argument(
        "--study",
        type=_database_url,
        metavar="URL",
        help="copy the study into a database, live and beside those of other runs, for"
        " optuna-dashboard: sqlite:///studies.db, postgresql://host/name …",
    )


def _add_output(parser: Parser) -> None:
    group = parser.add_argument_group("what is shown").add_mutually_exclusive_group()
    group.add_argument(
        "-q", "--quiet", action="store_true", help="print only the result, as one line"
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print only the summary of the finished run, as JSON; warnings go to the error output",
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", help="print the run log as well, as it is written"
    )


def _classes(text: str) -> tuple[str, ...]:
    names = split_names(text)
    if len(names) < 2:
        raise argparse.ArgumentTypeError(
            f"must name two classes or more, such as cat,dog, but got {text!r}"
        )
    return names


def _backbones(text: str) -> tuple[str, ...]:
    names = split_names(text)
    if not names:
        raise argparse.ArgumentTypeError("must name at least one backbone")
    named = () if names == (AUTO,) else names
    if problems := [problem for name in named if (problem := backbone_problem(name))]:
        raise argparse.ArgumentTypeError(f"{'; '.join(problems)} (there are: {BACKBONE_NAMES})")
    return names


def _trackers(text: str) -> tuple[str, ...]:
    """Read "mlflow", "mlflow=URI", "wandb" or "wandb=offline", or several with commas."""
    names = split_names(text)
    for name in names:
        is_mlflow = name == "mlflow" or (name.startswith("mlflow=") and name != "mlflow=")
        if not is_mlflow and name not in ("wandb", "wandb=offline"):
            raise argparse.ArgumentTypeError(
                f"must be mlflow, mlflow=URI, wandb or wandb=offline, but got {name!r}"
            )
    if not names:
        raise argparse.ArgumentTypeError("must name a tracker: mlflow or wandb")
    return names


def _database_url(text: str) -> str:
    """Read the URL of a database; that of an SQLite file becomes absolute."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the latter of a port that is no number
        raise argparse.ArgumentTypeError(
            f"must be the URL of a database, such as sqlite:///studies.db, but got {text!r}"
        ) from None
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        url = url.set(database=str(Path(str(url.database)).expanduser().absolute()))
    return url.render_as_string(hide_password=False)


def _batch_size(text: str) -> tuple[str, Value]:
    return setting(f"batch_size={text}")
