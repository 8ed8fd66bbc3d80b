"""The Python of README, api.md and tutorial.md runs, on a small finished run, without the searches.

Their options are checked as a search checks them, before the finished run takes the place of its
result.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import pytest
from PIL import Image

from search.api.options import as_arguments, request_of
from search.api.space_file import write_space
from spaces.base import Space

ROOT = Path(__file__).parents[2]
PAGES = [
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/api.md", "docs/tutorial.md")
]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_snippets_run(
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(digits_run, tmp_path / "results" / "RUN")
    for name in ("photos/3/1.png", "more_photos/3/1.png", "more_photos/5/2.png", "photo.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200, 120, 40)).save(tmp_path / name)
    asked: list[Mapping[str, object]] = []

    def launch(space: object, callbacks: Sequence[object], options: Mapping[str, object]) -> Path:
        request_of(as_arguments(options))  # type: ignore[arg-type]
        if isinstance(space, Space):
            write_space(tmp_path / "space.py", space)
        asked.append({**options, "callbacks": len(callbacks)})
        return Path("results/RUN")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.api.run.launch", launch)
    names: dict[str, object] = {}
    for snippet in chain.from_iterable(map(FENCE.findall, PAGES)):
        exec(compile(snippet, "a page", "exec"), names)
    assert asked == [
        {"data": "photos", "time_budget": "30m", "callbacks": 0},
        {"data": "photos", "time_budget": "30m", "callbacks": 0},
        {"trials": 12, "resume": Path("results/RUN"), "callbacks": 0},
        {"data": "photos", "trials": 12, "callbacks": 1},
    ]
    shown = capsys.readouterr().out
    assert "Run('results/RUN'): 4 trials; test accuracy" in shown
    assert "Evaluation: 2 images" in shown
    assert "time_budget: must be a time such as" in shown
    assert tuple(names["probabilities"].shape) == (2, 10)  # type: ignore[attr-defined]


def test_every_public_name_is_described() -> None:
    import search

    undescribed = {"Evaluation", "Report", "Run", "load_space"}
    assert {name for name in search.__all__ if name not in PAGES[1]} <= undescribed
