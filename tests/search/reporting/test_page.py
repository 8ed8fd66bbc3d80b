import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from search.evaluation.comparison import compare
from search.evaluation.label_issues import LabelIssue, summarise, write_issues
from search.report import main, write_report
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from search.tuning.study import STUDY_NAME as STUDY_NAME_OF_THE_SEARCH
from search.tuning.study import storage_url

CLASSES = ("cat", "<b>&", "$x_1$", "日本")
DISTRIBUTIONS = {
    "backbone": CategoricalDistribution(["tinynet", "cnn"]),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "freeze_depth": IntDistribution(0, 5),
}
EPOCHS = 6


class Page(HTMLParser):
    """What a report says: its words, its tags, its tables."""

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


def test_the_answer_comes_first_with_its_interval(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "95.0 % of held‑out images are classified right" in page.words
    assert "between 83.5 % and 98.6 %" in page.words
    assert "On images from elsewhere the model does worse: 50.0 % against 95.0 %" in page.words
    assert str(finished / "model.pt") in page.words
    assert f"python -m search.predict {finished} photo.jpg" in page.words


def test_every_trial_is_in_the_table(finished: Path) -> None:
    page = Page(finished / "report.html")
    rows = [row["data-state"] for row in page.find("tr") if "data-state" in row]
    assert len(rows) == 12
    assert rows.count("complete") == 6
    assert rows.count("stopped early") == 4
    assert rows.count("failed") == rows.count("unfinished") == 1
    assert len(page.find("tr", **{"class": "winner"})) == 1
    assert "1 of 12 trials failed; see below why." in page.words
    assert "1 trial began and did not finish." in page.words
    assert "1 × TrainingError: the loss is <nan>" in page.words


def test_the_best_epoch_of_a_trial_is_read_from_its_curve(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "0 complete, winner 99.00 % 6 6 3.0" in page.words


def test_the_winner_and_its_gap_are_shown(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "The search said 99.00 %, the folds say 95.00 % ± 1.00 %: a gap of +4.00" in page.words
    assert "That is large: the search has fitted its validation images." in page.words


def test_mistakes_come_most_confident_first(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert re.search(r"test/7\.jpg .* test/3\.jpg", page.words)
    assert "cat taken for <b>&: 2 of 10" in page.words


def test_images_are_shown_where_they_are_kept(run: Path) -> None:
    page = Page(run / "report.html")
    assert page.find("img") == []
    assert "This run keeps no images, so only their names are shown." in page.words
    gallery = Gallery(run)
    for name in ("test/3.jpg", "test/7.jpg", "test/0.jpg"):
        gallery.keep("data", [name], [np.zeros((32, 32, 3), np.uint8)], 32)
    gallery.keep_heat("data", "test/7.jpg", np.eye(4))
    gallery.keep("external", ["outside/1.jpg"], [np.zeros((32, 32, 3), np.uint8)], 32)
    note(run, samples={"data": {"images": 3, "attributed": 1, "problem": None}})
    write_report(RunFolder.open(run))
    page = Page(run / "report.html")
    assert [image["alt"] for image in page.find("img")] == [
        "test/7.jpg",
        "The same, glowing where the model found <b>&",
        "test/3.jpg",
        "test/0.jpg",
        "outside/1.jpg",
    ]
    assert all(str(p["src"]).startswith("data:image/jpeg;base64,") for p in page.find("img"))
    assert "the same one glows where the model found the class it said (Grad-CAM)" in page.words
    assert page.words.count("This run keeps no images") == 1  # of elsewhere


def test_why_nothing_glows_is_told(run: Path) -> None:
    note(run, samples={"data": {"images": 0, "attributed": 0, "problem": "out of <memory>"}})
    write_report(RunFolder.open(run))
    words = Page(run / "report.html").words
    assert "Where the model looked cannot be told: out of <memory>." in words
    assert "Grad-CAM" not in words


def test_guessing_is_told_beside_the_accuracy(finished: Path) -> None:
    assert "saying the commonest class 25.00 %" in Page(finished / "report.html").words


def test_doubt_about_images_from_elsewhere_is_told(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "outside/1.jpg cat wrong , in doubt <b>& 40.0 % , cat 35.0 %" in page.words
    assert "wrong , in doubt , it is cat <b>& 40.0 % cat 35.0 % $x_1$ 25.0 %" in page.words


def test_the_space_and_the_command_are_shown(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert "python -m search.run --name 'my run'" in page.words
    assert "SPACE = '<i>'" in page.words
    assert "seed 7" in page.words


def test_what_comes_from_names_is_escaped(finished: Path) -> None:
    page = Page(finished / "report.html")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"b", "i", "nan", "img"}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert "<b>&" in page.words
    assert "evil<script>alert(1)</script>.jpg" in page.words


def test_the_page_asks_the_network_for_nothing(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url\()[\s=\"']*(https?:)?//", text)
    assert "@import" not in text
    page = Page(finished / "report.html")
    assert page.find("link") == []
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert str(policy["content"]).startswith("default-src 'none'")


def test_figures_have_words_and_files(finished: Path) -> None:
    page = Page(finished / "report.html")
    images = page.find("div", **{"class": "chart", "role": "img"})
    names = {
        *("agreement", "history", "survival", "parallel_coordinates", "importances", "stages"),
        *("winner_loss", "winner_accuracy", "confusion_test", "confusion_external", "reliability"),
    }
    assert len(images) == len(names)
    assert all(image["aria-label"] for image in images)
    for suffix in ("png", "svg"):
        assert {path.stem for path in (finished / "figures").glob(f"*.{suffix}")} == names


def test_ids_are_unique_and_what_is_referred_to_is_there(finished: Path) -> None:
    page = Page(finished / "report.html")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("href", "xlink:href"):
            assert str(attributes.get(name) or f"#{ids[0]}")[1:] in ids
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids


def test_headings_leave_no_level_out(finished: Path) -> None:
    levels = [int(tag[1]) for tag, _ in Page(finished / "report.html").tags if tag in _HEADINGS]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


_HEADINGS = ("h1", "h2", "h3", "h4")


def test_the_same_run_gives_the_same_page(finished: Path) -> None:
    before = (finished / "report.html").read_bytes()
    write_report(RunFolder.open(finished))
    assert (finished / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("gone", "there", "not_there"),
    [
        (
            ("summary:test", "test_predictions.csv"),
            "95.0 % in cross-validation",
            "How good it is",
        ),
        (("summary:external",), "None were given.", "does worse"),
        (("summary:probe", "audit.csv"), "Every file could be read.", "ranked by a linear probe"),
        (("summary:stages", "model.pt"), "There is no model yet.", "Where the time went"),
        (("folds/folds.csv",), "the folds say 95.00 %", "How sure is the accuracy?"),
        (("trials", "split.csv"), "All trials", "Trials that reached each epoch"),
        (
            ("test_predictions.csv",),
            "The predictions are not in the run folder.",
            "Does it know when it is sure?",
        ),
        (("study.db",), "the run folder has no study that can be read", "What mattered"),
        (("summary:data",), "not finished: the images are not packed.", "images of 4 classes"),
        (
            ("summary:test", "summary:kfold", "summary:best"),
            "99.0 % is the best trial so far",
            "The winner",
        ),
        (
            ("summary:test", "summary:kfold", "summary:best", "study.db"),
            "97.0 % from a linear probe",
            "All trials",
        ),
        (("summary.json", "study.db"), "Nothing is measured yet", "classified right"),
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


def test_a_search_that_was_interrupted_has_no_winner_yet(run: Path) -> None:
    for section in ("kfold", "test", "external"):
        remove(run, f"summary:{section}")
    remove(run, "folds/folds.csv")
    note(run, search={"trials": 11, "unfinished": 1})
    write_report(RunFolder.open(run))
    words = Page(run / "report.html").words
    assert (
        "This run is not finished: the search is not finished, the folds are not trained" in words
    )
    assert "Trial 0, at epoch 6: 99.00 % of the validation images. No fold has" in words
    assert "ensemble of its folds" not in words
    assert "What the search gained" not in words
    assert "complete, best so far" in words


def test_a_run_that_was_killed_at_once_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "environment.json").write_text('{"request": {}}')
    (folder / "space.py").write_text("")
    (folder / "study.db").write_bytes(b"")
    write_report(RunFolder.open(folder))
    page = Page(folder / "report.html")
    assert "Nothing is measured yet" in page.words
    assert f"python -m search.run --resume {folder}" in page.words
    assert (folder / "study.db").read_bytes() == b""


def test_a_torn_line_of_a_curve_is_left_out(run: Path) -> None:
    with (run / "trials" / "0" / "progress.csv").open("a") as file:
        file.write("7,0.1,0.")
    write_report(RunFolder.open(run))
    assert "0 complete, winner 99.00 % 6 6 3.0" in Page(run / "report.html").words


def test_images_of_unknown_class_are_listed(run: Path) -> None:
    note(run, external={"n": 2, "accuracy": None, "top3_accuracy": None})
    rows = [("a.jpg", "", (0.9, 0.1, 0, 0)), ("b.jpg", "", (0.5, 0.4, 0.1, 0))]
    write_predictions(run / "external_predictions.csv", rows)
    write_report(RunFolder.open(run))
    page = Page(run / "report.html")
    assert "2 images from another source, whose classes are not known." in page.words
    assert "b.jpg in doubt cat 50.0 %" in page.words
    assert "a.jpg sure cat 90.0 %" in page.words


def test_images_unlike_the_training_images_are_marked(run: Path) -> None:
    path = run / "external_predictions.csv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    marked = [f"{header},doubt,unlike", f"{lines[0]},1.5,1", *(f"{x},0.5,0" for x in lines[1:])]
    path.write_text("\n".join(marked) + "\n", encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text())
    note(run, external=summary["external"] | {"n_ood": 1})
    write_report(RunFolder.open(run))
    words = Page(run / "report.html").words
    assert "1 of 4 are unlike the training images" in words
    assert words.count(", unlike the training images") == 2  # its card, and its row


@pytest.mark.slow
def test_many_classes_and_trials_stay_small(tmp_path: Path) -> None:
    n = 101
    classes = [f"class number {i}" for i in range(n)]
    folder = make_run(tmp_path / "run", n_trials=300)
    confusion = np.diag(np.full(n, 9)) + np.roll(np.eye(n, dtype=int), 1, axis=1)
    note(folder, test=scores(confusion.tolist(), classes))
    write_report(RunFolder.open(folder))
    assert (folder / "report.html").stat().st_size < 2_000_000


def test_the_command_line_writes_the_report_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "report.html").unlink()
    assert main([str(finished)]) == 0
    assert (finished / "report.html").is_file()
    assert capsys.readouterr().out == f"{finished / 'report.html'}\n"


def test_a_folder_that_is_no_run_is_told_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "search.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path} is no run: a run's folder holds environment.json and space.py\n"
    )


def test_the_study_has_the_name_that_the_search_gives_it() -> None:
    from search.reporting.run_record import STUDY_NAME

    assert STUDY_NAME == STUDY_NAME_OF_THE_SEARCH


# A run's folder, written by hand.


def make_run(folder: Path, n_trials: int = 12) -> Path:
    """Write the folder of a run: its 40 held-out images have two mistakes."""
    folder.mkdir(parents=True)
    (folder / "space.py").write_text("SPACE = '<i>'\n")
    (folder / "model.pt").write_bytes(bytes(1_500_000))
    environment = {
        "command": ["python", "-m", "search.run", "--name", "my run"],
        "request": {"seed": 7},
        "python": "3.11.7",
        "packages": {"torch": "2.14.1"},
        "machine": {"system": "Linux", "cores": 2, "gpus": []},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    write_trials(folder, n_trials)
    write_folds(folder)
    confusion = [[8, 2, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [0, 0, 0, 10]]
    note(
        folder,
        data={"classes": CLASSES, "n": 200, "train": 128, "val": 32, "test": 40, "left_out": 1},
        stages={"images": 0.5, "probe": 13.0, "search": 3700.0, "report": 0.0},
        probe={"tinynet": {"accuracy": 0.97, "seconds": 3.2}},
        search={"trials": 12},
        best={
            "trial": 0,
            "config": {"backbone": "tinynet", "lr": 0.001, "class_weights": False},
            "val_accuracy": 0.99,
            "epoch": 6,
        },
        kfold={
            "folds": 3,
            "accuracy_mean": 0.95,
            "accuracy_std": 0.01,
            "gap": 0.04,
            "finalists": [
                {
                    "trial": 0,
                    "search_accuracy": 0.99,
                    "accuracy_mean": 0.95,
                    "accuracy_std": 0.01,
                }
            ],
        },
        test=scores(confusion, CLASSES),
        external=scores([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], CLASSES)
        | {"accuracy_ci95": [0.15, 0.8]},
    )
    right = [(f"test/{i}.jpg", CLASSES[i % 4], _sure(i % 4)) for i in range(40)]
    right[3] = ("test/3.jpg", "cat", (0.3, 0.6, 0.1, 0.0))
    right[7] = ("test/7.jpg", "cat", (0.1, 0.9, 0.0, 0.0))
    write_predictions(folder / "test_predictions.csv", right)
    outside = [
        ("outside/0.jpg", "cat", (0.9, 0.1, 0, 0)),
        ("outside/1.jpg", "cat", (0.35, 0.4, 0.25, 0)),
        ("outside/2.jpg", "<b>&", (0.1, 0.9, 0, 0)),
        ("outside/3.jpg", "<b>&", (0.8, 0.2, 0, 0)),
    ]
    write_predictions(folder / "external_predictions.csv", outside)
    write_csv(
        folder / "audit.csv",
        ("name", "problem", "detail"),
        [("evil<script>alert(1)</script>.jpg", "unreadable", "it has 0 bytes")],
    )
    split = [(f"{i}.jpg", CLASSES[i % 4], ("train", "val", "test")[i % 3]) for i in range(200)]
    write_csv(folder / "split.csv", ("name", "label", "split"), split)
    return folder


def _sure(index: int) -> tuple[float, ...]:
    return tuple(0.97 if i == index else 0.01 for i in range(4))


def write_trials(folder: Path, n_trials: int) -> None:
    """Write a study of which half the trials are complete, and the curves."""
    study = optuna.create_study(
        storage=storage_url(folder), study_name=STUDY_NAME_OF_THE_SEARCH, direction="maximize"
    )
    generator = np.random.default_rng(0)
    trials = []
    for number in range(n_trials):
        state = TrialState.COMPLETE if number < n_trials // 2 else TrialState.PRUNED
        attributes: dict[str, Any] = {"seconds": 3.0, "best_epoch": 1}
        n_epochs = EPOCHS if state == TrialState.COMPLETE else 2
        if number == n_trials - 2:
            state, n_epochs = TrialState.FAIL, 0
            attributes = {"reason": "TrainingError: the loss is <nan>"}
        if number == n_trials - 1:
            state, n_epochs = TrialState.RUNNING, 1
        best = 0.99 - 0.3 * number / n_trials
        curve = [(e, 1 / e, 0.9, 2 / e, best * e / EPOCHS) for e in range(1, n_epochs + 1)]
        write_csv(
            folder / "trials" / str(number) / "progress.csv",
            ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
            curve,
        )
        params = {
            "backbone": ["tinynet", "cnn"][number % 2],
            "lr": float(10 ** generator.uniform(-4, -1)),
            "freeze_depth": int(generator.integers(0, 6)),
        }
        value = best if state == TrialState.COMPLETE else None
        trials.append(
            create_trial(
                state=state,
                params=params,
                distributions=DISTRIBUTIONS,
                value=value,
                user_attrs=attributes,
            )
        )
    study.add_trials(trials)


def write_folds(folder: Path) -> None:
    rows = [(0, 1, 0.94, 53, 1.0), (0, 2, 0.95, 53, 1.0), (0, 3, 0.96, 54, 1.0)]
    write_csv(folder / "folds" / "folds.csv", ("trial", "fold", "accuracy", "n", "seconds"), rows)


def scores(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, Any]:
    """The part of a summary that `search.pipeline.evaluate.score` makes."""
    counts = np.asarray(confusion)
    accuracy = float(np.trace(counts) / counts.sum())
    return {
        "n": int(counts.sum()),
        "accuracy": accuracy,
        "accuracy_ci95": [0.835, 0.986],
        "macro_precision": accuracy,
        "macro_recall": accuracy,
        "macro_f1": accuracy,
        "log_loss": 0.1,
        "top3_accuracy": 1.0,
        "per_class": [
            {
                "class": name,
                "precision": 0.9,
                "recall": 0.9,
                "recall_ci95": [0.8, 0.95],
                "f1": 0.9,
                "n": int(row.sum()),
            }
            for name, row in zip(classes, counts, strict=True)
        ],
        "confusion": counts.tolist(),
    }


def write_predictions(path: Path, rows: Sequence[tuple[str, str, Sequence[float]]]) -> None:
    """Write predictions as `search.pipeline.evaluate.write_predictions` does."""
    places = ("first", "second", "third")
    header = ["name", "label", "correct"]
    header += [name for place in places for name in (place, f"{place}_probability")]
    lines = []
    for name, label, probabilities in rows:
        order = sorted(range(len(CLASSES)), key=lambda i, p=probabilities: -p[i])[:3]
        named = [cell for i in order for cell in (CLASSES[i], f"{probabilities[i]:.6f}")]
        correct = int(CLASSES[order[0]] == label) if label else ""
        lines.append([name, label, correct, *named, *probabilities])
    write_csv(path, [*header, *(f"p:{name}" for name in CLASSES)], lines)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def note(folder: Path, **sections: Any) -> None:
    """Put sections into a run's summary."""
    path = folder / "summary.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | sections))


def written(folder: Path) -> Page:
    """Write a run's report and read it."""
    write_report(RunFolder.open(folder))
    return Page(folder / "report.html")


def remove(folder: Path, name: str) -> None:
    """Remove a file or folder of a run, or "summary:<section>"."""
    if name.startswith("summary:"):
        summary = json.loads((folder / "summary.json").read_text())
        del summary[name.removeprefix("summary:")]
        (folder / "summary.json").write_text(json.dumps(summary))
    elif (folder / name).is_dir():
        (folder / name).rename(folder / f"{name}.gone")
    else:
        (folder / name).unlink()


# --- what the numbers are worth ------------------------------------------------------------------


def test_what_is_not_known_is_not_shown(finished: Path) -> None:
    page = Page(finished / "report.html")
    for words in ("Labels that look wrong", "The ladder", "can be believed"):
        assert words not in page.words


def test_what_the_search_gained_is_told(run: Path) -> None:
    labels = np.zeros(40, np.int64)
    model, baseline = np.repeat([0, 1], [38, 2]), np.repeat([0, 1], [30, 10])
    note(run, comparison=compare(labels, model, baseline).as_json())
    words = written(run).words
    assert "has 75.0 % of the held-out images right, the model 95.0 %." in words
    assert "Only the model is right about 8, only the first trial about 0." in words
    assert "That is beyond chance: the search gained something." in words
    note(run, comparison=compare(labels, model, model).as_json())
    assert "That is no difference beyond chance" in written(run).words


def test_the_first_trial_may_have_won(run: Path) -> None:
    assert "Nothing over its first trial" in written(run).words


def test_calibration_is_told_before_and_after(run: Path) -> None:
    judged = {"n": 40, "before": {"ece": 0.05, "log_loss": 0.3}}
    judged["after"] = {"ece": 0.0123, "log_loss": 0.2}
    note(run, calibration={"temperature": 1.7, "out_of_fold": judged, "test": judged})
    words = written(run).words
    assert "divided by a temperature of 1.70" in words
    assert "held-out images 40 5.00 % 1.23 % 0.3000 0.2000" in words


def test_labels_that_look_wrong_are_listed(run: Path) -> None:
    issues = [LabelIssue("train/<i>.jpg", "cat", "<b>&", 0.97)]
    write_issues(run / "folds" / "label_issues.csv", issues)
    note(run, label_issues=summarise(issues, 160))
    words = written(run).words
    assert "1 label, 0.6 % of the images" in words
    assert "labelled cat, looks like <b>&: 1" in words
    assert "train/<i>.jpg cat <b>& 97.0 %" in words
    write_issues(run / "folds" / "label_issues.csv", [])
    note(run, label_issues=summarise([], 160))
    assert "No label looks wrong to the models that did not see it." in written(run).words


def test_the_ladder_is_a_table_and_curves(run: Path) -> None:
    rung = {"train_accuracy": 0.95, "val_accuracy": 0.78, "best_val_accuracy": 0.8}
    rung |= {"best_epoch": 2, "seconds": 31.0}
    names = ("plain CNN", "+ dropout")
    note(run, ablation=[{"name": name, **rung} for name in names])
    header = ("rung", "name", "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    lines = [
        (place, name, epoch, 1 / epoch, 0.4 * epoch, 1.0, 0.3 * epoch)
        for place, name in enumerate(names, start=1)
        for epoch in (1, 2)
    ]
    write_csv(run / "ladder.csv", header, lines)
    page = written(run)
    assert "plain CNN 95.0 % 78.0 % 80.0 % 2 31" in page.words
    (figure,) = [f for f in page.find("div", role="img") if "At the end" in str(f["aria-label"])]
    assert "plain CNN 80.0\u00a0% and 60.0\u00a0%" in str(figure["aria-label"])
    assert (run / "figures" / "ladder.png").is_file()


def test_how_many_images_are_unlike_the_training_ones(run: Path) -> None:
    outside = json.loads((run / "summary.json").read_text())["external"]
    assert "not like the training images" not in written(run).words
    note(run, external=outside | {"n_ood": 1})
    assert "1 image of these is not like the training images" in written(run).words
