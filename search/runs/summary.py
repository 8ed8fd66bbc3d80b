"""`summary.json` as dataclasses: one section per stage, validated when it is read back.

Fractions and accuracies are in [0, 1], losses in nats, `…_ci95` a 95% confidence interval. The
module is long because it declares every key of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from search.runs.validation import NoJSONError, read_json, validate
from spaces.rules import Metric

_MAX = 1e15
"""What no number of a run reaches."""
_ROUNDING = 1e-6  # of a mean of probabilities


def _check_size(value: float) -> float:
    if abs(value) > _MAX:
        raise PydanticCustomError("size", "Input should be a number that a run can have")
    return value


def _check_fraction(value: float) -> float:
    if not (math.isnan(value) or -_ROUNDING <= value <= 1 + _ROUNDING):
        raise PydanticCustomError("fraction", "Input should be in [0, 1]")
    return value


Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    AfterValidator(_check_size),
]
"""JSON has no NaN and no infinity: both are written as null, which is read back as NaN."""

Fraction = Annotated[Number, AfterValidator(_check_fraction)]
KnownFraction = Annotated[float, Field(ge=-_ROUNDING, le=1 + _ROUNDING)]
"""A fraction that cannot be NaN."""

Seconds = Annotated[float, Field(ge=0, le=_MAX)]
Count = Annotated[int, Field(ge=0, le=int(_MAX))]

Interval = tuple[Number, Number]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that applied to the run: the space with the command line's changes.

    Attributes:
        metric: What models were compared by.
        searched: By parameter, its distribution in words.
        constants: By parameter, its value.
        finalists: Trials that were retrained by k-fold.
        probe: Whether backbones were probed before the search.
        gpus: Names of the driver's GPUs.
    """

    trials: Count
    epochs: Count
    folds: Count
    metric: Metric
    patience: Count | None
    views: Count
    keep_checkpoints: Count
    image_size: Count
    resize_mode: str
    cache_size: Count
    weights: str
    center_crop: bool
    searched: Mapping[str, str]
    constants: Mapping[str, Any]
    finalists: Count
    sampler: str
    scheduler: str
    probe: bool
    seed: Count
    gpus: list[str]


@dataclass(frozen=True, kw_only=True)
class BackboneWeights:
    """The weights that trainings of a backbone begin with.

    Attributes:
        source: Where they are from: an address, the name of a file in `--weights`, "this package",
            "random", or the user's own function.
        licence: Of the weights as published; "unknown", or "" where none are published.
        restriction: What the licence restricts: "non-commercial", "own licence", or "".
    """

    source: str
    licence: str
    restriction: str


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """The classes and the number of images in each split.

    Attributes:
        n: Decoded images.
        excluded: Images of the split "excluded": near-duplicates of test or validation images.
        unused_files: Files that could not be read, or are no image.
        excluded_by_request: Names in `--exclude`.
        warnings: What figures of so few images cannot say.
    """

    classes: list[str]
    n: Count
    train: Count
    val: Count
    test: Count
    excluded: Count
    unused_files: Count
    excluded_by_request: Count
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AuditCounts:
    """Issues of the images.

    Attributes:
        groups: Groups of near-duplicates.
        in_groups: Images in them.
        given_groups: Groups of two images or more that a table or `--group-by` names.
        external_near_duplicates: External images that are near-duplicates of the data set's.
        issues: By kind, how many were found.
    """

    groups: Count
    in_groups: Count
    external_near_duplicates: Count
    issues: Mapping[str, Count]
    given_groups: Count = 0


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """The linear probe of a backbone, and whether the backbone is searched.

    Attributes:
        accuracy: Cross-validated on training and validation images; NaN where it was not probed,
            or a class is too small.
        score: The metric's, likewise, at the temperature of `log_loss`; higher is better.
        seconds: Seconds from the begin of the stage until it was known.
        val_accuracy: On the validation images, of the head fitted on the training images.
        behind: The best probe's score minus this one's.
        behind_se: Its standard error, paired by image.
        log_loss: Cross-validated likewise, in nats, calibrated by one temperature.
        latency_ms: Milliseconds of one image on the driver's machine, in a batch of one.
        excluded: Why the backbone is not searched; None where it is.
        in_ensemble: Whether the probe is a finalist, since an ensemble with it is clearly better
            than the best probe.
    """

    accuracy: Fraction = math.nan
    score: Number = math.nan
    seconds: Number = math.nan
    val_accuracy: Fraction = math.nan
    behind: Number = math.nan
    behind_se: Number = math.nan
    log_loss: Number = math.nan
    latency_ms: Number = math.nan
    excluded: str | None = None
    in_ensemble: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchCounts:
    """The trials by state, and the seconds of the last session's search."""

    trials: Count
    complete: Count
    pruned: Count
    failed: Count
    unfinished: Count
    seconds: Number


@dataclass(frozen=True, kw_only=True)
class BestModel:
    """The trial or linear probe that the final model was retrained from.

    Attributes:
        trial: Its number; None for a linear probe.
        name: Its display name.
        config: Its `TrialConfig`; of a linear probe, the backbone and scikit-learn's C.
        val_accuracy: Its best validation accuracy; of a linear probe, the accuracy
            cross-validated on training and validation images.
        val_score: Likewise its score, by the metric; higher is better.
        epoch: The epoch that reached them.
    """

    trial: Count | None
    name: str
    config: Mapping[str, Any]
    val_accuracy: Fraction
    epoch: Count
    val_score: Number = math.nan


@dataclass(frozen=True, kw_only=True)
class CenterCropScores:
    """The out-of-fold loss and accuracy with the centre-crop branch and, `…_baseline`, without.

    Attributes:
        log_loss_gain_se: Standard error of the losses' difference, paired by image.
        score, score_baseline: By the metric; higher is better.
        score_gain_se: Standard error of the scores' difference, by which the branch is enabled; NaN
            where the metric is the accuracy: then the log loss decides.
    """

    enabled: bool
    log_loss: Number
    log_loss_baseline: Number
    log_loss_gain_se: Number
    accuracy_mean: Fraction
    accuracy_mean_baseline: Fraction
    score: Number = math.nan
    score_baseline: Number = math.nan
    score_gain_se: Number = math.nan


@dataclass(frozen=True, kw_only=True)
class FinalistScores:
    """The cross-validation accuracy of one finalist, and its out-of-fold score by the metric."""

    trial: Count | None
    name: str
    val_accuracy: Fraction
    accuracy_mean: Fraction
    accuracy_std: Fraction
    center_crop: bool
    score: Number = math.nan


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model against a baseline on the same images: of the run, on the test set.

    Attributes:
        n: Images.
        accuracy: The model's accuracy.
        baseline_accuracy: The baseline's accuracy.
        n_model_only_correct: Images that only the model predicts correctly.
        n_baseline_only_correct: Images that only the baseline predicts correctly.
        difference: The model's accuracy minus the baseline's.
        difference_ci95: Its 95% confidence interval.
        p_value: Two-sided mid-p-value of the McNemar test (1947).
        verdict: What that means, in words.
        expected_discordance: The fraction of training and validation images that only the model or
            only the baseline predicts correctly out of fold, by single members; ensembles likely
            disagree on fewer. None where it is unknown.
        detectable_difference: The smallest true difference that as many test images show with a
            probability of 80%, given that fraction, so likely too large; None where they show none,
            or it is unknown.
    """

    n: Count
    accuracy: Fraction
    baseline_accuracy: Fraction
    n_model_only_correct: Count
    n_baseline_only_correct: Count
    difference: Number
    difference_ci95: Interval
    p_value: Fraction
    verdict: str
    expected_discordance: float | None = None
    detectable_difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class KFoldScores:
    """The k-fold cross-validation of the best finalist.

    Attributes:
        folds: Number of folds.
        accuracy_mean: Of the folds, weighted by their images; optimistic, as the finalist was
            chosen by it.
        accuracy_corrected: The same without that optimism (BBC-CV, Tsamardinos et al. 2018). What
            the search chose by the validation images, which are among these, is not corrected.
        optimism: Its best validation accuracy minus the mean of the folds, both without the centre
            crop. Of a linear probe it is no such optimism: both are cross-validated.
        center_crop: None where no centre-crop branch was tried.
        score: By the metric, of all out-of-fold predictions, calibrated; higher is better.
        score_corrected: The same without the optimism of the choice.
        dropped: By name, why trials are no finalists: a fold of them could not be trained.
        against_probe: The best trial against the linear probe, out of fold; None without both.
    """

    folds: Count
    accuracy_mean: KnownFraction
    accuracy_std: Fraction
    accuracy_corrected: KnownFraction
    accuracy_corrected_ci95: Interval
    optimism: Number
    center_crop: CenterCropScores | None
    finalists: list[FinalistScores]
    score: Number = math.nan
    score_corrected: Number = math.nan
    score_corrected_ci95: Interval = (math.nan, math.nan)
    dropped: Mapping[str, str] = field(default_factory=dict)
    against_probe: Comparison | None = None


@dataclass(frozen=True, kw_only=True)
class EnsemblePart:
    """A finalist's weight in an ensemble, and the members that its folds gave."""

    name: str
    weight: Fraction
    members: Count
    backbone: str


@dataclass(frozen=True, kw_only=True)
class WeightedEnsembleScores:
    """The ensemble of finalists, on out-of-fold images that its weights were not selected on.

    `…_baseline` is the best finalist's.

    Attributes:
        enabled: Whether it is the model: its log loss is lower by more than one standard error, and
            its score is not lower by more than one.
        parts: The highest weight first.
        log_loss_gain_se: Standard error of the losses' difference, paired by image.
        score: By the run's metric, higher is better.
        score_gain_se: Standard error of the scores' difference, paired by image.
        latency_ms: Milliseconds of one image, where `--max-latency` bounds it by `max_latency_ms`;
            NaN where it was not measured.
    """

    enabled: bool
    parts: list[EnsemblePart]
    log_loss: Number
    log_loss_baseline: Number
    log_loss_gain_se: Number
    score: Number
    score_baseline: Number
    score_gain_se: Number
    latency_ms: Number = math.nan
    max_latency_ms: Number = math.nan


@dataclass(frozen=True, kw_only=True)
class LabelPair:
    """How often one class was labelled where another is predicted."""

    given_label: str
    predicted_label: str
    n: Count


@dataclass(frozen=True, kw_only=True)
class LabelIssueCounts:
    """Possible label errors: how many, their fraction of all images, the most frequent pairs."""

    n: Count
    fraction: Fraction
    pairs: list[LabelPair]


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """How often models predicted the test set, over all sessions.

    Attributes:
        times: One that was cut short counts; one by an unchanged model does not take place.
        models: The digests of these models, each once, in their order.
    """

    times: Count
    models: list[str]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Mean confidence and accuracy of the predictions in one bin of confidence."""

    confidence: Fraction
    accuracy: Fraction
    n: Count


@dataclass(frozen=True, kw_only=True)
class CalibrationScores:
    """The expected calibration error and what a reliability diagram shows."""

    ece: Fraction
    log_loss: Number
    bins: list[ReliabilityBin]


@dataclass(frozen=True, kw_only=True)
class CalibrationChange:
    """The calibration of n images before and after temperature scaling."""

    n: Count
    before: CalibrationScores
    after: CalibrationScores


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperature scaling: whether it is applied, and what it does to predictions.

    Attributes:
        temperature: The model's; 1 where scaling is not applied.
        applied: Whether it lowers the out-of-fold log loss by more than `log_loss_gain_se`.
        fitted_temperature: Fitted on all out-of-fold predictions.
        log_loss_gain_se: Standard error of the out-of-fold difference, paired by image.
        out_of_fold: Before, and after by temperatures that were fitted on the other folds.
        test: Before and after by the model's temperature.
    """

    temperature: Number
    applied: bool
    fitted_temperature: Number
    log_loss_gain_se: Number
    out_of_fold: CalibrationChange | None = None
    test: CalibrationChange | None = None


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Precision, recall and F1 of one class, and its number of images."""

    name: str
    precision: Fraction
    recall: Fraction
    recall_ci95: Interval
    f1: Fraction
    n: Count


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metrics of labelled images.

    Attributes:
        macro_precision: Like the other macro means, over the classes that occur.
        macro_recall: The balanced accuracy.
        roc_auc: Macro one-vs-rest; see `trainables.metrics`.
        ece: Expected calibration error.
        confusion: Counts; rows are the true class.
        n_ood: Images that are out of distribution; None where the model cannot tell.
    """

    n: Count
    accuracy: KnownFraction
    accuracy_ci95: Interval
    macro_precision: Fraction
    macro_precision_ci95: Interval
    macro_recall: Fraction
    macro_recall_ci95: Interval
    macro_f1: Fraction
    macro_f1_ci95: Interval
    top3_accuracy: Fraction
    top3_accuracy_ci95: Interval
    log_loss: Number
    ece: Fraction
    per_class: list[ClassScores]
    confusion: list[list[Count]]
    n_ood: Count | None = None
    log_loss_ci95: Interval = (math.nan, math.nan)
    roc_auc: Fraction = math.nan
    roc_auc_ci95: Interval = (math.nan, math.nan)

    def of_metric(self, metric: Metric) -> tuple[float, Interval]:
        """Return a metric as people read it, and its 95% confidence interval."""
        match metric:
            case "accuracy":
                return self.accuracy, self.accuracy_ci95
            case "balanced_accuracy":
                return self.macro_recall, self.macro_recall_ci95
            case "macro_f1":
                return self.macro_f1, self.macro_f1_ci95
            case "log_loss":
                return self.log_loss, self.log_loss_ci95
            case "roc_auc":
                return self.roc_auc, self.roc_auc_ci95


def _check_scores(scores: Scores) -> Scores:
    counts, n_classes = scores.confusion, len(scores.per_class)
    if n_classes == 0 or [len(row) for row in counts] != [n_classes] * n_classes:
        raise PydanticCustomError("scores", "confusion should have the classes of per_class")
    n_correct = sum(row[place] for place, row in enumerate(counts))
    if (sum(map(sum, counts)), n_correct) != (scores.n, round(scores.accuracy * scores.n)):
        raise PydanticCustomError("scores", "n and accuracy should be those of confusion")
    return scores


ConsistentScores = Annotated[Scores, AfterValidator(_check_scores)]
"""Scores whose counts agree with each other, as they are read back."""


@dataclass(frozen=True, kw_only=True)
class ExternalScores:
    """Metrics of the external test set.

    Attributes:
        n: Images.
        n_labelled: Images with a label that are no near-duplicates of the data set's.
        n_near_duplicates: Images that are near-duplicates of the data set's.
        n_ood: Images that are out of distribution; None where the model cannot tell.
        scores: Metrics of the labelled images; None where there are none. In the file its keys
            stand beside the others, and `accuracy` and `top3_accuracy` are null where there are
            none.
    """

    n: Count
    n_labelled: Count
    n_near_duplicates: Count
    n_ood: Count | None
    scores: ConsistentScores | None


def _with_scores(section: Any) -> Any:
    """Gather the scores among the keys of the section `external`."""
    if not isinstance(section, Mapping):
        return section
    has_scores = section.get("accuracy") is not None
    scores = {**section, "n": section.get("n_labelled")} if has_scores else None
    return {**section, "scores": scores}


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What the model costs to keep and to run, on the driver's machine.

    Attributes:
        parameters: Of all members; stages that they share count once.
        megabytes: Of `model.pt`, in units of 10⁶ bytes.
        latency_ms: Milliseconds of one image, in a batch of one.
        latency_ms_batch_32: Milliseconds an image, in batches of 32.
        device: "cpu" or "cuda".
    """

    parameters: Count
    megabytes: Number
    latency_ms: Number
    latency_ms_batch_32: Number
    device: str


@dataclass(frozen=True, kw_only=True)
class AblationScores:
    """One step of the ablation; accuracies are of its last epoch unless they say `best`."""

    name: str
    config: Mapping[str, Any]
    epochs: Count
    train_accuracy: Fraction
    val_accuracy: Fraction
    best_val_accuracy: Fraction
    best_epoch: Count
    seconds: Number


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The images that the report shows of a set, and why Grad-CAM failed, if it did."""

    images: Count
    n_with_gradcam: Count
    error: str | None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The content of `summary.json`; None for stages that have not ended.

    Attributes:
        backbone_weights: By backbone.
        linear_probe: By backbone.
        gpu_fraction: By backbone, the fraction of a GPU that a trial takes.
        samples: By set, "data" or "external".
        stages: By name, the seconds of all sessions.
    """

    settings: Settings | None = None
    backbone_weights: Mapping[str, BackboneWeights] | None = None
    data: DataCounts | None = None
    audit: AuditCounts | None = None
    linear_probe: Mapping[str, ProbeScore] | None = None
    gpu_fraction: Mapping[str, Number] | None = None
    search: SearchCounts | None = None
    best: BestModel | None = None
    kfold: KFoldScores | None = None
    weighted_ensemble: WeightedEnsembleScores | None = None
    label_issues: LabelIssueCounts | None = None
    calibration: Calibration | None = None
    evaluation: Evaluations | None = None
    test: ConsistentScores | None = None
    comparison: Comparison | None = None
    external: Annotated[ExternalScores | None, BeforeValidator(_with_scores)] = None
    model_cost: ModelCost | None = None
    ablation: list[AblationScores] | None = None
    samples: Mapping[str, Samples] | None = None
    stages: Mapping[str, Seconds] | None = None

    @property
    def metric(self) -> Metric:
        """What models were compared by."""
        return "accuracy" if self.settings is None else self.settings.metric

    @property
    def is_ensemble(self) -> bool:
        """Whether the model is an ensemble of several finalists."""
        return self.weighted_ensemble is not None and self.weighted_ensemble.enabled

    @property
    def model_backbones(self) -> list[str]:
        """The backbones that the model consists of, that of the highest weight first.

        The best finalist's need not be among them: an ensemble of others may be better than it.
        """
        if self.best is None:
            return []
        ensemble = self.weighted_ensemble
        if ensemble is not None and ensemble.enabled:
            return list(dict.fromkeys(part.backbone for part in ensemble.parts))
        backbone = self.best.config.get("backbone")
        return [] if backbone is None else [str(backbone)]

    def as_dict(self) -> dict[str, Any]:
        """Return the sections that there are, as they stand in the file."""
        sections = {name: value for name, value in asdict(self).items() if value is not None}
        if external := sections.get("external"):
            scores = external.pop("scores") or {"accuracy": None, "top3_accuracy": None}
            sections["external"] = {**scores, **external}
        return sections


def read_summary(path: Path, *, resumes: bool = False) -> RunSummary:
    """Read `summary.json`; an empty summary where there is no file.

    Args:
        path: The file.
        resumes: Whether its run is resumed. One that is not JSON is empty then: the stages write
            again what is lost.

    Raises:
        FolderError: it is not JSON, or a key is missing or of the wrong type; the message names it.
    """
    way_out = "put a copy of it back, or remove it and resume the run"
    try:
        content = read_json(path, way_out)
    except FileNotFoundError:
        return RunSummary()
    except NoJSONError:
        if resumes:
            return RunSummary()
        raise
    return validate(content, RunSummary, path, way_out)
