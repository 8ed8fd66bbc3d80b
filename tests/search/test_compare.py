from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from search.compare import main
from search.evaluation.mcnemar import difference_interval, p_value
from search.runs.summary import Evaluations, ModelCost
from search.runs.tables import SPLIT_COLUMNS, write_csv
from tests.fixtures.handmade_run import CLASSES, make_run, scores, set_sections, write_predictions

N = 40


def make_tested_run(
    path: Path,
    wrong: set[int],
    names: str = "test/{}.jpg",
    labels: dict[int, int] | None = None,
    images: range = range(N),
) -> Path:
    """Make a run whose test images are numbers: the digest is the number, the label its class."""
    make_run(path, n_trials=2)
    confusion = [[0] * 4 for _ in CLASSES]
    rows, split = [], []
    for i in images:
        label = (labels or {}).get(i, i % 4)
        predicted = (label + 1) % 4 if i in wrong else label
        confusion[label][predicted] += 1
        probabilities = [0.7 if c == predicted else 0.1 for c in range(4)]
        rows.append((names.format(i), CLASSES[label], probabilities))
        split.append((names.format(i), CLASSES[label], "test", i, f"{i:016x}"))
    split.append(("train.jpg", CLASSES[0], "train", 999, "ffff"))
    write_predictions(path / "test_predictions.csv", rows)
    write_csv(path / "split.csv", SPLIT_COLUMNS, split)
    set_sections(path, test=scores(confusion, CLASSES))
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return make_tested_run(tmp_path / "a run", wrong={0, 1})


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A run on the same images by other names, in another order."""
    wrong = {1, *range(10, 17)}
    return make_tested_run(tmp_path / "b", wrong, "other/{:>05}.png", images=range(N)[::-1])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder, where the page is written."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def without_page(monkeypatch):
    """Write no page, which takes seconds."""
    monkeypatch.setattr("search.compare._write_page", lambda *arguments: None)


@pytest.mark.usefixtures("without_page")
def test_a_comparison(first, second, capsys):
    assert main([str(first), str(second)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[1].startswith(f"A  {first}  95.0%, ")
    assert lines[1].rstrip().endswith("7 images")
    assert lines[2].startswith(f"B  {second}      80.0%, ")
    assert lines[2].rstrip().endswith("1 image")
    low, high = difference_interval(7, 1, N)
    assert lines[3] == (
        f"A - B on the same 40 test images: +15.0 points, 95% CI {100 * low:+.1f} to"
        f" {100 * high:+.1f}, p = {p_value(7, 1):.2g}: A is better beyond chance"
    )
    assert main([str(second), str(first)]) == 0
    assert "A - B on the same 40 test images: -15.0 points" in capsys.readouterr().out


def test_json(first, second, capsys):
    assert main([str(first), str(second), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in content["runs"]] == [str(first), str(second)]
    assert [run["n_only_correct"] for run in content["runs"]] == [7, 1]
    assert [run["accuracy"] for run in content["runs"]] == [0.95, 0.8]
    assert content["runs"][0]["log_loss"] == 0.1
    assert content["difference"] == pytest.approx(0.15)
    assert content["p_value"] == pytest.approx(p_value(7, 1))
    assert content["difference_ci95"] == pytest.approx(difference_interval(7, 1, N))
    assert (content["n"], content["verdict"]) == (40, "better beyond chance")


def test_the_images_that_one_run_alone_predicts_correctly(first, second, capsys):
    assert main([str(first), str(second), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    by_run = [[row for row in rows if row["run"] == str(run)] for run in (first, second)]
    assert [int(row["image"][5:-4]) for row in by_run[0]] == [0, *range(10, 17)]
    assert [int(row["image"][6:-4]) for row in by_run[1]] == [0, *range(10, 17)]
    assert [row["is_correct"] for row in by_run[0]] == ["0", *"1111111"]
    assert [row["is_correct"] for row in by_run[1]] == ["1", *"0000000"]
    for row in rows:
        assert (row["label"] == row["prediction_1"]) == (row["is_correct"] == "1")
    assert list(rows[0])[:3] == ["image", "label", "prediction_1"]
    assert list(rows[0])[-4:] == ["ood_score", "is_ood", "run", "is_correct"]


def test_a_path_is_no_formula_to_a_spreadsheet(first, second, capsys, monkeypatch):
    first.rename(first.parent / "=1+1")
    monkeypatch.chdir(first.parent)
    assert main(["=1+1", str(second), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["run"] for row in rows} == {"'=1+1", str(second)}


@pytest.mark.usefixtures("without_page")
def test_a_test_set_that_was_evaluated_more_than_once_is_said(first, second, capsys):
    set_sections(second, evaluation=Evaluations(times=3, models=["x", "y"]))
    assert main([str(first), str(second)]) == 0
    assert f"note: {second}: the test set was evaluated 3 times, by 2 models: " in (
        capsys.readouterr().out
    )


@pytest.mark.usefixtures("without_page")
def test_equal_runs(first, capsys):
    assert main([str(first), str(first)]) == 0
    assert "+0.0 points" in (out := capsys.readouterr().out)
    assert out.endswith("p = 1: both predict the same images correctly\ncomparison.html\n")


def test_other_images_are_refused(first, tmp_path, capsys):
    other = make_tested_run(tmp_path / "c", set(), images=range(3, 45))
    assert main([str(first), str(other)]) == 2
    assert capsys.readouterr().err == (
        f"error: {first} and {other} must have the same test images to be compared, but there are"
        f" 3 of 40 in {first} alone (test/0.jpg, test/1.jpg and 1 more); 5 of 42 in {other} alone"
        " (test/40.jpg, test/41.jpg and 3 more). Runs on the same images with the same --seed and"
        " --limit have the same test set, and so have all runs on a data set that brings one\n"
    )


def test_other_labels_are_refused(first, tmp_path, capsys):
    other = make_tested_run(tmp_path / "c", set(), labels={5: 3, 6: 3})
    assert main([str(first), str(other)]) == 2
    assert (
        f"there are 2 images with another label, such as test/5.jpg: '<b>&' in {first}, '日本' in"
        f" {other}." in capsys.readouterr().err
    )


def test_a_run_that_is_not_finished(first, tmp_path, capsys):
    set_sections(first, test=None)
    assert main([str(first), str(first)]) == 2
    assert capsys.readouterr().err == (
        f"error: {first} must be a finished run, but its test set is not evaluated: python -m"
        f" search.run --resume '{first}'\n"
    )
    assert main([str(first), str(tmp_path / "none")]) == 2
    assert main([str(tmp_path), str(first)]) == 2
    assert "is no run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["split.csv", "test_predictions.csv"])
@pytest.mark.parametrize("content", ["", "image,label\n1,2\n", 'a,b\n"1,2\n', "a\n1\n"])
def test_a_damaged_table_is_named(first, second, name, content, capsys):
    (second / name).write_text(content)
    assert main([str(first), str(second)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {second} is damaged: ")
    assert name in err


@pytest.mark.parametrize("value", ["", "x", "nan", "1.5"])
def test_predictions_without_a_probability_are_damage(first, second, value, capsys):
    """Else the page, which shows them, would fail after the table is printed."""
    table = second / "test_predictions.csv"
    table.write_text(table.read_text().replace("0.700000", value))
    assert main([str(first), str(second)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {second} is damaged: test_predictions.csv ")


def words_of(path):
    return re.sub(
        r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", path.read_text(), flags=re.S)
    )


def test_the_page_shows_both_runs_side_by_side(first, second, capsys):
    environment = json.loads((second / "environment.json").read_text())
    environment["request"]["seed"] = 5
    environment["command"].append("half \ud800 of a character")
    (second / "environment.json").write_text(json.dumps(environment))
    cost = ModelCost(
        parameters=1234567, megabytes=5.04, latency_ms=12.34, latency_ms_batch_32=3.2, device="cpu"
    )
    set_sections(first, model_cost=cost)
    assert main([str(first), str(second)]) == 0
    assert capsys.readouterr().out.endswith("\ncomparison.html\n")
    page = Path("comparison.html").read_text()
    words = words_of(Path("comparison.html"))
    low, high = difference_interval(7, 1, N)
    assert " A is better beyond chance A - B on the same 40 test images: +15.0 points" in words
    assert f"95% CI {100 * low:+.1f} to {100 * high:+.1f}" in words
    assert "Only A correct 7 images Only B correct 1 image" in words
    assert "test accuracy 95.0%, 83.5–98.6% 80.0%, 83.5–98.6%" in words
    assert "Settings that differ A: a run B: b seed 7 5 " in words
    assert "parameters 1,234,567 one image 12.3 ms, cpu" not in words
    assert "parameters 1,234,567 model.pt 5.0 MB one image 12.3 ms, cpu" in words
    assert "tinynet 97.00% yes 97.00% yes" in words
    assert "test/0.jpg cat &lt;b&gt;&amp; 70.0% cat 70.0% B" in words
    assert "half ? of a character" in words
    for name in ("Accuracy, 95% CI", "Confusion matrix, test set", "Reliability diagram"):
        assert page.count(f">{name}</text>") == 2, name
    assert not re.search(r"(src|href|url\()[\s=\"']*(https?:)?//", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_two_runs_that_are_alike_have_no_differing_settings(first, tmp_path):
    assert main([str(first), str(first), "--out", str(tmp_path / "a.html")]) == 0
    words = words_of(tmp_path / "a.html")
    assert "None: both runs have the same options, settings and versions." in words
    assert " Both predict the same images correctly A - B on" in words
    assert "Images that one run alone" not in words
    assert not Path("comparison.html").exists()


def test_no_page_is_written_beside_json_unless_it_is_asked_for(first, second, capsys, without_page):
    assert main([str(first), str(second), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert main([str(first), str(second), "--json", "--out", "a.html"]) == 0
    json.loads(capsys.readouterr().out)
    assert list(Path().iterdir()) == []


def test_a_figure_that_cannot_be_drawn_is_a_warning(first, second, capsys, monkeypatch):
    monkeypatch.setattr("search.reporting.comparison.page._CHARTS", {"<curves>": lambda _: 1 / 0})
    assert main([str(first), str(second)]) == 0
    assert (
        "warning: the figure of the <curves> of A is missing: division" in capsys.readouterr().err
    )
    assert "The figure of the &lt;curves&gt; of B is missing" in words_of(Path("comparison.html"))


def test_a_page_that_cannot_be_written_is_an_error(first, second, tmp_path, capsys):
    assert main([str(first), str(second), "--out", str(tmp_path / "no" / "a.html")]) == 2
    assert capsys.readouterr().err == (
        f"error: --out must lie in a folder that exists, but got {tmp_path / 'no' / 'a.html'}\n"
    )
    assert main([str(first), str(second), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: --out {tmp_path} cannot be written to: Is a directory; give another --out\n"
    )


def test_where_no_page_was_asked_for_a_folder_that_cannot_be_written_to_is_a_warning(
    first, second, capsys
):
    Path("comparison.html").mkdir()  # as root may write into any folder
    assert main([str(first), str(second)]) == 0
    out, err = capsys.readouterr()
    assert "A - B on the same 40 test images" in out
    assert err == (
        "warning: comparison.html cannot be written to: Is a directory; give --out for the page\n"
    )
