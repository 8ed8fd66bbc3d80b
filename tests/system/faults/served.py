"""Stop a server by SIGTERM while requests are under way: each must be answered."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

from tests.system.faults.experiment import Experiment, Outcome
from tests.system.faults.processes import Process

N_REQUESTS = 24
N_IMAGES = 32
"""Images of a request: all together take longer than the 8 s in which a search ends."""
DRAIN_SECONDS = 120.0
_IN_PROGRESS, _ANSWERED = "classifier_requests_in_progress", "classifier_requests_total"


def server_terminated(folder: Path) -> Outcome:
    """Send SIGTERM to servers of one and two replicas while they answer requests."""
    experiment = Experiment("SIGTERM of the server", folder)
    experiment.finish()
    outcome = Outcome("SIGTERM of the server")
    for n_replicas in (1, 2):
        outcome.injected += 1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "search.serve", str(experiment.run), "--port", str(port)]
        command += ["--replicas", str(n_replicas), "--timeout", f"{DRAIN_SECONDS:.0f}"]
        process = Process(command, folder / f"server-{n_replicas}.log", {})
        try:
            process.wait_until(lambda process=process: "ready: " in process.shown())  # type: ignore[misc]
            statuses = _terminate_while_asking(process, port)
            code = process.wait(DRAIN_SECONDS)
        finally:
            process.kill()
        if statuses != [200] * N_REQUESTS or code != 0 or "Traceback" in process.shown():
            outcome.problems.append(f"{statuses}, exit code {code}:\n{process.shown()}")
        outcome.processes += process.left_over()
        outcome.segments += process.left_segments()
    return outcome


def _terminate_while_asking(process: Process, port: int) -> list[int]:
    """Send requests, and SIGTERM once all have arrived; return their statuses."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=50)
    files = [("images", ("x.jpg", file.getvalue()))] * N_IMAGES
    url = f"http://127.0.0.1:{port}/predict"

    def ask(_: int) -> int:
        answer = httpx2.post(url, files=files, timeout=DRAIN_SECONDS)
        return int(answer.status_code)

    with ThreadPoolExecutor(N_REQUESTS) as pool:
        waiting = [pool.submit(ask, i) for i in range(N_REQUESTS)]
        process.wait_until(lambda: _count_arrived(port) == N_REQUESTS, DRAIN_SECONDS)
        os.kill(process.popen.pid, signal.SIGTERM)
        return [one.result() for one in waiting]


def _count_arrived(port: int) -> int:
    """Return how many requests for predictions the server has begun, by its metrics."""
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=DRAIN_SECONDS).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    answered = sum(
        float(value) for name, value in lines if name.startswith(_ANSWERED + '{path="/predict"')
    )
    in_progress = next(float(value) for name, value in lines if name == _IN_PROGRESS)
    return round(answered + in_progress) - 1  # but for the one that asks
