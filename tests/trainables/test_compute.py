from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainables import compute
from trainables.compute import configure_cpu, mixed_precision, release_memory

MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_freed_memory_is_kept_until_release_memory() -> None:
    configure_cpu(1)
    assert torch.get_num_threads() == 1
    release_memory()
    before = resident_bytes()
    torch.ones(200 * MEGABYTE, dtype=torch.uint8)  # and freed
    kept = resident_bytes() - before
    release_memory()
    left = resident_bytes() - before
    assert kept > 150 * MEGABYTE
    assert left < 50 * MEGABYTE


def test_without_glibc_only_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.setattr(compute, "_libc", object())
    configure_cpu(1)
    release_memory()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("avx512_bw", "avx512_vl", "avx512_dq"), torch.bfloat16),
        (("avx_vnni_int8", "avx_ne_convert"), torch.bfloat16),
        (("neon", "bf16"), torch.bfloat16),
        (("avx512_bw", "avx512_vl"), torch.float32),
        (("avx2", "avx_vnni"), torch.float32),
        (("neon",), torch.float32),
    ],
)
def test_mixed_precision_follows_the_cpu(
    names: tuple[str, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))
    with mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_capabilities_of_the_cpu_have_the_expected_names() -> None:
    names = {"x86_64": {"avx512_bw", "avx512_vl", "avx512_dq", "avx_vnni_int8", "avx_ne_convert"}}
    capabilities = torch.cpu.get_capabilities()
    assert names.get(capabilities["architecture"], {"bf16"}) <= capabilities.keys()
