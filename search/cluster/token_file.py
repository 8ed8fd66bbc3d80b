"""The file of Ray's token, which lets every program that knows it run code: its owner's alone.

Ray makes the file when it starts on this machine, readable for everybody, and leaves it so.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

_TOKEN_BYTES = 32  # as many as Ray's own have
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private() -> None:
    """Create the token file before Ray does, or take the rights of others on it away.

    Nothing is done where Ray takes its token from another place. Where no file can be written, as
    without a home folder, this process and those that it starts have a token of their own.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    try:
        _make_file()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(_TOKEN_BYTES)


def _make_file() -> None:
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & _OTHERS:
            with suppress(PermissionError):  # another user's, whom it protects from us
                path.chmod(mode & ~_OTHERS)
        if not os.access(path, os.R_OK):
            raise PermissionError(path) from None
        return
    with os.fdopen(file, "w") as opened:
        opened.write(secrets.token_hex(_TOKEN_BYTES))
