"""The HTTP interface, in this process: no Ray, no socket."""

from __future__ import annotations

import asyncio
import io
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from search.deployment.predictor import load
from search.deployment.server.middleware import PUBLIC_PATHS, Limits
from search.runs.summary import RunSummary
from tests.fixtures.handmade_run import scores
from trainables.models.ood import OODScorer

pytest.importorskip("fastapi", reason="needs the extra: serve")
httpx2 = pytest.importorskip("httpx2", reason="needs the extra: dev")

from search.deployment.server.app import build_app  # noqa: E402
from search.deployment.server.schemas import ModelInfo, describe_model  # noqa: E402
from search.deployment.server.service import LocalService  # noqa: E402

TOKEN = "a-token-of-some-length"
LIMITS = Limits(body_bytes=200_000, pixels=40_000, images=3, seconds=20.0, requests=4)


@pytest.fixture(scope="module")
def service(colour_run: Path) -> Iterable[LocalService]:
    before = Image.MAX_IMAGE_PIXELS
    yield LocalService(load(colour_run), LIMITS.pixels, 8)
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture
def info(service: LocalService, colour_run: Path) -> ModelInfo:
    return describe_model(colour_run, service.card)


@pytest.fixture
def app(service: LocalService, info: ModelInfo) -> Any:
    return build_app(service, info, LIMITS, None)


@pytest.fixture
def image(colour_images: Path) -> bytes:
    return (colour_images / "grün und blau" / "012.png").read_bytes()


def ask(app: Any, *requests: tuple[str, str, dict[str, Any]]) -> list[Any]:
    """Send requests, all at the same time."""

    async def send() -> list[Any]:
        transport = httpx2.ASGITransport(app, raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.request(m, p, **kw) for m, p, kw in requests))

    return asyncio.run(send())


def get(app: Any, path: str, **more: Any) -> Any:
    return ask(app, ("GET", path, more))[0]


def post(app: Any, *contents: bytes, path: str = "/predict", **more: Any) -> Any:
    files = [("images", (f"{i}.png", content)) for i, content in enumerate(contents)]
    return ask(app, ("POST", path, {"files": files, **more}))[0]


def png(width: int, height: int) -> bytes:
    """Make a tiny file of many white pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    row = b"\0" + b"\xff" * ((width + 7) // 8)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row * height, 9))
        + chunk(b"IEND", b"")
    )


def test_predict_returns_the_top_3_of_an_image(app, image):
    answer = post(app, image)
    assert answer.status_code == 200
    (result,) = answer.json()["predictions"]
    assert result["image"] == "0.png"
    assert result["error"] is None
    assert result["grad_cam"] is None
    assert result["classes"][0]["class"] == "grün und blau"
    assert len(result["classes"]) == 3
    assert result["classes"][0]["probability"] > 0.9


def test_predict_several_images_one_of_them_unreadable(app, image, colour_images):
    blue = (colour_images / "blue" / "012.png").read_bytes()
    answer = post(app, image, b"no image", blue, path="/predict?top=1")
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert first["classes"][0]["class"] == "grün und blau"
    assert len(first["classes"]) == 1
    assert second["error"] == "is not an image, or of a format that cannot be read"
    assert second["classes"] == []
    assert third["classes"][0]["class"] == "blue"


def test_predict_with_a_grad_cam_heat_map(app, image):
    answer = post(app, image, path="/predict?grad_cam=true")
    (result,) = answer.json()["predictions"]
    values = [value for row in result["grad_cam"] for value in row]
    assert values
    assert all(0 <= value <= 1 for value in values)


def test_predict_returns_the_ood_score(colour_run, info, image):
    predictor = load(colour_run)
    members, size = predictor.model.card.n_members, 128
    shapes = torch.zeros(members, size), torch.zeros(members, 1, size)
    answers = []
    for offset in (None, 1.5, float("inf")):
        scale = torch.tensor([0.0, 0.0, offset or 0.0])
        predictor.model.ood_scorer = None if offset is None else OODScorer(*shapes, scale)
        app = build_app(LocalService(predictor, LIMITS.pixels, 8), info, LIMITS, None)
        answers.append(post(app, image).json()["predictions"][0]["ood_score"])
    assert answers == [None, 1.5, None]


def test_predict_without_any_readable_image(app):
    answer = post(app, b"", b"text")
    assert answer.status_code == 422
    assert answer.json() == {"detail": "no image can be read: 0.png: is empty (zero bytes)"}


@pytest.mark.parametrize(
    ("path", "more", "status", "detail"),
    [
        ("/predict", {}, 422, "no image can be read: is empty (zero bytes)"),
        (
            "/predict",
            {"files": {"images": (None, "text")}},
            422,
            "the form's field images must be one file, or several",
        ),
        (
            "/predict",
            {"files": {"image": b"x"}},
            422,
            "the form's field images must be one file, or several",
        ),
        ("/predict?top=0", {"files": {"images": b"x"}}, 422, "query top: Input should be"),
        ("/predict?top=x", {"files": {"images": b"x"}}, 422, "query top: Input should be"),
        (
            "/predict",
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            400,
            "Missing boundary in multipart.",
        ),
        ("/nowhere", {}, 404, "Not Found"),
        ("/classes", {}, 405, "Method Not Allowed"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(app, path, more, status, detail):
    answer = ask(app, ("POST", path, more))[0]
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)


def test_a_body_whose_length_is_too_large(app):
    answer = post(app, bytes(LIMITS.body_bytes))
    assert answer.status_code == 413
    assert answer.json() == {"detail": "a request's body may have at most 200,000 bytes"}


def test_a_body_without_a_length_is_read_up_to_the_limit(app):
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n'
        for _ in range(1000):
            read += 10_000
            yield bytes(10_000)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = ask(app, ("POST", "/predict", {"content": body(), "headers": headers}))[0]
    assert answer.status_code == 413
    assert answer.json() == {"detail": "a request's body may have at most 200,000 bytes"}


def test_too_many_images(app, image):
    answer = post(app, *[image] * 4)
    assert answer.status_code == 413
    assert answer.json() == {"detail": "a request may have at most 3 images, but has 4"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_is_not_decoded(app, image):
    bomb = png(20_000, 20_000)
    assert len(bomb) < LIMITS.body_bytes
    answer = post(app, bomb)
    assert answer.status_code == 422
    assert "has too many pixels: 400,000,000, and 40,000 are the most" in answer.json()["detail"]
    assert post(app, png(200, 200)).status_code == 200
    assert post(app, png(201, 200)).status_code == 422


def test_a_bomb_inside_an_icon(app):
    inner = png(5000, 5000)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack(
        "<BBBBHHII", 32, 32, 0, 0, 1, 32, len(inner), 22
    )
    answer = post(app, icon + inner)
    assert answer.status_code == 422
    assert "too many pixels" in answer.json()["detail"]


def test_heic_is_not_read(app):
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(1000)
    answer = post(app, content)
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("is a HEIC photo, and none is read here: send a JPEG")


def test_a_jpeg_of_too_many_scans(app):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", progressive=True)
    assert post(app, file.getvalue()).status_code == 200
    content = file.getvalue()
    start = content.index(b"\xff\xda")
    scans = content[start : content.index(b"\xff\xd9", start)]
    answer = post(app, content[:start] + scans * 50 + b"\xff\xd9")
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("has more than 100 scans")


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer ", f"Bearer {TOKEN}x", TOKEN]
)
@pytest.mark.parametrize("path", ["/classes", "/predict", "/predict/", "/nowhere"])
def test_a_request_without_the_token_is_refused(service, info, header, path):
    app = build_app(service, info, LIMITS, TOKEN)
    headers = {} if header is None else {"authorization": header}
    answer = get(app, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"detail": "this needs the header Authorization: Bearer TOKEN"}


def test_a_new_route_needs_the_token(service, info):
    app = build_app(service, info, LIMITS, TOKEN)
    app.add_api_route("/new", lambda: {"classes": list(service.card.classes)})
    assert get(app, "/new").status_code == 401
    assert get(app, "/new", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_host_header_does_not_choose_the_path(service, info):
    app = build_app(service, info, LIMITS, TOKEN)
    for host in ("localhost/healthz?", "localhost/docs#", "localhost"):
        assert get(app, "/classes", headers={"host": host}).status_code == 401


def test_a_request_with_the_token(service, info, image):
    app = build_app(service, info, LIMITS, TOKEN)
    headers = {"authorization": f"bearer {TOKEN}"}
    assert get(app, "/classes", headers=headers).json()["classes"][1] == "grün und blau"
    assert post(app, image, headers=headers).status_code == 200


def test_public_paths_need_no_token_and_reveal_no_class(service, info):
    app = build_app(service, info, LIMITS, TOKEN)
    for path in PUBLIC_PATHS:
        answer = get(app, path)
        assert answer.status_code == 200
        assert "blue" not in answer.text


def test_another_host_name_is_refused(service, info):
    app = build_app(service, info, LIMITS, None, ("localhost", "[::1]"))
    hosts = {"localhost:81": 200, "LOCALHOST": 200, "[::1]:8000": 200, "evil.example": 400, "": 400}
    for host, status in hosts.items():
        assert get(app, "/healthz", headers={"host": host}).status_code == status


def test_a_header_that_is_not_utf_8(app):
    headers = [(b"x-request-id", b"\xff"), (b"authorization", b"\xff")]
    assert get(app, "/healthz", headers=headers).status_code == 200


def test_pages_load_nothing_from_other_servers(app):
    for path in ("/", "/docs"):
        answer = get(app, path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert not re.search(r"(src|href|action)=[\"']?(https?:)?//", answer.text)
        for name in re.findall(r'(?:src|href)="([^"#]+)"', answer.text):
            if not name.startswith("data:"):
                assert get(app, f"/{name.removeprefix('./')}").status_code == 200
    assert "http" not in get(app, "/page.js").text


def test_the_docs_page_lists_the_whole_interface(app):
    schema = get(app, "/openapi.json").json()
    assert sorted(schema["paths"]) == ["/classes", "/healthz", "/predict"]
    page = get(app, "/docs").text
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert f"<code>{method.upper()} {path}</code>" in page
            for status in operation["responses"]:
                assert f"<td>{status}</td>" in page
    assert json.dumps(schema)


def test_health_and_classes(app):
    assert get(app, "/healthz").json() == {"status": "ready"}
    answer = get(app, "/classes").json()
    assert answer.pop("version").startswith("classifier-search ")
    assert answer == {
        "name": "colours",
        "accuracy": None,
        "accuracy_ci95": None,
        "n_test": None,
        "classes": ["red", "grün und blau", "blue"],
        "resize_mode": "crop",
        "crop_fraction": round(32 / 36, 6),
        "max_squeeze": 2.0,
    }


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "image/png", None])
def test_a_body_that_is_no_form_is_one_image(app, image, kind):
    """As `curl --data-binary @photo.jpg` sends it."""
    headers = {} if kind is None else {"content-type": kind}
    answer = ask(app, ("POST", "/predict?top=1", {"content": image, "headers": headers}))[0]
    assert answer.status_code == 200
    (result,) = answer.json()["predictions"]
    assert result["image"] == ""
    assert result["classes"][0]["class"] == "grün und blau"
    answer = ask(app, ("POST", "/predict", {"content": b"{}", "headers": headers}))[0]
    assert answer.json()["detail"].startswith("no image can be read: is not an image")


def test_metrics_for_prometheus(app, image):
    assert post(app, image, image).status_code == 200
    assert get(app, "/nowhere").status_code == 404
    answer = get(app, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'classifier_requests_total{path="/predict",status="200"} 1.0' in lines
    assert 'classifier_requests_total{path="other",status="404"} 1.0' in lines
    assert 'classifier_request_seconds_count{path="/predict"} 1.0' in lines
    assert "classifier_batch_images_count 2.0" in lines
    assert "classifier_requests_in_progress 1.0" in lines, "this one"


def test_metrics_need_the_token(service, info):
    app = build_app(service, info, LIMITS, TOKEN)
    assert get(app, "/metrics").status_code == 401


def test_a_model_is_described_by_its_run(service, tmp_path):
    run = tmp_path / "photos"
    run.mkdir()
    assert describe_model(run / "model.pt", service.card).name == "model"
    assert describe_model(run, service.card).accuracy is None
    test = scores([[2, 1], [0, 1]], ("a", "b"), (0.5, 0.9))
    (run / "summary.json").write_text(json.dumps(RunSummary(test=test).as_dict()))
    found = describe_model(run, service.card)
    assert (found.accuracy, found.accuracy_ci95, found.n_test) == (0.75, [0.5, 0.9], 4)
    assert describe_model(run / "model.pt", service.card).accuracy is None
    (run / "summary.json").write_text("[]")
    assert describe_model(run, service.card).name == "photos", "damage keeps nothing from serving"


def test_a_deep_image_is_predicted(colour_run, info):
    """16 bits a pixel, of which a small file may hold very many."""
    file = io.BytesIO()
    Image.new("I;16", (100, 150), 40_000).save(file, "PNG")
    app = build_app(LocalService(load(colour_run), LIMITS.pixels, 8), info, LIMITS, None)
    assert post(app, file.getvalue()).status_code == 200
