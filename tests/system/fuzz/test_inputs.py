"""Names of any bytes, run files of any JSON, and images of any shape: read, or one clear error.

`make fuzz` runs this with `FUZZ_EXAMPLES=2000`.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from search import audit, predict
from search.reporting.run_record import read_record
from search.runs.listing import list_runs
from search.runs.run_folder import RunFolder
from spaces.errors import SearchError
from tests.fixtures.handmade_run import make_run
from trainables.images import ImageError, read_image, to_square

N_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def examples(n: int) -> Any:
    """Return settings of `n` examples, or of as many as are asked for."""
    return settings(
        max_examples=N_EXAMPLES or n,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


NAMES = (
    st.one_of(
        st.binary(min_size=1, max_size=60),
        st.text(min_size=1, max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from(
            [b"=1+1", b"-rf", b"%s", b"{}", b"\x1b[31m", b"\xc3", b"a\nb", b"a\r", b" "]
        ),
    )
    .map(lambda name: name.replace(b"/", b"").replace(b"\0", b"")[:200])
    .filter(lambda name: name not in (b"", b".", b".."))
)


@pytest.mark.filterwarnings("ignore")
@examples(25)
@given(NAMES, NAMES, st.sampled_from([b"", b".png", b".jpg"]))
def test_names_of_any_bytes(colour_run: Path, capfd: Any, name: bytes, file: bytes, end: bytes):
    """As names of a class, of an image and of the folder of all: a result, or an error in words."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, os.fsdecode(name))
        for index, label in enumerate((name, b"other")):
            folder = root / os.fsdecode(label)
            folder.mkdir(parents=True)
            pixels = np.full((8, 8, 3), 90 * index, np.uint8)
            for each in (file + end, b"plain.png"):
                Image.fromarray(pixels).save(folder / os.fsdecode(each), "PNG")
        out = Path(scratch) / "audit.csv"
        code = audit.main([f"{root}", "--out", str(out)])
        shown = capfd.readouterr()
        assert code in (0, 2)
        _check_shown(shown.out + shown.err)
        if code == 2:
            assert shown.err.startswith("error: ") or "\nerror: " in shown.err
        code = predict.main([str(colour_run), f"{root}", "--csv"])
        shown = capfd.readouterr()
        assert code in (0, 1, 2)
        _check_shown(shown.err)
        if code == 0:
            assert shown.out.startswith("image,")


def _check_shown(text: str) -> None:
    assert "Traceback" not in text
    assert "\x1b" not in text, "a name reaches the terminal as it is"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("results") / "run", n_trials=4)


def _paths(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the values of a JSON document stand."""
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    return [path, *(one for key, value in items for one in _paths(value, (*path, key)))]


def _replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = list(content) if isinstance(content, list) else dict(content)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["summary.json", "environment.json"])
@examples(60)
@given(data=st.data())
def test_run_files_of_any_json(run: Path, name: str, data: Any) -> None:
    """The reader of a run, the list of runs, and what the report reads."""
    path = run / name
    whole = path.read_bytes()
    content = json.loads(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(_paths(content)))
        content = _replaced(content, place, data.draw(JSON_VALUES))
    path.write_text(json.dumps(content))
    refusal = "none"
    try:
        read_record(RunFolder.open(run))
        list_runs(run.parent)
    except SearchError as error:
        refusal = str(error)
    finally:
        path.write_bytes(whole)
    assert refusal
    assert "\n" not in refusal


MODES = {
    "PNG": ("1", "L", "LA", "P", "I;16", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "I;16", "I", "F", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "RGB"),
}
SIDES = st.one_of(st.integers(1, 70), st.sampled_from([1, 2, 255, 16_383, 65_535, 65_536, 100_000]))


@pytest.mark.filterwarnings("ignore")
@examples(100)
@given(st.data())
def test_images_of_any_shape(data: Any) -> None:
    form = data.draw(st.sampled_from(sorted(MODES)))
    mode = data.draw(st.sampled_from(MODES[form]))
    width = data.draw(SIDES)
    height = data.draw(SIDES if width < 100 else st.integers(1, 5))
    fill = data.draw(st.sampled_from([0, 1, 255]))
    file = io.BytesIO()
    try:
        Image.new(mode, (width, height), fill if len(mode) == 1 else 0).save(file, form)
    except (OSError, ValueError, TypeError, OverflowError, struct.error):
        return  # no such file can be written
    try:
        image = read_image(file)
    except ImageError:
        return
    assert image.size == (width, height)
    for resize_mode in ("pad", "crop"):
        assert to_square(image, 36, 32, resize_mode).shape == (36, 36, 3)
