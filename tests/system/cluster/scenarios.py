"""Run searches on three hosts, with nodes that join, leave, are killed and lose their network.

```
make cluster-test
```

prints, for each scenario, how many trials and folds ran on each host, and what was lost. Needs root
(see `hosts`), and about twenty minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.cluster.hosts import BASE, Hosts, missing_requirement, planned_hosts
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

DISCONNECTED_SECONDS = 20.0
TEARDOWN_SECONDS = 120.0
BACKBONE = "squeezenet1_0"
N_TRIALS = 12
DIGITS = ("--space", "~/space.py", "--limit", "600")
TRIAL, FOLD = "Trainable.train", "train_fold"
"""In the names that Ray gives to processes that train a trial, or a fold."""


class Scenarios:
    """The scenarios, to be run in their order on one cluster."""

    def __init__(self, hosts: Hosts, cluster: Cluster, data: Path | None) -> None:
        self.hosts, self.cluster, self.data = hosts, cluster, data
        self.failed: list[str] = []
        self._run: Run | None = None

    def run(self, wanted: list[str]) -> None:
        """Run the scenarios whose name contains one of these words; all if there are no words."""
        for scenario in (
            self.launch,
            self.wrong_token,
            self.node_joins,
            self.node_disconnected,
            self.node_killed_in_search,
            self.node_killed_in_folds,
            self.caltech,
            self.same_as_single_machine,
            self.teardown,
        ):
            always = scenario in (self.launch, self.teardown)
            if always or not wanted or any(word in scenario.__name__ for word in wanted):
                self._report(scenario)
            if self.failed == ["launch"]:
                break

    def launch(self) -> str:
        """Launch the cluster with `ray up` and the example file; the third host is off."""
        self.hosts.all[2].kill()
        self.cluster.up(2)
        (BASE / "space.py").write_text(SPACE)
        self.cluster.head.put(BASE / "space.py", "~/space.py")
        return "joined: " + ", ".join(self.cluster.addresses())

    def wrong_token(self) -> str:
        """Connect without a token, with a missing token file, and with a wrong token."""
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

    def node_joins(self) -> str:
        """Start a host while a search runs: it joins, and runs trials."""
        run = self._start("joins", trials=1000)
        run.wait_until(lambda: len(run.hosts()) == 2)
        self.hosts.all[2].start(self.hosts.visible)
        began = time.monotonic()
        run.wait_until(lambda: len(run.hosts()) == 3)
        seconds = time.monotonic() - began
        run.stop()
        run.resume(n_trials=run.ended() + 3)
        outcome = run.finish()
        check(len(outcome.folds) == 3, f"folds ran on {dict(outcome.folds)}")
        return f"{describe(outcome)}; first trial of the host {seconds:.0f} s after it was started"

    def node_disconnected(self) -> str:
        """Disconnect a host for a while, in the middle of a trial."""
        self._start_all_hosts()
        n_dead = self.cluster.n_dead()
        run = self._start("disconnected")
        host = self.hosts.all[1]
        run.wait_until(lambda: run.epochs() >= 3 and bool(host.processes(TRIAL)))
        host.disconnect()
        time.sleep(DISCONNECTED_SECONDS)
        host.reconnect()
        outcome = run.finish()
        self.cluster.wait_for(3)
        check(self.cluster.n_dead() == n_dead, f"Ray declared {host.name} dead")
        return f"{host.name} disconnected for {DISCONNECTED_SECONDS:.0f} s; {describe(outcome)}"

    def node_killed_in_search(self) -> str:
        """Kill a host in the middle of a trial, after others ended there, and start it again."""
        host = self.hosts.all[2]
        return self._killed(
            "killed-search",
            lambda run: host.address in run.hosts() and bool(host.processes(TRIAL)),
            2 * N_TRIALS,
        )

    def node_killed_in_folds(self) -> str:
        """Kill a host in the middle of a fold, and start it again."""
        host = self.hosts.all[2]
        return self._killed(
            "killed-folds", lambda run: run.folds_begun() and bool(host.processes(FOLD)), N_TRIALS
        )

    def caltech(self) -> str:
        """Search on real images, which only the head has."""
        self._start_all_hosts()
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

    def same_as_single_machine(self) -> str:
        """Run the same search on a single machine: it has the same files, columns and keys."""
        on_cluster = self.cluster.head.home / "results" / "disconnected"
        check(on_cluster.is_dir(), "needs the run of `node_disconnected`")
        return compare_with_single_machine(on_cluster)

    def teardown(self) -> str:
        """Stop the cluster with `clusters/down.py`: no process of Ray is left on any host."""
        self._start_all_hosts()
        self.cluster.down()
        until = time.monotonic() + TEARDOWN_SECONDS
        while left := [line for h in self.hosts.all for line in h.processes("ray")]:
            check(time.monotonic() < until, "\n".join(left))
            time.sleep(2)
        return "no process is left"

    def _killed(self, name: str, moment: Callable[[Run], bool], trials: int) -> str:
        self._start_all_hosts()
        host = self.hosts.all[2]
        run = self._start(name, trials)
        run.wait_until(lambda: moment(run))
        host.kill()
        outcome = run.finish()
        return f"{host.name} killed; {describe(outcome)}"

    def _start_all_hosts(self) -> None:
        """Start the hosts that are off, and wait until they have joined by themselves."""
        for host in self.hosts.all:
            if not host.is_on:
                host.start(self.hosts.visible)
        self.cluster.wait_for(len(self.hosts.all), patience_seconds=600)

    def _start(self, name: str, trials: int = N_TRIALS) -> Run:
        return self._search(name, *DIGITS, n_trials=trials)

    def _search(self, name: str, *options: str, n_trials: int) -> Run:
        self._run = Run(self.cluster.head, name, *options, n_trials=n_trials)
        return self._run

    def _report(self, scenario: Callable[[], str]) -> None:
        """Run a scenario and print its result; after one that fails the next ones still run."""
        name = scenario.__name__.replace("_", " ")
        began = time.monotonic()
        try:
            result = scenario()
        except (AssertionError, RuntimeError, subprocess.SubprocessError) as error:
            self.failed.append(name)
            if self._run is not None:
                self._run.abandon()
            result = f"FAILED: {error}"
        print(f"{name:<22}{time.monotonic() - began:6.0f} s  {result}", flush=True)


def describe(outcome: Outcome) -> str:
    """Return an outcome in one line, host by host.

    Raises:
        AssertionError: something was lost.
    """
    check(outcome.lost == 0, f"{outcome.lost} trials were lost")
    hosts = sorted({*outcome.trials, *outcome.folds})
    by_host = "; ".join(f"{h}: {outcome.trials[h]} trials, {outcome.folds[h]} folds" for h in hosts)
    return f"{by_host}; lost: {outcome.lost}"


def check(holds: bool, otherwise: str) -> None:
    """Raise an AssertionError with a message if a condition does not hold."""
    if not holds:
        raise AssertionError(otherwise)


def compare_with_single_machine(run_folder: Path) -> str:
    """Compare a run's files, columns and keys with those of a run on a single machine."""
    space, out = BASE / "space.py", BASE / "single"
    subprocess.run(
        [
            *(sys.executable, "-m", "search.run", "--space", space, "--limit", "600"),
            *("--trials", "3", "--out", out, "--name", "single", "-q"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=1800,
    )
    single, cluster = shape(out / "single"), shape(run_folder)
    differing = {k for k in single | cluster if single.get(k, 0) != cluster.get(k, 0)}
    check(not differing, f"{differing} differ from a single machine's run")
    return f"{len(single)} kinds of files, columns and keys as on a single machine"


def main() -> int:
    """Run the scenarios; return 1 if something was lost, 2 if hosts cannot be created."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="words of the scenarios' names")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    if reason := missing_requirement():
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
