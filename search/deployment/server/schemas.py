"""The JSON of the server's interface: what requests hold, and what they are answered."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from search.console.commands import version
from search.console.formatting import readable
from search.runs.summary import RunSummary, read_summary
from search.runs.validation import FolderError
from trainables.images import MAX_SQUEEZED
from trainables.models.model_card import ModelCard


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


class ModelInfo(BaseModel):
    """The model: its classes, how good it is, and which part of an image it sees."""

    name: str = Field(description="Name of the run, or of the model's file.")
    version: str = Field(description="Of the program that serves it.")
    accuracy: float | None = Field(default=None, description="On the test set, where it is known.")
    accuracy_ci95: list[float] | None = Field(
        default=None, description="95% confidence interval of the accuracy."
    )
    n_test: int | None = Field(default=None, description="Images of the test set.")
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


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {
        "model": ErrorDetail,
        "description": "The body is not a form; or, in plain text, the Host header is wrong.",
    },
    401: {"model": ErrorDetail, "description": "The token is missing or wrong."},
    408: {"model": ErrorDetail, "description": "The request did not arrive in time."},
    413: {"model": ErrorDetail, "description": "The body is too large, or has too many images."},
    422: {"model": ErrorDetail, "description": "No image can be read, or a parameter is wrong."},
    429: {"model": ErrorDetail, "description": "Too busy: try again after Retry-After seconds."},
    503: {"model": ErrorDetail, "description": "The server is starting: the model is not loaded."},
}

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "required": ["images"],
    "properties": {"images": {"type": "array", "minItems": 1, "items": _BINARY["schema"]}},
}
REQUEST_BODY = {
    "required": True,
    "description": "A form with one image file, or several; or the bytes of one image.",
    "content": {"multipart/form-data": {"schema": _FORM}, "application/octet-stream": _BINARY},
}


def describe_model(path: Path, card: ModelCard) -> ModelInfo:
    """Describe a model; its accuracy is known where its run's summary is beside it.

    Args:
        path: The run's folder, or the model's file.
        card: The model's card.
    """
    is_run = path.is_dir()
    summary = RunSummary()
    with suppress(FolderError):  # a damaged summary keeps no model from being served
        summary = read_summary(path / "summary.json") if is_run else summary
    test = summary.test
    has_accuracy = test is not None and math.isfinite(test.accuracy)
    return ModelInfo(
        name=readable(path.resolve().name if is_run else path.stem),
        version=version(),
        accuracy=test.accuracy if test and has_accuracy else None,
        accuracy_ci95=list(test.accuracy_ci95) if test and has_accuracy else None,
        n_test=test.n if test and has_accuracy else None,
        classes=list(card.classes),
        resize_mode=card.resize_mode,
        crop_fraction=round(card.image_size / card.cache_size, 6),
        max_squeeze=MAX_SQUEEZED,
    )
