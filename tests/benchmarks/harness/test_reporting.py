import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.reporting import (
    Ratio,
    Report,
    bootstrap_interval,
    default_output,
    format_table,
    mean_interval,
)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio("x", 10.0, 10.0), "target ≥ 10: met"),
        (Ratio("x", 9.9, 10.0), "target ≥ 10: MISSED"),
        (Ratio("x", 0.1, 0.1, at_least=False), "target ≤ 0.1: met"),
        (Ratio("x", 0.11, 0.1, at_least=False), "target ≤ 0.1: MISSED"),
        (Ratio("x", math.nan, 1.0), "target ≥ 1: not measured"),
        (Ratio("x", 3.0), ""),
    ],
)
def test_a_ratio_is_compared_with_its_target(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict == verdict


def test_a_table_aligns_its_columns() -> None:
    rows = [{"side": "ours", "seconds": 0.123456}, {"side": "theirs", "seconds": 12345.6}]
    assert format_table(rows) == "\n".join(
        ["  side    seconds", "  ours     0.1235", "  theirs   12,346"]
    )


def test_a_report_is_written_as_strict_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("x", "A claim.", ratios=[Ratio("a over b", math.nan, 2.0)])
    report.tables["T"] = [{"n": np.int64(3), "seconds": float("nan"), "path": tmp_path}]
    report.publish(argparse.Namespace(mode="smoke", out=tmp_path / "deep" / "x.json"))
    content = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert content["tables"]["T"] == [{"n": 3, "seconds": None, "path": str(tmp_path)}]
    assert content["ratios"][0]["value"] is None
    assert "ratio  a over b: –  target ≥ 2: not measured" in capsys.readouterr().out


def test_a_quick_run_does_not_replace_the_results_of_a_full_one() -> None:
    assert default_output("x", "quick") != default_output("x", "full")
    assert default_output("x", "smoke") is None


def test_the_interval_of_a_mean_is_students() -> None:
    center, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert center == 3.0
    assert (low, high) == (pytest.approx(3 - 1.9632, abs=1e-3), pytest.approx(3 + 1.9632, abs=1e-3))


def test_the_interval_covers_the_mean_of_sets_and_their_cells() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        effects = rng.normal(1, 1, 8)
        _, low, high = bootstrap_interval([rng.normal(effect, 1, 3).tolist() for effect in effects])
        covered += low <= 1 <= high
    assert covered >= 50
    assert bootstrap_interval([[2.0, 2.0], [4.0]])[0] == 3
    center, low, high = bootstrap_interval([[2.0]])
    assert center == 2
    assert math.isnan(low)
    assert math.isnan(high)
