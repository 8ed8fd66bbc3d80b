"""Every file that the report reads, damaged in every way: it is named, and the rest is shown."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution

from search import report
from search.reporting.run_record import read_record
from search.runs.run_folder import RunFolder
from search.runs.summary import RunSummary
from search.runs.tables import ABLATION_COLUMNS, LABEL_ISSUE_COLUMNS, write_csv
from search.runs.validation import FolderError
from search.tuning.study import check_readable, load_study, open_storage, open_study
from spaces.errors import SearchError
from tests.fixtures.handmade_run import make_run

TABLES = (
    *("split.csv", "audit.csv", "ablation.csv", "test_predictions.csv", "external_predictions.csv"),
    *("folds/folds.csv", "folds/label_issues.csv", "trials/0/progress.csv"),
)
BEST = {"epoch": 1, "val_score": 0.9, "val_accuracy": 0.9, "val_loss": 0.3}
DAMAGES = {
    "no column": b"a,b\n1,2\n",
    "a line too long": b"a,b\n1,2,3\n",
    "an open quote": b'a,"b\n1,2\n',
    "binary": b"\x00\xff\xfe\n" * 9,
    "JSON": b"[1, 2]\n{}\n",
    "half": None,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("results") / "run", n_trials=4)
    issue = ("test/1.jpg", "cat", "<b>&", 0.1)
    write_csv(run / "folds" / "label_issues.csv", LABEL_ISSUE_COLUMNS, [issue])
    write_csv(run / "ablation.csv", ABLATION_COLUMNS, [(1, "step", 1, 0.1, 0.2, 0.3, 0.4, 5)])
    (run / "audit.csv").write_text(
        "image,issue,detail,duplicate_of,similarity\na.jpg,near-duplicate,,b.jpg,0.9\n"
    )
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def damage(path: Path, content: bytes | None) -> None:
    """Overwrite a file; None cuts its lines in half, so that cells are lost."""
    if content is None:
        lines = path.read_bytes().splitlines()
        content = b"\n".join(line[: len(line) // 2] for line in lines) + b"\n"
    path.write_bytes(content)


def test_a_whole_run_has_no_problems(run):
    record = read_record(RunFolder.open(run))
    assert record.problems == ()
    assert record.label_issues
    assert record.ablation
    assert record.audit


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_named_and_missing(run, name, content):
    damage(run / name, content)
    (problem,) = read_record(RunFolder.open(run)).problems
    assert problem.startswith(f"{run / name} is damaged: ")
    assert problem.endswith("; put a copy of it back; this report lacks what it holds")


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "1.5", "x", ""])
@pytest.mark.parametrize("name", ["test_predictions.csv", "folds/folds.csv"])
def test_a_fraction_outside_of_0_and_1_is_damage(run, name, value):
    table = run / name
    before = "0.970000" if name.startswith("test") else "0.95"
    table.write_text(table.read_text().replace(f",{before},", f",{value},", 1))
    problems = read_record(RunFolder.open(run)).problems
    assert problems
    assert problems[0].startswith(f"{table} is damaged: line ")


@pytest.mark.parametrize("content", [b"", b"{", b"\n\n", b"[]\n[]\n", b'{"op_code": "x"}\n{}\n'])
def test_a_damaged_study_is_named(run, content):
    (run / "study.journal").write_bytes(content)
    record = read_record(RunFolder.open(run))
    assert record.problems == (f"{run}/study.journal is damaged; this report lacks the trials",)
    assert record.trials == ()


@pytest.mark.parametrize(
    ("begin", "changes"),
    [
        ('"user_attr":{"best"', {"user_attr": {"best": [1]}}),
        ('"user_attr":{"best"', {"user_attr": {"best": {"epoch": 1}}}),
        ('"user_attr":{"best"', {"user_attr": {"best": {**BEST, "val_loss": None}}}),
        ('"user_attr":{"best"', {"user_attr": {"best": {**BEST, "more": 1}}}),
        ('"user_attr":{"best"', {"user_attr": {}}),
        ('"user_attr":{"best"', {"user_attr": {"epochs": "4"}}),
        ('"intermediate_value"', {"step": "1"}),
        ('"intermediate_value"', {"intermediate_value": "x"}),
        ('"param_value_internal"', {"param_value_internal": 99}),
    ],
)
def test_lines_of_another_search_are_a_damaged_study(tmp_path, begin, changes):
    """They are JSON, and Optuna takes them, but no search writes them so."""
    study = open_study(open_storage(tmp_path))
    trial = study.ask({"backbone": CategoricalDistribution(["tinynet", "cnn"])})
    trial.set_user_attr("best", BEST)
    trial.report(0.9, step=1)
    assert load_study(tmp_path) is not None
    journal = tmp_path / "study.journal"
    lines = journal.read_text().splitlines()
    changed = [json.dumps({**json.loads(one), **changes}) if begin in one else one for one in lines]
    assert changed != lines
    journal.write_text("\n".join(changed) + "\n")
    assert load_study(tmp_path) is None
    (tmp_path / "trials" / "0").mkdir(parents=True)
    (tmp_path / "trials" / "0" / "progress.csv").touch()
    with pytest.raises(FolderError, match=r"study\.journal is damaged: put a copy of it back, or"):
        check_readable(tmp_path)


@pytest.mark.parametrize("name", ["environment.json", "summary.json"])
@pytest.mark.parametrize(
    "content",
    ["", "[", "3", "null", "[]", '"a"', '{"data": 3, "request": 3}', '{"test": [], "request": {}}'],
)
def test_a_damaged_json_file_is_an_error(run, name, content):
    (run / name).write_text(content)
    with pytest.raises(FolderError) as caught:
        RunFolder.open(run)
    assert str(caught.value).startswith(f"{run / name} is damaged: ") or "of format" in str(
        caught.value
    )


def wrong(value: object) -> list[object]:
    """Return values of other types than one."""
    return [other for other in (3.5, "x", [], {}, [{}], None) if type(other) is not type(value)]


def test_any_value_of_the_summary_may_be_of_a_wrong_type(run):
    """It is an error that names the file, or read as it is; never another exception."""
    content = json.loads((run / "summary.json").read_text())
    refusals = []
    for section, values in content.items():
        keys = list(values) if isinstance(values, dict) else []
        for key in (None, *keys):
            for value in wrong(values if key is None else values[key]):
                changed = json.loads(json.dumps(content))
                if key is None:
                    changed[section] = value
                else:
                    changed[section][key] = value
                (run / "summary.json").write_text(json.dumps(changed))
                try:
                    assert isinstance(RunFolder.open(run).summary, RunSummary)
                except SearchError as error:
                    refusals.append(str(error))
    start = f"{run / 'summary.json'} is damaged: "
    assert {refusal[: len(start)] for refusal in refusals} == {start}
    assert len(refusals) > 100


@pytest.mark.parametrize(
    "name", [*TABLES[:5], "study.journal", "model.pt", "run.log", "report.html"]
)
@pytest.mark.parametrize("replace", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("none")])
def test_a_file_that_is_none_is_named(run, name, replace, capsys):
    (run / name).unlink(missing_ok=True)
    replace(run / name)
    assert report.main([str(run)]) == 2
    expected = f"error: {run / name} is damaged: it must be a regular file; remove it\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("name", ["trials", "folds", "figures", "tensorboard"])
def test_a_folder_that_is_none_is_named(run, name, capsys):
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).touch()
    assert report.main([str(run)]) == 2
    expected = f"error: {run / name} is damaged: it must be a folder; remove it\n"
    assert capsys.readouterr().err == expected


def test_half_a_character_in_the_summary_is_a_question_mark(run, capsys):
    """JSON can hold what UTF-8, and so a page, cannot."""
    content = json.loads((run / "summary.json").read_text())
    content["data"]["warnings"] = ["half \ud800 of one"]
    (run / "summary.json").write_text(json.dumps(content))
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().err == ""
    assert "half ? of one" in (run / "report.html").read_text()


def test_the_report_is_written_with_all_tables_damaged(run, capsys):
    for name in (*TABLES, "study.journal"):
        damage(run / name, b"a,b\n1,2,3\n")
    assert report.main([str(run)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{run}/report.html\n"
    page = (run / "report.html").read_text()
    for name in set(TABLES) - {"trials/0/progress.csv"}:  # without the study there are no trials
        assert f"warning: {run / name} is damaged: " in err
        assert f"{run / name} is damaged: " in page
    assert f"warning: {run}/study.journal is damaged" in err
