"""Load a model for MLflow, whose generic flavour (pyfunc) names this module."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from search.deployment.predictor import Predictor, load
from search.runs.tables import ranked_columns
from trainables.image_inputs import ImageInput
from trainables.images import ImageError


class MlflowModel:
    """Predicts images in MLflow's form: a table in, a table out."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Predict images, one row each, in their order.

        Args:
            data: A table whose first column, or a list whose values, are images: paths, the bytes
                of files, or these in base64, as JSON holds them.
            params: `top`: classes per image, 3 without it.

        Returns:
            `prediction_1`, `probability_1`, …, `ood_score`, and `error`, which says why an image
            cannot be read.
        """
        images = data.iloc[:, 0] if isinstance(data, pd.DataFrame) else data
        classes = self._predictor.model.card.classes
        top = min(int((params or {}).get("top", 3)), len(classes))
        rows: list[list[object]] = []
        for result in self._predictor.predict_each(map(_decoded, images), top):
            if isinstance(result, ImageError):
                rows.append([*[None] * (2 * top + 1), result.reason])
                continue
            pairs = zip(result.classes, result.probabilities, strict=True)
            rows.append([*[cell for pair in pairs for cell in pair], result.ood_score, None])
        columns = [*ranked_columns(top), "ood_score", "error"]
        # As objects, what is missing stays None: NaN, which a server would write, is no JSON.
        table = pd.DataFrame(rows, columns=pd.Index(columns, dtype="object"), dtype=object)
        return table if any(row[-1] for row in rows) else table.infer_objects()


def _load_pyfunc(path: str) -> MlflowModel:
    """Load a model: the function of this name is what MLflow calls."""
    return MlflowModel(load(Path(path)))


def _decoded(image: Any) -> ImageInput:
    """Return an image's bytes where a text is no file but base64."""
    if isinstance(image, str) and len(image) > 200:
        try:
            return base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            return image
    return image  # type: ignore[no-any-return]
