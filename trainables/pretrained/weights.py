"""Read pretrained weights and copy them into a network.

`trainables.pretrained.weight_files` finds their files. PyTorch is imported where it is used, so
that a missing file is reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.errors import SearchError

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGED = {"tinynet": Path(__file__).parents[1] / "weights" / "tinynet.pth"}
"""Weights that are part of the package."""


class WeightsError(SearchError):
    """Pretrained weights are unavailable, cannot be read, or do not fit the network."""


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running code of the file.

    Args:
        path: A file of safetensors, or one of PyTorch with a state dict, plain or wrapped as
            {"state_dict": …} or {"model": …}.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or a malicious file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} must hold a state dict, but holds a {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{path} must hold a state dict, but {key!r} in it is a {type(value).__name__}"
            )
    return dict(content)


def copy_weights(
    net: nn.Module, state_dict: Mapping[str, Tensor], name: str, classifier: str | None
) -> None:
    """Copy weights into a network, which may be on the meta device.

    Args:
        net: The network.
        state_dict: Its weights, with or without the classifier's.
        name: Name of the network, for an error.
        classifier: Name of a module of `net` that is not changed.

    Raises:
        WeightsError: keys are missing, unexpected, or of another shape.
    """
    import torch

    ignored = () if classifier is None else (f"{classifier}.",)
    wanted = {k: v for k, v in net.state_dict().items() if not k.startswith(ignored)}
    given = {_current_key(k): v for k, v in state_dict.items() if not k.startswith(ignored)}
    for key in wanted:
        if key.endswith(".num_batches_tracked"):  # Files older than PyTorch 0.4.1 lack it.
            given.setdefault(key, torch.zeros((), dtype=torch.long))
    shared = [key for key in wanted if key in given]
    problems = (
        _describe_keys("missing", [key for key in wanted if key not in given]),
        _describe_keys("unexpected", [key for key in given if key not in wanted]),
        _describe_keys(
            "of the wrong shape",
            [
                f"{key} {list(given[key].shape)} instead of {list(wanted[key].shape)}"
                for key in shared
                if given[key].shape != wanted[key].shape
            ],
        ),
    )
    if any(problems):
        raise WeightsError(f"the weights do not fit {name}: {'; '.join(filter(None, problems))}")
    copies = {k: given[k].detach().to("cpu", wanted[k].dtype, copy=True) for k in shared}
    net.load_state_dict(copies, strict=False, assign=True)


_OLD_KEYS = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
"""Keys of earlier versions in torchvision's files of DenseNet and ViT, and their replacements."""


def _current_key(key: str) -> str:
    for pattern, replacement in _OLD_KEYS:
        key = pattern.sub(replacement, key)
    return key


def _describe_keys(what: str, keys: Sequence[str], shown: int = 3) -> str:
    """Count the keys and name the first few; empty if there are none."""
    if not keys:
        return ""
    more = ", …" if len(keys) > shown else ""
    return f"{len(keys)} {what} ({', '.join(keys[:shown])}{more})"
