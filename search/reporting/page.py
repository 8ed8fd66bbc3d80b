"""Write the report of a run: one HTML page that needs no other file.

Only the run folder is read, so the page can be written again at any time, also of a run that was
interrupted; it then says what is missing. The module is long because one function gathers all that
the templates show.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup
from optuna.distributions import CategoricalDistribution

from search.console.formatting import (
    METRIC_NAMES,
    compact,
    count,
    describe_score,
    describe_scores,
    duration,
    interval,
    metric_interval,
    metric_text,
    percent,
)
from search.data.audit import ISSUES, NOT_SEEN, UNUSED
from search.data.manifest import Issue
from search.evaluation.label_issues import MAX_ISSUES
from search.reporting.charts.coverage import SHOWN_THRESHOLD, coverages, describe_coverage
from search.reporting.examples import (
    MAX_DUPLICATES,
    MAX_EXTERNAL,
    MAX_LEAST_CONFIDENT,
    MAX_TOP_LOSSES,
    least_confident,
    least_confident_first,
    top_losses,
)
from search.reporting.figures import Figure, describe_gap, draw_figures
from search.reporting.gallery import AUGMENTATION, EmbeddedImages, Gallery
from search.reporting.run_record import Record, TrialRecord, read_record
from search.reporting.search_figures import MIN_TRIALS_FOR_IMPORTANCE
from search.reporting.sentences import (
    describe_calibration,
    describe_center_crop,
    describe_ensemble,
    describe_evaluations,
    describe_gain,
    describe_label_issues,
    describe_optimism,
    describe_power_of_comparison,
    describe_search_gain,
    is_perfect,
    of_images,
)
from search.runs.run_folder import RunFolder
from search.runs.summary import Scores

_TABLES = (
    *("trials.csv", "test_predictions.csv", "external_predictions.csv", "split.csv", "audit.csv"),
    *("folds/folds.csv", "folds/oof_predictions.csv", "folds/label_issues.csv", "ablation.csv"),
)
"""Tables that the page links to; they stand beside it in the run's folder."""

_TEMPLATES = Path(__file__).parent / "templates"
_MAX_TRIALS = 2000  # rows of the table; all are in trials.csv
_MAX_EXTERNAL_ROWS = 500  # of the table; all are in external_predictions.csv
_MAX_CONFUSIONS = 8
_IMAGE_BYTES = 6_000_000  # of all images in the page, which is to stay below 10 MB


@dataclass(frozen=True)
class AuditSection:
    """The audit as the page shows it.

    Attributes:
        kinds: Each kind of issue that was found, its meaning, and its number.
        duplicates: The most severe near-duplicates, at most `MAX_DUPLICATES`.
        n_duplicates: Number of all near-duplicates.
        others: All other issues.
        not_seen: What the audit cannot find.
    """

    kinds: tuple[tuple[str, str, int], ...]
    duplicates: tuple[Issue, ...]
    n_duplicates: int
    others: tuple[Issue, ...]
    not_seen: str = NOT_SEEN


def write_report(folder: RunFolder) -> tuple[str, ...]:
    """Write `report.html` and `figures/`; what cannot be drawn is a gap in the page.

    Returns:
        In words, which files of the run are damaged, and which parts of the page are missing.
    """
    record = read_record(folder)
    figures, gaps = draw_figures(record, folder.path / "figures")
    try:
        page = _draw_page(record, figures, gaps)
    except Exception as error:
        gaps.append(describe_gap("page", error))
        page = _empty_page(folder, gaps[-1])
    folder.write_text("report.html", page)
    return (*record.problems, *gaps)


def _draw_page(record: Record, figures: Mapping[str, Figure], gaps: list[str]) -> Markup:
    """Draw the page; what is missing in it is added to `gaps`."""
    summary = record.summary
    probes = summary.linear_probe or {}
    probed = {
        name: one
        for name, one in probes.items()
        if math.isfinite(one.accuracy) or math.isfinite(one.val_accuracy)
    }
    return Markup(  # noqa: S704 - Jinja escapes
        create_templates(gaps)
        .get_template("report.html")
        .render(
            **page_assets(),
            record=record,
            summary=summary,
            audit=arrange_audit(record.audit),
            figures=figures,
            images=EmbeddedImages(Gallery(record.folder), _IMAGE_BYTES),
            run=record.folder.absolute().name,
            path=shlex.quote(str(record.folder)),
            command=[shlex.quote(word) for word in record.environment.command],
            model_megabytes=_megabytes(record.folder / "model.pt"),
            missing=missing_stages(record),
            probed=probed,
            unprobed={name: one for name, one in probes.items() if name not in probed},
            notices=[*notices(record), *(f"{gap[0].upper()}{gap[1:]}." for gap in gaps)],
            failures=Counter(t.reason for t in record.trials if t.state == "failed").most_common(5),
            trials=best_first(record.trials)[:_MAX_TRIALS],
            trial_states=sorted({trial.state for trial in record.trials}),
            parameters={
                name: not isinstance(distribution, CategoricalDistribution)
                for name, distribution in record.distributions.items()
            },
            min_trials_for_importance=MIN_TRIALS_FOR_IMPORTANCE,
            top_losses=top_losses(record.test)[:MAX_TOP_LOSSES],
            n_wrong=len(top_losses(record.test)),
            least_confident=least_confident(record.test)[:MAX_LEAST_CONFIDENT],
            confusions=most_frequent_confusions(summary.test) if summary.test else [],
            majority_fraction=majority_fraction(summary.test) if summary.test else None,
            external_predictions=least_confident_first(record.external)[:_MAX_EXTERNAL_ROWS],
            max_external=MAX_EXTERNAL,
            samples=summary.samples or {},
            label_issues=record.label_issues[:MAX_ISSUES],
            gain=describe_gain(summary),
            power=describe_power_of_comparison(summary),
            ensemble_text=describe_ensemble(summary),
            calibration_text=describe_calibration(summary),
            search_gain=describe_search_gain(summary),
            describe_center_crop=describe_center_crop,
            describe_optimism=describe_optimism,
            describe_label_issues=describe_label_issues,
            of_images=of_images,
            coverage_text=describe_coverage(record.test),
            coverages=coverages(record.test),
            shown_threshold=SHOWN_THRESHOLD,
            tables={name for name in _TABLES if (record.folder / name).is_file()},
            augmentation=_augmentation(record.folder),
            metric=summary.metric,
            metric_name=METRIC_NAMES[summary.metric],
        )
    )


def _empty_page(folder: RunFolder, gap: str) -> Markup:
    """Return a page that says why there is no other."""
    text = Markup(
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{run}</title>\n'
        "<h1>{run}</h1>\n<p>{gap}. <code>summary.json</code> has the numbers.</p></html>\n"
    )
    return text.format(run=folder.path.absolute().name, gap=gap)


def arrange_audit(issues: Sequence[Issue]) -> AuditSection:
    """Count the issues by kind, and separate the near-duplicates from the others."""
    counts = Counter(issue.issue for issue in issues)
    duplicates = [issue for issue in issues if issue.duplicate_of]
    return AuditSection(
        kinds=tuple((kind, text, counts[kind]) for kind, text in ISSUES.items() if counts[kind]),
        duplicates=tuple(duplicates[:MAX_DUPLICATES]),
        n_duplicates=len(duplicates),
        others=tuple(issue for issue in issues if not issue.duplicate_of),
    )


def missing_stages(record: Record) -> list[str]:
    """Describe the stages that have not ended; nothing of a finished run."""
    summary = record.summary
    evaluated = (
        "the test set is not evaluated"
        if summary.evaluation is None
        else "the model is not evaluated on the test set; earlier ones were"
    )
    searched = summary.search is not None and not summary.search.unfinished
    stages = (
        ("the images are not decoded", summary.data is not None),
        ("the search is not finished", searched or summary.kfold is not None),
        ("the cross-validation is not finished", summary.kfold is not None),
        (evaluated, summary.test is not None),
    )
    return [text for text, is_done in stages if not is_done]


def notices(record: Record) -> Iterator[str]:
    """Yield what a reader must know before trusting the numbers."""
    yield from (f"{problem}." for problem in record.problems)
    if evaluated := describe_evaluations(record.summary.evaluation):
        yield f"{evaluated[0].upper()}{evaluated[1:]}."
    if record.summary.data is not None:
        yield from (f"{text}." for text in record.summary.data.warnings)
    states = Counter(trial.state for trial in record.trials)
    if states["failed"]:
        yield (
            f"{states['failed']} of {count(len(record.trials), 'trial')} failed; the reasons are"
            " below."
        )
    if states["unfinished"]:
        yield f"{count(states['unfinished'], 'trial')} began and did not finish."
    if record.trials and not states["complete"]:
        best = record.summary.best
        taken = "best of the pruned and unfinished ones"
        if best is not None and best.trial is None:
            taken = "linear probe"
        yield f"No trial is complete; the {taken} was taken."
    found = Counter(issue.issue for issue in record.audit)
    if unused := sum(found[kind] for kind in UNUSED):
        yield f"{count(unused, 'file')} could not be used; see the audit."
    if n := found["excluded"]:
        yield (
            f"{count(n, 'near-duplicate')} of test or validation images lay in the training"
            " folders, and were excluded from training; see the audit."
        )
    if n := found["excluded group"]:
        yield (
            f"{count(n, 'image')} of the training folders {'was' if n == 1 else 'were'} of a group"
            " with test or validation images, and excluded from training; see the audit."
        )
    if n := found["conflict"]:
        yield (
            f"{count(n, 'image')} contradict{'s' if n == 1 else ''} the label of a near-duplicate;"
            " see the audit."
        )
    if n := found["external near-duplicate"]:
        yield (
            f"{count(n, 'image')} of the external test set {'is a' if n == 1 else 'are'}"
            f" near-duplicate{'' if n == 1 else 's'} of the data, and"
            f" {'was' if n == 1 else 'were'} not evaluated; see the audit."
        )
    test, external = record.summary.test, record.summary.external
    scores = external.scores if external else None
    if test and scores and scores.accuracy_ci95[1] < test.accuracy_ci95[0]:
        yield (
            f"The accuracy on the external test set is lower: {percent(scores.accuracy)} against"
            f" {percent(test.accuracy)}. Expect that where your images differ as well."
        )


def best_first(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Sort trials by score; complete ones before others of the same score."""
    return sorted(
        trials,
        key=lambda t: (
            -math.inf if t.score is None else t.score,
            t.state == "complete",
            -t.number,
        ),
        reverse=True,
    )


def most_frequent_confusions(scores: Scores) -> list[tuple[str, str, int, int]]:
    """Return the most frequent confusions: true class, predicted class, times, images."""
    classes = [row.name for row in scores.per_class]
    found = [
        (classes[i], classes[j], times, sum(row))
        for i, row in enumerate(scores.confusion)
        for j, times in enumerate(row)
        if i != j and times
    ]
    return sorted(found, key=lambda confusion: -confusion[2])[:_MAX_CONFUSIONS]


def majority_fraction(scores: Scores) -> float:
    """Return the accuracy of always predicting the most frequent class."""
    sizes = [row.n for row in scores.per_class]
    return max(sizes) / sum(sizes)


def page_assets() -> dict[str, str]:
    """Return what each page embeds: `css`, `script`, and its `script_hash` for the policy."""
    css, script = (
        Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 - our own files
        for name in ("report.css", "report.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"css": css, "script": script, "script_hash": digest}


def create_templates(gaps: list[str]) -> Environment:
    """Return the templates; `section(name)` draws a section, or says why it is missing."""
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
        "zip": partial(zip, strict=True),
    }
    templates.globals |= {
        "describe_score": describe_score,
        "describe_scores": describe_scores,
        "metric_text": metric_text,
        "metric_interval": metric_interval,
    }

    @pass_context
    def section(context: Context, name: str) -> Markup:
        template = templates.get_template(f"sections/{name}.html")
        try:
            return Markup(template.render(context.get_all()))  # noqa: S704 - Jinja escapes
        except Exception as error:
            gaps.append(describe_gap(f"section {name!r}", error))
            gap = Markup('<section id="{}"><p class="warm">{}.</p></section>')
            return gap.format(name, gaps[-1])

    templates.globals["section"] = section
    templates.tests |= {"perfect": is_perfect, "known": math.isfinite}
    return templates


def _augmentation(folder: Path) -> str | None:
    """Return the sheet of augmented training images as a data URI; None where there is none."""
    path = folder / AUGMENTATION
    if not path.is_file():
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _megabytes(path: Path) -> float | None:
    return path.stat().st_size / 1e6 if path.is_file() else None
