import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from search.console.run_log import start_run_log
from search.evaluation.comparison import compare_models
from search.evaluation.label_issues import LabelIssue, count_issues, write_issues
from search.pipeline.request import parse_request
from search.report import main
from search.reporting import figures
from search.reporting.gallery import Gallery
from search.reporting.page import write_report
from search.reporting.run_record import Record
from search.runs.run_folder import STUDY, RunFolder
from search.runs.summary import (
    AblationScores,
    BackboneWeights,
    Calibration,
    CalibrationChange,
    CalibrationScores,
    CenterCropScores,
    EnsemblePart,
    Evaluations,
    ExternalScores,
    ModelCost,
    ProbeScore,
    Samples,
    SearchCounts,
    WeightedEnsembleScores,
)
from search.runs.tables import ABLATION_COLUMNS, write_csv
from tests.fixtures.handmade_run import (
    EXTERNAL,
    SETTINGS,
    make_run,
    remove,
    scores,
    set_sections,
    write_predictions,
)


class Page(HTMLParser):
    """A report's text and tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = 0
        self.feed(path.read_text(encoding="utf-8"))
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words += f" {data}"

    def find(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = attributes.items()
        return [found for name, found in self.tags if name == tag and wanted <= found.items()]


INTERRUPTED = SearchCounts(trials=11, complete=6, pruned=4, failed=1, unfinished=1, seconds=100.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with its report."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "spring")
    write_report(RunFolder.open(folder))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))


def test_the_test_accuracy_comes_first_with_its_interval(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "95.0% test accuracy" in page.words
    assert "95% CI 83.5–98.6%." in page.words
    lower = "The accuracy on the external test set is lower: 50.0% against 95.0%"
    assert lower in page.words
    assert str(finished / "model.pt") in page.words
    assert f"python -m search.predict {finished} photo.jpg" in page.words


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take most of a report's time."""
    monkeypatch.setattr("search.reporting.page.draw_figures", lambda record, folder: ({}, []))


@pytest.fixture
def unsaved_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the figures, but do not save them, which takes most of their time."""
    monkeypatch.setattr("search.reporting.style.save", lambda figure, folder, name: "")


def words_of(run: Path) -> str:
    """Write the report of a run, and return its text."""
    write_report(RunFolder.open(run))
    return Page(run / "report.html").words


@pytest.mark.usefixtures("without_figures")
def test_an_accuracy_of_100_percent_never_stands_alone(run: Path) -> None:
    summary = RunFolder.open(run).summary
    assert summary.data is not None
    assert summary.kfold is not None
    perfect = replace(summary.kfold, accuracy_corrected=1.0, accuracy_corrected_ci95=(0.7575, 1.0))
    few = "4 test images, fewer than 30: so it is"
    set_sections(
        run,
        test=scores([[2, 0], [0, 2]], ("a", "b"), (0.5101, 1.0)),
        kfold=perfect,
        data=replace(summary.data, train=10, val=2, test=4, warnings=[few]),
        linear_probe={"tinynet": ProbeScore(accuracy=1.0, seconds=3.2)},
    )
    words = words_of(run)
    assert " 100.0% test accuracy on 4 images, 95% CI 51.0–100.0% " in words
    assert " 100.0% 95% CI 75.8–100.0% " in words, "the tile of the cross-validation"
    assert f" {few}. " in words
    remove(run, "summary:test")
    cross_validated = " 100.0% 3-fold cross-validation accuracy on 12 images, 95% CI 75.8–100.0% "
    assert cross_validated in words_of(run)
    for section in ("kfold", "best"):
        remove(run, f"summary:{section}")
    remove(run, STUDY)
    assert " 100.0% from a linear probe on 12 images, 95% CI 75.8–100.0% " in words_of(run)


@pytest.mark.usefixtures("without_figures")
def test_backbones_that_left_have_their_figures_and_reasons(run: Path) -> None:
    ranked = {
        "resnet18": ProbeScore(
            accuracy=0.81, val_accuracy=0.79, behind=0.0, behind_se=0.0, latency_ms=20.0
        ),
        "tinynet": ProbeScore(
            accuracy=0.6,
            val_accuracy=0.5,
            behind=0.21,
            behind_se=0.02,
            log_loss=1.2345,
            excluded="far <behind>",
        ),
        "vgg16_bn": ProbeScore(excluded="no weights: offline"),
    }
    set_sections(run, linear_probe=ranked)
    words = words_of(run)
    assert "resnet18 81.00% 0.0 ± 0.0 79.00% 20.0 yes" in words
    assert "tinynet 60.00% 21.0 ± 2.0 1.234 50.00% no: far <behind>" in words
    assert "vgg16_bn no: no weights: offline" in words
    # Without probes no accuracy is shown, but why backbones left is.
    set_sections(run, linear_probe={"vgg16_bn": ProbeScore(latency_ms=90.0)})
    for section in ("test", "kfold", "best"):
        remove(run, f"summary:{section}")
    remove(run, STUDY)
    assert " No accuracy yet " in words_of(run)


@pytest.mark.usefixtures("without_figures")
def test_the_page_begins_with_the_metric(run: Path) -> None:
    folder = RunFolder.open(run)
    test, kfold, best = folder.summary.test, folder.summary.kfold, folder.summary.best
    assert test is not None
    assert kfold is not None
    assert best is not None
    set_sections(
        run,
        settings=replace(SETTINGS, metric="log_loss"),
        test=replace(test, log_loss=0.4321, log_loss_ci95=(0.4, 0.5)),
        kfold=replace(kfold, score_corrected=-0.25, score_corrected_ci95=(-0.3, -0.2)),
        best=replace(best, val_score=-0.2),
    )
    words = words_of(run)
    assert " 0.432 test log loss " in words
    assert "95% CI 0.400–0.500. Accuracy " in words
    assert " 0.250 95% CI 0.200–0.300; accuracy " in words
    assert "best validation log loss validation accuracy" in words


@pytest.mark.usefixtures("without_figures")
def test_every_evaluation_of_the_test_set_is_counted(run: Path) -> None:
    assert "The model was evaluated once on the test set: 40 images that took no part" in words_of(
        run
    )
    set_sections(run, evaluation=Evaluations(times=3, models=["a", "b", "c"]))
    words = words_of(run)
    assert "Models of this run were evaluated on it 3 times." in words
    assert "evaluated once" not in words
    assert (
        "The test set was evaluated 3 times, by 3 models: figures of later ones are optimistic if"
        " the run was continued because of earlier ones." in words
    )
    remove(run, "summary:test")
    words = words_of(run)
    assert "the model is not evaluated on the test set yet, earlier ones were." in words
    assert "the model is not evaluated on the test set; earlier ones were. Resume it" in words


def test_every_trial_is_in_the_table(finished: Path) -> None:
    page = Page(finished / "report.html")
    rows = [row["data-state"] for row in page.find("tr") if "data-state" in row]
    assert len(rows) == 12
    assert rows.count("complete") == 6
    assert rows.count("pruned") == 4
    assert rows.count("failed") == rows.count("unfinished") == 1
    assert len(page.find("tr", **{"class": "final"})) == 1
    assert "1 of 12 trials failed; the reasons are below." in page.words
    assert "1 trial began and did not finish." in page.words
    assert "1 × TrainingError: the loss is <nan>" in page.words


def test_a_trial_has_its_best_epoch_its_epochs_and_its_seconds(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "0 complete, final model 99.00% 6 6 3.0" in page.words


def test_the_optimism_of_the_search_is_shown(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert (
        "Best validation accuracy 99.00%, mean accuracy of the 3 folds 95.00% ± 1.00%: an"
        " optimism (selection bias) of +4.00 points, more than twice the ± of the folds: the search"
        " has overfitted its validation images" in page.words
    )
    assert "Cross-validation accuracy 94.50%, 95% CI 90.00–98.00%." in page.words


@pytest.mark.usefixtures("without_figures")
def test_a_linear_probe_has_no_optimism(run: Path) -> None:
    summary = RunFolder.open(run).summary
    assert summary.best is not None
    set_sections(run, best=replace(summary.best, trial=None, name="linear probe of cnn"))
    words = written(run).words
    assert (
        "Linear probe, cross-validated 99.00%, mean accuracy of the 3 folds"
        " 95.00% ± 1.00%. Cross-validation accuracy" in words
    )
    assert "optimism (selection bias)" not in words


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(("score", "is_highest"), [(0.94, True), (0.96, False)])
def test_a_model_that_was_chosen_by_log_loss_has_no_better_accuracy(
    run: Path, score: float, is_highest: bool
) -> None:
    summary = RunFolder.open(run).summary
    assert summary.best is not None
    assert summary.kfold is not None
    other = replace(summary.kfold.finalists[0], name="another", score=score)
    kfold = replace(summary.kfold, score=0.95, finalists=[*summary.kfold.finalists, other])
    set_sections(run, best=replace(summary.best, trial=None, name="linear probe"), kfold=kfold)
    words = written(run).words
    assert ("no trial has a better cross-validation accuracy" in words) == is_highest
    assert ("one whose log loss is clearly lower goes before" in words) == (not is_highest)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("source", "restriction", "expected"),
    [("net.pth", "", True), ("net.pth", "own licence", False), ("random", "", False)],
)
def test_weights_are_folded_where_there_are_some(
    run: Path, source: str, restriction: str, expected: bool
) -> None:
    weights = BackboneWeights(source=source, licence="some-licence", restriction=restriction)
    set_sections(run, backbone_weights={"tinynet": weights})
    written(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert ("<summary>Pretrained weights</summary>" in page) == expected


def test_confident_answers_are_counted_with_their_accuracy(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert (
        "Answer only above 0.90: 97.5% of images (39 images), 97.4% of them right, 95% CI"
        in page.words
    )
    assert "search.predict --threshold 0.9" in page.words
    assert "0.99 0 0.0%" in page.words


@pytest.mark.usefixtures("without_figures")
def test_what_the_model_costs_is_shown(run: Path) -> None:
    cost = ModelCost(
        parameters=1234567, megabytes=5.04, latency_ms=12.34, latency_ms_batch_32=3.21, device="cpu"
    )
    assert "parameters in" not in Page(run / "report.html").words
    set_sections(run, model_cost=cost)
    assert (
        "The model has 1,234,567 parameters in 5.0 MB; on this machine (CPU) it takes 12.3 ms for"
        " one image, 3.2 ms an image in batches of 32." in words_of(run)
    )


def test_top_losses_come_most_confident_first(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert re.search(r"test/7\.jpg .* test/3\.jpg", page.words)
    assert "cat predicted as <b>&: 2 of 10" in page.words


@pytest.mark.usefixtures("without_figures")
def test_images_are_shown_where_they_are_saved(run: Path) -> None:
    page = Page(run / "report.html")
    assert page.find("img") == []
    assert "This run saved no images, so only their names are shown." in page.words
    gallery = Gallery(run)
    for name in ("test/3.jpg", "test/7.jpg", "test/0.jpg"):
        gallery.save("data", [name], [np.zeros((32, 32, 3), np.uint8)], 32)
    gallery.save_heatmap("data", "test/7.jpg", np.eye(4))
    gallery.save("external", ["outside/1.jpg"], [np.zeros((32, 32, 3), np.uint8)], 32)
    set_sections(run, samples={"data": Samples(images=3, n_with_gradcam=1, error=None)})
    write_report(RunFolder.open(run))
    page = Page(run / "report.html")
    assert [image["alt"] for image in page.find("img")] == [
        "test/7.jpg",
        "Grad-CAM of the predicted class <b>&",
        "test/3.jpg",
        "test/0.jpg",
        "outside/1.jpg",
    ]
    assert all(str(p["src"]).startswith("data:image/jpeg;base64,") for p in page.find("img"))
    assert "Grad-CAM beside an image shows where the model found the predicted class." in page.words
    assert page.words.count("This run saved no images") == 1  # of the external test set


@pytest.mark.usefixtures("without_figures")
def test_why_there_is_no_heat_map_is_shown(run: Path) -> None:
    failed = Samples(images=0, n_with_gradcam=0, error="out of <memory>")
    set_sections(run, samples={"data": failed})
    write_report(RunFolder.open(run))
    words = Page(run / "report.html").words
    assert "Grad-CAM is unavailable: out of <memory>." in words
    assert "Grad-CAM beside" not in words


def test_the_accuracy_of_the_most_frequent_class_is_shown(finished: Path) -> None:
    assert "most frequent class, accuracy 25.00%" in Page(finished / "report.html").words


def test_low_confidence_is_marked(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "outside/1.jpg cat wrong , low confidence <b>& 40.0% , cat 35.0%" in page.words
    assert "wrong , low confidence , label cat <b>& 40.0% cat 35.0% $x_1$ 25.0%" in page.words


def test_the_space_and_the_command_are_shown(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "python -m search.run --name 'my run'" in page.words
    assert "SPACE = '<i>'" in page.words
    assert "seed 7" in page.words


def test_names_are_escaped(finished: Path) -> None:
    page = Page(finished / "report.html")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"b", "i", "nan", "img"}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert "<b>&" in page.words
    assert "evil<script>alert(1)</script>.jpg" in page.words


def test_the_page_needs_no_network(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url\()[\s=\"']*(https?:)?//", text)
    assert "@import" not in text
    page = Page(finished / "report.html")
    assert page.find("link") == []
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert str(policy["content"]).startswith("default-src 'none'")


def test_figures_have_text_alternatives_and_files(finished: Path) -> None:
    page = Page(finished / "report.html")
    images = page.find("div", **{"class": "chart", "role": "img"})
    names = {
        *("accuracy", "history", "survival", "parallel_coordinates", "importances", "stages"),
        *("model_loss", "model_accuracy", "confusion_test", "confusion_external", "reliability"),
        *("confusion_test_normalised", "confusion_external_normalised"),
        *("trial_curves", "coverage", "class_balance", "slices", "roc", "precision_recall"),
    }
    assert len(images) == len(names)
    assert all(image["aria-label"] for image in images)
    for suffix in ("png", "svg"):
        assert {path.stem for path in (finished / "figures").glob(f"*.{suffix}")} == names


def test_ids_are_unique_and_references_are_there(finished: Path) -> None:
    page = Page(finished / "report.html")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("href", "xlink:href"):
            target = str(attributes.get(name) or f"#{ids[0]}")
            assert target[1:] in ids or (target.endswith(".csv") and (finished / target).is_file())
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids


def test_headings_skip_no_level(finished: Path) -> None:
    levels = [int(tag[1]) for tag, _ in Page(finished / "report.html").tags if tag in _HEADINGS]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


_HEADINGS = ("h1", "h2", "h3", "h4")


def test_the_same_run_gives_the_same_page(finished: Path) -> None:
    before = (finished / "report.html").read_bytes()
    write_report(RunFolder.open(finished))
    assert (finished / "report.html").read_bytes() == before


@pytest.mark.usefixtures("unsaved_figures")
@pytest.mark.parametrize(
    ("gone", "there", "not_there"),
    [
        (
            ("summary:test", "test_predictions.csv"),
            "94.5% 3-fold cross-validation accuracy",
            "Metrics by class",
        ),
        (("summary:external",), "None was given.", "is lower"),
        (
            ("summary:linear_probe", "audit.csv"),
            "Every file could be read.",
            "Backbones by linear probe",
        ),
        (("summary:stages", "model.pt"), "There is no model yet.", "Time of each stage"),
        (
            ("folds/folds.csv",),
            "mean accuracy of the 3 folds 95.00%",
            "Accuracy, 95% CI",
        ),
        (("trials", "split.csv"), "All trials", "Trials that reached each epoch"),
        (
            ("test_predictions.csv",),
            "The predictions are not in the run folder.",
            "Reliability diagram",
        ),
        ((STUDY,), "the run folder has no study that can be read", "Hyperparameter importance"),
        (("summary:data",), "not finished: the images are not decoded.", "images of 4 classes"),
        (
            ("summary:test", "summary:kfold", "summary:best"),
            "99.0% is the best validation accuracy so far",
            "final model",
        ),
        (
            ("summary:test", "summary:kfold", "summary:best", STUDY),
            "97.0% from a linear probe",
            "All trials",
        ),
        (("summary.json", STUDY), "No accuracy yet", "test accuracy"),
    ],
)
def test_any_part_may_be_missing(
    run: Path, gone: Sequence[str], there: str, not_there: str
) -> None:
    assert not_there in Page(run / "report.html").words
    for name in gone:
        remove(run, name)
    write_report(RunFolder.open(run))
    words = Page(run / "report.html").words
    assert there in words
    assert not_there not in words


@pytest.mark.usefixtures("without_figures")
def test_an_interrupted_search_has_no_final_model_yet(run: Path) -> None:
    for section in ("kfold", "test", "external"):
        remove(run, f"summary:{section}")
    remove(run, "folds/folds.csv")
    set_sections(run, search=INTERRUPTED)
    write_report(RunFolder.open(run))
    words = Page(run / "report.html").words
    assert (
        "This run is not finished: the search is not finished, the cross-validation is not"
        " finished, the test set is not evaluated. Resume it with" in words
    )
    assert "Trial 0, at epoch 6: validation accuracy 99.00%. It is not cross-val" in words
    assert "ensemble of its" not in words
    assert "Model vs. baseline" not in words
    assert "complete, best so far" in words


def test_a_run_that_was_killed_at_once_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "space.py").touch()
    RunFolder(folder).write_origin(parse_request(["--space", str(tmp_path / "space.py")]))
    (folder / STUDY).write_bytes(b"")
    write_report(RunFolder.open(folder))
    page = Page(folder / "report.html")
    assert "No accuracy yet" in page.words
    assert f"python -m search.run --resume {folder}" in page.words
    assert (folder / STUDY).read_bytes() == b""


@pytest.mark.usefixtures("without_figures")
def test_a_torn_line_of_a_curve_is_ignored(run: Path) -> None:
    with (run / "trials" / "0" / "progress.csv").open("a") as file:
        file.write("7,0.1,0.")
    write_report(RunFolder.open(run))
    assert "0 complete, final model 99.00% 6 6 3.0" in Page(run / "report.html").words


@pytest.mark.usefixtures("without_figures")
def test_images_without_labels_are_listed(run: Path) -> None:
    unlabelled = ExternalScores(n=2, n_labelled=0, n_near_duplicates=0, n_ood=None, scores=None)
    set_sections(run, external=unlabelled)
    rows = [("a.jpg", None, (0.9, 0.1, 0, 0)), ("b.jpg", None, (0.5, 0.4, 0.1, 0))]
    write_predictions(run / "external_predictions.csv", rows)
    write_report(RunFolder.open(run))
    page = Page(run / "report.html")
    assert "2 images from another source, without labels." in page.words
    assert "b.jpg low confidence cat 50.0%" in page.words
    assert "a.jpg confident cat 90.0%" in page.words


@pytest.mark.usefixtures("without_figures")
def test_ood_images_are_counted_and_marked(run: Path) -> None:
    write_predictions(run / "external_predictions.csv", EXTERNAL, [1.5, 0.5, 0.5, 0.5])
    external = RunFolder.open(run).summary.external
    assert external is not None
    assert "out of distribution" not in written(run).words
    set_sections(run, external=replace(external, n_ood=1))
    words = written(run).words
    assert "1 of 4 is out of distribution (OOD)" in words
    assert words.count(", OOD") == 2  # its card, and its row


@pytest.mark.slow
def test_many_classes_and_trials_stay_small(tmp_path: Path) -> None:
    n = 101
    classes = [f"class number {i}" for i in range(n)]
    folder = make_run(tmp_path / "run", n_trials=300)
    confusion = np.diag(np.full(n, 9)) + np.roll(np.eye(n, dtype=int), 1, axis=1)
    set_sections(folder, test=scores(confusion.tolist(), classes))
    write_report(RunFolder.open(folder))
    assert (folder / "report.html").stat().st_size < 2_000_000


def test_the_command_line_writes_the_report_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "report.html").unlink()
    assert main([str(finished)]) == 0
    assert (finished / "report.html").is_file()
    assert capsys.readouterr().out == f"{finished / 'report.html'}\n"


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "search.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path} is no run: a run's folder holds environment.json and space.py\n"
    )


def written(folder: Path) -> Page:
    """Write a run's report and read it."""
    write_report(RunFolder.open(folder))
    return Page(folder / "report.html")


def test_sections_without_results_are_not_shown(finished: Path) -> None:
    page = Page(finished / "report.html")
    for words in ("Possible label errors", "Ablation", "Calibration"):
        assert words not in page.words


@pytest.mark.usefixtures("without_figures")
def test_the_model_is_compared_with_the_baseline(run: Path) -> None:
    labels = np.zeros(40, np.int64)
    model, baseline = np.repeat([0, 1], [38, 2]), np.repeat([0, 1], [30, 10])
    set_sections(run, comparison=compare_models(labels, model, baseline, 0.3))
    words = written(run).words
    assert "Computed, from out-of-fold predictions: 40 test images show a true difference" in words
    set_sections(run, evaluation=Evaluations(times=1, models=["a"]))
    assert "Known before the test set was evaluated, from out-of-fold" in written(run).words
    assert "has a test accuracy of 75.0%, the model 95.0%." in words
    assert "Only the model is correct on 8 images, only the baseline on 0." in words
    assert "Better beyond chance: the search gained something." in words
    set_sections(run, comparison=compare_models(labels, model, model))
    words = written(run).words
    assert "No difference beyond chance" in words
    assert "from out-of-fold predictions" not in words


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("restriction", "text"),
    [
        ("", ""),
        ("non-commercial", "The model is not for commercial use."),
        ("own licence", "Read this licence before you use the model: it is of its own kind."),
    ],
)
def test_the_licence_of_the_weights_is_shown(run: Path, restriction: str, text: str) -> None:
    weights = BackboneWeights(source="net.pth", licence="some-licence", restriction=restriction)
    set_sections(run, backbone_weights={"tinynet": weights, "other": replace(weights, licence="x")})
    words = written(run).words
    assert f"Pretrained weights of tinynet: net.pth, licence some-licence. {text}" in words
    assert ("commercial use" in words) == (restriction == "non-commercial")


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("enabled", [True, False])
def test_an_ensemble_has_the_licences_of_all_its_backbones(run: Path, enabled: bool) -> None:
    free = BackboneWeights(source="net.pth", licence="apache-2.0", restriction="")
    bound = BackboneWeights(source="cnn.pth", licence="cc-by-nc-4.0", restriction="non-commercial")
    parts = [
        EnsemblePart(name=name, weight=0.5, members=1, backbone=backbone)
        for name, backbone in (("trial 0", "tinynet"), ("linear probe of cnn", "cnn"))
    ]
    scores = dict.fromkeys(
        (
            *("log_loss", "log_loss_baseline", "log_loss_gain_se"),
            *("score", "score_baseline", "score_gain_se"),
        ),
        0.1,
    )
    ensemble = WeightedEnsembleScores(enabled=enabled, parts=parts, **scores)
    weights = {"tinynet": free, "cnn": bound}
    set_sections(run, backbone_weights=weights, weighted_ensemble=ensemble)
    words = written(run).words
    assert "Pretrained weights of tinynet: net.pth, licence apache-2.0." in words
    restricted = "cnn: cnn.pth, licence cc-by-nc-4.0. The model is not for commercial use."
    assert (restricted in words) == enabled
    assert (", tinynet + cnn, " in words) == enabled


@pytest.mark.usefixtures("without_figures")
def test_the_baseline_may_be_the_best(run: Path) -> None:
    assert "No gain: the baseline, trial 0, is the best finalist." in written(run).words


@pytest.mark.usefixtures("without_figures")
def test_calibration_is_shown_before_and_after(run: Path) -> None:
    before = CalibrationScores(ece=0.05, log_loss=0.3, bins=[])
    after = CalibrationScores(ece=0.0123, log_loss=0.2, bins=[])
    change = CalibrationChange(n=40, before=before, after=after)
    calibration = Calibration(
        temperature=1.7,
        applied=True,
        fitted_temperature=1.7,
        log_loss_gain_se=0.01,
        out_of_fold=change,
        test=change,
    )
    set_sections(run, calibration=calibration)
    words = written(run).words
    assert "Temperature 1.70: on the test set the log loss falls from 0.300 to 0.200, the" in words
    assert "test set 40 5.00% 1.23% 0.3000 0.2000" in words
    unscaled = replace(calibration, temperature=1.0, applied=False)
    set_sections(run, calibration=replace(unscaled, test=replace(change, after=before)))
    words = written(run).words
    assert (
        "No temperature scaling: cross-fitted, it does not clearly help: the out-of-fold" in words
    )
    assert "test set 40 5.00% 5.00% 0.3000 0.3000" in words


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(("enabled", "text"), [(True, "two views;"), (False, "one view:")])
def test_the_centre_crop_is_shown_with_its_log_loss(run: Path, enabled: bool, text: str) -> None:
    kfold = RunFolder.open(run).summary.kfold
    assert kfold is not None
    center_crop = CenterCropScores(
        enabled=enabled,
        log_loss=0.04,
        log_loss_baseline=0.05,
        log_loss_gain_se=0.004,
        accuracy_mean=0.95,
        accuracy_mean_baseline=0.94,
    )
    set_sections(run, kfold=replace(kfold, center_crop=center_crop))
    words = written(run).words
    assert f"Centre crop: {text}" in words
    assert ("(94.00% with one view, as in the search)" in words) == enabled


@pytest.mark.usefixtures("without_figures")
def test_possible_label_errors_are_listed(run: Path) -> None:
    issues = [LabelIssue("train/<i>.jpg", "cat", "<b>&", 0.03)]
    write_issues(run / "folds" / "label_issues.csv", issues)
    set_sections(run, label_issues=count_issues(issues, 160))
    words = written(run).words
    assert "1 image, 0.6% of all outside the test set" in words
    assert "labelled cat, predicted <b>&: 1" in words
    assert "train/<i>.jpg cat <b>& 0.030" in words
    write_issues(run / "folds" / "label_issues.csv", [])
    set_sections(run, label_issues=count_issues([], 160))
    assert "None: no out-of-fold prediction contradicts a label" in written(run).words


def ablation_step(name: str) -> AblationScores:
    return AblationScores(
        name=name,
        config={},
        epochs=2,
        train_accuracy=0.95,
        val_accuracy=0.78,
        best_val_accuracy=0.8,
        best_epoch=2,
        seconds=31.0,
    )


def test_the_ablation_is_a_table_and_curves(run: Path) -> None:
    names = ("plain CNN", "+ dropout")
    set_sections(run, ablation=[ablation_step(name) for name in names])
    lines = [
        (step, name, epoch, 1 / epoch, 0.4 * epoch, 1.0, 0.3 * epoch, 1.0)
        for step, name in enumerate(names, start=1)
        for epoch in (1, 2)
    ]
    write_csv(run / "ablation.csv", ABLATION_COLUMNS, lines)
    page = written(run)
    assert "plain CNN 95.0% 78.0% 80.0% 2 31" in page.words
    (figure,) = [f for f in page.find("div", role="img") if "At the end" in str(f["aria-label"])]
    assert "plain CNN 80.0% and 60.0%" in str(figure["aria-label"])
    assert (run / "figures" / "ablation.png").is_file()


@pytest.mark.parametrize("title", figures.CHARTS)
def test_a_figure_that_cannot_be_drawn_is_a_gap(
    run: Path, title: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(record: Record) -> None:
        raise ValueError("max() arg is an empty sequence")

    others = dict.fromkeys(figures.CHARTS, lambda record: ())
    monkeypatch.setattr(figures, "CHARTS", {**others, title: fail})
    gap = f"the figure of the {title} is missing: max() arg is an empty sequence"
    with start_run_log(run / "run.log"):
        assert write_report(RunFolder.open(run)) == (f"{gap}; run.log has the details",)
    assert "ValueError: max() arg is an empty sequence" in (run / "run.log").read_text()
    assert main([f"{run}"]) == 0
    assert capsys.readouterr().err == f"warning: {gap}\n"
    assert gap[1:] in Page(run / "report.html").words


SECTIONS = sorted((Path(figures.__file__).parent / "templates" / "sections").iterdir())


@pytest.mark.parametrize("section", [path.stem for path in SECTIONS])
def test_a_section_that_cannot_be_drawn_is_a_gap(
    run: Path, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.reporting.page.draw_figures", lambda record, folder: ({}, []))
    set_sections(run, ablation=[ablation_step("step")])
    templates = tmp_path / "templates"
    shutil.copytree(SECTIONS[0].parents[1], templates)
    monkeypatch.setattr("search.reporting.page._TEMPLATES", templates)
    whole = write_report(RunFolder.open(run))
    (templates / "sections" / f"{section}.html").write_text("<p>{{ summary.nothing }}</p>")
    problems = write_report(RunFolder.open(run))
    assert whole == ()
    assert len(problems) == 1
    assert "is missing: " in problems[0]
    page = Page(run / "report.html")
    assert problems[0] in page.words
    assert "Reproduce" in page.words


def test_a_page_that_cannot_be_drawn_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.reporting.page.draw_figures", lambda record, folder: ({}, []))
    monkeypatch.setattr("search.reporting.page.best_first", lambda trials: trials[0].nothing)
    (problem,) = write_report(RunFolder.open(run))
    assert problem in Page(run / "report.html").words
