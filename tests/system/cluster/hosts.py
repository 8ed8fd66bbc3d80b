"""Create hosts on one machine: each has its own network, processes, home, /tmp and sshd.

```
python -m tests.system.cluster.hosts up 3      # until Ctrl-C
```

A host is a set of Linux namespaces: it has an address of its own on a bridge, sees only its own
processes, and shares no writable folder with others but /var/tmp. So `ray stop` on one host does
not touch another, and a host can be killed as a whole or disconnected from the network. Needs
root, and the Debian packages iproute2, openssh-server and rsync.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.88.0"
BRIDGE = "cs-hosts"
BASE = Path("/var/tmp/classifier-search-hosts")
USER_KEY, HOST_KEY = BASE / "user-key", BASE / "host-key"
TOOLS = ("ip", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "taskset")
SSHD = "/usr/sbin/sshd"
PACKAGES = ("iproute2", "openssh-client", "openssh-server", "rsync", "util-linux")
SSH_OPTIONS = [
    *("-i", str(USER_KEY), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
    *("-o", "LogLevel=ERROR", "-o", "ConnectTimeout=30"),
]


def missing_requirement() -> str | None:
    """Return what hosts need and this machine lacks; None where it lacks nothing.

    Debian packages that are not installed are installed first.
    """
    if os.geteuid() != 0:
        return "needs root, to create network namespaces"
    if _absent() and shutil.which("apt-get"):
        print(f"installing {', '.join(PACKAGES)}", flush=True)
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            subprocess.run(
                ["apt-get", "--quiet", *command],
                capture_output=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
    if absent := _absent():
        return f"needs {', '.join(absent)} (of {', '.join(PACKAGES)})"
    return None


def _absent() -> list[str]:
    return [tool for tool in (*TOOLS, SSHD) if shutil.which(tool) is None]


@dataclass(frozen=True)
class Host:
    """A host, by its number from 1, and the core that it runs on."""

    number: int
    core: int

    @property
    def name(self) -> str:
        return f"cs{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def folder(self) -> Path:
        return BASE / self.name

    @property
    def home(self) -> Path:
        """The files that the host has written to its home, as seen from outside."""
        return self.folder / "home"

    @property
    def is_on(self) -> bool:
        """Whether it was started and not killed since."""
        return (self.folder / "pid").is_file()

    def start(self, visible: Sequence[Path] = ()) -> None:
        """Start its namespaces with sshd in them; files of an earlier start are still there.

        Args:
            visible: Folders in this machine's /tmp that the host sees as well.
        """
        tmp = self.folder / "tmp"
        for part in (self.home, self.folder / "work", tmp):
            part.mkdir(parents=True, exist_ok=True)
        binds = []
        for path in visible:
            if path.is_relative_to("/tmp"):
                inside = tmp / path.relative_to("/tmp")
                inside.mkdir(parents=True, exist_ok=True)
                binds.append(f"mount --bind {path} {inside}")
        options = f"lowerdir=/root,upperdir={self.home},workdir={self.folder / 'work'}"
        steps = [
            *binds,
            f"mount -t overlay overlay -o {options} /root",
            f"mount --rbind {tmp} /tmp",
            "mount -t tmpfs -o size=4g tmpfs /dev/shm",
            f"exec {SSHD} -D -e -f /dev/null -h {HOST_KEY} -o PidFile=none -o UsePAM=no"
            f" -o AuthorizedKeysFile={USER_KEY}.pub -o StrictModes=no -o PermitRootLogin=yes"
            " -o PasswordAuthentication=no -o MaxStartups=100 -o MaxSessions=100",
        ]
        inside_network = ["ip", "netns", "exec", self.name, "taskset", "-c", str(self.core)]
        namespaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork"]
        namespaces += ["--kill-child", "--mount-proc"]
        with (self.folder / "sshd.log").open("ab") as log:
            process = subprocess.Popen(
                [*inside_network, *namespaces, "sh", "-ec", " && ".join(steps)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.folder / "pid").write_text(str(process.pid))

    def kill(self) -> None:
        """Kill all of its processes at once, as a power cut does."""
        pid = self.folder / "pid"
        if pid.is_file():
            unshare = int(pid.read_text())
            try:
                os.kill(unshare, signal.SIGKILL)  # the kernel kills all processes in its namespace
                os.waitpid(unshare, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
            pid.unlink()

    def disconnect(self) -> None:
        """Take its network link down."""
        _run("ip", "link", "set", f"v{self.name}", "down")

    def reconnect(self) -> None:
        """Bring its network link up again."""
        _run("ip", "link", "set", f"v{self.name}", "up")

    def run(
        self, command: str, timeout: float = 300, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it, by ssh."""
        done = subprocess.run(self.ssh(command), capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {command}\n{done.stdout}{done.stderr}")
        return done

    def ssh(self, command: str) -> list[str]:
        """Return the ssh command that runs a command on it."""
        return ["ssh", *SSH_OPTIONS, f"root@{self.address}", command]

    def put(self, source: Path, target: str) -> None:
        """Copy a file, or the content of a folder, to a path on it."""
        self.run(f"mkdir -p $(dirname {target})")
        slash = "/" if source.is_dir() else ""
        excluded = [f"--exclude={name}" for name in (".git", ".venv", "results", "__pycache__")]
        shell = " ".join(["ssh", *SSH_OPTIONS])
        _run(
            "rsync",
            "-a",
            *excluded,
            "-e",
            shell,
            f"{source}{slash}",
            f"root@{self.address}:{target}",
        )

    def processes(self, word: str) -> list[str]:
        """Return the command lines of its processes that contain a word."""
        lines = self.run("ps -eo args").stdout.splitlines()
        return [line for line in lines if word in line and "ps -eo" not in line]


class Hosts:
    """Context manager for some hosts and the bridge between them."""

    def __init__(self, n: int, visible: Sequence[Path] = ()) -> None:
        """Plan hosts 1 to n, distributed over this machine's cores."""
        cores = sorted(os.sched_getaffinity(0))
        self.all = [Host(i + 1, cores[i % len(cores)]) for i in range(n)]
        self.visible = visible

    def __enter__(self) -> Hosts:
        self.remove()
        BASE.mkdir(parents=True)
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        for key in (USER_KEY, HOST_KEY):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for host in self.all:
            self._connect(host)
            host.start(self.visible)
        for host in self.all:
            self.wait_for(host)
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def wait_for(self, host: Host, patience_seconds: float = 60) -> None:
        """Wait until a host answers."""
        until = time.monotonic() + patience_seconds
        while host.run("true", check=False).returncode:
            if time.monotonic() > until:
                log = (host.folder / "sshd.log").read_text()
                raise RuntimeError(f"{host.name} does not answer: {log}")
            time.sleep(0.5)

    def remove(self) -> None:
        """Remove the hosts and the bridge, those of an earlier process included."""
        for host in self.all:
            host.kill()
            # A namespace outlives its name while a process ends in it; its link does not have to.
            subprocess.run(["ip", "link", "del", f"v{host.name}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
        shutil.rmtree(BASE, ignore_errors=True)

    @staticmethod
    def _connect(host: Host) -> None:
        name, link = host.name, f"v{host.name}"
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", link, "master", BRIDGE, "up")
        _run("ip", "-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        # Ray uses the address of the default route.
        _run("ip", "-n", name, "route", "add", "default", "via", f"{NETWORK}.254")


def planned_hosts(n: int) -> Hosts:
    """Plan hosts that see this machine's Python, and are removed on SIGTERM as well."""
    os.environ.pop("RAY_ADDRESS", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return Hosts(n, visible=[Path(sys.prefix), Path(sys.base_prefix)])


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def main() -> int:
    """Keep hosts up until Ctrl-C."""
    if reason := missing_requirement():
        print(reason, file=sys.stderr)
        return 2
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with planned_hosts(n) as hosts:
        for host in hosts.all:
            print(" ".join(host.ssh("")), flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
