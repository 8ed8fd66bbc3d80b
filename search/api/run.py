"""A run as an object: search, load, look at the results, predict, evaluate, resume."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.api.execution import same_log_levels
from search.api.launch import launch
from search.api.options import Option
from search.console.formatting import METRIC_NAMES, interval, metric_interval, metric_text, percent
from search.pipeline.request import load_requested_space
from search.runs.listing import find_run
from search.runs.run_folder import MODEL, RunFolder
from search.runs.summary import RunSummary
from search.runs.tables import ranked_columns
from spaces.base import Space

if TYPE_CHECKING:
    import pandas as pd

    from search.api.evaluation import Evaluation
    from search.deployment.predictor import Predictor
    from search.tuning.tune import Callback
    from trainables.image_inputs import ImageInput
    from trainables.models.image_classifier import ImageClassifier


def run_search(
    data: str | Path | None = None,
    space: Space | str | Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    **options: Option,
) -> Run:
    """Search for the best classifier of some images, as `python -m search.run` does.

    Ray is started and ended, unless this process has started it already. An interrupt (Ctrl-C, or
    a notebook's stop button) keeps all that was finished. In another thread than the main one a
    search runs as well, but cannot be interrupted; a second one meanwhile is refused.

    Args:
        data: The images, as `--data` names them.
        space: What to search: a space, its file or its name; None: as without `--space`.
        callbacks: Callbacks for Ray Tune, beside the run's own.
        options: The command's other options by their names, with `_` for `-`: `time_budget="30m"`,
            `trials=48`, `backbones=["resnet18"]`, `quiet=True`, `probe=False`.

    Returns:
        The finished run.

    Raises:
        SearchError: a mistake, of the kinds that `search` exports; the message says the rule, the
            value and the way out.
        KeyboardInterrupt: the user stopped it; `load_run(…).resume()` continues.
    """
    named = {} if data is None else {"data": data}
    return Run(RunFolder.open(launch(space, callbacks, {**named, **options})))


def load_run(path: str | Path) -> Run:
    """Open the folder of a run, finished or not; "latest" is the newest finished one in results/.

    Raises:
        FolderError: it is no run, one of another format, or a damaged one.
    """
    return Run(RunFolder.open(find_run(Path(path))))


class Report:
    """The report of a run, which a notebook shows inline.

    Attributes:
        path: `report.html`, one page that needs no other file.
    """

    def __init__(self, path: Path, height: int = 800) -> None:
        self.path = path
        self._height = height

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return the page in a frame, so that neither its style nor its script meets others."""
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return (
            f'<iframe srcdoc="{page}" title="report of a run" width="100%"'
            f' height="{self._height}" style="border: 0"></iframe>'
        )


class Run:
    """A run: what was tried, how good the model is, and the model itself.

    Attributes:
        path: The run's folder; docs/run-folder.md describes its files.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path

    def __repr__(self) -> str:
        summary = self.summary
        facts = [] if summary.search is None else [f"{summary.search.trials} trials"]
        if (test := summary.test) is not None:
            bounds = interval(test.accuracy_ci95)
            facts.append(f"test accuracy {percent(test.accuracy)}, 95% CI {bounds}, n = {test.n}")
            if (metric := summary.metric) != "accuracy":
                value, ci95 = test.of_metric(metric)
                of_test = f"{metric_text(metric, value)}, 95% CI {metric_interval(metric, ci95)}"
                facts.insert(-1, f"test {METRIC_NAMES[metric]} {of_test}")
        elif summary.best is not None:
            facts.append(f"best validation accuracy {percent(summary.best.val_accuracy)}")
        return f"Run({str(self.path)!r}): {'; '.join(facts) or 'no trial yet'}"

    @property
    def summary(self) -> RunSummary:
        """The results of the stages so far, as `summary.json` has them now."""
        return RunFolder.open(self.path).summary

    @property
    def best_config(self) -> dict[str, Any] | None:
        """The hyperparameters of the model; None where no trial has ended an epoch."""
        best = self.summary.best
        return None if best is None else dict(best.config)

    @property
    def trials(self) -> pd.DataFrame:
        """All trials so far: state, best validation accuracy, parameters, seconds, reason.

        The columns are those of `trials.csv`. A trial that has ended no epoch has missing values.
        """
        import pandas as pd

        from search.tuning.study import load_study, trial_table

        folder = RunFolder.open(self.path)
        own = replace(folder.environment.request, space=self.path / "space.py")
        with same_log_levels():
            columns, rows = trial_table(load_study(self.path), load_requested_space(own))
        return pd.DataFrame(rows, columns=list(columns)).convert_dtypes()

    @cached_property
    def predictor(self) -> Predictor:
        """The model with its decoding of images, for typed predictions: `predictor.predict(…)`.

        Raises:
            ModelError: there is no model, or it is damaged.
        """
        from search.deployment.predictor import load

        return load(self.path / MODEL)

    @cached_property
    def model(self) -> ImageClassifier:
        """The model as a `torch.nn.Module`: images [N, 3, H, W] in, probabilities [N, classes] out.

        It is on the CPU, in evaluation mode. See `trainables.models.image_classifier`.

        Raises:
            ModelError: there is no model, or it is damaged.
        """
        from trainables.models.image_classifier import ImageClassifier
        from trainables.models.model import load_model

        return ImageClassifier(load_model(self.path / MODEL))

    def predict(self, images: ImageInput | Iterable[ImageInput], top: int = 3) -> pd.DataFrame:
        """Predict images, one row each, in their order.

        Args:
            images: One image or several: a path, a `PIL.Image`, an array [H, W, 3] of uint8 or of
                floats in [0, 1], or the bytes of a file. A text is one path.
            top: Classes per image.

        Returns:
            `image`, `prediction_1`, `probability_1`, …, `ood_score`, `is_ood`, and `error`, which
            says why an image cannot be read; its other values are then missing.

        Raises:
            ModelError: the run has no model, or it is damaged.
        """
        import pandas as pd

        from trainables.images import ImageError

        top = min(top, len(self.predictor.model.card.classes))
        rows: list[list[object]] = []
        for result in self.predictor.predict_each(images, top):
            if isinstance(result, ImageError):
                rows.append([result.path, *[None] * (2 * top + 2), result.reason])
                continue
            pairs = zip(result.classes, result.probabilities, strict=True)
            ranked = [cell for pair in pairs for cell in pair]
            is_ood = None if result.ood_score is None else result.is_ood
            rows.append([result.image, *ranked, result.ood_score, is_ood, None])
        columns = ["image", *ranked_columns(top), "ood_score", "is_ood", "error"]
        return pd.DataFrame(rows, columns=columns).convert_dtypes()

    def evaluate(self, data: str | Path) -> Evaluation:
        """Evaluate the model on other images: a folder per class, or a flat one without labels.

        An archive of such a folder will do, too.

        Files that are, byte for byte, among the run's own images do not count in the scores.

        Raises:
            SourceError: there is no such folder, or the archive cannot be unpacked.
            DataError: the folder has no images, or folders that are no classes of the model.
            ModelError: the run has no model, or it is damaged.
        """
        from search.api.evaluation import evaluate_folder

        return evaluate_folder(self.path, self.predictor, Path(data))

    def resume(self, *, callbacks: Sequence[Callback] = (), **options: Option) -> Run:
        """Resume an interrupted run, or extend a finished one with more `trials`; see `run_search`.

        Returns:
            The run; this object keeps the model that it has loaded.
        """
        return Run(RunFolder.open(launch(None, callbacks, {**options, "resume": self.path})))

    def report(self, height: int = 800) -> Report:
        """Write the report again and return it; a notebook shows it, `height` pixels high."""
        from search.reporting.page import write_report

        with same_log_levels():
            write_report(RunFolder.open(self.path))
        return Report(self.path / "report.html", height)
