"""Check and create the trackers that `--log` and `--study` name."""

from __future__ import annotations

import netrc
import os
from importlib.util import find_spec
from urllib.parse import urlsplit

from search.reporting.trackers.base import Tracker
from search.runs.environment import Environment, Request
from spaces.errors import SearchError

_EXTRAS = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
_OFFLINE = "wandb=offline"


class TrackerError(SearchError):
    """A tracker of `--log` cannot be used."""


def check_trackers(request: Request) -> None:
    """Check that the packages are there, and that the database can be reached.

    Raises:
        TrackerError: a package or the login is missing.
        DatabaseError: the database of `--study` cannot be used.
    """
    for name in request.log or ():
        package = name.partition("=")[0]
        if find_spec(package) is None:
            raise TrackerError(
                f"--log {package} needs {_EXTRAS[package]}: pip install '.[{package}]' in a"
                f" checkout, else pip install 'classifier-search[{package}]'"
            )
        if name == "wandb" and not _has_wandb_login():
            raise TrackerError(
                "--log wandb needs an API key, but there is none: run wandb login, set"
                f" WANDB_API_KEY, or give --log {_OFFLINE}"
            )
    if request.study is not None:
        from search.reporting.trackers.database import check_database

        check_database(request.study)


def check_study(request: Request, environment: Environment) -> None:
    """Check that no other run's study has this run's name in the database of `--study`.

    Raises:
        DatabaseError: one has.
    """
    if request.study is not None:
        from search.reporting.trackers.database import check_study_name

        check_study_name(request.study, environment.request.name, environment.run_id)


def create_trackers(request: Request) -> list[Tracker]:
    """Create the trackers; nothing is connected yet."""
    trackers: list[Tracker] = []
    for name in request.log or ():
        package, _, place = name.partition("=")
        if package == "mlflow":
            from search.reporting.trackers.mlflow_tracker import MlflowTracker

            trackers.append(MlflowTracker(place or None))
        else:
            from search.reporting.trackers.wandb_tracker import WandbTracker

            trackers.append(WandbTracker(offline=name == _OFFLINE))
    if request.study is not None:
        from search.reporting.trackers.database import StudyCopy

        trackers.append(StudyCopy(request.study))
    return trackers


def _has_wandb_login() -> bool:
    """Return whether `wandb` has an API key, or needs none; it would ask for one otherwise."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE", "online") != "online":
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
