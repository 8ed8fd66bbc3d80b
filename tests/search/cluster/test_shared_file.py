"""A file that every machine maps: here, and on a machine that has to copy it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from search.cluster import shared_file
from search.cluster.shared_file import share_file
from trainables.worker import open_table


@pytest.mark.usefixtures("ray_session")
def test_each_machine_has_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(shared_file, "_CHUNK_BYTES", 100)
    (tmp_path / "elsewhere").mkdir()
    table = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), np.uint8)
    np.save(tmp_path / "images.npy", table)
    shared = share_file(tmp_path / "images.npy")
    assert shared.local_path() == tmp_path / "images.npy", "the machine that has it reads it"

    there = replace(shared, machine="another")
    copy = there.local_path()
    assert copy.read_bytes() == shared.path.read_bytes()
    np.testing.assert_array_equal(open_table(there, torch.device("cpu")).numpy(), table)
    shared.path.unlink()
    assert there.local_path() == copy, "it is not copied again"

    np.save(tmp_path / "other.npy", table[:2])
    other = replace(share_file(tmp_path / "other.npy"), machine="another").local_path()
    assert not copy.exists(), "one run's copy at a time"
    assert sorted(path.name for path in copy.parent.iterdir()) == sorted([other.name, "lock"])
