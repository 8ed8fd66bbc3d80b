"""The files of a trial, its checkpoint and its best weights, each with the trial that it is of.

A trial's number alone does not identify it: an earlier run may have left files where this one
writes, and a study that was put back from a copy gives the numbers after its end to other trials.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from spaces.rules import Value


@dataclass(frozen=True)
class TrialIdentity:
    """What identifies a trial.

    Attributes:
        run_id: Of the run; see `environment.json`.
        number: Its number in the study.
        params: Its parameters, the space's constants included.
    """

    run_id: str
    number: int
    params: Mapping[str, Value]


def pack(identity: TrialIdentity, content: Any) -> bytes:
    """Return the content of a trial's file.

    Args:
        identity: The trial.
        content: Tensors, and lists and dicts of them and of plain values.
    """
    file = io.BytesIO()
    torch.save({"trial": _plain(identity), "content": content}, file)
    return file.getvalue()


def unpack(identity: TrialIdentity, file: bytes) -> Any | None:
    """Return what a trial's file holds; None where it is damaged, or of another trial.

    Args:
        identity: The trial whose file it should be.
        file: The file's content.
    """
    try:
        held = torch.load(io.BytesIO(file), weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    if not isinstance(held, dict) or held.get("trial") != _plain(identity):
        return None
    return held.get("content")


def _plain(identity: TrialIdentity) -> dict[str, Any]:
    return {**asdict(identity), "params": dict(identity.params)}
