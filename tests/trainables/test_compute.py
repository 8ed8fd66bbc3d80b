from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainables.compute import compute_with, give_memory_back

MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    compute_with(1)
    assert torch.get_num_threads() == 1
    give_memory_back()
    before = resident_bytes()
    torch.ones(200 * MEGABYTE, dtype=torch.uint8)  # and freed
    kept = resident_bytes() - before
    give_memory_back()
    left = resident_bytes() - before
    assert kept > 150 * MEGABYTE
    assert left < 50 * MEGABYTE
