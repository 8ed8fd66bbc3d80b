"""Say what a run's numbers mean, in the same sentences on the terminal and in the report.

Every sentence follows from the numbers that stand beside it.
"""

from __future__ import annotations

import math

from search.console.formatting import apart, count, describe, duration, interval, percent
from search.evaluation.calibration import MIN_IMAGES
from search.evaluation.intervals import wilson_interval
from search.evaluation.mcnemar import ALPHA, POWER
from search.runs.summary import (
    BestModel,
    CenterCropScores,
    Evaluations,
    Interval,
    KFoldScores,
    LabelIssueCounts,
    RunSummary,
    WeightedEnsembleScores,
)
from search.tuning.study import BASELINE_TRIAL


def describe_gain(summary: RunSummary) -> str | None:
    """Describe the model's gain over the baseline; None before that is known."""
    compared = summary.comparison
    if compared is None:
        is_baseline = summary.best is not None and summary.best.trial == BASELINE_TRIAL
        return "no gain: the baseline is the best model" if is_baseline else None
    low, high = (100 * bound for bound in compared.difference_ci95)
    return (
        f"{100 * compared.difference:+.1f} points, 95% CI {low:+.1f} to {high:+.1f}"
        f" (only the model correct: {compared.n_model_only_correct}, only the baseline:"
        f" {compared.n_baseline_only_correct}, p = {compared.p_value:.2g}): {compared.verdict}"
    )


def describe_search_gain(summary: RunSummary) -> str | None:
    """Describe what the trials gained over the linear probe; None before that is known.

    The first sentence of a result: whoever reads no more must learn whether the search was needed.
    """
    kfold, searched, scores = summary.kfold, summary.search, summary.linear_probe
    if kfold is None or searched is None or kfold.against_probe is None or not scores:
        return None
    compared = kfold.against_probe
    name, score = next(iter(scores.items()))
    stages = summary.stages or {}
    seconds = stages.get("startup", 0.0) + stages.get("data", math.nan) + score.seconds
    ready = f", ready after {duration(seconds)}," if math.isfinite(seconds) else ""
    low, high = (100 * bound for bound in compared.difference_ci95)
    figures = (
        f"{100 * compared.difference:+.1f} points out of fold, 95% CI {low:+.1f} to {high:+.1f},"
        f" p = {compared.p_value:.2g}"
    )
    n_trials = searched.trials or searched.unfinished  # one that did not end may be a finalist
    trials = "the trial" if n_trials == 1 else f"the best of {n_trials} trials"
    together = "; an ensemble of finalists is better than each, and the model"
    together = together if summary.is_ensemble else ""
    if compared.p_value >= ALPHA:
        return (
            f"the linear probe of {name}{ready} is as good as {trials}, as far as"
            f" {count(compared.n, 'image')} can tell ({figures}){together}"
        )
    if compared.difference < 0:
        return f"the linear probe of {name}{ready} is better than {trials} ({figures}){together}"
    return f"the search gained over the linear probe of {name} ({figures}){together}"


def describe_model(summary: RunSummary) -> str:
    """Describe what the model is made of; "" before there is one."""
    best, ensemble = summary.best, summary.weighted_ensemble
    if best is None:
        return ""
    if ensemble is not None and summary.is_ensemble:
        names = " + ".join(f"{part.weight:.2f} {part.name}" for part in ensemble.parts)
        return f"an ensemble of finalists: {names}"
    if best.trial is None:
        return f"{best.name}: C {best.config['C']}" if "C" in best.config else best.name
    searched = best.config if summary.settings is None else summary.settings.searched
    config = {name: value for name, value in best.config.items() if name in searched}
    return f"{best.name}: {describe(config)}"


def describe_power_of_comparison(summary: RunSummary) -> str | None:
    """Describe what difference the test images could show; None where that is unknown."""
    compared = summary.comparison
    if compared is None or compared.expected_discordance is None:
        return None
    return describe_power(compared.n, compared.detectable_difference)


def describe_ensemble(summary: RunSummary) -> str:
    """Describe the ensemble of finalists, and whether it is the model; "" where none was tried."""
    scores, best = summary.weighted_ensemble, summary.best
    if scores is None:
        return ""
    if len(scores.parts) == 1:
        name = scores.parts[0].name
        alone = f"no ensemble of finalists has a lower log loss than {name} alone"
        if best is None or best.name == name:
            return alone
        return f"{alone}; the model is {best.name}, as {_why_no_ensemble(name, scores)}"
    names = " + ".join(f"{part.weight:.2f} {part.name}" for part in scores.parts)
    losses = _losses(scores)
    if scores.latency_ms > scores.max_latency_ms:
        return (
            f"an ensemble of finalists ({names}) is not the model: it takes"
            f" {scores.latency_ms:.1f} ms for one image, above --max-latency"
            f" {scores.max_latency_ms:g}; {losses}"
        )
    if scores.enabled:
        return f"the model is an ensemble of finalists, {names}: {losses}"
    return _why_no_ensemble(f"an ensemble of finalists ({names})", scores)


def _losses(scores: WeightedEnsembleScores) -> str:
    loss, of_best = apart(scores.log_loss, scores.log_loss_baseline, 4)
    return (
        f"cross-fitted out-of-fold log loss {loss}, of the best finalist {of_best}, standard error"
        f" of the difference {scores.log_loss_gain_se:.4f}"
    )


def _why_no_ensemble(name: str, scores: WeightedEnsembleScores) -> str:
    """Say why an ensemble of finalists, or one that is not the best by the metric, is no model."""
    losses = _losses(scores)
    if scores.score_baseline - scores.score > scores.score_gain_se:
        score, of_best = apart(scores.score, scores.score_baseline, 4)
        return (
            f"{name} has a lower score, {score}, of the best finalist"
            f" {of_best}, standard error of the difference {scores.score_gain_se:.4f}; {losses}"
        )
    return f"{name} is not clearly better: {losses}"


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
            f" {_change(test.before.log_loss, test.after.log_loss)}, the ECE"
            f" {_change(100 * test.before.ece, 100 * test.after.ece, 2, '%')}"
        )
    if out_of_fold.n < MIN_IMAGES:
        reason = f"fewer than {MIN_IMAGES} images to fit it on"
    else:
        reason = (
            "cross-fitted, it does not clearly help: the out-of-fold log loss"
            f" {_change(out_of_fold.before.log_loss, out_of_fold.after.log_loss, 4)},"
            f" standard error {calibration.log_loss_gain_se:.4f}"
        )
    before, after = test.before.ece, test.after.ece
    if not summary.is_ensemble or before == after:
        return f"no temperature scaling: {reason}; on the test set the ECE is {before:.2%}"
    return (
        f"no temperature scaling of the finalist with the highest weight: {reason}; by those of"
        f" other finalists the ECE on the test set {_change(100 * before, 100 * after, 2, '%')}"
    )


def _change(before: float, after: float, digits: int = 3, unit: str = "") -> str:
    first, second = apart(before, after, digits)
    if first == second:
        return f"stays at {first}{unit}"
    return f"{'falls' if after < before else 'rises'} from {first}{unit} to {second}{unit}"


def describe_center_crop(crop: CenterCropScores) -> str:
    """Describe whether the model sees two views, and the figures that decide."""
    with_crop, without = apart(crop.log_loss, crop.log_loss_baseline)
    losses = (
        f"out-of-fold log loss {with_crop} with the enlarged centre as a second view, {without}"
        f" without, standard error of the difference {apart(crop.log_loss_gain_se, 0.0)[0]}"
    )
    by_score = ""
    if math.isfinite(crop.score_gain_se):
        first, second = apart(crop.score, crop.score_baseline)
        by_score = (
            f"score {first} with it, {second} without, standard error"
            f" {apart(crop.score_gain_se, 0.0)[0]}; "
        )
    taken = "two views" if crop.enabled else "one view: a second one does not clearly help"
    return f"{taken}; {by_score}{losses}"


def describe_optimism(best: BestModel, kfold: KFoldScores) -> str:
    """Describe by how much the search's accuracy is higher than that of the folds.

    Of a linear probe nothing: both of its accuracies are cross-validated.
    """
    if best.trial is None:
        return ""
    points, spread = 100 * kfold.optimism, 100 * kfold.accuracy_std
    if points <= 0:
        return (
            f"the folds are no worse than the search: {-points:+.2f} points, so there is no sign of"
            " optimism (selection bias)"
        )
    found = f"an optimism (selection bias) of {points:+.2f} points"
    if points > max(1.0, 2 * spread):
        return (
            f"{found}, more than twice the ± of the folds: the search has overfitted its validation"
            " images, so trust the cross-validation"
        )
    return f"{found}, {'no more' if points <= spread else 'more'} than the ± of the folds"


def describe_label_issues(issues: LabelIssueCounts, summary: RunSummary) -> str:
    """Describe how far possible label errors can be believed, by the model's own error rate."""
    kfold, data = summary.kfold, summary.data
    if kfold is None or data is None:
        return "Some labels are right, and their images hard."
    n_wrong = round((1 - kfold.accuracy_mean) * (data.train + data.val))
    return (
        f"Out of fold the model is wrong on about {count(n_wrong, 'image')}, these among them: of a"
        " model that is often wrong, most labels are right, and their images hard."
    )


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
