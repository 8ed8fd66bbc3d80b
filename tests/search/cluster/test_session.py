"""Joining a cluster: what is refused before Ray is asked, and what goes to the machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.cluster.session import SessionError, ray_session, worker_environment
from search.pipeline.preflight import check_output_path
from search.pipeline.request import RequestError, parse_request


def test_a_search_is_no_ray_client() -> None:
    with (
        pytest.raises(SessionError, match=r"--address is 'ray://10.0.0.1:10001': give --address"),
        ray_session("ray://10.0.0.1:10001"),
    ):
        raise AssertionError


def test_our_packages_alone_go_to_the_machines_of_a_cluster() -> None:
    assert "py_modules" not in worker_environment(on_cluster=False)
    packages = worker_environment(on_cluster=True)["py_modules"]
    assert [Path(path).name for path in packages] == ["search", "trainables", "spaces"]
    sizes = [file.stat().st_size for path in packages for file in Path(path).rglob("*.p[yt]*")]
    assert sum(sizes) < 4 * 2**20


def test_a_job_must_not_leave_its_results_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    with pytest.raises(RequestError, match=r"--out must be an absolute path in a Ray job"):
        check_output_path(parse_request([]))
    with pytest.raises(RequestError, match=r"--resume must be an absolute path.*got results/mine"):
        check_output_path(parse_request(["--resume", "results/mine"]))
    check_output_path(parse_request(["--out", "/home/me/results"]))
    monkeypatch.chdir(tmp_path)
    check_output_path(parse_request([]))
