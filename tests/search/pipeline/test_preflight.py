"""Checks of a request before anything costly starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.pipeline.preflight import check_output_path, check_paths
from search.pipeline.request import RequestError, parse_request


def test_a_job_must_not_write_its_results_to_its_own_folder(
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


def test_a_path_must_be_text() -> None:
    check_paths(parse_request(["--data", "Bilder für später"]))
    with pytest.raises(RequestError) as caught:
        check_paths(parse_request(["--data", "/im\udcff"]))
    assert str(caught.value) == r"--data must be UTF-8, but got '/im\udcff': rename the folder"
