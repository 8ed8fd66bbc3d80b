"""Names of timm's networks, read from its source files.

Importing timm takes three seconds and PyTorch; its names are needed to check a command. So they are
read as text, in half a second, and timm itself is asked only about a name that is not found.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PREFIX = "timm/"
"""What the name of a backbone of timm begins with."""

_FUNCTION = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
_TAGGED = re.compile(r"""['"](\w+)\.(\w+)['"]""")


def load_timm() -> Any:
    """Import timm, without Weights & Biases, which it imports where it is installed.

    No function of timm's that is used here needs that, and it takes two seconds.
    """
    is_hidden = "timm" not in sys.modules and "wandb" not in sys.modules
    if is_hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # so Python finds no such package
    try:
        return import_module("timm")
    finally:
        if is_hidden:
            del sys.modules["wandb"]


@functools.cache
def timm_names() -> frozenset[str]:
    """Return the names of timm's networks, each alone and with each tag of its weights.

    Returns:
        Names such as `convnextv2_tiny` and `convnextv2_tiny.fcmae_ft_in22k_in1k`.
    """
    package = importlib.util.find_spec("timm")
    if package is None or package.origin is None:
        return frozenset()
    texts = [
        path.read_text("utf-8") for path in (Path(package.origin).parent / "models").glob("*.py")
    ]
    functions = {name for text in texts for name in _FUNCTION.findall(text)}
    tagged = {
        f"{name}.{tag}"
        for text in texts
        for name, tag in _TAGGED.findall(text)
        if name in functions
    }
    return frozenset(functions | tagged)


def timm_problem(backbone: str) -> str | None:
    """Return why there is no such backbone, with the three most similar names; None if there is.

    Args:
        backbone: A name that begins with `timm/`.
    """
    name = backbone.removeprefix(PREFIX)
    if name in timm_names() or _is_registered(name):
        return None
    without_tag = {known.partition(".")[0] for known in timm_names()}
    known = timm_names() if "." in name else without_tag
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(PREFIX + one for one in near)}?" if near else ""
    return f"timm has no network {name!r}{hint}"


def _is_registered(name: str) -> bool:
    """Ask timm itself, which also has networks that other packages register."""
    timm = load_timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        return False
    return not tag or name in timm.list_models(f"{architecture}.*", include_tags=True)
