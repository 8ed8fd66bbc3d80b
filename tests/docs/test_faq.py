"""The messages in docs/faq.md are those of the commands, word for word; … stands for any text."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\*\*`([^`]+)`", PAGE, re.MULTILINE)
ON_PHOTOS = ("run", "--data", "photos", "--backbones", "tinynet")
INPUTS: dict[str, Sequence[str]] = {
    "this space brings no images": ("run", "--space", "tools"),
    "the space digits shows": (*ON_PHOTOS, "--space", "digits"),
    "must have a unit": (*ON_PHOTOS, "--time-budget", "30"),
    "unrecognized arguments": (*ON_PHOTOS, "--trails", "3"),
    "--data must name a folder": ("run", "--data", "nowhere"),
    "there must be two classes": ("run", "--data", "animals"),
    "… hold the same folders": ("run", "--data", "parts"),
    "the images of labels.csv": (*ON_PHOTOS, "--labels", "missing/labels.csv"),
    "… holds images but no class folders": ("run", "--data", "photos/cat"),
    "… must have the classes": (*ON_PHOTOS, "--classes", "cat,bird"),
    "… must have a column of labels": (*ON_PHOTOS, "--labels", "columns/labels.csv"),
    "every row of labels.csv": (*ON_PHOTOS, "--labels", "several/labels.csv"),
    "every image of labels.csv": (*ON_PHOTOS, "--labels", "twice/labels.csv"),
    "--group-by must match": (*ON_PHOTOS, "--group-by", "x"),
    "--limit >=": (*ON_PHOTOS, "--limit", "20", "--folds", "10"),
    "every class needs at least … groups": (*ON_PHOTOS, "--group-by", "jpg"),
    "every class needs at least … images": (*ON_PHOTOS, "--folds", "50"),
    "Pretrained weights": (*ON_PHOTOS, "--backbones", "resnet18", "--weights", "parts"),
    "there is a run called": (*ON_PHOTOS, "--name", "RUN"),
    "there is no folder results": ("predict", "latest", "photos/cat/0.jpg"),
    "… is a URL": ("predict", "RUN", "https://example.org/1.jpg"),
}
"""By how the message begins, a command whose mistake is found at once. The others need a cluster, a
full disk, a run, or PyTorch."""
ELSEWHERE = {
    "the images are not those that the run began with": "data/splits.py",
    "no Ray cluster answers at": "cluster/session.py",
    "no space is left for": "run.py",
    "--max-latency": "pipeline/backbones/candidates.py",
}
"""By how the other messages begin, the module of `search/` that writes them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faq")
    names = [f"{kind}/{number}.jpg" for kind in ("cat", "dog") for number in range(12)]
    for name in names:
        for folder in ("photos", "animals/photos", "parts/part1", "parts/part2"):
            (place / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((160, 150), 90).convert("RGB").save(place / folder / name)
    for folder, rows in (
        ("missing", "image,label\ncat/0.jpg,cat\ncat/99.jpg,cat\ndog/1.jpg,dog\n"),
        ("columns", "id,foo,bar\n1,2,3\n"),
        ("several", "image,label\n0.jpg,cat\n"),
        ("twice", "image,label\ncat/0.jpg,cat\ncat/0.jpg,dog\ndog/1.jpg,dog\n"),
    ):
        (place / folder).mkdir()
        (place / folder / "labels.csv").write_text(rows, encoding="utf-8")
    return place


def test_messages_of_costly_mistakes_are_written() -> None:
    for start, module in ELSEWHERE.items():
        assert start in (ROOT / "search" / module).read_text(encoding="utf-8"), module


def test_every_message_is_provoked() -> None:
    for message in MESSAGES:
        assert sum(message.startswith(start) for start in (*INPUTS, *ELSEWHERE)) == 1, message


@pytest.mark.parametrize("start", INPUTS)
def test_a_message_is_as_quoted(
    start: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (message,) = (message for message in MESSAGES if message.startswith(start))
    name, *arguments = INPUTS[start]
    if start == "there is a run called":
        (place / "out" / "RUN").mkdir(parents=True)
        (place / "out" / "RUN" / "summary.json").write_text("{}")
    if name == "run":
        arguments += ["--out", "out"]
    try:
        code = importlib.import_module(f"search.{name}").main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert re.search(
        ".*".join(map(re.escape, message.replace("labels.csv", "…").split("…"))), shown
    ), shown
