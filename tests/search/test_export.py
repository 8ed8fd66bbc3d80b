from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from search.data.image_files import DataError
from search.deployment import exporters, parity
from search.deployment.exporters import run_onnx, run_program
from search.deployment.run_images import read_split
from search.export import ExportError, main, one_member
from search.predict import load
from trainables.images import crop_pixels, evaluation_crop
from trainables.models.export_module import ExportModule
from trainables.models.model import load_model

onnx = pytest.importorskip("onnx", reason="needs the extra: export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: export")
pytest.importorskip("onnxscript", reason="needs the extra: export")


@pytest.fixture
def run(colour_run: Path, tmp_path: Path) -> Path:
    """A run of one's own to write into."""
    return Path(shutil.copytree(colour_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def exported(colour_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its ONNX file, made once."""
    run = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(colour_run, run)
    assert main([str(run)]) == 0
    return run


def test_the_graph_computes_the_ensemble(colour_run, colour_images):
    ensemble = load_model(colour_run / "model.pt")
    decoded = read_split(colour_run, ensemble.card, "test", None).decoded
    pixels = evaluation_crop(torch.from_numpy(decoded), ensemble.card.image_size).contiguous()
    with torch.no_grad():
        x = crop_pixels(torch.from_numpy(decoded), 32)
        expected = torch.softmax(ensemble(x) / 1.25, 2).mean(0)
        probabilities, ood_score = ExportModule(ensemble)(pixels)
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
        scores = ensemble.predict_with_ood(torch.from_numpy(decoded))[1]
        torch.testing.assert_close(ood_score, scores, atol=1e-3, rtol=1e-3)
        ensemble.ood_scorer = None
        assert len(ExportModule(ensemble)(pixels)) == 1


def test_onnx_is_compared_on_the_test_set_and_recorded(exported):
    record = json.loads((exported / "export" / "export.json").read_text())["model.onnx"]
    assert record["passed"] is True
    assert record["images"] == "test"
    assert (record["n"], record["n_missing"], record["n_label_flips"]) == (18, 0, 0)
    assert record["max_difference"] <= parity.TOLERANCE
    assert record["ood_difference"] <= parity.OOD_TOLERANCE
    assert record["n_ood_flips"] == 0
    assert record["accuracy"] == record["accuracy_pytorch"] == 1.0
    assert record["members"] == 5
    assert {p.name for p in (exported / "export").iterdir()} == {"model.onnx", "export.json"}


def test_onnx_describes_its_inputs_and_outputs(exported):
    session = onnxruntime.InferenceSession(exported / "export" / "model.onnx")
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    assert isinstance(images.shape[0], str)
    probabilities, ood_score = session.get_outputs()
    assert probabilities.name == "probabilities"
    assert (probabilities.type, probabilities.shape[1]) == ("tensor(float)", 3)
    assert (ood_score.name, ood_score.type, len(ood_score.shape)) == (
        "ood_score",
        "tensor(float)",
        1,
    )
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["red", "grün und blau", "blue"]
    assert json.loads(about["card"])["temperature"] == 1.25
    assert "resize mode crop: shorter side resized to 36 pixels" in about["preprocessing"]
    assert "at most 1 for 95% of images like the training set" in about["ood_score"]


@pytest.mark.parametrize("n", [1, 7])
def test_onnx_takes_any_number_of_images(exported, n):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    found = run_onnx(exported / "export" / "model.onnx", pixels)
    assert found.probabilities.shape == (n, 3)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert found.ood_score is not None
    assert found.ood_score.shape == (n,)
    assert (found.ood_score > 1).all(), "noise is not like the training images"


def test_the_frozen_stages_are_in_the_graph_once(exported):
    graph = onnx.load(exported / "export" / "model.onnx").graph
    backbone = load_model(exported / "model.pt").classifiers[0].backbone
    n_convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in backbone.modules())
    assert sum(node.op_type == "Conv" for node in graph.node) == n_convolutions
    n_products = sum(node.op_type in ("Gemm", "MatMul") for node in graph.node)
    assert n_products == 2 * 5, "a head and the OOD scorer's subspace, of each member"


def test_as_the_docs_say_with_pillow_and_onnxruntime_alone(exported, colour_images):
    path = colour_images / "blue" / "014.png"
    image = Image.open(path).convert("RGB")
    scale = 36 / min(image.size)
    width, height = (int(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    pixels = np.asarray(image.crop((left, top, left + 32, top + 32)))[None]
    found = run_onnx(exported / "export" / "model.onnx", pixels)
    made = load(exported).predict([path], top=1)[0]
    assert found.probabilities[0].argmax() == 2
    assert made.probabilities[0] == pytest.approx(found.probabilities[0][2], abs=0.02)
    assert found.ood_score is not None
    assert made.ood_score == pytest.approx(found.ood_score[0], abs=0.1)


def test_a_member_alone(run, capsys):
    assert main([str(run), "--member", "2"]) == 0
    ensemble = load_model(run / "model.pt")
    decoded = read_split(run, ensemble.card, "test", None).decoded
    pixels = parity.central_pixels(ensemble.card, decoded)
    with torch.no_grad():
        x = crop_pixels(torch.from_numpy(decoded), 32)
        expected = torch.softmax(ensemble.classifiers[1](x) / 1.25, 1).numpy()
    found = run_onnx(run / "export" / "model-member2.onnx", pixels)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)
    alone = one_member(ensemble, 2).predict_with_ood(torch.from_numpy(decoded))[1]
    np.testing.assert_allclose(found.ood_score, alone, atol=0.1)
    assert "warning" not in capsys.readouterr().err


def test_a_member_number_that_is_too_large(run, capsys):
    assert main([str(run), "--member", "6"]) == 2
    assert capsys.readouterr().err == "error: 1 <= --member <= 5 must hold, but got 6\n"


def test_int8_is_smaller_and_reports_its_accuracy(run, exported, capsys):
    assert main([str(run), "--int8"]) == 0
    out = capsys.readouterr().out
    assert "accuracy 100.0% (PyTorch: 100.0%)" in out
    record = json.loads((run / "export" / "export.json").read_text())["model-int8.onnx"]
    assert record["quantised"] is True
    assert record["accuracy"] >= 0.9
    assert 0 < record["max_difference"] < 0.5
    assert record["ood_difference"] is not None
    whole = (exported / "export" / "model.onnx").stat().st_size
    assert record["bytes"] == (run / "export" / "model-int8.onnx").stat().st_size < 0.5 * whole
    about = onnxruntime.InferenceSession(run / "export" / "model-int8.onnx").get_modelmeta()
    assert json.loads(about.custom_metadata_map["classes"])[2] == "blue"


def test_int8_is_calibrated_on_training_images(run, monkeypatch):
    given = []

    def write_int8(ensemble, decoded, path):
        given.append(decoded)
        raise ExportError("that is all")

    monkeypatch.setattr(exporters, "write_int8", write_int8)
    assert main([str(run), "--int8"]) == 2
    card = load_model(run / "model.pt").card
    np.testing.assert_array_equal(given[0], read_split(run, card, "train", None).decoded)


def test_a_program(run):
    assert main([str(run), "--format", "pt2"]) == 0
    ensemble = load_model(run / "model.pt")
    images = read_split(run, ensemble.card, "test", None)
    found = run_program(
        run / "export" / "model.pt2", parity.central_pixels(ensemble.card, images.decoded)
    )
    expected = parity.expected_outputs(ensemble, images.decoded)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.ood_score, expected.ood_score, atol=1e-3)
    assert [path.name for path in (run / "export").glob("*partial*")] == []


def test_images_that_moved(run, colour_images, tmp_path, capsys):
    environment = json.loads((run / "environment.json").read_text())
    environment["request"]["data"] = str(tmp_path / "gone")
    (run / "environment.json").write_text(json.dumps(environment))
    assert main([str(run)]) == 2
    assert capsys.readouterr().err == (
        f"error: --data must name a folder, but there is no {tmp_path}/gone\n"
    )
    (tmp_path / "gone").mkdir()
    assert main([str(run)]) == 2
    assert capsys.readouterr().err == (
        f"error: none of the 18 test images of {run} is in {tmp_path}/gone, such as"
        " 'red/012.png': give their folder with --data\n"
    )
    moved = Path(shutil.copytree(colour_images, tmp_path / "moved"))
    (moved / "red" / "012.png").unlink()
    (moved / "red" / "013.png").write_bytes(b"damaged")
    assert main([str(run), "--format", "pt2", "--data", str(moved)]) == 0
    out = capsys.readouterr().out
    assert "checked  16 test images (2 more are missing): " in out


def test_changed_images_are_a_warning(run, colour_images, tmp_path, capsys):
    other = Path(shutil.copytree(colour_images, tmp_path / "other"))
    shutil.copy(other / "blue" / "012.png", other / "red" / "012.png")
    assert main([str(run), "--format", "pt2", "--data", str(other)]) == 0
    assert capsys.readouterr().err == ("warning: 1 of 18 test images have changed since the run\n")


def test_a_model_file_alone_is_compared_on_generated_images_without_its_space(
    colour_run, tmp_path, capsys
):
    shutil.copy(colour_run / "model.pt", tmp_path / "model.pt")
    (tmp_path / "space.py").write_text("raise SystemExit('run')")
    assert main([str(tmp_path / "model.pt"), "--format", "pt2"]) == 0
    assert "checked  32 generated images: " in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "model.pt2", "space.py"}
    assert main([str(tmp_path / "model.pt"), "--int8"]) == 2
    assert "--int8 needs the run's folder" in capsys.readouterr().err


def test_an_export_that_differs_is_not_written(run, monkeypatch, capsys):
    def wrong(path: Path, pixels: np.ndarray) -> parity.Outputs:
        found = run_program(path, pixels)
        return replace(found, probabilities=found.probabilities * 0.99 + 0.01 / 3)

    monkeypatch.setattr("search.deployment.exporters.run_program", wrong)
    assert main([str(run), "--format", "pt2"]) == 1
    assert "error: model.pt2 is not written: 18 test images" in capsys.readouterr().err
    assert list((run / "export").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "pt2", "--int8"], "--int8 goes with --format onnx, not with pt2"),
        (["--data", "nowhere"], "--data must name a folder, but there is no nowhere"),
    ],
)
def test_requests_that_are_refused(run, capsys, arguments, message):
    assert main([str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_has_no_split(run, capsys):
    (run / "split.csv").unlink()
    assert main([str(run)]) == 2
    assert "has no split.csv: its search ended before the split" in capsys.readouterr().err


def test_a_split_of_another_model(run, colour_run):
    card = load_model(colour_run / "model.pt").card
    with pytest.raises(DataError, match="does not belong to the model beside it"):
        read_split(run, replace(card, classes=("a", "b", "c")), "test", None)
    with pytest.raises(DataError, match="lists no val images"):
        read_split(run, card, "val", None)


def test_ties_are_no_label_flips(colour_run):
    card = load_model(colour_run / "model.pt").card
    images = parity.generate_images(card, 3)
    expected = np.array([[0.5, 0.4995, 0.0005], [0.6, 0.4, 0.0], [0.2, 0.3, 0.5]])
    exported = np.array([[0.4995, 0.5, 0.0005], [0.4, 0.6, 0.0], [0.2, 0.3, 0.5]])

    def compare(rows: list[int], quantised: bool = False) -> parity.Parity:
        both = parity.Outputs(expected[rows], None), parity.Outputs(exported[rows], None)
        return parity.compare_outputs(*both, images, generated=True, quantised=quantised)

    assert compare([0, 1, 2]).n_label_flips == 1
    assert not compare([0, 1, 2]).passed
    assert compare([0, 1, 2], quantised=True).passed
    assert compare([0, 2]).passed


def test_ood_scores_that_differ(colour_run):
    card = load_model(colour_run / "model.pt").card
    images = parity.generate_images(card, 3)
    equal = np.full((3, 3), 1 / 3)

    def compare(*scores: float) -> parity.Parity:
        before = parity.Outputs(equal, np.array([0.5, 0.999, 40.0]))
        after = parity.Outputs(equal, np.array(scores))
        return parity.compare_outputs(before, after, images, generated=True, quantised=False)

    close = compare(0.505, 1.001, 40.3)
    assert close.passed
    assert close.ood_difference == pytest.approx(0.3 / 40)
    far = compare(1.5, 0.999, 40.0)
    assert not far.passed
    assert far.n_ood_flips == 1
    assert "; OOD scores differ by at most 1 (allowed: 0.01), is_ood for 1" in far.in_words()
