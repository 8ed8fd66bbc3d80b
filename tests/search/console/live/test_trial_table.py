from dataclasses import replace

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.console.live.trial_table import TrialRow, TrialTable
from trainables.trial_result import TrialResult

DISTRIBUTIONS = {
    "backbone": CategoricalDistribution(["mobilenet_v2", "squeezenet1_0"]),
    "lr": FloatDistribution(1e-5, 1e-2, log=True),
    "freeze_depth": IntDistribution(0, 5),
    "mixup": CategoricalDistribution([0.4]),
    "dropout": FloatDistribution(0.0, 0.6),
}
PARAMS = {"backbone": "mobilenet_v2", "lr": 5.25e-5, "freeze_depth": 3, "mixup": 0.4}
RESULT = TrialResult(epoch=5, best_val_score=0.7027, val_loss=0.8124, trained_seconds=21.4)
ROW = TrialRow(4, PARAMS, 20, RESULT, "pruned")


def test_rows_stand_below_their_headings() -> None:
    table = TrialTable("accuracy", DISTRIBUTIONS, 12, 20, 140)
    assert table.heading().split() == [
        *("#", "epoch", "val", "accuracy", "loss", "lr", "freeze", "dropout", "backbone", "s")
    ]
    line = table.line(ROW)
    assert line.split() == ["4", "5/20", "70.27%", "0.812", "5.25e-05", "3", "mobilenet_v2", "21",
                            "pruned"]  # fmt: skip
    for name, cell in (("freeze", "3"), ("lr", "5.25e-05"), ("backbone", "mobilenet_v2")):
        end = table.heading().index(f" {name}") + 1 + len(name)
        assert line[:end].endswith(f" {cell}")


def test_a_trial_without_an_epoch_has_no_figures() -> None:
    table = TrialTable("log_loss", DISTRIBUTIONS, 12, 20, 140)
    assert "val log loss" in table.heading()
    assert table.line(replace(ROW, result=None, state="running")).split() == [
        *("4", "0/20", "5.25e-05", "3", "mobilenet_v2", "running")
    ]
    assert table.line(replace(ROW, epochs=0)).split()[1] == "5", "its length is not known"


@pytest.mark.parametrize("width", [40, 60, 73, 133])
def test_no_row_is_wider_than_the_terminal(width: int) -> None:
    table = TrialTable("accuracy", DISTRIBUTIONS, 12, 20, width)
    lines = [table.heading(), table.line(ROW), table.line(replace(ROW, state="running"))]
    widest = max(width, 46)  # of number, epoch, score, loss, seconds and state
    assert max(map(len, lines)) <= widest
    assert ("dropout" in table.heading()) == (width >= 73)
    assert ("dropout" in table.left_out) == (width < 73)
