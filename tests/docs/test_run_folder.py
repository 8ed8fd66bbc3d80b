"""docs/run-folder.md names the files, columns and keys that a run writes."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from search.runs import summary
from search.runs.tables import ABLATION_COLUMNS, EXCLUDED_COLUMNS

PAGE = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text(encoding="utf-8")
TABLES = dict(re.findall(r"^\| `([\w/<>]+\.csv)` \| `([^`]+)`", PAGE, re.MULTILINE))
SECTIONS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
OPTIONAL = {"excluded.csv": EXCLUDED_COLUMNS, "ablation.csv": ABLATION_COLUMNS}
"""Tables of options that the digits' run does not have."""


def matches(documented: str, header: str) -> bool:
    """Compare headers; `<parameters>` and `prob_<class>…` stand for one column or more."""
    pattern = re.escape(documented).replace("<parameters>", r"\w+(,\w+)*")
    return bool(re.fullmatch(pattern.replace("prob_<class>…", "prob_[^,]+(,prob_[^,]+)*"), header))


@pytest.mark.slow
def test_csv_headers_are_as_documented(digits_run: Path) -> None:
    written = {path.relative_to(digits_run) for path in digits_run.rglob("*.csv")}
    documented = {*TABLES, "folds/oof_predictions.csv", "external_predictions.csv"}
    patterns = [re.compile(name.replace("<n>", r"\d+")) for name in documented]
    for path in written:
        assert any(p.fullmatch(path.as_posix()) for p in patterns), f"{path} is not documented"
    for name, columns in TABLES.items():
        paths = list(digits_run.glob(name.replace("<n>", "*")))
        assert paths or name in OPTIONAL, f"no {name} was written"
        for path in paths:
            header = path.read_text(encoding="utf-8").splitlines()[0]
            assert matches(columns, header), f"{name}: {header}"
    for name, expected in OPTIONAL.items():
        assert TABLES[name] == ",".join(expected)
    for name in ("folds/oof_predictions.csv", "external_predictions.csv"):
        header = (digits_run / name).read_text(encoding="utf-8").splitlines()[0]
        assert matches(TABLES["test_predictions.csv"], header)


def test_summary_sections_are_as_documented() -> None:
    names = [field.name for field in dataclasses.fields(summary.RunSummary)]
    documented = [name for name in SECTIONS if name in names]
    assert sorted(documented) == sorted(names)
    for name, section in (
        *(("settings", summary.Settings), ("data", summary.DataCounts)),
        ("backbone_weights", summary.BackboneWeights),
        *(("audit", summary.AuditCounts), ("linear_probe", summary.ProbeScore)),
        *(("search", summary.SearchCounts), ("best", summary.BestModel)),
        *(("kfold", summary.KFoldScores), ("kfold", summary.CenterCropScores)),
        *(("kfold", summary.FinalistScores), ("label_issues", summary.LabelIssueCounts)),
        *(("label_issues", summary.LabelPair), ("calibration", summary.Calibration)),
        *(("calibration", summary.CalibrationChange), ("calibration", summary.CalibrationScores)),
        *(("calibration", summary.ReliabilityBin), ("test", summary.Scores)),
        *(("test", summary.ClassScores), ("evaluation", summary.Evaluations)),
        *(("comparison", summary.Comparison), ("ablation", summary.AblationScores)),
        ("samples", summary.Samples),
        *(("weighted_ensemble", summary.WeightedEnsembleScores),),
        ("weighted_ensemble", summary.EnsemblePart),
    ):
        keys = set(re.findall(r"`(\w+)`", SECTIONS[name]))
        missing = {field.name for field in dataclasses.fields(section)} - keys
        assert not missing, f"{name}: {missing} are not documented"


@pytest.mark.slow
def test_a_run_writes_the_documented_sections(digits_run: Path) -> None:
    written = json.loads((digits_run / "summary.json").read_text(encoding="utf-8"))
    external = set(re.findall(r"`(\w+)`", SECTIONS["external"] + SECTIONS["test"]))
    assert written["external"].keys() <= external
    assert written.keys() <= SECTIONS.keys()
    assert SECTIONS.keys() & set(written) >= {"settings", "data", "kfold", "test", "external"}
    stages = set(re.findall(r"`(\w+)`", SECTIONS["stages"]))
    assert written["stages"].keys() <= stages


@pytest.mark.slow
def test_the_files_of_a_run_are_documented(digits_run: Path) -> None:
    documented = re.findall(r"`([\w./<>]+)`", PAGE[: PAGE.index("## summary.json")])
    tops = {name.split("/")[0] for name in documented}
    assert {path.name for path in digits_run.iterdir()} <= tops
