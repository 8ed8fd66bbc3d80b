"""Options in Python and words of the command line."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search.api.options import as_arguments, request_of
from search.console.run_options import create_parser
from search.pipeline.request import RequestError, parse_request


def test_every_option_of_the_command_line_has_its_name_in_python() -> None:
    """`as_arguments` reads a private list of argparse, so it is compared with what users see."""
    shown = re.findall(r"^  (?:-\w, )?--([\w-]+)", create_parser().format_help(), re.MULTILINE)
    names = {name.replace("-", "_") for name in shown} - {"help", "version", "list_spaces"}
    with pytest.raises(RequestError, match="there are: ") as refused:
        as_arguments({"no such": 1})
    known = set(re.findall(r"\w+", str(refused.value).split("there are: ")[1]))
    assert len(names) >= 20
    assert names <= known
    assert known - names == {"probe"}, "a switch has the name of its value, too"


def test_options_become_a_request() -> None:
    options = {
        "data": Path("a b"),
        "external": "-x",
        "time_budget": "1h30m",
        "trials": 7,
        "backbones": ["cnn", "tinynet"],
        "probe": False,
        "quiet": True,
        "verbose": False,
        "weights": None,
        "name": "one",
        "set": {"lr": 1e-3, "scheduler": "cosine"},
    }
    request = request_of(as_arguments(options))
    assert request.data == Path("a b")
    assert request.external == Path("-x")
    assert request.time_budget_seconds == 5400
    assert request.trials == 7
    assert request.backbones == ("cnn", "tinynet")
    assert (request.probe, request.quiet, request.verbose) == (False, True, False)
    assert request.weights is None
    assert request.constants == {"lr": 1e-3, "scheduler": "cosine"}
    assert request == parse_request(as_arguments(options)), "as the command has it"
    assert as_arguments({"probe": True, "no_probe": False}) == []
    assert as_arguments({"no_probe": True}) == as_arguments({"probe": False}) == ["--no-probe"]
    assert (
        request_of(as_arguments({"time_budget": timedelta(minutes=2)})).time_budget_seconds == 120
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"external_": "x"}, "there is no option 'external_'; did you mean 'external'?"),
        ({"help": True}, "there is no option 'help'"),
        ({"folds": 1}, "folds: must be a whole number >= 2, but got '1'"),
        ({"time_budget": 30}, "time_budget: must have a unit, such as 30s, 30m"),
        ({"backbones": ["resnet81"]}, "there is no backbone 'resnet81'; did you mean 'resnet18'?"),
        ({"sampler": "tpf"}, "sampler: invalid choice: 'tpf'"),
        ({"quiet": "yes"}, "quiet must be True or False, but got 'yes'"),
        ({"data": True}, "data must be a text, a number or a path, but is of type bool"),
        ({"data": pd.DataFrame()}, "is of type DataFrame: save it with to_csv, and give the file"),
        ({"quiet": True, "verbose": True}, "not allowed with argument"),
    ],
)
def test_mistakes_are_the_projects_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        request_of(as_arguments(options))  # type: ignore[arg-type]


def test_values_keep_their_meaning_as_words() -> None:
    options = {
        "trials": np.int64(7),
        "time_budget": timedelta(days=14, microseconds=500_000),
        "set": {"class_weights": True, "lr": np.float64(1e-3), "batch_size": np.int64(16)},
    }
    request = request_of(as_arguments(options))
    assert request.trials == 7
    assert request.time_budget_seconds == 14 * 86_400 + 0.5
    assert request.constants == {"class_weights": True, "lr": 1e-3, "batch_size": 16}
    with pytest.raises(RequestError, match="classes cannot hold a name with a comma"):
        as_arguments({"classes": ["a,b", "c"]})
