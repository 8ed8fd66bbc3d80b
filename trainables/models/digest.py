"""Compute a digest of a model, which tells whether two sessions of a run made the same one."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from trainables.models.ensemble import Ensemble


def model_digest(ensemble: Ensemble) -> str:
    """Return a digest of a model's card and of all its tensors, 32 hexadecimal digits.

    It is not one of the bytes of `model.pt`: those depend on the version of PyTorch as well.
    """
    scorer = ensemble.ood_scorer
    return _digest(
        {
            "card": json.dumps(asdict(ensemble.card)),
            "prefix": ensemble.prefix,
            "members": ensemble.member_weights(),
            "ood": None if scorer is None else scorer.state_dict(),
            "center_crop": ensemble.center_crop_weights(),
        }
    )


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
