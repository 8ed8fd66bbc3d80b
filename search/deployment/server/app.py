"""The server's web application: its HTTP interface and its page."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, cast

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from jinja2 import Environment, PackageLoader
from starlette.datastructures import UploadFile
from starlette.middleware import Middleware

from search.deployment.predictor import Prediction
from search.deployment.server.metrics import CountRequests, Metrics
from search.deployment.server.middleware import Limits, create_middleware
from search.deployment.server.schemas import (
    ERROR_RESPONSES,
    REQUEST_BODY,
    ClassProbability,
    Health,
    ImageResult,
    ModelInfo,
    PredictResponse,
)
from search.deployment.server.service import Service
from trainables.images import ImageError

_TEMPLATES = Path(__file__).parent / "templates"
_COUNTED_PATHS = frozenset({"/predict", "/classes", "/healthz", "/metrics", "/docs", "/"})
_BYTES_IN_MEMORY = 2**20
"""Bytes of an uploaded file that are kept in memory, as in Starlette's forms."""
_STATIC_FILES = {"page.css": "text/css", "page.js": "text/javascript"}


def build_app(
    service: Service,
    info: ModelInfo,
    limits: Limits,
    token: str | None,
    hosts: tuple[str, ...] = (),
) -> FastAPI:
    """Build the application.

    Args:
        service: The model.
        info: Describes the model.
        limits: Limits of requests.
        token: Token that requests need; None lets every client in.
        hosts: Names by which the server may be called; none allows all.
    """
    metrics = Metrics()
    layers = create_middleware(limits, token, hosts)
    layers.insert(1, Middleware(CountRequests, metrics=metrics, paths=_COUNTED_PATHS))
    app = FastAPI(
        title="Classifier",
        version="1",
        description="Predicts the classes of images.",
        docs_url=None,  # FastAPI's pages load scripts from other servers; ours is below
        redoc_url=None,
        middleware=layers,
        exception_handlers={RequestValidationError: _answer_422},
    )
    _add_interface(app, service, info, limits, metrics)
    _add_pages(app, limits, needs_token=token is not None)
    app.add_route("/metrics", metrics.answer, include_in_schema=False)
    return app


def _add_interface(
    app: FastAPI, service: Service, info: ModelInfo, limits: Limits, metrics: Metrics
) -> None:
    @app.post("/predict", responses=ERROR_RESPONSES, openapi_extra={"requestBody": REQUEST_BODY})
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=10_000, description="Classes to return.")] = 3,
        grad_cam: Annotated[
            bool, Query(description="Also return a Grad-CAM heat map of the first class.")
        ] = False,
    ) -> PredictResponse:
        """Return the top-k predictions for images: the files of a form, or the body itself."""
        async with _uploads(request) as files:
            if len(files) > limits.images:
                raise HTTPException(
                    413, f"a request may have at most {limits.images} images, but has {len(files)}"
                )
            work = (_predict(service, metrics, *file, top, grad_cam) for file in files)
            results = list(await asyncio.gather(*work))
        if all(result.error for result in results):
            named = f"{results[0].image}: " if results[0].image else ""
            raise HTTPException(422, f"no image can be read: {named}{results[0].error}")
        return PredictResponse(predictions=results)

    @app.get("/classes", responses={n: ERROR_RESPONSES[n] for n in (400, 401, 408, 429, 503)})
    async def classes() -> ModelInfo:
        """Describe the model and list its classes."""
        return info

    @app.get(
        "/healthz",
        responses={
            **{n: ERROR_RESPONSES[n] for n in (400, 408, 429)},
            503: {**ERROR_RESPONSES[503], "model": Health},  # as `Startup` answers
        },
    )
    async def healthz() -> Health:
        """Report that the model is loaded."""
        return Health(status="ready")


@asynccontextmanager
async def _uploads(request: Request) -> AsyncIterator[Sequence[tuple[str, IO[bytes]]]]:
    """Read the image files of a request, each with its name; large ones are on disk meanwhile.

    Raises:
        HTTPException: it is a form without images.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        with SpooledTemporaryFile(max_size=_BYTES_IN_MEMORY) as file:
            async for chunk in request.stream():
                file.write(chunk)
            file.seek(0)
            yield [("", cast("IO[bytes]", file))]
        return
    async with request.form() as form:
        files = form.getlist("images")
        uploads = [(one.filename or "", one.file) for one in files if isinstance(one, UploadFile)]
        if not files or len(uploads) < len(files):
            raise HTTPException(422, "the form's field images must be one file, or several")
        yield uploads


async def _predict(
    service: Service, metrics: Metrics, name: str, file: IO[bytes], top: int, grad_cam: bool
) -> ImageResult:
    try:
        prediction, heat_map, batch_size = await service.answer(file, grad_cam)
    except ImageError as error:
        return ImageResult(image=name, classes=[], error=error.reason)
    metrics.batch_images.observe(batch_size)
    score = prediction.ood_score
    return ImageResult(
        image=name,
        classes=_top_classes(prediction, top),
        ood_score=score if score is not None and math.isfinite(score) else None,
        is_ood=prediction.is_ood,
        grad_cam=None if heat_map is None else np.round(heat_map.astype(float), 3).tolist(),
    )


def _top_classes(prediction: Prediction, top: int) -> list[ClassProbability]:
    pairs = list(zip(prediction.classes, prediction.probabilities, strict=True))[:top]
    return [
        ClassProbability.model_validate({"class": name, "probability": min(1.0, round(p, 6))})
        for name, p in pairs
    ]


def _add_pages(app: FastAPI, limits: Limits, needs_token: bool) -> None:
    templates = Environment(loader=PackageLoader("search.deployment.server"), autoescape=True)
    page = templates.get_template("page.html").render(needs_token=needs_token, limits=limits)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return HTMLResponse(
            templates.get_template("docs.html").render(
                schema=app.openapi(), limits=limits, needs_token=needs_token
            )
        )

    for name, kind in _STATIC_FILES.items():
        app.add_api_route(
            f"/{name}",
            _file_route(_TEMPLATES / name, kind),
            include_in_schema=False,
            response_class=FileResponse,
        )


def _file_route(path: Path, kind: str) -> Callable[[], Awaitable[FileResponse]]:
    async def show_file() -> FileResponse:
        return FileResponse(path, media_type=kind)

    return show_file


async def _answer_422(request: Request, error: Exception) -> JSONResponse:
    """Report the first mistake of a request in one line, without repeating what was sent."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)
