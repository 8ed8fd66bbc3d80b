"""The web application: the HTTP interface and its page."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, Field

from search.deployment.middleware import App, Limits, RequestLimits
from search.deployment.predictor import Prediction
from search.deployment.service import Service
from trainables.images import MAX_SQUEEZED, ImageError

_FILES = Path(__file__).parent / "templates"
_TYPES = {"page.css": "text/css", "page.js": "text/javascript"}


class ClassProbability(BaseModel):
    """A class, and how likely it is."""

    name: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


class ImageResult(BaseModel):
    """What an image is thought to be, or why it could not be read."""

    image: str = Field(description="The file's name, as it was sent.")
    classes: list[ClassProbability] = Field(description="The likeliest first; none with an error.")
    ood_score: float | None = Field(
        default=None,
        description="How unlike the training images it is: 95 of 100 of those do not exceed 1.",
    )
    is_ood: bool = Field(default=False, description="Whether that is above 1: do not rely on it.")
    error: str | None = Field(default=None, description="Why the image could not be read.")
    attribution: list[list[float]] | None = Field(
        default=None,
        description="Rows, in [0, 1]: where in the central square the likeliest class is seen.",
    )


class Predictions(BaseModel):
    """The images' results, in the order they were sent."""

    predictions: list[ImageResult]


class Classes(BaseModel):
    """The classes that the model knows."""

    classes: list[str]
    resize_mode: str = Field(description="What the model looks at: a whole image, or a crop of it.")
    kept: float = Field(description="Share of the shorter side that a crop has.")
    squeezed: float = Field(description="How far a whole image's longer side may be squeezed.")


class Health(BaseModel):
    """That the model is ready."""

    status: str


class Problem(BaseModel):
    """Why a request was not carried out."""

    detail: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is no form, or a header is not UTF-8."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    408: {"model": Problem, "description": "The request did not arrive in time."},
    413: {"model": Problem, "description": "The body is too large, or has too many images."},
    421: {"model": Problem, "description": "The server is not called by that name."},
    422: {"model": Problem, "description": "No image could be read, or a parameter is wrong."},
    429: {"model": Problem, "description": "Too busy: come back after `Retry-After` seconds."},
}


def build_app(
    service: Service, limits: Limits, token: str | None, hosts: tuple[str, ...] = ()
) -> App:
    """Build the application.

    Args:
        service: The model.
        limits: What is let in.
        token: That predictions ask for; None lets everyone in.
        hosts: Names by which the server may be called; none allows all.
    """
    app = FastAPI(
        title="Classifier",
        version="1",
        description="Names the likeliest classes of images.",
        docs_url=None,  # they load from elsewhere; ours is below
        redoc_url=None,
    )
    app.add_exception_handler(RequestValidationError, _tell_what_is_wrong)
    _add_interface(app, service, limits)
    _add_pages(app, service, limits, token is not None)
    return RequestLimits(app, limits, token, hosts)


def _add_interface(app: FastAPI, service: Service, limits: Limits) -> None:
    known = len(service.card.classes)

    @app.post("/predict", responses=_PROBLEMS)
    async def predict(
        images: Annotated[
            list[UploadFile], File(min_length=1, description="One image file, or many.")
        ],
        top: Annotated[int, Query(ge=1, le=10_000, description="Classes to name.")] = 3,
        attribution: Annotated[
            bool, Query(description="Also tell where the likeliest class is seen.")
        ] = False,
    ) -> Predictions:
        """Name the likeliest classes of images."""
        if len(images) > limits.images:
            raise HTTPException(
                413, f"a request may have at most {limits.images} images, not {len(images)}"
            )
        work = (_predict(service, file, min(top, known), attribution) for file in images)
        results = list(await asyncio.gather(*work))
        if all(result.error for result in results):
            named = f"{results[0].image}: " if results[0].image else ""
            raise HTTPException(422, f"no image could be read: {named}{results[0].error}")
        return Predictions(predictions=results)

    @app.get("/classes", responses={n: _PROBLEMS[n] for n in (400, 401, 408, 421, 429)})
    async def classes() -> Classes:
        """List the classes that the model knows."""
        card = service.card
        return Classes(
            classes=list(card.classes),
            resize_mode=card.resize_mode,
            kept=round(card.image_size / card.cache_size, 6),
            squeezed=MAX_SQUEEZED,
        )

    @app.get("/healthz", responses={n: _PROBLEMS[n] for n in (400, 408, 421, 429)})
    async def healthz() -> Health:
        """Tell that the model is ready."""
        return Health(status="ready")


async def _predict(service: Service, file: UploadFile, top: int, attribution: bool) -> ImageResult:
    name = file.filename or ""
    try:
        decoded = await service.decode(file.file)
    except ImageError as error:
        return ImageResult(image=name, classes=[], error=error.reason)
    made = await service.predict(decoded)
    shown = None
    if attribution:
        found = await service.attribute(decoded, made.classes[0])
        shown = None if found is None else np.round(found.astype(float), 3).tolist()
    known = made.ood_score is not None and math.isfinite(made.ood_score)
    return ImageResult(
        image=name,
        classes=_likeliest(made, top),
        ood_score=made.ood_score if known else None,
        is_ood=made.is_ood,
        attribution=shown,
    )


def _likeliest(made: Prediction, top: int) -> list[ClassProbability]:
    pairs = list(zip(made.classes, made.probabilities, strict=True))[:top]
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

    for name, kind in _TYPES.items():
        app.add_api_route(
            f"/{name}",
            _file_route(_FILES / name, kind),
            include_in_schema=False,
            response_class=FileResponse,
        )


def _file_route(path: Path, kind: str) -> Any:
    async def show() -> FileResponse:
        return FileResponse(path, media_type=kind)

    return show


async def _tell_what_is_wrong(request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with a request in one line, without repeating what was sent."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)
