"""A run as an object: predictions, evaluation, module, report; and what `search` exports."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import search
from search import DataError, FolderError, ModelError, SearchError, SourceError, load_run
from tests.fixtures.colours import CLASSES, N_TEST, N_TRAIN, colour_image
from tests.fixtures.handmade_run import make_run
from trainables.models.image_classifier import ImageClassifier

ROOT = Path(__file__).parents[3]


def test_importing_search_is_quick() -> None:
    code = """
import sys, search
slow = {"torch", "ray", "optuna", "pandas", "numpy", "matplotlib"}
assert not slow & sys.modules.keys()
assert "run_search" in dir(search)
from search import SearchError, load_run, run_search
assert not {"torch", "ray", "pandas", "matplotlib"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_exported_name_is_where_type_checkers_find_it() -> None:
    tree = ast.parse(Path(search.__file__ or "").read_text())
    declared = {
        alias.name: node.module
        for guarded in tree.body
        if isinstance(guarded, ast.If)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == search._MODULES
    assert sorted(declared) == search.__all__
    for name, module in declared.items():
        assert getattr(search, name) is getattr(importlib.import_module(str(module)), name)
    with pytest.raises(AttributeError, match="has no attribute 'runsearch'"):
        search.runsearch  # noqa: B018


def test_all_errors_of_users_have_one_base() -> None:
    """Whoever catches `SearchError` catches what every part of the project refuses."""
    raised = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for package in ("search", "trainables", "spaces")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "ValueError" for base in node.bases)
    ]
    assert [name.split(": ")[1] for name in raised if "grad_cam" not in name] == ["SearchError"]
    for name in search.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(search, name), SearchError)


def test_predictions_of_every_kind_of_image(colour_run: Path, tmp_path: Path) -> None:
    run = load_run(colour_run)
    image = colour_image(2, 77)
    image.save(tmp_path / "blue.png")
    (tmp_path / "no.jpg").write_text("no image")
    pixels = np.asarray(image)
    kinds = [
        str(tmp_path / "blue.png"),
        tmp_path / "blue.png",
        image,
        pixels,
        pixels / 255,
        (tmp_path / "blue.png").read_bytes(),
        tmp_path / "no.jpg",
    ]
    frame = run.predict(kinds, top=2)
    ranked = ["prediction_1", "probability_1", "prediction_2", "probability_2"]
    assert list(frame.columns) == ["image", *ranked, "ood_score", "is_ood", "error"]
    assert list(frame["image"][:2]) == [str(tmp_path / "blue.png")] * 2
    assert frame["prediction_1"][:6].tolist() == ["blue"] * 6
    assert frame["probability_1"][:6].nunique() == 1
    assert frame["error"].notna().tolist() == [False] * 6 + [True]
    assert pd.isna(frame["prediction_1"][6])
    assert frame["is_ood"].dtype == "boolean"
    alone = run.predict(str(tmp_path / "blue.png"))
    assert len(alone) == 1, "a text is one path, and no sequence of letters"
    assert alone["prediction_3"].notna().all()
    typed = run.predictor.predict(image, top=1)
    assert typed[0].classes == ("blue",)


def test_the_model_is_a_module(colour_run: Path) -> None:
    run = load_run(colour_run)
    assert isinstance(run.model, ImageClassifier)
    assert run.model is run.model
    pixels = np.asarray(colour_image(0, 5))
    batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with torch.no_grad():
        probabilities = run.model(batch)
    expected = run.predict(pixels, top=1)
    assert run.model.classes[int(probabilities.argmax())] == expected["prediction_1"][0] == "red"
    assert float(probabilities.max()) == pytest.approx(expected["probability_1"][0], abs=0.02)


def test_an_evaluation_on_other_images(
    colour_run: Path, colour_images: Path, tmp_path: Path
) -> None:
    run = load_run(colour_run)
    for label, name in enumerate(CLASSES[:2]):
        (tmp_path / "more" / name).mkdir(parents=True)
        for seed in range(5):
            colour_image(label, 500 + seed).save(tmp_path / "more" / name / f"{seed}.png")
    colour_image(2, 900).save(tmp_path / "more" / "red" / "wrong.png")
    shutil.copy(colour_images / "red" / "000.png", tmp_path / "more" / "red" / "copy.png")
    (tmp_path / "more" / "red" / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    found = run.evaluate(tmp_path / "more")
    assert (found.n, found.n_unreadable, found.n_duplicates) == (12, 1, 1)
    assert found.scores is not None
    assert found.scores.n == 11
    assert found.scores.accuracy == pytest.approx(10 / 11)
    assert found.scores.confusion[0] == [5, 0, 1]
    assert found.scores.n_ood is not None
    assert found.predictions.set_index("image")["is_duplicate"]["red/copy.png"]
    assert len(found.predictions) == 12
    assert "accuracy 90.9%" in repr(found)
    assert "1 of the run's own, not scored" in repr(found)


def test_an_evaluation_on_the_runs_own_images_scores_none(
    colour_run: Path, colour_images: Path
) -> None:
    found = load_run(colour_run).evaluate(colour_images)
    assert found.n_duplicates == found.n == 3 * (N_TRAIN + N_TEST)
    assert found.scores is None


def test_an_evaluation_without_labels(colour_run: Path, tmp_path: Path) -> None:
    colour_image(1, 600).save(tmp_path / "some.png")
    found = load_run(colour_run).evaluate(str(tmp_path))
    assert found.scores is None
    assert found.predictions["prediction_1"].tolist() == ["grün und blau"]
    assert found.predictions["label"].isna().all()


def test_an_evaluation_of_nothing(colour_run: Path, tmp_path: Path) -> None:
    run = load_run(colour_run)
    with pytest.raises(SourceError, match="the data to evaluate on must name a folder, but there"):
        run.evaluate(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images in .* can be read: .*a\.png"):
        run.evaluate(tmp_path)


def test_a_run_that_is_none_and_one_without_a_model(colour_run: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="is no run"):
        load_run(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(colour_run, bare, ignore=shutil.ignore_patterns("model.pt"))
    run = load_run(bare)
    assert run.best_config is None
    assert run.trials.empty
    assert {"number", "state", "backbone", "freeze_depth"} <= set(run.trials.columns)
    assert repr(run) == f"Run({str(bare)!r}): no trial yet"
    for use in (lambda: run.model, lambda: run.predict(Image.new("RGB", (9, 9)))):
        with pytest.raises(ModelError, match="there is no model at"):
            use()


def test_a_report_is_shown_inline(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run"))
    assert repr(run).endswith("12 trials; test accuracy 95.0%, 95% CI 83.5–98.6%, n = 40")
    assert run.best_config == {"backbone": "tinynet", "lr": 0.001, "class_weights": False}
    report = run.report(height=300)
    assert report.path == tmp_path / "run" / "report.html"
    shown = report._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    assert 'height="300"' in shown
    assert shown.count("<") == 2, "the page is quoted as a whole"
