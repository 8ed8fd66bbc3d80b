"""Configure threads, memory and precision of a process that computes."""

from __future__ import annotations

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # as glibc's malloc.h numbers them
_TOP_PAD_BYTES = 64 * 2**20

_libc = ctypes.CDLL(None)


def configure_cpu(n_threads: int) -> None:
    """Set the number of PyTorch's threads, and keep freed memory for the next batch.

    By default glibc returns tensors of some megabytes to the system as soon as they are freed, and
    the kernel zeroes the next ones page by page. That takes a third of a forward pass of SqueezeNet
    1.0 on 32 images, and a fifth of a training step. Without glibc only the threads are set.
    """
    torch.set_num_threads(n_threads)
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_MAX, 0)
        _libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never return memory automatically
        _libc.mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)


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
