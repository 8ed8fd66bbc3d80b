"""Compute a digest of a model, which tells whether two sessions of a run made the same one."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from trainables.models.model import Model, describe_part


def model_digest(model: Model) -> str:
    """Return a digest of a model's cards, weights and all its tensors, 32 hexadecimal digits.

    It is not one of the bytes of `model.pt`: those depend on the version of PyTorch as well.
    """
    parts = [describe_part(part) for part in model.parts]
    return _digest({"weights": list(model.weights), "parts": parts})


def _digest(content: Any) -> str:
    """Return the digest of a tensor, a text, None, or a list or dict of these."""
    found = blake2b(digest_size=16)
    if isinstance(content, dict):
        for key in sorted(content):
            found.update(f"{key}: {_digest(content[key])}\n".encode())
    elif isinstance(content, list):
        for item in content:
            found.update(f"{_digest(item)}\n".encode())
    elif isinstance(content, Tensor):
        tensor = content.detach().cpu().contiguous()
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        found.update(str(content).encode())
    return found.hexdigest()
