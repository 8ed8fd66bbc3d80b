"""Run a search on three hosts as KubeRay and Slurm start it, with hosts that are drained and lost.

```
python -m tests.system.cluster.places [kuberay] [slurm]
```

The pods' commands are those that KubeRay generates from `clusters/kuberay/rayjob.yaml`, and Slurm's
script is run with stand-ins for `srun` and `scontrol`. Needs root (see `hosts`), and about ten
minutes on 2 cores. Fails where a trial, epoch or fold is lost.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

from search.console.signals import INTERRUPTED
from tests.system.cluster.hosts import (
    BASE,
    SSH_OPTIONS,
    Host,
    Hosts,
    missing_requirement,
    planned_hosts,
)
from tests.system.cluster.launcher import NODES, STORE_BYTES, Cluster, python
from tests.system.cluster.pods import (
    ROOT,
    cluster_spec,
    documents,
    pod_command,
    pod_environment,
    submit_command,
)
from tests.system.cluster.runs import SPACE, Run
from tests.system.cluster.scenarios import DIGITS, TRIAL, check, describe

TOKEN = "of-these-hosts-alone-and-thirty-two-characters"
N_TRIALS = 40
JOB = 1234
STAND_INS = "~/classifier-search/tests/system/cluster/slurm_bin"
LEFT_WORKER = re.compile(r"trial (\d+) (leaves a node|lost its worker)")


def variables() -> dict[str, str]:
    """Return the variables of all processes on the hosts, which share this machine's Python."""
    return {
        "PATH": f"{python().parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": "/root/classifier-search",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        # Several hosts share a core, so that Ray starts slower than on machines of their own.
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_agent_register_timeout_ms": "300000",
    }


def exports(**more: str) -> str:
    """Return the start of a shell command, which sets the variables."""
    values = {**variables(), **more}
    return "export " + " ".join(f"{k}={shlex.quote(v)}" for k, v in values.items()) + ";"


class PodCluster(Cluster):
    """A cluster whose pods are processes on the hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self.head, *self.workers = hosts.all
        self.spec = cluster_spec("rayjob.yaml")

    def start(self, host: Host) -> None:
        """Start a pod's command, with the host's CPU and no GPU."""
        is_head = host is self.head
        group = self.spec["headGroupSpec" if is_head else "workerGroupSpecs"]
        group = group if is_head else group[0]
        command = pod_command(
            group,
            None if is_head else self.head.address,
            num_cpus="1",
            num_gpus="",
            memory="",
            object_store_memory=str(STORE_BYTES),
        )
        host.run(
            f"{exports(**pod_environment(group))} cd /root;"
            f" nohup {shlex.join(command)} > ~/pod.log 2>&1 < /dev/null & echo $! > ~/pod.pid"
        )

    def delete(self, host: Host) -> float:
        """Delete a pod as Kubernetes does, with SIGTERM; return how many seconds it takes."""
        began = time.monotonic()
        host.run("kill -TERM $(cat ~/pod.pid)")
        while not host.run("kill -0 $(cat ~/pod.pid)", check=False).returncode:
            check(time.monotonic() - began < 120, "the pod outlives its grace period")
            time.sleep(0.2)
        return time.monotonic() - began

    def _nodes(self) -> list[tuple[str, bool]]:
        done = self.head.run(f"{exports()} cd / && {python()} -c '{NODES}'", check=False)
        lines = done.stdout.splitlines()
        return [(a, alive) for a, alive in json.loads(lines[-1])] if lines else []


class JobRun(Run):
    """A search that is submitted to the cluster of pods from another host, by the job's script."""

    submitter: Host

    def _first_options(self) -> tuple[str, ...]:
        return ()

    def _begin(self, *options: str) -> subprocess.Popen[bytes]:
        submitter, job = f"{self.name}-{int(time.time())}", documents("rayjob.yaml")
        script = job["ConfigMap"]["data"]["search.sh"].replace("/data/", "/root/")
        (BASE / "search.sh").write_text(script)
        self.head.put(BASE / "search.sh", "~/config/search.sh")
        interpreter, path, name, *_ = shlex.split(job["RayJob"]["spec"]["entrypoint"])
        entrypoint = [interpreter, f"/root{path}", self.name, *options]
        check((interpreter, path, name) == ("bash", "/config/search.sh", "photos"), "other words")
        command = submit_command(self.head.address, submitter, shlex.join(entrypoint))
        return subprocess.Popen(
            self.submitter.ssh(f"{exports()} cd /; {command}"),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )


class SlurmRun(Run):
    """A search that Slurm's script runs, on the first host of its allocation."""

    allocation: Hosts
    restarts = 0

    def _first_options(self) -> tuple[str, ...]:
        return ()

    def _begin(self, *options: str) -> subprocess.Popen[bytes]:
        addresses = [host.address for host in self.allocation.all]
        slurm = {
            "SLURM_JOB_ID": str(JOB),
            "SLURM_JOB_NUM_NODES": str(len(addresses)),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURMD_NODENAME": self.head.address,
            "SLURM_JOB_END_TIME": str(int(time.time()) + 4 * 3600),
            "SLURM_RESTART_COUNT": str(self.restarts),
            "OUT": "/root/results",
            "STAND_IN_HOSTS": " ".join(addresses),
            "STAND_IN_SSH": " ".join(["ssh", *SSH_OPTIONS]),
            "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.02",
        }
        command = (
            f"{exports(**slurm)} cd ~/classifier-search; export PATH={STAND_INS}:$PATH;"
            " echo $$ > ~/batch.pid;"
            f" exec bash clusters/slurm.sbatch {self.name} {shlex.join(options)}"
        )
        return subprocess.Popen(self.head.ssh(command), stdout=self._log, stderr=subprocess.STDOUT)


def kuberay(hosts: Hosts) -> str:
    """Run the job, delete a worker's pod, which drains it, and then cut another one off."""
    cluster = PodCluster(hosts)
    _, drained, cut_off = hosts.all
    for host in hosts.all:
        cluster.start(host)
    cluster.wait_for(3)
    JobRun.submitter = drained
    run = JobRun(cluster.head, "photos", *options(cluster.head), n_trials=N_TRIALS)
    for host in (drained, cut_off):
        run.wait_until(lambda host=host: bool(host.processes(TRIAL)))  # type: ignore[misc]
    run.wait_until(lambda: run.epochs() >= 6)
    left = moves(run)
    seconds = cluster.delete(drained)
    run.wait_until(lambda: drained.address not in cluster.addresses())
    moved = moves(run) - left
    cluster.start(drained)
    cluster.wait_for(3)
    run.wait_until(lambda: bool(drained.processes(TRIAL)) and bool(cut_off.processes(TRIAL)))
    before = losses(run)
    check(before == 0, f"{before} epochs were lost on a node that was drained")
    cut_off.disconnect()
    run.wait_until(lambda: cut_off.address not in cluster.addresses())
    outcome = run.finish()
    return (
        f"drained: {moved} trials moved, {before} epochs lost, the pod ended in {seconds:.0f} s;"
        f" cut off: {losses(run)} epochs lost; {describe(outcome)}"
    )


def slurm(hosts: Hosts) -> str:
    """Run Slurm's script up to the signal before its time limit, and again as it is requeued."""
    head = hosts.all[0]
    SlurmRun.allocation = hosts
    run = SlurmRun(head, "slurm", *options(head), n_trials=N_TRIALS)
    run.wait_until(lambda: len(run.hosts()) == 3)
    head.run("kill -USR1 $(cat ~/batch.pid)")
    code = run.process.wait(300)
    check(code == INTERRUPTED, f"the job ended with {code}:\n{run.log()}")
    asked = head.run("cat ~/scontrol.log").stdout.strip()
    check(asked == f"requeue {JOB}", f"scontrol was asked for {asked!r}")
    for host in hosts.all:
        check(not host.processes("raylet"), f"Ray still runs on {host.name}")
    n_before = run.ended()
    SlurmRun.restarts = 1
    run.process = run._begin()
    outcome = run.finish()
    check(len(outcome.trials) == 3, f"trials ran on {dict(outcome.trials)}")
    return f"{n_before} trials, then requeued; {describe(outcome)}"


def options(head: Host) -> list[str]:
    """Give the head the project and the space; return the options of a short search."""
    (BASE / "space.py").write_text(SPACE)
    head.put(BASE / "space.py", "~/space.py")
    chosen = [word.replace("~", "/root") for word in DIGITS]
    return [*chosen, "--trials", str(N_TRIALS), "--scheduler", "none"]


def moves(run: Run) -> int:
    """Return how many trials have left a node that was drained."""
    return events(run).count("leaves a node")


def losses(run: Run) -> int:
    """Return how many trials have lost their workers, each of them in an epoch."""
    return events(run).count("lost its worker")


def events(run: Run) -> list[str]:
    """Return what has happened to the workers of trials, by the run's log."""
    log = run.folder / "run.log"
    return [found[2] for found in LEFT_WORKER.finditer(log.read_text() if log.exists() else "")]


def main() -> int:
    """Run the scenarios; return 1 if something was lost, 2 if hosts cannot be created."""
    if reason := missing_requirement():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    scenarios: list[Callable[[Hosts], str]] = [kuberay, slurm]
    failed = []
    for scenario in scenarios:
        if sys.argv[1:] and scenario.__name__ not in sys.argv[1:]:
            continue
        began = time.monotonic()
        with planned_hosts(3) as hosts:
            for host in hosts.all:
                host.put(ROOT, "~/classifier-search")
            try:
                result = scenario(hosts)
            except (AssertionError, RuntimeError, subprocess.SubprocessError) as error:
                failed.append(scenario.__name__)
                result = f"FAILED: {error}"
        print(f"{scenario.__name__:<10}{time.monotonic() - began:6.0f} s  {result}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
