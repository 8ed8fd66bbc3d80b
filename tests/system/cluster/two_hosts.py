"""Compare the Caltech search on two hosts with one host: at most 0.6 of the time.

```
python -m tests.system.cluster.two_hosts
```

Each host has one core. The whole command is timed, all stages included. Trials are sampled at
random and run to their full length, so that both sides do the same work. Needs root (see `hosts`),
two idle cores and about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.system.cluster.hosts import Hosts, missing_requirement, planned_hosts
from tests.system.cluster.launcher import ROOT, Cluster
from tests.system.cluster.runs import CALTECH, CALTECH_OPTIONS, Outcome, Run, give_caltech

TARGET = 0.6
BACKBONE = "mobilenet_v2"
OPTIONS = (
    *("--backbones", BACKBONE, "--limit", "400", "--epochs", "3", "--folds", "4"),
    *("--sampler", "random", "--scheduler", "none"),
)
N_TRIALS = 16


def search(hosts: Hosts, n_hosts: int, data: Path, n_trials: int) -> Outcome:
    """Run the search on a cluster of the first hosts, and stop the cluster."""
    head, *workers = hosts.all[:n_hosts]
    cluster = Cluster(head, workers)
    cluster.up(n_hosts)
    give_caltech(head, data, BACKBONE)
    outcome = Run(head, f"on-{n_hosts}", *CALTECH_OPTIONS, *OPTIONS, n_trials=n_trials).finish()
    cluster.down()
    return outcome


def report(one: Outcome, two: Outcome) -> float:
    """Print the seconds of both sides by stage, and return the ratio of their sums."""
    print(f"{'stage':<18}{'one host':>10}{'two hosts':>11}{'ratio':>7}")
    for stage, seconds in one.stages.items():
        other = two.stages[stage]
        print(f"{stage:<18}{seconds:>10.1f}{other:>11.1f}{other / max(seconds, 0.1):>7.2f}")
    ratio = two.seconds / one.seconds
    print(f"{'all':<18}{one.seconds:>10.1f}{two.seconds:>11.1f}{ratio:>7.2f}")
    for outcome in (one, two):
        for host in sorted({*outcome.trials, *outcome.folds}):
            print(f"{host}: {outcome.trials[host]} trials, {outcome.folds[host]} folds")
        print(f"lost: {outcome.lost}")
    return ratio


def main() -> int:
    """Time both sides; return 1 if the target is missed or something was lost, 2 without hosts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--trials", type=int, default=N_TRIALS)
    arguments = parser.parse_args()
    if reason := missing_requirement():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    if not (arguments.data / CALTECH).is_dir():
        print(f"error: there is no {arguments.data / CALTECH}; give --data", file=sys.stderr)
        return 2
    with planned_hosts(2) as hosts:
        one, two = (search(hosts, n, arguments.data, arguments.trials) for n in (1, 2))
    ratio = report(one, two)
    met = ratio <= TARGET and one.lost == two.lost == 0
    print(f"two hosts over one: {ratio:.2f}, target ≤ {TARGET}: {'met' if met else 'MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
