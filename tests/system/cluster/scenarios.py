"""Searches on three hosts, with machines that come, go and are cut off.

```
make cluster-test
```

prints, scenario by scenario and host by host, which trials and folds ran, and what was lost. Needs
root (see `hosts`); about twenty minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.cluster.hosts import BASE, Hosts, missing, planned_hosts
from tests.system.cluster.launcher import ROOT, Cluster, python
from tests.system.cluster.runs import (
    CALTECH,
    CALTECH_OPTIONS,
    SPACE,
    Outcome,
    Run,
    give_caltech,
    shape,
)

CUT_SECONDS = 20.0
GONE_PATIENCE_SECONDS = 120.0
BACKBONE = "squeezenet1_0"
N_TRIALS = 12
DIGITS = ("--space", "~/space.py", "--limit", "600")
TRIAL, FOLD = "Trainable.train", "_train_fold"
"""What Ray calls a process that trains a trial, or a fold."""


class Scenarios:
    """Runs them in order, on one cluster, and keeps the table."""

    def __init__(self, hosts: Hosts, cluster: Cluster, data: Path | None) -> None:
        self.hosts, self.cluster, self.data = hosts, cluster, data
        self.failed: list[str] = []
        self._run: Run | None = None

    def run(self, wanted: list[str]) -> None:
        """Run those whose name holds one of these words; all where there is none."""
        for scenario in (
            self.started,
            self.refused,
            self.added,
            self.cut,
            self.killed_in_the_search,
            self.killed_in_the_folds,
            self.caltech,
            self.alone,
            self.ended,
        ):
            always = scenario in (self.started, self.ended)
            if always or not wanted or any(word in scenario.__name__ for word in wanted):
                self._tell(scenario)
            if self.failed == ["started"]:
                break

    def started(self) -> str:
        """`ray up` from the example file; the third host is off."""
        self.hosts.all[2].kill()
        self.cluster.up(2)
        (BASE / "space.py").write_text(SPACE)
        self.cluster.head.put(BASE / "space.py", "~/space.py")
        return "joined: " + ", ".join(self.cluster.addresses())

    def refused(self) -> str:
        """Clients without a token, with none where they say it is, and with a wrong one."""
        host = self.hosts.all[1]
        address = f"{self.cluster.head.address}:6379"
        host.put(ROOT, "~/client")
        for variables in (
            "HOME=/root/client",
            "RAY_AUTH_TOKEN_PATH=/root/none",
            "RAY_AUTH_TOKEN=wrong",
        ):
            done = host.run(
                f"cd ~/client && RAY_AUTH_MODE=token {variables}"
                f" {python()} -m search.run --address {address}",
                check=False,
            )
            shown = f"{variables}: exit code {done.returncode}: {done.stdout}{done.stderr}"
            check(done.returncode == 2, shown)
            check("refuses this machine" in shown, shown)
            check("Traceback" not in shown, shown)
        return "refused three times, exit code 2"

    def added(self) -> str:
        """A host that was off joins while a search runs, and gets trials."""
        run = self._start("added", trials=1000)
        run.wait_until(lambda: len(run.hosts()) == 2)
        self.hosts.all[2].start(self.hosts.visible)
        began = time.monotonic()
        run.wait_until(lambda: len(run.hosts()) == 3)
        seconds = time.monotonic() - began
        run.stop()
        run.carry_on(n_trials=run.ended() + 3)
        outcome = run.finish()
        check(len(outcome.folds) == 3, f"folds ran on {dict(outcome.folds)}")
        return f"{describe(outcome)}; first trial of the host {seconds:.0f} s after it was started"

    def cut(self) -> str:
        """A host is unplugged for a while, in the middle of a trial."""
        self._all_there()
        n_given_up = self.cluster.n_given_up()
        run = self._start("cut")
        host = self.hosts.all[1]
        run.wait_until(lambda: run.epochs() >= 3 and bool(host.processes(TRIAL)))
        host.cut()
        time.sleep(CUT_SECONDS)
        host.mend()
        outcome = run.finish()
        self.cluster.wait_for(3)
        check(self.cluster.n_given_up() == n_given_up, f"{host.name} was given up")
        return f"{host.name} unplugged for {CUT_SECONDS:.0f} s; {describe(outcome)}"

    def killed_in_the_search(self) -> str:
        """A host dies in the middle of a trial, after it has ended others, and comes back."""
        host = self.hosts.all[2]
        return self._killed(
            "killed-search",
            lambda run: host.address in run.hosts() and bool(host.processes(TRIAL)),
            2 * N_TRIALS,
        )

    def killed_in_the_folds(self) -> str:
        """A host dies in the middle of a fold, and comes back."""
        host = self.hosts.all[2]
        return self._killed(
            "killed-folds", lambda run: run.folds_begun() and bool(host.processes(FOLD)), N_TRIALS
        )

    def caltech(self) -> str:
        """Real images, which only the head has."""
        self._all_there()
        if self.data is None:
            return "skipped: no images (give their folder with --data)"
        give_caltech(self.cluster.head, self.data, BACKBONE)
        run = self._search(
            "caltech",
            *CALTECH_OPTIONS,
            *("--backbones", BACKBONE, "--epochs", "4", "--folds", "3", "--limit", "300"),
            n_trials=9,
        )
        outcome = run.finish(3600)
        check(len(outcome.trials) == 3, f"trials ran on {dict(outcome.trials)}")
        for worker in self.cluster.workers:
            check(not (worker.home / "images").exists(), "a worker has images")
        return describe(outcome)

    def alone(self) -> str:
        """The same search on a single machine has the same files, columns and keys."""
        with_others = self.cluster.head.home / "results" / "cut"
        check(with_others.is_dir(), "it is compared with the run of `cut`, which is not there")
        return same_shape_as_alone(with_others)

    def ended(self) -> str:
        """`clusters/down.py` leaves no process on any host."""
        self._all_there()
        self.cluster.down()
        until = time.monotonic() + GONE_PATIENCE_SECONDS
        while left := [line for h in self.hosts.all for line in h.processes("ray")]:
            check(time.monotonic() < until, "\n".join(left))
            time.sleep(2)
        return "no process is left"

    def _killed(self, name: str, moment: Callable[[Run], bool], trials: int) -> str:
        self._all_there()
        host = self.hosts.all[2]
        run = self._start(name, trials)
        run.wait_until(lambda: moment(run))
        host.kill()
        outcome = run.finish()
        return f"{host.name} killed; {describe(outcome)}"

    def _all_there(self) -> None:
        """Switch on what is off, and wait until it has joined by itself."""
        for host in self.hosts.all:
            if not host.is_on:
                host.start(self.hosts.visible)
        self.cluster.wait_for(len(self.hosts.all), patience_seconds=600)

    def _start(self, name: str, trials: int = N_TRIALS) -> Run:
        return self._search(name, *DIGITS, n_trials=trials)

    def _search(self, name: str, *options: str, n_trials: int) -> Run:
        self._run = Run(self.cluster.head, name, *options, n_trials=n_trials)
        return self._run

    def _tell(self, scenario: Callable[[], str]) -> None:
        """Run one and print what it came to; one that fails keeps no other from running."""
        name = scenario.__name__.replace("_", " ")
        began = time.monotonic()
        try:
            told = scenario()
        except (AssertionError, RuntimeError, subprocess.SubprocessError) as error:
            self.failed.append(name)
            if self._run is not None:
                self._run.abandon()
            told = f"FAILED: {error}"
        print(f"{name:<22}{time.monotonic() - began:6.0f} s  {told}", flush=True)


def describe(outcome: Outcome) -> str:
    """Return an outcome as one line, host by host; an outcome with losses is an error."""
    check(outcome.lost == 0, f"{outcome.lost} trials were lost")
    hosts = sorted({*outcome.trials, *outcome.folds})
    by_host = "; ".join(f"{h}: {outcome.trials[h]} trials, {outcome.folds[h]} folds" for h in hosts)
    return f"{by_host}; lost: {outcome.lost}"


def check(holds: bool, otherwise: str) -> None:
    """Raise where something does not hold."""
    if not holds:
        raise AssertionError(otherwise)


def same_shape_as_alone(run_folder: Path) -> str:
    """Compare a run with one of a single machine: the same files, columns and keys."""
    space, out = BASE / "space.py", BASE / "alone"
    subprocess.run(
        [
            *(sys.executable, "-m", "search.run", "--space", space, "--limit", "600"),
            *("--trials", "3", "--out", out, "--name", "alone", "-q"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=1800,
    )
    ours, theirs = shape(out / "alone"), shape(run_folder)
    differing = {k for k in ours | theirs if ours.get(k, 0) != theirs.get(k, 0)}
    check(not differing, f"{differing} differ from a single machine's run")
    return f"{len(ours)} kinds of files, columns and keys as on a single machine"


def main() -> int:
    """Run all; exit code 1 where something was lost, 2 where there can be no hosts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="those whose name holds such a word")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    data = arguments.data if (arguments.data / CALTECH).is_dir() else None
    began = time.monotonic()
    with planned_hosts(3) as hosts:
        head, *workers = hosts.all
        scenarios = Scenarios(hosts, Cluster(head, workers), data)
        scenarios.run(arguments.only)
    minutes = f"{(time.monotonic() - began) / 60:.0f} minutes"
    if scenarios.failed:
        print(f"FAILED: {', '.join(scenarios.failed)}; {minutes}", file=sys.stderr)
        return 1
    print(f"nothing was lost; {minutes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
