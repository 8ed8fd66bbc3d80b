"""Print the result of a run: its accuracies, what they are worth, its files, the next steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.console.commands import as_called
from search.console.formatting import (
    METRIC_NAMES,
    count,
    describe_score,
    describe_scores,
    duration,
    interval,
    metric_interval,
    metric_text,
    percent,
    quote_path,
    some,
)
from search.reporting.sentences import (
    describe_calibration,
    describe_center_crop,
    describe_evaluations,
    describe_gain,
    describe_model,
    describe_power_of_comparison,
    describe_search_gain,
)
from search.runs.summary import BestModel, ProbeScore, RunSummary, Scores
from spaces.rules import Metric


def show_result(
    summary: RunSummary, path: Path, console: Console, in_one_line: bool = False
) -> None:
    """Print a finished run's accuracies, its files, and the commands of the next steps.

    Args:
        summary: The run's summary.
        path: Its folder.
        console: Where to print.
        in_one_line: Print `result_line` alone.
    """
    if in_one_line:
        console.print(Text(result_line(summary, path)), soft_wrap=True)
        return
    if gained := describe_search_gain(summary):
        console.print(Text(_fold(f"{gained[0].upper()}{gained[1:]}.", console, 0), style="bold"))
    console.print(_accuracies(summary))
    if summary.linear_probe is not None and len(summary.linear_probe) > 1:
        probed, others = {}, []
        for name, score in summary.linear_probe.items():
            if math.isfinite(score.accuracy):
                probed[name] = score
            else:
                others.append(name)
        if probed:
            console.print(_backbones(probed))
        if others:
            line = f"without a linear probe, for reasons in the report: {some(others, 3)}"
            console.print(Text(_fold(line, console, 2), style="dim"))
            console.print()
    facts = (
        _fold(f"{label:<12}  {value}", console, path=path) for label, value in _facts(summary, path)
    )
    for line in (*facts, "", *_next_steps(path)):
        # Not in a table, which would cut paths; not as markup, for their [ ].
        console.print(Text(line), soft_wrap=True)


def result_line(summary: RunSummary, path: Path) -> str:
    """Return a finished run's result as one line for a script: `name=value`, separated by spaces.

    Args:
        summary: The run's summary.
        path: Its folder.
    """
    test, metric = summary.test, summary.metric
    if test is None:
        raise ValueError("only a finished run has a result to show")
    value, (low, high) = test.of_metric(metric)
    figures = {metric: value, "ci95_low": low, "ci95_high": high, "accuracy": test.accuracy}
    words = [f"{name}={number:.6f}" for name, number in figures.items()]
    return " ".join([*words, f"n={test.n}", f"run={quote_path(path)}"])


def _fold(line: str, console: Console, indent: int = 14, path: Path | None = None) -> str:
    """Fold a line between words at the terminal's width.

    Args:
        line: The line.
        console: Where it is printed.
        indent: Spaces before each further line.
        path: A line that holds this path is not folded, as the path is to be copied whole.
    """
    if not console.is_terminal or (path is not None and str(path) in line):
        return line
    lines = wrap(
        line,
        max(40, console.width),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def _accuracies(summary: RunSummary) -> Table:
    test, kfold, best, external = summary.test, summary.kfold, summary.best, summary.external
    if test is None or kfold is None or best is None:
        raise ValueError("only a finished run has a result to show")
    # The run's metric comes first, and the accuracy stands beside it.
    metrics: tuple[Metric, ...] = tuple(dict.fromkeys((summary.metric, "accuracy")))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for metric in metrics:
        table.add_column(METRIC_NAMES[metric], justify="right", no_wrap=True)
        table.add_column("95% CI", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_row("test set", *_scores(test, metrics), style="bold")
    if external is not None and external.scores is not None:
        table.add_row("external test set", *_scores(external.scores, metrics))
    of_finalist = ", best finalist" if summary.is_ensemble else ""
    cross_validated = [
        percent(kfold.accuracy_corrected, 2),
        interval(kfold.accuracy_corrected_ci95, 2),
    ]
    validated = [percent(best.val_accuracy, 2), ""]
    if summary.metric != "accuracy":
        cross_validated = [
            describe_score(summary.metric, kfold.score_corrected, 2),
            describe_scores(summary.metric, kfold.score_corrected_ci95, 2),
            *cross_validated,
        ]
        validated = [describe_score(summary.metric, best.val_score, 2), "", *validated]
    table.add_row(
        f"{kfold.folds}-fold cross-validation{of_finalist}",
        *cross_validated,
        "" if summary.data is None else str(summary.data.train + summary.data.val),
    )
    table.add_row(
        f"best validation {METRIC_NAMES[summary.metric]}"
        if best.trial is not None
        else "linear probe, cross-validated",
        *validated,
        _n_validated(summary, best),
        style="dim",
    )
    return table


def _backbones(scores: Mapping[str, ProbeScore]) -> Table:
    # Narrow gaps leave room for long names at 80 columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("linear probe of", overflow="fold")
    for title in ("accuracy", "behind", "log loss", "latency", "searched"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, score in scores.items():
        behind = f"{100 * score.behind:.1f} ± {100 * score.behind_se:.1f}"
        table.add_row(
            Text(name),
            percent(score.accuracy, 2),
            behind if math.isfinite(score.behind) else "",
            f"{score.log_loss:.3f}" if math.isfinite(score.log_loss) else "",
            f"{score.latency_ms:.1f} ms" if math.isfinite(score.latency_ms) else "",
            "yes" if score.excluded is None else "no",  # the lines of the stage have the reason
            style="dim" if score.excluded else "",
        )
    return table


def _n_validated(summary: RunSummary, best: BestModel) -> str:
    """Return the number of images that the best model's accuracy in the search is of."""
    if summary.data is None:
        return ""
    n_train = summary.data.train if best.trial is None else 0  # a probe's folds have both
    return str(n_train + summary.data.val)


def _scores(scores: Scores, metrics: Sequence[Metric]) -> Iterator[str]:
    for metric in metrics:
        value, ci95 = scores.of_metric(metric)
        yield metric_text(metric, value, 2)
        yield metric_interval(metric, ci95, 2)
    yield str(scores.n)


def _facts(summary: RunSummary, path: Path) -> Iterator[tuple[str, str]]:
    """Yield a label and a value for each line below the accuracies."""
    searched, external = summary.search, summary.external
    if model := describe_model(summary):
        yield "model", model
    if (cost := summary.model_cost) is not None:
        yield (
            "cost",
            f"{cost.parameters:,} parameters, {cost.megabytes:.1f} MB; {cost.latency_ms:.1f} ms for"
            f" one image, {cost.latency_ms_batch_32:.1f} ms an image in batches of 32",
        )
    if searched is not None:
        states = (f"{getattr(searched, name)} {name}" for name in ("complete", "pruned", "failed"))
        seconds = sum((summary.stages or {}).values())
        yield (
            "search",
            f"{count(searched.trials, 'trial')}: {', '.join(states)}; {duration(seconds)} in all",
        )
    if evaluated := describe_evaluations(summary.evaluation):
        yield "evaluation", evaluated
    if summary.data is not None:
        for place, text in enumerate(summary.data.warnings):
            yield "" if place else "few images", text
    if external is not None and external.scores is None:
        yield "external", f"{count(external.n, 'image')} predicted, without labels"
    if gain := describe_gain(summary):
        yield "vs. baseline", gain
    if power := describe_power_of_comparison(summary):
        yield "power", power
    center_crop = None if summary.kfold is None else summary.kfold.center_crop
    if center_crop is not None:
        yield "centre crop", describe_center_crop(center_crop)
    if calibration := describe_calibration(summary):
        yield "calibration", calibration
    issues = summary.label_issues
    if issues is not None:
        where = f": see {path / 'folds' / 'label_issues.csv'}" if issues.n else ""
        yield "labels", f"{count(issues.n, 'possible label error')}{where}"
    yield "report", str(path / "report.html")
    yield "model file", str(path / "model.pt")


def _next_steps(run: Path) -> Iterator[str]:
    path, boards = quote_path(run), quote_path(run / "tensorboard")
    yield "next steps:"
    yield as_called(f"  python -m search.predict {path} IMAGE…")
    yield as_called(f"  python -m search.serve {path}")
    yield as_called(f"  python -m search.report {path}")
    yield f"  tensorboard --logdir {boards}"
