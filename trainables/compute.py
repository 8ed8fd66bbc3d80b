"""Configure threads, memory and precision of a process that computes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # as glibc's malloc.h numbers them
_TOP_PAD_BYTES = 64 * 2**20
_MAX_BATCH = 64
_CPU_BATCH_PIXELS = 8 * 224**2
_GPU_BATCH_PIXELS = _MAX_BATCH * 512**2

_libc = ctypes.CDLL(None)


def configure_cpu(n_threads: int) -> None:
    """Set the number of PyTorch's threads, and keep freed memory for the next batch."""
    torch.set_num_threads(n_threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Keep freed memory in this process, for the next batch; without glibc nothing is done.

    By default glibc returns tensors of some megabytes to the system as soon as they are freed, and
    the kernel zeroes the next ones page by page. That takes a third of a forward pass of SqueezeNet
    1.0 on 32 images, a fifth of a training step, and more than half of the time in which two
    EfficientNets with centre crop predict. See also `release_memory`.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_MAX, 0)
        _libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never return memory automatically
        _libc.mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)


def inference_batch_size(device: torch.device, image_size: int) -> int:
    """Return how many images are predicted together at most.

    On a CPU more take no less time an image, and only more memory.

    Args:
        device: Where they are predicted.
        image_size: Side in pixels.
    """
    pixels = _CPU_BATCH_PIXELS if device.type == "cpu" else _GPU_BATCH_PIXELS
    return max(1, min(_MAX_BATCH, pixels // image_size**2))


def release_memory() -> None:
    """Return freed memory to the system, as at the end of a training."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return an autocast to bfloat16; without it, to float16 on a GPU and disabled on a CPU.

    Enter a new one for every step: while it is open, it caches bfloat16 copies of the weights.
    """
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast("cuda", dtype=dtype)
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=_cpu_supports_bfloat16())


def prediction_precision(device: torch.device) -> torch.autocast:
    """Return the precision of a finished model: on a CPU float32, as its exports have.

    In bfloat16 single probabilities are off by up to 0.1, and a few predicted classes change.
    """
    if device.type == "cuda":
        return mixed_precision(device)
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=False)


@contextmanager
def training_precision(device: torch.device) -> Iterator[None]:
    """Enter `mixed_precision` for a training step; on a CPU, depthwise convolutions stay float32.

    The gradients of depthwise convolutions, such as EfficientNet's and MobileNetV2's, are slow in
    bfloat16 there; `benchmarks.speed.depthwise` measures by how much.
    """
    with mixed_precision(device):
        if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            yield
            return
        with _DepthwiseInFloat32():
            yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Compute depthwise convolutions in float32, though autocast is enabled on the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d and args[1].shape[1] == 1 and args[1].shape[0] > 1:
            with torch.autocast("cpu", enabled=False):
                output: Tensor = func(args[0].float(), *args[1:], **kwargs)
            return output.to(torch.bfloat16)
        return func(*args, **kwargs)


def _cpu_supports_bfloat16() -> bool:
    """Return whether oneDNN, which PyTorch computes with, takes bfloat16 on this CPU.

    The sets of instructions are those that oneDNN asks for: AVX-512 or AVX2-VNNI-2 on x86, bf16 on
    ARM.
    """
    has = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(
        all(has.get(name, False) for name in names)
        for names in (
            ("avx512_bw", "avx512_vl", "avx512_dq"),
            ("avx_vnni_int8", "avx_ne_convert"),
            ("bf16",),
        )
    )
