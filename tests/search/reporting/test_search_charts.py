from pathlib import Path

from matplotlib.figure import Figure

from search.reporting.run_record import read_record
from search.reporting.search_charts import chart_search, importances
from search.runs.run_folder import RunFolder
from tests.search.reporting.test_page import make_run, remove


def legend_of(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_search_without_folds_has_no_winner_yet(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    drawn = {name: figure for name, figure, *_ in chart_search(read_record(RunFolder.open(folder)))}
    assert "winner" in legend_of(drawn["history"])
    assert "winner" in legend_of(drawn["parallel_coordinates"])
    remove(folder, "summary:kfold")
    drawn = {name: figure for name, figure, *_ in chart_search(read_record(RunFolder.open(folder)))}
    assert "winner" not in legend_of(drawn["history"])
    assert "winner" not in legend_of(drawn["parallel_coordinates"])


def test_importances_add_up_to_one(tmp_path: Path) -> None:
    shares = importances(read_record(RunFolder.open(make_run(tmp_path / "run", n_trials=20))))
    assert set(shares) == {"backbone", "lr", "freeze_depth"}
    assert abs(sum(shares.values()) - 1) < 1e-6


def test_few_trials_say_nothing_of_importances(tmp_path: Path) -> None:
    record = read_record(RunFolder.open(make_run(tmp_path / "run", n_trials=6)))
    assert [t.state for t in record.trials].count("complete") == 3
    assert importances(record) == {}
