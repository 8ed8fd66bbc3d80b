"""The last thing the terminal shows: what a run came to, where it lies, and what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.console.formatting import count, describe, duration
from search.reporting.evidence import evidence_rows


def show_result(summary: Mapping[str, Any], path: Path, console: Console) -> None:
    """Print a finished run's accuracies, its files, and the commands to go on with."""
    console.print(_accuracies(summary))
    facts = (_fold(line, console) for line in _facts(summary, path))
    for line in (*facts, "", *_next_commands(path)):
        # Not in a table, which would cut paths; not as markup, for their [ ].
        console.print(Text(line), soft_wrap=True)


def _fold(line: str, console: Console) -> str:
    """Return a line folded at the terminal's width, but for paths, which are to be copied whole."""
    if not console.is_terminal or os.sep in line:
        return line
    return "\n".join(wrap(line, max(40, console.width), subsequent_indent=" " * 14))


def _accuracies(summary: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "accuracy", "95 % interval", "images"):
        side = "left" if title in ("", "95 % interval") else "right"
        table.add_column(title, justify=side, no_wrap=True)  # type: ignore[arg-type]
    test, folds, outside = summary["test"], summary["kfold"], summary.get("external")
    table.add_row("held out", *_judged(test), str(test["n"]), style="bold")
    spread = f"± {folds['accuracy_std']:.4f} (sd)"
    table.add_row(f"{folds['folds']} folds", f"{folds['accuracy_mean']:.4f}", spread, "")
    if outside and outside["accuracy"] is not None:
        n_judged = outside.get("n_labelled", outside["n"])
        table.add_row("from elsewhere", *_judged(outside), str(n_judged))
    table.add_row("in the search", f"{summary['best']['val_accuracy']:.4f}", "", "", style="dim")
    return table


def _judged(scores: Mapping[str, Any]) -> tuple[str, str]:
    low, high = scores["accuracy_ci95"]
    return f"{scores['accuracy']:.4f}", f"{low:.4f} to {high:.4f}"


def _facts(summary: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Yield a line for each thing to know beside the accuracies."""
    best, searched = summary["best"], summary.get("search")
    told = {*summary.get("settings", {}).get("searched", best["config"])}
    config = {name: value for name, value in best["config"].items() if name in told}
    # A linear probe is its backbone, and has none of what trials search.
    retrain_config = (
        best["name"] if best["trial"] is None else f"{best['name']}: {describe(config)}"
    )
    rows = [("winner", retrain_config)]
    if searched:
        states = ("complete", "run in full"), ("pruned", "stopped early"), ("failed", "failed")
        shown = ", ".join(f"{searched[key]} {words}" for key, words in states)
        seconds = sum(summary.get("stages", {}).values())
        rows.append(
            ("search", f"{count(searched['trials'], 'trial')}: {shown}; {duration(seconds)} in all")
        )
    outside = summary.get("external")
    if outside and outside["accuracy"] is None:
        rows.append(("elsewhere", f"{count(outside['n'], 'image')} predicted"))
    rows += evidence_rows(summary, str(path / "folds" / "label_issues.csv"))
    rows += [("report", str(path / "report.html")), ("model", str(path / "model.pt"))]
    yield from (f"{label:<12}  {value}" for label, value in rows)


def _next_commands(run: Path) -> Iterator[str]:
    path = shlex.quote(str(run))
    boards = shlex.quote(str(run / "tensorboard"))
    yield "go on with:"
    yield f"  python -m search.predict {path} IMAGE…"
    yield f"  python -m search.serve {path}"
    yield f"  python -m search.report {path}"
    yield f"  tensorboard --logdir {boards}"
