"""The interface and its limits, in this process: no Ray, no socket."""

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

from search.deployment.middleware import HeaderCheck, Limits, RequestLimits
from search.deployment.predictor import load
from trainables.models.ood import OODScorer

pytest.importorskip("fastapi", reason="needs the extra: serve")
httpx2 = pytest.importorskip("httpx2", reason="needs the extra: dev")

from search.deployment.app import build_app  # noqa: E402
from search.deployment.service import Service  # noqa: E402

TOKEN = "a-token-of-some-length"
LIMITS = Limits(body_bytes=200_000, pixels=40_000, images=3, seconds=20.0, requests=4)


@pytest.fixture(scope="module")
def service(colour_run: Path) -> Iterable[Service]:
    before = Image.MAX_IMAGE_PIXELS
    yield Service(load(colour_run), LIMITS.pixels, 8)
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture
def app(service: Service) -> Any:
    return build_app(service, LIMITS, None)


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
    """A tiny file of as many white pixels as it says."""

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


def test_a_image_is_named(app, image):
    answer = post(app, image)
    assert answer.status_code == 200
    (result,) = answer.json()["predictions"]
    assert result["image"] == "0.png"
    assert result["error"] is None
    assert result["attribution"] is None
    assert result["classes"][0]["class"] == "grün und blau"
    assert len(result["classes"]) == 3
    assert result["classes"][0]["probability"] > 0.9


def test_many_images_and_one_that_cannot_be_read(app, image, colour_images):
    blue = (colour_images / "blue" / "012.png").read_bytes()
    answer = post(app, image, b"no image", blue, path="/predict?top=1")
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert first["classes"][0]["class"] == "grün und blau"
    assert len(first["classes"]) == 1
    assert second["error"] == "is not an image, or of a format that cannot be read"
    assert second["classes"] == []
    assert third["classes"][0]["class"] == "blue"


def test_it_says_where_the_class_is_seen(app, image):
    answer = post(app, image, path="/predict?attribution=true")
    (result,) = answer.json()["predictions"]
    values = [value for row in result["attribution"] for value in row]
    assert values
    assert all(0 <= value <= 1 for value in values)


def test_doubt_is_told(colour_run, image):
    predictor = load(colour_run)
    members, size = predictor.model.card.n_members, 128
    shapes = torch.zeros(members, size), torch.zeros(members, 1, size)
    answers = []
    for offset in (None, 1.5, float("inf")):
        scale = torch.tensor([0.0, 0.0, offset or 0.0])
        predictor.model.ood_scorer = None if offset is None else OODScorer(*shapes, scale)
        app = build_app(Service(predictor, LIMITS.pixels, 8), LIMITS, None)
        answers.append(post(app, image).json()["predictions"][0]["ood_score"])
    assert answers == [None, 1.5, None]


def test_no_image_that_can_be_read(app):
    answer = post(app, b"", b"text")
    assert answer.status_code == 422
    assert answer.json() == {"detail": "no image could be read: 0.png: is empty (zero bytes)"}


@pytest.mark.parametrize(
    ("path", "more", "status", "detail"),
    [
        ("/predict", {}, 422, "body images: Field required"),
        ("/predict", {"data": {"images": "text"}}, 422, "body images 0: "),
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
def test_what_is_wrong_is_told(app, path, more, status, detail):
    answer = ask(app, ("POST", path, more))[0]
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)


def test_a_body_that_says_it_is_too_large(app):
    answer = post(app, bytes(LIMITS.body_bytes))
    assert answer.status_code == 413
    assert answer.json() == {"detail": "a request's body may have at most 200,000 bytes"}


def test_a_body_that_does_not_say_how_large_it_is(app):
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
    assert answer.json() == {"detail": "a request may have at most 3 images, not 4"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_image_of_too_many_pixels_is_not_decoded(app, image):
    bomb = png(20_000, 20_000)
    assert len(bomb) < LIMITS.body_bytes
    answer = post(app, bomb)
    assert answer.status_code == 422
    assert "has too many pixels: Image size (400000000 pixels) exceeds" in answer.json()["detail"]
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


def test_a_photo_of_endless_scans(app):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", progressive=True)
    assert post(app, file.getvalue()).status_code == 200
    content = file.getvalue()
    start = content.index(b"\xff\xda")
    scans = content[start : content.index(b"\xff\xd9", start)]
    answer = post(app, content[:start] + scans * 50 + b"\xff\xd9")
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("has more than 100 scans")


def stall(release: asyncio.Event | None, read_body: bool = True) -> Any:
    """An application that answers when it is let to, or never."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while read_body and (await receive()).get("more_body"):
            pass
        if release is None:
            await asyncio.sleep(3600)
        else:
            await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    return app


def test_one_request_more_than_the_queue_takes_is_told_to_come_back():
    async def send() -> list[Any]:
        release = asyncio.Event()
        app = RequestLimits(stall(release), Limits(requests=3))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            tasks = [asyncio.create_task(client.post("/predict")) for _ in range(5)]
            done, _ = await asyncio.wait(tasks, timeout=1.0)
            assert len(done) == 2
            release.set()
            answers = await asyncio.gather(*tasks)
            return [*answers, await client.post("/predict")]

    answers = asyncio.run(send())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json() == {"detail": "3 requests are being worked on; come back soon"}


def test_a_request_that_takes_too_long():
    answer = ask(RequestLimits(stall(None), Limits(seconds=0.05)), ("GET", "/", {}))[0]
    assert answer.status_code == 429
    assert answer.json() == {"detail": "too busy to answer within 0.05 s; come back soon"}


def test_a_body_that_never_ends_arriving():
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(3600)
        yield b"y"

    app = RequestLimits(stall(None), Limits(seconds=0.05))
    answer = ask(app, ("POST", "/predict", {"content": body()}))[0]
    assert answer.status_code == 408
    assert answer.json() == {"detail": "a request must arrive within 0.05 s"}


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer ", f"Bearer {TOKEN}x", TOKEN]
)
@pytest.mark.parametrize("path", ["/classes", "/predict", "/predict/"])
def test_without_the_token(service, header, path):
    app = build_app(service, LIMITS, TOKEN)
    headers = {} if header is None else {"authorization": header}
    answer = get(app, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"detail": "this needs the header Authorization: Bearer TOKEN"}


def test_with_the_token(service, image):
    app = build_app(service, LIMITS, TOKEN)
    headers = {"authorization": f"bearer {TOKEN}"}
    assert get(app, "/classes", headers=headers).json()["classes"][1] == "grün und blau"
    assert post(app, image, headers=headers).status_code == 200
    for path in ("/", "/docs", "/healthz", "/openapi.json", "/page.js", "/page.css"):
        answer = get(app, path)
        assert answer.status_code == 200
        assert "blue" not in answer.text, "tells of the model"


def test_another_name_for_this_machine_is_refused(service):
    app = build_app(service, LIMITS, None, ("localhost", "[::1]"))
    assert get(app, "/healthz").status_code == 200
    for host, status in {"localhost:81": 200, "[::1]:8000": 200, "evil.example": 421}.items():
        assert get(app, "/healthz", headers={"host": host}).status_code == status


def test_a_header_that_serve_could_not_read():
    async def reached(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application was asked")

    async def close(message: Any) -> None:
        closed.append(message)

    closed: list[Any] = []
    headers = [(b"x-request-id", b"\xff")]
    answer = ask(HeaderCheck(reached), ("GET", "/", {"headers": headers}))[0]
    assert answer.status_code == 400
    assert answer.json() == {"detail": "a header's value is not UTF-8"}
    asyncio.run(HeaderCheck(reached)({"type": "websocket", "headers": headers}, None, close))
    assert closed == [{"type": "websocket.close", "code": 1008}]


def test_an_error_inside_is_not_shown_to_the_client(caplog):
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("/secret/path")

    answer = ask(RequestLimits(broken, LIMITS), ("GET", "/", {}))[0]
    assert answer.status_code == 500
    assert answer.json() == {"detail": "the server failed; its log says why"}
    assert "/secret/path" in caplog.text


def test_pages_ask_for_nothing_from_elsewhere(app):
    for path in ("/", "/docs"):
        answer = get(app, path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert not re.search(r"(src|href|action)=[\"']?(https?:)?//", answer.text)
        for name in re.findall(r'(?:src|href)="([^"#]+)"', answer.text):
            if not name.startswith("data:"):
                assert get(app, f"/{name.removeprefix('./')}").status_code == 200
    assert "http" not in get(app, "/page.js").text


def test_the_docs_tell_all_of_the_interface(app):
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
    assert get(app, "/classes").json() == {
        "classes": ["red", "grün und blau", "blue"],
        "resize_mode": "crop",
        "kept": round(32 / 36, 6),
        "squeezed": 2.0,
    }
