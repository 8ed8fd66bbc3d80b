"""The space's first trial alone: `search.run` in which only trial 0 is a finalist.

It is trained and cross-validated as in any run, and begins with the linear probe's head. A plain
run with `--trials 1` would let the probe itself win. The words of the command line are those of
`search.run`.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

from search.cluster.session import configure_ray
from search.run import main as run
from search.tuning.study import BASELINE_TRIAL


def main() -> int:
    """Run `search.run` with the words of the command line; return its exit code."""
    configure_ray()  # before Ray is imported
    from search.pipeline import flow
    from search.pipeline.finalists import Finalist, choose_finalists

    def only_first(*arguments: Any, **named: Any) -> list[Finalist]:
        chosen = choose_finalists(*arguments, **named)
        return [finalist for finalist in chosen if finalist.trial == BASELINE_TRIAL]

    with mock.patch.object(flow, "choose_finalists", only_first):
        return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
