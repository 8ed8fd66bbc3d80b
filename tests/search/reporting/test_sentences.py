"""No sentence of a report is contradicted by a number beside it, whatever a run came to."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.console.formatting import apart
from search.evaluation.comparison import compare_models
from search.reporting.page import write_report
from search.reporting.sentences import (
    describe_calibration,
    describe_center_crop,
    describe_ensemble,
    describe_gain,
    describe_label_issues,
    describe_model,
    describe_optimism,
    describe_search_gain,
)
from search.runs.run_folder import RunFolder
from search.runs.summary import (
    Calibration,
    CalibrationChange,
    CalibrationScores,
    CenterCropScores,
    Comparison,
    EnsemblePart,
    LabelIssueCounts,
    ProbeScore,
    RunSummary,
    WeightedEnsembleScores,
)
from tests.fixtures.handmade_run import make_run, scores, set_sections

CROP = CenterCropScores(
    enabled=True,
    log_loss=0.02041,
    log_loss_baseline=0.02044,
    log_loss_gain_se=0.00001,
    accuracy_mean=0.99,
    accuracy_mean_baseline=0.98,
)


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """The summary of a finished run."""
    path = make_run(tmp_path_factory.mktemp("runs") / "run")
    return RunFolder.open(path).summary


def compared(n_model_only: int, n_probe_only: int, n: int = 160) -> Comparison:
    """The best trial and the probe are each correct where the other is not on so many images."""
    labels = np.zeros(n, np.int64)
    model, probe = labels.copy(), labels.copy()
    model[:n_probe_only] = 1
    probe[n - n_model_only :] = 1
    return compare_models(labels, model, probe)


def with_probe(summary: RunSummary, comparison: Comparison | None) -> RunSummary:
    assert summary.kfold is not None
    return replace(summary, kfold=replace(summary.kfold, against_probe=comparison))


def words_of(path: Path, section: str = "") -> str:
    """Return the text of a report, or of one of its sections."""
    text = (path / "report.html").read_text(encoding="utf-8")
    if section:
        start = text.index(f'<section id="{section}"')
        text = text[start : text.index("</section>", start)]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.0204, 0.0196, ("0.0204", "0.0196")),
        (0.1234, 0.4321, ("0.123", "0.432")),
        (0.5, 0.5, ("0.500", "0.500")),
        (1e-9, 2e-9, ("0.000000", "0.000000")),
    ],
)
def test_two_numbers_that_differ_are_not_shown_alike(
    first: float, second: float, expected: tuple[str, str]
) -> None:
    assert apart(first, second) == expected


@pytest.mark.parametrize(
    ("n_alone", "expected", "contradicted"),
    [
        ((4, 4), "ready after 3.7 s, is as good as the best of 12 trials, as far as 160", "gained"),
        ((30, 4), "the search gained over the linear probe of tinynet (+16.2 points", "as good"),
        ((2, 24), "is better than the best of 12 trials (-13.8 points", "gained"),
    ],
)
def test_whether_the_search_gained_anything_is_said_first(
    summary: RunSummary, n_alone: tuple[int, int], expected: str, contradicted: str
) -> None:
    text = describe_search_gain(with_probe(summary, compared(*n_alone)))
    assert text is not None
    assert expected in text
    assert contradicted not in text


def test_the_start_of_the_program_counts_until_the_probe_is_ready(summary: RunSummary) -> None:
    started = replace(summary, stages={**(summary.stages or {}), "startup": 20.0})
    text = describe_search_gain(with_probe(started, compared(4, 4)))
    assert "ready after 24 s," in str(text)


def test_nothing_is_said_of_a_gain_that_is_not_known(summary: RunSummary) -> None:
    assert describe_search_gain(summary) is None
    assert describe_search_gain(RunSummary()) is None


@pytest.mark.parametrize(
    ("optimism", "spread", "expected"),
    [
        (-0.021, 0.01, "the folds are no worse than the search: +2.10 points"),
        (0.004, 0.01, "optimism (selection bias) of +0.40 points, no more than the ± of the folds"),
        (0.015, 0.01, "of +1.50 points, more than the ± of the folds"),
        (0.04, 0.01, "more than twice the ± of the folds: the search has overfitted"),
    ],
)
def test_optimism_follows_from_its_sign_and_the_spread(
    summary: RunSummary, optimism: float, spread: float, expected: str
) -> None:
    assert summary.kfold is not None
    assert summary.best is not None
    kfold = replace(summary.kfold, optimism=optimism, accuracy_std=spread)
    assert expected in describe_optimism(summary.best, kfold)
    assert describe_optimism(replace(summary.best, trial=None), kfold) == ""


def test_the_centre_crop_has_figures_that_differ() -> None:
    text = describe_center_crop(CROP)
    assert text.startswith("two views; out-of-fold log loss 0.02041 with")
    assert "0.02044 without" in text
    by_score = replace(CROP, enabled=False, score=0.9, score_baseline=0.89, score_gain_se=0.02)
    assert describe_center_crop(by_score).startswith(
        "one view: a second one does not clearly help; score 0.900 with it, 0.890 without,"
        " standard error 0.020;"
    )


def test_label_errors_are_as_credible_as_the_model(summary: RunSummary) -> None:
    issues = LabelIssueCounts(n=39, fraction=0.1, pairs=[])
    assert "wrong on about 8 images, these among them" in describe_label_issues(issues, summary)


def test_an_ensemble_is_never_called_by_one_of_its_parts(summary: RunSummary) -> None:
    assert describe_model(summary).startswith("trial 0, 6 epochs: backbone tinynet")
    parts = [
        EnsemblePart(name="trial 0, 6 epochs", weight=0.6, members=3, backbone="tinynet"),
        EnsemblePart(name="linear probe of cnn", weight=0.4, members=3, backbone="cnn"),
    ]
    ensemble = WeightedEnsembleScores(
        enabled=True,
        parts=parts,
        log_loss=0.1,
        log_loss_baseline=0.2,
        log_loss_gain_se=0.01,
        score=0.9,
        score_baseline=0.9,
        score_gain_se=0.01,
    )
    text = describe_model(replace(summary, weighted_ensemble=ensemble))
    assert text == "an ensemble of finalists: 0.60 trial 0, 6 epochs + 0.40 linear probe of cnn"

    def of_ensemble(scores: WeightedEnsembleScores) -> str:
        return describe_ensemble(replace(summary, weighted_ensemble=scores))

    worse = replace(ensemble, enabled=False, score=0.85)
    assert "has a lower score, 0.8500, of the best finalist 0.9000" in of_ensemble(worse)
    no_better = replace(ensemble, enabled=False, log_loss=0.195)
    assert "is not clearly better: cross-fitted" in of_ensemble(no_better)
    slow = replace(ensemble, enabled=False, latency_ms=31.25, max_latency_ms=20.0)
    assert "is not the model: it takes 31.2 ms for one image, above --max-latency 20;" in (
        of_ensemble(slow)
    )
    # The baseline is the best finalist, but not the model: there is a comparison, and it counts.
    gained = replace(summary, weighted_ensemble=ensemble, comparison=compared(30, 4))
    assert str(describe_gain(gained)).endswith("better beyond chance")


def change(before: Sequence[float], after: Sequence[float], n: int = 40) -> CalibrationChange:
    """ECE and log loss, before and after."""
    first, second = (CalibrationScores(ece=e, log_loss=x, bins=[]) for e, x in (before, after))
    return CalibrationChange(n=n, before=first, after=second)


@pytest.mark.parametrize(
    ("before", "after"), [((0.05, 0.3), (0.01, 0.2)), ((0.01, 0.2), (0.05, 0.2004))]
)
@pytest.mark.parametrize("n_alone", [(30, 4), (4, 4), (0, 0)])
@pytest.mark.parametrize("probe_wins", [False, True])
def test_a_whole_page_contradicts_no_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[float, float],
    after: tuple[float, float],
    n_alone: tuple[int, int],
    probe_wins: bool,
) -> None:
    """With 4 test images and a failed trial: where T helps or hurts, where the search gains or not,
    and where a probe is the model."""
    monkeypatch.setattr("search.reporting.page.draw_figures", lambda record, folder: ({}, []))
    path = make_run(tmp_path / "run")
    found = RunFolder.open(path).summary
    assert found.kfold is not None
    assert found.best is not None
    best = found.best
    if probe_wins:
        name = "linear probe of tinynet"
        best = replace(best, trial=None, name=name, config={"backbone": "tinynet", "C": 0.03})
    calibration = Calibration(
        temperature=1.4,
        applied=True,
        fitted_temperature=1.4,
        log_loss_gain_se=0.01,
        out_of_fold=change((0.05, 0.3), (0.01, 0.2)),
        test=change(before, after, 4),
    )
    set_sections(
        path,
        best=best,
        test=scores([[2, 0], [0, 2]], ("cat", "dog"), (0.5101, 1.0)),
        kfold=replace(found.kfold, center_crop=CROP, against_probe=compared(*n_alone)),
        calibration=calibration,
        linear_probe={"tinynet": ProbeScore(accuracy=0.97, seconds=3.2)},
    )
    write_report(RunFolder.open(path))
    words = words_of(path)
    verbs = [
        "falls" if second < first else "rises"
        for first, second in zip(reversed(before), reversed(after), strict=True)
    ]
    pattern = rf"the log loss {verbs[0]} from [\d.]+ to [\d.]+, the ECE {verbs[1]} from"
    assert re.search(pattern, words), describe_calibration(found)
    for first, second in re.findall(r"(?:falls|rises) from ([\d.]+)%? to ([\d.]+)%?", words):
        assert first != second
    assert "100.0% test accuracy on 4 images, 95% CI 51.0–100.0%" in words
    assert "1 of 12 trials failed" in words
    gained = n_alone == (30, 4)
    assert ("The search gained over the linear probe" in words) == gained
    assert ("is as good as the best of 12 trials" in words) != gained
    assert ("C 0.03" in words) == probe_wins
    model = words_of(path, "model")
    for parameter in ("lr", "class_weights"):
        assert (f" {parameter} " in model) != probe_wins, "a probe has no parameters of a trial"


def test_the_gain_of_the_search_names_the_ensemble(summary: RunSummary) -> None:
    """The best trial may be no better than the probe, and the model is both of them."""
    assert not summary.is_ensemble
    part = EnsemblePart(name="trial 0, 6 epochs", weight=1.0, members=3, backbone="tinynet")
    ensemble = WeightedEnsembleScores(
        enabled=True,
        parts=[part],
        log_loss=0.1,
        log_loss_baseline=0.2,
        log_loss_gain_se=0.01,
        score=0.9,
        score_baseline=0.9,
        score_gain_se=0.01,
    )
    text = "; an ensemble of finalists is better than each, and the model"
    summary = with_probe(summary, compared(4, 4))
    alone = str(describe_search_gain(summary))
    assert text not in alone
    together = replace(summary, weighted_ensemble=ensemble)
    assert together.is_ensemble
    assert str(describe_search_gain(together)) == alone + text
    single = replace(ensemble, enabled=False)
    alone = describe_ensemble(replace(summary, weighted_ensemble=single))
    assert alone.endswith("a lower log loss than trial 0, 6 epochs alone")


def ensemble_of_one(name: str, enabled: bool) -> WeightedEnsembleScores:
    return WeightedEnsembleScores(
        enabled=enabled,
        parts=[EnsemblePart(name=name, weight=1.0, members=2, backbone="tinynet")],
        log_loss=0.31,
        log_loss_baseline=0.32,
        log_loss_gain_se=0.02,
        score=0.9,
        score_baseline=0.9,
        score_gain_se=0.01,
    )


def test_a_finalist_of_the_lowest_log_loss_is_not_called_the_model(summary: RunSummary) -> None:
    scores = ensemble_of_one("trial 3", enabled=False)
    start = "no ensemble of finalists has a lower log loss than trial 3 alone; the model is trial 0"
    for changed, reason in (
        (scores, "is not clearly better: cross-fitted out-of-fold log loss 0.3100, of the best"),
        (replace(scores, score=0.85), "has a lower score, 0.8500, of the best finalist 0.9000"),
    ):
        text = describe_ensemble(replace(summary, weighted_ensemble=changed))
        assert text.startswith(f"{start}, 6 epochs, as trial 3 {reason}")


def test_an_ensemble_may_be_scaled_where_its_first_finalist_is_not() -> None:
    """Its figures on the test set are those of the model, not those before."""

    def change(ece: float, after: float) -> CalibrationChange:
        scores = (CalibrationScores(ece=e, log_loss=0.5, bins=[]) for e in (ece, after))
        return CalibrationChange(n=400, before=next(scores), after=next(scores))

    calibration = Calibration(
        temperature=1.0,
        applied=False,
        fitted_temperature=1.1,
        log_loss_gain_se=0.01,
        out_of_fold=change(0.03, 0.03),
        test=change(0.0826, 0.1032),
    )
    ensemble = ensemble_of_one("trial 0, 6 epochs", enabled=True)
    model = RunSummary(calibration=calibration, weighted_ensemble=ensemble)
    assert str(describe_calibration(model)).endswith(
        "by those of other finalists the ECE on the test set rises from 8.26% to 10.32%"
    )
    alone = replace(model, weighted_ensemble=None)
    assert str(describe_calibration(alone)).endswith("; on the test set the ECE is 8.26%")
