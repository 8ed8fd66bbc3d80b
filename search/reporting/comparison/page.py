"""Write a page that shows two runs side by side: one HTML file that needs no other."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from search.console.formatting import compact, duration, interval, percent
from search.reporting import style
from search.reporting.charts.confusion import chart_confusions
from search.reporting.charts.coverage import chart_coverage
from search.reporting.charts.trial_curves import chart_trial_curves
from search.reporting.figures import Figure, describe_gap
from search.reporting.model_figures import chart_accuracies, chart_reliability
from search.reporting.page import create_templates, page_assets
from search.reporting.run_record import Record
from search.reporting.search_figures import chart_history
from search.reporting.sentences import describe_calibration, describe_model
from search.runs.summary import Comparison, ModelCost, RunSummary, SearchCounts
from trainables.atomic_write import write_atomically

LETTERS = "AB"
"""What the two runs are called."""

MAX_ROWS = 500
"""Images of the table of those that one run alone predicts correctly."""

_CHARTS: Mapping[str, Callable[[Record], Iterator[style.Chart]]] = {
    "accuracies": chart_accuracies,
    "history of the trials": chart_history,
    "curves of the trials": chart_trial_curves,
    "confusion matrices": chart_confusions,
    "reliability diagram": chart_reliability,
    "accuracy against coverage": chart_coverage,
}
_SHOWN = ("accuracy", "history", "trial_curves", "confusion_test", "reliability", "coverage")
_ACCURACY_AXES = {"accuracy": "x", "history": "y", "trial_curves": "y", "coverage": "y"}
_NOT_COMPARED = ("name", "out", "resume", "names_run", "names_space", "quiet", "verbose", "json")


@dataclass(frozen=True)
class OneCorrect:
    """An image that one of two runs alone predicts correctly.

    Attributes:
        image: Its name in A.
        label: Its class.
        predictions: The most probable class and its probability, of A and of B.
        is_first: Whether A is the correct one.
    """

    image: str
    label: str
    predictions: tuple[tuple[str, float], tuple[str, float]]
    is_first: bool


def write_comparison(
    path: Path,
    records: tuple[Record, Record],
    compared: Comparison,
    sentence: str,
    one_correct: Sequence[OneCorrect],
) -> list[str]:
    """Write the page of two runs.

    Args:
        path: The HTML file.
        records: The runs, A and B, both evaluated on the same test images.
        compared: A against B.
        sentence: What it means, in words.
        one_correct: The images that one of them alone predicts correctly.

    Returns:
        In words, what the page lacks because of an error.

    Raises:
        OSError: the file cannot be written.
    """
    gaps: list[str] = []
    figures = _draw_figures(records, gaps)
    first, second = (record.summary for record in records)
    page = (
        create_templates(gaps)
        .get_template("comparison.html")
        .render(
            **page_assets(),
            figures=figures,
            letters=LETTERS,
            names=[record.folder.absolute().name for record in records],
            paths=[str(record.folder) for record in records],
            commands=[shlex.join(record.environment.command) for record in records],
            summaries=(first, second),
            compared=compared,
            sentence=sentence,
            models=[describe_model(summary) for summary in (first, second)],
            calibrations=[describe_calibration(summary) for summary in (first, second)],
            accuracies=accuracy_rows(first, second),
            differences=differing_settings(*records),
            backbones=list(
                dict.fromkeys([*(first.linear_probe or {}), *(second.linear_probe or {})])
            ),
            costs=cost_rows(first, second),
            one_correct=one_correct[:MAX_ROWS],
            n_one_correct=len(one_correct),
            notices=[f"{gap[0].upper()}{gap[1:]}." for gap in gaps],
        )
    )
    with write_atomically(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    return gaps


def accuracy_rows(first: RunSummary, second: RunSummary) -> list[tuple[str, str, str]]:
    """Return the accuracies of two runs with their 95% confidence intervals: name, A, B."""

    def with_interval(value: float, bounds: tuple[float, float]) -> str:
        return f"{percent(value)}, {interval(bounds)}" if math.isfinite(value) else ""

    def of_test(summary: RunSummary, name: str) -> str:
        scores = summary.test
        if scores is None:
            return ""
        return with_interval(getattr(scores, name), getattr(scores, f"{name}_ci95"))

    def external(summary: RunSummary) -> str:
        scores = summary.external.scores if summary.external else None
        return "" if scores is None else with_interval(scores.accuracy, scores.accuracy_ci95)

    def cross_validated(summary: RunSummary) -> str:
        kfold = summary.kfold
        if kfold is None:
            return ""
        return with_interval(kfold.accuracy_corrected, kfold.accuracy_corrected_ci95)

    return _rows(
        {
            "test accuracy": lambda s: of_test(s, "accuracy"),
            "top-3 test accuracy": lambda s: of_test(s, "top3_accuracy"),
            "test macro F1": lambda s: of_test(s, "macro_f1"),
            "test log loss": lambda s: "" if s.test is None else f"{s.test.log_loss:.4f}",
            "external test set": external,
            "cross-validation": cross_validated,
            "best validation": lambda s: "" if s.best is None else percent(s.best.val_accuracy),
        },
        first,
        second,
    )


def cost_rows(first: RunSummary, second: RunSummary) -> list[tuple[str, str, str]]:
    """Return what two models and their searches cost: name, A, B."""

    def of_model(text: Callable[[ModelCost], str]) -> Callable[[RunSummary], str]:
        return lambda summary: "" if summary.model_cost is None else text(summary.model_cost)

    def of_search(text: Callable[[SearchCounts], str]) -> Callable[[RunSummary], str]:
        return lambda summary: "" if summary.search is None else text(summary.search)

    def of_stage(name: str) -> Callable[[RunSummary], str]:
        return lambda summary: duration((summary.stages or {}).get(name, 0.0))

    stages = {**(first.stages or {}), **(second.stages or {})}
    return _rows(
        {
            "parameters": of_model(lambda cost: f"{cost.parameters:,}"),
            "model.pt": of_model(lambda cost: f"{cost.megabytes:.1f} MB"),
            "one image": of_model(lambda cost: f"{cost.latency_ms:.1f} ms, {cost.device}"),
            "an image in batches of 32": of_model(lambda c: f"{c.latency_ms_batch_32:.1f} ms"),
            "trials": of_search(lambda counts: f"{counts.trials}, {counts.complete} complete"),
            "time of all stages": lambda s: duration(sum((s.stages or {}).values())),
            **{f"stage {name.replace('_', ' ')}": of_stage(name) for name in stages},
        },
        first,
        second,
    )


def _rows(
    texts: Mapping[str, Callable[[RunSummary], str]], first: RunSummary, second: RunSummary
) -> list[tuple[str, str, str]]:
    """Return the rows of a table, without those that are empty for both runs."""
    rows = [(name, text(first), text(second)) for name, text in texts.items()]
    return [row for row in rows if row[1] or row[2]]


def differing_settings(first: Record, second: Record) -> list[tuple[str, str, str]]:
    """Return the settings, options and versions in which two runs differ: name, A, B."""
    both = [_settings(record) for record in (first, second)]
    names = dict.fromkeys([*both[0], *both[1]])
    rows = [(name, both[0].get(name, ""), both[1].get(name, "")) for name in names]
    return [row for row in rows if row[1] != row[2]]


def _settings(record: Record) -> dict[str, str]:
    environment, best = record.environment, record.summary.best
    found: dict[str, Any] = {}
    settings = {} if record.summary.settings is None else asdict(record.summary.settings)
    searched, constants = settings.pop("searched", {}), settings.pop("constants", {})
    found |= settings | {f"{name}, searched": value for name, value in searched.items()}
    found |= constants
    options = asdict(environment.request)
    found |= {n: v for n, v in options.items() if n not in settings and n not in _NOT_COMPARED}
    found |= {} if best is None else {f"{n} of the best": v for n, v in best.config.items()}
    found |= {"program": environment.program, "python": environment.python}
    found |= {**environment.packages, **asdict(environment.machine)}
    return {name.replace("_", " "): _text(value) for name, value in found.items()}


def _text(value: object) -> str:
    if value is None or value == () or value == {}:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {compact(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else compact(value)


def _draw_figures(records: tuple[Record, Record], gaps: list[str]) -> dict[str, Figure]:
    """Return the figures by the letter of their run and their name, such as "A_history"."""
    charts: dict[str, dict[str, style.Chart]] = {letter: {} for letter in LETTERS}
    figures: dict[str, Figure] = {}
    with style.style():
        for letter, record in zip(LETTERS, records, strict=True):
            for title, chart in _CHARTS.items():
                try:
                    charts[letter] |= {one.name: one for one in chart(record)}
                except Exception as error:
                    gaps.append(describe_gap(f"figure of the {title} of {letter}", error))
        for name, axis in _ACCURACY_AXES.items():  # on the same scale
            axes = [one[name].figure.axes[0] for one in charts.values() if name in one]
            limits = [one.get_xlim() if axis == "x" else one.get_ylim() for one in axes]
            for one in axes:
                common = min(low for low, _ in limits), max(high for _, high in limits)
                one.set(**{f"{axis}lim": common})
        for letter, of_run in charts.items():
            for name in _SHOWN:
                if name in of_run:
                    _, figure, alt, caption = of_run[name]
                    svg = Markup(style.embed(figure, f"{letter}-{name}"))  # noqa: S704 - escaped
                    figures[f"{letter}_{name}"] = Figure(svg, f"{letter}: {alt}", caption, False)
    return figures
