from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from trainables import compute
from trainables.compute import (
    configure_cpu,
    mixed_precision,
    prediction_precision,
    release_memory,
    training_precision,
)

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


def test_predictions_are_in_float32_where_the_cpu_has_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compute, "_cpu_supports_bfloat16", lambda: True)
    with prediction_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_capabilities_of_the_cpu_have_the_expected_names() -> None:
    names = {"x86_64": {"avx512_bw", "avx512_vl", "avx512_dq", "avx_vnni_int8", "avx_ne_convert"}}
    capabilities = torch.cpu.get_capabilities()
    assert names.get(capabilities["architecture"], {"bf16"}) <= capabilities.keys()


@pytest.mark.parametrize("kind", [nn.Conv2d, timm.layers.Conv2dSame])
def test_depthwise_convolutions_train_in_float32(
    kind: type[nn.Conv2d], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their output still is bfloat16, that of other convolutions is computed in it."""
    monkeypatch.setattr(compute, "_cpu_supports_bfloat16", lambda: True)
    torch.manual_seed(0)
    depthwise, dense = kind(8, 8, 3, groups=8), kind(8, 8, 3)
    pixels = torch.randn(2, 8, 9, 9)
    with training_precision(torch.device("cpu")):
        output, other = depthwise(pixels), dense(pixels)
    assert torch.equal(output, depthwise(pixels).to(torch.bfloat16))
    assert other.dtype == torch.bfloat16
    assert not torch.equal(other, dense(pixels).to(torch.bfloat16))
    output.float().square().sum().backward()
    precise = kind(8, 8, 3, groups=8)
    precise.load_state_dict(depthwise.state_dict())
    precise(pixels).square().sum().backward()
    assert depthwise.weight.grad is not None
    torch.testing.assert_close(depthwise.weight.grad, precise.weight.grad, rtol=0.02, atol=0.2)


def test_training_precision_is_float32_where_the_cpu_has_no_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compute, "_cpu_supports_bfloat16", lambda: False)
    convolution = nn.Conv2d(8, 8, 3, groups=8)
    with training_precision(torch.device("cpu")):
        assert convolution(torch.randn(1, 8, 9, 9)).dtype == torch.float32
