"""Send 10,000 damaged bodies to a running server: no 5xx, constant memory (`make fuzz`).

python -m tests.system.fuzz.bodies [RUN_DIR] [--bodies N]
"""

from __future__ import annotations

import argparse
import collections
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil

from tests.system.fuzz.mutations import draw_body, valid_images

_PORT = 8765
_MAX_GROWTH = 1.1


def main() -> int:
    """Send bodies; print statuses and memory; return 1 after a 5xx or where the memory grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="default: a small run of the digits")
    parser.add_argument("--bodies", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = arguments.run or _small_run(Path(scratch))
        command = [sys.executable, "-m", "search.serve", str(run), "--port", str(_PORT)]
        # Its log has a line for every refused body; a seed finds a body again.
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True)
        try:
            if not (server.stdout and server.stdout.readline().startswith("ready")):
                print("the server did not start", file=sys.stderr)
                return 1
            return _fuzz(server.pid, arguments.bodies)
        finally:
            server.terminate()
            server.wait()


def _fuzz(pid: int, n_bodies: int) -> int:
    images = valid_images()
    statuses: collections.Counter[int] = collections.Counter()
    memory: list[float] = []
    limits = httpx2.Limits(max_connections=8)
    with (
        httpx2.Client(base_url=f"http://127.0.0.1:{_PORT}", timeout=120, limits=limits) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def send(seed: int) -> int:
            body, kind = draw_body(random.Random(seed), images)
            return client.post("/predict", content=body, headers={"content-type": kind}).status_code

        for start in range(0, n_bodies, 1000):
            end = min(start + 1000, n_bodies)
            statuses.update(pool.map(send, range(start, end)))
            memory.append(psutil.Process(pid).memory_full_info().uss / 2**20)
            print(
                f"{end:6} bodies: {dict(sorted(statuses.items()))}, {memory[-1]:.0f} MB",
                flush=True,
            )
    growth = memory[-1] / memory[min(1, len(memory) - 1)]
    n_failed = sum(count for status, count in statuses.items() if status >= 500)
    print(f"5xx: {n_failed}; memory grew by {growth:.3f} from the second thousand to the last")
    return int(n_failed > 0 or growth > _MAX_GROWTH)


def _small_run(out: Path) -> Path:
    command = ["--limit", "300", "--trials", "2", "--epochs", "2", "--folds", "2", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "search.run", *command, "--out", str(out), "--name", "digits"],
        check=True,
    )
    return out / "digits"


if __name__ == "__main__":
    sys.exit(main())
