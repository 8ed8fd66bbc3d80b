"""Print the result of a run: its accuracies, what they are worth, its files, the next steps.

The module is long to have all lines of the result in one place.
"""

from __future__ import annotations

import math
import os
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
    describe,
    describe_score,
    describe_scores,
    duration,
    interval,
    metric_interval,
    metric_text,
    percent,
    quote_path,
)
from search.evaluation.calibration import MIN_IMAGES
from search.evaluation.intervals import wilson_interval
from search.evaluation.mcnemar import POWER
from search.runs.summary import (
    BestModel,
    Evaluations,
    Interval,
    ProbeScore,
    RunSummary,
    Scores,
    WeightedEnsembleScores,
)
from search.tuning.study import BASELINE_TRIAL
from spaces.rules import Metric


def show_result(summary: RunSummary, path: Path, console: Console) -> None:
    """Print a finished run's accuracies, its files, and the commands of the next steps.

    Args:
        summary: The run's summary.
        path: Its folder.
        console: Where to print.
    """
    console.print(_accuracies(summary))
    if summary.linear_probe is not None and len(summary.linear_probe) > 1:
        console.print(_backbones(summary.linear_probe))
    facts = (_fold(f"{label:<12}  {value}", console) for label, value in _facts(summary, path))
    for line in (*facts, "", *_next_steps(path)):
        # Not in a table, which would cut paths; not as markup, for their [ ].
        console.print(Text(line), soft_wrap=True)


def describe_gain(summary: RunSummary) -> str | None:
    """Describe the model's gain over the baseline; None before that is known."""
    if summary.best is not None and summary.best.trial == BASELINE_TRIAL:
        return "no gain: the baseline is the best model"
    compared = summary.comparison
    if compared is None:
        return None
    low, high = (100 * bound for bound in compared.difference_ci95)
    return (
        f"{100 * compared.difference:+.1f} points, 95% CI {low:+.1f} to {high:+.1f}"
        f" (only the model correct: {compared.n_model_only_correct}, only the baseline:"
        f" {compared.n_baseline_only_correct}, p = {compared.p_value:.2g}): {compared.verdict}"
    )


def describe_power_of_comparison(summary: RunSummary) -> str | None:
    """Describe what difference the test images could show; None where that is unknown."""
    compared = summary.comparison
    if compared is None or compared.expected_discordance is None:
        return None
    return describe_power(compared.n, compared.detectable_difference)


def describe_ensemble(scores: WeightedEnsembleScores | None) -> str:
    """Describe the ensemble of finalists, and whether it is the model; "" where none was tried."""
    if scores is None:
        return ""
    names = " + ".join(f"{part.weight:.2f} {part.name}" for part in scores.parts)
    losses = (
        f"cross-fitted out-of-fold log loss {scores.log_loss:.4f}, of the best finalist"
        f" {scores.log_loss_baseline:.4f}, standard error of the difference"
        f" {scores.log_loss_gain_se:.4f}"
    )
    if scores.enabled:
        return f"the model is an ensemble of finalists, {names}: {losses}"
    return f"an ensemble of finalists ({names}) is not clearly better: {losses}"


def describe_power(n: int, detectable_difference: float | None) -> str:
    """Describe the smallest true difference that n test images show with a power of 80%."""
    images = count(n, "test image")
    if detectable_difference is None:
        return f"{images} cannot show a difference between model and baseline, however large"
    return (
        f"{images} show a true difference of {100 * detectable_difference:.1f} points between model"
        f" and baseline with a probability of {percent(POWER, 0)}; a smaller one may go unnoticed"
    )


def describe_calibration(summary: RunSummary) -> str | None:
    """Describe what temperature scaling does; None before the test set is evaluated."""
    calibration = summary.calibration
    if calibration is None or calibration.test is None or calibration.out_of_fold is None:
        return None
    test, out_of_fold = calibration.test, calibration.out_of_fold
    if calibration.applied:
        return (
            f"temperature {calibration.temperature:.2f}: on the test set the log loss"
            f" {_change(test.before.log_loss, test.after.log_loss, '.3f')}, the ECE"
            f" {_change(test.before.ece, test.after.ece, '.2%')}"
        )
    if out_of_fold.n < MIN_IMAGES:
        reason = f"fewer than {MIN_IMAGES} images to fit it on"
    else:
        reason = (
            "cross-fitted, it does not clearly help: the out-of-fold log loss"
            f" {_change(out_of_fold.before.log_loss, out_of_fold.after.log_loss, '.4f')},"
            f" standard error {calibration.log_loss_gain_se:.4f}"
        )
    return f"no temperature scaling: {reason}; on the test set the ECE is {test.before.ece:.2%}"


def _change(before: float, after: float, style: str) -> str:
    first, second = format(before, style), format(after, style)
    if first == second:
        return f"stays at {first}"
    return f"{'falls' if after < before else 'rises'} from {first} to {second}"


def describe_evaluations(evaluations: Evaluations | None) -> str | None:
    """Describe what more than one evaluation of the test set means; None where that is not so."""
    if evaluations is None or evaluations.times < 2:
        return None
    times, n_models = evaluations.times, len(evaluations.models)
    if n_models < 2:
        return f"the test set was evaluated {times} times, by the same model"
    return (
        f"the test set was evaluated {times} times, by {n_models} models: figures of later ones are"
        " optimistic if the run was continued because of earlier ones"
    )


def is_perfect(accuracy: float) -> bool:
    """Return whether an accuracy is shown as 100%: such a one never stands without its interval."""
    return percent(accuracy) == percent(1.0)


def of_images(accuracy: float, n: int, ci95: Interval | None = None) -> str:
    """Return what stands beside an accuracy of 100% in a headline: its images and its interval.

    Args:
        accuracy: In [0, 1]; one that is not shown as 100% gets no addition.
        n: Images that it was measured on.
        ci95: Its 95% confidence interval; None computes Wilson's.
    """
    if not is_perfect(accuracy):
        return ""
    bounds = ci95 or wilson_interval(round(accuracy * n), n)
    return f" on {count(n, 'image')}, 95% CI {interval(bounds)}"


def _fold(line: str, console: Console) -> str:
    """Fold a line at the terminal's width, unless it holds a path, which is to be copied whole."""
    if not console.is_terminal or os.sep in line:
        return line
    return "\n".join(wrap(line, max(40, console.width), subsequent_indent=" " * 14))


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
        f"{kfold.folds}-fold cross-validation",
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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("backbone", overflow="fold")
    for title in ("linear probe", "behind", "log loss", "latency", "searched"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, score in scores.items():
        behind = f"{100 * score.behind:.1f} ± {100 * score.behind_se:.1f}"
        table.add_row(
            Text(name),
            percent(score.accuracy, 2) if math.isfinite(score.accuracy) else "",
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
    best, searched, external = summary.best, summary.search, summary.external
    if best is not None:
        names = best.config if summary.settings is None else summary.settings.searched
        config = {name: value for name, value in best.config.items() if name in names}
        # A linear probe is named after its backbone, and has no searched parameters.
        yield "best model", best.name if best.trial is None else f"{best.name}: {describe(config)}"
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
        yield (
            "centre crop",
            f"{'two views' if center_crop.enabled else 'one view'}; mean of the folds with"
            f" two views {percent(center_crop.accuracy_mean, 2)}, one view"
            f" {percent(center_crop.accuracy_mean_baseline, 2)};"
            f" log loss {center_crop.log_loss:.3f}, {center_crop.log_loss_baseline:.3f}",
        )
    if calibration := describe_calibration(summary):
        yield "calibration", calibration
    issues = summary.label_issues
    if issues is not None:
        where = f": see {path / 'folds' / 'label_issues.csv'}" if issues.n else ""
        yield "labels", f"{count(issues.n, 'possible label error')}{where}"
    yield "report", str(path / "report.html")
    yield "model", str(path / "model.pt")


def _next_steps(run: Path) -> Iterator[str]:
    path, boards = quote_path(run), quote_path(run / "tensorboard")
    yield "next steps:"
    yield as_called(f"  python -m search.predict {path} IMAGE…")
    yield as_called(f"  python -m search.serve {path}")
    yield as_called(f"  python -m search.report {path}")
    yield f"  tensorboard --logdir {boards}"
