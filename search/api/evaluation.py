"""Evaluate a run's model on images that the run has not had."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search.console.formatting import interval, percent
from search.data.decoding import image_digest
from search.data.image_files import DataError
from search.data.scan import scan_external
from search.evaluation.metrics import score_predictions
from search.runs.summary import Scores
from search.runs.tables import read_records
from spaces.archives import open_folder
from spaces.downloads import cache_folder
from trainables.images import ImageError

if TYPE_CHECKING:
    import pandas as pd

    from search.deployment.predictor import Prediction, Predictor


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a model does on a folder of images.

    Attributes:
        n: Images that could be read.
        n_unreadable: Files that could not.
        n_duplicates: Images that are, byte for byte, among those of the run.
        scores: Metrics of the labelled images that are no such duplicates; None where there are
            none.
        predictions: One row an image: `image`, `label` (missing where unknown), `prediction_1`,
            `probability_1`, `ood_score`, `is_duplicate`.
    """

    n: int
    n_unreadable: int
    n_duplicates: int
    scores: Scores | None
    predictions: pd.DataFrame

    def __repr__(self) -> str:
        facts = [f"{self.n} images"]
        if self.n_unreadable:
            facts.append(f"{self.n_unreadable} unreadable")
        if self.n_duplicates:
            facts.append(f"{self.n_duplicates} of the run's own, not scored")
        if (scores := self.scores) is not None:
            bounds = interval(scores.accuracy_ci95)
            facts.append(f"accuracy {percent(scores.accuracy)}, 95% CI {bounds}, n = {scores.n}")
        return f"Evaluation: {'; '.join(facts)}"


def evaluate_folder(run: Path, predictor: Predictor, data: Path) -> Evaluation:
    """Predict the images of a folder, and score those with a label.

    Args:
        run: The run's folder, whose `split.csv` has the digests of its images.
        predictor: Its model.
        data: A folder per class, or a flat folder of images without labels; or an archive of one.

    Raises:
        ArchiveError: there is neither, or the archive cannot be unpacked.
        DataError: the folder has no images that can be read, or folders that are no classes of the
            model.
    """
    import pandas as pd

    classes = predictor.model.card.classes
    found = open_folder(data, cache_folder(), "the data to evaluate on")
    try:
        manifest = scan_external(found, classes)
    except DataError as error:
        raise DataError(str(error).replace("--external", "the data to evaluate on")) from None
    paths = manifest.paths or ()
    results = list(predictor.predict_each(paths, len(classes)))
    readable = [i for i, result in enumerate(results) if not isinstance(result, ImageError)]
    if not readable:
        raise DataError(f"none of the {len(paths)} images in {data} can be read: {results[0]}")
    predicted = [result for result in results if not isinstance(result, ImageError)]
    labels = manifest.labels[readable]
    probabilities = np.stack([_by_class(one, classes) for one in predicted])
    own = set(read_records(run / "split.csv", lambda row: row["digest"])) - {""}
    is_duplicate = np.array([image_digest(paths[i]) in own for i in readable])
    scored = (labels >= 0) & ~is_duplicate
    scores = None
    if scored.any():
        scores = score_predictions(labels[scored], probabilities[scored], classes)
        if predicted[0].ood_score is not None:
            n_ood = sum(one.is_ood for one, counts in zip(predicted, scored, strict=True) if counts)
            scores = replace(scores, n_ood=n_ood)
    columns = {
        "image": [manifest.names[i] for i in readable],
        "label": [classes[label] if label >= 0 else None for label in labels],
        "prediction_1": [one.classes[0] for one in predicted],
        "probability_1": [one.probabilities[0] for one in predicted],
        "ood_score": [one.ood_score for one in predicted],
        "is_duplicate": is_duplicate,
    }
    return Evaluation(
        n=len(readable),
        n_unreadable=len(results) - len(readable),
        n_duplicates=int(is_duplicate.sum()),
        scores=scores,
        predictions=pd.DataFrame(columns).convert_dtypes(),
    )


def _by_class(prediction: Prediction, classes: tuple[str, ...]) -> np.ndarray:
    """Return the probabilities of all classes in their order: float64 [classes]."""
    by_name = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    return np.array([by_name[name] for name in classes])
