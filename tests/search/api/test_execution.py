"""What ends a run before its first result leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search import run
from search.api import execution
from search.cluster.session import SessionError
from search.runs.run_folder import MODEL, STUDY


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(24):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(path)
    return tmp_path / "images"


ERRORS: dict[str, Callable[[], BaseException]] = {
    "Ray does not start": lambda: SessionError("Ray cannot start on this machine"),
    "a full disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "an error of ours": lambda: ZeroDivisionError("a mistake"),
    "Ctrl-C": KeyboardInterrupt,
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("result", [None, STUDY, MODEL])
def test_a_name_is_free_again_unless_there_is_a_result(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: str,
    result: str | None,
) -> None:
    out, storage = tmp_path / "out", tmp_path / "storage"

    def end(*_: object, **__: object) -> None:
        if result is not None:
            (out / "mine" / result).touch()
        raise ERRORS[error]()

    monkeypatch.setattr(execution, "ray_session", end)
    arguments = [f"--data={images}", f"--out={out}", "--name=mine", f"--storage={storage}"]
    arguments += ["--folds=2", "--space=digits", "-q"]
    if error == "an error of ours":
        with pytest.raises(ZeroDivisionError):
            run.main(arguments)
    else:
        assert run.main(arguments) != 0
    assert (out / "mine").exists() == (result is not None)
    assert any((storage / "mine").glob("*")) == (result is not None)
    shown = capsys.readouterr()
    assert ("resume: " in shown.out) == (result is not None and error != "an error of ours")
