"""Where timm publishes the weights of its networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spaces.timm_names import PREFIX, load_timm
from trainables.pretrained.hub import WEIGHT_FILES
from trainables.pretrained.weights import WeightsError

SUFFIXES = (".safetensors", ".pth", ".bin")
"""Of files of weights, the preferred first."""


@dataclass(frozen=True)
class TimmSource:
    """Where timm's weights of a name are published.

    Attributes:
        tag: The name of these weights among the network's.
        repo: The repository on the Hugging Face hub; "" if it is not there.
        files: Its files that may hold them, the preferred first.
        url: Another address; "" if there is none that can be read.
    """

    tag: str
    repo: str
    files: tuple[str, ...]
    url: str


def timm_source(backbone: str) -> TimmSource:
    """Return where the weights of a backbone of timm are published.

    Raises:
        WeightsError: they are not.
    """
    name = backbone.removeprefix(PREFIX)
    try:
        published = load_timm().get_pretrained_cfg(name)
    except RuntimeError:  # there is no such tag
        published = None
    if published is None or not (published.hf_hub_id or published.url):
        raise WeightsError(f"timm publishes no weights of {name}")
    files = WEIGHT_FILES
    if published.hf_hub_filename:
        files = (
            str(Path(published.hf_hub_filename).with_suffix(".safetensors")),
            published.hf_hub_filename,
        )
    url = published.url if isinstance(published.url, str) else ""
    url = url if url.endswith((*SUFFIXES, ".pth.tar")) else ""  # not in JAX's format
    return TimmSource(published.tag or "", published.hf_hub_id or "", files, url)
