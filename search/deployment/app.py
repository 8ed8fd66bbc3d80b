"""The server's web application: its HTTP interface and its page."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, Field

from search.deployment.middleware import Limits, create_middleware
from search.deployment.predictor import Prediction
from search.deployment.service import Service
from trainables.images import MAX_SQUEEZED, ImageError

_TEMPLATES = Path(__file__).parent / "templates"
_STATIC_FILES = {"page.css": "text/css", "page.js": "text/javascript"}


class ClassProbability(BaseModel):
    """A class and its predicted probability."""

    name: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


class ImageResult(BaseModel):
    """The prediction for an image, or the reason why it cannot be read."""

    image: str = Field(description="The file's name, as it was sent.")
    classes: list[ClassProbability] = Field(
        description="The top-k predictions, the most probable first; empty with an error."
    )
    ood_score: float | None = Field(
        default=None,
        description="Out-of-distribution score: at most 1 for 95% of images like the training set.",
    )
    is_ood: bool = Field(
        default=False,
        description="Whether the score is above 1: then the prediction is not reliable.",
    )
    grad_cam: list[list[float]] | None = Field(
        default=None,
        description="Grad-CAM heat map of the first class, in rows, in [0, 1]; it covers the"
        " square that the model sees.",
    )
    error: str | None = Field(default=None, description="Why the image cannot be read.")


class PredictResponse(BaseModel):
    """The images' results, in the order in which the images were sent."""

    predictions: list[ImageResult]


class Classes(BaseModel):
    """The model's classes, and which part of an image it sees."""

    classes: list[str]
    resize_mode: str = Field(description="pad: the whole image; crop: its central square.")
    crop_fraction: float = Field(description="With crop, the square's part of the shorter side.")
    max_squeeze: float = Field(
        description="With pad, the factor by which the longer side is squeezed at most."
    )


class Health(BaseModel):
    """The server's state."""

    status: str


class ErrorDetail(BaseModel):
    """The reason why a request is refused, in one line."""

    detail: str


_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {
        "model": ErrorDetail,
        "description": "The body is not a form; or, in plain text, the Host header is wrong.",
    },
    401: {"model": ErrorDetail, "description": "The token is missing or wrong."},
    408: {"model": ErrorDetail, "description": "The request did not arrive in time."},
    413: {"model": ErrorDetail, "description": "The body is too large, or has too many images."},
    422: {"model": ErrorDetail, "description": "No image can be read, or a parameter is wrong."},
    429: {"model": ErrorDetail, "description": "Too busy: try again after Retry-After seconds."},
}


def build_app(
    service: Service, limits: Limits, token: str | None, hosts: tuple[str, ...] = ()
) -> FastAPI:
    """Build the application.

    Args:
        service: The model.
        limits: Limits of requests.
        token: Token that requests need; None lets every client in.
        hosts: Names by which the server may be called; none allows all.
    """
    app = FastAPI(
        title="Classifier",
        version="1",
        description="Predicts the classes of images.",
        docs_url=None,  # FastAPI's pages load scripts from other servers; ours is below
        redoc_url=None,
        middleware=create_middleware(limits, token, hosts),
        exception_handlers={RequestValidationError: _answer_422},
    )
    _add_interface(app, service, limits)
    _add_pages(app, service, limits, needs_token=token is not None)
    return app


def _add_interface(app: FastAPI, service: Service, limits: Limits) -> None:
    card = service.card

    @app.post("/predict", responses=_ERROR_RESPONSES)
    async def predict(
        images: Annotated[
            list[UploadFile], File(min_length=1, description="One image file, or several.")
        ],
        top: Annotated[int, Query(ge=1, le=10_000, description="Classes to return.")] = 3,
        grad_cam: Annotated[
            bool, Query(description="Also return a Grad-CAM heat map of the first class.")
        ] = False,
    ) -> PredictResponse:
        """Return the top-k predictions for images."""
        if len(images) > limits.images:
            raise HTTPException(
                413, f"a request may have at most {limits.images} images, but has {len(images)}"
            )
        top = min(top, len(card.classes))
        work = (_predict(service, file, top, grad_cam) for file in images)
        results = list(await asyncio.gather(*work))
        if all(result.error for result in results):
            named = f"{results[0].image}: " if results[0].image else ""
            raise HTTPException(422, f"no image can be read: {named}{results[0].error}")
        return PredictResponse(predictions=results)

    @app.get("/classes", responses={n: _ERROR_RESPONSES[n] for n in (400, 401, 408, 429)})
    async def classes() -> Classes:
        """List the model's classes."""
        return Classes(
            classes=list(card.classes),
            resize_mode=card.resize_mode,
            crop_fraction=round(card.image_size / card.cache_size, 6),
            max_squeeze=MAX_SQUEEZED,
        )

    @app.get("/healthz", responses={n: _ERROR_RESPONSES[n] for n in (400, 408, 429)})
    async def healthz() -> Health:
        """Report that the model is loaded."""
        return Health(status="ready")


async def _predict(service: Service, file: UploadFile, top: int, grad_cam: bool) -> ImageResult:
    name = file.filename or ""
    try:
        decoded = await service.decode(file.file)
    except ImageError as error:
        return ImageResult(image=name, classes=[], error=error.reason)
    prediction = await service.predict(decoded)
    heat_map = await service.grad_cam(decoded, prediction.classes[0]) if grad_cam else None
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


def _add_pages(app: FastAPI, service: Service, limits: Limits, needs_token: bool) -> None:
    templates = Environment(loader=PackageLoader("search.deployment"), autoescape=True)
    page = templates.get_template("page.html").render(
        needs_token=needs_token, limits=limits, n_classes=len(service.card.classes)
    )

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
