"""The mutants of `tests.system.mutants`: mistakes that a plausible slip would make.

Each changes a text that is in its file exactly once, so that no mutant outlives the code that it is
about; a change of that code changes its mutant, too. The tests are the fastest that notice it.
The module is long because it is one table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_DATA = "tests/search/data"
_EVALUATION = "tests/search/evaluation"
_PIPELINE = "tests/search/pipeline"
_RETRAINING = f"{_PIPELINE}/retraining"
_TUNING = "tests/search/tuning"
_TRAINABLES = "tests/trainables"
_MODELS = f"{_TRAINABLES}/models"


@dataclass(frozen=True)
class Mutant:
    """A change of one file.

    Attributes:
        name: What is wrong with it.
        path: The file.
        old: Text that is in it once.
        new: What replaces that text.
        tests: Tests of which at least one must fail.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


_LEAKS = (
    Mutant(
        "fold-trains-on-what-it-leaves-out",
        "search/pipeline/retraining/kfold.py",
        "np.setdiff1d(rows, fold), fold, use_probe",
        "rows, fold, use_probe",
        (f"{_RETRAINING}/test_kfold.py::test_a_fold_depends_on_no_image_that_it_leaves_out",),
    ),
    Mutant(
        "fold-head-saw-what-it-leaves-out",
        "search/pipeline/retraining/kfold.py",
        "initial_head=_fold_head(context, config, rows) if",
        "initial_head=_fold_head(context, config, torch.as_tensor([*train_rows, *fold_rows])) if",
        (f"{_RETRAINING}/test_kfold.py::test_a_fold_depends_on_no_image_that_it_leaves_out",),
    ),
    Mutant(
        "crop-head-saw-what-it-leaves-out",
        "search/pipeline/retraining/center_crop.py",
        "fit_head(features[~is_in_fold], y[~is_in_fold], n_classes)",
        "fit_head(features, y, n_classes)",
        (
            f"{_RETRAINING}/test_center_crop.py::"
            "test_centres_that_show_the_class_help_a_model_that_does_not_see_it",
        ),
    ),
    Mutant(
        "folds-separate-near-duplicates",
        "search/pipeline/retraining/kfold.py",
        "split_folds(rows, context.labels, n_folds, context.seed, context.groups)",
        "split_folds(rows, context.labels, n_folds, context.seed)",
        (f"{_RETRAINING}/test_kfold.py::test_near_duplicates_stay_in_one_fold",),
    ),
    Mutant(
        "trials-train-on-test-images",
        "search/pipeline/trials.py",
        'rows = {name: prepared.rows(name) for name in ("train", "val")}',
        'rows = {"train": prepared.rows("train", "test"), "val": prepared.rows("val")}',
        ("tests/system/science/test_parts.py::test_trials_learn_from_the_training_images",),
    ),
    Mutant(
        "probe-saw-validation-images",
        "search/pipeline/backbones/probe.py",
        'prepared.splits[rows] == "train"',
        'prepared.splits[rows] != "test"',
        (
            f"{_PIPELINE}/backbones/test_probe.py::"
            "test_a_probes_head_depends_on_training_images_alone",
        ),
    ),
    Mutant(
        "int8-calibrated-on-test-images",
        "search/export.py",
        'read_split(options.run, card, "train", options.data, _CALIBRATION_IMAGES)',
        'read_split(options.run, card, "test", options.data, _CALIBRATION_IMAGES)',
        ("tests/search/test_export.py::test_int8_is_calibrated_on_training_images",),
    ),
)

_LEAK = {leak.name: leak for leak in _LEAKS}
_NOISE = "tests/system/science/test_noise.py"

# The tests above look at one part. The run on noise, which knows none, must fail for a leak, too.
_LEAKS_IN_A_WHOLE_RUN = tuple(
    replace(_LEAK[name], name=f"{name}-in-a-run", tests=(f"{_NOISE}::{test}",))
    for name, test in {
        "fold-trains-on-what-it-leaves-out": "test_every_fold_is_at_chance",
        "fold-head-saw-what-it-leaves-out": "test_every_fold_is_at_chance",
        "folds-separate-near-duplicates": (
            "test_images_with_and_without_near_duplicates_are_predicted_alike"
        ),
        "probe-saw-validation-images": "test_the_probes_head_knows_the_training_images_alone",
    }.items()
)

_CHOICES = (
    Mutant(
        "first-finalist-wins",
        "search/pipeline/retraining/cross_validation.py",
        "ranked[choose_candidate([result.candidate for result in ranked], groups, metric)]",
        "results[0]",
        (f"{_RETRAINING}/test_retrain.py::test_the_most_accurate_finalist_wins",),
    ),
    Mutant(
        "last-epoch-kept-instead-of-best",
        "trainables/trial.py",
        "if best is epoch:",
        "if epoch.epoch:",
        (f"{_TRAINABLES}/test_trial.py::test_the_best_epochs_weights_are_kept",),
    ),
    Mutant(
        "no-random-proposals",
        "search/tuning/samplers.py",
        'is_random = name == "tpe" and n_proposed % RANDOM_EVERY == RANDOM_EVERY - 1',
        "is_random = False",
        (f"{_TUNING}/test_samplers.py::test_every_fourth_proposal_is_random",),
    ),
    Mutant(
        "25-candidates-instead-of-4",
        "search/tuning/samplers.py",
        "_N_CANDIDATES = 4",
        "_N_CANDIDATES = 25",
        (f"{_TUNING}/test_samplers.py::test_tpe_is_less_greedy_than_optunas_default",),
    ),
    Mutant(
        "asha-stops-the-best",
        "search/tuning/asha.py",
        "value < np.percentile",
        "value > np.percentile",
        (f"{_TUNING}/test_asha.py::test_of_equal_accuracies_a_third_continues_by_the_lower_loss",),
    ),
    Mutant(
        "patience-off-by-one",
        "trainables/trainer.py",
        "return self.epoch - self.best.epoch >= self._patience",
        "return self.epoch - self.best.epoch > self._patience",
        (f"{_TRAINABLES}/test_trainer.py::test_patience_ends_a_training_without_improvement",),
    ),
)

_SPLITS = (
    Mutant(
        "validation-keeps-near-duplicates-of-test-images",
        "search/data/splits.py",
        'rank = {"test": 2, "val": 1}',
        'rank = {"test": 1, "val": 1}',
        (f"{_DATA}/test_splits.py::test_validation_loses_near_duplicates_of_the_test_set",),
    ),
    Mutant(
        "split-draws-one-image-of-a-group",
        "search/data/splits.py",
        "self._result[self._members[group]] = split_name",
        "self._result[self._members[group][0]] = split_name",
        (f"{_DATA}/test_splits.py::test_no_group_is_split_in_a_thousand_random_cases",),
    ),
    Mutant(
        "folds-lose-stratification",
        "trainables/grouped_kfold.py",
        "shuffled.split(labels, labels)",
        "shuffled.split(labels, np.zeros_like(labels))",
        (f"{_TRAINABLES}/test_grouped_kfold.py::test_folds_without_groups_equal_scikit_learns",),
    ),
)

_TRAINING = (
    Mutant(
        "cached-views-at-another-magnitude",
        "trainables/worker.py",
        "view_magnitude(view, n_views),",
        "view_magnitude(view, n_views + 1),",
        (f"{_TRAINABLES}/test_worker.py::test_a_view_is_augmented_at_its_magnitude",),
    ),
    Mutant(
        "cached-views-at-even-magnitudes",
        "trainables/feature_cache.py",
        "power = max(2.0, math.log(1 / _FIRST_MAGNITUDE) / math.log(n_views - 1))",
        "power = 1.0",
        (f"{_TRAINABLES}/test_worker.py::test_a_view_is_augmented_at_its_magnitude",),
    ),
    Mutant(
        "clean-view-drawn-in-training",
        "trainables/feature_cache.py",
        "if n_views > 2:",
        "if n_views > 256:",
        (f"{_TRAINABLES}/test_trainer.py::test_only_trained_images_are_augmented",),
    ),
    Mutant(
        "augmented-view-drawn-in-validation",
        "trainables/batches.py",
        "return self._cache.clean(rows)",
        "return self._cache.draw(rows, self._augment, torch.Generator())",
        (f"{_TRAINABLES}/test_trainer.py::test_only_trained_images_are_augmented",),
    ),
    Mutant(
        "cached-views-drawn-up-to-1-at-every-strength",
        "trainables/batches.py",
        "draw(rows, self._augment, generator)",
        "draw(rows, 1.0, generator)",
        (
            f"{_TRAINABLES}/test_batches.py"
            "::test_cached_and_new_augmentations_have_one_mean_and_leave_no_image_clean",
        ),
    ),
    Mutant(
        "normalisation-swaps-mean-and-std",
        "trainables/models/normalisation.py",
        "for one in (mean, std)",
        "for one in (std, mean)",
        (f"{_TRAINABLES}/models/test_normalisation.py::test_normalise_equals_torchvisions",),
    ),
    Mutant(
        "class-weights-shifted",
        "trainables/trainer.py",
        "counts = torch.bincount(labels, minlength=n_classes)\n    return",
        "counts = torch.bincount(labels, minlength=n_classes).roll(1)\n    return",
        (
            f"{_TRAINABLES}/test_trainer.py::"
            "test_class_weights_equal_scikit_learns_balanced_weights",
        ),
    ),
    Mutant(
        "dropout-in-predictions",
        "trainables/trainer.py",
        "self.model.eval()",
        "self.model.train()",
        (
            f"{_TRAINABLES}/test_trainer.py::test_predictions_are_without_dropout_and_of_each_image_alone",
        ),
    ),
    Mutant(
        "freeze-depth-off-by-one",
        "trainables/models/backbones.py",
        "stage.requires_grad_(index >= depth)",
        "stage.requires_grad_(index > depth)",
        (f"{_MODELS}/test_backbones.py::test_only_unfrozen_stages_get_gradients",),
    ),
    Mutant(
        "frozen-batchnorm-statistics-move",
        "trainables/models/backbones.py",
        "            stage.eval()\n",
        "            stage.train(mode)\n",
        (
            f"{_MODELS}/test_backbones.py::test_frozen_stages_stay_in_eval_mode_when_a_parent_trains",
        ),
    ),
    Mutant(
        "order-ignores-the-seed",
        "trainables/trainer.py",
        "self._generator = torch.Generator().manual_seed(seed)",
        "self._generator = torch.Generator().manual_seed(0)",
        (f"{_TRAINABLES}/test_trainer.py::test_the_seed_decides_the_order",),
    ),
)

_FIGURES = (
    Mutant(
        "comparison-swaps-its-sides",
        "search/pipeline/evaluate.py",
        "labels, after.argmax(1), outputs.baseline_classes",
        "labels, outputs.baseline_classes, after.argmax(1)",
        (f"{_PIPELINE}/test_evaluate.py::test_the_model_is_compared_with_the_baseline",),
    ),
    Mutant(
        "mcnemar-counts-its-own-outcome-wholly",
        "search/evaluation/mcnemar.py",
        "2 * binom.cdf(fewer, n_discordant, 0.5) - binom.pmf(fewer, n_discordant, 0.5)",
        "2 * binom.cdf(fewer, n_discordant, 0.5)",
        (
            f"{_EVALUATION}/test_mcnemar.py::"
            "test_the_p_value_is_two_tails_that_count_half_of_the_outcome_itself",
        ),
    ),
    Mutant(
        "interval-and-verdict-disagree",
        "search/evaluation/mcnemar.py",
        "return at_0 - ALPHA / 2",
        "return at_0 - ALPHA",
        (f"{_EVALUATION}/test_mcnemar.py::test_the_smallest_margins_are_told_apart",),
    ),
    Mutant(
        "interval-of-the-folds-from-a-fifth-of-the-images",
        "search/evaluation/selection.py",
        "ci95 = wilson_interval(accuracy * n, n)\n    return",
        "ci95 = wilson_interval(accuracy * n / 5, n // 5)\n    return",
        (f"{_RETRAINING}/test_center_crop.py::test_the_model_predicts_as_its_folds_did",),
    ),
    Mutant(
        "accuracy-corrected-by-the-images-of-its-own-sample",
        "search/evaluation/selection.py",
        "left_out = (counts == 0)",
        "left_out = (counts > 0)",
        (
            f"{_EVALUATION}/test_selection.py::"
            "test_the_best_of_equals_is_optimistic_and_its_corrected_accuracy_is_not",
        ),
    ),
    Mutant(
        "accuracy-not-corrected-for-the-choice",
        "search/pipeline/retraining/fold_scores.py",
        "correct_for_choice(candidates, groups, metric)",
        "correct_for_choice([winner.candidate], groups, metric)",
        (
            f"{_RETRAINING}/test_retrain.py::"
            "test_the_accuracy_is_corrected_for_the_choice_among_all_finalists",
        ),
    ),
    Mutant(
        "accuracy-corrected-without-near-duplicates",
        "search/pipeline/retraining/retrain.py",
        "context.groups[rows]",
        "None",
        (
            f"{_RETRAINING}/test_retrain.py::"
            "test_the_accuracy_is_corrected_for_the_choice_among_all_finalists",
        ),
    ),
    Mutant(
        "correction-counts-groups-as-images",
        "search/evaluation/selection.py",
        "(left_out @ sums.sizes).sum()",
        "left_out.sum()",
        (f"{_EVALUATION}/test_selection.py::test_near_duplicates_are_drawn_together",),
    ),
    Mutant(
        "accuracy-counts-groups-as-images",
        "search/evaluation/selection.py",
        "n_correct_of_winner.sum() / sums.sizes.sum()",
        "(n_correct_of_winner / sums.sizes).mean()",
        (f"{_EVALUATION}/test_selection.py::test_each_near_duplicate_is_an_image_of_the_accuracy",),
    ),
    Mutant(
        "equals-go-to-the-higher-log-loss",
        "search/evaluation/selection.py",
        "np.lexsort((kept, log_loss, -n_correct), axis=1)",
        "np.lexsort((kept, -log_loss, -n_correct), axis=1)",
        (f"{_RETRAINING}/test_retrain.py::test_equals_go_to_the_lower_log_loss",),
    ),
    Mutant(
        "temperature-measured-on-the-images-it-was-fitted-on",
        "search/evaluation/calibration.py",
        "if i != fold]",
        "if i != -1]",
        (
            f"{_EVALUATION}/test_calibration.py::"
            "test_the_change_is_measured_by_temperatures_of_the_other_folds",
        ),
    ),
    Mutant(
        "baseline-without-its-temperature",
        "search/pipeline/retraining/retrain.py",
        "_as_ensemble(prepared, results[place], probes, temperatures[place])",
        "_as_ensemble(prepared, results[place], probes, 1.0)",
        (f"{_RETRAINING}/test_center_crop.py::test_the_baseline_has_its_own_temperature",),
    ),
    Mutant(
        "external-near-duplicates-are-scored",
        "search/pipeline/evaluate.py",
        "scored = (labels >= 0) & ~prepared.external_near_duplicates",
        "scored = labels >= 0",
        (
            f"{_PIPELINE}/test_evaluate.py::"
            "test_external_near_duplicates_are_predicted_and_not_evaluated",
        ),
    ),
    Mutant(
        "top-2-accuracy-called-top-3",
        "search/evaluation/metrics.py",
        "k=TOP_K,",
        "k=TOP_K - 1,",
        (f"{_EVALUATION}/test_metrics.py::test_top_3_accuracy",),
    ),
    Mutant(
        "wilson-interval-of-90-percent",
        "search/evaluation/intervals.py",
        "_Z = 1.959963984540054",
        "_Z = 1.6448536269514722",
        (f"{_EVALUATION}/test_intervals.py::test_wilson_interval",),
    ),
    Mutant(
        "macro-interval-of-90-percent",
        "search/evaluation/intervals.py",
        "np.quantile(draws, (0.025, 0.975))",
        "np.quantile(draws, (0.05, 0.95))",
        (f"{_EVALUATION}/test_intervals.py::test_with_many_images_it_is_the_normal_interval",),
    ),
    Mutant(
        "temperature-multiplies-logits",
        "trainables/models/ensemble.py",
        "torch.softmax(logits / temperature, dim=2)",
        "torch.softmax(logits * temperature, dim=2)",
        (
            f"{_MODELS}/test_ensemble.py::"
            "test_mean_probabilities_applies_the_temperature_before_the_mean",
        ),
    ),
    Mutant(
        "calibration-error-ignores-the-size-of-bins",
        "search/evaluation/calibration.py",
        "sum(one.n * abs(one.confidence - one.accuracy) for one in bins) / n)",
        "sum(abs(one.confidence - one.accuracy) for one in bins) / len(bins))",
        (
            f"{_EVALUATION}/test_calibration.py::"
            "test_calibration_error_is_the_mean_gap_weighted_by_bin",
        ),
    ),
    Mutant(
        "energy-has-the-wrong-sign",
        "trainables/models/ood.py",
        "return -torch.logsumexp(logits.float(), dim=1)",
        "return torch.logsumexp(logits.float(), dim=1)",
        (f"{_MODELS}/test_ood.py::test_energy_is_lower_for_a_higher_logit",),
    ),
    Mutant(
        "ood-subspace-fitted-on-what-a-fold-leaves-out",
        "search/pipeline/retraining/kfold.py",
        "subspace = fit_subspace(trainer.predict(few[:MAX_SUBSPACE_IMAGES])[0])",
        "subspace = fit_subspace(features)",
        (f"{_RETRAINING}/test_kfold.py::test_a_fold_depends_on_no_image_that_it_leaves_out",),
    ),
)

_RESUMING = (
    Mutant(
        "epoch-reported-twice-is-written-twice",
        "search/tuning/study.py",
        "        return False\n    lines = []",
        "        pass\n    lines = []",
        (f"{_TUNING}/test_study.py::test_each_epoch_is_appended_once",),
    ),
    Mutant(
        "resumed-trial-loses-its-best-weights",
        "trainables/trial.py",
        'self._best_weights = state["best_weights"]',
        "self._best_weights = trainer.model.member_weights()",
        (f"{_TRAINABLES}/test_trial.py::test_a_resumed_trial_keeps_the_best_epochs_weights",),
    ),
    Mutant(
        "folds-of-other-images-are-reused",
        "search/pipeline/retraining/kfold.py",
        "if np.array_equal(fold.rows, fold_rows[index])",
        "if len(fold.rows)",
        (
            f"{_RETRAINING}/test_kfold.py::"
            "test_folds_of_an_earlier_session_are_reused_if_they_left_out_the_same_images",
        ),
    ),
    Mutant(
        "comparison-with-an-earlier-baseline-is-kept",
        "search/evaluation/outputs.py",
        "self.model == model and baseline in (None, self.baseline)",
        "self.model == model",
        (f"{_EVALUATION}/test_outputs.py::test_outputs_are_of_one_model_and_one_baseline",),
    ),
    Mutant(
        "evaluations-by-the-same-model-are-not-counted",
        "search/pipeline/evaluate.py",
        "times=earlier.times + 1",
        "times=len(models)",
        (f"{_PIPELINE}/test_evaluate.py::test_an_evaluation_that_is_cut_short_counts",),
    ),
    Mutant(
        "report-shows-images-of-the-model-before",
        "search/pipeline/evaluate.py",
        "evaluation=evaluations, samples=None)",
        "evaluation=evaluations)",
        (
            f"{_PIPELINE}/test_evaluate.py::"
            "test_every_other_model_that_predicts_the_test_set_counts",
        ),
    ),
    Mutant(
        "digest-of-a-model-leaves-its-members-out",
        "trainables/models/digest.py",
        "[describe_part(part) for part in model.parts]",
        '[{**describe_part(part), "members": []} for part in model.parts]',
        (f"{_MODELS}/test_digest.py::test_any_change_changes_the_digest",),
    ),
)

_TEST_EXPORT = "tests/search/test_export.py"

_MODELS_THAT_LEAVE = (
    Mutant(
        "exported-graph-is-not-calibrated",
        "trainables/models/export_module.py",
        "mix_probabilities(self.model, [logits for _, logits in outputs])",
        "mix_probabilities(self.model, [logits for _, logits in outputs], 1.0)",
        (f"{_TEST_EXPORT}::test_the_graph_computes_the_ensemble",),
    ),
    Mutant(
        "finished-models-predict-in-bfloat16",
        "trainables/compute.py",
        'torch.autocast("cpu", dtype=torch.bfloat16, enabled=False)',
        'torch.autocast("cpu", dtype=torch.bfloat16, enabled=True)',
        (
            "tests/trainables/test_compute.py::test_predictions_are_in_float32_where_the_cpu_has_bfloat16",
        ),
    ),
    Mutant(
        "export-with-other-ood-scores-passes",
        "search/deployment/parity.py",
        "            and (self.ood_difference or 0.0) <= OOD_TOLERANCE\n",
        "",
        (f"{_TEST_EXPORT}::test_ood_scores_that_differ",),
    ),
    Mutant(
        "exported-member-scores-as-the-first-one",
        "search/export.py",
        "for_member(place)",
        "for_member(0)",
        ("tests/trainables/models/test_model.py::test_one_member_counts_through_the_parts",),
    ),
    Mutant(
        "parts-weigh-alike",
        "trainables/models/model.py",
        "total + weight * mean_probabilities(z, divisor)",
        "total + mean_probabilities(z, divisor) / len(logits)",
        (f"{_MODELS}/test_model.py::test_predict_averages_the_calibrated_probabilities_by_weight",),
    ),
    Mutant(
        "every-part-normalises-as-its-backbone-does-today",
        "trainables/models/ensemble.py",
        "        backbone.normalise = Normalise(self.card.mean, self.card.std)\n",
        "",
        (f"{_MODELS}/test_model.py::test_each_part_normalises_as_its_card_says",),
    ),
    Mutant(
        "ood-score-of-the-lightest-part",
        "trainables/models/model.py",
        "ood_score=outputs[0][1]",
        "ood_score=outputs[-1][1]",
        (
            f"{_MODELS}/test_model.py::"
            "test_the_heaviest_part_scores_how_far_an_image_is_and_is_explained",
        ),
    ),
    Mutant(
        "gain-of-an-ensemble-on-images-that-chose-its-weights",
        "search/pipeline/retraining/ensemble_selection.py",
        "select_weights(probabilities[:, ~inside], labels[~inside])",
        "select_weights(probabilities, labels)",
        (
            f"{_RETRAINING}/test_ensemble_selection.py::"
            "test_the_weights_of_a_fold_do_not_see_its_images",
        ),
    ),
)

_BACKBONES = (
    Mutant(
        "backbones-are-ranked-on-test-images",
        "search/pipeline/backbones/ranking.py",
        'rows = prepared.rows("train", "val")\n    n =',
        'rows = prepared.rows("train", "val", "test")\n    n =',
        (
            f"{_PIPELINE}/backbones/test_ranking.py::"
            "test_backbones_are_ranked_on_training_and_validation_images",
        ),
    ),
    Mutant(
        "backbone-leaves-at-one-standard-error",
        "search/pipeline/backbones/selection.py",
        "MAX_BEHIND_SE = 2.0",
        "MAX_BEHIND_SE = 1.0",
        (
            f"{_PIPELINE}/backbones/test_selection.py::"
            "test_one_that_is_behind_by_more_than_two_paired_errors_leaves",
        ),
    ),
    Mutant(
        "backbone-leaves-by-copies-of-one-image",
        "search/pipeline/backbones/selection.py",
        "mean_with_error(best.is_correct.astype(float) - one.is_correct, groups)",
        "mean_with_error(best.is_correct.astype(float) - one.is_correct)",
        (f"{_PIPELINE}/backbones/test_selection.py::test_near_duplicates_count_once",),
    ),
    Mutant(
        "resumed-run-searches-what-it-has-excluded",
        "search/pipeline/backbones/selection.py",
        "if scores.get(name, unknown).excluded is None]",
        "if scores.get(name, unknown) is not None]",
        (
            f"{_PIPELINE}/backbones/test_selection.py::"
            "test_a_narrow_space_has_those_that_stay_in_its_own_order",
        ),
    ),
)

MUTANTS = (
    *_LEAKS,
    *_LEAKS_IN_A_WHOLE_RUN,
    *_CHOICES,
    *_SPLITS,
    *_TRAINING,
    *_FIGURES,
    *_RESUMING,
    *_MODELS_THAT_LEAVE,
    *_BACKBONES,
)
