"""Data that workers share: in the object store, in a file, and in a file that nodes copy."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from search.cluster import shared_file
from search.cluster.shared_file import MappedFile, StoredObject, share_file
from trainables.worker import open_table


@pytest.mark.usefixtures("ray_session")
def test_workers_open_what_the_driver_put(tmp_path: Path) -> None:
    table = np.arange(12).reshape(3, 4)
    stored = StoredObject.put(table)

    @ray.remote
    def total(shared: StoredObject[np.ndarray] | MappedFile) -> int:
        return int(shared.open().sum())

    assert ray.get(total.remote(stored)) == table.sum()
    assert {stored: "found"}[StoredObject(stored.reference)] == "found", "a key of workers' caches"
    np.save(tmp_path / "table.npy", table)
    assert ray.get(total.remote(MappedFile(tmp_path / "table.npy"))) == table.sum()
    with pytest.raises(ValueError, match="read-only"):
        stored.open()[0] = 0


@pytest.mark.usefixtures("ray_session")
def test_stored_images_are_opened_without_a_copy() -> None:
    stored = StoredObject.put(np.ones((12, 64, 64, 3), np.uint8))
    one, two = stored.open(), stored.open()
    assert one.ctypes.data == two.ctypes.data
    assert not one.flags.writeable
    tensor = open_table(stored, torch.device("cpu"))
    assert tensor.data_ptr() == one.ctypes.data
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (12, 64, 64, 3)


@pytest.mark.usefixtures("ray_session")
def test_each_node_has_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(shared_file, "_CHUNK_BYTES", 100)
    (tmp_path / "elsewhere").mkdir()
    table = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), np.uint8)
    np.save(tmp_path / "images.npy", table)
    shared = share_file(tmp_path / "images.npy")
    assert shared.local_path() == tmp_path / "images.npy", "the node that has the file reads it"

    elsewhere = replace(shared, node="another")
    copy = elsewhere.local_path()
    assert copy.read_bytes() == shared.path.read_bytes()
    np.testing.assert_array_equal(open_table(elsewhere, torch.device("cpu")).numpy(), table)
    shared.path.unlink()
    assert elsewhere.local_path() == copy, "it is copied once"

    np.save(tmp_path / "other.npy", table[:2])
    other = replace(share_file(tmp_path / "other.npy"), node="another").local_path()
    assert not copy.exists(), "only one run has a copy"
    assert sorted(path.name for path in copy.parent.iterdir()) == sorted([other.name, "lock"])
