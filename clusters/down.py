"""Stop an on-premises cluster: `ray down`, which stops only the head, and then the workers.

```
python clusters/down.py clusters/local.yaml
```
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

SSH = ("ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
QUIET = ("-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10")


def main() -> int:
    """Stop every node; return 1 and print those that could not be reached."""
    (file,) = sys.argv[1:]
    config: dict[str, Any] = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    # The head is stopped first: its autoscaler would restart the workers.
    subprocess.run(["ray", "down", "--yes", file], check=True)
    user, key = config["auth"]["ssh_user"], config["auth"].get("ssh_private_key")
    with_key = ("-i", str(Path(key).expanduser())) if key else ()
    stopping = {
        address: subprocess.Popen(
            [*SSH, *QUIET, *with_key, f"{user}@{address}", "bash -lic 'ray stop --force' 2>&1"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for address in config["provider"]["worker_ips"]
    }
    unreachable = [address for address, process in stopping.items() if _shows_failure(process)]
    if unreachable:
        print(f"could not stop {', '.join(unreachable)}: run `ray stop` there", file=sys.stderr)
    return int(bool(unreachable))


def _shows_failure(process: subprocess.Popen[str]) -> bool:
    shown, _ = process.communicate()
    if process.returncode:
        print(shown, file=sys.stderr)
    return process.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
