"""How a process computes on CPUs: with how many threads, and in memory that it keeps."""

from __future__ import annotations

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # as glibc's malloc.h numbers them
_TOP_PAD_BYTES = 64 * 2**20

_libc = ctypes.CDLL(None)


def compute_with(n_threads: int) -> None:
    """Set PyTorch's threads, and have freed memory kept for the next batch.

    glibc gives tensors of some megabytes back as soon as they are freed, and the kernel zeroes the
    next ones page by page: for SqueezeNet 1.0 a third of the forward pass of 32 images, and a
    fifth of a training step. Elsewhere than with glibc only the threads are set.
    """
    torch.set_num_threads(n_threads)
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_MAX, 0)
        _libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never of itself
        _libc.mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)


def give_memory_back() -> None:
    """Give the system what was freed and kept; at the end of a training."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
