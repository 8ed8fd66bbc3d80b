"""A model of several ensembles gives equal probabilities by command, exported and served."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search import export, predict
from search.deployment import exporters
from search.deployment.parity import central_pixels
from search.deployment.predictor import load
from tests.trainables.models.test_model import HEAVY, LIGHT, part
from trainables.images import read_image
from trainables.models.model import join, save_model

pytest.importorskip("onnxruntime", reason="needs the extra: export")
pytest.importorskip("fastapi", reason="needs the extra: serve")
httpx2 = pytest.importorskip("httpx2", reason="needs the extra: dev")

N_IMAGES = 3
TOLERANCE = 1e-3


@pytest.fixture
def model_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a model of two backbones, on a CPU that can compute in bfloat16."""
    monkeypatch.setattr("trainables.compute._cpu_supports_bfloat16", lambda: True)
    model = join([part(HEAVY, 1, ood=True), part(LIGHT, 5, ood=True)], [0.75, 0.25])
    save_model(model, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(N_IMAGES)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return paths


def by_command(model_path: Path, images: list[Path], capsys: pytest.CaptureFixture[str]) -> Any:
    """Return what `search.predict --json` writes."""
    assert predict.main([str(model_path), *map(str, images), "--json", "--top", "9"]) == 0
    return json.loads(capsys.readouterr().out)


def probabilities(results: Any, classes: tuple[str, ...]) -> np.ndarray:
    found = [{one["class"]: one["probability"] for one in each["classes"]} for each in results]
    return np.array([[each[name] for name in classes] for each in found])


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_exported(
    model_path: Path, images: list[Path], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(model_path), "--format", form]) == 0
    capsys.readouterr()
    predicted = by_command(model_path, images, capsys)
    card = load(model_path).model.card
    decoded = np.stack([card.to_square(read_image(path)) for path in images])
    run = exporters.run_onnx if form == "onnx" else exporters.run_program
    exported = run(model_path.with_suffix(f".{form}"), central_pixels(card, decoded))
    np.testing.assert_allclose(
        exported.probabilities, probabilities(predicted, card.classes), atol=TOLERANCE
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_served(model_path: Path, images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    from search.deployment.server.app import build_app
    from search.deployment.server.middleware import Limits
    from search.deployment.server.schemas import describe_model
    from search.deployment.server.service import LocalService

    before = Image.MAX_IMAGE_PIXELS
    predictor = load(model_path)
    card, limits = predictor.model.card, Limits()
    service = LocalService(predictor, limits.pixels, 8)
    app = build_app(service, describe_model(model_path, card), limits, None)

    async def ask() -> Any:
        files = [("images", (path.name, path.read_bytes())) for path in images]
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/predict?top=9&grad_cam=true", files=files)

    served = asyncio.run(ask()).json()["predictions"]
    Image.MAX_IMAGE_PIXELS = before
    predicted = by_command(model_path, images, capsys)
    np.testing.assert_allclose(
        probabilities(served, card.classes), probabilities(predicted, card.classes), atol=TOLERANCE
    )
    assert [one["is_ood"] for one in served] == [one["is_ood"] for one in predicted]
    assert all(one["grad_cam"] for one in served)
