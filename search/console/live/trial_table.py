"""Lay out the table of trials on the terminal: running and ended ones in the same columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from search.console.formatting import METRIC_NAMES, compact, describe_score
from spaces.rules import Metric, Value
from trainables.trial_result import TrialResult

_NUMBER_WIDTHS = {True: 8, False: 6}  # log scale or not: "6.51e-05", "0.0312"
_SHORT = {"freeze_depth": "freeze", "weight_decay": "decay", "label_smoothing": "smoothing"}
_LAST = ("backbone",)  # wide, and often the same: the first to go where there is no room
_STATE_WIDTH = len("running")


@dataclass(frozen=True)
class TrialRow:
    """A trial as the table shows it.

    Attributes:
        number: Its number.
        params: The searched ones.
        epochs: Its full length; 0 where it is not known.
        result: Its last epoch; None before the first has ended.
        state: What stands at the end of the row: "", "running", "pruned", "best".
    """

    number: int
    params: Mapping[str, Value]
    epochs: int
    result: TrialResult | None = None
    state: str = ""

    @property
    def progress(self) -> str:
        """Its last epoch of how many: "5/20"."""
        epoch = self.result.epoch if self.result else 0
        return f"{epoch}/{self.epochs}" if self.epochs else str(epoch)


@dataclass(frozen=True)
class TrialTable:
    """The columns of the table: number, epoch, score, loss, the parameters that vary, seconds.

    Attributes:
        metric: What trials are compared by.
        distributions: The searched parameters; those with one value are left out.
        n_trials: Trials that are expected, for the width of their numbers.
        epochs: The longest trial, likewise.
        width: Columns of the terminal; parameters that do not fit are left out.
    """

    metric: Metric
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    n_trials: int = 0
    epochs: int = 1
    width: int = 80

    def heading(self) -> str:
        """Return the line above the rows."""
        names = [_SHORT.get(name, name) for name in self._params]
        return self._join(
            ["#", "epoch", f"val {METRIC_NAMES[self.metric]}", "loss", *names, "s", ""]
        )

    def line(self, row: TrialRow) -> str:
        """Return a trial's row."""
        params = [compact(row.params[n]) if n in row.params else "" for n in self._params]
        number, result = str(row.number), row.result
        if result is None or not result.epoch:
            return self._join([number, row.progress, "", "", *params, "", row.state])
        score = describe_score(self.metric, result.best_val_score, 2)
        seconds = f"{result.trained_seconds:.0f}"
        loss = f"{result.val_loss:.3f}"
        return self._join([number, row.progress, score, loss, *params, seconds, row.state])

    @property
    def left_out(self) -> list[str]:
        """The parameters that vary and that there is no room for."""
        return [name for name in self._varying() if name not in self._params]

    @property
    def _params(self) -> list[str]:
        room = self.width - sum(2 + width for width in self._fixed_widths()) - _STATE_WIDTH
        chosen = []
        for name in self._varying():
            room -= 2 + self._width_of(name)
            if room >= 0:
                chosen.append(name)
        return chosen

    def _varying(self) -> list[str]:
        names = [name for name, one in self.distributions.items() if not one.single()]
        return sorted(names, key=lambda name: name in _LAST)

    def _fixed_widths(self) -> list[int]:
        """Return the widths of number, epoch, score, loss and seconds."""
        number = max(2, len(str(max(0, self.n_trials - 1))))
        epoch = max(len("epoch"), 2 * len(str(self.epochs)) + 1)
        return [number, epoch, len(f"val {METRIC_NAMES[self.metric]}"), len("0.000"), len("1000")]

    def _width_of(self, name: str) -> int:
        distribution = self.distributions[name]
        widths = [len(_SHORT.get(name, name))]
        if isinstance(distribution, CategoricalDistribution):
            widths += [len(compact(choice)) for choice in distribution.choices]
        elif isinstance(distribution, IntDistribution):
            widths.append(len(str(distribution.high)))
        else:
            widths.append(_NUMBER_WIDTHS[bool(getattr(distribution, "log", False))])
        return max(widths)

    def _join(self, cells: Sequence[str]) -> str:
        *fixed, seconds = self._fixed_widths()
        widths = [*fixed, *(self._width_of(name) for name in self._params), seconds]
        *cells, state = cells
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([*aligned, state]).rstrip()
