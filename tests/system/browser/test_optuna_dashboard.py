"""The study of a run in optuna-dashboard."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from search.runs.run_folder import STUDY

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def address(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard over a copy of a run's study, as the documentation starts it."""
    study = Path(shutil.copy(digits_run / STUDY, tmp_path_factory.mktemp("study")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "optuna-dashboard", str(study)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server:
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api/studies", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, "it ended"
                    time.sleep(0.25)
            yield address
        finally:
            server.terminate()


def test_it_shows_the_study_and_its_trials(page: Page, address: str) -> None:
    (study,) = page.request.get(f"{address}/api/studies").json()["study_summaries"]
    assert study["study_name"] == "digits"
    shown = page.request.get(f"{address}/api/studies/{study['study_id']}").json()
    assert [trial["number"] for trial in shown["trials"]] == [0, 1, 2, 3]
    page.goto(f"{address}/dashboard/studies/{study['study_id']}")
    expect(page.get_by_text("digits").first).to_be_visible()
    expect(page.get_by_text("Hyperparameter Importance").first).to_be_visible()
