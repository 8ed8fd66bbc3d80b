"""Searches on three hosts, with machines that come, go and are cut off.

```
make cluster-test
```

prints, scenario by scenario and host by host, which trials and folds ran, and what was lost. Needs
root (see `hosts`); about fifteen minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hosts import BASE, Host, Hosts, missing
from launcher import ROOT, Cluster
from runs import SPACE, Outcome, Run, shape

CUT_SECONDS = 20.0
GONE_PATIENCE_SECONDS = 120.0
CALTECH = Path("caltech101") / "101_ObjectCategories"
N_TRIALS = 12
DIGITS = ("--space", "~/space.py", "--limit", "600")


class Scenarios:
    """Runs them in order, on one cluster, and keeps the table."""

    def __init__(self, hosts: Hosts, cluster: Cluster, data: Path | None) -> None:
        self.hosts, self.cluster, self.data = hosts, cluster, data
        self.rows: list[tuple[str, str]] = []

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
            self.ended,
        ):
            always = scenario in (self.started, self.ended)
            if always or not wanted or any(word in scenario.__name__ for word in wanted):
                self._tell(scenario)

    def started(self) -> str:
        """`ray up` from the example file; the third host is off."""
        self.hosts.all[2].kill()
        self.cluster.up(2)
        (BASE / "space.py").write_text(SPACE)
        self.cluster.head.put(BASE / "space.py", "~/space.py")
        return "joined: " + ", ".join(self.cluster.addresses())

    def refused(self) -> str:
        """A client without the token, and one with a wrong one."""
        host = self.hosts.all[1]
        address = f"{self.cluster.head.address}:6379"
        host.put(ROOT, "~/client")
        command = (
            f"cd ~/client && PATH={Path(sys.executable).parent}:$PATH RAY_AUTH_MODE=token {{}}"
            f" python -m search.run --address {address}"
        )
        for token in ("RAY_AUTH_TOKEN_PATH=/root/none", "RAY_AUTH_TOKEN=wrong"):
            done = host.run(command.format(token), check=False)
            shown = done.stdout + done.stderr
            check(done.returncode == 2, f"exit code {done.returncode}: {shown}")
            check("refuses this machine" in shown, shown)
            check("Traceback" not in shown, shown)
        return "refused twice, exit code 2"

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
        """A host is unplugged for a while."""
        self._all_there()
        run = self._start("cut")
        run.wait_until(lambda: run.epochs() >= 3)
        host = self.hosts.all[1]
        host.cut()
        time.sleep(CUT_SECONDS)
        host.mend()
        outcome = run.finish()
        self.cluster.wait_for(3)
        return f"{host.name} unplugged for {CUT_SECONDS:.0f} s; {describe(outcome)}"

    def killed_in_the_search(self) -> str:
        """A host dies while trials run, and comes back."""
        address = self.hosts.all[2].address
        return self._killed("killed-search", lambda run: address in run.hosts(), 2 * N_TRIALS)

    def killed_in_the_folds(self) -> str:
        """A host dies while folds are trained, and comes back."""
        return self._killed("killed-folds", Run.folds_begun, N_TRIALS)

    def caltech(self) -> str:
        """Real pictures, which only the head has."""
        self._all_there()
        if self.data is None:
            return "skipped: no pictures (give their folder with --data)"
        self.cluster.head.put(self.data / CALTECH, f"~/pictures/{CALTECH}")
        self.cluster.head.put(self.data / "weights", "~/weights")
        run = Run(
            self.cluster.head,
            "caltech",
            *("--space", "spaces/caltech.py", "--data", "~/pictures/caltech101", "--weights"),
            *("~/weights", "--backbones", "squeezenet1_0", "--epochs", "4", "--folds", "3"),
            *("--limit", "300"),
            n_trials=9,
        )
        outcome = run.finish(3600)
        check(len(outcome.trials) == 3, f"trials ran on {dict(outcome.trials)}")
        for worker in self.cluster.workers:
            check(not (worker.home / "pictures").exists(), "a worker has pictures")
        return describe(outcome)

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
        return Run(self.cluster.head, name, *DIGITS, n_trials=trials)

    def _tell(self, scenario: Callable[[], str]) -> None:
        name = scenario.__name__.replace("_", " ")
        began = time.monotonic()
        told = scenario()
        self.rows.append((name, told))
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
        timeout=1800,
    )
    ours, theirs = shape(out / "alone"), shape(run_folder)
    differing = {k for k in ours | theirs if ours.get(k, 0) != theirs.get(k, 0)}
    check(not differing, f"{differing} differ from a single machine's run")
    return f"{len(ours)} kinds of files, columns and keys as on a single machine"


def main() -> int:
    """Run all; exit code 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="those whose name holds such a word")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    data = arguments.data if (arguments.data / CALTECH).is_dir() else None
    os.environ.pop("RAY_ADDRESS", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # hosts are removed then, too
    with Hosts(3, visible=[Path(sys.prefix)]) as hosts:
        head, *workers = hosts.all
        scenarios = Scenarios(hosts, Cluster(head, workers), data)
        try:
            scenarios.run(arguments.only)
            if not arguments.only:
                print("format                " + same_shape_as_alone(head_run(head, "cut")))
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print("nothing was lost")
    return 0


def head_run(head: Host, name: str) -> Path:
    """Return the folder of a run on the head, as seen from outside."""
    return head.home / "results" / name


if __name__ == "__main__":
    sys.exit(main())
