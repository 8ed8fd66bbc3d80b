"""Name the commands, each with one line, and the version that they belong to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

COMMANDS: Mapping[str, str] = {
    "run": "find the best image classifier for a folder of images",
    "predict": "classify images with a finished run's model",
    "export": "write the model as ONNX or as a torch.export program",
    "serve": "serve the model over HTTP, with a page for trying it",
    "report": "write a run's report again",
    "list": "list the runs, with their images and accuracies",
    "compare": "compare two runs on the same test images",
    "backbones": "list backbones: cost, accuracy, licence, and whether weights are here",
    "audit": "check images for duplicates, contradicting labels and damaged files",
}
"""By name, what each command does. Command `x` is `search.x.main(arguments)`, run by
`python -m search.x`; `search.__main__`, the script `classifier-search`, runs them all."""

_DISTRIBUTION = "classifier-search"


def as_called(text: str) -> str:
    """Return a text whose commands are written as the user called this one.

    Args:
        text: With commands such as `python -m search.predict`, which always work; they become
            `classifier-search predict` where that script runs.
    """
    if Path(sys.argv[0]).stem != _DISTRIBUTION:
        return text
    return text.replace("python -m search.", f"{_DISTRIBUTION} ")


def version() -> str:
    """Return name and version, and the commit where that is known."""
    try:
        number = metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a copy that was never installed
        number = "(not installed)"
    commit = _checkout_commit(Path(__file__).parents[2]) or _installed_commit()
    return f"{_DISTRIBUTION} {number}{f' (commit {commit})' if commit else ''}"


def _checkout_commit(root: Path) -> str | None:
    """Return the commit of a checkout, marked where files have changed; None elsewhere."""
    if not (root / ".git").exists():  # site-packages may lie inside another project's checkout
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=7", "--dirty"]
    command += ["--exclude", "*"]  # no tags, which would replace the commit
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().replace("-dirty", ", changed") or None


def _installed_commit() -> str | None:
    """Return the commit that pip installed from (PEP 610's direct_url.json); None for others."""
    try:
        text = metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    return str(commit)[:7] if commit else None
