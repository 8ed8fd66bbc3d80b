"""The report: `results/<run>/` in, one page that needs nothing else out.

Only what lies in the run folder is read, so the page can be written again at any time, of a run
that was interrupted as well. It says what is there and what is missing.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from optuna.distributions import CategoricalDistribution

from search.console.formatting import compact, count, duration, interval, percent
from search.data.audit import UNUSED
from search.evaluation.label_issues import MAX_ISSUES
from search.reporting.audit_page import lay_out
from search.reporting.charts import draw_charts
from search.reporting.evidence import describe_gain
from search.reporting.examples import (
    MAX_EXTERNAL,
    MAX_LEAST_CONFIDENT,
    MAX_MISTAKES,
    least_confident,
    least_confident_first,
    mistakes,
)
from search.reporting.gallery import EmbeddedImages, Gallery
from search.reporting.run_record import Record, TrialRecord, read_record
from search.reporting.search_charts import MIN_TRIALS_FOR_IMPORTANCE
from search.runs.run_folder import RunFolder

_TEMPLATES = Path(__file__).parent / "templates"
_MAX_TRIALS = 2000  # rows of the table; all are in trials.csv
_MAX_EXTERNAL_ROWS = 500  # of the table; all are in external_predictions.csv
_MAX_CONFUSIONS = 8
_IMAGE_BYTES = 6_000_000  # of all images in the page, which is to stay below 10 MB


def write_report(folder: RunFolder) -> None:
    """Write `report.html` and `figures/` from what a run's folder holds."""
    record = read_record(folder)
    charts = draw_charts(record, folder.path / "figures")
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "percent": percent,
        "interval": interval,
        "duration": duration,
        "compact": compact,
        "count": count,
    }
    style, script = (
        Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 - our own files
        for name in ("report.css", "report.js")
    )
    page = templates.get_template("report.html").render(
        record=record,
        summary=record.summary,
        audit=lay_out(record.audit),
        charts=charts,
        album=EmbeddedImages(Gallery(folder.path), _IMAGE_BYTES),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        run=folder.path.absolute().name,
        where=shlex.quote(str(folder.path)),
        command=[shlex.quote(word) for word in record.environment.get("command", [])],
        model_megabytes=_megabytes(folder.path / "model.pt"),
        missing=missing_stages(record),
        notices=list(notices(record)),
        failures=Counter(t.reason for t in record.trials if t.state == "failed").most_common(5),
        trials=best_first(record.trials)[:_MAX_TRIALS],
        trial_states=sorted({trial.state for trial in record.trials}),
        parameters={
            name: not isinstance(distribution, CategoricalDistribution)
            for name, distribution in record.distributions.items()
        },
        fewest_for_importance=MIN_TRIALS_FOR_IMPORTANCE,
        mistakes=mistakes(record.test)[:MAX_MISTAKES],
        n_mistakes=len(mistakes(record.test)),
        least_confident=least_confident(record.test)[:MAX_LEAST_CONFIDENT],
        confusions=confusions(record.summary.get("test") or {}),
        commonest=commonest_share(record.summary.get("test") or {}),
        external=least_confident_first(record.external)[:_MAX_EXTERNAL_ROWS],
        most_imaged=MAX_EXTERNAL,
        samples=record.summary.get("samples", {}),
        label_issues=record.label_issues[:MAX_ISSUES],
        gain=describe_gain(record.summary),
        splits=[s for s in ("train", "val", "test") if s in (record.summary.get("data") or {})],
    )
    folder.write_text("report.html", page)


def missing_stages(record: Record) -> list[str]:
    """Return what the run has not come to, in words; nothing of a finished run."""
    summary = record.summary
    searched = "search" in summary and not summary["search"].get("unfinished")
    stages = (
        ("the images are not packed", "data" in summary),
        ("the search is not finished", searched or "kfold" in summary),
        ("the folds are not trained", "kfold" in summary),
        ("the held-out images are not opened", "test" in summary),
    )
    return [words for words, is_done in stages if not is_done]


def notices(record: Record) -> Iterator[str]:
    """Yield what a reader must know before trusting the numbers."""
    states = Counter(trial.state for trial in record.trials)
    if states["failed"]:
        yield f"{states['failed']} of {count(len(record.trials), 'trial')} failed; see below why."
    if states["unfinished"]:
        yield f"{count(states['unfinished'], 'trial')} began and did not finish."
    if record.trials and not states["complete"]:
        yield "No trial reached the full length; the best of the unfinished ones was taken."
    found = Counter(finding.problem for finding in record.audit)
    if unused := sum(found[kind] for kind in UNUSED):
        yield f"{count(unused, 'file')} could not be used; see the audit."
    if found["left out"]:
        yield (
            f"{count(found['left out'], 'near-duplicate')} of test or validation images lay"
            " in the training folders, and left training; see the audit."
        )
    if found["conflict"]:
        yield (
            f"{count(found['conflict'], 'image')} contradict the label of a near-duplicate;"
            " see the audit."
        )
    if found["external twin"]:
        yield (
            f"{count(found['external twin'], 'image')} from elsewhere are near-duplicates of the"
            " set's, and are not judged; see the audit."
        )
    test, outside = record.summary.get("test"), record.summary.get("external")
    if test and outside and outside.get("accuracy") is not None:
        lowest = test["accuracy_ci95"][0]
        if outside["accuracy_ci95"][1] < lowest:
            yield (
                f"On images from elsewhere the model does worse: {percent(outside['accuracy'])}"
                f" against {percent(test['accuracy'])}. Expect that where yours differ as well."
            )


def best_first(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials by accuracy; full-length ones before others of the same accuracy."""
    return sorted(
        trials,
        key=lambda t: (
            -1.0 if t.accuracy is None else t.accuracy,
            t.state == "complete",
            -t.number,
        ),
        reverse=True,
    )


def confusions(scores: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    """Return the most frequent confusions: true class, said class, how often, of how many."""
    classes = [row["class"] for row in scores.get("per_class", ())]
    found = [
        (classes[i], classes[j], times, sum(row))
        for i, row in enumerate(scores.get("confusion", ()))
        for j, times in enumerate(row)
        if i != j and times
    ]
    return sorted(found, key=lambda confusion: -confusion[2])[:_MAX_CONFUSIONS]


def commonest_share(scores: Mapping[str, Any]) -> float | None:
    """Return the share of images that are of the commonest class: what guessing it would get."""
    sizes = [row["n"] for row in scores.get("per_class", ())]
    return max(sizes) / sum(sizes) if sum(sizes) else None


def _megabytes(path: Path) -> float | None:
    return path.stat().st_size / 1e6 if path.is_file() else None
