from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search.data.scan import scan_external
from search.deployment.predictor import Predictor
from search.predict import expand, load, main
from search.runs.tables import read_rows
from tests.fixtures.colours import CLASSES
from trainables.images import ImageError
from trainables.levels import Levels
from trainables.models.model import load_model
from trainables.models.model_card import ModelError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(colour_images: Path, tmp_path: Path) -> Path:
    """Three images, each the first of its class, and one file that is none."""
    for name in ("red", "blue", "grün und blau"):
        (tmp_path / f"{name}.png").write_bytes((colour_images / name / "012.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_images_of_more_than_8_bits_have_the_levels_of_the_search(colour_run: Path) -> None:
    model = load_model(colour_run / "model.pt")
    values = np.random.default_rng(0).integers(0, 4096, (40, 48)).astype(np.uint16)
    model.card = replace(model.card, levels=Levels(integers=(0, 4095)))
    decoded = Predictor(model).decode(Image.fromarray(values))
    plain = Image.fromarray(np.rint(values / 4095 * 255).astype(np.uint8))
    assert (decoded == model.card.to_square(plain.convert("RGB"))).all()


def test_from_python(colour_run, colour_images):
    predictor = load(colour_run)
    made = predictor.predict([colour_images / "blue" / "013.png"], top=2)
    assert len(made) == 1
    assert made[0].image == str(colour_images / "blue" / "013.png")
    assert made[0].classes[0] == "blue"
    assert len(made[0].classes) == len(made[0].probabilities) == 2
    assert made[0].probabilities[0] > 0.9 > made[0].probabilities[1]
    whole = predictor.predict([str(colour_images / "red" / "000.png")], top=99)[0]
    assert len(whole.classes) == 3
    assert sum(whole.probabilities) == pytest.approx(1, abs=1e-5)


def test_from_python_images_of_every_kind(colour_run, colour_images):
    path = colour_images / "blue" / "013.png"
    with Image.open(path) as image, path.open("rb") as file:
        kinds = [path, str(path), path.read_bytes(), file, image, np.asarray(image)]
        made = load(colour_run).predict([*kinds, np.asarray(image) / 255])
        one = load(colour_run).predict(np.asarray(image))
    names = [str(path), str(path), "image 3", str(path), str(path), "image 6", "image 7"]
    assert [p.image for p in made] == names
    for prediction in made:  # an image's place in its batch may change the last digits
        assert prediction.probabilities == pytest.approx(made[0].probabilities, rel=1e-4)
    assert [p.image for p in one] == ["image 1"]
    assert [p.classes for p in load(colour_run).predict(str(path))] == [made[0].classes]


def test_from_a_model_file_alone(colour_run, colour_images):
    image = colour_images / "red" / "012.png"
    assert load(colour_run / "model.pt").predict([image]) == load(colour_run).predict([image])


def test_from_python_an_unreadable_image_is_an_error(colour_run, folder):
    with pytest.raises(ImageError, match=r"broken\.png"):
        load(colour_run).predict([folder / "red.png", folder / "broken.png"])


def test_a_run_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=f"^there is no model at {tmp_path}/model.pt$"):
        load(tmp_path)


def test_batches_keep_the_order_of_readable_and_unreadable_images(colour_run, folder):
    names = ["red", "broken", "blue", "grün und blau", "broken", "broken", "blue"]
    predictor = Predictor(load_model(colour_run / "model.pt"), batch_size=2)
    made = list(predictor.predict_each(folder / f"{name}.png" for name in names))
    assert ["broken" if isinstance(one, ImageError) else one.classes[0] for one in made] == names


def test_probabilities_are_those_of_the_run(colour_run, colour_images):
    rows = read_rows(colour_run / "test_predictions.csv")
    made = load(colour_run).predict([colour_images / row["image"] for row in rows], top=1)
    assert [one.classes[0] for one in made] == [row["prediction_1"] for row in rows]
    for one, row in zip(made, rows, strict=True):
        assert one.probabilities[0] == pytest.approx(float(row["probability_1"]), abs=0.02)


def test_a_table_of_a_folder(colour_run, folder, capsys):
    assert main([str(colour_run), str(folder)]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [
        str(folder / "blue.png"),
        str(folder / "grün"),
        str(folder / "red.png"),
    ]
    assert "  blue 0.9" in lines[0]
    assert "broken.png" in err
    assert "cannot be read: " in err
    assert err.endswith("1 of 4 images cannot be read\n")


def test_json(colour_run, folder, capsys):
    assert main([str(colour_run), str(folder), "--json", "--top", "1"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [one["image"] for one in content] == [
        str(folder / f"{name}.png") for name in ("blue", "broken", "grün und blau", "red")
    ]
    assert "error" in content[1]
    assert content[2]["classes"][0]["class"] == "grün und blau"
    assert content[2]["classes"][0]["probability"] > 0.9
    assert len(content[2]["classes"]) == 1


def test_csv(colour_run, folder, capsys):
    assert main([str(colour_run), str(folder / "red.png"), "--csv", "--top", "2"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    ranked = ["prediction_1", "probability_1", "prediction_2", "probability_2"]
    assert rows[0] == ["image", *ranked, "ood_score", "is_ood", "error"]
    assert rows[1][:2] == [str(folder / "red.png"), "red"]
    assert rows[1][-2:] == [str(int(float(rows[1][-3]) > 1)), ""]


def test_a_list_on_standard_input(colour_run, folder, capsys, monkeypatch):
    names = [str(folder / "red.png"), "", "nowhere.png", str(folder / "blue.png")]
    monkeypatch.setattr("sys.stdin", io.StringIO("\r\n".join(names) + "\n"))
    assert main([str(colour_run), "-", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [one["image"] for one in content] == [names[0], names[2], names[3]]
    assert content[1]["error"] == "there is no such file"


def test_patterns_and_folders(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "x.jpg").write_bytes(b"")
    (folder / "[odd].png").write_bytes(b"")
    found = [path.name for path in expand([f"{folder}/**/*.jpg", f"{folder}/r*.png"], [])]
    assert found == ["x.jpg", "red.png"]
    assert [p.name for p in expand([str(folder / "[odd].png")], [])] == ["[odd].png"]


def test_a_folder_is_read_as_the_search_reads_it(folder, colour_run, capsys):
    (folder / "no suffix").write_bytes((folder / "red.png").read_bytes())
    (folder / ".hidden.png").touch()
    (folder / "raw.cr2").write_bytes(b"II*")
    (folder / "table.csv").touch()
    (folder / "deep").mkdir()
    (folder / "deep" / "clip.mov").touch()
    os.mkfifo(folder / "pipe.png")
    manifest = scan_external(folder, CLASSES)
    skipped: list[Path] = []
    found = [str(p.relative_to(folder)) for p in expand([str(folder)], [], skipped)]
    read = set(manifest.names) | {issue.image for issue in manifest.skipped}
    assert set(found) | {str(p.relative_to(folder)) for p in skipped} == read
    assert set(manifest.names) < set(found)
    assert set(found) - set(manifest.names) == {"raw.cr2"}, "an image that cannot be read"
    assert main([str(colour_run), str(folder)]) == 1
    out, err = capsys.readouterr()
    assert f"{folder}/no suffix " in out
    first, *_, last = err.splitlines()
    assert first.startswith("4 files skipped as no image: ")
    for name in ("deep/clip.mov", "notes.txt", "pipe.png", "table.csv"):
        assert f"{folder}/{name}" in first
    assert "raw.cr2" in err
    assert "cannot be read: is a camera's raw file" in err
    assert last == "2 of 6 images cannot be read"


def test_a_folder_without_images(colour_run, tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert main([str(colour_run), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: there are no images in {tmp_path}\n"


def test_a_threshold_marks_what_needs_review(colour_run, folder, capsys):
    images = [str(folder / "red.png"), str(folder / "blue.png")]
    probabilities = [one.probabilities[0] for one in load(colour_run).predict(images)]
    threshold = str(sum(probabilities) / 2)
    marks = [p < float(threshold) for p in probabilities]
    assert sorted(marks) == [False, True]
    assert main([str(colour_run), *images, "--threshold", threshold]) == 0
    out, err = capsys.readouterr()
    assert ["needs review" in line for line in out.splitlines()] == marks
    assert err == f"1 of 2 images need review: the probability is below {float(threshold):g}\n"
    main([str(colour_run), *images, str(folder / "broken.png"), "--csv", "--threshold", threshold])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["needs_review"] for row in rows] == [*(str(int(mark)) for mark in marks), ""]
    assert [list(row)[-2:] for row in rows] == [["needs_review", "error"]] * 3
    assert rows[2]["error"]
    main([str(colour_run), *images, "--json", "--threshold", threshold])
    assert [one["needs_review"] for one in json.loads(capsys.readouterr().out)] == marks


@pytest.mark.parametrize("threshold", ["0", "1.5", "90%", "nan"])
def test_a_threshold_is_a_probability(threshold, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "photo.jpg", "--threshold", threshold])
    message = f"must be a probability > 0 and <= 1, but got '{threshold}'"
    assert message in capsys.readouterr().err


def test_a_url_is_refused(colour_run, capsys):
    assert main([str(colour_run), "https://example.org/a.jpg?x=[1]"]) == 2
    assert capsys.readouterr().err == (
        "error: https://example.org/a.jpg?x=[1] is a URL, and only files are read: download it"
        " first (curl -fLO 'https://example.org/a.jpg?x=[1]')\n"
    )


def test_a_name_that_is_too_long(colour_run, capsys):
    assert main([str(colour_run), "x" * 300]) == 2
    assert capsys.readouterr().err == f"error: {'x' * 300} cannot be read: File name too long\n"


def test_all_tables_of_predictions_have_the_same_columns(colour_run, folder, capsys):
    main([str(colour_run), str(folder / "red.png"), "--csv"])
    header = capsys.readouterr().out.splitlines()[0].split(",")
    table = list(read_rows(colour_run / "test_predictions.csv")[0])
    ours = [name for name in table if name != "label" and not name.startswith("prob_")]
    assert header == [*ours, "error"]


def test_names_in_csv_survive(colour_run, folder):
    """Those that begin as a formula, in a spreadsheet's eyes, are names too."""
    names = ["=1+1.png", "+a.png", "@b.png", "-c.png", 'q"u,o.png', "line\nfeed.png", "cr\r.png"]
    names += [" blank ", "é.png", os.fsdecode(b"\xff.png"), os.fsdecode(b"\xfe.png")]
    for name in names:
        (folder / name).write_bytes((folder / "red.png").read_bytes())
    command = [sys.executable, "-m", "search.predict", colour_run, "--csv", "--", *names[:-1], "-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, check=True, env=environment, input=b"\xfe.png"
    )
    text = io.StringIO(done.stdout.decode("utf-8", "surrogateescape"), newline="")
    assert [row["image"] for row in csv.DictReader(text)] == names
    table = pd.read_csv(io.BytesIO(done.stdout), encoding_errors="replace")
    assert table["image"].tolist()[:-2] == names[:-2]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere.png", "there is no image {0}/nowhere.png"),
        ("*.jpeg", "no file matches {0}/*.jpeg"),
        ("empty", "there are no images in {0}/empty"),
    ],
)
def test_an_argument_that_matches_nothing(colour_run, tmp_path, capsys, argument, message):
    (tmp_path / "empty").mkdir()
    assert main([str(colour_run), str(tmp_path / argument)]) == 2
    assert capsys.readouterr().err == f"error: {message.format(tmp_path)}\n"


def test_an_empty_list(colour_run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main([str(colour_run), "-"]) == 2
    assert capsys.readouterr().err == "error: the list holds no path of an image\n"


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_top_is_a_whole_number(colour_run, capsys, top):
    with pytest.raises(SystemExit) as stopped:
        main([str(colour_run), "x.png", "--top", top])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: argument --top: must be a whole number >= 1, but got '{top}' (see --help)\n"
    )


def test_a_file_that_is_no_model(folder, capsys):
    assert main([str(folder / "red.png"), str(folder / "red.png")]) == 2
    assert "red.png cannot be read as a model: " in capsys.readouterr().err


def test_a_reader_that_ends_early(colour_run, folder):
    command = f"{sys.executable} -m search.predict {colour_run} {folder}/r*.png --json | true"
    piped = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, check=False
    )
    assert (piped.returncode, piped.stderr) == (0, b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_names_the_option_that_reads_it(colour_run, tmp_path, capsys):
    Image.new("RGB", (1500, 1000)).save(tmp_path / "large.png")
    command = [str(colour_run), str(tmp_path / "large.png"), "--max-megapixels"]
    assert main([*command, "1"]) == 1
    assert "1,000,000 are the most (--max-megapixels)" in capsys.readouterr().err
    assert main([*command, "2"]) == 0
    assert main(command[:-1]) == 0
